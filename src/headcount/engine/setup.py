"""From a training config to a job: data, bins, network, loss, optimizer, schedule."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from headcount.bins import CountBins, build_bins
from headcount.config import (
    BinsConfig,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    CountedIn,
    LossConfig,
    MixedConfig,
    Reduction,
    Representatives,
    SlidingWindowConfig,
    TrainConfig,
    TransportConfig,
    WholeImageConfig,
    counting_mode,
    crop_error,
    window_error,
)
from headcount.data.augment import build_augment
from headcount.data.catalogue import selection_split
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram, smoothed_histogram
from headcount.data.loading import MakeBatch, Targets, TrainLoader, build_batches, build_smoothing, build_train_loader
from headcount.data.mixed import refuse_shared
from headcount.data.open import missing_splits, no_blocks_error, no_heads_error, open_split, open_unannotated
from headcount.data.points import Smoothing
from headcount.engine.finetune import Start, read_start
from headcount.engine.optim import NoAverage, WeightAverage, build_average, build_optimizer, build_schedule
from headcount.engine.records import Meter
from headcount.engine.runtime import Runtime
from headcount.losses.build import Loss, build_loss, require_masks
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.runs import stops_early
from headcount.types import Best, BlockGrid

# The deepest features of a network have at most this stride, in pixels.
_MAX_STRIDE = 64


@dataclass
class TrainingData:
    """The images of a run: those it trains on, and those that select its checkpoint."""

    train: CrowdDataset
    selection: CrowdDataset
    selection_split: str
    """Name of the split that selects; written into every record."""
    histogram: Mapping[int, int]
    """Block count -> number of training blocks; empty if the annotations are not read."""
    missing: Sequence[str] = ()
    """Splits that the run does not need and whose images were not found, one line each."""


@dataclass
class UnfinishedEpoch:
    """The part of an epoch that was trained before the run was stopped, on this process."""

    meter: Meter
    """What was measured in its steps."""
    random: dict[str, Any]
    """States of the random generators after them (``Runtime.random_state``)."""


@dataclass
class Job:
    """Everything a training run works with."""

    config: TrainConfig
    data: TrainingData
    bins: CountBins | None
    """None for a config without bins."""
    counter: Counter
    """The plain network, which is evaluated and saved."""
    model: nn.Module
    """The same network, wrapped for distributed, mixed-precision training."""
    loss: Loss
    make_batch: MakeBatch
    loader: TrainLoader
    optimizer: Optimizer
    schedule: LambdaLR
    average: WeightAverage | NoAverage
    mode: WholeImageConfig | SlidingWindowConfig
    """How images are counted in evaluation, with every size given."""
    start: Start | None = None
    """The checkpoint that the training started from; None without one, and for a resumed training."""
    epoch: int = 0
    """Finished epochs."""
    best: Best | None = None
    """The best evaluation so far; None before the first."""
    unfinished: UnfinishedEpoch | None = None
    """Where a resumed run continues within the next epoch; None at its start."""

    @property
    def stops_early(self) -> bool:
        """Whether the training ends before its last epoch, because it no longer improves."""
        if self.best is None or self.epoch >= self.config.epochs:
            return False
        return stops_early(self.config, epoch=self.epoch, best_epoch=self.best.epoch)


def build_job(config: TrainConfig, runtime: Runtime, *, pretrained: bool, data: TrainingData | None = None) -> Job:
    """Build everything that ``config`` names.

    Args:
        pretrained: False builds the network without its pretrained weights or those of ``init_from``, for a checkpoint
            to fill.
        data: images to use instead of those of ``config.dataset``; None opens these.

    Raises:
        ConfigError, DataError: if settings do not fit together, or data or weights are missing.
    """
    grid = BlockGrid(config.bins.block_size)
    with runtime.main_first():  # rank 0 fills the caches, which the others then find
        data = data or open_data(config)
        bins = build_count_bins(config.bins, data.train, data.histogram, part=_bins_part(config))
        runtime.seed(config.seed)
        start = read_start(config, bins) if pretrained else None
        counter = _build_counter(config, data, bins, start, pretrained=pretrained)
    mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)
    _refuse_sizes(config, counter, mode)
    loss = build_loss(_over_parts(config.loss, runtime.world * config.accumulate), grid, bins)
    if data.train.has_masks:
        require_masks(loss, config.loss)
    targets = Targets(
        loss.needs | ({"mask"} if data.train.has_masks else set()),
        grid,
        merge=config.dataset.one_head_per_pixel,
        smoothing=build_smoothing(config.bins, config.loss),
        bins=bins,
        input_size=getattr(config.model, "input_size", None),  # not every model has one
    )
    make_batch = build_batches(config.method, targets)
    loader = build_train_loader(
        data.train,
        make_batch,
        batch_size_per_process=config.batch_size // runtime.world,
        parts=config.accumulate,
        seed=config.seed,
        workers=config.runtime.workers,
        rank=runtime.rank,
        world=runtime.world,
        pin_memory=runtime.device.type == "cuda",
    )
    crops = loader.step_images if config.runtime.sync_batchnorm else loader.step_images // runtime.world
    if config.method.reads_annotations:  # others make several crops of an image
        _refuse_single_values(config, counter, crops=crops // config.accumulate)
    plain_optimizer = build_optimizer(config.optim, counter)
    # On the plain optimizer: Fabric's wrapper would hide its steps from the schedule.
    schedule = build_schedule(config.optim, plain_optimizer, epochs=config.epochs, steps_per_epoch=len(loader))
    model, optimizer = runtime.setup(counter, plain_optimizer)
    return Job(
        config=config,
        data=data,
        bins=bins,
        counter=counter,
        model=model,
        loss=loss,
        make_batch=make_batch,
        loader=loader,
        optimizer=optimizer,
        schedule=schedule,
        average=build_average(config.optim, counter),
        mode=mode,
        start=start,
    )


def _build_counter(
    config: TrainConfig, data: TrainingData, bins: CountBins | None, start: Start | None, *, pretrained: bool
) -> Counter:
    """The network with its published weights, or those of the checkpoint that it starts from."""
    published = pretrained and (start is None or start.needs_pretrained(config.model))
    grid = BlockGrid(config.bins.block_size)
    counter = build_model(config.model, grid, bins, histogram=data.histogram, pretrained=published)
    if start is not None:
        start.fill(counter, config.model)
    return counter


def _over_parts(config: LossConfig, parts: int) -> LossConfig:
    """The loss of one part of a batch: gradients are averaged over equal parts, by which a sum would be divided.

    Args:
        parts: number of parts over all processes.
    """
    transport = getattr(config, "transport", None)  # any loss may have one
    if not isinstance(transport, TransportConfig) or transport.ot_reduction is not Reduction.sum:
        return config
    summed = dataclasses.replace(transport, ot_weight=transport.ot_weight * parts)
    return dataclasses.replace(config, transport=summed)  # type: ignore[call-arg]


def open_data(config: TrainConfig) -> TrainingData:
    """The training images and those that select the checkpoint.

    Raises:
        ConfigError, DataError: if they do not exist or are unusable.
    """
    split = selection_split(config.dataset)
    train, histogram = _open_training_images(config)
    selection = open_split(config.dataset, split, data_root=config.data_root)
    refuse_shared(train, selection)
    missing = missing_splits(config.dataset, data_root=config.data_root)
    return TrainingData(train, selection, split, histogram, missing)


def _open_training_images(config: TrainConfig) -> tuple[CrowdDataset, Mapping[int, int]]:
    """The training images, and the histogram of their blocks, which is empty if their annotations are not read."""
    if not config.method.reads_annotations:
        return open_unannotated(config.dataset, "train", data_root=config.data_root, seed=config.seed), {}
    train = open_split(
        config.dataset, "train", data_root=config.data_root, augment=build_augment(config.augment), seed=config.seed
    )
    if not any(train.count(k) for k in range(len(train))):
        raise no_heads_error(config.dataset, len(train), masked=train.heads_masked)
    histogram = block_histogram(train, config.bins.block_size)
    if train.has_masks and not histogram:
        raise no_blocks_error(config.dataset, config.bins.block_size)
    return train, histogram


def _bins_part(config: TrainConfig) -> str | None:
    """The part of a mixed dataset whose blocks give the bins' representative counts; None if all do."""
    return config.dataset.bins_from if isinstance(config.dataset, MixedConfig) else None


def build_count_bins(
    config: BlocksConfig, train: CrowdDataset, histogram: Mapping[int, int], *, part: str | None = None
) -> CountBins | None:
    """The bins of a config, with what they need from the training images; None for a config without bins.

    Args:
        histogram: block count -> number of training blocks.
        part: the part of a mixed dataset whose blocks give the representative counts; None uses those of all. The
            largest count, which ends the bins without label correction, is always that of all parts.
    """
    if isinstance(config, BlockwiseConfig):
        smoothed = smoothed_histogram(train, config.block_size, Smoothing(config.sigma))
        return build_bins(config, histogram, smoothed=smoothed)
    if isinstance(config, BinsConfig) and _averages_windows(config):
        basis = train if part is None else train.members[part]
        windows = block_histogram(basis, config.block_size, counted=CountedIn.windows)
        return build_bins(config, histogram, windows=windows)
    if part is not None:
        return build_bins(config, histogram, windows=block_histogram(train.members[part], config.block_size))
    return build_bins(config, histogram)


def _averages_windows(config: BinsConfig) -> bool:
    """Whether representative counts are means over windows, of which there are many millions."""
    means = config.representatives is Representatives.mean and config.representative_counts is None
    return means and config.counted is CountedIn.windows


def _refuse_sizes(config: TrainConfig, counter: Counter, mode: WholeImageConfig | SlidingWindowConfig) -> None:
    """Refuse crops and windows that do not fit the network, whose stride may be known only once it is built."""
    block_size = config.bins.block_size
    wrong = crop_error(
        config.augment.crop_size, block_size=block_size, stride=counter.stride, model=config.model.name
    ) or window_error(mode, block_size, counter.stride)
    if wrong:
        raise ConfigError(wrong)


def _refuse_single_values(config: TrainConfig, counter: Counter, *, crops: int) -> None:
    """Refuse a batch of one small crop, which leaves BatchNorm one value per channel; only the network knows where.

    Args:
        crops: number of crops whose values are normalized together.
    """
    size = config.augment.crop_size
    if crops > 1 or size > _MAX_STRIDE:
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            copy.deepcopy(counter).train()(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    except ValueError as error:
        raise ConfigError(
            f"batch_size={config.batch_size} augment.crop_size={size}: a step of one crop leaves BatchNorm a single "
            f"value per channel ({error}); use at least 2 crops per process and part of a step, or larger crops"
        ) from error
