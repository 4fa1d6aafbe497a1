"""Count all images of a split and measure the errors, on any number of processes."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from headcount import published
from headcount.config import (
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    MixedConfig,
    Precision,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    ZipHeadConfig,
    counting_mode,
    describe_mode,
)
from headcount.coverage import JudgedIntervals, judge_calibrated, judge_own
from headcount.data.catalogue import part_split, source_split
from headcount.data.crowd import CrowdDataset
from headcount.data.listing import SPLITS
from headcount.data.loading import evaluation_samples
from headcount.data.locate import LocatedDataset, locate
from headcount.data.open import open_split
from headcount.engine import checkpoint
from headcount.engine.evaluators import BinReliability, Evaluator, Game, OwnIntervals, empty_blocks
from headcount.engine.runtime import Runtime
from headcount.errors import CheckpointError, DataError
from headcount.files import make_folder
from headcount.intervals import Calibration
from headcount.metrics import Reliability
from headcount.models.counter import WHOLE_IMAGE, Counter
from headcount.progress import progress_bar
from headcount.runs import EvaluationFacts, evaluation_folder
from headcount.types import CountErrors, Evaluation, ImageCount
from headcount.wording import first_names


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before all images were counted."""


def evaluate(
    runtime: Runtime,
    counter: Counter,
    dataset: CrowdDataset,
    mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
    *,
    workers: int = 0,
    evaluators: Sequence[Evaluator] = (),
    probabilities: bool = False,
    variance: bool = False,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Count every image of ``dataset``; the processes share the images, and each gets the whole result.

    Leaves the counter in the mode (training or evaluation) it was in.

    Args:
        mode: how an image is counted, with every size given (:func:`headcount.config.counting_mode`).
        workers: processes that load images; 0 loads in this process.
        evaluators: what to measure on each image beyond the count error.
        probabilities: compute the bins' probabilities, for evaluators that use them.
        variance: compute the variance of the blocks, for evaluators that use it.
        is_stopping: asked before each image whether to stop instead of counting it.

    Raises:
        EvaluationStoppedError: if any process stopped; on all of them.
        FloatingPointError: if a predicted count is not finite; names the images.
        MemoryError: if an image does not fit into memory; names it.
    """
    was_training = counter.training
    counter.eval()
    mine = []
    progress = progress_bar(total=len(dataset), label="evaluating", leave=False, disable=not runtime.is_main)
    with progress:
        for index, sample in evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=workers):
            if is_stopping():
                break
            try:
                counted = counter.count(sample.image, mode, probabilities=probabilities, variance=variance)
                if sample.mask is not None:
                    counted = counted.within(sample.mask.shares(counter.grid.block_size))
            except MemoryError as error:
                raise MemoryError(f"{sample.name}: {error}") from error
            image = ImageCount(index, sample.name, float(len(sample.points)), counted.count, counted.blocks)
            # A count that is not finite is reported once all processes are here; evaluators cannot use it.
            for evaluator in evaluators if math.isfinite(counted.count) else ():
                image.numbers |= evaluator(sample, counted)
            mine.append(image)
            progress.update(runtime.world)
    counter.train(was_training)
    images = sorted(runtime.gather(mine), key=lambda image: image.index)
    if len(images) < len(dataset):
        raise EvaluationStoppedError(f"{len(images)} of {len(dataset)} images were counted")
    wrong = [f"{image.name} ({image.predicted})" for image in images if not math.isfinite(image.predicted)]
    if wrong:
        raise FloatingPointError(
            f"the predicted counts are not finite on {len(wrong)} of {len(images)} images: {first_names(wrong)}"
        )
    parts = {part: _errors([images[k] for k in indices]) for part, indices in dataset.parts().items()}
    return Evaluation(errors=_errors(images), images=images, parts=parts)


def _errors(images: Sequence[ImageCount]) -> CountErrors:
    return CountErrors.from_counts([image.predicted for image in images], [image.true for image in images])


@dataclass
class CheckpointEvaluation:
    """The evaluation of a checkpoint, the evaluated images, and where its report goes."""

    evaluation: Evaluation
    dataset: CrowdDataset
    folder: Path
    facts: EvaluationFacts
    reliability: Reliability | None
    """Probabilities against observed fractions of the blocks; None for a counter without bins of integers."""
    intervals: JudgedIntervals
    """Intervals of the counts, with the true counts."""


def evaluate_checkpoint(
    config: EvalCommandConfig, *, defaults: DatasetConfig | None = None
) -> CheckpointEvaluation | None:
    """Evaluate a checkpoint on a split of the dataset it was trained on, or of another.

    Args:
        defaults: the default settings of ``config.dataset``; the folder of the report is named after those that
            differ. Not needed for the dataset that the counter was trained on.

    Returns:
        None on all ranks but the first.

    Raises:
        ConfigError, CheckpointError, DataError: if the settings, the checkpoint or the data are unusable.
        ProcessError: if another process has died.
    """
    runtime = Runtime(config.runtime)
    with runtime.guard():
        return _evaluate_checkpoint(runtime, config, defaults)


def _evaluate_checkpoint(
    runtime: Runtime, config: EvalCommandConfig, defaults: DatasetConfig | None
) -> CheckpointEvaluation | None:
    loaded = checkpoint.load(config.ckpt)
    trained = loaded.config
    mode = loaded.counting_mode(config.eval)
    located = locate_evaluated(config, trained)
    settings = _other_settings(config, loaded, located.config, mode, defaults=defaults)
    folder = _report_folder(config, located.config.name, settings)
    if config.output_dir and runtime.is_main:  # before the work, if it is given
        make_folder(folder, "output_dir")
    with runtime.main_first():
        dataset = open_located(config, located)
    if runtime.is_main:
        make_folder(folder, "output_dir")
    counter = runtime.move_to_device(loaded.counter)
    # Labels of smoothed counts would need the Gaussian, and a counter without bins has no probabilities.
    reliability = BinReliability(loaded.bins) if loaded.bins and not loaded.bins.smoothed else None
    zero_inflated = isinstance(trained.model.head, ZipHeadConfig)
    own_intervals = OwnIntervals(None if zero_inflated else loaded.bins, zero_inflated=zero_inflated)
    evaluators: list[Evaluator] = [Game(counter.grid), empty_blocks, own_intervals]
    evaluators += [reliability] if reliability else []
    try:
        evaluation = evaluate(
            runtime,
            counter,
            dataset,
            mode,
            workers=config.runtime.workers,
            evaluators=evaluators,
            probabilities=reliability is not None,
            variance=True,
        )
    except FloatingPointError as error:
        raise CheckpointError(f"ckpt={config.ckpt}: {error}; choose another checkpoint") from error
    for image in evaluation.images:
        image.note = dataset.note(image.index, loaded.seen, predicted=image.predicted)
    merged = None if reliability is None else reliability.gather(runtime)
    if not runtime.is_main:
        return None
    facts = _facts(config, loaded, located, images=len(dataset), mode=mode, settings=settings)
    intervals = _judge_intervals(evaluation.images, dataset, loaded.calibration, mode=describe_mode(mode))
    return CheckpointEvaluation(evaluation, dataset, folder, facts, merged, intervals)


def _judge_intervals(
    images: Sequence[ImageCount], dataset: CrowdDataset, calibration: Calibration | None, *, mode: str
) -> JudgedIntervals:
    """The intervals of counted images; calibrated ones are not judged on the images of the calibration."""
    own = judge_own(images)
    if calibration is None:
        return JudgedIntervals(own, [], None)
    known = set(calibration.digests)
    others = [image for image in images if dataset.digest(image.index) not in known]
    sizes = [dataset.sizes[image.index] for image in others]
    calibrated = judge_calibrated(others, calibration, sizes=sizes, mode=mode)
    return JudgedIntervals(own, calibrated, calibration, overlapping=len(images) - len(others))


def locate_evaluated(
    config: EvalCommandConfig, trained: TrainConfig, *, overrides: Sequence[str] | None = None
) -> LocatedDataset:
    """The dataset that ``config`` names, and where its files are now.

    Args:
        overrides: the settings as typed. If given and the dataset is the one of the training, it is read by the
            settings of the checkpoint except for these (:func:`headcount.data.locate.locate`).

    Raises:
        ConfigError, DataError: if there is no place to look for it.
    """
    return locate(
        trained.dataset,
        typed=config.dataset,
        overrides=overrides,
        data_root=config.data_root,
        trained_root=trained.data_root,
    )


def open_evaluated(config: EvalCommandConfig, trained: TrainConfig) -> CrowdDataset:
    """The split to evaluate: of the dataset in ``config``, otherwise of the one the counter was trained on.

    Raises:
        ConfigError, DataError: if it does not exist or is unusable.
    """
    return open_located(config, locate_evaluated(config, trained))


def open_located(config: EvalCommandConfig, located: LocatedDataset) -> CrowdDataset:
    """The split to evaluate of a dataset that was located.

    Raises:
        ConfigError, DataError: if it does not exist or is unusable.
    """
    limited = _limited(located.config, config.max_images)
    try:
        return open_split(limited, config.split, data_root=located.data_root)
    except DataError as error:
        if not isinstance(limited, MixedConfig):
            raise
        hint = "choose other images with split=NAME, or evaluate on one of the parts with dataset=NAME"
        raise DataError(f"{error}; {hint}", kind=error.kind, file=error.file) from error


def _limited(dataset: DatasetConfig, images: int | None) -> DatasetConfig:
    """A copy that evaluates only the first ``images``, of each part of a mixed dataset."""
    limited = dataclasses.replace(dataset, max_train_images=images, max_eval_images=images)
    if isinstance(limited, MixedConfig):
        limited.datasets = {name: _limited(part, images) for name, part in limited.datasets.items()}
    return limited


def _report_folder(config: EvalCommandConfig, dataset: str, settings: Mapping[str, Any]) -> Path:
    """Where the report goes: the typed folder, or one beside the checkpoint named by all that makes the results."""
    if config.output_dir:
        return Path(config.output_dir).expanduser()
    path = Path(config.ckpt).expanduser()
    located = published.locate(config.ckpt)
    if located is None or located.parent == published.published_folder():  # not a folder to write to
        name = re.sub(r"[^\w.@-]+", "-", str(config.ckpt)) if located is None else located.stem
        path = Path(TrainConfig.output_dir, "published", name, name)
    return evaluation_folder(path.parent, dataset, config.split, checkpoint=path.name, settings=settings)


def _other_settings(
    config: EvalCommandConfig,
    loaded: checkpoint.LoadedCheckpoint,
    evaluated: DatasetConfig,
    mode: WholeImageConfig | SlidingWindowConfig,
    *,
    defaults: DatasetConfig | None,
) -> dict[str, Any]:
    """The settings, by name, in which an evaluation differs from the plain one.

    The plain one counts all images as in training; of the training's dataset by the settings in the checkpoint, of
    another one by its default settings.
    """
    trained = loaded.config
    same = type(evaluated) is type(trained.dataset) and evaluated.name == trained.dataset.name
    usual_dataset = trained.dataset if same else defaults or type(evaluated)(name=evaluated.name)
    plain = _identity(usual_dataset, config.split)
    identity = _identity(evaluated, config.split)
    found = {f"dataset.{key}": value for key, value in identity.items() if value != plain.get(key)}
    usual = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size)
    if _mode_name(mode) != _mode_name(usual):
        found["eval"] = _mode_name(mode)
    if config.max_images is not None:
        found["max_images"] = config.max_images
    if config.runtime.precision is not Precision.float32:
        found["runtime.precision"] = config.runtime.precision.name
    return found


def _mode_name(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """The counting mode with its sizes, as part of a folder's name."""
    if isinstance(mode, WholeImageConfig):
        return "whole_image"
    return f"windows_{mode.window}_{mode.stride}_{mode.border.name}"


def _identity(dataset: DatasetConfig, split: str) -> dict[str, Any]:
    """The settings that determine which images of a split are counted, and at which size.

    Published datasets are the same in every folder; custom datasets are distinguished by their folders and files.
    """
    if isinstance(dataset, MixedConfig):
        return {
            f"{name}.{key}": value
            for name, part in dataset.datasets.items()
            for key, value in _identity(part, part_split(part, split)).items()
        }
    ignored = {*("cache_dir", "cache", "outside", "one_head_per_pixel", "max_train_images", "max_eval_images")}
    paths = {"root", "train", "val", "test", "points", "split_file"} if isinstance(dataset, CustomConfig) else set()
    paths |= {"mask"} if getattr(dataset, "mask", None) not in (None, "none", "roi") else set()
    ignored |= set() if isinstance(dataset, CustomConfig) else {"root"}
    ignored |= {f"{other}_images" for other in SPLITS if other != source_split(split)}  # of generated crowds
    plain: dict[str, Any] = {}
    for key, value in vars(dataset).items():
        if key in paths and value is not None:
            plain[key] = os.path.abspath(os.path.expanduser(value))
        elif key not in ignored:
            plain[key] = value.name if isinstance(value, Enum) else value
    return plain


def _facts(
    config: EvalCommandConfig,
    loaded: checkpoint.LoadedCheckpoint,
    located: LocatedDataset,
    *,
    images: int,
    mode: WholeImageConfig | SlidingWindowConfig,
    settings: dict[str, Any],
) -> EvaluationFacts:
    trained, content, evaluated = loaded.config, loaded.content, located.config
    return EvaluationFacts(
        checkpoint=str(config.ckpt),
        dataset=evaluated.name,
        split=config.split,
        trained_on=trained.dataset.name if located.own else _trained_on(trained.dataset, evaluated),
        images=images,
        mode=describe_mode(mode),
        epoch=content["epoch"],
        selected_on=content["selection"]["split"],
        scale=trained.scale,
        seed=trained.seed,
        commit=content["commit"],
        block_size=trained.bins.block_size,
        pictures=config.eval.pictures,
        settings=settings,
    )


def _trained_on(trained: DatasetConfig, evaluated: DatasetConfig) -> str:
    """The name of the training dataset; with its folder if only that distinguishes it from the evaluated one.

    If the evaluated dataset was one of several that were trained on, it is that one.
    """
    if isinstance(trained, CustomConfig) and isinstance(evaluated, CustomConfig):
        folders = [os.path.abspath(os.path.expanduser(c.root or c.train or "")) for c in (trained, evaluated)]
        if folders[0] != folders[1]:
            return f"{trained.name} ({trained.root or trained.train})"
    if isinstance(trained, MixedConfig):
        names = [part.name for part in trained.datasets.values() if not isinstance(part, CustomConfig)]
        return evaluated.name if evaluated.name in names else f"{trained.name} ({', '.join(trained.datasets)})"
    return trained.name
