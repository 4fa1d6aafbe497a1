"""Which images a counter was trained on, by their content, under whatever name and in whatever folder they are now."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headcount.config import CustomConfig, DatasetConfig, FolderDatasetConfig, MixedConfig, SyntheticConfig, TrainConfig
from headcount.data.crowd import CrowdDataset
from headcount.data.locate import LocatedDataset, locate
from headcount.data.open import list_split, open_split
from headcount.errors import CheckpointError, HeadcountError

KEY = "trained_on"
"""Of a checkpoint: the shortened digests of its training images; early checkpoints do not hold them."""
MAX_RECORDED = 20_000
"""Of more images, none is recorded: reading all their files would delay the start by minutes."""
_CHARACTERS = 16


def shortened(digest: str) -> str:
    """As much of a digest of :meth:`CrowdDataset.digest` as is stored: 8 bytes distinguish millions of images."""
    return digest[:_CHARACTERS]


def training_digests(dataset: CrowdDataset) -> list[str]:
    """What a checkpoint records of the images of its training, sorted."""
    return sorted({shortened(dataset.digest(index)) for index in range(len(dataset))})


def recorded_digests(content: Mapping[str, Any]) -> list[str] | None:
    """What a checkpoint records of the images of its training; None for an early one.

    Raises:
        CheckpointError: if the record is damaged.
    """
    recorded = content.get(KEY)
    if recorded is not None and not (isinstance(recorded, list) and all(isinstance(one, str) for one in recorded)):
        raise CheckpointError(f"the checkpoint is damaged: its {KEY!r} is not a list of digests")
    return recorded


@dataclass(frozen=True)
class TrainingImages:
    """The images of a training, as far as they are known."""

    digests: frozenset[str]
    """Shortened digests."""
    unknown: tuple[str, ...] = ()
    """Names of the datasets whose images could not be found."""

    def among(self, dataset: CrowdDataset) -> list[int]:
        """The indices of the images of a dataset that are among them."""
        return [index for index in range(len(dataset)) if shortened(dataset.digest(index)) in self.digests]


def find_training_images(content: Mapping[str, Any], trained: TrainConfig, located: LocatedDataset) -> TrainingImages:
    """The training images that a checkpoint records; of an early checkpoint, those in the folders of its training.

    Args:
        content: of the checkpoint.
        trained: its settings.
        located: the images to compare with; where they are the same published dataset, its folder is used.

    Raises:
        CheckpointError: if the record is damaged.
    """
    if (recorded := recorded_digests(content)) is not None:
        return TrainingImages(frozenset(map(shortened, recorded)))
    digests: set[str] = set()
    unknown = []
    others = dataset_parts(located.config)
    for part in dataset_parts(located.config if located.own else trained.dataset):
        # Drawn images are never files.
        if not any(isinstance(part, SyntheticConfig) == isinstance(other, SyntheticConfig) for other in others):
            continue
        try:
            digests |= _listed_digests(part, trained, located)
        except (HeadcountError, OSError):
            unknown.append(part.name)
    return TrainingImages(frozenset(digests), tuple(unknown))


def dataset_parts(dataset: DatasetConfig) -> list[DatasetConfig]:
    """The parts of a mixed dataset, or a single one alone."""
    return list(dataset.datasets.values()) if isinstance(dataset, MixedConfig) else [dataset]


def _listed_digests(part: DatasetConfig, trained: TrainConfig, located: LocatedDataset) -> set[str]:
    """Shortened digests of the training images of a dataset; they are not prepared.

    Raises:
        HeadcountError, OSError: if they cannot be found or read.
    """
    if isinstance(part, SyntheticConfig):
        return set(training_digests(open_split(part, "train")))
    if located.own:
        data_root = located.data_root
    else:
        part, data_root = _placed(part, trained, located)
    digests = set()
    for item in list_split(part, "train", data_root=data_root)[1]:
        if item.image.is_file():  # others were left out by dataset.skip_bad
            with item.image.open("rb") as file:
                digests.add(shortened(hashlib.file_digest(file, "sha256").hexdigest()))
    return digests


def _placed(part: DatasetConfig, trained: TrainConfig, located: LocatedDataset) -> tuple[DatasetConfig, str | None]:
    """A dataset of the training where its files are now, and the folder of all datasets.

    Raises:
        HeadcountError: if there is no place to look for it.
    """
    if not isinstance(part, CustomConfig):  # published datasets are the same in every folder
        for other in dataset_parts(located.config):
            if isinstance(other, FolderDatasetConfig) and other.name == part.name and other.root:
                return dataclasses.replace(part, root=other.root), located.data_root  # type: ignore[call-arg]
    there = locate(part, trained_root=located.data_root or trained.data_root)
    return there.config, there.data_root
