"""Calibrate the intervals of a counter on images it was not trained on, and judge intervals on others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    MixedConfig,
    SyntheticConfig,
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
from headcount.errors import CheckpointError
from headcount.intervals import MIN_CALIBRATION_IMAGES, Calibration, Features, scale
from headcount.types import ImageCount
from headcount.wording import many


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
    if len(dataset) < MIN_CALIBRATION_IMAGES:
        raise ConfigError(
            f"split={config.split}: has {many(len(dataset), 'image')}; a calibration needs at least "
            f"{MIN_CALIBRATION_IMAGES}, and the 95 % interval 19: name a split or dataset with more"
        )
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
    calibration = calibrate(images, dataset, name=located.config.name, split=config.split, mode=describe_mode(mode))
    checkpoint.save(_counting_content(loaded.content) | {"calibration": calibration.to_plain()}, output)
    selected = loaded.content["selection"]["split"] == config.split and located.own
    notes = ["These images selected the checkpoint: errors on others may be larger."] if selected else []
    return CalibratedCheckpoint(calibration, "variance" in images[0].numbers, notes)


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
    """Refuse images that the counter was trained on, and held-out images that are not those of its training.

    Raises:
        ConfigError: says which images can be used.
    """
    others = "name a split it has not seen, such as split=val, or another dataset="
    parts = list(trained.datasets.values()) if isinstance(trained, MixedConfig) else [trained]
    if config.split == "train" and (located.own or any(_same_images(located.config, part) for part in parts)):
        raise ConfigError(
            f"split=train: on these images the counter was trained, its errors on others are larger; {others}"
        )
    if config.split == HOLDOUT and not located.own:
        raise ConfigError(f"split={HOLDOUT}: is a part of the counter's own dataset; leave out dataset=, or {others}")
    if config.split == HOLDOUT and not any(part.holdout for part in parts):
        raise ConfigError(f"split={HOLDOUT}: the counter was trained with dataset.holdout=0, on all images; {others}")


def _same_images(one: DatasetConfig, other: DatasetConfig) -> bool:
    """Whether two configs are of the same images; published datasets are the same in every folder."""
    keys = {CustomConfig: ("root", "train"), SyntheticConfig: ("seed",)}.get(type(one), ())
    return one.name == other.name and all(getattr(one, key) == getattr(other, key, None) for key in keys)


def _counting_content(content: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint needs to count: without what resumes its training, and with settings in today's keys."""
    left_out = {"format", "format_version", *checkpoint.RESUMING_KEYS}
    kept = {key: value for key, value in content.items() if key not in left_out}
    return kept | {"config": upgrade_config(content["config"])}
