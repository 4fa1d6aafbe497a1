"""Short ways to make the values that are passed between the packages, for tests."""

from typing import Any

from torch import Tensor

from headcount.bins import CountBins
from headcount.types import Batch, BinPrediction, Prediction


def predict(blocks: Tensor) -> Prediction:
    """The prediction of these blocks, (batch, 1, rows, cols)."""
    return Prediction(count=blocks.sum((1, 2, 3)), blocks=blocks)


def predict_bins(blocks: Tensor, logits: Tensor) -> BinPrediction:
    """The prediction of these blocks by a classifier with these logits."""
    return BinPrediction(count=blocks.sum((1, 2, 3)), blocks=blocks, logits=logits)


def batch_of(
    images: Tensor,
    points: list[Tensor],
    block_counts: Tensor,
    names: list[str],
    *,
    smoothed: Tensor | None = None,
    bins: CountBins | None = None,
) -> Batch:
    """A batch with these targets, and with the labels of the block counts if there are ``bins``."""
    targets: dict[str, Any] = {"points": points, "block_counts": block_counts}
    if smoothed is not None:
        targets["smoothed"] = smoothed
    if bins is not None:
        targets["labels"] = bins.label(block_counts)
    return Batch(images, names, targets)
