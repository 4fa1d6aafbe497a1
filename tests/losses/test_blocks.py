"""Errors of blocks by hand; CSRNet's loss against smoothed heads."""

import pytest
import torch

from headcount.config import BlockErrorKind, MseConfig
from headcount.losses.blocks import BlockError, MseLoss
from headcount.losses.build import build_loss
from headcount.types import Batch, BlockGrid, Prediction
from values import batch_of as make_batch
from values import predict

PREDICTED = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.5]]]])
TRUE = torch.tensor([[[[2.0, 1.0]]], [[[0.0, 0.0]]]])


def batch_of(smoothed: torch.Tensor | None) -> Batch:
    images = torch.zeros(2, 3, 8, 16, dtype=torch.uint8)
    return make_batch(images, [torch.zeros(0, 2)] * 2, torch.full((2, 1, 1, 2), 9.0), ["a", "b"], smoothed=smoothed)


def test_sums_over_blocks_are_averaged_over_images() -> None:
    absolute = BlockError(BlockErrorKind.mae)(PREDICTED, [], TRUE)
    squared = BlockError(BlockErrorKind.mse)(PREDICTED, [], TRUE)
    assert float(absolute.total) == float(absolute.parts["absolute_error"]) == (1 + 2 + 0.5) / 2
    assert float(squared.total) == float(squared.parts["squared_error"]) == (1 + 4 + 0.25) / 2


def test_a_prediction_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="compares blocks, but the head predicts one number per image"):
        MseLoss()(Prediction(count=torch.zeros(2), blocks=None), batch_of(TRUE))


def test_mse_is_half_the_squared_error_against_smoothed_heads() -> None:
    terms = MseLoss()(predict(PREDICTED.clone().requires_grad_()), batch_of(TRUE))
    assert float(terms.total.detach()) == (1 + 4 + 0.25) / 4
    assert not terms.parts["squared_error"].requires_grad


def test_the_scale_of_the_mse_reaches_its_gradient() -> None:
    predicted = PREDICTED.clone().requires_grad_()
    loss = build_loss(MseConfig(scale=100.0), BlockGrid(8), None)
    found = torch.autograd.grad(loss(predict(predicted), batch_of(TRUE)).total, predicted)[0]
    torch.testing.assert_close(found, 100 * (PREDICTED - TRUE) / 2)


def test_mse_without_smoothed_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="no target 'smoothed', only points, block_counts"):
        MseLoss()(predict(PREDICTED), batch_of(None))


def test_autocast_changes_nothing() -> None:
    prediction = predict(PREDICTED.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert MseLoss()(prediction, batch_of(TRUE + 2**-12)).total.dtype == torch.float32
