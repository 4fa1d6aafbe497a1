"""Count every image of a split of NWPU-Crowd, annotated or not, for a file in the format of its benchmark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError, EvalCommandConfig, FolderDatasetConfig, counting_mode, window_error
from headcount.data.datasets import CrowdDataset, list_folder
from headcount.data.layouts import nwpu_ids
from headcount.data.loading import evaluation_samples
from headcount.data.prepare import cache_folder, prepare_images
from headcount.data.readers import check_image, read_image
from headcount.engine import checkpoint
from headcount.engine.evaluate import as_trained, folder_of_datasets
from headcount.engine.runtime import Runtime
from headcount.engine.tiling import predict_blocks
from headcount.files import make_folder


@dataclass
class CountedSplit:
    """The counts of a split's images."""

    counts: dict[str, float]
    """Name of the image -> people, in the order of the dataset's list."""
    trained_on: str
    """Name of the dataset that the counter was trained on."""


def count_split(config: EvalCommandConfig, overrides: Sequence[str], output: Path) -> CountedSplit | None:
    """Count every image of the split, shared among the processes.

    Args:
        config: an evaluation on ``dataset=nwpu``.
        overrides: the settings as typed; the rest of how images are resized comes from a checkpoint that was trained
            on NWPU-Crowd.
        output: the file that will be written; its folder is created before any image is counted.

    Returns:
        None on every process but the first.

    Raises:
        ConfigError: if the checkpoint or images cannot be read, or a count is not finite.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.ckpt)
    images, trained_on = config.dataset, loaded.config.dataset
    assert isinstance(images, FolderDatasetConfig)
    own = trained_on.name == "nwpu"
    data_root = folder_of_datasets(config.data_root, loaded.config.data_root, own=own)
    if own and isinstance(trained_on, FolderDatasetConfig):
        images = as_trained(trained_on, images, overrides, data_root=config.data_root)
        assert isinstance(images, FolderDatasetConfig)
    counter = runtime.place(loaded.counter)
    mode = counting_mode(loaded.config, config.eval)
    if wrong := window_error(mode, counter.block_size, counter.stride):
        raise ConfigError(wrong)
    if runtime.is_main:
        make_folder(output.resolve().parent, "--output")
    with runtime.main_first():
        dataset = open_unannotated(images, config.split, data_root=data_root)

    mine: list[tuple[int, float]] = []
    counter.eval()
    samples = evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=config.runtime.workers)
    bar = tqdm(
        total=len(dataset), desc=f"nwpu {config.split}", unit="img", disable=not runtime.is_main, dynamic_ncols=True
    )
    with bar:
        for index, sample in samples:
            try:
                blocks = predict_blocks(counter, sample.image, mode).counts
            except MemoryError as error:
                raise ConfigError(f"{sample.name}: {error}") from error
            counted = float(blocks.double().sum())
            if not math.isfinite(counted):
                raise ConfigError(
                    f"ckpt={config.ckpt}: the predicted count of {sample.name} is {counted}; choose another checkpoint"
                )
            mine.append((index, counted))
            bar.update(runtime.world)
    counts = {dataset.names[index]: value for index, value in sorted(runtime.gather(mine))}
    return CountedSplit(counts, trained_on.name) if runtime.is_main else None


def open_unannotated(config: FolderDatasetConfig, split: str, *, data_root: str | None) -> CrowdDataset:
    """The images of a split in the order of its list, resized as for evaluation, without their heads.

    Raises:
        ConfigError: if the dataset or images of the split are missing.
    """
    config.max_train_images = config.max_eval_images = None
    root, listed = list_folder(config, split, data_root=data_root)
    files = {item.name: item.image for item in listed}
    names = list(nwpu_ids(root, split))
    problems = []
    for name in names:
        try:
            check_image(files[name])
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        lines = "".join(f"\n  {line}" for line in problems)
        raise ConfigError(f"{root}: {len(problems)} of {len(names)} {split} images cannot be read:{lines}")
    limits = {"min_side": config.min_side, "max_side": config.max_side, "multiple": config.side_multiple}
    prepared = prepare_images(
        [files[name] for name in names],
        cache_folder(config.cache_dir, dataset=config.name, root=root, settings=limits) / split,
        min_side=config.min_side,
        max_side=config.max_side,
        multiple=config.side_multiple,
        label=f"{config.name} {split}",
    )
    return CrowdDataset(
        names,
        partial(_read_one, [image.path for image in prepared]),
        [torch.zeros(0, 2)] * len(names),
        source_sizes=[image.source_size for image in prepared],
        sizes=[image.size for image in prepared],
    )


def _read_one(paths: list[Path], index: int) -> UInt8[Tensor, "3 height width"]:
    return read_image(paths[index])
