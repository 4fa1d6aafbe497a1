"""Images of several datasets as one: which part an image belongs to, and how often a part is drawn per epoch."""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.data.crowd import CrowdDataset, Key, sample_seed
from headcount.data.kinds import DataErrorKind
from headcount.data.masks import PlacedMask
from headcount.data.plausible import shared_files
from headcount.errors import DataError
from headcount.types import Sample
from headcount.wording import first_names


class MixedCrowd(CrowdDataset):
    """The same split of several datasets, one after the other; images are named ``part/name``.

    Args:
        parts: the opened datasets by their names.
        weights: how often the images of each part are drawn per epoch; None draws every image once.
        one_head_per_pixel: see ``DatasetConfig``.
        seed: of the augmentation, and of what a fraction of a weight draws.
    """

    def __init__(
        self,
        parts: Mapping[str, CrowdDataset],
        *,
        weights: Sequence[float] | None = None,
        one_head_per_pixel: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__([], _no_image, [], source_sizes=[], sizes=[], one_head_per_pixel=one_head_per_pixel, seed=seed)
        self.members = dict(parts)
        self.has_annotations = all(dataset.has_annotations for dataset in parts.values())
        self._weights = [1.0] * len(parts) if weights is None else list(weights)
        self._starts = [0, *itertools.accumulate(map(len, parts.values()))]
        for part, dataset in parts.items():
            self.names += [f"{part}/{name}" for name in dataset.names]
            self.left_out += [f"{part}/{name}" for name in dataset.left_out]
            self.in_no_split += [f"{part}/{name}" for name in dataset.in_no_split]
            self.sizes += dataset.sizes
            self.source_sizes += dataset.source_sizes
            self.doubts += [f"{part}: {doubt}" for doubt in dataset.doubts]

    def __getitem__(self, key: Key) -> Sample:
        if isinstance(key, int):
            part, index = self._find(key)
            sample = self.members[part][index]
        else:
            epoch, drawn = key
            part, index = self._find(drawn % len(self))
            sample = self.members[part].training_sample(index, sample_seed(self._seed, epoch, drawn))
        return dataclasses.replace(sample, name=f"{part}/{sample.name}")

    def parts(self) -> dict[str, range]:
        """Return the indices of each part's images."""
        return {
            part: range(first, end)
            for part, (first, end) in zip(self.members, itertools.pairwise(self._starts), strict=True)
        }

    @property
    def images_per_epoch(self) -> int:
        """Number of images that are drawn per epoch, repetitions included."""
        return sum(math.floor(weight) * len(images) + rest for images, weight, rest in self._shares())

    def drawn(self, epoch: int) -> list[int]:
        """Return what is drawn in an epoch; every repetition of an image has an index of its own.

        Image k is drawn as k, k + n, k + 2n, ..., where n is the number of images: its crops differ.
        """
        found: list[int] = []
        for number, (images, weight, rest) in enumerate(self._shares()):
            whole = math.floor(weight)
            found += [repetition * len(self) + k for repetition in range(whole) for k in images]
            if rest:
                generator = torch.Generator().manual_seed(sample_seed(self._seed, epoch, number))
                chosen = torch.randperm(len(images), generator=generator)[:rest].sort().values.tolist()
                found += [whole * len(self) + images[k] for k in chosen]
        return found

    def _shares(self) -> list[tuple[range, float, int]]:
        """Indices and weight of each part, and the number of images that the fraction of the weight draws.

        Every part is drawn at least once per epoch.
        """
        shares = []
        for images, weight in zip(self.parts().values(), self._weights, strict=True):
            rest = round((weight - math.floor(weight)) * len(images))
            shares.append((images, weight, rest if rest or weight >= 1 else 1))
        return shares

    @property
    def heads_outside(self) -> int:
        """Number of annotated heads outside their image, over all parts."""
        return sum(dataset.heads_outside for dataset in self.members.values())

    @property
    def heads_sharing_a_pixel(self) -> int:
        """Number of training heads that share a pixel with an earlier one, over all parts."""
        return sum(dataset.heads_sharing_a_pixel for dataset in self.members.values())

    @property
    def has_masks(self) -> bool:
        """Whether the images of any part have masks; those of the others count everywhere."""
        return any(dataset.has_masks for dataset in self.members.values())

    @property
    def heads_masked(self) -> int:
        """Number of annotated heads outside their image's mask, over all parts."""
        return sum(dataset.heads_masked for dataset in self.members.values())

    def mask(self, index: int) -> PlacedMask | None:
        """Return the mask of a whole prepared image; None if heads count everywhere in it."""
        part, own = self._find(index)
        return self.members[part].mask(own)

    def count(self, index: int) -> float:
        """Return the true count of evaluation."""
        part, own = self._find(index)
        return self.members[part].count(own)

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an image."""
        part, own = self._find(index)
        return self.members[part].digest(own)

    def points(self, index: int) -> Float[Tensor, "n 2"]:
        """Return the heads that training counts, before augmentation."""
        part, own = self._find(index)
        return self.members[part].points(own)

    def training_sample(self, index: int, seed: int) -> Sample:
        """Return the augmented image ``index``, named as in its part."""
        part, own = self._find(index)
        return self.members[part].training_sample(own, seed)

    def describe(self) -> list[str]:
        """Summarize the annotations of each part."""
        return [f"{part}: {line}" for part, dataset in self.members.items() for line in dataset.describe()]

    def describe_left_out(self) -> list[str]:
        """Report the images of each part that are left out, and doubtful positions."""
        return [f"{part}: {line}" for part, dataset in self.members.items() for line in dataset.describe_left_out()]

    def _find(self, index: int) -> tuple[str, int]:
        """The part of an image, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._starts, index) - 1
        return list(self.members)[number], index - self._starts[number]


def refuse_shared(train: CrowdDataset, selection: CrowdDataset) -> None:
    """Refuse image files of one part that another part selects on; within a part, its own splits are checked.

    Raises:
        DataError: names them.
    """
    files = {
        split: [source for member in images.members.values() for source in member.sources]
        for split, images in (("train", train), ("selection", selection))
    }
    if shared := shared_files(files):
        raise DataError(
            f"dataset=mixed: {len(shared)} image files are trained on in one part and select in another: "
            f"{first_names(shared)}; remove them from one part",
            kind=DataErrorKind.ambiguous,
        )


def _no_image(index: int) -> Tensor:
    raise IndexError(index)
