"""Measures of intervals: by hand, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from headcount.coverage import (
    Coverage,
    JudgedImage,
    JudgedIntervals,
    binomial_bounds,
    interval_score,
    judge_calibrated,
    judge_own,
    measure_intervals,
    own_ends,
    plausible_coverage,
)
from headcount.intervals import PROMISES
from headcount.types import CountInterval, ImageCount
from test_intervals import calibration


def test_the_winkler_score_by_hand() -> None:
    assert interval_score(10, 30, 0.9, 20) == 20
    assert interval_score(10, 30, 0.9, 10) == interval_score(10, 30, 0.9, 30) == 20
    assert interval_score(10, 30, 0.9, 5) == pytest.approx(20 + 2 / 0.1 * 5)
    assert interval_score(10, 30, 0.5, 33) == pytest.approx(20 + 2 / 0.5 * 3)


@pytest.mark.slow
def test_the_true_quantiles_have_the_lowest_winkler_score() -> None:
    true = stats.norm(100, 10).rvs(20_000, random_state=0)
    ends = {width: stats.norm(100, 10 * width).interval(0.8) for width in (0.7, 1.0, 1.4)}
    scores = {width: np.mean([interval_score(*of, 0.8, y) for y in true]) for width, of in ends.items()}
    assert min(scores, key=lambda width: scores[width]) == 1.0


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (7, 10), (45, 60), (1, 1)])
def test_binomial_bounds_are_those_of_scipy(hits: int, trials: int) -> None:
    expected = stats.binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert binomial_bounds(hits, trials) == pytest.approx((expected.low, expected.high))


def test_plausible_coverage_without_calibration_is_binomial() -> None:
    low, high = plausible_coverage(200, 0.9)
    assert (low, high) == tuple(np.array(stats.binom(200, 0.9).interval(0.95)) / 200)


def test_plausible_coverage_includes_the_choice_of_the_calibration_images() -> None:
    """Simulated: the quantile of 30 uniform scores, then 50 new ones."""
    low, high = plausible_coverage(50, 0.8, calibration_images=30)
    wider = plausible_coverage(50, 0.8)
    assert low < wider[0]
    assert high >= wider[1]
    rng = np.random.default_rng(0)
    quantiles = np.sort(rng.random((20_000, 30)), axis=1)[:, 24]  # ceil(31 * 0.8) = 25
    shares = rng.binomial(50, quantiles) / 50
    assert 0.95 <= np.mean((shares >= low) & (shares <= high)) < 0.985
    assert np.mean(shares < low) < 0.03
    assert np.mean(shares > high) < 0.03


def judged(true: float, *ends: tuple[float, float], outside: str = "") -> JudgedImage:
    levels = PROMISES[: len(ends)]
    found = [
        CountInterval(*of, level, calibrated=True, outside_calibration=outside)
        for of, level in zip(ends, levels, strict=True)
    ]
    return JudgedImage("x", true, 10.0, tuple(found), crps=true)


def test_metrics_by_hand() -> None:
    images = [
        judged(0, (1, 3), (0, 5)),  # missed by 1, held
        judged(10, (8, 12), (4, 18)),
        judged(200, (100, 200), (100, 150), outside="dense"),  # held at its end, missed by 50
        judged(150, (149, 150), (140, 160)),
    ]
    metrics = measure_intervals(images)
    half, most = metrics.levels
    assert (half.level, half.coverage.covered, half.coverage.images) == (0.5, 3, 4)
    assert half.width == pytest.approx((2 + 4 + 100 + 1) / 4)
    assert half.relative_width == pytest.approx((4 / 10 + 100 / 200 + 1 / 150) / 3)  # not of an empty image
    assert half.score == pytest.approx((2 + 2 / 0.5 + 4 + 100 + 1) / 4)
    assert most.score == pytest.approx((5 + 14 + (50 + 2 / 0.2 * 50) + 20) / 4)
    by_crowd = {name: (of.covered, of.images) for name, of in half.by_crowd.items()}
    assert by_crowd == {"0": (0, 1), "1-100": (1, 1), "101-500": (2, 2)}
    assert (metrics.images, metrics.outside, metrics.crps) == (4, 1, 90)
    assert math.isnan(measure_intervals(images[:1]).levels[0].relative_width)
    with pytest.raises(ValueError, match="no image"):
        measure_intervals([])


def test_coverage_has_exact_bounds() -> None:
    found = Coverage.of([True] * 9 + [False])
    assert found.share == 0.9
    assert (found.low, found.high) == pytest.approx(binomial_bounds(9, 10))


def test_judged_images_take_their_numbers() -> None:
    numbers = {"variance": 8.0, "own_crps": 1.5}
    for level in PROMISES:
        numbers |= dict(zip(own_ends(level), (10 * level, 20 * level), strict=True))
    with_own = ImageCount(0, "a", 7.0, 6.0, None, numbers)
    without = ImageCount(1, "b", 7.0, 8.0, None)
    (own,) = judge_own([with_own, without])
    assert own.crps == 1.5
    assert own.intervals[1] == CountInterval(8.0, 16.0, 0.8, calibrated=False)
    made = calibration(*(0.1 * k for k in range(1, 11)))
    found = judge_calibrated([with_own, without], made, sizes=[(1000, 1000)] * 2, mode="whole image")
    assert [of.level for of in found[0].intervals] == [0.5, 0.8, 0.9]  # ten images do not support 95 %
    assert found[0].intervals[2].high == pytest.approx(6 + 1.0 * 3)
    assert found[1].intervals[2].high == pytest.approx(8 + 1.0 * 3)  # sqrt(count + 1)
    both = JudgedIntervals([own], found, made)
    assert both.best == found
    measured = both.measure_calibrated()
    assert measured is not None
    assert measured.levels[0].plausible == plausible_coverage(2, 0.5, calibration_images=10)
    alone = JudgedIntervals([own], [], None)
    assert alone.best == [own]
    assert alone.measure_calibrated() is None
    assert JudgedIntervals([], [], None).measure_own() is None
