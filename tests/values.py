"""Short ways to make the values that are passed between the packages, for tests."""

from torch import Tensor

from headcount.types import Batch, BinPrediction, Prediction


def predict(blocks: Tensor) -> Prediction:
    """The prediction of these blocks, (batch, 1, rows, cols)."""
    return Prediction(count=blocks.sum((1, 2, 3)), blocks=blocks)


def predict_bins(blocks: Tensor, logits: Tensor) -> BinPrediction:
    """The prediction of these blocks by a classifier with these logits."""
    return BinPrediction(count=blocks.sum((1, 2, 3)), blocks=blocks, logits=logits)


def batch_of(
    images: Tensor, points: list[Tensor], block_counts: Tensor, names: list[str], smoothed: Tensor | None = None
) -> Batch:
    """A batch with these targets."""
    targets = {"points": points, "block_counts": block_counts}
    return Batch(images, names, targets if smoothed is None else {**targets, "smoothed": smoothed})
