"""Which images a run reads, and how they are resized, selected and split."""

import os
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from headcount.config.fields import number, range_errors

MAX_DRAWN_GIB = 16
"""Upper limit of the memory for the images of one split of generated crowds, in GiB."""
PART_NAME = r"[A-Za-z0-9_-]+"
"""The names that a part of a mixed dataset may have: they are part of records and of image names."""


class Outside(Enum):
    """What training does with an annotation outside its image: move it onto the border, or drop it."""

    clamp = 1
    drop = 2


class Cache(Enum):
    """What is kept between epochs: nothing, or the decoded pixels of all images."""

    none = 1
    decoded = 2


class PointsFormat(Enum):
    """File format of the head positions of a custom dataset; ``auto`` is decided by the file's extension."""

    auto = 1
    csv = 2
    json = 3
    npy = 4
    mat = 5
    xml = 6


class Boxes(Enum):
    """What boxes in a file of an annotation tool mean: nothing that is counted, or a head at the center of each."""

    refuse = 1
    centers = 2


@dataclass
class DatasetChoice:
    """What can be evaluated: the dataset that the counter was trained on, or any dataset."""


@dataclass
class TrainedDatasetConfig(DatasetChoice):
    """The dataset that the counter was trained on; only where its files are now can be set."""

    root: str | None = None
    """Folder of the dataset now; None is that of the training."""
    cache_dir: str | None = None
    """Folder for resized images; None is the default of this machine."""
    cache: Cache | None = None
    """As ``FolderDatasetConfig.cache``; None is that of the training."""
    train: str | None = None
    """Folder of a custom dataset's training images now, as those below; None is that of the training."""
    val: str | None = None
    """Folder of its validation images now."""
    test: str | None = None
    """Folder of its test images now."""
    points: str | None = None
    """Folder or file of a custom dataset's head positions now; None is that of the training."""
    split_file: str | None = None
    """File with the split of each image of a custom dataset now; None is that of the training."""
    mask: str | None = None
    """File or folder of the masks now; None is that of the training."""


@dataclass
class DatasetConfig(DatasetChoice):
    """Fields that every dataset has."""

    name: str = MISSING
    """Name of the dataset."""
    holdout: float = number(0.0, 0, 0.9)
    """Fraction of the training images held out to select the checkpoint; 0 selects on the dataset's own split."""
    cv_folds: int | None = number(None, 2, 1000)
    """Number of folds of the training images in a cross-validation, of which one is held out to select the checkpoint;
    ``cv=N`` sets it. None holds out none."""
    cv_fold: int | None = number(None, 1, 1000)
    """The fold that is held out, counted from 1; None without a cross-validation."""
    cv_seed: int = number(1, 0, 2**32 - 1)
    """Seed of the folds; ``cv=N`` uses that of the training."""
    outside: Outside = Outside.clamp
    """Training annotations outside the image are moved onto its border (``clamp``) or dropped (``drop``); evaluation
    always counts all annotations."""
    one_head_per_pixel: bool = False
    """Count the heads of one pixel as one in the block labels, as the released code does; points keep all of them."""
    train_fraction: float = number(1.0, 1e-4, 1)
    """Fraction of the training images that is used; a smaller fraction is a subset of a larger one, for any seed."""
    max_train_images: int | None = number(None, 1, 1_000_000_000)
    """Use only the first N training images; None uses all."""
    max_eval_images: int | None = number(None, 1, 1_000_000_000)
    """Evaluate only the first N images; None evaluates all."""

    @property
    def holds_out(self) -> bool:
        """Whether some training images are held out to select the checkpoint."""
        return self.holdout > 0 or self.cv_folds is not None


@dataclass
class FolderDatasetConfig(DatasetConfig):
    """A dataset read from its folder as distributed; images are resized once into a cache."""

    root: str | None = None
    """Folder of the dataset; None searches below ``data_root``."""
    cache_dir: str = "~/.cache/headcount"
    """Folder for resized images; must not be inside the dataset's own folder."""
    min_side: int = number(448, 1, 8192)
    """Images are enlarged until the short side has at least this many pixels; a multiple of ``side_multiple``."""
    max_side: int | None = number(None, 1, 65_500)
    """Images are shrunk until the long side has at most this many pixels; None sets no limit."""
    side_multiple: int = number(32, 1, 4096)
    """Both sides are resized to a multiple of this many pixels."""
    exif_orientation: bool = False
    """Turn images upright by their EXIF orientation, as annotation tools show them; False reads them as stored, as the
    annotations of published datasets expect."""
    cache: Cache = Cache.none
    """``decoded`` stores the uncompressed pixels of all images in ``cache_dir`` and reads only the crop; ``none``
    decodes each image again."""
    skip_bad: bool = False
    """Skip images that cannot be read or have no usable annotation, and report them; False stops the run."""
    mask: str | None = None
    """Where heads count, in training and evaluation: one file for all images, a folder with a file per image, or a csv
    table with polygons; ``roi`` is the one that Mall is distributed with. ``none`` counts everywhere; None does so too,
    except for custom datasets with a folder ``masks`` or a column ``mask``."""


@dataclass
class UcfCc50Config(FolderDatasetConfig):
    """UCF_CC_50, evaluated by cross-validation in five folds because it has no split of its own."""

    fold: int = number(1, 1, 5)
    """Fold k tests on images 10k - 9 to 10k and trains on the others."""


@dataclass
class CustomConfig(FolderDatasetConfig):
    """Your own images and head positions, in one folder or one per split."""

    name: str = "custom"
    exif_orientation: bool = True
    """As ``FolderDatasetConfig.exif_orientation``; annotation tools show images upright."""
    train: str | None = None
    """Folder of the training images; None splits ``root`` by ``split_file`` or by the fractions below."""
    val: str | None = None
    """Folder of the images that select the checkpoint; None has none."""
    test: str | None = None
    """Folder of the test images, which never select; None has none."""
    points: str | None = None
    """Folder or file of the head positions; None searches beside the images and in sibling folders."""
    points_format: PointsFormat = PointsFormat.auto
    """File format of the head positions; ``auto`` is decided by the file's extension."""
    label: str | None = None
    """Label of the heads in files of annotation tools; None accepts files with a single label."""
    boxes: Boxes = Boxes.refuse
    """What boxes in files of annotation tools mean: an error (``refuse``), or a head at the center of each
    (``centers``)."""
    split_file: str | None = None
    """A csv or json file with the split of each image; None splits by the fractions below."""
    val_fraction: float = number(0.1, 0, 0.9)
    """Fraction of the images in ``root`` that selects the checkpoint, chosen by a hash of the image names."""
    test_fraction: float = number(0.2, 0, 0.9)
    """Fraction of the images in ``root`` used only for testing, chosen in the same way."""


@dataclass
class SyntheticConfig(DatasetConfig):
    """Crowds drawn by code; nothing is downloaded or stored."""

    name: str = "synthetic"
    train_images: int = number(160, 1, 100_000)
    """Number of training images."""
    val_images: int = number(24, 1, 100_000)
    """Number of images that select the checkpoint."""
    test_images: int = number(48, 1, 100_000)
    """Number of test images, which never select."""
    width: int = number(384, 32, 8192)
    """Width of an image, in pixels."""
    height: int = number(288, 32, 8192)
    """Height of an image, in pixels."""
    max_people: int = number(150, 1, 100_000)
    """Maximum number of people per image."""
    seed: int = number(0, 0, 2**32 - 1)
    """Seed of the drawn crowds; independent of the training seed."""


@dataclass
class MixedConfig(DatasetConfig):
    """Several datasets trained on together.

    A setting that a part has as well, such as ``holdout`` or ``cache``, applies to every part without its own value.
    """

    name: str = "mixed"
    parts: list[Any] = field(default_factory=list)
    """The datasets, such as [sha,shb]. ``{name: shb, root: FOLDER}`` is a part with settings of its own;
    ``{name: custom, as: plaza, root: FOLDER}`` also gives it a name, which distinguishes parts of one kind."""
    weights: list[float] | None = number(None, 0.001, 1000)
    """How often the images of each part are drawn per epoch, such as [2,1]; a fraction draws other images each epoch.
    None draws every image once."""
    bins_from: str | None = None
    """Name of the part whose training blocks give the bins' representative counts; None uses those of all parts."""
    cache_dir: str = FolderDatasetConfig.cache_dir
    """As ``FolderDatasetConfig.cache_dir``."""
    cache: Cache = Cache.none
    """As ``FolderDatasetConfig.cache``."""
    skip_bad: bool = False
    """As ``FolderDatasetConfig.skip_bad``."""
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    """All settings of each part, by its name; filled in from ``parts``, and recorded."""


def errors(config: DatasetChoice) -> list[str]:
    """Find settings of the dataset that contradict each other; one message each."""
    found = []
    if isinstance(config, MixedConfig):
        found += _mixed_errors(config)
    if isinstance(config, DatasetConfig):
        found += _fold_errors(config)
    if isinstance(config, FolderDatasetConfig):
        found += _size_errors(config)
    if isinstance(config, CustomConfig):
        found += _custom_errors(config)
    if isinstance(config, SyntheticConfig):
        found += _memory_errors(config)
    return found


def _fold_errors(config: DatasetConfig) -> list[str]:
    """A fold that does not exist, or two ways to hold out images at once."""
    if config.cv_folds is None:
        given = config.cv_fold is not None
        return [f"dataset.cv_fold={config.cv_fold}: needs dataset.cv_folds, the number of folds"] if given else []
    if config.holdout > 0:
        return [
            f"dataset.holdout={config.holdout:g}: a cross-validation (cv={config.cv_folds}) holds out a fold of the "
            "training images by itself; leave one of them out"
        ]
    if config.cv_fold is None or config.cv_fold > config.cv_folds:
        fold = "null" if config.cv_fold is None else config.cv_fold
        return [f"dataset.cv_fold={fold}: must be from 1 to dataset.cv_folds={config.cv_folds}; cv=N runs all folds"]
    return []


def _memory_errors(config: SyntheticConfig) -> list[str]:
    """Drawn images are kept in memory."""
    split = max(("train_images", "val_images", "test_images"), key=lambda key: int(getattr(config, key)))
    images = getattr(config, split)
    gib = images * config.width * config.height * 3 / 2**30
    if gib <= MAX_DRAWN_GIB:
        return []
    return [
        f"dataset.{split}={images} dataset.width={config.width} dataset.height={config.height}: the drawn images take "
        f"{gib:.0f} GiB of memory; at most {MAX_DRAWN_GIB} are allowed"
    ]


def _size_errors(config: FolderDatasetConfig) -> list[str]:
    """Limits of the one-time resize that contradict each other."""
    found = []
    for key in ("min_side", "max_side"):
        side = getattr(config, key)
        if side is not None and side % config.side_multiple:
            found.append(f"dataset.{key}={side}: must be a multiple of dataset.side_multiple={config.side_multiple}")
    if config.max_side is not None and config.max_side < config.min_side:
        found.append(f"dataset.max_side={config.max_side}: must be at least dataset.min_side={config.min_side}")
    return found


def _custom_errors(config: CustomConfig) -> list[str]:
    """Folders and fractions of a custom dataset that contradict each other."""
    folders = {"dataset.train": config.train, "dataset.val": config.val, "dataset.test": config.test}
    given = {key: folder for key, folder in folders.items() if folder is not None}
    fractions = f"dataset.val_fraction={config.val_fraction:g} dataset.test_fraction={config.test_fraction:g}"
    found = []
    if given and config.train is None:
        found.append(f"{next(iter(given))}: needs dataset.train as well")
    if given and config.split_file is not None:
        found.append(f"dataset.split_file={config.split_file}: splits one folder; leave out {', '.join(given)}")
    if len({os.path.abspath(folder) for folder in given.values()}) < len(given):
        found.append(f"{', '.join(given)}: two of these are one folder, whose images would be trained on and tested")
    if list(given) == ["dataset.train"] and not config.holds_out:
        found.append("dataset.train: add dataset.val or dataset.test to select on, or dataset.holdout=0.1")
    if not given and config.split_file is None:
        if config.val_fraction + config.test_fraction >= 1:
            found.append(f"{fractions}: leave no images to train on; their sum must be below 1")
        if config.val_fraction + config.test_fraction == 0 and not config.holds_out:
            found.append(f"{fractions}: leave no images to select on; raise one, or add dataset.holdout=0.1")
    return found


def _mixed_errors(config: MixedConfig) -> list[str]:
    """Parts that are missing or invalid, and settings that do not fit them."""
    names = ", ".join(config.datasets)
    if not config.datasets:
        return ["dataset=mixed: has no parts; name them, as in 'dataset.parts=[sha,shb]'"]
    found = []
    for name, part in config.datasets.items():
        if not re.fullmatch(PART_NAME, name):
            found.append(f"dataset.parts: the name {name!r} may only hold letters, digits, '_' and '-'")
        if isinstance(part, MixedConfig):
            found.append(f"dataset.parts, part {name}: a mixed dataset cannot be a part; name its parts instead")
            continue
        problems = range_errors(part, "dataset.") or errors(part)
        if part.one_head_per_pixel != config.one_head_per_pixel:
            problems.append("dataset.one_head_per_pixel: is set for all parts together, not for one")
        found += [f"dataset.parts, part {name}: {problem}" for problem in problems]
    if config.weights is not None and len(config.weights) != len(config.datasets):
        found.append(
            f"dataset.weights={config.weights}: has {len(config.weights)} numbers for {len(config.datasets)} parts; "
            f"give one for each of {names}"
        )
    if config.bins_from is not None and config.bins_from not in config.datasets:
        found.append(f"dataset.bins_from={config.bins_from}: is no part; allowed are {names}")
    return found
