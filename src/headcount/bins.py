"""Count bins: which counts of a block form one class, and the count each class stands for.

Implements section III-A of arXiv:2403.09281: the three strategies (fine, dynamic, coarse), the
maximum count of a block (label correction) and representative counts (equation 2); and the
bordering real-valued intervals of the baseline (Liu et al., ICCV 2019). It does not count blocks
(``data.points``) nor word bins for a text encoder.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from headcount.config import (
    ZERO_BELOW,
    BinsConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    Last,
    Representatives,
    Strategy,
    bin_names,
    edges_error,
    integer_bins,
    representatives_error,
)

# Bins beyond so many are told by the first and the last few.
_TOLD = 16


@dataclass(frozen=True)
class CountBins:
    """Bins of a block's count with their representative counts.

    Build with :meth:`from_histogram` or :meth:`from_edges`; a checkpoint keeps :meth:`to_dict`.
    """

    block_size: int
    """Side of a block, in pixels (the paper's r)."""
    edges: tuple[tuple[float, float], ...]
    """First and last integer of each bin, in increasing order; the last bin ends at inf. Of smoothed counts,
    {0} and intervals (low, high] that border on each other."""
    representatives: tuple[float, ...]
    """The count each bin stands for (the paper's a_i)."""
    clip_at: float = math.inf
    """Counts above this are labeled, and averaged, as this (the paper's m); inf where they are kept."""
    smoothed: bool = False
    """The counts are those of heads that a Gaussian has spread: any number from 0, not integers."""
    observed: tuple[float, ...] | None = None
    """Share of the training blocks in each bin, kept for smoothed counts, which integers cannot tell."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.representatives):
            raise ValueError(f"{len(self.edges)} bins but {len(self.representatives)} representative counts")
        if self.observed is not None and len(self.observed) != len(self.edges):
            raise ValueError(f"{len(self.edges)} bins but {len(self.observed)} shares of the training blocks")
        names, expected = self.names(), 0.0
        for k, (low, high) in enumerate(self.edges):
            # An interval without its lower end may not be empty; {0} holds one number, as integers do.
            empty = high <= low if self.smoothed and k else high < low
            if low != expected or empty:
                problem = "overlap" if low < expected or empty else "leave a gap"
                raise ValueError(f"bins {problem} at {names[k]}: the next bin must begin at {expected:g}")
            expected = high if self.smoothed else high + 1
        if self.smoothed and self.edges[0] != (0, 0):
            raise ValueError(f"the first bin of smoothed counts must be {{0}}, not {names[0]}")
        if self.edges[-1][1] != math.inf:
            raise ValueError(f"the last bin {names[-1]} must end at inf")

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
            ValueError: if ``given`` are not as many as the bins, or one is not finite or lies outside its bin.
        """
        edges = integer_bins(strategy, m)
        clip_at = float(m) if last is Last.clipped else math.inf
        if given is not None:
            if wrong := representatives_error(given, edges):
                raise ValueError(f"representative_counts={list(given)}: {wrong}")
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

    @classmethod
    def from_edges(
        cls, edges: Sequence[float], *, block_size: int, histogram: Mapping[float, int] | None = None
    ) -> "CountBins":
        """Bordering intervals {0}, (0, e_1], (e_1, e_2], ..., (e_k, inf) of smoothed counts.

        An interval stands for its middle. The open one, which has none, stands for its lower end plus
        half the width of the interval before it, as if it went on like that.

        Args:
            edges: upper ends of the bounded intervals, in heads; may be empty.
            histogram: smoothed block count -> number of training blocks; None where it is not known.

        Raises:
            ValueError: if the edges do not increase from above ``ZERO_BELOW``.

        Source: Liu et al., ICCV 2019; the first row of arXiv:2403.09281, table III.
        """
        if wrong := edges_error([float(e) for e in edges]):
            raise ValueError(f"edges={list(edges)}: {wrong}")
        ends = [0.0, *map(float, edges)]
        middles = [(low + high) / 2 for low, high in pairwise(ends)]
        width = ends[-1] - ends[-2] if len(ends) > 1 else 1.0
        bins = cls(
            block_size,
            ((0.0, 0.0), *pairwise([*ends, math.inf])),
            (0.0, *middles, ends[-1] + width / 2),
            smoothed=True,
        )
        if not histogram:
            return bins
        counts = torch.tensor(list(histogram), dtype=torch.float64).view(1, 1, 1, -1)
        blocks = torch.tensor(list(histogram.values()), dtype=torch.float64)
        totals = torch.zeros(len(bins), dtype=torch.float64).index_add_(0, bins.label(counts).flatten(), blocks)
        return replace(bins, observed=tuple((totals / totals.sum()).tolist()))

    def label(self, block_counts: Float[Tensor, "batch 1 rows cols"]) -> Int64[Tensor, "batch rows cols"]:
        """The index of the bin each block's count lies in.

        A smoothed count is 0 nowhere, exactly; up to ``ZERO_BELOW`` it is labeled as 0.

        Raises:
            ValueError: if a count lies in no bin (negative, not finite, or fractional where bins are of integers).
        """
        given = block_counts[:, 0]
        nowhere = (given < 0) | ~given.isfinite()
        if not self.smoothed:
            nowhere |= given != given.round()
        # Device sync; a count outside every bin would otherwise train a wrong class.
        if bool(nowhere.any()):
            allowed = "numbers from 0" if self.smoothed else "the integers 0, 1, 2, ..."
            raise ValueError(f"block count {float(given[nowhere][0]):g} lies in no bin; allowed are {allowed}")
        if self.smoothed:
            highs = given.new_tensor([ZERO_BELOW, *(high for _, high in self.edges[1:])])
            return torch.bucketize(given, highs)
        lows = given.new_tensor([low for low, _ in self.edges])
        return torch.bucketize(given.clamp(max=self.clip_at), lows, right=True) - 1

    def names(self) -> list[str]:
        """Each bin as text: ``{0}``, ``[1, 2]``, ``[4, inf)``, or ``(0.05, 0.1]`` of smoothed counts."""
        names = bin_names(self.edges)
        return [f"({name[1:]}" if self.smoothed and k else name for k, name in enumerate(names)]

    def shares(self, histogram: Mapping[int, int]) -> list[float]:
        """The share of the blocks of ``histogram`` that falls in each bin; of smoothed counts, what was observed."""
        if self.observed is not None:
            return list(self.observed)
        total = max(sum(histogram.values()), 1)
        # Intervals lack their lower end: an integer on it belongs to the interval before.
        return [
            sum(n for c, n in histogram.items() if (low < c if self.smoothed and k else low <= c) and c <= high) / total
            for k, (low, high) in enumerate(self.edges)
        ]

    def describe(self, histogram: Mapping[int, int]) -> str:
        """A table for people: each bin, its representative count and its share of the blocks."""
        rows = [
            f"{name:>14}  {value:>10.4f}  {share:>9.4%}"
            for name, value, share in zip(self.names(), self.representatives, self.shares(histogram), strict=True)
        ]
        if len(rows) > _TOLD:
            rows[_TOLD // 2 : -_TOLD // 4] = [f"{'...':>14}  ({len(rows)} bins)"]
        return "\n".join([f"{'bin':>14}  {'stands for':>10}  {'blocks':>9}", *rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "block_size": self.block_size,
            "edges": [list(e) for e in self.edges],
            "representatives": list(self.representatives),
            "clip_at": self.clip_at,
            "smoothed": self.smoothed,
            "observed": None if self.observed is None else list(self.observed),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CountBins":
        """The bins that :meth:`to_dict` wrote."""
        edges: Sequence[Sequence[float]] = values["edges"]
        observed = values.get("observed")  # of smoothed counts alone
        return cls(
            block_size=int(values["block_size"]),
            edges=tuple((float(low), float(high)) for low, high in edges),
            representatives=tuple(float(v) for v in values["representatives"]),
            clip_at=float(values["clip_at"]),
            smoothed=bool(values.get("smoothed", False)),
            observed=None if observed is None else tuple(float(v) for v in observed),
        )


def expected_counts(
    probabilities: Float[Tensor, "batch bins rows cols"], representatives: Float[Tensor, " bins"]
) -> Float[Tensor, "batch 1 rows cols"]:
    """Representative counts weighted by probability.

    Source: arXiv:2403.09281, equation 1.
    """
    return (probabilities * representatives[:, None, None]).sum(1, keepdim=True)


def build_bins(
    config: BlocksConfig,
    histogram: Mapping[int, int],
    *,
    windows: Mapping[int, int] | None = None,
    smoothed: Mapping[float, int] | None = None,
) -> CountBins | None:
    """The bins of a config, for the block counts of the training images; None for blocks without bins.

    Args:
        histogram: block count -> number of training blocks.
        windows: count -> number of windows of a block's size, wherever they lie; representative counts
            are their means. None takes the blocks.
        smoothed: smoothed block count -> number of training blocks, for intervals of such counts. None
            takes ``histogram`` as if nothing had been smoothed.

    Raises:
        ConfigError: if the representative counts or the edges that are given make no bins.
    """
    if isinstance(config, BlockwiseConfig):
        counts: Mapping[Any, int] = histogram if smoothed is None else smoothed
        edges = config.edges
        if edges is None:
            # The largest count lies in the open interval; a bounded one that holds it would leave that without any.
            bounded = math.ceil(max(counts, default=0) / config.step - 1e-9) - 1
            edges = [round(config.step * (k + 1), 10) for k in range(bounded)]
        try:
            return CountBins.from_edges(edges, block_size=config.block_size, histogram=smoothed)
        except ValueError as error:
            raise ConfigError(f"bins.{error}") from error
    if not isinstance(config, BinsConfig):
        return None
    given = config.representative_counts
    largest = max(histogram, default=1) if given is None else len(given) - 1
    m = config.m if config.label_correction else max(largest, 1)
    try:
        return CountBins.from_histogram(
            histogram if windows is None else windows,
            block_size=config.block_size,
            strategy=config.strategy,
            m=m,
            last=config.last,
            representatives=config.representatives,
            given=given,
        )
    except ValueError as error:
        raise ConfigError(f"bins.{error}") from error
