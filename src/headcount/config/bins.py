"""Blocks, and the bins that their counts are classified into (arXiv:2403.09281, section III-A)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from headcount.config.fields import number

ZERO_BELOW = 1e-4
"""Heads; up to so many a smoothed count is labeled 0, which no Gaussian leaves exactly."""


class Strategy(Enum):
    """How many integers form a bin."""

    fine = 1
    dynamic = 2
    coarse = 3


class Last(Enum):
    """Whether the last bin keeps counts above the maximum or caps them."""

    open = 1
    clipped = 2


class Representatives(Enum):
    """What a bin stands for: the mean of the blocks in it, or its middle."""

    mean = 1
    middle = 2


class Counted(Enum):
    """Where representative counts are counted: the grid of blocks, or every window of a block's size."""

    blocks = 1
    windows = 2


@dataclass
class BlocksConfig:
    """Blocks alone, without bins, for a head that regresses their counts."""

    block_size: int = number(8, 1)
    """Side of a block, pixels (the paper's r)."""


@dataclass
class BlockwiseConfig(BlocksConfig):
    """Bordering real-valued intervals of Gaussian-smoothed counts (Liu et al., ICCV 2019)."""

    sigma: float = number(4.0, 1e-3)
    """Standard deviation of the Gaussian on each head, pixels of the training crop."""
    edges: list[float] | None = None
    """Upper ends of the intervals after {0}, to which an open one is added; None takes multiples of ``step`` below
    the largest count of the training blocks."""
    step: float = number(0.05, 1e-3)
    """Width of the intervals where ``edges`` are not given, heads."""


@dataclass
class BinsConfig(BlocksConfig):
    """Blocks and the bins of their counts."""

    strategy: Strategy = Strategy.fine
    """One integer a bin, two for large counts, or two for all but 0."""
    min_head_px: int = number(4, 1)
    """Side of the smallest head that can be recognized, pixels (the paper's s)."""
    max_count: int | None = number(None, 1, 10_000)
    """Largest count with a meaning of its own; None gives (block_size // min_head_px)^2."""
    last: Last = Last.open
    """The last bin keeps counts above the maximum (released code) or caps labels at it (paper)."""
    representatives: Representatives = Representatives.mean
    """What a bin stands for: the mean of its training blocks, or its middle."""
    counted: Counted = Counted.blocks
    """Where that mean is taken: over the grid of blocks, or over all overlapping windows, where a pixel counts once,
    as published values are."""
    label_correction: bool = True
    """Off: one bin for every integer up to the largest block count of the training images, or as many as there are
    ``representative_counts`` (fine bins alone)."""
    representative_counts: list[float] | None = None
    """What each bin stands for, if it is given (published values); None computes it."""

    @property
    def m(self) -> int:
        """The maximum count of a block, m = (r // s)^2 unless set (arXiv:2403.09281, III-A.2)."""
        return self.max_count if self.max_count is not None else (self.block_size // self.min_head_px) ** 2


def errors(bins: BinsConfig | BlockwiseConfig) -> list[str]:
    """Settings of bins that contradict each other."""
    if isinstance(bins, BlockwiseConfig):
        wrong = edges_error(bins.edges or [])
        return [f"bins.edges={bins.edges}: {wrong}"] if wrong else []
    errors = []
    if bins.label_correction and bins.m < 1:
        errors.append(
            f"bins.min_head_px={bins.min_head_px}: must be at most bins.block_size={bins.block_size}; "
            "or set bins.max_count"
        )
    if not bins.label_correction:
        if bins.strategy is not Strategy.fine:
            errors.append(
                f"bins.strategy={bins.strategy.name}: bins.label_correction=false gives every integer a bin of its "
                "own; choose bins=fine"
            )
        if bins.max_count is not None:
            errors.append(
                f"bins.max_count={bins.max_count}: bins.label_correction=false goes up to the largest block of the "
                "training images; leave one of them out"
            )
    given = bins.representative_counts
    if given is not None and (bins.m >= 1 or not bins.label_correction):
        strategy, m = (bins.strategy, bins.m) if bins.label_correction else (Strategy.fine, max(len(given) - 1, 1))
        if wrong := representatives_error(given, integer_bins(strategy, m)):
            errors.append(f"bins.representative_counts={given}: {wrong}")
    return errors


def integer_bins(strategy: Strategy, m: int) -> list[tuple[float, float]]:
    """Bins [first, last] of integers that cover 0, 1, ...; the last is [first, inf).

    Fine bins hold one integer each. Coarse bins hold two each, but for {0}. Dynamic bins hold one
    integer below ceil(m / 2) and two from there. The pair that would contain ``m`` is the open one.

    Raises:
        ValueError: if ``m`` is below 1.

    Source: arXiv:2403.09281, sections III-A.1 and IV-B; the released sets of bins for m = 8 and 19.
    """
    if m < 1:
        raise ValueError(f"m={m}: the maximum count of a block must be at least 1")
    pairs_from = {Strategy.fine: m, Strategy.dynamic: math.ceil(m / 2), Strategy.coarse: 1}[strategy]
    bins = [(float(k), float(k)) for k in range(pairs_from)]
    first = float(pairs_from)
    while strategy is not Strategy.fine and first + 1 < m:
        bins.append((first, first + 1))
        first += 2
    return [*bins, (first, math.inf)]


def bin_names(edges: Sequence[tuple[float, float]]) -> list[str]:
    """Each bin of integers as text: ``{0}``, ``[1, 2]``, ``[4, inf)``."""
    return [
        f"[{low:g}, inf)" if high == math.inf else f"{{{low:g}}}" if low == high else f"[{low:g}, {high:g}]"
        for low, high in edges
    ]


def representatives_error(given: Sequence[float], edges: Sequence[tuple[float, float]]) -> str | None:
    """What is wrong with the representative counts ``given`` for bins of integers."""
    if len(given) == len(edges) and all(
        math.isfinite(value) and low <= value <= high for value, (low, high) in zip(given, edges, strict=True)
    ):
        return None
    names = bin_names(edges)
    shown = names if len(names) <= 16 else [*names[:8], "...", *names[-4:]]
    return f"do not fit the {len(edges)} bins: one finite number is needed inside each of {', '.join(shown)}"


def edges_error(edges: list[float]) -> str | None:
    """What is wrong with the upper ends of intervals of smoothed counts."""
    if all(math.isfinite(e) for e in edges) and all(
        low < high for low, high in itertools.pairwise([ZERO_BELOW, *edges])
    ):
        return None
    return f"must be finite and increase, and begin above {ZERO_BELOW:g}, up to which a smoothed count is 0"
