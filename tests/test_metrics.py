"""Metrics against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from headcount.metrics import GAME, Interval, Reliability, bootstrap_interval, bootstrap_intervals, measure
from headcount.types import ImageCount


def counted(true: float, predicted: float, game: tuple[float, ...] = ()) -> ImageCount:
    numbers = dict(zip(GAME, game, strict=False))
    return ImageCount(0, "x", true, predicted, blocks=torch.zeros(1, 1), numbers=numbers)


def test_metrics_of_four_images() -> None:
    images = [
        counted(0, 3, (3, 3, 3)),
        counted(100, 90, (10, 20, 40)),
        counted(101, 111, (10, 12, 14)),
        counted(6000, 5000, (1000, 1000, 1003)),
    ]
    metrics = measure(images)
    assert metrics.errors.mae == pytest.approx((3 + 10 + 10 + 1000) / 4)
    assert metrics.errors.rmse == pytest.approx(math.sqrt((9 + 100 + 100 + 1e6) / 4))
    assert metrics.errors.nae == pytest.approx((0.1 + 10 / 101 + 1 / 6) / 3)  # the image without people has none
    assert metrics.bias == pytest.approx((3 - 10 + 10 - 1000) / 4)
    assert metrics.game == pytest.approx((1023 / 4, 1035 / 4, 1060 / 4))
    assert metrics.empty is not None
    assert (metrics.empty.mae, metrics.empty.images) == (3, 1)
    assert {k: v and v.mae for k, v in metrics.levels.items()} == {
        "0": 3,
        "1-100": 10,
        "101-500": 10,
        "501-5000": None,
        "above 5000": 1000,
    }
    true = np.array([0, 100, 101, 6000])
    left = (9 + 100 + 100 + 1e6) / np.square(true - true.mean()).sum()
    assert metrics.r2 == pytest.approx(1 - left)


def test_what_cannot_be_said_is_not_a_number() -> None:
    metrics = measure([counted(5, 7)])
    assert math.isnan(metrics.r2)
    assert math.isnan(metrics.mae_interval.low)
    assert metrics.empty is None
    with pytest.raises(ValueError, match="0 predicted"):
        measure([])


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean() -> None:
    errors = np.random.default_rng(1).exponential(10.0, 400)
    mae, rmse = bootstrap_intervals(errors)
    half = 1.96 * errors.std() / math.sqrt(len(errors))
    assert (mae.low, mae.high) == pytest.approx((errors.mean() - half, errors.mean() + half), rel=0.02)
    assert rmse.low < math.sqrt(np.square(errors).mean()) < rmse.high


def test_equal_errors_leave_nothing_to_resample() -> None:
    mae, rmse = bootstrap_intervals(np.array([-2.0, 2.0, 2.0]))
    assert mae == Interval(2.0, 2.0)
    assert rmse == Interval(2.0, 2.0)


def test_the_bootstrap_of_yes_and_no_is_a_binomial_distribution() -> None:
    values = np.array([0.0, 1.0] * 100)
    interval = bootstrap_interval(values)
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.5) / 200
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.005)
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(np.arange(50.0)) != bootstrap_interval(np.arange(50.0), seed=1)


def test_a_paired_bootstrap_sees_the_differences_only() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.exponential(1000.0, 200)
    constant = bootstrap_interval(baseline - 2, baseline)
    assert (constant.low, constant.high) == pytest.approx((-2, -2))
    interval = bootstrap_interval(baseline + np.array([0.0, 1.0] * 100), baseline)
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.5) / 200
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.005)


def test_a_paired_bootstrap_agrees_with_one_written_out() -> None:
    """As EXPERIMENTS.md reports: the difference of MAE of two runs over the 182 test images of SHA."""
    rng = np.random.default_rng(3)
    one = rng.exponential(90.0, 182)
    other = one + rng.normal(3.0, 30.0, 182)
    difference = one - other
    means = difference[np.random.default_rng(0).integers(0, 182, (5000, 182))].mean(1)
    interval = bootstrap_interval(one, other)
    noise = 0.05 * means.std()  # standard deviation of a 2.5 % quantile of 5000 samples: 0.038 of that of the samples
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=3 * noise)


@pytest.mark.parametrize("baseline", [None, np.array([1.0])])
def test_one_image_says_nothing_about_others(baseline: np.ndarray | None) -> None:
    interval = bootstrap_interval(np.array([2.0]), baseline)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_reliability_of_a_counter_that_is_right_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 200, 200, generator=generator)
    probabilities /= probabilities.sum(0)
    flat = probabilities.flatten(1).T
    labels = torch.multinomial(flat, 1, generator=generator).view(200, 200)
    honest, boastful = Reliability(["0", "1", "2"]), Reliability(["0", "1", "2"])
    honest.add(probabilities, labels)
    sharpened = probabilities**4 / (probabilities**4).sum(0)
    boastful.add(sharpened, labels)
    assert honest.calibration_error() < 0.01
    assert boastful.calibration_error() > 0.1
    assert honest.occupied is not None
    assert boastful.occupied is not None
    assert honest.occupied.calibration_error() < 0.015
    assert boastful.occupied.calibration_error() > 0.1


def test_empty_blocks_do_not_flatter_the_calibration_error() -> None:
    """970 of 1000 blocks are empty and said to be; of the others, every second one is given the wrong bin."""
    probabilities = torch.tensor([[0.97, 0.01, 0.02]]).T.expand(3, 1000)[:, None]
    labels = torch.zeros(1, 1000, dtype=torch.int64)
    labels[0, :15], labels[0, 15:30] = 1, 2
    reliability = Reliability(["{0}", "{1}", "[2, inf)"])
    for half in (slice(0, 20), slice(20, 1000)):
        reliability.add(probabilities[:, :, half], labels[:, half])
    assert reliability.calibration_error() == pytest.approx((0 + 0.005 + 0.005) / 3, abs=1e-6)
    assert reliability.occupied is not None
    assert reliability.occupied.names == ["{1}", "[2, inf)"]
    assert reliability.occupied.blocks.sum() == 2 * 30
    assert reliability.occupied.calibration_error() == pytest.approx(0.5 - 1 / 3, abs=1e-6)
    twice = Reliability(["{0}", "{1}", "[2, inf)"])
    twice.merge([reliability, reliability])
    assert twice.occupied is not None
    assert twice.occupied.blocks.sum() == 4 * 30
    assert twice.occupied.calibration_error() == pytest.approx(0.5 - 1 / 3, abs=1e-6)
    assert Reliability(["{0}", "[1, inf)"]).occupied is None  # nothing is left to tell apart


def test_reliability_by_hand() -> None:
    reliability = Reliability(["0", "1"], buckets=2)
    # Three blocks: bin 0 is given 0.9, 0.6 and 0.2; it is the right one in the first and the last.
    first = torch.tensor([[[0.9, 0.6, 0.2]], [[0.1, 0.4, 0.8]]])
    reliability.add(first, torch.tensor([[0, 1, 0]]))
    assert reliability.blocks.tolist() == [[1, 2], [2, 1]]
    assert reliability.observed.tolist() == [[1, 1], [1, 0]]
    assert reliability.probability[0].tolist() == pytest.approx([0.2, 1.5])
    assert reliability.calibration_error() == pytest.approx((0.8 + 0.5 + 0.5 + 0.8) / 6)
    twice = Reliability(["0", "1"], buckets=2)
    twice.merge([reliability, reliability])
    assert twice.calibration_error() == pytest.approx(reliability.calibration_error())
    assert twice.blocks.sum() == 12
    assert math.isnan(Reliability(["0"]).calibration_error())
