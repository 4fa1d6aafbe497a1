"""Facts about each dataset that are known without its files: splits, source, license, and how its folder is recognized.

To add a dataset, add a row to ``DATASETS``, a function in ``data.layouts`` that lists its files and, if its annotation
format is new, a reader in ``data.annotations``. From a package of your own, call :func:`register_dataset`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetConfig,
    FolderDatasetConfig,
    MixedConfig,
    UcfCc50Config,
)
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.extensions import BUILDERS, load_extensions

HOLDOUT = "holdout"
"""The split of training images that are held out to select the checkpoint."""
SELECTION = "selection"
"""The split of a mixed dataset that has the images of each part that select a checkpoint for that part alone."""


@dataclass(frozen=True)
class FileSet:
    """How the folder of a dataset is found and read."""

    folders: tuple[str, ...]
    """Where it may be, relative to the data root."""
    markers: tuple[str, ...]
    """A folder belongs to this dataset if it contains one of these names, in any case."""
    list_split: Callable[[Path, str, FolderDatasetConfig], list[Any]]
    """Lists the images of a split, each a ``data.listing.Listed``."""
    settings: type[FolderDatasetConfig] = FolderDatasetConfig
    """The type of config that it is read with."""
    split_order: Callable[[Path, str], Iterable[str]] | None = None
    """Names of a split in the order of the dataset's own list; None if it has no list."""
    masks: tuple[tuple[str, str], ...] = ()
    """Masks that are distributed with it: what ``dataset.mask`` calls each, and its file in the folder."""


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about a dataset."""

    title: str
    source: str
    """Where it is distributed."""
    license: str
    splits: tuple[str, ...]
    selection: str
    """The split that selects the checkpoint, as in published results."""
    unannotated: str | None = None
    """The split whose annotations are not public; None if all are public."""
    files: FileSet | None = None
    """None for images that are drawn by code."""


def _imported(module: str, function: str) -> Callable[..., Any]:
    """A function of this package that is imported when it is called: those that read files load torch."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"headcount.data.{module}"), function)(*arguments)

    return call


def _shanghaitech(part: str) -> DatasetInfo:
    parents = ("", "ShanghaiTech/", "shanghaitech/", "ShanghaiTech_Crowd_Counting_Dataset/")
    return DatasetInfo(
        title=f"ShanghaiTech part {part}",
        source="https://github.com/desenzhou/ShanghaiTechDataset",
        license="research use; Zhang et al., CVPR 2016",
        splits=("train", "test"),
        selection="test",
        files=FileSet(
            folders=tuple(f"{parent}part_{part}{ending}" for parent in parents for ending in ("", "_final")),
            markers=("train_data", "test_data"),
            list_split=_imported("layouts", "shanghaitech"),
        ),
    )


DATASETS: dict[str, DatasetInfo] = {
    "sha": _shanghaitech("A"),
    "shb": _shanghaitech("B"),
    "qnrf": DatasetInfo(
        title="UCF-QNRF",
        source="https://www.crcv.ucf.edu/data/ucf-qnrf/",
        license="research use; Idrees et al., ECCV 2018",
        splits=("train", "test"),
        selection="test",
        files=FileSet(
            folders=("UCF-QNRF_ECCV18", "UCF-QNRF", "ucf-qnrf", "qnrf"),
            markers=("train", "test"),
            list_split=_imported("layouts", "qnrf"),
        ),
    ),
    "nwpu": DatasetInfo(
        title="NWPU-Crowd",
        source="https://www.crowdbenchmark.com/nwpucrowd.html",
        license="academic, not commercial use; Wang et al., TPAMI 2020",
        splits=("train", "val", "test"),
        selection="val",
        unannotated="test",
        files=FileSet(
            folders=("NWPU-Crowd", "NWPU", "nwpu"),
            markers=("images", "images_part1"),
            list_split=_imported("layouts", "nwpu"),
            split_order=_imported("layouts", "nwpu_ids"),
        ),
    ),
    "jhu": DatasetInfo(
        title="JHU-CROWD++",
        source="http://www.crowd-counting.com/",
        license="research, not commercial use; Sindagi et al., TPAMI 2020",
        splits=("train", "val", "test"),
        selection="val",
        files=FileSet(
            folders=("jhu_crowd_v2.0", "JHU-CROWD++", "jhu"),
            markers=("train", "val", "test"),
            list_split=_imported("layouts", "jhu"),
        ),
    ),
    "ucf_cc_50": DatasetInfo(
        title="UCF_CC_50",
        source="https://www.crcv.ucf.edu/data/ucf-cc-50/",
        license="research use; Idrees et al., CVPR 2013",
        splits=("train", "test"),
        selection="test",
        files=FileSet(
            folders=("UCF_CC_50", "UCF_CC_50/UCF_CC_50", "ucf_cc_50"),
            markers=("1.jpg", "1_ann.mat"),
            list_split=_imported("layouts", "ucf_cc_50"),
            settings=UcfCc50Config,
        ),
    ),
    "mall": DatasetInfo(
        title="Mall",
        source="https://personal.ie.cuhk.edu.hk/~ccloy/downloads_mall_dataset.html",
        license="research use; Chen et al., BMVC 2012",
        splits=("train", "test"),
        selection="test",
        files=FileSet(
            folders=("mall_dataset", "Mall", "mall"),
            markers=("frames",),
            list_split=_imported("layouts", "mall"),
            masks=(("roi", "perspective_roi.mat"),),
        ),
    ),
    "custom": DatasetInfo(
        title="custom images and annotations",
        source="your own folder",
        license="your own",
        splits=("train", "val", "test"),
        selection="val",
        files=FileSet(folders=(), markers=(), list_split=_imported("custom", "list_custom"), settings=CustomConfig),
    ),
    "synthetic": DatasetInfo(
        title="crowds drawn by code",
        source="nothing to download",
        license="MIT, as this code",
        splits=("train", "val", "test"),
        selection="val",
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """Return the facts about a dataset.

    Raises:
        ConfigError: if there is no dataset of that name.
    """
    load_extensions(BUILDERS)
    if name not in DATASETS:
        raise ConfigError(f"there is no dataset {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def register_dataset(name: str, info: DatasetInfo) -> None:
    """Add a dataset from outside this package; its config is registered with ``headcount.config.register``.

    Registering the same facts again changes nothing.

    Args:
        name: ``name`` of its config.
        info: facts about it; ``info.files`` finds and lists its images.

    Raises:
        ConfigError: if the name belongs to another dataset.
    """
    if DATASETS.get(name, info) != info:
        raise ConfigError(f"dataset={name}: is already the name of {DATASETS[name].title}")
    DATASETS[name] = info


def split_names(config: DatasetConfig) -> tuple[str, ...]:
    """Return the dataset's own splits, without ``holdout``.

    Raises:
        ConfigError: if there is no dataset of that name.
        DataError: if a split file cannot be used.
    """
    if isinstance(config, MixedConfig):
        of_parts = [split_names(part) for part in config.datasets.values()]
        return (*(split for split in of_parts[0] if all(split in of_part for of_part in of_parts)), SELECTION)
    if isinstance(config, CustomConfig):
        from headcount.data.custom import custom_splits  # imports torch

        return custom_splits(config)
    return dataset_info(config.name).splits


def selection_split(config: DatasetConfig) -> str:
    """Return the split that selects the checkpoint: ``holdout`` if images are held out, else as published.

    For a mixed dataset, the split that selects in every part, or ``selection`` if these differ.

    Raises:
        ConfigError: if a custom dataset has no images to select on.
        DataError: if a split file cannot be used.
    """
    if isinstance(config, MixedConfig):
        of_parts = {selection_split(part) for part in config.datasets.values()}
        return of_parts.pop() if len(of_parts) == 1 else SELECTION
    if config.holds_out:
        return HOLDOUT
    splits, selection = split_names(config), dataset_info(config.name).selection
    if selection not in splits and "test" not in splits:
        raise ConfigError(
            f"dataset={config.name}: there are no val or test images to select a checkpoint on; add some, or hold "
            "training images out with dataset.holdout=0.1"
        )
    return selection if selection in splits else "test"


def part_split(part: DatasetConfig, split: str) -> str:
    """Return what a split of a mixed dataset is in one of its parts.

    Raises:
        ConfigError, DataError: as :func:`selection_split`.
    """
    return selection_split(part) if split == SELECTION else split


def source_split(split: str) -> str:
    """Return the dataset's own split that a split is part of: held-out images are training images."""
    return "train" if split == HOLDOUT else split


def check_split(config: DatasetConfig, split: str) -> DatasetInfo:
    """Check that a dataset has a split.

    Returns:
        The facts about the dataset.

    Raises:
        ConfigError: if it does not; names those it has.
        DataError: if a split file cannot be used, or has no images in the split.
    """
    info = dataset_info(config.name)
    allowed = [*split_names(config), *([HOLDOUT] if config.holds_out else [])]
    if split not in allowed:
        if isinstance(config, CustomConfig) and config.train is None and config.split_file and split in info.splits:
            raise DataError(
                f"split={split}: dataset.split_file={config.split_file} has no images in {split}, only in "
                f"{', '.join(allowed)}; name some in it",
                kind=DataErrorKind.split_list,
                file=Path(config.split_file),
            )
        raise ConfigError(f"split={split}: {config.name} has {', '.join(allowed)}")
    return info
