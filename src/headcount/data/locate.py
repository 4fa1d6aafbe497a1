"""Where the files of a dataset are now: the only module that combines settings, the data root and the environment.

A counter may be evaluated on another machine than it was trained on, so the folders in its checkpoint are only one of
the places to look.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetChoice,
    DatasetConfig,
    FolderDatasetConfig,
    MixedConfig,
    TrainedDatasetConfig,
)
from headcount.data.catalogue import FileSet, dataset_info
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.files import describe_folder

DATA_ROOT_VARIABLE = "HEADCOUNT_DATA"
"""Environment variable with the folder of all datasets."""
# Settings that say which custom dataset is meant.
_OWN_FOLDERS = ("root", "train", "val", "test")
# Settings of a custom dataset that name files or folders, which may lie below its root.
_OWN_FILES = ("train", "val", "test", "points", "split_file", "mask")


@dataclass(frozen=True)
class LocatedDataset:
    """A dataset to count images of, and where its files are now."""

    config: DatasetConfig
    """A copy that may be changed; neither the checkpoint's nor the typed settings."""
    data_root: str | None
    """Folder of all datasets, for :func:`headcount.data.open.open_split`; None if none is known."""
    own: bool
    """Whether it is the dataset that the counter was trained on, read by the settings of its checkpoint."""


def default_data_root() -> str | None:
    """Return the folder of all datasets from the environment variable ``HEADCOUNT_DATA``; None if it is not set."""
    return os.environ.get(DATA_ROOT_VARIABLE) or None


def locate(
    trained: DatasetConfig,
    *,
    typed: DatasetChoice | None = None,
    overrides: Sequence[str] | None = None,
    data_root: str | None = None,
    trained_root: str | None = None,
) -> LocatedDataset:
    """Find out which dataset to count and where its files are now.

    Args:
        trained: the dataset in the checkpoint.
        typed: the dataset that the user typed; None is the one the counter was trained on, and so is a
            ``TrainedDatasetConfig``, which may say where its files are now.
        overrides: the user's settings, such as ``dataset.max_side=1024``. If given and ``typed`` is the dataset of the
            training, it is read by the settings of the checkpoint except for these. None reads ``typed`` as it is.
        data_root: folder of all datasets that the user typed. Without ``typed``, a custom dataset is looked for there.
        trained_root: folder of all datasets that was set for the training.

    Returns:
        New values; no argument is changed.

    Raises:
        ConfigError: if a place is typed that the dataset of the training does not have.
        DataError: if the folder of the training no longer exists and there is no other place to look.
    """
    if typed is None or isinstance(typed, TrainedDatasetConfig):
        config = _placed(_moved(trained, data_root), typed or TrainedDatasetConfig())
        located = LocatedDataset(config, _data_root(data_root, trained_root, own=True), own=True)
        _check_still_known(trained, located)
        return located
    assert isinstance(typed, DatasetConfig)
    if overrides is not None and _is_own(trained, typed, overrides):
        keys = [key for key in _dataset_keys(overrides) if hasattr(typed, key)]
        config = trained if isinstance(trained, CustomConfig) else _moved(trained, data_root)
        config = dataclasses.replace(config, **{key: getattr(typed, key) for key in keys})
        return LocatedDataset(config, _data_root(data_root, trained_root, own=True), own=True)
    return LocatedDataset(dataclasses.replace(typed), _data_root(data_root, trained_root, own=False), own=False)


@contextmanager
def naming_part(name: str) -> Iterator[None]:
    """Context for work on one part of a mixed dataset, whose name is added to the errors about settings and data."""
    try:
        yield
    except DataError as error:
        raise DataError(f"part {name}: {error}", kind=error.kind, file=error.file) from error
    except ConfigError as error:
        raise ConfigError(f"part {name}: {error}") from error


def dataset_folder(config: FolderDatasetConfig, split: str, *, data_root: str | None) -> Path:
    """Find the folder of a dataset: ``config.root``, or below ``data_root`` or the environment's folder.

    Args:
        split: the dataset's own split; a custom dataset may have a folder for each.

    Raises:
        ConfigError: if no folder is set.
        DataError: if the dataset is in none of the places; lists them and says where it is distributed.
    """
    if isinstance(config, CustomConfig):
        return custom_folder(config, split)
    info = dataset_info(config.name)
    assert isinstance(info.files, FileSet)
    where = f"{info.title} is distributed at {info.source} ({info.license})"
    base = config.root or data_root or default_data_root()
    if not base:
        raise ConfigError(
            f"dataset={config.name}: no folder given; set dataset.root, data_root or the environment variable "
            f"{DATA_ROOT_VARIABLE}. {where}"
        )
    root = Path(base).expanduser()
    searched = [root / folder for folder in info.files.folders]
    if config.root:
        searched.insert(0, root)
    for folder in searched:
        if folder.is_dir() and any(path.name.lower() in info.files.markers for path in folder.iterdir()):
            return folder
    lines = "\n".join(f"  {folder}" for folder in searched)
    raise DataError(
        f"dataset={config.name}: found no folder with {' or '.join(info.files.markers)} in it; {describe_folder(root)}."
        f" Searched:\n{lines}\n{where}",
        kind=DataErrorKind.missing,
        file=root,
    )


def check_folders(config: DatasetConfig, *, data_root: str | None) -> None:
    """Check that the folders which a training with ``config`` reads exist; it neither opens a file nor loads torch.

    Raises:
        ConfigError, DataError: as :func:`dataset_folder`.
    """
    if isinstance(config, MixedConfig):
        for name, part in config.datasets.items():
            with naming_part(name):
                check_folders(part, data_root=data_root)
    if not isinstance(config, FolderDatasetConfig):
        return
    splits = ["train"]
    if isinstance(config, CustomConfig) and config.train is not None and not config.holds_out:
        splits.append("test" if config.val is None else "val")  # selects the checkpoint
    for split in splits:
        dataset_folder(config, split, data_root=data_root)


def custom_folder(config: CustomConfig, split: str) -> Path:
    """Return the folder with the images of a split.

    Raises:
        ConfigError: if none is set.
        DataError: if it does not exist.
    """
    key = "root" if config.train is None else split
    folder = config.root if config.train is None else getattr(config, split)
    if folder is None:
        raise ConfigError(
            "dataset=custom: no folder given; set dataset.root=FOLDER, or dataset.train=FOLDER and dataset.val=FOLDER"
        )
    path = Path(folder).expanduser() if key == "root" else resolve_below(folder, config.root)
    if not path.is_dir():
        raise DataError(
            f"dataset.{key}={folder}: there is no folder {path}; {describe_folder(path.parent)}",
            kind=DataErrorKind.missing,
            file=path,
        )
    return path


def resolve_below(path: str, root: str | None) -> Path:
    """Resolve a path below ``root`` or, if only that exists, relative to the working directory."""
    given = Path(path).expanduser()
    below = Path(root).expanduser() / given if root is not None else given
    return below if below.exists() or not given.exists() else given


def _data_root(typed: str | None, trained: str | None, *, own: bool) -> str | None:
    """Return the folder of all datasets.

    In this order: what is typed now; for the dataset of the training what was set then, if it still exists; the
    environment variable, which did not count in a training with a folder set; what was set for the training.
    """
    if typed:
        return typed
    if own and trained and Path(trained).expanduser().is_dir():
        return trained
    return default_data_root() or trained


def _moved(trained: DatasetConfig, data_root: str | None) -> DatasetConfig:
    """Return a copy without a folder that no longer applies: ``data_root`` is typed now, or the folder is gone."""
    if isinstance(trained, CustomConfig):
        # A custom dataset is not in a folder of datasets, so a typed data root is the folder of its images.
        return _in_other_root(trained, data_root) if data_root else dataclasses.replace(trained)
    if isinstance(trained, MixedConfig):
        return _with_parts(trained, lambda part: part if isinstance(part, CustomConfig) else _moved(part, data_root))
    if not isinstance(trained, FolderDatasetConfig) or trained.root is None:
        return dataclasses.replace(trained)
    keep = not data_root and Path(trained.root).expanduser().is_dir()
    return dataclasses.replace(trained, root=trained.root if keep else None)


def _with_parts(mixed: MixedConfig, change: Callable[[DatasetConfig], DatasetConfig]) -> MixedConfig:
    """Return a copy with a change to every part."""
    return dataclasses.replace(mixed, datasets={name: change(part) for name, part in mixed.datasets.items()})


def _placed(trained: DatasetConfig, typed: TrainedDatasetConfig) -> DatasetConfig:
    """Return a copy with the places that were typed.

    Raises:
        ConfigError: if the dataset has no such setting.
    """
    places = {key: value for key, value in vars(typed).items() if value is not None}
    if isinstance(trained, MixedConfig):
        caches = {key: value for key, value in places.items() if key in ("cache_dir", "cache")}
        trained = _with_parts(trained, lambda part: _placed(part, TrainedDatasetConfig(**caches)))
    elif not isinstance(trained, FolderDatasetConfig):  # without files, nothing can be cached
        places = {key: value for key, value in places.items() if key not in ("cache_dir", "cache")}
    for key, value in places.items():
        if not hasattr(trained, key):
            raise ConfigError(
                f"dataset.{key}={value}: the counter was trained on {trained.name}, which has no {key}; leave it out, "
                "or name another dataset with dataset=NAME"
            )
    if isinstance(trained, CustomConfig) and typed.root:
        trained = _in_other_root(trained, typed.root)
    return dataclasses.replace(trained, **places)


def _in_other_root(trained: CustomConfig, root: str) -> CustomConfig:
    """Return a copy with another root; the files and folders that lay below the old root are moved with it."""
    below: dict[str, Any] = {}
    for key in _OWN_FILES:
        path = getattr(trained, key)
        if path and trained.root and Path(path).is_relative_to(trained.root):
            moved = Path(root, Path(path).relative_to(trained.root))
            below |= {key: str(moved)} if moved.expanduser().exists() else {}
    return dataclasses.replace(trained, root=root, **below)


def _check_still_known(trained: DatasetConfig, located: LocatedDataset) -> None:
    if isinstance(trained, MixedConfig):
        assert isinstance(located.config, MixedConfig)
        for name, part in trained.datasets.items():
            with naming_part(name):
                _check_still_known(part, dataclasses.replace(located, config=located.config.datasets[name]))
    before = trained.root if isinstance(trained, FolderDatasetConfig) else None
    now = located.config.root if isinstance(located.config, FolderDatasetConfig) else None
    if before and not now and not located.data_root:
        raise DataError(
            f"{before}, the folder of the images in training, no longer exists; type data_root=FOLDER, the folder "
            "of all datasets, or dataset.root=FOLDER",
            kind=DataErrorKind.missing,
            file=Path(before),
        )


def _is_own(trained: DatasetConfig, typed: DatasetConfig, overrides: Sequence[str]) -> bool:
    """Whether a typed dataset is the one of the training.

    A custom dataset in another folder is another one; a mixed dataset is read as it is typed.
    """
    if typed.name != trained.name or isinstance(typed, MixedConfig):
        return False
    return not (isinstance(typed, CustomConfig) and any(key in _OWN_FOLDERS for key in _dataset_keys(overrides)))


def _dataset_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys of settings such as ``dataset.max_side=1024``."""
    return [o.partition("=")[0].removeprefix("dataset.") for o in overrides if o.startswith("dataset.")]
