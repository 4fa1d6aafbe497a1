"""Distributions of counts: against entropy, brute force, sampling and numerical integration."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from headcount.bins import CountBins
from headcount.config import Last, Representatives, Strategy
from headcount.distribution import (
    ExactDistribution,
    NormalDistribution,
    bin_moments,
    bin_pmfs,
    convolve,
    own_distribution,
    own_interval,
)
from headcount.types import BinPrediction, BlockGrid, CountInterval

GRID = BlockGrid(8)
HISTOGRAM = {0: 90, 1: 20, 2: 9, 3: 5, 4: 3, 5: 2, 6: 2, 9: 1}


def bins_of(strategy: Strategy, m: int = 4, **settings: object) -> CountBins:
    return CountBins.from_histogram(HISTOGRAM, grid=GRID, strategy=strategy, m=m, **settings)


# ------------------------------------------------------------------------------------------ within a bin


@pytest.mark.parametrize("strategy", Strategy)
def test_each_bin_has_its_mean_and_only_its_counts(strategy: Strategy) -> None:
    bins = bins_of(strategy, m=7)
    pmfs = bin_pmfs(bins)
    counts = np.arange(pmfs.shape[1])
    np.testing.assert_allclose(pmfs.sum(1), 1)
    np.testing.assert_allclose(pmfs @ counts, bins.representatives, atol=1e-8)
    np.testing.assert_allclose(pmfs @ counts**2, bin_moments(bins))
    for pmf, (low, high) in zip(pmfs, bins.edges, strict=True):
        assert not pmf[(counts < low) | (counts > high)].any()


@pytest.mark.parametrize("mean", [4.0, 4.3, 40.0])
def test_the_mean_square_of_the_open_bin_is_that_of_its_counts(mean: float) -> None:
    bins = CountBins(BlockGrid(8), ((0, 0), (1, 3), (4, math.inf)), (0.0, 1.5, mean))
    pmfs = bin_pmfs(bins)
    squares = pmfs @ np.arange(pmfs.shape[1]) ** 2.0
    assert bin_moments(bins) == pytest.approx(squares.tolist(), rel=1e-6)


def test_a_far_representative_needs_little_memory() -> None:
    """A file from elsewhere may hold any number."""
    bins = CountBins(BlockGrid(8), ((0, 0), (1, math.inf)), (0.0, 1e6))
    tracemalloc.start()
    moments = bin_moments(bins)
    distribution = own_distribution(3.0, 2.0, probabilities=torch.full((2, 4, 4), 0.5), bins=bins)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(distribution, NormalDistribution)
    assert moments[1] == pytest.approx(2e12, rel=1e-5)
    assert peak < 1e6
    with pytest.raises(ValueError, match=r"representative count 1e\+09: at most 1e\+06 is allowed"):
        CountBins(BlockGrid(8), ((0, 0), (1, math.inf)), (0.0, 1e9))


def test_a_representative_in_the_middle_makes_a_bin_uniform() -> None:
    bins = bins_of(Strategy.coarse, m=7, representatives=Representatives.middle)
    for pmf, (low, high) in zip(bin_pmfs(bins)[:-1], bins.edges[:-1], strict=True):
        np.testing.assert_allclose(pmf[int(low) : int(high) + 1], 1 / (high - low + 1), atol=1e-12)


def test_the_open_bin_is_geometric() -> None:
    """Its mean excess of 2 gives a variance of 2 * 3 (scipy's counts begin at 1)."""
    bins = CountBins(GRID, ((0, 0), (1, math.inf)), (0.0, 3.0))
    expected = stats.geom(1 / 3)
    counts = np.arange(1, 20)
    np.testing.assert_allclose(bin_pmfs(bins)[1, 1:20], expected.pmf(counts), rtol=1e-9)
    assert bin_moments(bins)[1] - 9 == pytest.approx(6) == expected.var()


@pytest.mark.parametrize("last", Last)
def test_a_bin_that_only_its_first_count_stands_for_is_certain(last: Last) -> None:
    bins = CountBins.from_histogram({0: 3, 4: 1}, grid=GRID, strategy=Strategy.fine, m=4, last=last)
    assert bin_moments(bins) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("mean", [2.0, 2.3, 3.5, 4.9, 5.0])
def test_no_distribution_with_the_mean_has_more_entropy(mean: float) -> None:
    bins = CountBins(GRID, ((0, 1), (2, 5), (6, math.inf)), (0.5, mean, 6.0))
    found = bin_pmfs(bins)[1, 2:6]
    constraints = [
        {"type": "eq", "fun": lambda p: p.sum() - 1},
        {"type": "eq", "fun": lambda p: p @ np.arange(2, 6) - mean},
    ]
    best = optimize.minimize(
        lambda p: -stats.entropy(p), np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=constraints, tol=1e-10
    )
    np.testing.assert_allclose(found, best.x, atol=2e-3)
    assert stats.entropy(found) >= -best.fun - 1e-6


@pytest.mark.parametrize("mean", [0.11, 0.2, 0.3, 0.3001, 0.45])
def test_smoothed_counts_have_the_variance_of_a_tilted_density(mean: float) -> None:
    """On (0.1, 0.5]: exp(s x) with the s that numerical integration finds for this mean."""
    bins = CountBins(GRID, ((0, 0), (0, 0.1), (0.1, 0.5), (0.5, math.inf)), (0.0, 0.05, mean, 0.7), smoothed=True)

    def moment(slope: float, power: int) -> float:
        weight = integrate.quad(lambda x: math.exp(slope * (x - 0.3)), 0.1, 0.5)[0]
        return integrate.quad(lambda x: x**power * math.exp(slope * (x - 0.3)), 0.1, 0.5)[0] / weight

    slope = optimize.brentq(lambda s: moment(s, 1) - mean, -300, 300)
    assert bin_moments(bins)[2] == pytest.approx(moment(slope, 2), rel=1e-5)
    assert bin_moments(bins)[1] - 0.05**2 == pytest.approx(0.1**2 / 12)
    assert bin_moments(bins)[3] - 0.7**2 == pytest.approx(0.2**2)  # exponential
    with pytest.raises(ValueError, match="no integers"):
        bin_pmfs(bins)


# ------------------------------------------------------------------------------------------ convolution


def test_a_convolution_counts_every_combination() -> None:
    rng = np.random.default_rng(0)
    pmfs = rng.dirichlet(np.ones(4), size=5)
    expected = np.zeros(16)
    for counts in itertools.product(range(4), repeat=5):
        expected[sum(counts)] += math.prod(pmf[c] for pmf, c in zip(pmfs, counts, strict=True))
    np.testing.assert_allclose(convolve(pmfs), expected, atol=1e-14)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 64, 1001])
def test_a_sum_of_coins_is_binomial(blocks: int) -> None:
    found = convolve(np.tile([0.7, 0.3], (blocks, 1)))
    np.testing.assert_allclose(found, stats.binom(blocks, 0.3).pmf(np.arange(len(found))), atol=1e-12)


def test_a_sum_of_nothing_and_of_zeros_is_zero() -> None:
    np.testing.assert_array_equal(convolve(np.zeros((0, 3))), [1])
    np.testing.assert_array_equal(convolve(np.eye(1, 4).repeat(9, axis=0)), [1])


def _counted(bins: CountBins, blocks: int, *, seed: int = 0) -> tuple[torch.Tensor, float, float]:
    """Probabilities of a row of blocks, and the count and variance that the network states."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, len(bins), 1, blocks, generator=generator)
    means = (logits.softmax(1) * torch.tensor(bins.representatives)[:, None, None]).sum(1, keepdim=True)
    prediction = BinPrediction(means.sum((1, 2, 3)), means, logits, torch.tensor(bin_moments(bins)))
    variance = prediction.variance()
    assert variance is not None
    return prediction.probabilities()[0], float(prediction.count), float(variance.sum())


@pytest.mark.parametrize("strategy", Strategy)
def test_the_networks_variance_is_that_of_the_convolution(strategy: Strategy) -> None:
    bins = bins_of(strategy)
    probabilities, count, variance = _counted(bins, 60)
    own = own_distribution(count, variance, probabilities=probabilities, bins=bins)
    assert isinstance(own, ExactDistribution)
    counts = np.arange(len(own.pmf))
    assert own.pmf @ counts == pytest.approx(count, rel=1e-5)
    assert own.pmf @ counts**2 - count**2 == pytest.approx(variance, rel=1e-3)


@pytest.mark.slow
def test_drawn_counts_have_the_distribution_of_the_convolution() -> None:
    bins = bins_of(Strategy.dynamic, m=7)
    probabilities, count, variance = _counted(bins, 12)
    own = own_distribution(count, variance, probabilities=probabilities, bins=bins)
    assert isinstance(own, ExactDistribution)
    rng, draws = np.random.default_rng(0), 100_000
    pmfs = bin_pmfs(bins)
    total = np.zeros(draws)
    for block in probabilities[:, 0].double().numpy().T:
        which = rng.choice(len(bins), size=draws, p=block / block.sum())
        for k, pmf in enumerate(pmfs):
            total[which == k] += rng.choice(len(pmf), size=int((which == k).sum()), p=pmf / pmf.sum())
    seen = np.bincount(total.astype(int), minlength=len(own.pmf))[: len(own.pmf)] / draws
    assert np.abs(np.cumsum(seen) - np.cumsum(own.pmf)).max() < 0.006  # Kolmogorov's bound is 0.0061 at 99.9 %


def test_many_blocks_are_taken_as_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    bins = bins_of(Strategy.fine)
    probabilities, count, variance = _counted(bins, 2000)
    exact = own_distribution(count, variance, probabilities=probabilities, bins=bins)
    monkeypatch.setattr("headcount.distribution._MAX_CONVOLVED", 2000)
    normal = own_distribution(count, variance, probabilities=probabilities, bins=bins)
    assert isinstance(exact, ExactDistribution)
    assert isinstance(normal, NormalDistribution)
    for level in (0.5, 0.9, 0.99):
        np.testing.assert_allclose(exact.ends(level), normal.ends(level), atol=3)  # the exact one is skewed
    assert exact.crps(count + 30) == pytest.approx(normal.crps(count + 30), rel=0.02)


def test_a_counter_without_a_variance_has_no_interval() -> None:
    assert own_distribution(5.0, None) is None
    assert own_interval(None, 0.9) is None
    assert own_interval(NormalDistribution(5.0, 0.0), 0.9) == CountInterval(5.0, 5.0, 0.9, calibrated=False)


# ------------------------------------------------------------------------------------------ ends and scores


@given(st.floats(0.05, 20), st.floats(0.01, 0.99))
def test_exact_ends_hold_at_least_the_level_and_no_end_can_move(rate: float, level: float) -> None:
    pmf = stats.poisson(rate).pmf(np.arange(120))
    low, high = ExactDistribution(pmf).ends(level)
    poisson, tail = stats.poisson(rate), (1 - level) / 2
    assert poisson.cdf(high) - poisson.cdf(low - 1) >= level - 1e-9
    assert (low, high) == (poisson.ppf(tail), poisson.ppf(1 - tail - 1e-12))


def test_normal_ends_are_those_of_scipy_and_not_below_zero() -> None:
    np.testing.assert_allclose(NormalDistribution(50, 4).ends(0.9), stats.norm(50, 4).interval(0.9))
    low, high = NormalDistribution(1, 4).ends(0.9)
    assert low == 0
    assert high == pytest.approx(stats.norm(1, 4).ppf(0.95))


def test_the_crps_of_an_exact_distribution_by_hand() -> None:
    """Half on 1 and half on 3: the cumulative distribution is 0.5 from 1 to 3."""
    own = ExactDistribution(np.array([0, 0.5, 0, 0.5]))
    assert own.crps(1) == pytest.approx(0.5)  # (0.5 - 1)^2 from 1 to 3
    assert own.crps(2) == pytest.approx(0.25 + 0.25)
    assert own.crps(5) == pytest.approx(0.25 * 2 + 2)  # 0.5^2 from 1 to 3, 1 from 3 to 5
    assert own.crps(0) == pytest.approx(1 + 0.25 * 2)
    assert ExactDistribution(np.eye(1, 8, 7)[0]).crps(4) == 3  # a certain count: its error


@pytest.mark.parametrize(("mean", "deviation", "true"), [(10, 3, 10), (10, 3, 14), (0.5, 2, 0), (100, 1, 60)])
def test_the_crps_of_a_normal_distribution_is_its_integral(mean: float, deviation: float, true: float) -> None:
    cdf = stats.norm(mean, deviation).cdf
    below = integrate.quad(lambda x: cdf(x) ** 2, mean - 60, true, limit=500)[0]
    above = integrate.quad(lambda x: (1 - cdf(x)) ** 2, true, mean + 60, limit=500)[0]
    assert NormalDistribution(mean, deviation).crps(true) == pytest.approx(below + above, rel=1e-6)
    assert NormalDistribution(mean, 0).crps(true) == abs(mean - true)
