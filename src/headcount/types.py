"""The values that travel between the rooms: sample, batch, prediction, loss terms, errors.

Plain dataclasses without behavior of their own; nothing here knows a dataset, a model or a loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass
class Sample:
    """One image with its annotated heads."""

    image: UInt8[Tensor, "3 height width"]
    """RGB, 0 to 255; bytes until the model normalizes them."""
    points: Float[Tensor, "n 2"]
    """Head positions (x, y) in pixels of this image, x right, y down."""
    name: str
    """What a person would call it: the file's name without its ending."""


@dataclass
class Batch:
    """Samples of one size, and what the losses need to know of them."""

    images: UInt8[Tensor, "batch 3 height width"]
    points: list[Float[Tensor, "_ 2"]]
    """One (n, 2) tensor an image, (x, y) in pixels of the images above."""
    block_counts: Float[Tensor, "batch 1 rows cols"]
    """Heads in each block; sums to the number of points."""
    names: list[str]
    smoothed: Float[Tensor, "batch 1 rows cols"] | None = None
    """Heads in each block after a Gaussian has spread them, mass kept inside the image; None unless asked for."""

    def to(self, device: torch.device | str) -> "Batch":
        """Return this batch on ``device``."""
        return Batch(
            images=self.images.to(device, non_blocking=True),
            points=[p.to(device, non_blocking=True) for p in self.points],
            block_counts=self.block_counts.to(device, non_blocking=True),
            names=self.names,
            smoothed=None if self.smoothed is None else self.smoothed.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Batch":
        """Return this batch in page-locked memory, from which copies to a GPU do not block."""
        return Batch(
            images=self.images.pin_memory(),
            points=[p.pin_memory() for p in self.points],
            block_counts=self.block_counts.pin_memory(),
            names=self.names,
            smoothed=None if self.smoothed is None else self.smoothed.pin_memory(),
        )


@dataclass
class BlockPrediction:
    """What a counter says of a batch, the same in training and evaluation.

    A model that predicts other maps than logits (rates, gates) subclasses this; the loop, the
    evaluation and the records read ``block_counts`` alone.
    """

    block_counts: Float[Tensor, "batch 1 rows cols"]
    """Expected heads in each block; an image's count is their sum."""
    logits: Float[Tensor, "batch bins rows cols"] | None = None
    """One score a bin, before softmax; None for a head that regresses counts."""


@dataclass
class LossTerms:
    """A loss and the parts it was made of."""

    total: Float[Tensor, ""]
    """What is minimized."""
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Detached values to record, by name; weights already applied where a part is one of the sum."""


@dataclass
class CountErrors:
    """Errors of whole-image counts over a set of images."""

    mae: float
    """Mean absolute error, heads an image."""
    rmse: float
    """Root of the mean squared error, heads an image."""
    nae: float
    """Mean of absolute error / true count over the images that show anybody; NaN where none does."""
    images: int

    @classmethod
    def from_counts(cls, predicted: Sequence[float], true: Sequence[float]) -> "CountErrors":
        """Errors of ``predicted`` against ``true`` counts, one pair an image, in float64.

        Raises:
            ValueError: if there is no image, or the two differ in length.
        """
        if len(predicted) != len(true) or not len(true):
            raise ValueError(
                f"need one predicted count for each true count: {len(predicted)} predicted, {len(true)} true"
            )
        predicted_, true_ = (torch.as_tensor(list(v), dtype=torch.float64) for v in (predicted, true))
        error = (predicted_ - true_).abs()
        peopled = true_ > 0
        return cls(
            mae=float(error.mean()),
            rmse=float(error.square().mean().sqrt()),
            nae=float((error[peopled] / true_[peopled]).mean()) if bool(peopled.any()) else float("nan"),
            images=len(true),
        )


@dataclass
class ImageCount:
    """What an evaluation says of one image."""

    index: int
    """Position in the evaluated split."""
    name: str
    true: float
    """Annotated heads."""
    predicted: float
    """Expected heads, the sum of ``blocks``."""
    blocks: Float[Tensor, "rows cols"]
    """Expected heads in each block, on the host."""
    game: tuple[float, ...] = ()
    """Sum of the absolute errors over 4, 16 and 64 equal regions of the image: GAME(1) to GAME(3)."""


@dataclass
class Evaluation:
    """Errors over a split, and the images they came from, in the split's order."""

    errors: CountErrors
    images: list[ImageCount]

    def spread(self) -> tuple[float, float]:
        """Standard deviation of the predicted and of the true counts: a collapsed model has none."""
        predicted, true = (
            torch.tensor(values, dtype=torch.float64).std(correction=0)
            for values in ([i.predicted for i in self.images], [i.true for i in self.images])
        )
        return float(predicted), float(true)

    def empty_blocks(self) -> float:
        """Share of the blocks in which less than half a head is expected."""
        empty = sum(int((i.blocks < 0.5).sum()) for i in self.images)
        return empty / max(sum(i.blocks.numel() for i in self.images), 1)
