"""The loss of the zero-inflated Poisson head: each term by hand and by scipy, gradients by finite differences."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import ConfigError, GivenBinsConfig, ZipConfig
from headcount.losses.build import build_loss
from headcount.losses.zero_inflated import ZipLoss, multiscale_mae, positive_cross_entropy, zip_nll
from headcount.types import Batch, BlockGrid
from headcount.zero_inflated import ZipPrediction, bin_counts
from values import batch_of, predict

BINS = CountBins(BlockGrid(8), ((0, 0), (1, 1), (2, 2), (3, 5), (6, math.inf)), (0.0, 1.0, 2.0, 3.6, 9.0))


def prediction_of(gate_logits: Tensor, bin_logits: Tensor) -> ZipPrediction:
    return ZipPrediction.from_logits(
        gate_logits,
        bin_logits,
        representatives=torch.tensor(BINS.representatives[1:]).to(gate_logits),
        bin_counts=bin_counts(BINS.edges),
    )


def batch_with(counts: Tensor) -> Batch:
    images = torch.zeros(len(counts), 3, 8 * counts.shape[2], 8 * counts.shape[3], dtype=torch.uint8)
    points = [torch.zeros(int(of_image.sum()), 2) for of_image in counts]
    return batch_of(images, points, counts, ["x"] * len(counts), bins=BINS)


def some_logits(batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(batch, 2, 3, 5, dtype=dtype), torch.randn(batch, 4, 3, 5, dtype=dtype)


def some_counts() -> Tensor:
    torch.manual_seed(1)
    return torch.poisson(torch.full((2, 1, 3, 5), 1.5)) * (torch.rand(2, 1, 3, 5) > 0.4)


def test_the_likelihood_is_that_of_scipy_without_its_constant() -> None:
    gate, bins = some_logits()
    prediction, counts = prediction_of(gate, bins), some_counts().double()
    assert 0 < int((counts == 0).sum()) < counts.numel()
    empty, rate = gate.softmax(1)[:, :1].numpy(), prediction.rate.numpy()
    pmf = empty * (counts.numpy() == 0) + (1 - empty) * stats.poisson.pmf(counts.numpy(), rate)
    constant = torch.lgamma(counts + 1).numpy()
    ours = zip_nll(counts, gate, prediction.rate, epsilon=0.0).numpy()
    np.testing.assert_allclose(ours, -np.log(pmf) - constant, rtol=1e-10)


def test_the_likelihood_by_hand() -> None:
    gate = torch.tensor([math.log(0.3), math.log(0.7)], dtype=torch.float64).view(1, 2, 1, 1).expand(1, 2, 1, 2)
    rate = torch.full((1, 1, 1, 2), 2.0, dtype=torch.float64)
    found = zip_nll(torch.tensor([[[[0.0, 3.0]]]], dtype=torch.float64), gate, rate, epsilon=1e-8).flatten().tolist()
    assert found == pytest.approx([-math.log(0.3 + 0.7 * math.exp(-2)), -math.log(0.7) - 3 * math.log(2) + 2], rel=1e-7)


@pytest.mark.parametrize(
    ("gate", "count", "expected"),
    [
        ([1000.0, -1000.0], 0.0, 0.0),  # certainly empty, and is
        ([1000.0, -1000.0], 2.0, -math.log(1e-8) - 2 * math.log(4) + 4),  # certainly empty, and is not: finite
        ([-1000.0, 1000.0], 0.0, 4.0),  # Poisson alone
        ([-1000.0, 1000.0], 50.0, 4 - 50 * math.log(4)),  # counts are not capped
    ],
)
def test_the_likelihood_of_a_certain_gate(gate: list[float], count: float, expected: float) -> None:
    logits = torch.tensor(gate).view(1, 2, 1, 1).requires_grad_()
    rate = torch.full((1, 1, 1, 1), 4.0, requires_grad=True)
    found = zip_nll(torch.full((1, 1, 1, 1), count), logits, rate, epsilon=1e-8).sum()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert all(bool(gradient.isfinite().all()) for gradient in torch.autograd.grad(found, [logits, rate]))


def test_cross_entropy_is_over_the_blocks_with_heads_only() -> None:
    logits = torch.zeros(1, 4, 1, 3)
    logits[0, 1] = 5.0
    labels = torch.tensor([[[0, 2, 4]]])  # {0}, {2}, [6, inf)
    log_sum = math.log(3 + math.exp(5))
    assert float(positive_cross_entropy(logits, labels)) == pytest.approx((log_sum - 5) + log_sum, rel=1e-6)
    assert float(positive_cross_entropy(logits, torch.zeros_like(labels))) == 0


def test_the_multiscale_error_by_hand() -> None:
    error = torch.tensor([[[[4.0, -4.0, 1.0], [0.0, 0.0, 0.0], [2.0, 0.0, -3.0]]]])
    # Cells of 2 blocks: (4 - 4) / 4, 1 / 4, 2 / 4, -3 / 4; of 4 blocks: the sum, 0, by 16.
    assert float(multiscale_mae(error, [(1, 1.0)])) == 14
    assert float(multiscale_mae(error, [(2, 1.0)])) == pytest.approx(1.5)
    assert float(multiscale_mae(error, [(4, 1.0)])) == 0
    assert float(multiscale_mae(error, [(1, 0.25), (2, 0.5), (4, 1.0)])) == pytest.approx(14 / 4 + 0.75)


def test_terms_are_summed_over_blocks_averaged_over_images_and_weighted() -> None:
    gate, bins = some_logits()
    counts = some_counts()
    prediction, batch = prediction_of(gate, bins), batch_with(counts)
    terms = ZipLoss(cross_entropy_weight=2.0, nll_weight=3.0, mae_weight=5.0, count_weight=7.0)(prediction, batch)
    error = prediction.blocks - counts
    labels = BINS.label(counts)
    expected = {
        "cross_entropy": 2 * positive_cross_entropy(bins, labels).mean(),
        "nll": 3 * zip_nll(counts.double(), gate, prediction.rate, epsilon=1e-8).sum() / 2,
        "multiscale_mae": 5 * multiscale_mae(error, [(1, 0.25), (2, 0.5), (4, 1.0)]).mean(),
        "count": 7 * error.sum((1, 2, 3)).abs().mean(),
    }
    assert terms.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms.parts[name], value)
    torch.testing.assert_close(terms.total, torch.stack(list(expected.values())).sum())
    torch.testing.assert_close(terms.logged["log_factorial"], 3 * torch.lgamma(counts.double() + 1).sum() / 2)


def test_gradients_are_those_of_finite_differences() -> None:
    gate, bins = (logits.requires_grad_() for logits in some_logits())
    batch, loss = batch_with(some_counts()), ZipLoss()
    assert torch.autograd.gradcheck(lambda g, b: loss(prediction_of(g, b), batch).total, (gate, bins))


def test_reduced_precision_is_compared_in_float32() -> None:
    gate, bins = some_logits(dtype=torch.bfloat16)
    batch = batch_with(some_counts())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ZipLoss()(prediction_of(gate, bins), batch)
    assert {value.dtype for value in [found.total, *found.parts.values()]} == {torch.float32}


def test_masks_leave_out_what_is_outside() -> None:
    gate, bins = some_logits()
    prediction, counts = prediction_of(gate, bins), some_counts()
    mask = torch.ones(2, 1, 3, 5)
    mask[:, :, 0] = 0
    mask[:, :, 1] = 0.5
    counts[:, :, 0] = 0  # heads are counted inside only
    batch = batch_with(counts)
    batch.targets["mask"] = mask
    terms = ZipLoss(epsilon=0.0)(prediction, batch)
    inside = prediction_of(gate[:, :, 2:], bins[:, :, 2:])
    alone = ZipLoss(epsilon=0.0)(inside, batch_with(counts[:, :, 2:]))
    torch.testing.assert_close(terms.parts["nll"], alone.parts["nll"])
    torch.testing.assert_close(terms.parts["cross_entropy"], alone.parts["cross_entropy"])
    torch.testing.assert_close(terms.logged["log_factorial"], alone.logged["log_factorial"])
    error = prediction.blocks * mask - counts
    torch.testing.assert_close(terms.parts["count"], error.sum((1, 2, 3)).abs().mean())
    torch.testing.assert_close(
        terms.parts["multiscale_mae"], multiscale_mae(error, [(1, 0.25), (2, 0.5), (4, 1.0)]).mean()
    )


def test_another_head_is_refused() -> None:
    counts = some_counts()
    with pytest.raises(ValueError, match=r"zero-inflated Poisson distribution, which .* choose model\.head=zip"):
        ZipLoss()(predict(counts), batch_with(counts))


@pytest.mark.parametrize("settings", [{}, {"scales": [1, 3], "scale_weights": [1.0, 2.0], "nll_weight": 0.0}])
def test_settings_reach_the_loss(settings: dict[str, Any]) -> None:
    loss = build_loss(ZipConfig(**settings), BINS.grid, BINS)
    assert isinstance(loss, ZipLoss)
    assert loss.scales == ([(1, 1.0), (3, 2.0)] if settings else [(1, 0.25), (2, 0.5), (4, 1.0)])
    assert loss.nll_weight == settings.get("nll_weight", 1.0)
    with pytest.raises(ConfigError, match="loss=zip: classifies blocks into bins"):
        build_loss(ZipConfig(), BlockGrid(8), None)


def test_bins_with_given_edges_have_the_same_labels() -> None:
    assert GivenBinsConfig(first_counts=[1, 2, 3, 6]).edges == list(BINS.edges)
