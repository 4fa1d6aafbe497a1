"""Evaluators beyond the count error: GAME, empty blocks, reliability of the bins' probabilities, intervals.

An evaluator takes an image and its counted result, and returns named numbers. One that needs blocks or
probabilities returns nothing for a counter without them.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headcount.bins import CountBins
from headcount.coverage import own_ends
from headcount.data.points import block_counts, clamp_into, distribute_blocks
from headcount.distribution import counted_distribution
from headcount.engine.runtime import Runtime
from headcount.intervals import PROMISES
from headcount.metrics import EMPTY_BELOW, Reliability
from headcount.types import BlockGrid, Counted, Sample

Evaluator = Callable[[Sample, Counted], dict[str, float]]
"""(image with its annotations, counted image) -> named numbers of this image; empty where it does not apply."""

# GAME(3) divides an image into 2^3 regions per side; the regions of lower levels are unions of these.
_REGIONS = 8


class Game:
    """GAME(1) to GAME(3): the sum of the absolute errors over 4, 16 and 64 equal regions of the image.

    A block that lies in several regions is divided among them by area; a head outside the image belongs
    to the nearest region. With a mask, the heads of a block are those inside.

    Source: Guerrero-Gomez-Olmedo et al., "Extremely overlapping vehicle counting", 2015.
    """

    def __init__(self, grid: BlockGrid) -> None:
        self.grid = grid

    def __call__(self, sample: Sample, counted: Counted) -> dict[str, float]:
        """``game1``, ``game2`` and ``game3`` of an image, in heads."""
        if counted.blocks is None:
            return {}
        height, width = sample.image.shape[1:]
        errors = distribute_blocks(
            counted.blocks.double().numpy(),
            image=(height, width),
            panel=(_REGIONS, _REGIONS),
            block_size=self.grid.block_size,
        )
        x, y = (
            (points * _REGIONS / size).floor().long().clamp(0, _REGIONS - 1).numpy()
            for points, size in zip(sample.points.double().unbind(1), (width, height), strict=True)
        )
        np.subtract.at(errors, (y, x), 1)
        numbers = {}
        for level in (3, 2, 1):
            numbers[f"game{level}"] = float(np.abs(errors).sum())
            errors = errors.reshape(len(errors) // 2, 2, -1, 2).sum(axis=(1, 3))
        return numbers


def empty_blocks(sample: Sample, counted: Counted) -> dict[str, float]:
    """Number of blocks, and of those with fewer expected heads than ``EMPTY_BELOW``; not of those outside a mask."""
    if counted.blocks is None:
        return {}
    blocks = counted.blocks.flatten() if counted.shares is None else counted.blocks[counted.shares > 0]
    return {"blocks": float(blocks.numel()), "empty_blocks": float((blocks < EMPTY_BELOW).sum())}


class BinReliability:
    """Accumulates how often each bin is the true one, by the probability the counter gave it.

    Returns no numbers per image; the result is in :attr:`reliability`.
    """

    def __init__(self, bins: CountBins) -> None:
        self.bins = bins
        self.reliability = Reliability(bins.names())

    def __call__(self, sample: Sample, counted: Counted) -> dict[str, float]:
        """Add the blocks of one image; of an image with a mask, those entirely inside."""
        if counted.blocks is not None and counted.probabilities is not None:
            true = _true_blocks(sample, counted.blocks, self.bins.grid)
            probabilities, labels = counted.probabilities, self.bins.label(true)[0]
            if counted.shares is not None:
                known = counted.shares == 1
                probabilities, labels = probabilities[:, known][:, None], labels[known][None]
            self.reliability.add(probabilities, labels)
        return {}

    def gather(self, runtime: Runtime) -> Reliability:
        """The sums over all processes, on every process."""
        everyone = runtime.gather([self.reliability])
        self.reliability.merge(everyone[: runtime.rank] + everyone[runtime.rank + 1 :])
        return self.reliability


class OwnIntervals:
    """The counter's own distribution of each count: its variance, its intervals, and how good it was."""

    def __init__(self, bins: CountBins | None, *, zero_inflated: bool = False) -> None:
        self.bins = bins
        self.zero_inflated = zero_inflated

    def __call__(self, sample: Sample, counted: Counted) -> dict[str, float]:
        """``variance``, ``own_crps`` and the ends of the intervals (:func:`headcount.intervals.own_ends`)."""
        variance = counted.total_variance()
        own = counted_distribution(counted, self.bins, zero_inflated=self.zero_inflated)
        if own is None or variance is None:
            return {}
        numbers = {"variance": variance, "own_crps": own.crps(float(len(sample.points)))}
        for level in PROMISES:
            numbers |= dict(zip(own_ends(level), own.ends(level), strict=True))
        return numbers


def _true_blocks(sample: Sample, blocks: Float[Tensor, "rows cols"], grid: BlockGrid) -> Float[Tensor, "1 1 rows cols"]:
    """Annotated heads in each of ``blocks``; heads outside the image are moved to its border."""
    height, width = sample.image.shape[1:]
    rows, cols = (size * grid.block_size for size in blocks.shape)
    points = clamp_into(sample.points, width=width, height=height)
    return block_counts(points, height=rows, width=cols, block_size=grid.block_size)[None, None]
