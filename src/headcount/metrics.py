"""What is said of counted images beyond MAE and RMSE: levels, bias, intervals, calibration.

Plain numbers of plain counts; nothing here knows an image, a model or a dataset.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy import stats
from torch import Tensor

from headcount.types import CountErrors, ImageCount

LEVELS: dict[str, tuple[float, float]] = {
    "0": (0, 0),
    "1-100": (1, 100),
    "101-500": (101, 500),
    "501-5000": (501, 5000),
    "above 5000": (5001, math.inf),
}
"""Levels of the true count, first and last head of each (Wang et al., NWPU-Crowd, arXiv:2001.03360)."""

_RESAMPLES = 5000


@dataclass
class Interval:
    """A 95 % interval; NaN at both ends where one image alone says nothing about others."""

    low: float
    high: float


@dataclass
class Metrics:
    """Everything an evaluation says of a set of images; NaN where a figure has no images to stand on."""

    errors: CountErrors
    mae_interval: Interval
    """Bootstrap over images."""
    rmse_interval: Interval
    game: tuple[float, ...]
    """GAME(1), GAME(2), GAME(3), heads an image; GAME(0) is the MAE."""
    bias: float
    """Mean of predicted minus true count, heads an image."""
    r2: float
    """Coefficient of determination of the counts."""
    empty: CountErrors | None
    """Errors on the images that show nobody; None where there are none."""
    levels: dict[str, CountErrors | None]
    """Errors by level of the true count."""


def measure(images: Sequence[ImageCount]) -> Metrics:
    """All metrics of counted images.

    Raises:
        ValueError: if there is no image.
    """
    predicted, true = (
        np.array(values, dtype=np.float64) for values in ([i.predicted for i in images], [i.true for i in images])
    )
    errors = CountErrors.from_counts(predicted.tolist(), true.tolist())
    levels = {}
    for name, (low, high) in LEVELS.items():
        within = (true >= low) & (true <= high)
        some = bool(within.any())
        levels[name] = CountErrors.from_counts(predicted[within].tolist(), true[within].tolist()) if some else None
    mae_interval, rmse_interval = bootstrap_intervals(predicted - true)
    variation = float(np.square(true - true.mean()).sum())
    games = [image.game for image in images]
    return Metrics(
        errors=errors,
        mae_interval=mae_interval,
        rmse_interval=rmse_interval,
        game=tuple(np.mean(games, axis=0).tolist()) if all(games) else (),
        bias=float((predicted - true).mean()),
        r2=1 - float(np.square(predicted - true).sum()) / variation if variation else math.nan,
        empty=levels["0"],
        levels=levels,
    )


def bootstrap_intervals(errors: Float[np.ndarray, " images"], *, seed: int = 0) -> tuple[Interval, Interval]:
    """95 % percentile intervals of MAE and RMSE: what other images of the same kind would have given.

    Args:
        errors: predicted minus true count of each image.
    """
    if len(errors) < 2:
        nothing = Interval(math.nan, math.nan)
        return nothing, nothing
    intervals = []
    for values in (np.abs(errors), np.square(errors)):
        result = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=_RESAMPLES,
            batch=max(1, 2_000_000 // len(values)),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        intervals.append((float(result.low), float(result.high)))
    mae, mse = intervals
    return Interval(*mae), Interval(math.sqrt(mse[0]), math.sqrt(mse[1]))


class Reliability:
    """Are bins as frequent as their probabilities say? Sums over blocks, kept by bin and by probability.

    The probability is cut into ``buckets`` equal parts. A calibrated counter is right in a share of
    ``p`` of the blocks to which it gives a bin the probability ``p``.
    """

    def __init__(self, names: Sequence[str], *, buckets: int = 10) -> None:
        self.names = list(names)
        """What each bin is called."""
        self.blocks, self.probability, self.observed = (np.zeros((len(self.names), buckets)) for _ in range(3))

    def add(self, probabilities: Float[Tensor, "bins rows cols"], labels: Int64[Tensor, "rows cols"]) -> None:
        """Take in the blocks of one image: each bin's probability, and the bin each block is in."""
        bins, buckets = self.blocks.shape
        p = probabilities.flatten(1).double()
        bucket = (p * buckets).long().clamp(max=buckets - 1)
        index = (bucket + buckets * torch.arange(bins)[:, None]).flatten()
        hit = (labels.flatten()[None] == torch.arange(bins)[:, None]).double()
        for total, weight in ((self.blocks, torch.ones_like(p)), (self.probability, p), (self.observed, hit)):
            summed = torch.bincount(index, weights=weight.flatten(), minlength=bins * buckets)
            total += summed.view(bins, buckets).numpy()

    def merge(self, others: Sequence["Reliability"]) -> None:
        """Take in the blocks that other processes have seen."""
        for other in others:
            self.blocks += other.blocks
            self.probability += other.probability
            self.observed += other.observed

    def calibration_error(self) -> float:
        """Mean over bins and blocks of |share observed - probability given| in each bucket; NaN without blocks.

        Source: the classwise expected calibration error of Kull et al., arXiv:1910.12656.
        """
        blocks = self.blocks.sum()
        return float(np.abs(self.observed - self.probability).sum() / blocks) if blocks else math.nan
