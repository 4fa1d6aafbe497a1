"""Which images a run reads, and how they are resized, selected and split."""

import os
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from headcount.config.fields import number


class Outside(Enum):
    """What training does with an annotation outside its image."""

    clamp = 1
    drop = 2


class Cache(Enum):
    """What is kept of the images between epochs."""

    none = 1
    decoded = 2


class PointsFormat(Enum):
    """How a folder of one's own keeps its head positions; ``auto`` goes by the file's ending."""

    auto = 1
    csv = 2
    json = 3
    npy = 4
    mat = 5


@dataclass
class DatasetConfig:
    """Fields that every dataset has."""

    name: str = MISSING
    """Name in the table of datasets."""
    holdout: float = number(0.0, 0, 0.9)
    """Share of the training images held out to select the checkpoint; 0 selects on the dataset's own split."""
    outside: Outside = Outside.clamp
    """Training annotations outside the image: moved onto its border, or dropped. Evaluation counts all."""
    one_head_per_pixel: bool = False
    """Count the heads of one pixel once in the labels, as the released code does; points keep all of them."""
    train_fraction: float = number(1.0, 1e-4, 1)
    """Share of the training images that is used; a smaller share is part of a larger one, whatever the seed."""
    max_train_images: int | None = number(None, 1)
    """Use the first so many training images; None for all."""
    max_eval_images: int | None = number(None, 1)
    """Evaluate the first so many images; None for all."""


@dataclass
class FolderDatasetConfig(DatasetConfig):
    """A dataset read from its folder as distributed, resized once into a cache."""

    root: str | None = None
    """The dataset's folder; None looks below ``data_root``."""
    cache_dir: str = "~/.cache/headcount"
    """Where resized images go; never the dataset's own folder."""
    min_side: int = number(448, 1)
    """Images are enlarged until their short side has this many pixels."""
    max_side: int | None = number(None, 1)
    """Images are shrunk until their long side has at most this many pixels; None for no limit."""
    side_multiple: int = number(32, 1)
    """Both sides are cut to a multiple of this many pixels."""
    cache: Cache = Cache.none
    """``decoded`` keeps the pixels of all images uncompressed in ``cache_dir``, and reads only the crop."""
    skip_bad: bool = False
    """Leave out images that cannot be read or have no usable annotation, and say so; else they stop the run."""


@dataclass
class UcfCc50Config(FolderDatasetConfig):
    """UCF_CC_50, which has no split of its own: five folds."""

    fold: int = number(1, 1, 5)
    """Images 10k - 9 to 10k are tested in fold k; the others train."""


@dataclass
class CustomConfig(FolderDatasetConfig):
    """Images and points of one's own, in one folder or three."""

    name: str = "custom"
    train: str | None = None
    """Folder of the training images; None takes ``root``, split by ``split_file`` or by fractions."""
    val: str | None = None
    """Folder of the images that select the checkpoint."""
    test: str | None = None
    """Folder of the images nobody selects on."""
    points: str | None = None
    """Folder or single file of the head positions; None looks beside the images and in sibling folders."""
    points_format: PointsFormat = PointsFormat.auto
    """How the head positions are kept."""
    split_file: str | None = None
    """A csv or json file that gives each image's split; None splits by the fractions below."""
    val_fraction: float = number(0.1, 0, 0.9)
    """Share of one folder's images that selects, chosen by a hash of their names."""
    test_fraction: float = number(0.2, 0, 0.9)
    """Share of one folder's images that is only tested, chosen likewise."""


@dataclass
class SyntheticConfig(DatasetConfig):
    """Crowds drawn by code; nothing is downloaded or stored."""

    name: str = "synthetic"
    train_images: int = number(160, 1)
    """Number of training images."""
    val_images: int = number(24, 1)
    """Number of images that select the checkpoint."""
    test_images: int = number(48, 1)
    """Number of images nobody selects on."""
    width: int = number(384, 32)
    """Width of an image, pixels."""
    height: int = number(288, 32)
    """Height of an image, pixels."""
    max_people: int = number(150, 1)
    """Most people in an image."""
    seed: int = number(0, 0)
    """Another seed draws other crowds; independent of the training seed."""


def errors(config: DatasetConfig) -> list[str]:
    """Settings of a dataset that contradict each other."""
    errors = _size_errors(config) if isinstance(config, FolderDatasetConfig) else []
    return errors + (_custom_errors(config) if isinstance(config, CustomConfig) else [])


def _size_errors(config: FolderDatasetConfig) -> list[str]:
    """Limits of the one-time resize that contradict each other."""
    errors = []
    for key in ("min_side", "max_side"):
        side = getattr(config, key)
        if side is not None and side % config.side_multiple:
            errors.append(f"dataset.{key}={side}: must be a multiple of dataset.side_multiple={config.side_multiple}")
    if config.max_side is not None and config.max_side < config.min_side:
        errors.append(f"dataset.max_side={config.max_side}: must be at least dataset.min_side={config.min_side}")
    return errors


def _custom_errors(config: CustomConfig) -> list[str]:
    """Settings of a dataset of one's own that contradict each other."""
    given = {f"dataset.{k}": folder for k in ("train", "val", "test") if (folder := getattr(config, k)) is not None}
    shares = f"dataset.val_fraction={config.val_fraction:g} dataset.test_fraction={config.test_fraction:g}"
    errors = []
    if given and config.train is None:
        errors.append(f"{next(iter(given))}: needs dataset.train as well")
    if given and config.split_file is not None:
        errors.append(f"dataset.split_file={config.split_file}: splits one folder; leave out {', '.join(given)}")
    if len({os.path.abspath(folder) for folder in given.values()}) < len(given):
        errors.append(f"{', '.join(given)}: two of these are one folder, whose images would be trained on and tested")
    if list(given) == ["dataset.train"] and config.holdout == 0:
        errors.append("dataset.train: add dataset.val or dataset.test to select on, or dataset.holdout=0.1")
    if not given and config.split_file is None:
        if config.val_fraction + config.test_fraction >= 1:
            errors.append(f"{shares}: leave no images to train on; their sum must be below 1")
        if config.val_fraction + config.test_fraction + config.holdout == 0:
            errors.append(f"{shares}: leave no images to select on; raise one, or add dataset.holdout=0.1")
    return errors
