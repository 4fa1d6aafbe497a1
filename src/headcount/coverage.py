"""How good the intervals of counts were on images whose true counts are known.

Coverage against promise, width, and two proper scores; independent of how the intervals were made.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headcount.intervals import PROMISES, Calibration, conformal_rank, supported_promises
from headcount.metrics import LEVELS as CROWD_LEVELS
from headcount.types import CountInterval, ImageCount

_CONFIDENCE = 0.95


def interval_score(low: float, high: float, level: float, true: float) -> float:
    """Width of an interval, plus 2 / (1 - level) times the distance by which it misses the true count; low is good.

    Source: Winkler, "A decision-theoretic approach to interval estimation", 1972.
    """
    miss = max(low - true, 0.0) + max(true - high, 0.0)
    return high - low + 2 / (1 - level) * miss


def binomial_bounds(hits: int, trials: int, *, confidence: float = _CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson bounds of a probability of which ``hits`` of ``trials`` were seen."""
    from scipy import stats  # slow to import

    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def plausible_coverage(images: int, level: float, *, calibration_images: int | None = None) -> tuple[float, float]:
    """Between which shares of covered images 95 of 100 evaluations lie, if the intervals keep their promise.

    Args:
        images: number of evaluated images.
        level: of the intervals.
        calibration_images: number of images that calibrated them: another choice of these would have given other
            intervals, whose coverage has a beta distribution. None is without calibration.

    Source: Angelopoulos and Bates, arXiv:2107.07511, section 3.2 and appendix C.
    """
    from scipy import stats  # slow to import

    covered = stats.binom(images, level)
    if calibration_images is not None:
        rank = conformal_rank(calibration_images, level)
        covered = stats.betabinom(images, rank, calibration_images + 1 - rank)
    tail = (1 - _CONFIDENCE) / 2
    return float(covered.ppf(tail)) / images, float(covered.ppf(1 - tail)) / images


@dataclass(frozen=True)
class JudgedImage:
    """The intervals of an image whose true count is known."""

    name: str
    true: float
    predicted: float
    intervals: tuple[CountInterval, ...]
    """In increasing order of their levels, which are the same for all images."""
    crps: float
    """Continuous ranked probability score, in heads."""

    def is_covered(self, k: int) -> bool:
        """Whether interval ``k`` holds the true count."""
        return self.intervals[k].low <= self.true <= self.intervals[k].high


def own_ends(level: float) -> tuple[str, str]:
    """The names of the ends of a counter's own interval among the numbers of an image."""
    return f"own_low_{level:g}", f"own_high_{level:g}"


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the true count."""

    images: int
    covered: int
    """Number of images whose interval held the true count."""
    share: float
    """Share of these images."""
    low: float
    """95 % binomial bounds (Clopper-Pearson) of the probability that an interval holds the true count."""
    high: float

    @classmethod
    def of(cls, covered: Sequence[bool]) -> "Coverage":
        """The coverage of these images; at least one."""
        images, hits = len(covered), sum(covered)
        return cls(images, hits, hits / images, *binomial_bounds(hits, images))


@dataclass(frozen=True)
class LevelMetrics:
    """How good the intervals of a level were."""

    level: float
    coverage: Coverage
    plausible: tuple[float, float]
    """Between which shares of covered images the promise is kept (:func:`plausible_coverage`)."""
    width: float
    """Mean width, in heads."""
    relative_width: float
    """Mean of width / true count over the images with at least one head; NaN if there are none."""
    score: float
    """Mean of :func:`interval_score`, in heads."""
    by_crowd: dict[str, Coverage]
    """Coverage by level of the true count (:data:`headcount.metrics.LEVELS`); without those that have no images."""


@dataclass(frozen=True)
class IntervalMetrics:
    """How good the intervals of a set of images were."""

    images: int
    outside: int
    """Images that are unlike the calibration images."""
    crps: float
    """Mean continuous ranked probability score, in heads; that of a counter that is certain is its MAE."""
    levels: list[LevelMetrics]

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)


def measure_intervals(images: Sequence[JudgedImage], *, calibration_images: int | None = None) -> IntervalMetrics:
    """Measure the intervals of images.

    Args:
        images: with intervals of the same levels.
        calibration_images: number of images that calibrated them; None if none did.

    Raises:
        ValueError: if there is no image.
    """
    if not images:
        raise ValueError("there is no image whose interval could be judged")
    levels = []
    for k, first in enumerate(images[0].intervals):
        intervals = [image.intervals[k] for image in images]
        widths = np.array([interval.high - interval.low for interval in intervals])
        true = np.array([image.true for image in images])
        scores = [
            interval_score(of.low, of.high, of.level, image.true) for of, image in zip(intervals, images, strict=True)
        ]
        covered = [image.is_covered(k) for image in images]
        by_crowd = {}
        for name, (low, high) in CROWD_LEVELS.items():
            if inside := [hit for hit, y in zip(covered, true, strict=True) if low <= y <= high]:
                by_crowd[name] = Coverage.of(inside)
        occupied = true > 0
        levels.append(
            LevelMetrics(
                level=first.level,
                coverage=Coverage.of(covered),
                plausible=plausible_coverage(len(images), first.level, calibration_images=calibration_images),
                width=float(widths.mean()),
                relative_width=float((widths[occupied] / true[occupied]).mean()) if occupied.any() else math.nan,
                score=float(np.mean(scores)),
                by_crowd=by_crowd,
            )
        )
    return IntervalMetrics(
        images=len(images),
        outside=sum(bool(image.intervals[0].outside_calibration) for image in images),
        crps=float(np.mean([image.crps for image in images])),
        levels=levels,
    )


def judge_own(images: Sequence[ImageCount]) -> list[JudgedImage]:
    """The intervals of the counter's own distribution; of the images that have one."""
    judged = []
    for image in images:
        if "own_crps" in image.numbers:
            intervals = []
            for level in PROMISES:
                low, high = (image.numbers[end] for end in own_ends(level))
                intervals.append(CountInterval(low, high, level, calibrated=False))
            crps = image.numbers["own_crps"]
            judged.append(JudgedImage(image.name, image.true, image.predicted, tuple(intervals), crps))
    return judged


def judge_calibrated(
    images: Sequence[ImageCount], calibration: Calibration, *, sizes: Sequence[tuple[int, int]], mode: str
) -> list[JudgedImage]:
    """The calibrated intervals of images, at the levels that the calibration supports.

    Args:
        images: none of those of the calibration.
        calibration: of the counter.
        sizes: (width, height) of each prepared image, in pixels.
        mode: how they were counted, in words.
    """
    judged = []
    for image, size in zip(images, sizes, strict=True):
        variance = image.numbers.get("variance")
        intervals = [
            calibration.interval(image.predicted, variance, level, size=size, mode=mode)
            for level in supported_promises(len(calibration))
        ]
        crps = calibration.crps(image.predicted, variance, image.true)
        judged.append(JudgedImage(image.name, image.true, image.predicted, tuple(intervals), crps))
    return judged


@dataclass(frozen=True)
class JudgedIntervals:
    """All intervals of an evaluation."""

    own: list[JudgedImage]
    """By the counter's own distribution; empty for a counter without one."""
    calibrated: list[JudgedImage]
    """By its calibration, without the images that it was calibrated on; empty for an uncalibrated counter."""
    calibration: Calibration | None
    overlapping: int = 0
    """Number of evaluated images that the counter was calibrated on."""

    @property
    def best(self) -> list[JudgedImage]:
        """The calibrated intervals, or else the counter's own ones."""
        return self.calibrated or self.own

    def measure_own(self) -> IntervalMetrics | None:
        """The metrics of the counter's own intervals; None without any."""
        return measure_intervals(self.own) if self.own else None

    def measure_calibrated(self) -> IntervalMetrics | None:
        """The metrics of the calibrated intervals; None without any."""
        if not self.calibrated or self.calibration is None:
            return None
        return measure_intervals(self.calibrated, calibration_images=len(self.calibration))
