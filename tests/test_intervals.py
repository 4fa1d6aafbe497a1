"""Conformal intervals: exact ranks, the promised coverage on exchangeable scores, and refusals."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from headcount.config import ConfigError, check_level
from headcount.intervals import (
    PROMISES,
    Calibration,
    Features,
    conformal_rank,
    crps_of_points,
    images_needed,
    scale,
    supported_promises,
)
from headcount.types import CountInterval

SIZE = (1000, 1000)


def calibration(*scores: float, **changes: object) -> Calibration:
    """Of one-megapixel images with 0 to 500 counted heads."""
    names = tuple(f"image_{k}" for k in range(len(scores)))
    made = Calibration(
        scores=tuple(sorted(scores)),
        dataset="sha",
        split="holdout",
        names=names,
        digests=names,
        least=Features(0.0, 1.0),
        most=Features(500.0, 1.0),
        mode="whole image",
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("images", "level", "rank"),
    # ceil((n + 1) * level), by hand; the products are exact integers in the first, third and fourth.
    [(9, 0.9, 9), (10, 0.9, 10), (19, 0.95, 19), (99, 0.8, 80), (60, 0.9, 55), (60, 0.5, 31), (1, 0.5, 1), (8, 0.9, 9)],
)
def test_the_rank_of_the_quantile(images: int, level: float, rank: int) -> None:
    assert conformal_rank(images, level) == rank


@given(st.integers(1, 2000), st.integers(1, 999))
def test_the_rank_is_the_first_that_suffices(images: int, thousandths: int) -> None:
    """In integers: rank / (images + 1) >= level > (rank - 1) / (images + 1)."""
    rank = conformal_rank(images, thousandths / 1000)
    assert 1000 * rank >= thousandths * (images + 1) > 1000 * (rank - 1)


@pytest.mark.parametrize(("level", "images"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_the_fewest_images_for_a_level(level: float, images: int) -> None:
    assert images_needed(level) == images
    assert conformal_rank(images, level) == images
    assert conformal_rank(images - 1, level) > images - 1


def test_an_interval_by_hand() -> None:
    """Nine scores; 80 % takes the 8th, 0.8: 100 +- 0.8 * sqrt(99 + 1)."""
    nine = calibration(*(0.1 * k for k in range(1, 10)))
    found = nine.interval(100, 99, 0.8, size=SIZE)
    assert (found.low, found.high) == pytest.approx((92, 108))
    assert dataclasses.replace(found, low=92, high=108) == CountInterval(92, 108, 0.8, calibrated=True)
    assert nine.interval(3, 99, 0.9, size=SIZE).low == 0
    assert nine.interval(99, None, 0.9, size=SIZE).high == pytest.approx(99 + 0.9 * 10)  # sqrt(count + 1)
    assert str(nine.interval(811.6, 9999.0, 0.9, size=SIZE)) == "[721, 902] 90 %"


def test_the_scale_is_never_zero() -> None:
    assert scale(0, 0.0) == scale(0, None) == scale(-1, None) == 1
    assert scale(7, 3.0) == 2
    assert scale(8, None) == 3


@pytest.mark.parametrize("level", PROMISES)
def test_exchangeable_scores_are_covered_as_promised(level: float) -> None:
    """Exactly rank / (n + 1): the mean over 40,000 calibrations of 30 images."""
    rng, n, repetitions = np.random.default_rng(0), 30, 40_000
    scores = np.sort(rng.exponential(size=(repetitions, n)), axis=1)
    covered = rng.exponential(size=repetitions) <= scores[:, conformal_rank(n, level) - 1]
    exact = conformal_rank(n, level) / (n + 1)
    assert exact >= level
    low, high = stats.binom(repetitions, exact).interval(0.9999)
    assert low <= covered.sum() <= high


def test_the_promise_holds_whatever_the_counter() -> None:
    """Errors of a counter that is biased, and far too certain."""
    rng = np.random.default_rng(1)
    true = rng.poisson(rng.gamma(2, 60, size=1000)).astype(float)
    counted = 1.3 * true + rng.normal(0, 5 + 0.2 * true)
    variance = np.full(1000, 2.0)
    scores = np.abs(true - counted) / [scale(c, v) for c, v in zip(counted, variance, strict=True)]
    made = calibration(*scores[:500], most=Features(1e9, 1.0))
    for level in PROMISES:
        found = [made.interval(c, v, level, size=SIZE) for c, v in zip(counted[500:], variance[500:], strict=True)]
        covered = sum(f.low <= y <= f.high for f, y in zip(found, true[500:], strict=True))
        rank = conformal_rank(500, level)
        low, high = stats.betabinom(500, rank, 501 - rank).interval(0.9999)
        assert low <= covered <= high


@given(st.lists(st.floats(0, 50), min_size=2, max_size=30), st.floats(0, 400))
def test_a_higher_level_gives_an_interval_around_the_lower_one(scores: list[float], count: float) -> None:
    made = calibration(*scores)
    found = [made.interval(count, 4.0, level, size=SIZE) for level in supported_promises(len(scores))]
    for inner, outer in itertools.pairwise(found):
        assert outer.low <= inner.low <= inner.high <= outer.high
    assert all(0 <= f.low <= f.high < math.inf for f in found)


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, math.nan, math.inf])
def test_a_level_outside_is_refused(level: float) -> None:
    with pytest.raises(ConfigError, match=f"level={level:g}: must be above 0 and below 1, such as"):
        check_level(level)


def test_percent_is_recognized() -> None:
    with pytest.raises(ConfigError, match=r"--level=90: .*; for 90 %, type 0\.9$"):
        check_level(90, setting="--level")


def test_too_few_images_are_refused_with_what_is_needed() -> None:
    ten = calibration(*map(float, range(10)))
    assert ten.check_level(0.9) == 0.9
    with pytest.raises(ConfigError, match=r"level=0\.95: needs .* at least 19 images, and this one has 10; .* 0\.909"):
        ten.interval(5, 1.0, 0.95, size=SIZE)
    assert ten.check_level(0.909) == 0.909
    assert supported_promises(10) == [0.5, 0.8, 0.9]
    assert supported_promises(1) == [0.5]


# ------------------------------------------------------------------------------------------ shift


@pytest.mark.parametrize(
    ("count", "size", "words"),
    [
        (500, SIZE, ""),
        (0, SIZE, ""),
        (501, SIZE, "501 people per megapixel, in calibration 0 to 500"),
        (10, (2000, 1000), "2 megapixels, in calibration 1 to 1"),
        (
            600,
            (500, 1000),
            "1.2e+03 people per megapixel, in calibration 0 to 500; 0.5 megapixels, in calibration 1 to 1",
        ),
    ],
)
def test_an_image_unlike_the_calibration_is_marked(count: float, size: tuple[int, int], words: str) -> None:
    found = calibration(*map(float, range(10))).interval(count, None, 0.9, size=size)
    assert found.outside_calibration == words
    assert found.note == (f"unlike the calibration images: {words}" if words else "")


def test_another_way_of_counting_is_marked() -> None:
    made = calibration(*map(float, range(10)))
    assert not made.interval(1, None, 0.9, size=SIZE, mode="whole image").outside_calibration
    found = made.interval(1, None, 0.9, size=SIZE, mode="windows of 64 px").outside_calibration
    assert found == "counted in another way (windows of 64 px, calibration whole image)"


# ------------------------------------------------------------------------------------------ in a checkpoint


def test_a_calibration_survives_a_checkpoint() -> None:
    made = calibration(0.25, 1.5, 3.0)
    assert Calibration.from_plain(made.to_plain()) == made
    assert Calibration.from_plain(None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"scores": [2.0, 1.0, 3.0]},
        {"scores": [1.0, 2.0]},
        {"scores": [1.0, 2.0, math.nan]},
        {"scores": [-1.0, 2.0, 3.0]},
        {"scores": [1.0, 2.0, math.inf]},
        {"scores": [], "names": [], "digests": []},
        {"scores": "abc"},
        {"scores": None},
        {"least": {"density": 1.0}},
        {"most": {"density": "many", "megapixels": 1.0}},
        {"most": 3},
    ],
)
def test_a_damaged_calibration_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="its calibration is unreadable"):
        Calibration.from_plain(calibration(0.25, 1.5, 3.0).to_plain() | change)


def test_a_calibration_without_a_key_is_refused() -> None:
    for key in calibration(1.0).to_plain():
        plain = calibration(1.0).to_plain()
        del plain[key]
        with pytest.raises(ValueError, match="its calibration is unreadable"):
            Calibration.from_plain(plain)
    with pytest.raises(ValueError, match="unreadable"):
        Calibration.from_plain([1, 2])


# ------------------------------------------------------------------------------------------ CRPS


def test_the_crps_of_points_by_hand() -> None:
    """1 and 3: as the distribution of half on each."""
    points = np.array([3.0, 1.0])
    assert [crps_of_points(points, true) for true in (1, 2, 5, 0)] == pytest.approx([0.5, 0.5, 2.5, 1.5])
    assert crps_of_points(np.array([7.0]), 4.0) == 3


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0, 100))
def test_the_crps_of_points_is_the_area_between_the_steps(points: list[float], true: float) -> None:
    """The integral of (F - step)^2, piece by piece."""
    ends = sorted({*points, true})
    area = 0.0
    for left, right in itertools.pairwise(ends):
        below = sum(point <= left for point in points) / len(points)
        area += (right - left) * (below - (true <= left)) ** 2
    assert crps_of_points(np.array(points), true) == pytest.approx(area, abs=1e-9)


def test_the_crps_of_a_calibration_is_that_of_its_ends() -> None:
    made = calibration(0.5, 2.0)
    points = np.array([10 - 1.0, 10 - 4.0, 10 + 1.0, 10 + 4.0])  # scale 2
    assert made.crps(10, 3.0, 12.0) == pytest.approx(crps_of_points(points, 12.0))
    clipped = made.crps(1, 3.0, 0.0)
    assert clipped == pytest.approx(crps_of_points(np.array([0.0, 0.0, 2.0, 5.0]), 0.0))
    grid = np.linspace(0, 6, 600_001)
    steps = np.mean([grid >= point for point in (0, 0, 2, 5)], axis=0)
    assert clipped == pytest.approx(integrate.trapezoid((steps - 1) ** 2, grid), abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": (0.0, 1e308)}, "scores"),
        ({"scores": (0.0, math.nan)}, "scores"),
        ({"scores": (0, 10**400)}, "too large"),
        ({"least": {"density": math.nan, "megapixels": 1.0}}, "density"),
        ({"most": {"density": math.inf, "megapixels": 1.0}}, "density"),
        ({"most": {"density": 500.0, "megapixels": 0.5}}, "megapixels"),
        ({"least": {"density": -1.0, "megapixels": 1.0}}, "density"),
        ({"least": {"density": 0.0}}, "megapixels"),
    ],
)
def test_impossible_values_are_those_of_a_damaged_calibration(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"its calibration is unreadable: .*{words}"):
        Calibration.from_plain(calibration(0.0, 1.0).to_plain() | changes)


@pytest.mark.parametrize(("level", "hint"), [(1.5, False), (1.0, False), (2.0, True), (90.0, True), (100.0, False)])
def test_a_percentage_is_suggested_only_where_one_is_meant(level: float, hint: bool) -> None:
    with pytest.raises(ConfigError) as refused:
        check_level(level)
    assert ("%, type" in str(refused.value)) == hint
