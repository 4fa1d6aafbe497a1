"""Calibrate the intervals of a counter on images it was not trained on, and judge intervals on others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcount import published
from headcount.config import (
    ConfigError,
    DatasetConfig,
    EvalCommandConfig,
    describe_mode,
    upgrade_config,
)
from headcount.data.catalogue import HOLDOUT
from headcount.data.crowd import CrowdDataset
from headcount.data.locate import LocatedDataset
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate, locate_evaluated, open_located
from headcount.engine.evaluators import OwnIntervals
from headcount.engine.runtime import Runtime
from headcount.engine.stored import described, save_counter
from headcount.engine.training_images import dataset_parts, find_training_images
from headcount.errors import CheckpointError
from headcount.files import make_folder
from headcount.intervals import MIN_CALIBRATION_IMAGES, Calibration, Features, scale
from headcount.runs import read_metrics, stops_early
from headcount.types import ImageCount
from headcount.wording import first_names, many

_OTHERS = "choose split=val, or another dataset with dataset=NAME"


@dataclass(frozen=True)
class CalibratedCheckpoint:
    """What was found in calibrating a counter."""

    calibration: Calibration
    has_variance: bool
    """Whether the counter has a distribution of its own, whose deviation is the scale of its errors."""
    notes: list[str]
    """What the coverage may suffer from, one line each."""


def calibrate_checkpoint(config: EvalCommandConfig, output: Path) -> CalibratedCheckpoint:
    """Count images with a checkpoint and write a copy of it that holds its errors; in one process.

    Args:
        config: an evaluation on images that the counter was not trained on.
        output: the file to write.

    Raises:
        ConfigError, CheckpointError, DataError: if the settings, the checkpoint or the images are unusable.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.checkpoint)
    trained, mode = loaded.config, loaded.counting_mode(config.eval)
    located = locate_evaluated(config, trained)
    _refuse_split(config, trained.dataset, located)
    dataset = open_located(config, located)
    try:
        training = find_training_images(loaded.content, trained, located)
    except CheckpointError as error:
        raise CheckpointError(f"ckpt={config.ckpt}: {error}") from error
    seen = training.among(dataset)
    _refuse_trained(config, dataset, seen, own=located.own)
    make_folder(output.parent, "--output")
    counter = runtime.move_to_device(loaded.counter)
    try:
        images = evaluate(
            runtime,
            counter,
            dataset,
            mode,
            workers=config.runtime.workers,
            evaluators=[OwnIntervals(None)],
            variance=True,
        ).images
    except FloatingPointError as error:
        raise CheckpointError(f"ckpt={config.ckpt}: {error}; choose another checkpoint") from error
    images = [image for image in images if image.index not in set(seen)]
    name, split = located.config.name, config.split
    try:
        calibration = calibrate(images, dataset, name=name, split=split, mode=describe_mode(mode))
    except ValueError as error:
        raise CheckpointError(f"ckpt={config.ckpt}: its counts are not usable: {error}") from error
    _write(_counting_content(loaded.content) | {"calibration": calibration.to_plain()}, output)
    file, unknown = Path(config.checkpoint).expanduser(), training.unknown
    notes = _notes(loaded, file, split, own=located.own, left_out=len(seen), unknown=unknown)
    return CalibratedCheckpoint(calibration, "variance" in images[0].numbers, notes)


def _notes(
    loaded: checkpoint.LoadedCheckpoint,
    file: Path,
    split: str,
    *,
    own: bool,
    left_out: int,
    unknown: Sequence[str],
) -> list[str]:
    """What to know about a calibration, one line each.

    Args:
        loaded, file: the checkpoint.
        split: of the calibration images.
        own: whether their dataset is read as in the training.
        left_out: number of images that are training images.
        unknown: names of the datasets of the training whose images were not found.
    """
    notes = []
    if (before := loaded.calibration) is not None:
        replaced = f"{many(len(before), 'image')} of {before.dataset} {before.split}"
        notes.append(f"This replaces the counter's calibration on {replaced}.")
    if loaded.content["selection"]["split"] == split and own:
        notes += _selected_by_them(loaded, file)
    if left_out:
        notes.append(f"{many(left_out, 'image')} left out, with the same content as training images.")
    if unknown:
        notes.append(
            "Whether the counter was trained on these images could not be checked: its checkpoint does not record its "
            f"training images, and those of {' and '.join(unknown)} were not found."
        )
    return notes


def _selected_by_them(loaded: checkpoint.LoadedCheckpoint, file: Path) -> list[str]:
    """What to know if the images that selected among the checkpoints of a training calibrate one of them."""
    epoch, best = loaded.content["epoch"], (loaded.content["best"] or {}).get("epoch")
    if best is not None and epoch is not None and stops_early(loaded.config, epoch=epoch, best_epoch=best):
        return ["These images decided that the training ended at this checkpoint: errors on others may be larger."]
    if best not in (None, epoch):  # an earlier one is better
        return []
    best = _best_epoch(loaded.content, file)
    if best is None:
        return ["These images may have selected the checkpoint: errors on others may be larger."]
    return ["These images selected the checkpoint: errors on others may be larger."] if best == epoch else []


def _best_epoch(content: dict[str, Any], file: Path) -> int | None:
    """The epoch of the best checkpoint of a training, by what lies beside one of its checkpoints; None if nothing does.

    A checkpoint itself records the best one until then only.
    """
    if not file.is_file():  # the name of a published one
        return None
    try:
        records = {r["epoch"]: r for r in read_metrics(file.parent) if math.isfinite(r.get("eval/mae", math.nan))}
        recorded, mine = content["best"] or {}, records.get(content["epoch"])
        if mine is not None and math.isclose(mine["eval/mae"], recorded.get("mae", mine["eval/mae"])):
            return min(records, key=lambda epoch: records[epoch]["eval/mae"])
    except CheckpointError:  # as if it were not there
        pass
    try:
        best = checkpoint.read(file.parent / checkpoint.BEST)
    except CheckpointError:
        return None
    epoch: int | None = best["epoch"] if best["config"] == content["config"] else None
    return epoch


def _write(content: dict[str, Any], output: Path) -> None:
    """Write a counter in the format that the ending names; a pair keeps all 32 bits, on which the errors rest."""
    if published.is_pair(output):
        save_counter(output, content, int16=False)
    else:
        checkpoint.save(content, output)


def calibrate(images: Sequence[ImageCount], dataset: CrowdDataset, *, name: str, split: str, mode: str) -> Calibration:
    """The calibration of counted images.

    Args:
        images: counted, with their ``variance`` where the counter has one.
        dataset: the images.
        name: of the dataset.
        split: of the dataset.
        mode: how the images were counted, in words.
    """
    features = [Features.of(image.predicted, dataset.sizes[image.index]) for image in images]
    densities, megapixels = [f.density for f in features], [f.megapixels for f in features]
    scores = [
        abs(image.true - image.predicted) / scale(image.predicted, image.numbers.get("variance")) for image in images
    ]
    return Calibration(
        scores=tuple(sorted(scores)),
        dataset=name,
        split=split,
        names=tuple(image.name for image in images),
        digests=tuple(dataset.digest(image.index) for image in images),
        least=Features(min(densities), min(megapixels)),
        most=Features(max(densities), max(megapixels)),
        mode=mode,
    )


def _refuse_split(config: EvalCommandConfig, trained: DatasetConfig, located: LocatedDataset) -> None:
    """Refuse the split of the training, and held-out images that are not those of its training.

    Raises:
        ConfigError: says which images can be used.
    """
    if config.split == "train" and located.own:
        raise ConfigError(f"split=train: the counter was trained on these images; {_OTHERS}")
    if config.split == HOLDOUT and not located.own:
        raise ConfigError(f"split={HOLDOUT}: is a part of the counter's own dataset; leave out dataset=, or {_OTHERS}")
    if config.split == HOLDOUT and not any(part.holdout for part in dataset_parts(trained)):
        raise ConfigError(
            f"split={HOLDOUT}: the counter was trained with dataset.holdout=0, on all training images; {_OTHERS}"
        )


def _refuse_trained(config: EvalCommandConfig, dataset: CrowdDataset, seen: list[int], *, own: bool) -> None:
    """Refuse images of the training, and fewer others than a calibration needs.

    In another split of the training's own dataset, such images are copies, and are left out.

    Args:
        seen: indices of the images of the training.
        own: whether the dataset is read as in the training.

    Raises:
        ConfigError: if there are any, or too few others.
    """
    if seen and not own:
        names = first_names([dataset.names[index] for index in seen], limit=3)
        these = "these images" if len(seen) == len(dataset) else f"{len(seen)} of these {len(dataset)} images"
        raise ConfigError(f"split={config.split}: the counter was trained on {these} ({names}); {_OTHERS}")
    if len(dataset) - len(seen) < MIN_CALIBRATION_IMAGES:
        besides = f", besides {len(seen)} that are among the training images" if seen else ""
        raise ConfigError(
            f"split={config.split}: has {many(len(dataset) - len(seen), 'image')}{besides}; a calibration needs at "
            f"least {MIN_CALIBRATION_IMAGES}, and the 95 % interval 19: name a split or dataset with more"
        )


def _counting_content(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint needs to count: without what resumes its training, and with settings in today's keys."""
    return described(content) | {"model": content["model"], "config": upgrade_config(content["config"])}
