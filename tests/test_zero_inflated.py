"""The zero-inflated Poisson distribution against scipy, and where one of its two parts is certain."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from headcount.config import WholeImageConfig
from headcount.distribution import ExactDistribution, NormalDistribution, own_distribution, zip_pmfs
from headcount.types import Counted
from headcount.zero_inflated import ZipPrediction, bin_counts

REPRESENTATIVES = torch.tensor([1.0, 2.0, 3.6, 9.0], dtype=torch.float64)
BIN_COUNTS = bin_counts([(0, 0), (1, 1), (2, 2), (3, 5), (6, math.inf)])
COUNTS = np.arange(200)


def prediction_of(gate_logits: Tensor, bin_logits: Tensor) -> ZipPrediction:
    return ZipPrediction.from_logits(gate_logits, bin_logits, representatives=REPRESENTATIVES, bin_counts=BIN_COUNTS)


def a_prediction() -> ZipPrediction:
    torch.manual_seed(0)
    gate = 2 * torch.randn(2, 2, 3, 4, dtype=torch.float64)
    return prediction_of(gate, 3 * torch.randn(2, 4, 3, 4, dtype=torch.float64))


def pmf_of(prediction: ZipPrediction) -> np.ndarray:
    """Probability of each of ``COUNTS`` in each block, by scipy."""
    empty = prediction.gate_logits.softmax(1)[:, 0].numpy()
    poisson = stats.poisson.pmf(COUNTS[:, None, None, None], prediction.rate[:, 0].numpy())
    return empty * (COUNTS == 0)[:, None, None, None] + (1 - empty) * poisson


def test_mean_and_variance_are_those_of_the_mixture() -> None:
    prediction = a_prediction()
    pmf, counts = pmf_of(prediction), COUNTS[:, None, None, None]
    np.testing.assert_allclose(pmf.sum(0), 1, atol=1e-12)
    mean = (pmf * counts).sum(0)
    np.testing.assert_allclose(prediction.blocks[:, 0].numpy(), mean, rtol=1e-10)
    np.testing.assert_allclose(prediction.variance()[:, 0].numpy(), (pmf * (counts - mean) ** 2).sum(0), rtol=1e-10)
    torch.testing.assert_close(prediction.count, prediction.blocks.sum((1, 2, 3)))


def test_the_probability_of_a_bin_is_that_of_its_counts() -> None:
    prediction = a_prediction()
    probabilities = prediction.probabilities()
    pmf = pmf_of(prediction)
    expected = [pmf[first:end].sum(0) for first, end in ((0, 1), (1, 2), (2, 3), (3, 6), (6, 200))]
    np.testing.assert_allclose(probabilities.numpy(), np.stack(expected, 1), atol=1e-12)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 3, 4, dtype=torch.float64))


def test_the_rate_lies_between_the_representative_counts() -> None:
    logits = torch.tensor([[1000.0, 0, 0, 0], [0, 0, 0, 1000.0]], dtype=torch.float64)[..., None, None]
    prediction = prediction_of(torch.zeros(2, 2, 1, 1, dtype=torch.float64), logits)
    assert prediction.rate.flatten().tolist() == [1.0, 9.0]
    assert prediction.blocks.flatten().tolist() == [0.5, 4.5]


@pytest.mark.parametrize(("gate", "blocks"), [([1000.0, -1000.0], 0.0), ([-1000.0, 1000.0], 9.0)])
def test_a_certain_gate(gate: list[float], blocks: float) -> None:
    logits = torch.tensor(gate, dtype=torch.float64).view(1, 2, 1, 1)
    prediction = prediction_of(logits, torch.tensor([0, 0, 0, 1000.0], dtype=torch.float64).view(1, 4, 1, 1))
    assert float(prediction.count) == blocks
    # Of the Poisson distribution itself, or of a block that is always empty.
    assert float(prediction.variance()) == pytest.approx(blocks)
    assert float(prediction.probabilities()[0, 0]) == pytest.approx(math.exp(-blocks), rel=1e-12)
    assert bool(prediction.probabilities().isfinite().all())


def test_probabilities_of_float32_are_not_negative() -> None:
    torch.manual_seed(0)
    bins = 40
    prediction = ZipPrediction.from_logits(
        torch.randn(1, 2, 8, 8),
        4 * torch.randn(1, bins, 8, 8),
        representatives=torch.arange(1.0, bins + 1),
        bin_counts=bin_counts([*((k, k) for k in range(bins)), (bins, math.inf)]),
    )
    probabilities = prediction.probabilities()
    assert probabilities.shape == (1, bins + 1, 8, 8)
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 8, 8))


# ------------------------------------------------------------------------------ of an image


def counted_of(prediction: ZipPrediction) -> Counted:
    blocks, variance = prediction.blocks[0, 0].float(), prediction.variance()[0, 0].float()
    return Counted(float(blocks.sum()), blocks, None, WholeImageConfig(), variance=variance)


def test_two_moments_determine_the_distribution_of_a_block() -> None:
    prediction = a_prediction()
    means, variances = (values.flatten().numpy() for values in (prediction.blocks, prediction.variance()))
    pmfs = zip_pmfs(means, variances)
    assert pmfs is not None
    expected = pmf_of(prediction).reshape(len(COUNTS), -1).T[:, : pmfs.shape[1]]
    np.testing.assert_allclose(pmfs, expected, atol=1e-12)
    np.testing.assert_allclose(pmfs.sum(1), 1, atol=1e-9)
    empty = zip_pmfs(np.zeros(2), np.zeros(2))
    assert empty is not None
    assert empty[:, 0].tolist() == [1, 1]


def test_the_count_of_an_image_is_the_convolution_of_its_blocks() -> None:
    prediction = a_prediction()
    counted = counted_of(prediction)
    own = own_distribution(counted.count, counted.total_variance(), zip_blocks=counted.zip_blocks())
    assert isinstance(own, ExactDistribution)
    expected = np.ones(1)
    for of_block in pmf_of(prediction)[:, 0].reshape(len(COUNTS), -1).T:
        expected = np.convolve(expected, of_block)
    np.testing.assert_allclose(own.pmf, expected[: len(own.pmf)], atol=1e-6)  # blocks are float32
    counts = np.arange(len(own.pmf))
    mean = float(own.pmf @ counts)
    assert mean == pytest.approx(counted.count, rel=1e-5)
    assert float(own.pmf @ (counts - mean) ** 2) == pytest.approx(counted.total_variance(), rel=1e-4)


def test_many_blocks_have_a_normal_distribution() -> None:
    blocks = torch.full((300, 300), 0.1)
    counted = Counted(9000.0, blocks, None, WholeImageConfig(), variance=blocks * 2)
    own = own_distribution(counted.count, counted.total_variance(), zip_blocks=counted.zip_blocks())
    assert isinstance(own, NormalDistribution)
    assert own.deviation == pytest.approx(math.sqrt(18_000), rel=1e-5)


def test_a_share_of_a_block_is_no_whole_number() -> None:
    counted = counted_of(a_prediction()).within(torch.full((3, 4), 0.5, dtype=torch.float64))
    assert counted.variance is not None
    assert counted.zip_blocks() is None
