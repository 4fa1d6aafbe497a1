"""Evaluation metrics beyond MAE and RMSE: errors by count level, bias, bootstrap intervals, calibration.

Computed from counts and probabilities alone, independent of images, models and datasets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from tabulate import tabulate
from torch import Tensor

from headcount.types import CountErrors, ImageCount

GAME = ("game1", "game2", "game3")
"""Names of GAME(1) to GAME(3) among the numbers of an image; a counter without blocks has none."""

DROPPED = ("dropped_by_scene", "dropped_by_parts")
"""Names of the numbers of patches that each filter drops, of the ``patches`` of an image; only where there are any."""

EMPTY_BELOW = 0.5
"""A block with fewer expected heads is counted as predicted empty."""

LEVELS: dict[str, tuple[float, float]] = {
    "0": (0, 0),
    "1-100": (1, 100),
    "101-500": (101, 500),
    "501-5000": (501, 5000),
    "above 5000": (5001, math.inf),
}
"""Levels of the true count: lowest and highest count of each (Wang et al., NWPU-Crowd, arXiv:2001.03360)."""

_RESAMPLES = 5000
_BATCH_VALUES = 2_000_000
"""Values resampled at a time; limits the memory of a bootstrap over many images."""


def parts_table(parts: Mapping[str, CountErrors], together: CountErrors) -> str:
    """A text table of the errors over each part of a mixed dataset, and over all images together.

    Args:
        parts: errors by the name of the part.
        together: errors over the images of all parts.
    """
    rows = [
        [name, str(errors.images), f"{errors.mae:.2f}", f"{errors.rmse:.2f}", f"{errors.nae:.4f}"]
        for name, errors in [*parts.items(), ("all together", together)]
    ]
    headers = ["part", "images", "MAE", "RMSE", "NAE"]
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=("left", *["right"] * 4))


@dataclass
class Interval:
    """A 95 % interval; NaN at both ends if it was computed from a single image."""

    low: float
    high: float


@dataclass
class Metrics:
    """All metrics of a set of images; NaN where no image defines a metric."""

    errors: CountErrors
    mae_interval: Interval
    """Bootstrap over images, as for RMSE below."""
    rmse_interval: Interval
    game: tuple[float, ...]
    """GAME(1), GAME(2), GAME(3), in heads per image; GAME(0) is the MAE. Empty if an image has none."""
    bias: float
    """Mean of predicted minus true count, in heads per image."""
    r2: float
    """Coefficient of determination of the counts."""
    rank_correlation: float
    """Spearman's rank correlation of predicted and true counts; NaN if all of either are equal."""
    dropped: dict[str, float]
    """Share of the patches of all images that each filter drops; empty for a counter without patches."""
    empty: CountErrors | None
    """Errors on the images without people; None if there are no such images."""
    levels: dict[str, CountErrors | None]
    """Errors by level of the true count; None for levels without images."""


def measure(images: Sequence[ImageCount]) -> Metrics:
    """Compute all metrics of counted images.

    Raises:
        ValueError: if there is no image.
    """
    predicted = np.array([image.predicted for image in images], dtype=np.float64)
    true = np.array([image.true for image in images], dtype=np.float64)
    errors = CountErrors.from_counts(predicted.tolist(), true.tolist())
    levels: dict[str, CountErrors | None] = {}
    for name, (low, high) in LEVELS.items():
        within = (true >= low) & (true <= high)
        levels[name] = None
        if within.any():
            levels[name] = CountErrors.from_counts(predicted[within].tolist(), true[within].tolist())
    mae_interval, rmse_interval = bootstrap_intervals(predicted - true)
    variation = float(np.square(true - true.mean()).sum())
    games = [[image.numbers[name] for name in GAME if name in image.numbers] for image in images]
    return Metrics(
        errors=errors,
        mae_interval=mae_interval,
        rmse_interval=rmse_interval,
        game=tuple(np.mean(games, axis=0).tolist()) if all(games) else (),
        bias=float((predicted - true).mean()),
        r2=1 - float(np.square(predicted - true).sum()) / variation if variation else math.nan,
        rank_correlation=rank_correlation(predicted, true),
        dropped=dropped_shares(images),
        empty=levels["0"],
        levels=levels,
    )


def rank_correlation(predicted: Float[np.ndarray, " images"], true: Float[np.ndarray, " images"]) -> float:
    """Spearman's rank correlation of counts, with equal ranks for equal counts; NaN if all of either are equal."""
    from scipy.stats import rankdata  # slow to import

    ranks = [rankdata(counts) for counts in (predicted, true)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def dropped_shares(images: Sequence[ImageCount]) -> dict[str, float]:
    """The share of the patches of all images that each filter drops, by its name in :data:`DROPPED`."""
    patches = sum(image.numbers.get("patches", 0) for image in images)
    if not patches:
        return {}
    return {name: sum(image.numbers.get(name, 0) for image in images) / patches for name in DROPPED}


def bootstrap_intervals(errors: Float[np.ndarray, " images"], *, seed: int = 0) -> tuple[Interval, Interval]:
    """Bootstrap intervals of MAE and RMSE over images.

    Args:
        errors: predicted minus true count of each image, in heads.
        seed: of the resampling.

    Returns:
        Intervals of MAE and of RMSE, in heads per image; NaN for a single image.
    """
    mae = bootstrap_interval(np.abs(errors), seed=seed)
    mse = bootstrap_interval(np.square(errors), seed=seed)
    return mae, Interval(math.sqrt(mse.low), math.sqrt(mse.high))


def bootstrap_interval(
    values: Float[np.ndarray, " images"], baseline: Float[np.ndarray, " images"] | None = None, *, seed: int = 0
) -> Interval:
    """95 % percentile bootstrap interval of a mean over images, or of the difference of two means.

    Args:
        values: a value for each image.
        baseline: if given, the interval is that of the mean of ``values`` minus the mean of ``baseline``, which belong
            to the same images in the same order: both are resampled together.
        seed: of the resampling; equal seeds give equal intervals.

    Returns:
        The interval; NaN at both ends for a single image, which says nothing about others.
    """
    if len(values) < 2:
        return Interval(math.nan, math.nan)
    samples, statistic = ((values,), np.mean) if baseline is None else ((values, baseline), _difference_of_means)
    from scipy import stats  # slow to import, and not needed to train

    result = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(values)),
        vectorized=True,
        paired=baseline is not None,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(result.low), float(result.high))


def _difference_of_means(values: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(values - baseline, axis=axis)


class Reliability:
    """Reliability of the bins' probabilities: sums over blocks, by bin and by interval of the probability.

    Of the blocks to which a calibrated counter gives a bin the probability ``p``, the fraction ``p`` is in that bin.

    Most blocks of a crowd are empty and easy, which keeps errors over all blocks low: ``occupied`` leaves out those in
    the first bin. Its probabilities are those of the other bins given that a block is not in the first one, so that a
    calibrated counter has no error there either.

    Args:
        names: name of each bin.
        buckets: number of equal intervals into which the probabilities are divided.
        occupied: also add the blocks outside the first bin to a second reliability, :attr:`occupied`.
    """

    def __init__(self, names: Sequence[str], *, buckets: int = 10, occupied: bool = True) -> None:
        self.names = list(names)
        shape = (len(self.names), buckets)
        self.blocks = np.zeros(shape)
        """Blocks for which a bin's probability was in a bucket, (bins, buckets)."""
        self.probability = np.zeros(shape)
        """Sum of the probabilities of these blocks."""
        self.observed = np.zeros(shape)
        """How many of these blocks are in the bin."""
        self.occupied = None
        """The same of the blocks outside the first bin, for the other bins; None for fewer than two others."""
        if occupied and len(self.names) > 2:
            self.occupied = Reliability(self.names[1:], buckets=buckets, occupied=False)

    def add(self, probabilities: Float[Tensor, "bins rows cols"], labels: Int64[Tensor, "rows cols"]) -> None:
        """Add the blocks of one image.

        Args:
            probabilities: of each bin for each block; sum to 1 over the bins.
            labels: index of the bin that each block is in.
        """
        bins, buckets = self.blocks.shape
        p = probabilities.flatten(1).double()
        bucket = (p * buckets).long().clamp(max=buckets - 1)
        index = (bucket + buckets * torch.arange(bins)[:, None]).flatten()
        hit = (labels.flatten()[None] == torch.arange(bins)[:, None]).double()
        for total, weight in ((self.blocks, torch.ones_like(p)), (self.probability, p), (self.observed, hit)):
            summed = torch.bincount(index, weights=weight.flatten(), minlength=bins * buckets)
            total += summed.view(bins, buckets).numpy()
        if self.occupied is not None:
            others = p[1:, labels.flatten() > 0]
            given = others / others.sum(0).clamp(min=torch.finfo(others.dtype).tiny)
            self.occupied.add(given[:, None], labels[labels > 0][None] - 1)

    def merge(self, others: Sequence["Reliability"]) -> None:
        """Add the sums of other processes."""
        for other in others:
            self.blocks += other.blocks
            self.probability += other.probability
            self.observed += other.observed
        if self.occupied is not None:
            self.occupied.merge([other.occupied for other in others if other.occupied is not None])

    def calibration_error(self) -> float:
        """Mean over bins and blocks of |observed fraction - predicted probability| in each bucket; NaN without blocks.

        Source: the classwise expected calibration error of Kull et al., arXiv:1910.12656.
        """
        blocks = self.blocks.sum()
        return float(np.abs(self.observed - self.probability).sum() / blocks) if blocks else math.nan
