"""Blocks, and the bins that their counts are classified into (arXiv:2403.09281, section III-A)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar

from headcount.config.fields import number

ZERO_BELOW = 1e-4
"""Heads; smoothed counts up to this are labeled 0, because a Gaussian never makes a count exactly 0."""
MAX_COUNT = 10_000
"""Upper limit of the maximum count of a block, and thereby of the number of bins."""


def missing_bins(setting: str, instead: str) -> str:
    """The error of a setting that classifies blocks, without bins to classify them into.

    Args:
        setting: as typed, such as ``loss=dace``.
        instead: a setting that can be chosen instead.
    """
    return f"{setting}: classifies blocks into bins, and bins=none has none; choose {instead}"


class Strategy(Enum):
    """How many integers form a bin."""

    fine = 1
    dynamic = 2
    coarse = 3


class Last(Enum):
    """Whether the last bin contains all counts above the maximum (``open``) or labels are capped at it."""

    open = 1
    clipped = 2


class Representatives(Enum):
    """The representative count of a bin: the mean of the training blocks in it, or its middle."""

    mean = 1
    middle = 2


class CountedIn(Enum):
    """Which blocks the mean is taken over: the grid of blocks, or every window of a block's size."""

    blocks = 1
    windows = 2


@dataclass
class BlocksConfig:
    """Blocks without bins, for a head that regresses their counts."""

    has_bins: ClassVar[bool] = False
    """Whether the counts of the blocks are classified into bins."""

    block_size: int = number(8, 1, 1024)
    """Side of a block, in pixels (the paper's r)."""


@dataclass
class BlockwiseConfig(BlocksConfig):
    """Adjacent real-valued intervals of Gaussian-smoothed counts (Liu et al., ICCV 2019)."""

    has_bins: ClassVar[bool] = True

    sigma: float = number(4.0, 1e-3, 1000)
    """Standard deviation of the Gaussian that smooths each head, in pixels of the training crop."""
    edges: list[float] | None = number(None, 0, 1_000_000)
    """Upper ends of the intervals after {0}, in heads; an open interval is added. None uses multiples of ``step``
    below the largest count of the training blocks."""
    step: float = number(0.05, 1e-3, 1000)
    """Width of the intervals if ``edges`` is None, in heads."""


@dataclass
class BinsConfig(BlocksConfig):
    """Blocks and the bins of their integer counts."""

    has_bins: ClassVar[bool] = True

    strategy: Strategy = Strategy.fine
    """One integer per bin (``fine``), two for large counts (``dynamic``), or two for all but 0 (``coarse``)."""
    min_head_px: int = number(4, 1, 1024)
    """Side of the smallest head that can be recognized, in pixels (the paper's s)."""
    max_count: int | None = number(None, 1, MAX_COUNT)
    """Largest count of a block with a bin of its own; None uses (block_size // min_head_px)^2."""
    last: Last = Last.open
    """The last bin contains all counts above the maximum (``open``, released code), or labels are capped at the
    maximum (``clipped``, paper)."""
    representatives: Representatives = Representatives.mean
    """The representative count of a bin: the mean of the training blocks in it, or its middle."""
    counted: CountedIn = CountedIn.blocks
    """That mean is taken over the grid of blocks, or over all overlapping windows with one head per pixel at most,
    as for the published values."""
    label_correction: bool = True
    """False uses one bin for every integer up to the largest block count of the training images, or as many bins as
    there are ``representative_counts``; only with fine bins."""
    representative_counts: list[float] | None = number(None, 0, 1_000_000)
    """Representative count of each bin, such as published ones; None computes them."""

    @property
    def m(self) -> int:
        """The maximum count of a block, m = (r // s)^2 unless set (arXiv:2403.09281, III-A.2)."""
        return self.max_count if self.max_count is not None else (self.block_size // self.min_head_px) ** 2


@dataclass
class GivenBinsConfig(BlocksConfig):
    """Bins of integer counts with given edges, represented by the means of their training blocks."""

    has_bins: ClassVar[bool] = True

    first_counts: list[int] | None = number(None, 1, 1_000_000)
    """First count of each bin after {0}, from 1: a bin ends where the next one begins, and the last is open.
    [1, 2, 3, 5] are the bins {0}, {1}, {2}, [3, 4] and [5, inf)."""
    representative_counts: list[float] | None = number(None, 0, 1_000_000)
    """Representative count of each bin, such as published ones; None uses the means of the training blocks."""

    @property
    def edges(self) -> list[tuple[float, float]]:
        """First and last integer of each bin; the last bin ends at inf."""
        firsts = self.first_counts or []
        ends = [*(first - 1.0 for first in firsts[1:]), math.inf]
        return [(0.0, 0.0), *((float(first), end) for first, end in zip(firsts, ends, strict=True))]


@dataclass
class AutoBinsConfig(BlocksConfig):
    """Bins of integer counts that are chosen from the training blocks: the least quantization error."""

    has_bins: ClassVar[bool] = True

    max_bins: int | None = number(None, 2, MAX_COUNT)
    """Number of bins, {0} included, where the training blocks allow that many; None uses as many as ``bins=fine``:
    (block_size // 4)^2 + 1, and at least 2."""
    min_share: float = number(0.001, 0, 1)
    """Every bin but {0} holds at least this share of the training blocks with heads."""

    @property
    def number_of_bins(self) -> int:
        """``max_bins``, or its default."""
        fine = max((self.block_size // BinsConfig.min_head_px) ** 2, 1) + 1
        return min(fine, MAX_COUNT) if self.max_bins is None else self.max_bins


def errors(config: BlocksConfig) -> list[str]:
    """Find settings of the bins that contradict each other or have no effect; one message each."""
    if isinstance(config, BlockwiseConfig):
        return _interval_errors(config)
    if isinstance(config, BinsConfig):
        return _bin_errors(config)
    if isinstance(config, GivenBinsConfig):
        return _given_errors(config)
    return []


def _given_errors(config: GivenBinsConfig) -> list[str]:
    firsts, given = config.first_counts, config.representative_counts
    if not firsts:
        return ["bins.first_counts: is missing; name the first count of each bin after {0}, such as [1, 2, 3, 5]"]
    if firsts[0] != 1 or any(low >= high for low, high in itertools.pairwise(firsts)):
        return [f"bins.first_counts={firsts}: must begin at 1 and increase"]
    wrong = None if given is None else representatives_error(given, config.edges)
    return [f"bins.representative_counts={given}: {wrong}"] if wrong else []


def _interval_errors(config: BlockwiseConfig) -> list[str]:
    found = []
    wrong = edges_error(config.edges or [])
    if wrong:
        found.append(f"bins.edges={config.edges}: {wrong}")
    if config.edges is not None:
        found += _no_effect(config, "step", because="bins.edges")
    return found


def _bin_errors(config: BinsConfig) -> list[str]:
    found = []
    if config.label_correction and config.m < 1:
        found.append(
            f"bins.min_head_px={config.min_head_px}: must be at most bins.block_size={config.block_size}; "
            "or set bins.max_count"
        )
    if config.label_correction and config.m > MAX_COUNT:  # max_count has its own range
        found.append(
            f"bins.block_size={config.block_size} bins.min_head_px={config.min_head_px}: make {config.m} bins, at most "
            f"{MAX_COUNT} are allowed; raise bins.min_head_px, or set bins.max_count"
        )
        return found
    if not config.label_correction:
        if config.strategy is not Strategy.fine:
            found.append(
                f"bins.strategy={config.strategy.name}: bins.label_correction=false gives every integer its own bin; "
                "choose bins=fine"
            )
        if config.max_count is not None:
            found.append(
                f"bins.max_count={config.max_count}: bins.label_correction=false goes up to the largest block of the "
                "training images; leave one of them out"
            )
    given = config.representative_counts
    if given is not None and (config.m >= 1 or not config.label_correction):
        strategy, m = config.strategy, config.m
        if not config.label_correction:
            strategy, m = Strategy.fine, max(len(given) - 1, 1)
        wrong = representatives_error(given, integer_bins(strategy, m))
        if wrong:
            found.append(f"bins.representative_counts={given}: {wrong}")
    return found + _ignored_bin_settings(config)


def _ignored_bin_settings(config: BinsConfig) -> list[str]:
    """Changed settings that another setting keeps from being read: otherwise equal runs would have different names."""
    found = []
    if not config.label_correction:
        found += _no_effect(config, "min_head_px", because="bins.label_correction=false")
    if config.max_count is not None:
        found += _no_effect(config, "min_head_px", because="bins.max_count")
    if config.representative_counts:
        found += _no_effect(config, "representatives", because="bins.representative_counts")
        found += _no_effect(config, "counted", because="bins.representative_counts")
    if config.representatives is Representatives.middle:
        found += _no_effect(config, "counted", because="bins.representatives=middle")
    return found


def _no_effect(config: BlocksConfig, name: str, *, because: str) -> list[str]:
    """A message if the setting ``name`` was changed, although ``because`` keeps it from being read."""
    value = getattr(config, name)
    default = next(item.default for item in fields(config) if item.name == name)
    if value == default:
        return []
    if isinstance(value, Enum) and isinstance(default, Enum):
        value, default = value.name, default.name
    return [f"bins.{name}={value}: has no effect with {because}; leave it at {default}"]


def integer_bins(strategy: Strategy, m: int) -> list[tuple[float, float]]:
    """Bins [first, last] of integers that cover 0, 1, ...; the last is [first, inf).

    Fine bins contain one integer each. Coarse bins contain two each, except {0}. Dynamic bins contain one
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
    """Check that there is one finite representative count inside each bin; None if nothing is wrong."""
    if len(given) == len(edges) and all(
        math.isfinite(value) and low <= value <= high for value, (low, high) in zip(given, edges, strict=True)
    ):
        return None
    names = bin_names(edges)
    shown = names if len(names) <= 16 else [*names[:8], "...", *names[-4:]]
    return f"do not fit the {len(edges)} bins: one finite number is needed inside each of {', '.join(shown)}"


def edges_error(edges: list[float]) -> str | None:
    """Check the upper ends of intervals of smoothed counts; None if nothing is wrong."""
    if all(math.isfinite(e) for e in edges) and all(
        low < high for low, high in itertools.pairwise([ZERO_BELOW, *edges])
    ):
        return None
    return f"must be finite and increase, and begin above {ZERO_BELOW:g}, up to which a smoothed count is 0"
