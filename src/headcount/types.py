"""The values passed between the packages: grid, sample, batch, prediction, counted image, loss terms, errors.

Plain dataclasses, independent of datasets, networks and losses.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from headcount.config import ConfigError, SlidingWindowConfig, WholeImageConfig


@dataclass(frozen=True)
class BlockGrid:
    """Square blocks that cover an image from its top left corner."""

    block_size: int
    """Side of a block, in pixels (the paper's r)."""

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the blocks that cover an image; the last ones may reach beyond its border.

        Args:
            height, width: image size in pixels.
        """
        return -(-height // self.block_size), -(-width // self.block_size)


@runtime_checkable
class SampleMask(Protocol):
    """The part of one image in which heads are counted."""

    def shares(self, block_size: int) -> Float[Tensor, "rows cols"]:
        """The share of each block's area that is inside, 0 to 1; blocks of ``block_size`` pixels cover the image."""
        ...


@dataclass
class Sample:
    """One image with its annotated heads."""

    image: UInt8[Tensor, "3 height width"]
    """RGB, 0 to 255; normalization is part of the network."""
    points: Float[Tensor, "n 2"]
    """Head positions (x, y) in pixels of this image, x right, y down."""
    name: str
    """File name without its extension."""
    mask: SampleMask | None = None
    """Where heads are counted; None counts everywhere. ``points`` has only heads inside."""


@dataclass
class Batch:
    """Training images of one size, and the targets that the loss needs."""

    images: UInt8[Tensor, "batch 3 height width"]
    names: list[str]
    """Names of the source images; a method may make several training images from one."""
    targets: dict[str, Any] = field(default_factory=dict)
    """Targets by name: a tensor, or a list with one tensor per image. See ``headcount.data.loading.Targets`` for the
    names."""

    def target(self, name: str) -> Any:
        """The target called ``name``.

        Raises:
            ValueError: if the batch was made without it.
        """
        if name not in self.targets:
            raise ValueError(
                f"this batch has no target {name!r}, only {', '.join(self.targets) or 'none'}: the loader makes the "
                f"targets that the loss names in its `needs`"
            )
        return self.targets[name]

    def split(self, parts: int) -> list["Batch"]:
        """Split this batch into batches of equal size, in its order.

        Raises:
            ConfigError: if its images cannot be shared equally, or belong together, because a method made several of
                one source.
        """
        if parts == 1:
            return [self]
        images, names = len(self.images), len(self.names)
        if images % parts or images != names:
            made = "" if images == names else f" made of {names}, which belong together"
            raise ConfigError(f"accumulate={parts}: a batch of {images} images{made} has no {parts} equal parts")
        size = images // parts
        shares = [slice(k * size, (k + 1) * size) for k in range(parts)]
        return [
            Batch(self.images[of], self.names[of], {name: target[of] for name, target in self.targets.items()})
            for of in shares
        ]

    def within_mask(self, blocks: Float[Tensor, "batch 1 rows cols"]) -> Float[Tensor, "batch 1 rows cols"]:
        """Heads per block inside the masks: blocks times the share of their area inside; unchanged without masks."""
        return blocks * self.targets["mask"] if "mask" in self.targets else blocks

    def to(self, device: torch.device | str) -> "Batch":
        """Return this batch on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return this batch in page-locked memory, from which copies to a GPU do not block."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Any) -> "Batch":
        targets = {
            name: [change(tensor) for tensor in target] if isinstance(target, list) else change(target)
            for name, target in self.targets.items()
        }
        return dataclasses.replace(self, images=change(self.images), targets=targets)


@dataclass
class Prediction:
    """A network's output for a batch of images, the same in training and evaluation.

    A prediction head with more outputs (logits, rates, gates) returns a subclass; the training loop, evaluation
    and records use only what is declared here.
    """

    count: Float[Tensor, " batch"]
    """Expected heads per image."""
    blocks: Float[Tensor, "batch 1 rows cols"] | None
    """Expected heads per block, which sum to ``count``; None for a prediction head with one number per image."""

    def probabilities(self) -> Float[Tensor, "batch bins rows cols"] | None:
        """Probability of each count bin in each block; None for a prediction head without bins."""
        return None

    def variance(self) -> Float[Tensor, "batch 1 rows cols"] | None:
        """Variance of the heads in each block; None for a prediction head without a distribution of its own."""
        return None

    @staticmethod
    def join(parts: Sequence["Prediction"]) -> "Prediction":
        """The counts and blocks of a batch that was predicted in parts, detached; a single part as it is."""
        if len(parts) == 1:
            return parts[0]
        blocks = [part.blocks.detach() for part in parts if part.blocks is not None]
        return Prediction(torch.cat([part.count.detach() for part in parts]), torch.cat(blocks) if blocks else None)


@dataclass
class BinPrediction(Prediction):
    """The output of a prediction head that classifies each block into count bins."""

    logits: Float[Tensor, "batch bins rows cols"]
    """One score per bin, before the softmax."""
    second_moments: Float[Tensor, " bins"] | None = None
    """Mean square of the count in each bin (:func:`headcount.distribution.bin_moments`); None if it is unknown."""

    def probabilities(self) -> Float[Tensor, "batch bins rows cols"]:
        """Softmax of the logits, in float32."""
        return self.logits.float().softmax(1)

    def variance(self) -> Float[Tensor, "batch 1 rows cols"] | None:
        """Variance over the bins, and within them."""
        if self.second_moments is None or self.blocks is None:
            return None
        squares = (self.probabilities() * self.second_moments[:, None, None]).sum(1, keepdim=True)
        return (squares - self.blocks.float().square()).clamp(min=0)


@dataclass
class SimilarityPrediction(Prediction):
    """Similarities of images with sentences about numbers of people; the count is the number in the most similar one.

    For each size of a crowd there is a set of sentences; without such sizes, there is one set.
    """

    similarities: Float[Tensor, "batch sets sentences"]
    """100 times the cosine, in float32."""
    sets: Int64[Tensor, " batch"]
    """The set of sentences that belongs to each image."""


@dataclass
class Counted:
    """One counted image, on the host; blocks that lie entirely in padding are removed."""

    count: float
    """Expected heads, summed in float64."""
    blocks: Float[Tensor, "rows cols"] | None
    """Expected heads per block; None for a prediction head that predicts one number per image."""
    probabilities: Float[Tensor, "bins rows cols"] | None
    """Probability of each bin in each block; None unless requested, and for a prediction head without bins."""
    mode: WholeImageConfig | SlidingWindowConfig
    """How it was counted: whole, or in windows."""
    reason: str = ""
    """Why it was counted in windows although this counter usually counts whole images; otherwise empty."""
    shares: Float[Tensor, "rows cols"] | None = None
    """Share of each block that lies inside the image's mask; None without a mask."""
    variance: Float[Tensor, "rows cols"] | None = None
    """Variance of the heads in each block; None unless requested, and for a prediction head without one."""
    measured: dict[str, float] = field(default_factory=dict)
    """What the counter measured beside the count, by name (``headcount.metrics``); usually empty."""

    def zip_blocks(self) -> tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]] | None:
        """Mean and variance of each block, if its count is a whole number: not where a mask takes a share of it."""
        if self.blocks is None or self.variance is None or self.shares is not None:
            return None
        return self.blocks, self.variance

    def within(self, shares: Float[Tensor, "rows cols"]) -> "Counted":
        """The heads inside a mask: those of each block times the share of its area that is inside.

        Args:
            shares: of each block, 0 to 1, in float64.

        Raises:
            ConfigError: if there are no blocks.
        """
        if self.blocks is None:
            raise ConfigError(
                "the images have masks, but this counter predicts one number per image and no blocks, so that heads "
                "outside cannot be left out; count everywhere with dataset.mask=none, or choose another counter"
            )
        blocks = self.blocks.double() * shares
        variance = None if self.variance is None else (self.variance * shares**2).to(self.variance)
        return dataclasses.replace(
            self, count=float(blocks.sum()), blocks=blocks.to(self.blocks), variance=variance, shares=shares
        )

    def total_variance(self) -> float | None:
        """Variance of the count if the blocks are independent; None where that of the blocks is unknown."""
        return None if self.variance is None else float(self.variance.sum(dtype=torch.float64))


@dataclass(frozen=True)
class CountInterval:
    """Two ends between which the true count of an image is expected to lie."""

    low: float
    """Lower end, in heads; at least 0."""
    high: float
    """Upper end, in heads."""
    level: float
    """The share of images whose true count is to lie within their intervals, between 0 and 1."""
    calibrated: bool
    """Whether errors on held-out images support the level; otherwise it is the counter's own claim."""
    outside_calibration: str = ""
    """In what the image is unlike all calibration images, so that the level is not supported for it; usually empty."""

    def __str__(self) -> str:
        ends = f"[{math.floor(self.low)}, {math.ceil(self.high)}] {100 * self.level:g} %"
        return ends if self.calibrated else f"{ends}, uncalibrated"

    @property
    def note(self) -> str:
        """What to know about the image; usually empty."""
        return f"unlike the calibration images: {self.outside_calibration}" if self.outside_calibration else ""


@dataclass
class LossTerms:
    """A loss and the terms it is the sum of."""

    total: Float[Tensor, ""]
    """The value to minimize."""
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """The weighted terms of ``total`` by name, detached."""
    logged: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Values that are only logged and are not part of ``total``, by name, detached."""

    @staticmethod
    def mean(terms: Sequence["LossTerms"]) -> "LossTerms":
        """The means over equal parts of a batch, detached; a single part as it is."""
        if len(terms) == 1:
            return terms[0]

        def mean(values: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.stack([part[name] for part in values]).mean(0) for name in values[0]}

        total = torch.stack([part.total.detach() for part in terms]).mean(0)
        return LossTerms(total, mean([part.parts for part in terms]), mean([part.logged for part in terms]))


@dataclass
class CountErrors:
    """Errors of whole-image counts over a set of images."""

    mae: float
    """Mean absolute error, in heads per image."""
    rmse: float
    """Root mean squared error, in heads per image."""
    nae: float
    """Mean of absolute error / true count over the images with at least one head; NaN if there are none."""
    images: int
    """Number of images."""

    @classmethod
    def from_counts(cls, predicted: Sequence[float], true: Sequence[float]) -> "CountErrors":
        """Errors of ``predicted`` against ``true`` counts, one pair per image, in float64.

        Raises:
            ValueError: if there are no images, or the lengths differ.
        """
        if len(predicted) != len(true) or not len(true):
            raise ValueError(
                f"need one predicted count for each true count: {len(predicted)} predicted, {len(true)} true"
            )
        predicted_ = torch.as_tensor(list(predicted), dtype=torch.float64)
        true_ = torch.as_tensor(list(true), dtype=torch.float64)
        error = (predicted_ - true_).abs()
        occupied = true_ > 0
        return cls(
            mae=float(error.mean()),
            rmse=float(error.square().mean().sqrt()),
            nae=float((error[occupied] / true_[occupied]).mean()) if bool(occupied.any()) else float("nan"),
            images=len(true),
        )


# A picture is far outside beyond this multiple of what the training images had.
_FAR, _FAR_FROM_CROP_SMALL, _FAR_FROM_CROP_LARGE = 2, 8, 16
_FEW_HEADS = 10


@dataclass(frozen=True)
class SeenImages:
    """Limits of the images that a counter was trained on: its counts of other images are extrapolation."""

    shortest_side: int
    """Shorter side of the smallest image as stored, in pixels."""
    longest_side: int
    """Longer side of the largest image as prepared by the dataset's resize rule, in pixels."""
    most_heads: int | None
    """Largest number of heads in an image; None if it is not known."""
    only_crop: bool = False
    """Whether both sides are only that of a training crop, because an early checkpoint does not record its images."""

    @classmethod
    def from_images(
        cls, stored: Sequence[tuple[int, int]], prepared: Sequence[tuple[int, int]], heads: Sequence[float] | None
    ) -> "SeenImages":
        """The limits of training images.

        Args:
            stored, prepared: (width, height) of each image before and after the dataset's resize rule, in pixels.
            heads: annotated heads of each; None if they are not known.
        """
        return cls(min(map(min, stored)), max(map(max, prepared)), None if heads is None else int(max(heads)))

    @classmethod
    def from_plain(cls, plain: dict[str, Any] | None, *, crop_size: int) -> "SeenImages":
        """What a checkpoint records, or what follows from the side of a training crop, in pixels.

        Raises:
            ValueError: if the record is damaged.
        """
        if plain is None:
            return cls(crop_size, crop_size, None, only_crop=True)
        numbers = [plain.get(key) for key in ("shortest_side", "longest_side", "most_heads")]
        known = numbers[:2] if numbers[2] is None else numbers
        if not all(isinstance(number, int) and number >= 0 for number in known):
            raise ValueError(f"its record of the training images is {plain}")
        return cls(*numbers)  # type: ignore[arg-type]

    def to_plain(self) -> dict[str, int | None]:
        """The limits as plain values, for a checkpoint."""
        return {
            "shortest_side": self.shortest_side,
            "longest_side": self.longest_side,
            "most_heads": self.most_heads,
        }

    def note(self, *, stored: tuple[int, int], prepared: tuple[int, int], heads: float) -> str:
        """Say in what a picture lies far outside the training images; empty if it does not.

        Args:
            stored, prepared: (width, height) of the picture before and after it was resized, in pixels.
            heads: counted or annotated in it.
        """
        small, large = (_FAR_FROM_CROP_SMALL, _FAR_FROM_CROP_LARGE) if self.only_crop else (_FAR, _FAR)
        least, most = "in training at least", "in training at most"
        if self.only_crop:
            least = most = "trained on crops of"
        found = []
        if min(stored) * small < self.shortest_side:
            found.append(f"shorter side {min(stored)} px, {least} {self.shortest_side} px")
        if max(prepared) > self.longest_side * large:
            found.append(f"longer side {max(prepared)} px, {most} {self.longest_side} px")
        if self.most_heads is not None and heads > _FAR * max(self.most_heads, _FEW_HEADS):
            found.append(f"{heads:.0f} heads, {most} {self.most_heads}")
        return f"{FAR_OUTSIDE}: {'; '.join(found)}" if found else ""


FAR_OUTSIDE = "far outside the training images"
"""How the note begins on a picture whose count is not to be trusted."""


@dataclass
class Best(CountErrors):
    """The best evaluation of a run so far."""

    epoch: int
    """Epoch after which it was measured, counted from 1."""


@dataclass
class ImageCount:
    """The evaluation of one image."""

    index: int
    """Position in the evaluated split."""
    name: str
    true: float
    """Annotated heads."""
    predicted: float
    """Expected heads."""
    blocks: Float[Tensor, "rows cols"] | None
    """Expected heads per block, on the host; None for a prediction head that predicts one number per image."""
    numbers: dict[str, float] = field(default_factory=dict)
    """What the evaluators measured on this image, by name (``headcount.metrics``)."""
    note: str = ""
    """What to know about this image, such as that it lies far outside the training images; usually empty."""


@dataclass
class Evaluation:
    """Errors over a split, and its images in the split's order."""

    errors: CountErrors
    images: list[ImageCount]
    parts: dict[str, CountErrors] = field(default_factory=dict)
    """Errors over each part of a mixed dataset; empty for a single dataset."""

    def total(self, name: str) -> float:
        """Sum of the number ``name`` over the images that have it; NaN if none has."""
        values = [image.numbers[name] for image in self.images if name in image.numbers]
        return sum(values) if values else float("nan")

    def count_deviations(self) -> tuple[float, float]:
        """Standard deviations of the predicted and of the true counts; 0 for predictions that never vary."""
        predicted = torch.tensor([image.predicted for image in self.images], dtype=torch.float64)
        true = torch.tensor([image.true for image in self.images], dtype=torch.float64)
        return float(predicted.std(correction=0)), float(true.std(correction=0))
