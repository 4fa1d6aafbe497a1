"""A whole run: every group together, and the checks that span groups."""

import dataclasses
import math
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from headcount.config import augment, dataset, model
from headcount.config.augment import AugmentConfig
from headcount.config.bins import BinsConfig, BlocksConfig, BlockwiseConfig, Representatives
from headcount.config.bins import errors as bins_errors
from headcount.config.counting import EvalConfig, SlidingWindowConfig, WholeImageConfig, window_error
from headcount.config.dataset import DatasetConfig
from headcount.config.fields import number, range_errors
from headcount.config.loss import (
    CountTerm,
    CrossEntropyConfig,
    DaceConfig,
    DmConfig,
    Kernel,
    LossConfig,
    MseConfig,
    Solver,
    TransportConfig,
)
from headcount.config.model import ClipConfig, ClipViTConfig, Head, ModelConfig
from headcount.config.optim import OptimConfig


class Accelerator(Enum):
    """Where tensors live."""

    auto = 1
    cpu = 2
    cuda = 3


class Precision(Enum):
    """Arithmetic of the network; losses and evaluation are always float32."""

    float32 = 1
    bf16 = 2
    fp16 = 3


@dataclass
class RuntimeConfig:
    """Processes, devices, arithmetic."""

    accelerator: Accelerator = Accelerator.auto
    devices: int = number(1, 1)
    """Processes; each holds one device (or a share of the CPU) and one part of the batch."""
    precision: Precision = Precision.float32
    workers: int = number(1, 0)
    """Processes that load images, for each training process; 0 loads in the training process."""
    channels_last: bool = True
    """Memory layout of the network; faster on most machines, same numbers to rounding."""
    compile: bool = False
    """torch.compile the network for training; the first steps take minutes; same numbers to rounding."""


@dataclass
class ExpectedConfig:
    """A published result of an experiment; no part of how it is run."""

    mae: float | None = None
    """Heads an image; None where none was published."""
    rmse: float | None = None
    """Heads an image; None where none was published."""
    source: str = MISSING
    """Where it was published."""
    same_recipe: bool = True
    """Whether it was trained and measured as the experiment is; else the two are never compared."""


@dataclass
class TrainConfig:
    """Everything a training run depends on; written beside its results."""

    dataset: DatasetConfig = MISSING
    model: ModelConfig = MISSING
    bins: BlocksConfig = MISSING
    augment: AugmentConfig = MISSING
    loss: LossConfig = MISSING
    optim: OptimConfig = MISSING
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING
    scale: str = "small"
    """Which set of sizes was chosen; recorded, so that a shrunk run cannot pass for a full one."""
    epochs: int = number(40, 1)
    """Passes over the training images."""
    batch_size: int = number(8, 1)
    """Crops an optimizer step, over all processes."""
    eval_every_epochs: int = number(5, 1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    seed: int = number(1, 0)
    """Seed of weights, order and augmentation."""
    data_root: str | None = None
    """Folder of the datasets; None takes the environment variable HEADCOUNT_DATA."""
    output_dir: str = "checkpoints"
    """Where runs go: <output_dir>/<dataset>/<run name>/seed<seed>."""
    run_name: str = "auto"
    """``auto`` names the run by model, bins and every setting that differs from the defaults."""
    resume: bool = False
    """Go on from last.pt of the same run directory."""
    dry_run: bool = False
    """Build everything, print a summary, stop."""
    expected: ExpectedConfig | None = None
    """What was published for this experiment, for comparison alone."""


@dataclass
class EvalCommandConfig:
    """What ``eval.py`` reads; everything else comes from the checkpoint."""

    ckpt: str = MISSING
    """The checkpoint's file."""
    split: str = "test"
    """Which images: train, val or test, as far as the dataset has them."""
    data_root: str | None = None
    """Folder of the datasets; None takes the environment variable HEADCOUNT_DATA."""
    max_images: int | None = number(None, 1)
    """Evaluate the first so many images; None for all."""
    output_dir: str | None = None
    """Where results go; None writes to eval/<dataset>_<split> beside the checkpoint."""
    dataset: DatasetConfig | None = None
    """Another dataset than the one the counter was trained on; None takes that one."""
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING


PLACE = (
    *("resume", "dry_run", "data_root", "output_dir", "run_name"),
    *("dataset.root", "dataset.cache_dir", "dataset.cache"),
    *("runtime.accelerator", "runtime.workers", "runtime.channels_last", "runtime.compile"),
)
"""Settings that say where and how a run happens, not what is learned."""


def check(config: TrainConfig, *, weights: bool = True) -> list[str]:
    """Every error of a training config that its types do not catch, one line each.

    Args:
        config: what a training run depends on.
        weights: whether to check the pretrained weights as well; a run that is only read does not need their file.
    """
    errors = range_errors(config, "")
    if errors:  # the checks below divide by these numbers
        return errors
    errors += _head_errors(config)
    stride = config.model.stride(config.bins.block_size)
    if stride is not None and (wrong := crop_error(config, stride)):
        errors.append(wrong)
    errors += augment.errors(config.augment)
    if config.batch_size % config.runtime.devices:
        errors.append(
            f"batch_size={config.batch_size}: must be a multiple of runtime.devices={config.runtime.devices}, "
            "so that every process gets as many images"
        )
    without = isinstance(config.model, model.PretrainedConfig) and not weights
    errors += model.errors(dataclasses.replace(config.model, weights="none") if without else config.model)
    if config.optim.warmup_epochs >= config.epochs:
        errors.append(f"optim.warmup_epochs={config.optim.warmup_epochs:g}: must be below epochs={config.epochs}")
    errors += dataset.errors(config.dataset)
    if stride is not None and (wrong := window_error(counting_mode(config), config.bins.block_size, stride)):
        errors.append(wrong)
    if config.run_name in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._+-]+", config.run_name):
        errors.append(f"run_name={config.run_name}: may only hold letters, digits, '.', '_', '+' and '-'")
    return errors


def crop_error(config: TrainConfig, stride: int) -> str | None:
    """What is wrong with the size of training crops for a model of this ``stride`` (px)."""
    block, crop = config.bins.block_size, config.augment.crop_size
    step = math.lcm(block, stride)
    if crop % step == 0:
        return None
    near = max(crop // step, 1) * step
    return (
        f"augment.crop_size={crop}: must be a multiple of {step} (blocks of {block} px, "
        f"{config.model.name} works at stride {stride}); nearest below or at: {near}"
    )


def counting_mode(config: TrainConfig, chosen: EvalConfig | None = None) -> WholeImageConfig | SlidingWindowConfig:
    """How images are counted, with every size given: ``chosen``, else as ``config`` says, else as suits its model.

    A ViT sees windows of the size its positions are for; other networks see the whole image.
    """
    mode = config.eval if chosen is None or type(chosen) is EvalConfig else chosen
    vit = config.model if isinstance(config.model, ClipViTConfig) else None
    if type(mode) is EvalConfig:
        mode = WholeImageConfig() if vit is None else SlidingWindowConfig()
    if isinstance(mode, SlidingWindowConfig):
        window = mode.window or (config.augment.crop_size if vit is None else vit.input_size)
        mode = dataclasses.replace(mode, window=window, stride=mode.stride or window)
    assert isinstance(mode, (WholeImageConfig, SlidingWindowConfig))
    return mode if chosen is None else dataclasses.replace(mode, pictures=chosen.pictures)


def _head_errors(config: TrainConfig) -> list[str]:
    """Head, bins and loss that do not belong together."""
    errors = []
    head, bins, loss = config.model.head, config.bins, config.loss
    if isinstance(bins, (BinsConfig, BlockwiseConfig)):
        if head is Head.regression:
            also = " loss=dm" if isinstance(loss, (DaceConfig, CrossEntropyConfig)) else ""
            errors.append(f"model.head=regression: predicts counts without bins; add bins=none{also}")
        errors += bins_errors(bins)
    else:
        if head is Head.ebc:
            errors.append("bins=none: leaves model.head=ebc nothing to classify; add model.head=regression")
        if isinstance(loss, (DaceConfig, CrossEntropyConfig)):
            term = loss.count_loss if isinstance(loss, DaceConfig) else CountTerm.dm
            name = loss.name if term is CountTerm.dm else f"{loss.name}_{term.name}"
            errors.append(f"loss={name}: classifies blocks into bins, and bins=none has none; choose loss=dm")
    if isinstance(bins, BlockwiseConfig) and isinstance(config.model, ClipConfig):
        errors.append(
            f"bins=blockwise: {config.model.name} reads a sentence about each bin, and there are none about intervals "
            "of smoothed counts; choose bins=fine, bins=dynamic or bins=coarse, or a model without texts"
        )
    transport = loss.transport if isinstance(loss, (DaceConfig, DmConfig)) else None
    if transport is not None and transport.tolerance is not None and transport.solver is Solver.released:
        errors.append(
            f"loss.transport.tolerance={transport.tolerance:g}: the released solver makes a number of iterations; "
            "add loss.transport.solver=stable"
        )
    return errors + _idle_errors(config)


def _idle_errors(config: TrainConfig) -> list[str]:
    """Changed settings that another keeps from being read: they would give one run several names."""
    ebc = config.bins if isinstance(config.bins, BinsConfig) else BinsConfig()
    intervals = config.bins if isinstance(config.bins, BlockwiseConfig) else BlockwiseConfig()
    loss = config.loss
    term = loss.count_loss if isinstance(loss, DaceConfig) else CountTerm.dm
    transport = loss.transport if isinstance(loss, (DaceConfig, DmConfig)) else TransportConfig()
    smoothed = loss if isinstance(loss, MseConfig) else MseConfig()
    every = tuple(item.name for item in dataclasses.fields(TransportConfig))
    # Group, its values, the settings that are not read, if so, and what keeps them from it.
    table: list[tuple[str, Any, tuple[str, ...], bool, str]] = [
        ("bins", ebc, ("min_head_px",), not ebc.label_correction, "bins.label_correction=false"),
        ("bins", ebc, ("min_head_px",), ebc.max_count is not None, "bins.max_count"),
        ("bins", ebc, ("representatives", "counted"), bool(ebc.representative_counts), "bins.representative_counts"),
        ("bins", ebc, ("counted",), ebc.representatives is Representatives.middle, "bins.representatives=middle"),
        ("bins", intervals, ("step",), intervals.edges is not None, "bins.edges"),
        ("loss.transport", transport, every, term is not CountTerm.dm, f"loss.count_loss={term.name}"),
        ("loss.transport", transport, ("iterations",), transport.tolerance is not None, "loss.transport.tolerance"),
        ("loss", smoothed, ("neighbors", "beta"), smoothed.kernel is Kernel.fixed, "loss.kernel=fixed"),
    ]
    errors = []
    for group, values, names, idle, because in table:
        defaults = {item.name: item.default for item in dataclasses.fields(values)}
        for name in names:
            value, default = (v.name if isinstance(v, Enum) else v for v in (getattr(values, name), defaults[name]))
            if idle and value != default:
                usual = "null" if default is None else default
                errors.append(f"{group}.{name}={value}: has no effect with {because}; leave it at {usual}")
    return errors


def check_evaluation(config: EvalCommandConfig) -> list[str]:
    """Every error of an evaluation's config that its types do not catch, one line each."""
    errors = range_errors(config, "") or ([] if config.dataset is None else dataset.errors(config.dataset))
    path = Path(config.ckpt).expanduser()
    return errors if path.is_file() else [*errors, missing_checkpoint(path)]


def missing_checkpoint(path: Path) -> str:
    """What to say of a checkpoint that is not there: its name, and those beside it."""
    beside = sorted(str(p) for p in path.parent.glob("*.pt")) if path.parent.is_dir() else []
    return f"ckpt={path}: no such file" + (f"; there is {', '.join(beside)}" if beside else "")
