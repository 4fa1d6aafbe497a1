"""Images of one split with their annotated heads, as an indexable dataset."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from headcount.config import Outside
from headcount.data.augment import TrainAugment, cut_square
from headcount.data.masks import Mask, PlacedMask, Window
from headcount.data.plausible import doubtful_positions
from headcount.data.points import clamp_into, inside, one_head_per_pixel, scale
from headcount.types import Sample, SeenImages
from headcount.wording import first_names

Key = int | tuple[int, int]
"""An index for evaluation, (epoch, index) for training."""


class CrowdDataset(Dataset[Sample]):
    """Images of one split with their heads.

    ``dataset[index]`` is the whole prepared image with every annotated head, for evaluation; ``dataset[epoch, index]``
    is a training sample, which depends only on (seed, epoch, index). Build with
    :func:`headcount.data.open.open_split`.

    Args:
        names: name of each image.
        images: returns the pixels of an index; called in worker processes.
        annotated: head positions of each image, in pixels before resizing.
        source_sizes: (width, height) of each image before resizing, pixels.
        sizes: (width, height) of each image as ``images`` returns it, pixels.
        outside, one_head_per_pixel: see ``DatasetConfig``; for training only.
        augment: applied to training samples; None leaves them whole.
        seed: seed of the augmentation.
        left_out: names of images of the split that cannot be used and are therefore not in ``names``.
        in_no_split: names of images that a split file does not mention.
        sources: file of each image as distributed; empty if the images are not files.
        first_rows: returns the first rows of an index, given their number, in less time than ``images`` takes; None if
            that is not possible.
        masks: where heads count, in each image; empty if they count everywhere.
        has_annotations: whether the annotations were read; if not, ``annotated`` has no heads.
    """

    def __init__(
        self,
        names: Sequence[str],
        images: Callable[[int], UInt8[Tensor, "3 height width"]],
        annotated: Sequence[Float[Tensor, "_ 2"]],
        *,
        source_sizes: Sequence[tuple[int, int]],
        sizes: Sequence[tuple[int, int]],
        outside: Outside = Outside.clamp,
        one_head_per_pixel: bool = False,
        augment: TrainAugment | None = None,
        seed: int = 0,
        left_out: Sequence[str] = (),
        in_no_split: Sequence[str] = (),
        sources: Sequence[Path] = (),
        first_rows: Callable[[int, int], UInt8[Tensor, "3 rows width"]] | None = None,
        masks: Sequence[Mask] = (),
        has_annotations: bool = True,
    ) -> None:
        self.names = list(names)
        self.left_out = list(left_out)
        """Images of the split that cannot be read or have no usable annotation."""
        self.in_no_split = list(in_no_split)
        """Images that belong to no split, because the split file does not mention them."""
        self.sizes = list(sizes)
        """(width, height) of each prepared image, pixels."""
        self.sources = list(sources)
        """File of each image as distributed; empty if the images are not files."""
        self.source_sizes = list(source_sizes)
        """(width, height) of each image before resizing, pixels."""
        self.has_annotations = has_annotations
        """Whether the annotations were read; if not, no image has heads here."""
        self.one_head_per_pixel = one_head_per_pixel
        """Whether training counts the heads of one pixel once in block counts."""
        self.doubts = doubtful_positions(names, annotated, source_sizes) if has_annotations else []
        """What may be wrong with the images and annotations although they can be used, one line each."""
        self._images, self._first_rows = images, first_rows
        self._outside_rule = outside
        self._augment, self._seed = augment, seed
        self.members: dict[str, CrowdDataset] = {}
        """The datasets that a mixed one consists of, by the names of its parts; empty for others."""
        self._heads: list[Float[Tensor, "_ 2"]] = []
        self._inside: list[Bool[Tensor, " _"]] = []
        self._masks = list(masks)
        self._masked = 0
        for index, (points, (width, height), size) in enumerate(zip(annotated, source_sizes, sizes, strict=True)):
            within = clamp_into(points, width=width, height=height)
            if self._masks:
                counts = self._masks[index].holds(within)
                points, within = points[counts], within[counts]
                self._masked += int((~counts).sum())
            self._inside.append(inside(points, width=width, height=height))
            self._heads.append(scale(within, from_size=(width, height), to_size=size))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Key) -> Sample:
        if isinstance(key, int):
            # Evaluation counts heads outside the image too; they are shown on its border.
            return Sample(self._images(key), self._heads[key], self.names[key], self.mask(key))
        epoch, index = key
        return self.training_sample(index, sample_seed(self._seed, epoch, index))

    def training_sample(self, index: int, seed: int) -> Sample:
        """Return the augmented image ``index``; which crop, and how it is changed, depends only on ``seed``."""
        points, mask = self._training_heads(index), self.mask(index)
        if self._augment is None:
            return Sample(self._images(index), points, self.names[index], mask)
        generator = torch.Generator().manual_seed(seed)
        square = self._augment.draw_square(*self.sizes[index], generator)
        # What lies below the square is not needed.
        bottom = square.top + square.side
        image = self._images(index) if self._first_rows is None else self._first_rows(index, bottom)
        image, points, mirrored = self._augment.change(*cut_square(image, points, square), generator)
        if mask is not None:
            part, side = Window(square.left, square.top, square.side, square.side), self._augment.crop_size
            mask = mask.cropped(part, size=(side, side), mirrored=mirrored)
        return Sample(image, points, self.names[index], mask)

    @property
    def images_per_epoch(self) -> int:
        """Number of images that are drawn per epoch."""
        return len(self)

    def drawn(self, epoch: int) -> Sequence[int]:
        """Return the indices that are drawn in an epoch, in no particular order."""
        return range(len(self))

    def parts(self) -> dict[str, range]:
        """Return the indices of each part's images; empty for a single dataset."""
        return {}

    def count(self, index: int) -> float:
        """Return the true count of evaluation: all heads inside the mask, including those outside the image."""
        return float(len(self._heads[index]))

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an image's file as distributed, under whatever name; without a file, of its pixels."""
        if not self.sources:
            return hashlib.sha256(self._images(index).numpy().tobytes()).hexdigest()
        with self.sources[index].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def points(self, index: int) -> Float[Tensor, "n 2"]:
        """Return the heads that training counts, in pixels of the prepared image, before augmentation."""
        points = self._training_heads(index)
        return one_head_per_pixel(points) if self.one_head_per_pixel else points

    @property
    def has_masks(self) -> bool:
        """Whether heads count only inside a mask of each image."""
        return bool(self._masks)

    @property
    def heads_masked(self) -> int:
        """Number of annotated heads outside their image's mask; they are not counted anywhere else."""
        return self._masked

    def mask(self, index: int) -> PlacedMask | None:
        """Return the mask of a whole prepared image; None if heads count everywhere."""
        if not self._masks:
            return None
        return PlacedMask.whole(self._masks[index], source_size=self.source_sizes[index], size=self.sizes[index])

    def _training_heads(self, index: int) -> Float[Tensor, "n 2"]:
        heads = self._heads[index]
        return heads if self._outside_rule is Outside.clamp else heads[self._inside[index]]

    def seen(self) -> SeenImages:
        """Return the limits of the sizes and counts of these images."""
        counts = [self.count(k) for k in range(len(self))] if self.has_annotations else None
        return SeenImages.from_images(self.source_sizes, self.sizes, counts)

    def note(self, index: int, seen: SeenImages, *, predicted: float = 0) -> str:
        """Say in what an image lies far outside the images of a training; empty if it does not.

        Args:
            seen: limits of the training images.
            predicted: heads that were counted in it.
        """
        heads = max(predicted, self.count(index))
        return seen.note(stored=self.source_sizes[index], prepared=self.sizes[index], heads=heads)

    @property
    def heads_outside(self) -> int:
        """Number of annotated heads outside their image."""
        return sum(int((~inside_).sum()) for inside_ in self._inside)

    @property
    def heads_sharing_a_pixel(self) -> int:
        """Number of training heads that share a pixel of the prepared image with an earlier one."""
        training = [self._training_heads(index) for index in range(len(self))]
        return sum(len(points) - len(one_head_per_pixel(points)) for points in training)

    def describe(self) -> list[str]:
        """Summarize the annotations for the user, one line each."""
        if not self.has_annotations:
            return [*self.describe_left_out(), f"{len(self)} images, whose annotations are not read"]
        total = sum(len(points) for points in self._heads)
        empty = sum(len(points) == 0 for points in self._heads)
        outside = "moved onto its border" if self._outside_rule is Outside.clamp else "dropped"
        sharing = "counted once in labels" if self.one_head_per_pixel else "each counted"
        return [
            *self.describe_left_out(),
            f"{len(self)} images, {total} annotated heads, {empty} images without any",
            f"{self.heads_outside} heads lie outside their image: in training {outside}, in evaluation counted",
            f"{self.heads_sharing_a_pixel} heads share a pixel with another: in training {sharing}, in evaluation "
            "counted",
        ]

    def describe_left_out(self) -> list[str]:
        """Report images that are left out and doubtful positions, one line per reason: they change what an error means.

        Empty without any.
        """
        lines = list(self.doubts)
        if self.has_masks:
            total = self.heads_masked + sum(map(len, self._heads))
            lines.append(
                f"heads count only inside the masks of the images: {self.heads_masked} of {total} annotated heads lie "
                "outside"
            )
        if self.left_out:
            total = len(self) + len(self.left_out)
            lines.append(
                f"{len(self.left_out)} of {total} images are left out, being unreadable or not annotated: "
                f"{first_names(self.left_out)}"
            )
        if self.in_no_split:
            lines.append(
                f"{len(self.in_no_split)} images are in no split of dataset.split_file: {first_names(self.in_no_split)}"
            )
        return lines


def sample_seed(*key: int) -> int:
    """Derive a seed for a random generator from a few non-negative integers; similar keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
