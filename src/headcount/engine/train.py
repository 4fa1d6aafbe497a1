"""Training: ``train`` builds everything that a config names, ``fit`` is the loop, ``train_step`` one step of it."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from headcount.commands import as_typed
from headcount.config import TrainConfig
from headcount.engine import checkpoint
from headcount.engine.autosave import Autosave
from headcount.engine.evaluate import EvaluationStoppedError, evaluate
from headcount.engine.evaluators import Evaluator, Game, empty_blocks
from headcount.engine.records import Meter
from headcount.engine.run import RunFolder, recorded_precision
from headcount.engine.runtime import Runtime, unwrap
from headcount.engine.setup import Job, build_job
from headcount.engine.signals import StopSignals, stop
from headcount.engine.summary import summarize
from headcount.engine.trackers import require_trackers
from headcount.errors import DataError, DivergedError, OutputError
from headcount.files import quoted
from headcount.metrics import GAME, dropped_shares, parts_table, rank_correlation
from headcount.models.build import follow_weights
from headcount.progress import progress_bar
from headcount.runs import read_metrics
from headcount.types import Batch, Best, CountErrors, Evaluation, LossTerms, Prediction, Sample
from headcount.wording import first_names

DrawBlocks = Callable[[Sample, Float[Tensor, "rows cols"], int], np.ndarray]
"""(sample, expected heads per block, block size in pixels) -> picture (3, height, width) in bytes."""

# Steps between checks of the loss; each check waits for the device.
CHECK_EVERY = 10
# Number of evaluation images drawn into TensorBoard.
_MAX_DRAWN = 3


@dataclass
class FinishedRun:
    """The result of a training run."""

    folder: Path
    metrics: list[dict[str, Any]]
    """The records of metrics.jsonl, one per epoch."""
    best: Best


def train(config: TrainConfig, *, draw: DrawBlocks | None = None) -> FinishedRun | None:
    """Train what ``config`` describes; with ``dry_run`` only print its description.

    Args:
        draw: makes the density pictures for TensorBoard; None makes none.

    Returns:
        None with ``dry_run``, and on all ranks but the first.

    Raises:
        ConfigError, DataError, CheckpointError: if the run folder is in use, or settings, data or weights are
            unusable.
        OutputError: if a file of the run cannot be written.
        DivergedError: if the training diverges.
        ProcessError: if another process of the run has died.
        SystemExit, KeyboardInterrupt: if a signal stopped the training, whose state is then saved.
    """
    require_trackers(config.logger)
    # 1. Processes.
    runtime = Runtime(config.runtime, recorded=recorded_precision(config))
    settled = dataclasses.replace(config.runtime, precision=runtime.precision.precision)
    config = dataclasses.replace(config, model=follow_weights(config.model), runtime=settled)
    with runtime.guard(), StopSignals(is_main=runtime.is_main) as signals:
        # 2. Run folder: refuse a used one, or one in use, before any work is done.
        run = RunFolder.open(runtime, config)
        with run:
            return _train(runtime, config, run, signals, draw)


def _train(
    runtime: Runtime, config: TrainConfig, run: RunFolder, signals: StopSignals, draw: DrawBlocks | None
) -> FinishedRun | None:
    # 3. Data, bins, network, loss, optimizer.
    job = build_job(config, runtime, pretrained=not run.resuming)
    # 4. Description.
    precision = runtime.precision
    description = f"{summarize(job)}\nprecision: {precision.precision.name} ({precision.reason})"
    if config.dry_run:
        if runtime.is_main:
            print(description)
        return None
    # 5. Resume, and open the records.
    run.restore(job)
    if runtime.is_main:
        resumed = f", from epoch {job.epoch}" if job.epoch else ""
        resumed = f", from epoch {job.epoch + 1}, step {job.unfinished.meter.steps}" if job.unfinished else resumed
        print(f"{description}\nrun: {run.path}{resumed}", file=sys.stderr)
    # 6. Train and evaluate.
    try:
        fit(runtime, job, run, signals, draw=draw if runtime.is_main else None)
    except FloatingPointError as error:
        hint = "a lower optim.lr, or optim.max_grad_norm=1, usually helps"
        raise DivergedError(f"{error}; {run.safe()}; {hint}") from error
    except OutputError as error:
        raise OutputError(f"{error}; {run.safe()}. After that, add resume=true to the same command") from error
    except DataError as error:
        text = f"{error}; {run.safe()}. Once the data are complete again, add resume=true to the same command"
        raise DataError(text, kind=error.kind, file=error.file) from error
    return _finish(job, run.path) if runtime.is_main else None


def fit(runtime: Runtime, job: Job, run: RunFolder, signals: StopSignals, *, draw: DrawBlocks | None = None) -> None:
    """Train from ``job.epoch`` to the last epoch; save at the end of each, within it at intervals, and on signals.

    Args:
        signals: of which any to any process ends the training, once its state is saved.
        draw: makes the pictures for TensorBoard; None makes none.

    Raises:
        FloatingPointError: if a loss, a gradient, a weight or a predicted count is not finite; names the epoch, the
            step and the files of the batch.
        OutputError: if a file of the run cannot be written.
        DataError: if an image can no longer be read.
        SystemExit, KeyboardInterrupt: if a signal stopped the training.
    """
    autosave = Autosave(runtime, signals, minutes=job.config.save_every_minutes)
    with signals.deferred(), _progress_bar(runtime, job) as progress:  # an error message begins on a line of its own
        stopped = _fit(runtime, job, run, autosave, progress, draw)
    if stopped and runtime.is_main:
        print(f"stopped; {run.safe()}", file=sys.stderr)
        stop(stopped)
    if stopped:
        sys.exit(0)  # a launcher such as torchrun kills rank 0 when another process ends with another status


def _fit(runtime: Runtime, job: Job, run: RunFolder, autosave: Autosave, progress: Any, draw: DrawBlocks | None) -> int:
    """Train; the result is the number of the signal that stopped it, or 0."""
    config = job.config
    while job.epoch < config.epochs and not job.stops_early:
        # Train one epoch.
        meter = _start_epoch(runtime, job)
        autosave.start_epoch(meter.steps)
        for batch in job.loader.epoch(job.epoch, start=meter.steps):
            meter.lr = job.optimizer.param_groups[0]["lr"]
            loss, prediction = train_step(runtime, job, batch)
            meter.add(loss, prediction, batch)  # no device sync here
            progress.update(len(batch.names) * runtime.world)
            if meter.steps % CHECK_EVERY == 1:
                progress.set_postfix_str(f"epoch {meter.epoch}/{config.epochs} {meter.check(runtime)}")
            decision = autosave.decide(meter.steps, is_last=meter.steps == len(job.loader))
            if decision.save:
                _save_mid_epoch(runtime, job, run, meter)
                autosave.saved()
            if decision.signal:
                return decision.signal
        job.epoch += 1
        record = {"epoch": job.epoch, "lr": meter.lr, **_backbone_rate(job, meter), **meter.close(runtime)}
        _refuse_diverged(runtime, job, meter)
        # Evaluate.
        is_best = False
        if job.epoch % config.eval_every_epochs == 0 or job.epoch == config.epochs:
            evaluation = _evaluate(runtime, job, autosave)
            if evaluation is None:
                run.save_mid_epoch(job, meter)
                return autosave.signal()
            is_best = job.best is None or evaluation.errors.mae < job.best.mae
            if is_best:
                job.best = Best(epoch=job.epoch, **dataclasses.asdict(evaluation.errors))
            record |= evaluation_record(evaluation, job.data.selection_split)
            if _is_drawn(config, job.epoch):
                run.draw(_draw_images(draw, job, evaluation), job.epoch)
            if runtime.is_main:
                progress.write(_evaluation_line(job, evaluation), file=sys.stderr)
        # Record and save.
        run.save(job, record, is_best=is_best)
        autosave.saved()
    return 0


def _start_epoch(runtime: Runtime, job: Job) -> Meter:
    """Seed the random generators and measure anew; or continue with those of the unfinished epoch."""
    runtime.seed(job.config.seed, job.epoch)
    job.model.train()
    if job.unfinished is None:
        return Meter(job.epoch + 1)
    meter, random = job.unfinished.meter, job.unfinished.random
    runtime.load_random_state(random)
    job.unfinished = None
    return meter


def _backbone_rate(job: Job, meter: Meter) -> dict[str, float]:
    """The backbone's learning rate in the last step, for the record, if it has one of its own."""
    factor = job.config.optim.backbone_lr_factor
    return {} if factor == 1 else {"backbone_lr": factor * meter.lr}


def _save_mid_epoch(runtime: Runtime, job: Job, run: RunFolder, meter: Meter) -> None:
    """Save the state after the last step, unless it is no longer finite; device sync."""
    meter.check(runtime)
    _refuse_diverged(runtime, job, meter)
    run.save_mid_epoch(job, meter)


def train_step(runtime: Runtime, job: Job, batch: Batch) -> tuple[LossTerms, Prediction]:
    """One optimizer step on a batch: forward, loss, backward, update of weights, learning rate and average."""
    loss, prediction = _add_gradients(runtime, job, runtime.to_device(batch))
    norm = runtime.clip_gradients(job.model, job.optimizer, job.config.optim.max_grad_norm)
    job.optimizer.step()
    job.optimizer.zero_grad()
    job.schedule.step()
    job.average.update()
    return dataclasses.replace(loss, logged={**loss.logged, "gradient_norm": norm.detach()}), prediction


def _add_gradients(runtime: Runtime, job: Job, batch: Batch) -> tuple[LossTerms, Prediction]:
    """Forward and backward pass of a batch, in equal parts one after the other; the processes exchange once."""
    parts = batch.split(job.config.accumulate)
    losses, predictions = [], []
    for number, part in enumerate(parts, start=1):
        with runtime.no_exchange(job.model, enabled=number < len(parts)):
            prediction = job.model(part.images)
            with runtime.single_thread():
                loss = job.loss(prediction, part)  # float32, outside autocast
            runtime.backward(loss.total / len(parts))
        losses.append(loss)
        predictions.append(prediction)
    return LossTerms.mean(losses), Prediction.join(predictions)


def _refuse_diverged(runtime: Runtime, job: Job, meter: Meter) -> None:
    """Refuse weights that the last steps made useless, before they replace good ones; device sync."""
    wrong = checkpoint.not_finite(job.counter.state_dict()) or checkpoint.not_finite(job.average.state_dict())
    if runtime.sum([len(wrong)])[0]:  # statistics of normalization differ between processes
        raise FloatingPointError(
            f"epoch {meter.epoch}, step {meter.steps}: the weights are no longer finite ({first_names(wrong)}), though "
            "every loss was"
        )


def _evaluate(runtime: Runtime, job: Job, autosave: Autosave) -> Evaluation | None:
    """Evaluate the weights of the end of an epoch on the images that select; None if a signal stopped it."""
    evaluated = runtime.broadcast_buffers(job.average.evaluated(unwrap(job.model)))
    workers = job.config.runtime.workers
    try:
        evaluators: list[Evaluator] = [empty_blocks, Game(evaluated.grid)]
        return evaluate(
            runtime,
            evaluated,
            job.data.selection,
            job.mode,
            workers=workers,
            evaluators=evaluators,
            is_stopping=autosave.is_stopping,
        )
    except EvaluationStoppedError:
        return None
    except FloatingPointError as error:
        raise FloatingPointError(f"epoch {job.epoch}: {error}") from error


def evaluation_record(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """An evaluation as numbers for metrics.jsonl and TensorBoard."""
    predicted, true = evaluation.count_deviations()
    blocks = evaluation.total("blocks")
    games = [name for name in GAME if name in evaluation.images[0].numbers]
    empty = {} if math.isnan(blocks) else {"eval/empty_blocks": evaluation.total("empty_blocks") / blocks}
    parts = {
        f"eval/{part}/{key}": value
        for part, errors in evaluation.parts.items()
        for key, value in dataclasses.asdict(errors).items()
    }
    return {
        "eval/split": split,
        **{f"eval/{key}": value for key, value in dataclasses.asdict(evaluation.errors).items()},
        **parts,
        "eval/predicted_mean": sum(image.predicted for image in evaluation.images) / len(evaluation.images),
        "eval/predicted_std": predicted,
        "eval/true_std": true,
        **empty,
        **{f"eval/{name}": evaluation.total(name) / len(evaluation.images) for name in games},
        **_patches_record(evaluation),
    }


def _patches_record(evaluation: Evaluation) -> dict[str, float]:
    """Rank correlation of the counts, and shares of dropped patches; nothing for a counter without patches."""
    dropped = dropped_shares(evaluation.images)
    if not dropped:
        return {}
    predicted, true = (np.array([getattr(image, of) for image in evaluation.images]) for of in ("predicted", "true"))
    correlation = rank_correlation(predicted, true)
    known = {} if math.isnan(correlation) else {"eval/rank_correlation": correlation}
    return known | {f"eval/{name}": share for name, share in dropped.items()}


def _finish(job: Job, folder: Path) -> FinishedRun:
    """Print the best result and the next command."""
    assert job.best is not None, "the last epoch is always evaluated"
    name, note = checkpoint.BEST, ""
    if job.stops_early:
        print(
            f"stopped early after epoch {job.epoch} of {job.config.epochs}: no lower MAE in early_stopping="
            f"{job.config.early_stopping} evaluations; to train on, add resume=true early_stopping=null",
            file=sys.stderr,
        )
    if job.config.keep == "last" and not (folder / name).is_file():
        name, note = checkpoint.LAST, f"; keep=last: {checkpoint.LAST} has the weights of epoch {job.epoch}"
    elif not (folder / name).is_file():  # removed after it was saved
        note = f"; {folder / name} is missing, {checkpoint.LAST} has the weights of the last epoch"
        name = checkpoint.LAST
    ckpt = shlex.quote(f"ckpt={quoted(folder / name)}")
    print(
        f"best MAE {job.best.mae:.2f}, RMSE {job.best.rmse:.2f} at epoch {job.best.epoch}, selected on "
        f"'{job.data.selection_split}'{note}; next: {as_typed('python eval.py')} {ckpt}",
        file=sys.stderr,
    )
    metrics = read_metrics(folder)
    if parts := _part_errors(metrics[job.best.epoch - 1], list(job.data.selection.parts())):
        print(parts_table(parts, job.best), file=sys.stderr)
    return FinishedRun(folder, metrics, job.best)


def _part_errors(record: Mapping[str, Any], parts: Sequence[str]) -> dict[str, CountErrors]:
    """The errors over each part of a mixed dataset, from the record of an epoch."""
    keys = [item.name for item in dataclasses.fields(CountErrors)]
    return {part: CountErrors(**{key: record[f"eval/{part}/{key}"] for key in keys}) for part in parts}


def _progress_bar(runtime: Runtime, job: Job) -> Any:
    images = len(job.loader) * job.loader.step_images
    return progress_bar(
        label="training",
        total=job.config.epochs * images,
        initial=job.epoch * images + (job.unfinished.meter.steps * job.loader.step_images if job.unfinished else 0),
        disable=not runtime.is_main,
        smoothing=0.05,
    )


def _evaluation_line(job: Job, evaluation: Evaluation) -> str:
    errors, best = evaluation.errors, job.best
    assert best is not None
    predicted, true = evaluation.count_deviations()
    return (
        f"epoch {job.epoch:>4}  {job.data.selection_split}: MAE {errors.mae:.2f}  RMSE {errors.rmse:.2f}  "
        f"NAE {errors.nae:.3f}  standard deviation {predicted:.1f} (true {true:.1f})  "
        f"best MAE {best.mae:.2f} at epoch {best.epoch}"
        + "".join(f"\n  {part}: {_short(errors)}" for part, errors in evaluation.parts.items())
    )


def _short(errors: CountErrors) -> str:
    return f"MAE {errors.mae:.2f}  RMSE {errors.rmse:.2f}  NAE {errors.nae:.3f}  ({errors.images} images)"


def _is_drawn(config: TrainConfig, epoch: int) -> bool:
    """Whether the evaluation after this epoch is one whose density maps go to TensorBoard."""
    number = math.ceil(epoch / config.eval_every_epochs)
    every = config.draw_every_evaluations
    return every > 0 and (number == 1 or epoch == config.epochs or number % every == 0)


def _draw_images(draw: DrawBlocks | None, job: Job, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Pictures of the first evaluated images, by name; none for a counter without blocks."""
    if draw is None:
        return {}
    return {
        f"eval/{image.name}": draw(job.data.selection[image.index], image.blocks, job.counter.grid.block_size)
        for image in evaluation.images[:_MAX_DRAWN]
        if image.blocks is not None
    }
