"""Count bins: which counts of a block form one class, and the count each class stands for.

Implements section III-A of arXiv:2403.09281: the three strategies (fine, dynamic, coarse), the
maximum count of a block (label correction) and representative counts (equation 2). It does not
count blocks (``data.points``) nor word bins for a text encoder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from headcount.config import BinsConfig, BlocksConfig, ConfigError, Last, Representatives, Strategy


def integer_bins(strategy: Strategy, m: int) -> list[tuple[float, float]]:
    """Bins [first, last] of integers that cover 0, 1, ...; the last is [first, inf).

    Fine bins hold one integer each. Coarse bins hold two each, but for {0}. Dynamic bins hold one
    integer below ceil(m / 2) and two from there. The pair that would contain ``m`` is the open one.

    Raises:
        ValueError: if ``m`` is below 1.

    Source: arXiv:2403.09281, sections III-A.1 and IV-B; the released sets of bins for m = 8 and 19.
    """
    if m < 1:
        raise ValueError(f"the maximum count of a block is {m}, but bins need at least 1")
    pairs_from = {Strategy.fine: m, Strategy.dynamic: math.ceil(m / 2), Strategy.coarse: 1}[strategy]
    bins = [(float(k), float(k)) for k in range(pairs_from)]
    first = float(pairs_from)
    while strategy is not Strategy.fine and first + 1 < m:
        bins.append((first, first + 1))
        first += 2
    return [*bins, (first, math.inf)]


@dataclass(frozen=True)
class CountBins:
    """Bins of a block's count with their representative counts.

    Build with :meth:`from_histogram`; a checkpoint keeps :meth:`to_dict`.
    """

    block_size: int
    """Side of a block, in pixels (the paper's r)."""
    edges: tuple[tuple[float, float], ...]
    """First and last integer of each bin, in increasing order; the last bin ends at inf."""
    representatives: tuple[float, ...]
    """The count each bin stands for (the paper's a_i)."""
    clip_at: float = math.inf
    """Counts above this are labelled, and averaged, as this (the paper's m); inf where they are kept."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.representatives):
            raise ValueError(f"{len(self.edges)} bins but {len(self.representatives)} representative counts")
        expected = 0.0
        for low, high in self.edges:
            if low != expected or high < low:
                problem = "overlap" if low < expected else "leave a gap"
                raise ValueError(f"bins {problem} at [{low:g}, {high:g}]: the next bin must begin at {expected:g}")
            expected = high + 1
        if self.edges[-1][1] != math.inf:
            raise ValueError(f"the last bin [{self.edges[-1][0]:g}, {self.edges[-1][1]:g}] must end at inf")

    def __len__(self) -> int:
        return len(self.edges)

    @classmethod
    def from_histogram(
        cls,
        histogram: Mapping[int, int],
        *,
        block_size: int,
        strategy: Strategy,
        m: int,
        last: Last = Last.open,
        representatives: Representatives = Representatives.mean,
        given: Sequence[float] | None = None,
    ) -> "CountBins":
        """Bins of ``strategy`` up to ``m``, with representative counts from the training blocks.

        A bin that no training block falls into takes its middle (the open bin: its first count).

        Args:
            histogram: block count -> number of training blocks of ``block_size`` with that count.
            last: ``open``: counts above ``m`` keep their value in the mean of the last bin (the
                released code); ``clipped``: labels are capped at ``m``, which the last bin then
                stands for (the paper).
            representatives: ``mean`` of the blocks in a bin (equation 2, |B_i| being their
                number), or ``middle`` of the bin.
            given: what each bin stands for, instead of either.

        Raises:
            ValueError: if ``given`` are not as many as the bins, or one lies outside its bin.
        """
        edges = integer_bins(strategy, m)
        clip_at = float(m) if last is Last.clipped else math.inf
        if given is not None:
            if len(given) != len(edges) or not all(a <= v <= b for v, (a, b) in zip(given, edges, strict=True)):
                raise ValueError(
                    f"representative counts {list(given)} do not fit the {len(edges)} bins: one is needed inside each "
                    f"of {', '.join(_names(edges))}"
                )
            return cls(block_size, tuple(edges), tuple(map(float, given)), clip_at=clip_at)
        values = []
        for low, high in edges:
            inside = {c: n for c, n in histogram.items() if low <= c <= high and n > 0}
            is_last = high == math.inf
            if is_last and last is Last.clipped:
                values.append(float(m))
            elif representatives is Representatives.mean and inside:
                values.append(sum(c * n for c, n in inside.items()) / sum(inside.values()))
            else:
                values.append(low if is_last else (low + high) / 2)
        return cls(block_size, tuple(edges), tuple(values), clip_at=clip_at)

    def label(self, block_counts: Float[Tensor, "batch 1 rows cols"]) -> Int64[Tensor, "batch rows cols"]:
        """The index of the bin each block's count lies in.

        Raises:
            ValueError: if a count lies in no bin (negative, fractional or not finite).
        """
        counts = block_counts[:, 0].clamp(max=self.clip_at)
        nowhere = (counts < 0) | (counts != counts.round()) | ~block_counts[:, 0].isfinite()
        # Device sync; a count outside every bin would otherwise train a wrong class.
        if bool(nowhere.any()):
            worst = block_counts[:, 0][nowhere][0]
            raise ValueError(f"block count {float(worst):g} lies in no bin; allowed are the integers 0, 1, 2, ...")
        lows = torch.tensor([low for low, _ in self.edges], dtype=counts.dtype, device=counts.device)
        return torch.bucketize(counts, lows, right=True) - 1

    def names(self) -> list[str]:
        """Each bin as text: ``{0}``, ``[1, 2]``, ``[4, inf)``."""
        return _names(self.edges)

    def shares(self, histogram: Mapping[int, int]) -> list[float]:
        """The share of the blocks of ``histogram`` that falls in each bin."""
        total = max(sum(histogram.values()), 1)
        return [sum(n for c, n in histogram.items() if low <= c <= high) / total for low, high in self.edges]

    def describe(self, histogram: Mapping[int, int]) -> str:
        """A table for people: each bin, its representative count and its share of the blocks."""
        rows = [f"{'bin':>10}  {'stands for':>10}  {'blocks':>9}"]
        for name, value, share in zip(self.names(), self.representatives, self.shares(histogram), strict=True):
            rows.append(f"{name:>10}  {value:>10.4f}  {share:>9.4%}")
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "block_size": self.block_size,
            "edges": [list(e) for e in self.edges],
            "representatives": list(self.representatives),
            "clip_at": self.clip_at,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CountBins":
        """The bins that :meth:`to_dict` wrote."""
        edges: Sequence[Sequence[float]] = values["edges"]
        return cls(
            block_size=int(values["block_size"]),
            edges=tuple((float(low), float(high)) for low, high in edges),
            representatives=tuple(float(v) for v in values["representatives"]),
            clip_at=float(values["clip_at"]),
        )


def _names(edges: Sequence[tuple[float, float]]) -> list[str]:
    return [
        f"[{low:g}, inf)" if high == math.inf else f"{{{low:g}}}" if low == high else f"[{low:g}, {high:g}]"
        for low, high in edges
    ]


def expected_counts(
    probabilities: Float[Tensor, "batch bins rows cols"], representatives: Float[Tensor, " bins"]
) -> Float[Tensor, "batch 1 rows cols"]:
    """Representative counts weighted by probability.

    Source: arXiv:2403.09281, equation 1.
    """
    return (probabilities * representatives[:, None, None]).sum(1, keepdim=True)


def build_bins(config: BlocksConfig, histogram: Mapping[int, int]) -> CountBins | None:
    """The bins of a config, for the block counts of the training images; None for blocks without bins.

    Raises:
        ConfigError: if the representative counts that are given do not fit the bins.
    """
    if not isinstance(config, BinsConfig):
        return None
    try:
        return CountBins.from_histogram(
            histogram,
            block_size=config.block_size,
            strategy=config.strategy,
            m=config.m,
            last=config.last,
            representatives=config.representatives,
            given=config.representative_counts,
        )
    except ValueError as error:
        raise ConfigError(f"bins.representative_counts: {error}") from error
