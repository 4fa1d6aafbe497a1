"""Heads: what commutes with resampling, hidden layers, regression."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headcount.bins import CountBins
from headcount.config import ConfigError, EbcHeadConfig, HeadConfig, RegressionHeadConfig, Strategy, TinyConfig
from headcount.models.build import build_model
from headcount.models.heads import BlockClassifier, CountRegressor, build_head, resample
from headcount.types import BlockGrid

HISTOGRAM = {0: 90, 1: 5, 2: 3, 4: 1, 9: 1}
BINS = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(8), strategy=Strategy.fine, m=4)


@pytest.mark.parametrize("factor", [2, 0.5, 14 / 8])
@pytest.mark.parametrize("channels", [16, 600])
def test_a_classifier_equals_resampling_first(channels: int, factor: float) -> None:
    torch.manual_seed(0)
    head = BlockClassifier(channels, BINS).double()
    features = torch.randn(2, channels, 6, 8, dtype=torch.float64)
    expected = head.to_logits(resample(features, factor)).softmax(1)
    torch.testing.assert_close(head(features, factor=factor).logits.softmax(1).double(), expected, rtol=0, atol=1e-6)


def test_more_than_512_channels_pass_a_hidden_layer() -> None:
    """The released rule: 512 channels still go to the bins directly."""
    assert isinstance(BlockClassifier(512, BINS).to_logits, nn.Conv2d)
    hidden = BlockClassifier(513, BINS).to_logits
    assert [type(layer) for layer in hidden] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert sum(p.numel() for p in hidden.parameters()) == 513 * 512 + 512 + 512 * 5 + 5


@pytest.mark.parametrize("channels", [16, 600])
def test_biases_start_at_the_shares(channels: int) -> None:
    head = BlockClassifier(channels, BINS)
    head.start_at(HISTOGRAM)
    for parameter in list(head.parameters())[-2:-1]:
        nn.init.zeros_(parameter)
    shares = head(torch.randn(1, channels, 2, 2), factor=1).logits.softmax(1)[0, :, 0, 0]
    expected = torch.tensor([0.90, 0.05, 0.03, 1e-5, 0.02])
    torch.testing.assert_close(shares, expected / expected.sum())


def test_regression_is_a_rectified_convolution_of_resampled_features() -> None:
    torch.manual_seed(0)
    head = CountRegressor(16)
    features = torch.randn(2, 16, 6, 8)
    expected = F.relu(head.to_counts(resample(features, 2)))
    prediction = head(features, factor=2)
    assert prediction.probabilities() is None
    torch.testing.assert_close(prediction.count, prediction.blocks.sum((1, 2, 3)))
    torch.testing.assert_close(prediction.blocks, expected, rtol=1e-5, atol=1e-6)
    assert (prediction.blocks >= 0).all()


def test_regression_starts_at_the_mean_count() -> None:
    head = CountRegressor(4)
    head.start_at(HISTOGRAM)
    mean = (5 * 1 + 3 * 2 + 4 + 9) / 100
    torch.testing.assert_close(head(torch.zeros(1, 4, 1, 1), factor=1).blocks, torch.full((1, 1, 1, 1), mean))


def test_a_classifier_knows_its_probabilities_and_its_count() -> None:
    torch.manual_seed(0)
    prediction = BlockClassifier(16, BINS)(torch.randn(2, 16, 6, 8), factor=2)
    torch.testing.assert_close(prediction.probabilities(), prediction.logits.softmax(1))
    torch.testing.assert_close(prediction.count, prediction.blocks.sum((1, 2, 3)))


def test_a_head_of_bins_says_that_it_needs_them() -> None:
    with pytest.raises(ConfigError, match=r"model\.head=ebc: classifies blocks into bins, and bins=none has none"):
        build_model(TinyConfig(), BlockGrid(8), None)
    # A regression does not look at bins.
    assert isinstance(build_model(TinyConfig(head=RegressionHeadConfig()), BlockGrid(8), None).head, CountRegressor)


def test_a_head_without_a_builder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.head=other: no builder is registered for HeadConfig"):
        build_head(HeadConfig(name="other"), 8, BlockGrid(8), BINS)
    assert isinstance(build_head(EbcHeadConfig(), 8, BINS.grid, BINS), BlockClassifier)
