"""The datasets: what splits they have, how their folders look, and how they become samples.

A new dataset is one row of ``DATASETS``, a function that lists its files and, if its annotation
format is new, one in ``data.readers``.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from headcount.config import (
    ZERO_BELOW,
    ConfigError,
    Counted,
    DatasetConfig,
    FolderDatasetConfig,
    Outside,
    SyntheticConfig,
)
from headcount.data.augment import TrainAugment
from headcount.data.points import (
    Smoothing,
    block_counts,
    clamp_into,
    crop,
    inside,
    one_head_per_pixel,
    scale,
    smoothed_counts,
    window_counts,
)
from headcount.data.prepare import cache_folder, prepare_images
from headcount.data.readers import read_image, read_shanghaitech_mat
from headcount.types import Sample

HOLDOUT = "holdout"  # The split made of the training images that are held out.
DATA_ROOT_VARIABLE = "HEADCOUNT_DATA"

# Keys of a dataset: an index for evaluation, (epoch, index) for training.
Key = int | tuple[int, int]


@dataclass(frozen=True)
class FileSet:
    """How a dataset's folder is found and read."""

    folders: tuple[str, ...]
    """Where it may lie below the data root."""
    marker: str
    """What a folder must contain to be this dataset's."""
    pairs: Callable[[Path, str], list[tuple[Path, Path]]]
    """Image and annotation files of a split, in order."""
    read_points: Callable[[Path], Float[Tensor, "n 2"]]
    """Head positions from an annotation file, in pixels of the stored image."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without having it."""

    title: str
    source: str
    """Where to get it."""
    licence: str
    splits: tuple[str, ...]
    selection: str
    """The split that selects the checkpoint, as published results do."""
    files: FileSet | None = None
    """None where images are drawn by code."""


def shanghaitech_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """``<split>_data/images/IMG_<k>.jpg`` with ``<split>_data/ground-truth/GT_IMG_<k>.mat``.

    Files of other names beside them (copies in PNG, Thumbs.db) are left alone.

    Raises:
        ConfigError: if a folder is missing, or an image or an annotation has no partner.
    """
    base = root / f"{split}_data"
    spellings = [base / name for name in ("ground-truth", "ground_truth", "groundtruth")]
    annotations_folder = next((folder for folder in spellings if folder.is_dir()), None)
    if annotations_folder is None or not (base / "images").is_dir():
        raise ConfigError(f"{base} needs the folders images and ground-truth (or ground_truth), but {_holds(base)}")
    annotations = {p.stem.removeprefix("GT_"): p for p in annotations_folder.glob("GT_*.mat")}
    images: dict[str, Path] = {}
    for suffix in (".png", ".jpeg", ".jpg"):  # The last one wins.
        images |= {p.stem: p for p in (base / "images").iterdir() if p.suffix.lower() == suffix}
    for name in sorted(annotations.keys() - images.keys()):
        raise ConfigError(f"annotation {annotations[name]} has no image {base / 'images' / name}.jpg")
    for name in sorted(name for name in images.keys() - annotations.keys() if name.startswith("IMG_")):
        raise ConfigError(f"image {images[name]} has no annotation {annotations_folder / f'GT_{name}.mat'}")
    if not annotations:
        raise ConfigError(f"{annotations_folder} holds no GT_IMG_<k>.mat, but {_holds(annotations_folder)}")
    return [(images[name], annotations[name]) for name in sorted(annotations, key=_natural)]


DATASETS: dict[str, DatasetInfo] = {
    "sha": DatasetInfo(
        title="ShanghaiTech part A",
        source="https://github.com/desenzhou/ShanghaiTechDataset",
        licence="research use; Zhang et al., CVPR 2016",
        splits=("train", "test"),
        selection="test",
        files=FileSet(
            folders=tuple(
                f"{parent}{part}"
                for parent in ("", "ShanghaiTech/", "shanghaitech/", "ShanghaiTech_Crowd_Counting_Dataset/")
                for part in ("part_A", "part_A_final")
            ),
            marker="train_data",
            pairs=shanghaitech_pairs,
            read_points=read_shanghaitech_mat,
        ),
    ),
    "synthetic": DatasetInfo(
        title="crowds drawn by code",
        source="nothing to download",
        licence="MIT, as this code",
        splits=("train", "val", "test"),
        selection="val",
    ),
}


class CrowdDataset(Dataset[Sample]):
    """Images of one split with their heads.

    ``dataset[index]`` is the whole prepared image with every annotated head, for evaluation;
    ``dataset[epoch, index]`` is a training sample, which depends on (seed, epoch, index) alone.
    Build with :func:`open_split`.

    Args:
        images: gives the pixels of an index; called in worker processes.
        annotated: head positions of each image as distributed.
        source_sizes, sizes: (width, height) of each image as distributed and as ``images`` gives it.
        outside, one_head_per_pixel: see ``DatasetConfig``; for training alone.
        augment: applied to training samples; None leaves them whole.
        seed: of the augmentation.
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
    ) -> None:
        self.names = list(names)
        self.sizes = list(sizes)
        """(width, height) of each prepared image, pixels."""
        self._images = images
        self._outside_rule = outside
        self.one_head_per_pixel = one_head_per_pixel
        """Whether training counts the heads of one pixel once, in block counts."""
        self._augment, self._seed = augment, seed
        self._heads: list[Float[Tensor, "_ 2"]] = []
        self._inside: list[Bool[Tensor, " _"]] = []
        for points, (width, height), size in zip(annotated, source_sizes, sizes, strict=True):
            self._inside.append(inside(points, width=width, height=height))
            within = clamp_into(points, width=width, height=height)
            self._heads.append(scale(within, from_size=(width, height), to_size=size))

    def __len__(self) -> int:
        return len(self.names)

    def count(self, index: int) -> float:
        """Annotated heads of an image, those outside it included: the truth of evaluation."""
        return float(len(self._heads[index]))

    def points(self, index: int) -> Float[Tensor, "n 2"]:
        """Heads as training counts them, in pixels of the prepared image, before augmentation."""
        points = self._for_training(index)
        return one_head_per_pixel(points) if self.one_head_per_pixel else points

    def __getitem__(self, key: Key) -> Sample:
        if isinstance(key, int):
            # Heads outside count too; they are shown on the border.
            return Sample(self._images(key), self._heads[key], self.names[key])
        epoch, index = key
        image, points = self._images(index), self._for_training(index)
        if self._augment is not None:
            generator = torch.Generator().manual_seed(sample_seed(self._seed, epoch, index))
            image, points = self._augment(image, points, generator)
        return Sample(image, points, self.names[index])

    @property
    def moved(self) -> int:
        """Annotated heads outside their image."""
        return sum(int((~inside_).sum()) for inside_ in self._inside)

    @property
    def merged(self) -> int:
        """Heads that share a pixel of the prepared image with an earlier one; those left after ``outside``."""
        training = [self._for_training(index) for index in range(len(self))]
        return sum(len(points) - len(one_head_per_pixel(points)) for points in training)

    def report(self) -> list[str]:
        """What a person should know of the annotations, a line each."""
        total = sum(len(points) for points in self._heads)
        done = "moved onto its border" if self._outside_rule is Outside.clamp else "dropped"
        merging = "counted once in labels" if self.one_head_per_pixel else "each counted"
        return [
            f"{len(self)} images, {total} annotated heads, {sum(len(p) == 0 for p in self._heads)} images without any",
            f"{self.moved} heads lie outside their image: in training {done}, in evaluation counted",
            f"{self.merged} heads share a pixel with another: in training {merging}, in evaluation counted",
        ]

    def _for_training(self, index: int) -> Float[Tensor, "n 2"]:
        heads = self._heads[index]
        return heads if self._outside_rule is Outside.clamp else heads[self._inside[index]]


def open_split(
    config: DatasetConfig,
    split: str,
    *,
    data_root: str | None = None,
    augment: TrainAugment | None = None,
    seed: int = 0,
) -> CrowdDataset:
    """The images of one split, prepared.

    Args:
        split: one of the dataset's own, or ``holdout`` where ``config.holdout`` is above 0;
            ``train`` is then without the images held out, which do not depend on any seed.
        data_root: folder of all datasets; None takes the environment variable HEADCOUNT_DATA.
        augment: what ``dataset[epoch, index]`` does to an image.
        seed: of the augmentation.

    Raises:
        ConfigError: if dataset, split or files do not exist, saying what does.
    """
    info = dataset_info(config.name)
    allowed = [*info.splits, HOLDOUT] if config.holdout > 0 else list(info.splits)
    if split not in allowed:
        raise ConfigError(f"split={split}: {config.name} has {', '.join(allowed)}")
    if isinstance(config, SyntheticConfig):
        return _open_synthetic(config, split, augment=augment, seed=seed)
    return _open_folder(config, split, data_root=data_root, augment=augment, seed=seed)


def dataset_info(name: str) -> DatasetInfo:
    """The row of the table of datasets.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no dataset {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def selection_split(config: DatasetConfig) -> str:
    """The split that selects the checkpoint: held-out training images if there are any, else the field's choice."""
    return HOLDOUT if config.holdout > 0 else dataset_info(config.name).selection


def block_histogram(dataset: CrowdDataset, block_size: int, *, counted: Counted = Counted.blocks) -> dict[int, int]:
    """How many blocks of the prepared training images hold 0, 1, 2, ... heads.

    Blocks form a grid from the top left corner; what is left of an image beyond its last whole
    block is not counted, as no training crop has such blocks. Not cached: the points are in memory.

    Args:
        counted: ``windows`` takes all of a block's size that lie in an image instead, wherever they
            begin, in which the heads of one pixel count once.

    Source: arXiv:2403.09281, section III-A.3, the B_i of equation 2; for windows, the published values.
    """
    histogram: Counter[int] = Counter()
    many = counted is Counted.windows and len(dataset) > 100
    for index, (width, height) in enumerate(
        tqdm(dataset.sizes, desc="counting windows", unit="image", disable=not many)
    ):
        if counted is Counted.windows:
            histogram += window_counts(dataset.points(index), height=height, width=width, window=block_size)
            continue
        width, height = width // block_size * block_size, height // block_size * block_size
        if width and height:
            kept, _ = crop(dataset.points(index), left=0, top=0, width=width, height=height)
            counts = block_counts(kept, height=height, width=width, block_size=block_size)
            histogram.update(counts.flatten().int().tolist())
    return dict(sorted(histogram.items()))


def smoothed_histogram(dataset: CrowdDataset, block_size: int, smoothing: Smoothing) -> dict[float, int]:
    """How many blocks of the prepared training images hold how many heads once these are smoothed.

    Counts are rounded up to multiples of ``ZERO_BELOW``; blocks are those of :func:`block_histogram`.
    """
    histogram: Counter[int] = Counter()
    for index, (width, height) in enumerate(
        tqdm(dataset.sizes, desc="smoothing heads", unit="image", disable=len(dataset) <= 100)
    ):
        width, height = width // block_size * block_size, height // block_size * block_size
        if width and height:
            kept, _ = crop(dataset.points(index), left=0, top=0, width=width, height=height)
            counts = smoothed_counts(kept, smoothing.sigmas(kept), height=height, width=width, block_size=block_size)
            steps, blocks = (counts / ZERO_BELOW).ceil().long().unique(return_counts=True)
            histogram.update(dict(zip(steps.tolist(), blocks.tolist(), strict=True)))
    return {round(step * ZERO_BELOW, 10): blocks for step, blocks in sorted(histogram.items())}


def sample_seed(*key: int) -> int:
    """A seed for a random generator, well mixed from a few non-negative integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _open_folder(
    config: DatasetConfig, split: str, *, data_root: str | None, augment: TrainAugment | None, seed: int
) -> CrowdDataset:
    files = DATASETS[config.name].files
    if not isinstance(config, FolderDatasetConfig) or files is None:
        raise ConfigError(f"dataset {config.name} cannot be read with the settings of {type(config).__name__}")
    root = _find_root(config, files, data_root)
    pairs = files.pairs(root, _source_split(split))
    chosen = _choose([image.stem for image, _ in pairs], config, split)
    images, annotations = [pairs[k][0] for k in chosen], [pairs[k][1] for k in chosen]
    limits = {"min_side": config.min_side, "max_side": config.max_side, "multiple": config.side_multiple}
    folder = cache_folder(config.cache_dir, dataset=config.name, root=root, settings=limits)
    prepared = prepare_images(
        images,
        folder / _source_split(split),
        min_side=config.min_side,
        max_side=config.max_side,
        multiple=config.side_multiple,
        label=f"{config.name} {split}",
    )
    return CrowdDataset(
        [image.stem for image in images],
        partial(_read_one, [image.path for image in prepared]),
        [files.read_points(annotation) for annotation in annotations],
        source_sizes=[image.source_size for image in prepared],
        sizes=[image.size for image in prepared],
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        augment=augment,
        seed=seed,
    )


def _open_synthetic(config: SyntheticConfig, split: str, *, augment: TrainAugment | None, seed: int) -> CrowdDataset:
    from headcount.data.synthetic import draw_crowd

    source = _source_split(split)
    total = {"train": config.train_images, "val": config.val_images, "test": config.test_images}[source]
    chosen = _choose([f"{source}_{k:04d}" for k in range(total)], config, split)
    # Drawn here and once: workers that are forked share the memory.
    bar = tqdm(chosen, desc=f"drawing synthetic {split}", unit="image", disable=len(chosen) <= 100)
    samples = [draw_crowd(k, config=config, split=source) for k in bar]
    sizes = [(sample.image.shape[2], sample.image.shape[1]) for sample in samples]
    return CrowdDataset(
        [sample.name for sample in samples],
        [sample.image for sample in samples].__getitem__,
        [sample.points for sample in samples],
        source_sizes=sizes,
        sizes=sizes,
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        augment=augment,
        seed=seed,
    )


def _source_split(split: str) -> str:
    """The dataset's own split that a split is part of."""
    return "train" if split == HOLDOUT else split


def _choose(names: list[str], config: DatasetConfig, split: str) -> list[int]:
    """Positions of the images that belong to ``split``, out of its source split."""
    chosen = list(range(len(names)))
    if config.holdout > 0 and _source_split(split) == "train":
        # By a hash of the name: independent of seeds, of order, and of the other images.
        by_hash = sorted(chosen, key=lambda k: hashlib.sha256(names[k].encode()).digest())
        held = set(by_hash[: max(1, round(config.holdout * len(names)))])
        if len(held) == len(names):
            raise ConfigError(f"dataset.holdout {config.holdout} of {len(names)} images leaves none to train on")
        chosen = [k for k in chosen if (k in held) == (split == HOLDOUT)]
    return chosen[: config.max_train_images if split == "train" else config.max_eval_images]


def _find_root(config: FolderDatasetConfig, files: FileSet, data_root: str | None) -> Path:
    """The dataset's folder, or an error that says where it was looked for."""
    info = DATASETS[config.name]
    where = f"{info.title} is distributed at {info.source} ({info.licence})"
    base = config.root or data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if not base:
        raise ConfigError(
            f"dataset={config.name}: no folder given; set dataset.root, data_root or the environment variable "
            f"{DATA_ROOT_VARIABLE}. {where}"
        )
    root = Path(base).expanduser()
    searched = [root / folder for folder in files.folders]
    if config.root:
        searched.insert(0, root)
    for folder in searched:
        if (folder / files.marker).is_dir():
            return folder
    looked = "\n".join(f"  {folder}" for folder in searched)
    raise ConfigError(
        f"dataset={config.name}: found no folder with {files.marker} in it; {root} {_holds(root).removeprefix('it ')}. "
        f"Searched:\n{looked}\n{where}"
    )


def _read_one(paths: Sequence[Path], index: int) -> UInt8[Tensor, "3 height width"]:
    return read_image(paths[index])


def _holds(folder: Path) -> str:
    """What a folder holds, for an error."""
    if not folder.is_dir():
        return "it does not exist"
    names = sorted(p.name for p in folder.iterdir())
    return f"it holds {', '.join(names[:8]) + (', ...' if len(names) > 8 else '') if names else 'nothing'}"


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts IMG_2 before IMG_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
