"""Count bins: which counts of a block form one class, and the count each class stands for.

Implements section III-A of arXiv:2403.09281: the three strategies (fine, dynamic, coarse), the
maximum count of a block (label correction) and representative counts (equation 2); and the
adjacent real-valued intervals of the baseline (Liu et al., ICCV 2019). Counting the heads in each
block is done by ``data.points``, and writing prompts for bins by ``models.prompts``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from tabulate import tabulate
from torch import Tensor

from headcount.config import (
    ZERO_BELOW,
    AutoBinsConfig,
    BinsConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    GivenBinsConfig,
    Last,
    Representatives,
    Strategy,
    bin_names,
    edges_error,
    integer_bins,
    representatives_error,
)
from headcount.quantization import least_error_bins, quantization_error
from headcount.types import BlockGrid

MAX_REPRESENTATIVE = 1e6
"""Largest representative count, in heads per block."""
MAX_DESCRIBED = 16
"""Longer tables show only the first and last bins."""


@dataclass(frozen=True)
class CountBins:
    """Bins of a block's count with their representative counts.

    Build with ``from_histogram`` or ``from_edges``; a checkpoint stores ``to_dict``.
    """

    grid: BlockGrid
    """The blocks whose counts are classified."""
    edges: tuple[tuple[float, float], ...]
    """First and last integer of each bin, in increasing order; the last bin ends at inf. For smoothed counts:
    {0} and adjacent intervals (low, high]."""
    representatives: tuple[float, ...]
    """Representative count of each bin (the paper's a_i)."""
    clip_at: float = math.inf
    """Counts above this are treated as equal to it in labels and means (the paper's m); inf keeps them."""
    smoothed: bool = False
    """Whether the counts are of Gaussian-smoothed heads: any number >= 0 instead of integers."""
    observed: tuple[float, ...] | None = None
    """Fraction of the training blocks in each bin; stored for smoothed counts, for which a histogram of integers
    does not give it."""

    def __post_init__(self) -> None:
        if len(self.edges) != len(self.representatives):
            raise ValueError(f"{len(self.edges)} bins but {len(self.representatives)} representative counts")
        if self.observed is not None and len(self.observed) != len(self.edges):
            raise ValueError(f"{len(self.edges)} bins but {len(self.observed)} fractions of the training blocks")
        names, expected = self.names(), 0.0
        for k, (low, high) in enumerate(self.edges):
            # A half-open interval must not be empty; {0} contains one number, like a bin of one integer.
            empty = high <= low if self.smoothed and k else high < low
            if low != expected or empty:
                problem = "overlap" if low < expected or empty else "leave a gap"
                raise ValueError(f"bins {problem} at {names[k]}: the next bin must begin at {expected:g}")
            expected = high if self.smoothed else high + 1
        if self.smoothed and self.edges[0] != (0, 0):
            raise ValueError(f"the first bin of smoothed counts must be {{0}}, not {names[0]}")
        if self.edges[-1][1] != math.inf:
            raise ValueError(f"the last bin {names[-1]} must end at inf")
        if wrong := representatives_error(self.representatives, self.edges):
            raise ValueError(f"representatives={list(self.representatives)}: {wrong}")
        if self.representatives[-1] > MAX_REPRESENTATIVE:  # the last is the largest
            raise ValueError(
                f"representative count {self.representatives[-1]:g}: at most {MAX_REPRESENTATIVE:g} is allowed"
            )

    def __len__(self) -> int:
        return len(self.edges)

    @classmethod
    def from_histogram(
        cls,
        histogram: Mapping[int, int],
        *,
        grid: BlockGrid,
        strategy: Strategy,
        m: int,
        last: Last = Last.open,
        representatives: Representatives = Representatives.mean,
        given: Sequence[float] | None = None,
    ) -> "CountBins":
        """Bins of ``strategy`` up to ``m``, with representative counts from the training blocks.

        A bin without training blocks is represented by its midpoint (the open bin: by its first count).

        Args:
            histogram: block count -> number of training blocks of ``grid`` with that count.
            m: maximum count of a block; the last bin starts at or just below it.
            last: ``open``: counts above ``m`` keep their value in the mean of the last bin (the
                released code); ``clipped``: labels are capped at ``m``, which then represents the
                last bin (the paper).
            representatives: ``mean`` of the blocks in a bin (equation 2, where |B_i| is their
                number), or ``middle`` of the bin.
            given: representative counts to use instead of computed ones.

        Raises:
            ValueError: if the number of ``given`` counts differs from the number of bins, or one is not finite or
                lies outside its bin.
        """
        edges = integer_bins(strategy, m)
        clip_at = float(m) if last is Last.clipped else math.inf
        if given is not None:
            if wrong := representatives_error(given, edges):
                raise ValueError(f"representative_counts={list(given)}: {wrong}")
            return cls(grid, tuple(edges), tuple(map(float, given)), clip_at=clip_at)
        values = _representatives(edges, histogram if representatives is Representatives.mean else {})
        if last is Last.clipped:
            values[-1] = float(m)
        return cls(grid, tuple(edges), tuple(values), clip_at=clip_at)

    @classmethod
    def of_least_error(
        cls, histogram: Mapping[int, int], *, grid: BlockGrid, max_bins: int, min_share: float
    ) -> "CountBins":
        """The bins of :func:`headcount.quantization.least_error_bins`, represented by the means of their blocks.

        Raises:
            ValueError: if no block of ``histogram`` holds a head.
        """
        edges = least_error_bins(histogram, max_bins=max_bins, min_share=min_share)
        return cls(grid, tuple(edges), tuple(_representatives(edges, histogram)))

    @classmethod
    def from_edges(
        cls, edges: Sequence[float], *, grid: BlockGrid, histogram: Mapping[float, int] | None = None
    ) -> "CountBins":
        """Adjacent intervals {0}, (0, e_1], (e_1, e_2], ..., (e_k, inf) of smoothed counts.

        An interval is represented by its midpoint; the open one, which has none, by its lower end plus
        half the width of the interval before it.

        Args:
            edges: upper ends of the bounded intervals, in heads; may be empty.
            histogram: smoothed block count -> number of training blocks; None if unknown.

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
            grid,
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
        """The index of the bin that each block's count lies in.

        Smoothed counts are never exactly 0: up to ``ZERO_BELOW`` they are labeled as 0.

        Raises:
            ValueError: if a count lies in no bin (negative, not finite, or fractional for bins of integers).
        """
        given = block_counts[:, 0]
        invalid = (given < 0) | ~given.isfinite()
        if not self.smoothed:
            invalid |= given != given.round()
        # Device sync; the loader labels on the host. Unchecked, such a count would be trained as a wrong class.
        if bool(invalid.any()):
            allowed = "numbers from 0" if self.smoothed else "the integers 0, 1, 2, ..."
            raise ValueError(f"block count {float(given[invalid][0]):g} lies in no bin; allowed are {allowed}")
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
        """The fraction of the blocks of ``histogram`` in each bin; for smoothed counts, ``observed``."""
        if self.observed is not None:
            return list(self.observed)
        total = max(sum(histogram.values()), 1)
        # Intervals exclude their lower end: an integer there belongs to the previous interval.
        return [
            sum(n for c, n in histogram.items() if (low < c if self.smoothed and k else low <= c) and c <= high) / total
            for k, (low, high) in enumerate(self.edges)
        ]

    def describe(self, histogram: Mapping[int, int]) -> str:
        """A text table: each bin, its representative count and its fraction of the blocks of ``histogram``."""
        rows = [
            [name, f"{value:.4f}", f"{share:.4%}"]
            for name, value, share in zip(self.names(), self.representatives, self.shares(histogram), strict=True)
        ]
        return _plain_table(["bin", "represented by", "blocks"], rows, what="bins")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "block_size": self.grid.block_size,
            "edges": [list(e) for e in self.edges],
            "representatives": list(self.representatives),
            "clip_at": self.clip_at,
            "smoothed": self.smoothed,
            "observed": None if self.observed is None else list(self.observed),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CountBins":
        """The bins that ``to_dict`` wrote."""
        edges: Sequence[Sequence[float]] = values["edges"]
        observed = values.get("observed")  # only of smoothed counts
        return cls(
            grid=BlockGrid(int(values["block_size"])),
            edges=tuple((float(low), float(high)) for low, high in edges),
            representatives=tuple(float(v) for v in values["representatives"]),
            clip_at=float(values["clip_at"]),
            smoothed=bool(values.get("smoothed", False)),
            observed=None if observed is None else tuple(float(v) for v in observed),
        )


def describe_choice(bins: CountBins, histogram: Mapping[int, int]) -> str:
    """What ``bins=auto`` chose from, and what it saves: the blocks by their count, and the error of each choice.

    The error is the root mean squared difference between the count of a block with heads and the mean of its bin.

    Args:
        bins: the chosen ones.
        histogram: block count -> number of training blocks.
    """
    labels = bins.label(torch.tensor(list(histogram), dtype=torch.float32).view(1, 1, 1, -1)).flatten().tolist()
    names, total = bins.names(), sum(histogram.values())
    counted = [
        [str(count), str(blocks), f"{blocks / total:.4%}", names[label]]
        for (count, blocks), label in zip(histogram.items(), labels, strict=True)
    ]
    size = bins.grid.block_size
    m = max((size // BinsConfig.min_head_px) ** 2, 1)
    choices = {"auto": list(bins.edges)} | {strategy.name: integer_bins(strategy, m) for strategy in Strategy}
    errors = [
        [f"bins={name}", str(len(edges)), bin_names(edges)[-1], f"{quantization_error(histogram, edges):.4f}"]
        for name, edges in choices.items()
    ]
    return "\n".join(
        [
            _plain_table(["heads", "blocks", "share", "bin"], counted, what="counts"),
            _plain_table(["choice", "bins", "last", "error in heads per block"], errors, what="choices"),
        ]
    )


def _plain_table(headers: list[str], rows: list[list[str]], *, what: str) -> str:
    """A text table, all columns to the right; of a long one the first and last rows."""
    if len(rows) > MAX_DESCRIBED:
        omitted = ["...", f"({len(rows)} {what})", *([""] * (len(headers) - 2))]
        rows = [*rows[: MAX_DESCRIBED // 2], omitted, *rows[-MAX_DESCRIBED // 4 :]]
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=["right"] * len(headers))


def _representatives(edges: Sequence[tuple[float, float]], histogram: Mapping[int, int]) -> list[float]:
    """The mean count of the blocks in each bin; without blocks its middle, or the first count of the open bin."""
    values = []
    for low, high in edges:
        inside = {c: n for c, n in histogram.items() if low <= c <= high and n > 0}
        if inside:
            values.append(sum(c * n for c, n in inside.items()) / sum(inside.values()))
        else:
            values.append(low if high == math.inf else (low + high) / 2)
    return values


def expected_counts(
    probabilities: Float[Tensor, "batch bins rows cols"], representatives: Float[Tensor, " bins"]
) -> Float[Tensor, "batch 1 rows cols"]:
    """Representative counts weighted by the probability of their bins.

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
    """The bins of a config, for the block counts of the training images; None for a config without bins.

    Args:
        histogram: block count -> number of training blocks.
        windows: count -> number of windows of a block's size at every position; representative counts
            are computed from these. None uses the blocks.
        smoothed: smoothed block count -> number of training blocks, for intervals of such counts. None
            uses ``histogram``, as if nothing had been smoothed.

    Raises:
        ConfigError: if the given representative counts or edges do not form valid bins.
    """
    match config:
        case BlockwiseConfig():
            return _build_intervals(config, histogram if smoothed is None else smoothed, observed=smoothed)
        case BinsConfig():
            return _build_integer_bins(config, histogram, counted=histogram if windows is None else windows)
        case GivenBinsConfig():
            return _build_given(config, histogram if windows is None else windows)
        case AutoBinsConfig():
            try:
                return CountBins.of_least_error(
                    histogram,
                    grid=BlockGrid(config.block_size),
                    max_bins=config.number_of_bins,
                    min_share=config.min_share,
                )
            except ValueError as error:
                raise ConfigError(f"bins=auto: {error}; choose bins=fine, which needs no heads") from error
    return None


def _build_intervals(
    config: BlockwiseConfig, counts: Mapping[Any, int], *, observed: Mapping[float, int] | None
) -> CountBins:
    edges = config.edges
    if edges is None:
        # The largest count must lie in the open interval, which would otherwise have no training block.
        bounded = math.ceil(max(counts, default=0) / config.step - 1e-9) - 1
        edges = [round(config.step * (k + 1), 10) for k in range(bounded)]
    try:
        return CountBins.from_edges(edges, grid=BlockGrid(config.block_size), histogram=observed)
    except ValueError as error:
        raise ConfigError(f"bins.{error}") from error


def _build_given(config: GivenBinsConfig, histogram: Mapping[int, int]) -> CountBins:
    given = config.representative_counts
    try:
        values = _representatives(config.edges, histogram) if given is None else given
        return CountBins(BlockGrid(config.block_size), tuple(config.edges), tuple(map(float, values)))
    except ValueError as error:
        raise ConfigError(f"bins=given: {error}") from error


def _build_integer_bins(config: BinsConfig, histogram: Mapping[int, int], *, counted: Mapping[int, int]) -> CountBins:
    given = config.representative_counts
    largest = max(histogram, default=1) if given is None else len(given) - 1
    try:
        return CountBins.from_histogram(
            counted,
            grid=BlockGrid(config.block_size),
            strategy=config.strategy,
            m=config.m if config.label_correction else max(largest, 1),
            last=config.last,
            representatives=config.representatives,
            given=given,
        )
    except ValueError as error:
        raise ConfigError(f"bins.{error}") from error
