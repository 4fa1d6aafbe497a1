"""Count whole images and measure the errors, on any number of processes.

Float32 throughout: a sum of thousands of small counts loses heads in less.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError, CustomConfig, EvalCommandConfig, FolderDatasetConfig
from headcount.data.datasets import DATA_ROOT_VARIABLE, CrowdDataset, open_split
from headcount.data.loading import evaluation_samples
from headcount.engine import checkpoint
from headcount.engine.runtime import Runtime
from headcount.models.counter import Counter
from headcount.types import CountErrors, Evaluation, ImageCount


@torch.inference_mode()
def count_blocks(counter: Counter, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "rows cols"]:
    """Expected heads in each block of one image of any size, on the host.

    The image is padded at the right and bottom with the mean colour to whole strides and blocks;
    blocks that lie in the padding alone are dropped.
    """
    device = counter.mean.device
    height, width = image.shape[-2:]
    multiple = math.lcm(counter.stride, counter.block_size)
    pad_right, pad_bottom = -width % multiple, -height % multiple
    pixels = counter.normalise(image[None].to(device))
    # Zero is the mean colour of normalised pixels.
    pixels = F.pad(pixels, (0, pad_right, 0, pad_bottom)).contiguous(memory_format=torch.channels_last)
    blocks = counter(pixels).block_counts[0, 0].float()
    return blocks[: math.ceil(height / counter.block_size), : math.ceil(width / counter.block_size)].cpu()


def evaluate(runtime: Runtime, counter: Counter, dataset: CrowdDataset, *, workers: int = 0) -> Evaluation:
    """Count every image of ``dataset``; the processes share them, and each gets the whole answer.

    Leaves the counter in the mode it was in.
    """
    was_training = counter.training
    counter.eval()
    mine = []
    progress = tqdm(
        total=len(dataset), desc="evaluating", unit="img", leave=False, disable=not runtime.is_main, dynamic_ncols=True
    )
    with progress:
        for index, sample in evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=workers):
            blocks = count_blocks(counter, sample.image)
            mine.append(
                ImageCount(
                    index=index,
                    name=sample.name,
                    true=float(len(sample.points)),
                    predicted=float(blocks.sum(dtype=torch.float64)),
                    blocks=blocks,
                )
            )
            progress.update(runtime.world)
    counter.train(was_training)
    images = sorted(runtime.gather(mine), key=lambda image: image.index)
    errors = CountErrors.from_counts([i.predicted for i in images], [i.true for i in images])
    if not math.isfinite(errors.mae):
        wrong = [image.name for image in images if not math.isfinite(image.predicted)]
        raise FloatingPointError(f"the predicted counts are not finite on {', '.join(wrong[:5])}")
    return Evaluation(errors=errors, images=images)


@dataclass
class Result:
    """An evaluation, what was evaluated, and where its report goes."""

    evaluation: Evaluation
    dataset: CrowdDataset
    folder: Path
    facts: dict[str, Any]
    """Plain values for the report: checkpoint, dataset, split, how the checkpoint was selected."""


def evaluate_checkpoint(config: EvalCommandConfig) -> Result | None:
    """Evaluate a checkpoint on a split of the dataset it was trained on.

    Returns:
        None on every process but the first.

    Raises:
        ConfigError: if the checkpoint, the split or the data cannot be read.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.ckpt)
    dataset_config = loaded.config.dataset
    dataset_config.max_train_images = dataset_config.max_eval_images = config.max_images
    # Where the data lay for training matters only if nothing is said now.
    data_root = config.data_root or os.environ.get(DATA_ROOT_VARIABLE) or None
    if isinstance(dataset_config, CustomConfig):
        # It lies in no folder of datasets: only what is typed here can say where it is now.
        dataset_config.root = config.data_root or dataset_config.root
    elif data_root and isinstance(dataset_config, FolderDatasetConfig):
        dataset_config.root = None
    folder = Path(config.ckpt).expanduser().parent / "eval" / f"{dataset_config.name}_{config.split}"
    if config.output_dir:
        folder = Path(config.output_dir).expanduser()
    if runtime.is_main:
        make_folder(folder, "output_dir")
    with runtime.main_first():
        dataset = open_split(dataset_config, config.split, data_root=data_root or loaded.config.data_root)
    counter = runtime.place(loaded.counter)
    evaluation = evaluate(runtime, counter, dataset, workers=config.runtime.workers)
    if not runtime.is_main:
        return None
    content = loaded.content
    facts = {
        "checkpoint": str(config.ckpt),
        "dataset": dataset_config.name,
        "split": config.split,
        "images": len(dataset),
        "epoch": content["epoch"],
        "selected_on": content["selection"]["split"],
        "scale": loaded.config.scale,
        "seed": loaded.config.seed,
        "commit": content["commit"],
        "block_size": loaded.config.bins.block_size,
        "pictures": config.eval.pictures,
    }
    return Result(evaluation, dataset, folder, facts)


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder to write into, before any work is done for it.

    Raises:
        ConfigError: names the ``setting`` to change if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error}); choose another with {setting}=...") from error
