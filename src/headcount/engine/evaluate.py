"""Count all images of a split and measure the errors, on any number of processes."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
    window_error,
)
from headcount.data.crowd import CrowdDataset
from headcount.data.loading import evaluation_samples
from headcount.data.locate import locate
from headcount.data.open import open_split
from headcount.data.points import block_counts, clamp_into, spread_blocks
from headcount.engine import checkpoint
from headcount.engine.runtime import Runtime
from headcount.engine.tiling import WHOLE_IMAGE, predict_blocks
from headcount.files import make_folder
from headcount.metrics import Reliability
from headcount.models.counter import Counter
from headcount.runs import evaluation_folder
from headcount.types import CountErrors, Evaluation, ImageCount, Sample

# GAME(3) cuts an image into 2^3 regions a side, those of the coarser levels are made of these.
_REGIONS = 8


def evaluate(
    runtime: Runtime,
    counter: Counter,
    dataset: CrowdDataset,
    mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
    *,
    workers: int = 0,
    reliability: Reliability | None = None,
    bins: CountBins | None = None,
) -> Evaluation:
    """Count every image of ``dataset``; the processes share them, and each gets the whole answer.

    Leaves the counter in the mode it was in.

    Args:
        mode: how an image is counted, with every size given (:func:`headcount.config.counting_mode`).
        reliability: takes in the probabilities of every block; None spares them.
        bins: the bins of those probabilities.

    Raises:
        FloatingPointError: if a predicted count is not finite; names the images.
        MemoryError: if an image does not fit into memory; names it.
    """
    was_training = counter.training
    counter.eval()
    mine = []
    progress = tqdm(
        total=len(dataset), desc="evaluating", unit="img", leave=False, disable=not runtime.is_main, dynamic_ncols=True
    )
    with progress:
        for index, sample in evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=workers):
            try:
                maps = predict_blocks(counter, sample.image, mode, probabilities=reliability is not None)
            except MemoryError as error:
                raise MemoryError(f"{sample.name}: {error}") from error
            if reliability is not None and bins is not None and maps.probabilities is not None:
                reliability.add(maps.probabilities, bins.label(_true_blocks(sample, maps.counts, counter))[0])
            mine.append(
                ImageCount(
                    index=index,
                    name=sample.name,
                    true=float(len(sample.points)),
                    predicted=float(maps.counts.sum(dtype=torch.float64)),
                    blocks=maps.counts,
                    game=game_errors(sample, maps.counts, counter.block_size),
                )
            )
            progress.update(runtime.world)
    counter.train(was_training)
    images = sorted(runtime.gather(mine), key=lambda image: image.index)
    errors = CountErrors.from_counts([i.predicted for i in images], [i.true for i in images])
    if not math.isfinite(errors.mae):
        wrong = [image.name for image in images if not math.isfinite(image.predicted)]
        raise FloatingPointError(f"the predicted counts are not finite on {', '.join(wrong[:5])}")
    if reliability is not None and runtime.world > 1:
        everyone = runtime.gather([reliability])
        reliability.merge(everyone[: runtime.rank] + everyone[runtime.rank + 1 :])
    return Evaluation(errors=errors, images=images)


def game_errors(sample: Sample, blocks: Float[Tensor, "rows cols"], block_size: int) -> tuple[float, float, float]:
    """GAME(1) to GAME(3) of one image: the sum of the errors of its 4, 16 and 64 equal regions.

    A block that lies in several regions is shared among them by area; a head outside the image belongs
    to the nearest region.

    Source: Guerrero-Gomez-Olmedo et al., "Extremely overlapping vehicle counting", 2015.
    """
    height, width = sample.image.shape[1:]
    finest = spread_blocks(
        blocks.double().numpy(), image=(height, width), panel=(_REGIONS, _REGIONS), block_size=block_size
    )
    x, y = (
        (points * _REGIONS / size).floor().long().clamp(0, _REGIONS - 1).numpy()
        for points, size in zip(sample.points.double().unbind(1), (width, height), strict=True)
    )
    np.subtract.at(finest, (y, x), 1)
    levels = []
    while len(finest) > 1:
        levels.append(float(np.abs(finest).sum()))
        finest = finest.reshape(len(finest) // 2, 2, -1, 2).sum(axis=(1, 3))
    first, second, third = reversed(levels)
    return first, second, third


def _true_blocks(
    sample: Sample, blocks: Float[Tensor, "rows cols"], counter: Counter
) -> Float[Tensor, "1 1 rows cols"]:
    """Annotated heads in each of ``blocks``; one outside the image at its border."""
    height, width = sample.image.shape[1:]
    points = clamp_into(sample.points, width=width, height=height)
    rows, cols = blocks.shape
    size = counter.block_size
    return block_counts(points, height=rows * size, width=cols * size, block_size=size)[None, None]


@dataclass
class Result:
    """An evaluation, what was evaluated, and where its report goes."""

    evaluation: Evaluation
    dataset: CrowdDataset
    folder: Path
    facts: dict[str, Any]
    """Plain values for the report: checkpoint, dataset, split, how the checkpoint was selected."""
    reliability: Reliability | None
    """Probabilities against shares of the blocks; None for a counter without bins of whole heads."""


def evaluate_checkpoint(config: EvalCommandConfig) -> Result | None:
    """Evaluate a checkpoint on a split of the dataset it was trained on, or of another.

    Returns:
        None on every process but the first.

    Raises:
        ConfigError: if the checkpoint, the split or the data cannot be read.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.ckpt)
    trained_on = loaded.config.dataset
    dataset_config = config.dataset or trained_on
    trained = loaded.config
    mode = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=config.eval)
    if wrong := window_error(mode, loaded.counter.block_size, loaded.counter.stride):
        raise ConfigError(wrong)
    path = Path(config.ckpt).expanduser()
    # The evaluation of the best weights is not written over by that of the last ones.
    last = "_last" if path.name == checkpoint.LAST else ""
    folder = evaluation_folder(path.parent, dataset_config.name, f"{config.split}{last}")
    if config.output_dir:
        folder = Path(config.output_dir).expanduser()
        if runtime.is_main:
            make_folder(folder, "output_dir")
    with runtime.main_first():
        dataset = open_evaluated(config, loaded.config)
    if runtime.is_main:
        make_folder(folder, "output_dir")
    counter = runtime.place(loaded.counter)
    bins = loaded.bins
    # Labels of smoothed counts would need the Gaussian; a counter without bins has no probabilities.
    reliability = None if bins is None or bins.smoothed else Reliability(bins.names())
    evaluation = evaluate(
        runtime, counter, dataset, mode, workers=config.runtime.workers, reliability=reliability, bins=bins
    )
    if not runtime.is_main:
        return None
    content = loaded.content
    facts = {
        "checkpoint": str(config.ckpt),
        "dataset": dataset_config.name,
        "split": config.split,
        "trained_on": trained_on.name if config.dataset is None else _trained_on(trained_on, dataset_config),
        "images": len(dataset),
        "mode": _describe(mode),
        "epoch": content["epoch"],
        "selected_on": content["selection"]["split"],
        "scale": loaded.config.scale,
        "seed": loaded.config.seed,
        "commit": content["commit"],
        "block_size": loaded.config.bins.block_size,
        "pictures": config.eval.pictures,
    }
    return Result(evaluation, dataset, folder, facts, reliability)


def open_evaluated(config: EvalCommandConfig, trained: TrainConfig) -> CrowdDataset:
    """The split to evaluate: of the dataset that was typed, else of the one the counter was trained on.

    Raises:
        ConfigError: if a setting is wrong.
        DataError: if it is not there or cannot be used.
    """
    located = locate(trained.dataset, typed=config.dataset, data_root=config.data_root, trained_root=trained.data_root)
    dataset = dataclasses.replace(located.config, max_train_images=config.max_images, max_eval_images=config.max_images)
    return open_split(dataset, config.split, data_root=located.data_root)


def _trained_on(trained: DatasetConfig, evaluated: DatasetConfig) -> str:
    """The training dataset's name; with its folder where only that tells it from the one that is evaluated."""
    if isinstance(trained, CustomConfig) and isinstance(evaluated, CustomConfig):
        then, now = (os.path.abspath(os.path.expanduser(c.root or c.train or "")) for c in (trained, evaluated))
        if then != now:
            return f"{trained.name} ({trained.root or trained.train})"
    return trained.name


def _describe(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """How images are counted, in words for a record."""
    if isinstance(mode, WholeImageConfig):
        return "whole image"
    return f"windows of {mode.window} px every {mode.stride} px, border {mode.border.name}"
