"""The datasets: what splits they have, where their folders are, and how they become samples.

A new dataset is one row of ``DATASETS``, a function in ``data.layouts`` that lists its files and, if
its annotation format is new, one in ``data.readers``.
"""

import os
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
    Cache,
    ConfigError,
    Counted,
    CustomConfig,
    DatasetConfig,
    FolderDatasetConfig,
    Outside,
    SyntheticConfig,
    UcfCc50Config,
)
from headcount.data import layouts
from headcount.data.augment import TrainAugment
from headcount.data.decoded import decode_images, open_decoded
from headcount.data.layouts import Listed
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
from headcount.data.readers import check_image, read_image
from headcount.types import Sample

HOLDOUT = "holdout"  # The split made of the training images that are held out.
DATA_ROOT_VARIABLE = "HEADCOUNT_DATA"
MOST_REASONS = 20  # Lines that an error about unusable images has at most.

# Keys of a dataset: an index for evaluation, (epoch, index) for training.
Key = int | tuple[int, int]


@dataclass(frozen=True)
class FileSet:
    """How a dataset's folder is found and read."""

    folders: tuple[str, ...]
    """Where it may lie below the data root."""
    markers: tuple[str, ...]
    """Of these a folder must contain one to be this dataset's, in any case."""
    list_split: Callable[[Path, str, FolderDatasetConfig], list[Listed]]
    """The images of a split, in order; a function of ``data.layouts``."""
    settings: type[FolderDatasetConfig] = FolderDatasetConfig
    """The config it is read with."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset without having it."""

    title: str
    source: str
    """Where to get it."""
    license: str
    splits: tuple[str, ...]
    selection: str
    """The split that selects the checkpoint, as published results do."""
    unannotated: str | None = None
    """The split whose annotations are not public, if there is one."""
    files: FileSet | None = None
    """None where images are drawn by code."""


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
            list_split=layouts.shanghaitech,
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
            list_split=layouts.qnrf,
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
            list_split=layouts.nwpu,
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
            list_split=layouts.jhu,
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
            list_split=layouts.ucf_cc_50,
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
            list_split=layouts.mall,
        ),
    ),
    "custom": DatasetInfo(
        title="images and points of one's own",
        source="one's own folder",
        license="one's own",
        splits=layouts.SPLITS,
        selection="val",
        files=FileSet(folders=(), markers=(), list_split=layouts.custom, settings=CustomConfig),
    ),
    "synthetic": DatasetInfo(
        title="crowds drawn by code",
        source="nothing to download",
        license="MIT, as this code",
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
        left_out: names of images of the split that are not among these, as they cannot be used.
        unnamed: names of images beside these that a file of splits does not name.
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
        unnamed: Sequence[str] = (),
    ) -> None:
        self.names = list(names)
        self.left_out = list(left_out)
        """Images of the split that cannot be read or have no usable annotation."""
        self.unnamed = list(unnamed)
        """Images that are in no split, as the file of splits does not name them."""
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
            *self.left_out_report(),
            f"{len(self)} images, {total} annotated heads, {sum(len(p) == 0 for p in self._heads)} images without any",
            f"{self.moved} heads lie outside their image: in training {done}, in evaluation counted",
            f"{self.merged} heads share a pixel with another: in training {merging}, in evaluation counted",
        ]

    def left_out_report(self) -> list[str]:
        """A line about the images that are left out, if there are any: they change what an error means."""
        lines = []
        if self.left_out:
            of = len(self) + len(self.left_out)
            lines.append(
                f"{len(self.left_out)} of {of} images are left out, being unreadable or not annotated: "
                f"{_first(self.left_out)}"
            )
        if self.unnamed:
            lines.append(f"{len(self.unnamed)} images are in no split of dataset.split_file: {_first(self.unnamed)}")
        return lines

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
        ConfigError: if dataset, split or files do not exist, saying what does, if the split has no images, or
            if some cannot be used.
    """
    info = _check_split(config, split)
    if split == info.unannotated:
        others = " or ".join(f"split={other}" for other in info.splits if other not in ("train", split))
        raise ConfigError(
            f"split={split}: the annotations of {info.title}'s {split} images are not public ({info.source}), so they "
            f"can neither train nor evaluate; take {others}, and count these images with a checkpoint instead"
        )
    if isinstance(config, SyntheticConfig):
        return _open_synthetic(config, split, augment=augment, seed=seed)
    return _open_folder(config, split, data_root=data_root, augment=augment, seed=seed)


def image_files(config: DatasetConfig, split: str, *, data_root: str | None = None) -> list[Path]:
    """The images of a split as distributed, for prediction: annotations are not needed.

    Raises:
        ConfigError: if dataset, split or files do not exist, saying what does.
    """
    _check_split(config, split)
    files = [item.image for item in list_folder(config, split, data_root=data_root)[1]]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ConfigError(f"{config.name} has no {', '.join(missing)}")
    return files


def dataset_info(name: str) -> DatasetInfo:
    """The row of the table of datasets.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no dataset {name!r}; there are {', '.join(DATASETS)}")
    return DATASETS[name]


def selection_split(config: DatasetConfig) -> str:
    """The split that selects the checkpoint: held-out training images if there are any, else the field's choice.

    Raises:
        ConfigError: if a dataset of one's own has none to select on.
    """
    if config.holdout > 0:
        return HOLDOUT
    splits, selection = split_names(config), dataset_info(config.name).selection
    if selection not in splits and "test" not in splits:
        raise ConfigError(
            f"dataset={config.name}: there are no val or test images to select a checkpoint on; add some, or hold "
            "training images out with dataset.holdout=0.1"
        )
    return selection if selection in splits else "test"


def block_histogram(dataset: CrowdDataset, block_size: int, *, counted: Counted = Counted.blocks) -> dict[int, int]:
    """How many blocks of the prepared training images hold 0, 1, 2, ... heads.

    Blocks form a grid from the top left corner; what is left of an image beyond its last whole
    block is not counted, as no training crop has such blocks. Not cached: the points are in memory.

    Heads outside their image are where training has them, on its border or nowhere (``dataset.outside``).

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


def split_names(config: DatasetConfig) -> tuple[str, ...]:
    """The dataset's own splits."""
    if isinstance(config, CustomConfig):
        return layouts.custom_splits(config)
    return dataset_info(config.name).splits


def _check_split(config: DatasetConfig, split: str) -> DatasetInfo:
    """The dataset's row, if it has that split."""
    info = dataset_info(config.name)
    allowed = [*split_names(config), *([HOLDOUT] if config.holdout > 0 else [])]
    if split not in allowed:
        if isinstance(config, CustomConfig) and config.train is None and config.split_file and split in layouts.SPLITS:
            raise ConfigError(
                f"split={split}: dataset.split_file={config.split_file} has no images in {split}, only in "
                f"{', '.join(allowed)}; name some in it"
            )
        raise ConfigError(f"split={split}: {config.name} has {', '.join(allowed)}")
    return info


def _open_folder(
    config: DatasetConfig, split: str, *, data_root: str | None, augment: TrainAugment | None, seed: int
) -> CrowdDataset:
    root, listed = list_folder(config, split, data_root=data_root)
    assert isinstance(config, FolderDatasetConfig)
    usable, heads, left_out = _read_heads(listed, config, split)
    limits = {"min_side": config.min_side, "max_side": config.max_side, "multiple": config.side_multiple}
    folder = cache_folder(config.cache_dir, dataset=config.name, root=root, settings=limits)
    prepared = prepare_images(
        [item.image for item in usable],
        folder / _source_split(split),
        min_side=config.min_side,
        max_side=config.max_side,
        multiple=config.side_multiple,
        label=f"{config.name} {split}",
    )
    images = partial(_read_one, [image.path for image in prepared])
    if config.cache is Cache.decoded:
        label = f"{config.name} {split}"
        images = partial(_map_one, decode_images(prepared, folder / "decoded" / _source_split(split), label=label))
    return CrowdDataset(
        [item.name for item in usable],
        images,
        heads,
        source_sizes=[image.source_size for image in prepared],
        sizes=[image.size for image in prepared],
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        augment=augment,
        seed=seed,
        left_out=left_out,
        unnamed=layouts.custom_unnamed(config) if isinstance(config, CustomConfig) else (),
    )


def list_folder(config: DatasetConfig, split: str, *, data_root: str | None) -> tuple[Path, list[Listed]]:
    """The folder of a dataset and the images that belong to ``split``, at least one.

    Raises:
        ConfigError: if there are none, or nowhere to look for them.
    """
    files = DATASETS[config.name].files
    if files is None or not isinstance(config, FolderDatasetConfig) or not isinstance(config, files.settings):
        raise ConfigError(f"dataset {config.name} cannot be read with the settings of {type(config).__name__}")
    source = _source_split(split)
    if isinstance(config, CustomConfig):
        root = layouts.custom_folder(config, source)
    else:
        root = _find_root(config, files, data_root)
    listed = files.list_split(root, source, config)
    if not listed:
        raise ConfigError(f"dataset={config.name}: {source} has no images in {root}; {layouts.holding(root)}")
    return root, [listed[k] for k in _choose([item.name for item in listed], config, split)]


def _read_heads(
    listed: list[Listed], config: FolderDatasetConfig, split: str
) -> tuple[list[Listed], list[Float[Tensor, "_ 2"]], list[str]]:
    """The images that can be used, the heads in each, and the names of those that cannot.

    Raises:
        ConfigError: if there are any of these and they are not to be left out, with a line for each.
    """
    usable: list[Listed] = []
    heads: list[Float[Tensor, "_ 2"]] = []
    bad: dict[str, str] = {}
    bar = tqdm(listed, desc=f"reading {config.name} {split}", unit="image", disable=len(listed) <= 1000)
    for item in bar:
        try:
            points = item.heads()
            check_image(item.image)
        except ConfigError as error:
            bad[item.name] = str(error)
        else:
            usable.append(item)
            heads.append(points)
    # A copy may lack most of its files: the reasons of all are read before the first is repaired.
    if bad and not (config.skip_bad and usable):
        raise ConfigError(unusable(config, split, list(bad.values()), images=len(listed)))
    return usable, heads, list(bad)


def unusable(config: FolderDatasetConfig, split: str, reasons: Sequence[str], *, images: int) -> str:
    """What to say of a split of so many ``images`` some of which cannot be used, with a line for each of the first."""
    lines = "".join(f"\n  {reason}" for reason in reasons[:MOST_REASONS])
    if len(reasons) > MOST_REASONS:
        lines += f"\n  and {len(reasons) - MOST_REASONS} more"
    if len(reasons) == images and config.skip_bad:
        return f"dataset={config.name}: none of the {images} images of {split} can be used:{lines}"
    return (
        f"dataset={config.name}: {len(reasons)} of {images} images of {split} cannot be used; correct them, or "
        f"leave them out with dataset.skip_bad=true:{lines}"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


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
        held = set(layouts.by_hash(names)[: max(1, round(config.holdout * len(names)))])
        if len(held) == len(names):
            raise ConfigError(f"dataset.holdout {config.holdout} of {len(names)} images leaves none to train on")
        chosen = [k for k in chosen if (names[k] in held) == (split == HOLDOUT)]
    if split == "train" and config.train_fraction < 1:
        # The first of one order: a smaller share is part of a larger one.
        ordered = layouts.by_hash((names[k] for k in chosen), salt="fraction")
        kept = set(ordered[: max(1, round(config.train_fraction * len(ordered)))])
        chosen = [k for k in chosen if names[k] in kept]
    return chosen[: config.max_train_images if split == "train" else config.max_eval_images]


def _find_root(config: FolderDatasetConfig, files: FileSet, data_root: str | None) -> Path:
    """The dataset's folder, or an error that says where it was looked for."""
    info = DATASETS[config.name]
    where = f"{info.title} is distributed at {info.source} ({info.license})"
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
        if folder.is_dir() and any(path.name.lower() in files.markers for path in folder.iterdir()):
            return folder
    looked = "\n".join(f"  {folder}" for folder in searched)
    raise ConfigError(
        f"dataset={config.name}: found no folder with {' or '.join(files.markers)} in it; {layouts.holding(root)}. "
        f"Searched:\n{looked}\n{where}"
    )


def _read_one(paths: Sequence[Path], index: int) -> UInt8[Tensor, "3 height width"]:
    return read_image(paths[index])


def _map_one(files: Sequence[Path], index: int) -> UInt8[Tensor, "3 height width"]:
    return open_decoded(files[index])
