"""Count all images of a split and measure the errors, on any number of processes."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from headcount.config import (
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
)
from headcount.data.crowd import CrowdDataset
from headcount.data.loading import evaluation_samples
from headcount.data.locate import locate
from headcount.data.open import open_split
from headcount.engine import checkpoint
from headcount.engine.evaluators import BinReliability, Evaluator, Game, empty_blocks
from headcount.engine.runtime import Runtime
from headcount.files import make_folder
from headcount.metrics import Reliability
from headcount.models.counter import WHOLE_IMAGE, Counter
from headcount.runs import EvaluationFacts, evaluation_folder
from headcount.types import CountErrors, Evaluation, ImageCount
from headcount.wording import first_names


def evaluate(
    runtime: Runtime,
    counter: Counter,
    dataset: CrowdDataset,
    mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
    *,
    workers: int = 0,
    evaluators: Sequence[Evaluator] = (),
    probabilities: bool = False,
) -> Evaluation:
    """Count every image of ``dataset``; the processes share the images, and each gets the whole result.

    Leaves the counter in the mode (training or evaluation) it was in.

    Args:
        mode: how an image is counted, with every size given (:func:`headcount.config.counting_mode`).
        workers: processes that load images; 0 loads in this process.
        evaluators: what to measure on each image beyond the count error.
        probabilities: compute the bins' probabilities, for evaluators that use them.

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
                counted = counter.count(sample.image, mode, probabilities=probabilities)
            except MemoryError as error:
                raise MemoryError(f"{sample.name}: {error}") from error
            image = ImageCount(index, sample.name, float(len(sample.points)), counted.count, counted.blocks)
            for evaluator in evaluators:
                image.numbers |= evaluator(sample, counted)
            mine.append(image)
            progress.update(runtime.world)
    counter.train(was_training)
    images = sorted(runtime.gather(mine), key=lambda image: image.index)
    errors = CountErrors.from_counts([image.predicted for image in images], [image.true for image in images])
    if not math.isfinite(errors.mae):
        wrong = [image.name for image in images if not math.isfinite(image.predicted)]
        raise FloatingPointError(f"the predicted counts are not finite on {first_names(wrong)}")
    return Evaluation(errors=errors, images=images)


@dataclass
class CheckpointEvaluation:
    """The evaluation of a checkpoint, the evaluated images, and where its report goes."""

    evaluation: Evaluation
    dataset: CrowdDataset
    folder: Path
    facts: EvaluationFacts
    reliability: Reliability | None
    """Probabilities against observed fractions of the blocks; None for a counter without bins of integers."""


def evaluate_checkpoint(config: EvalCommandConfig) -> CheckpointEvaluation | None:
    """Evaluate a checkpoint on a split of the dataset it was trained on, or of another.

    Returns:
        None on all ranks but the first.

    Raises:
        ConfigError, CheckpointError, DataError: if the settings, the checkpoint or the data are unusable.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.ckpt)
    trained = loaded.config
    mode = loaded.counting_mode(config.eval)
    folder = _report_folder(config, (config.dataset or trained.dataset).name)
    if config.output_dir and runtime.is_main:  # before the work, if it is given
        make_folder(folder, "output_dir")
    with runtime.main_first():
        dataset = open_evaluated(config, trained)
    if runtime.is_main:
        make_folder(folder, "output_dir")
    counter = runtime.move_to_device(loaded.counter)
    # Labels of smoothed counts would need the Gaussian, and a counter without bins has no probabilities.
    reliability = BinReliability(loaded.bins) if loaded.bins and not loaded.bins.smoothed else None
    evaluators: list[Evaluator] = [Game(counter.grid), empty_blocks, *([reliability] if reliability else [])]
    evaluation = evaluate(
        runtime,
        counter,
        dataset,
        mode,
        workers=config.runtime.workers,
        evaluators=evaluators,
        probabilities=reliability is not None,
    )
    merged = None if reliability is None else reliability.gather(runtime)
    if not runtime.is_main:
        return None
    facts = _facts(config, loaded, images=len(dataset), mode=mode)
    return CheckpointEvaluation(evaluation, dataset, folder, facts, merged)


def open_evaluated(config: EvalCommandConfig, trained: TrainConfig) -> CrowdDataset:
    """The split to evaluate: of the dataset in ``config``, otherwise of the one the counter was trained on.

    Raises:
        ConfigError, DataError: if it does not exist or is unusable.
    """
    located = locate(trained.dataset, typed=config.dataset, data_root=config.data_root, trained_root=trained.data_root)
    limited = dataclasses.replace(located.config, max_train_images=config.max_images, max_eval_images=config.max_images)
    return open_split(limited, config.split, data_root=located.data_root)


def _report_folder(config: EvalCommandConfig, dataset: str) -> Path:
    """Where the report goes: the typed folder, or one beside the checkpoint named after dataset and split."""
    if config.output_dir:
        return Path(config.output_dir).expanduser()
    path = Path(config.ckpt).expanduser()
    # The evaluation of the best weights is not overwritten by that of the last ones.
    last = "_last" if path.name == checkpoint.LAST else ""
    return evaluation_folder(path.parent, dataset, f"{config.split}{last}")


def _facts(
    config: EvalCommandConfig,
    loaded: checkpoint.LoadedCheckpoint,
    *,
    images: int,
    mode: WholeImageConfig | SlidingWindowConfig,
) -> EvaluationFacts:
    trained, content = loaded.config, loaded.content
    evaluated = config.dataset or trained.dataset
    return EvaluationFacts(
        checkpoint=str(config.ckpt),
        dataset=evaluated.name,
        split=config.split,
        trained_on=_trained_on(trained.dataset, evaluated),
        images=images,
        mode=_describe(mode),
        epoch=content["epoch"],
        selected_on=content["selection"]["split"],
        scale=trained.scale,
        seed=trained.seed,
        commit=content["commit"],
        block_size=trained.bins.block_size,
        pictures=config.eval.pictures,
    )


def _trained_on(trained: DatasetConfig, evaluated: DatasetConfig) -> str:
    """The name of the training dataset; with its folder if only that distinguishes it from the evaluated one."""
    if isinstance(trained, CustomConfig) and isinstance(evaluated, CustomConfig):
        folders = [os.path.abspath(os.path.expanduser(c.root or c.train or "")) for c in (trained, evaluated)]
        if folders[0] != folders[1]:
            return f"{trained.name} ({trained.root or trained.train})"
    return trained.name


def _describe(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """How images are counted, in words for a record."""
    if isinstance(mode, WholeImageConfig):
        return "whole image"
    return f"windows of {mode.window} px every {mode.stride} px, border {mode.border.name}"
