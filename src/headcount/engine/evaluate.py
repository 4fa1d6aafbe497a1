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
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    MixedConfig,
    Precision,
    SlidingWindowConfig,
    TrainConfig,
    Tta,
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
from headcount.models.ensemble import Ensemble
from headcount.progress import progress_bar
from headcount.runs import EvaluationFacts, evaluation_folder
from headcount.types import CountErrors, Evaluation, ImageCount
from headcount.wording import first_names

Mode = WholeImageConfig | SlidingWindowConfig


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before all images were counted."""


def evaluate(
    runtime: Runtime,
    counter: Counter | Ensemble,
    dataset: CrowdDataset,
    mode: Mode | Sequence[Mode] = WHOLE_IMAGE,
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
        mode: how an image is counted, with every size given (:func:`headcount.config.counting_mode`); of an ensemble,
            how each member counts it.
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
                counted = counter.count(sample.image, mode, probabilities=probabilities, variance=variance)  # type: ignore[arg-type]
                if sample.mask is not None:
                    counted = counted.within(sample.mask.shares(counter.grid.block_size))
            except MemoryError as error:
                raise MemoryError(f"{sample.name}: {error}") from error
            image = ImageCount(index, sample.name, float(len(sample.points)), counted.count, counted.blocks)
            image.numbers |= counted.measured
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
    members = [checkpoint.load(path) for path in config.checkpoints]
    loaded, trained = members[0], members[0].config
    modes = [_counting_mode(config, member, path) for member, path in zip(members, config.checkpoints, strict=True)]
    _refuse_other_training(config, members)
    located = locate_evaluated(config, trained)
    settings = _other_settings(config, loaded, located.config, modes[0], defaults=defaults)
    folder = _report_folder(config, located.config.name, settings)
    if config.output_dir and runtime.is_main:  # before the work, if it is given
        make_folder(folder, "output_dir")
    with runtime.main_first():
        dataset = open_located(config, located)
    if runtime.is_main:
        make_folder(folder, "output_dir")
    counter = runtime.move_to_device(_joined(members))
    reliability = _reliability(members, modes)
    zero_inflated = isinstance(trained.model.head, ZipHeadConfig)
    own_intervals = OwnIntervals(loaded.bins, zero_inflated=zero_inflated)
    evaluators: list[Evaluator] = [Game(counter.grid), empty_blocks, own_intervals]
    evaluators += [reliability] if reliability else []
    try:
        evaluation = evaluate(
            runtime,
            counter,
            dataset,
            modes if isinstance(counter, Ensemble) else modes[0],
            workers=config.runtime.workers,
            evaluators=evaluators,
            probabilities=reliability is not None,
            variance=True,
        )
    except FloatingPointError as error:
        raise CheckpointError(f"ckpt={_typed(config)}: {error}; choose another checkpoint") from error
    for image in evaluation.images:
        notes = [dataset.note(image.index, member.seen, predicted=image.predicted) for member in members]
        image.note = "; ".join(dict.fromkeys(filter(None, notes)))
    merged = None if reliability is None else reliability.gather(runtime)
    if not runtime.is_main:
        return None
    facts = _facts(config, loaded, located, images=len(dataset), mode=modes[0], settings=settings)
    # A calibration is one counter's, and scales its errors by variances, which blocks of other sizes do not have.
    is_calibrated = len(members) == 1 and all(view.scale == 1 for view in modes[0].views)
    calibration = loaded.calibration if is_calibrated else None
    intervals = _judge_intervals(evaluation.images, dataset, calibration, mode=describe_mode(modes[0]))
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


def _typed(config: EvalCommandConfig) -> str:
    """The checkpoints as they are typed."""
    paths = config.checkpoints
    return paths[0] if len(paths) == 1 else f"[{','.join(paths)}]"


def _counting_mode(config: EvalCommandConfig, member: checkpoint.LoadedCheckpoint, path: str) -> Mode:
    """How a checkpoint counts images; an error names it, if it is one of several."""
    try:
        return member.counting_mode(config.eval)
    except ConfigError as error:
        raise ConfigError(str(error) if len(config.checkpoints) == 1 else f"ckpt={path}: {error}") from error


def _refuse_other_training(config: EvalCommandConfig, members: Sequence[checkpoint.LoadedCheckpoint]) -> None:
    """Refuse several checkpoints of different training datasets, unless a dataset is named.

    Raises:
        ConfigError: names the first that differs.
    """
    if isinstance(config.dataset, DatasetConfig):
        return
    first = _identity(members[0].config.dataset, config.split)
    for path, member in zip(config.checkpoints, members, strict=True):
        if _identity(member.config.dataset, config.split) != first:
            raise ConfigError(
                f"ckpt={path}: was trained on {member.config.dataset.name} and {config.checkpoints[0]} on "
                f"{members[0].config.dataset.name}, or with images of another size; name the images to evaluate with "
                "dataset=NAME"
            )


def _joined(members: Sequence[checkpoint.LoadedCheckpoint]) -> Counter | Ensemble:
    """The counter of a checkpoint, or several as an ensemble."""
    if len(members) == 1:
        return members[0].counter
    return Ensemble([member.counter for member in members], same_bins=checkpoint.have_same_bins(members))


def _reliability(members: Sequence[checkpoint.LoadedCheckpoint], modes: Sequence[Mode]) -> BinReliability | None:
    """What measures the bins' probabilities; None if there are none for the blocks of the images themselves."""
    bins = members[0].bins
    # Labels of smoothed counts would need the Gaussian, and blocks of other sizes hold other counts.
    if bins is None or bins.smoothed or not checkpoint.have_same_bins(members):
        return None
    return BinReliability(bins) if all(view.scale == 1 for mode in modes for view in mode.views) else None


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
    ckpt = config.checkpoints[0]
    path = Path(ckpt).expanduser()
    located = published.locate(ckpt)
    if located is None or located.parent == published.published_folder():  # not a folder to write to
        name = re.sub(r"[^\w.@-]+", "-", ckpt) if located is None else located.stem
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
    if others := config.checkpoints[1:]:
        found["ensemble"] = ", ".join(os.path.abspath(os.path.expanduser(path)) for path in others)
    if config.max_images is not None:
        found["max_images"] = config.max_images
    if config.runtime.precision is not Precision.float32:
        found["runtime.precision"] = config.runtime.precision.name
    return found


def _mode_name(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """The counting mode with its sizes, as part of a folder's name."""
    name = "whole_image"
    if isinstance(mode, SlidingWindowConfig):
        name = f"windows_{mode.window}_{mode.stride}_{mode.border.name}"
    sizes = [f"{scale:g}" for scale in mode.scales or [1]]
    name += "_flip" if mode.tta is Tta.flip else ""
    return name if sizes == ["1"] else f"{name}_scales_{'_'.join(sizes)}"


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
    ignored |= set() if source_split(split) == "train" else {"holdout", "cv_folds", "cv_fold", "cv_seed"}
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
        checkpoint=_typed(config),
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
        weights=checkpoint.weights_digest(content["model"]),
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
