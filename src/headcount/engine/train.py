"""Training: ``train`` builds everything a config names, ``fit`` is the loop."""

import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from headcount.bins import CountBins, build_bins
from headcount.command import quoted
from headcount.config import (
    PLACE,
    BinsConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    Counted,
    Representatives,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
    crop_error,
    to_plain,
    upgrade_config,
    window_error,
)
from headcount.data.augment import build_augment
from headcount.data.catalogue import selection_split
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram, smoothed_histogram
from headcount.data.loading import TrainLoader, build_smoothing, build_train_loader
from headcount.data.open import open_split
from headcount.data.points import Smoothing
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate
from headcount.engine.optim import LearningRate, NoAverage, WeightAverage, build_average, build_optimizer
from headcount.engine.records import Meter, NoRecords, Records
from headcount.engine.runtime import Runtime, unwrap
from headcount.engine.summary import summarize
from headcount.files import make_folder, written_whole
from headcount.losses.build import Loss, build_loss
from headcount.models.build import build_model, follow_weights
from headcount.runs import CONFIG, PROVENANCE, flatten, read_metrics, read_run
from headcount.types import Evaluation, Sample

Draw = Callable[[Sample, Float[Tensor, "rows cols"], int], np.ndarray]
"""(sample, expected heads in each block, block size) -> picture (3, height, width) in bytes."""

# Steps between looks at the loss: each look waits for the device.
_LOOK_EVERY = 10
# Evaluation images drawn into TensorBoard.
_PICTURES = 3


@dataclass
class Data:
    """What a run trains on, and what selects its checkpoint."""

    train: CrowdDataset
    loader: TrainLoader
    select: CrowdDataset
    selection: str
    """Name of the split that selects; written into every record."""


@dataclass
class State:
    """How far a run has come."""

    epoch: int = 0
    """Epochs finished."""
    best: dict[str, Any] | None = None
    """Epoch, MAE, RMSE and NAE of the best evaluation."""


@dataclass
class Run:
    """What a training run leaves behind."""

    folder: Path
    metrics: list[dict[str, Any]]
    """The records of metrics.jsonl, one an epoch."""
    best: dict[str, Any]
    """Epoch, MAE, RMSE and NAE of the best evaluation."""


def fit(
    runtime: Runtime,
    model: nn.Module,
    *,
    loss_fn: Loss,
    optimizer: Optimizer,
    schedule: LearningRate,
    average: WeightAverage | NoAverage,
    data: Data,
    config: TrainConfig,
    state: State,
    records: Records | NoRecords,
    save: Callable[[State, bool], None],
    draw: Draw | None,
) -> None:
    """Train from ``state.epoch`` to ``config.epochs``; save at each epoch's end.

    Args:
        save: called with the state, and whether this epoch is the best so far.
        draw: makes the pictures for TensorBoard; None makes none.

    Raises:
        FloatingPointError: at a loss that is not finite; names the files of the batch.
    """
    progress = _progress_bar(runtime, data, config, state)
    for epoch in range(state.epoch, config.epochs):
        runtime.seed(config.seed, epoch)
        model.train()
        meter = Meter()
        for batch in data.loader.epoch(epoch):
            batch = runtime.to_device(batch)
            prediction = model(batch.images)
            loss = loss_fn(prediction, batch)  # float32, outside autocast
            runtime.backward(loss.total)
            runtime.clip_gradients(model, optimizer, config.optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update(unwrap(model))
            meter.add(loss, prediction, batch)  # no device sync here
            progress.update(len(batch.names) * runtime.world)
            if meter.steps % _LOOK_EVERY == 1:
                progress.set_postfix_str(f"epoch {epoch + 1}/{config.epochs} {meter.look()}")
        state.epoch = epoch + 1
        record = {"epoch": state.epoch, "lr": schedule.value, **meter.close(runtime)}
        best = False
        if state.epoch % config.eval_every_epochs == 0 or state.epoch == config.epochs:
            evaluated = runtime.agree(average.evaluated(unwrap(model)))
            evaluation = evaluate(runtime, evaluated, data.select, _mode(config), workers=config.runtime.workers)
            record |= evaluation_record(evaluation, data.selection)
            best = state.best is None or evaluation.errors.mae < state.best["mae"]
            if best:
                state.best = {"epoch": state.epoch, **dataclasses.asdict(evaluation.errors)}
            records.pictures(_pictures(draw, data.select, evaluation, config), state.epoch)
            if runtime.is_main:
                progress.write(_evaluation_line(evaluation, state, data.selection), file=sys.stderr)
        records.write(record)
        save(state, best)
    progress.close()


def train(config: TrainConfig, *, draw: Draw | None = None) -> Run | None:
    """Build what ``config`` names and train it; with ``dry_run`` only describe it (and return None).

    Args:
        draw: makes the density pictures for TensorBoard; None makes none.

    Raises:
        ConfigError: if the run directory is in use, or data or weights are missing.
    """
    runtime = Runtime(config.runtime)
    config = dataclasses.replace(config, model=follow_weights(config.model))
    folder = run_folder(config)
    if runtime.is_main and not config.dry_run:
        _refuse_used_folder(folder, config)
    resuming = config.resume and (folder / checkpoint.LAST).exists()
    with runtime.main_first():  # the main process fills the caches, the others find them
        data = _open_data(config, runtime)
        histogram = block_histogram(data.train, config.bins.block_size)
        bins = count_bins(config, data.train, histogram)
        runtime.seed(config.seed)
        counter = build_model(
            config.model, bins, block_size=config.bins.block_size, histogram=histogram, pretrained=not resuming
        )
    windows = window_error(_mode(config), counter.block_size, counter.stride)
    crop = crop_error(
        config.augment.crop_size,
        block_size=counter.block_size,
        stride=counter.stride,
        model=config.model.name,
    )
    if wrong := crop or windows:
        raise ConfigError(wrong)
    loss_fn = build_loss(config.loss, bins, block_size=config.bins.block_size)
    description = summarize(config, data.train, data.select, data.selection, bins, histogram, counter, loss_fn)
    if config.dry_run:
        if runtime.is_main:
            print(description)
        return None
    images = _digest(data.train)
    model, optimizer = runtime.setup(counter, build_optimizer(config.optim, counter))
    schedule = LearningRate(config.optim, optimizer, epochs=config.epochs, steps_per_epoch=len(data.loader))
    average = build_average(config.optim, counter)
    state = State()
    if config.resume and not resuming and runtime.is_main:
        print(f"nothing to resume in {folder}: starting at the first epoch", file=sys.stderr)
    if resuming:
        content = checkpoint.read(folder / checkpoint.LAST)
        _refuse_changed_config(config, content["config"])
        _refuse_changed_images(images, content.get("training_images"))
        counter.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        schedule.load_state_dict(content["schedule"])
        average.load_state_dict(content["average"])
        runtime.load_scaler_state(content["scaler"])
        state = State(epoch=content["epoch"], best=content["best"])
    commit, plain = checkpoint.commit(), to_plain(config)
    records: Records | NoRecords = NoRecords()
    if runtime.is_main:
        make_folder(folder, "output_dir")
        earlier = read_run(folder).commits if resuming and (folder / CONFIG).is_file() else []
        digest = f"{images}-{_digest(data.select)}"
        made = {
            "commits": [*(c for c in earlier if c != commit), commit],
            "images": {"train": len(data.train), "selection": len(data.select), "digest": digest},
            **runtime.describe(),
        }
        records = Records(folder, start_epoch=state.epoch)
        with written_whole(folder / CONFIG) as part:
            OmegaConf.save(OmegaConf.create(plain), part)
        with written_whole(folder / PROVENANCE) as part:
            part.write_text(json.dumps(made, indent=2) + "\n")
        print(f"{description}\nrun: {folder}" + (f", from epoch {state.epoch}" if state.epoch else ""), file=sys.stderr)

    def save(state: State, is_best: bool) -> None:
        if not runtime.is_main:
            return
        common = {
            "commit": commit,
            "config": plain,
            "bins": None if bins is None else bins.to_dict(),
            "epoch": state.epoch,
            "best": state.best,
            "selection": {"split": data.selection, "dataset": config.dataset.name, "metric": "mae"},
        }
        training = {
            "model": counter.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "average": average.state_dict(),
            "scaler": runtime.scaler_state(),
            "training_images": images,
        }
        if is_best:
            checkpoint.save({**common, "model": average.evaluated(counter).state_dict()}, folder / checkpoint.BEST)
        checkpoint.save({**common, **training}, folder / checkpoint.LAST)

    fit(
        runtime,
        model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        schedule=schedule,
        average=average,
        data=data,
        config=config,
        state=state,
        records=records,
        save=save,
        draw=draw if runtime.is_main else None,
    )
    records.close()
    if not runtime.is_main:
        return None
    best = state.best or {}
    print(
        f"best MAE {best['mae']:.2f}, RMSE {best['rmse']:.2f} at epoch {best['epoch']}, selected on "
        f"'{data.selection}'; next: python eval.py {shlex.quote(f'ckpt={quoted(folder / checkpoint.BEST)}')}",
        file=sys.stderr,
    )
    return Run(folder=folder, metrics=read_metrics(folder), best=best)


def _mode(config: TrainConfig) -> WholeImageConfig | SlidingWindowConfig:
    return counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)


def run_folder(config: TrainConfig) -> Path:
    """<output_dir>/<dataset>/<run name>/seed<seed>: the same settings always give the same folder."""
    return Path(config.output_dir).expanduser() / config.dataset.name / config.run_name / f"seed{config.seed}"


# A run directory is never written over, and never continued with other settings.


def _refuse_used_folder(folder: Path, config: TrainConfig) -> None:
    if not config.resume and folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            f"{folder} holds a run already; add resume=true to go on with it, run_name=NAME to keep both, "
            "or remove the folder"
        )


# What may change between a run and its continuation: where things are, not what is learned.
_MAY_CHANGE = (*PLACE, "eval.pictures")


def _refuse_changed_config(config: TrainConfig, plain_before: dict[str, Any]) -> None:
    before, now = flatten(upgrade_config(plain_before)), flatten(to_plain(config))
    changed = [
        f"{key}={now.get(key)} (was {before.get(key)})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in _MAY_CHANGE
    ]
    if changed:
        raise ConfigError(
            f"resume=true with other settings than the run has: {', '.join(changed)}; "
            "go on with its own settings, or start another run with run_name=NAME"
        )


def _digest(dataset: CrowdDataset) -> str:
    """Tells one set of annotated images from another, wherever it lies."""
    lines = sorted(f"{name} {dataset.count(index):g}" for index, name in enumerate(dataset.names))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _refuse_changed_images(now: str, before: str | None) -> None:
    if before not in (None, now):  # checkpoints of earlier versions do not tell
        raise ConfigError(
            "resume=true with other training images or annotations than the run has: go on with its own, or start "
            "another run with run_name=NAME"
        )


def _open_data(config: TrainConfig, runtime: Runtime) -> Data:
    selection = selection_split(config.dataset)
    train_set = open_split(
        config.dataset, "train", data_root=config.data_root, augment=build_augment(config.augment), seed=config.seed
    )
    select_set = open_split(config.dataset, selection, data_root=config.data_root)
    loader = build_train_loader(
        train_set,
        batch_size_per_process=config.batch_size // runtime.world,
        seed=config.seed,
        block_size=config.bins.block_size,
        workers=config.runtime.workers,
        rank=runtime.rank,
        world=runtime.world,
        pin_memory=runtime.device.type == "cuda",
        smoothing=build_smoothing(config.bins, config.loss),
    )
    return Data(train_set, loader, select_set, selection)


def count_bins(config: TrainConfig, dataset: CrowdDataset, histogram: dict[int, int]) -> CountBins | None:
    """The bins, with what they need to know of the training images beside the ``histogram`` of their blocks."""
    bins, windows, smoothed = config.bins, None, None
    if isinstance(bins, BlockwiseConfig):
        smoothed = smoothed_histogram(dataset, bins.block_size, Smoothing(bins.sigma))
    elif _takes_windows(bins):
        windows = block_histogram(dataset, bins.block_size, counted=Counted.windows)
    return build_bins(bins, histogram, windows=windows, smoothed=smoothed)


def _takes_windows(bins: BlocksConfig) -> bool:
    """Whether there are representative counts to be taken from windows: there are many millions of them."""
    return (
        isinstance(bins, BinsConfig)
        and bins.counted is Counted.windows
        and bins.representatives is Representatives.mean
        and bins.representative_counts is None
    )


def _progress_bar(runtime: Runtime, data: Data, config: TrainConfig, state: State) -> Any:
    images = len(data.loader) * config.batch_size
    return tqdm(
        total=config.epochs * images,
        initial=state.epoch * images,
        desc="training",
        unit="img",
        disable=not runtime.is_main,
        dynamic_ncols=True,
        smoothing=0.05,
        # A log file gets a line now and then, a terminal a moving bar.
        mininterval=0.2 if sys.stderr.isatty() else 20,
    )


def evaluation_record(evaluation: Evaluation, split: str) -> dict[str, Any]:
    """An evaluation as numbers for metrics.jsonl and TensorBoard."""
    predicted, true = evaluation.spread()
    return {
        "eval/split": split,
        **{f"eval/{key}": value for key, value in dataclasses.asdict(evaluation.errors).items()},
        "eval/predicted_mean": sum(i.predicted for i in evaluation.images) / len(evaluation.images),
        "eval/predicted_spread": predicted,
        "eval/true_spread": true,
        "eval/empty_blocks": evaluation.empty_blocks(),
    }


def _evaluation_line(evaluation: Evaluation, state: State, split: str) -> str:
    errors, best = evaluation.errors, state.best or {}
    predicted, true = evaluation.spread()
    return (
        f"epoch {state.epoch:>4}  {split}: MAE {errors.mae:.2f}  RMSE {errors.rmse:.2f}  NAE {errors.nae:.3f}  "
        f"spread {predicted:.1f} (true {true:.1f})  best MAE {best['mae']:.2f} at epoch {best['epoch']}"
    )


def _pictures(
    draw: Draw | None, dataset: CrowdDataset, evaluation: Evaluation, config: TrainConfig
) -> dict[str, np.ndarray]:
    if draw is None:
        return {}
    return {
        f"eval/{image.name}": draw(dataset[image.index], image.blocks, config.bins.block_size)
        for image in evaluation.images[:_PICTURES]
    }
