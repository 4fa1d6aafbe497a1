"""A whole run: every group together, and the checks that span groups."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from headcount import published
from headcount.config import augment, bins, counting, dataset, loss, model, optim, ranking
from headcount.config.augment import AugmentConfig, crop_error
from headcount.config.bins import BlocksConfig, BlockwiseConfig, missing_bins
from headcount.config.counting import EvalConfig, SlidingWindowConfig, counting_mode, window_error
from headcount.config.dataset import PART_NAME, DatasetChoice, DatasetConfig
from headcount.config.fields import number, range_errors
from headcount.config.head import HEADS, HeadConfig, ZipHeadConfig
from headcount.config.loss import LOSSES, LossConfig
from headcount.config.method import MethodConfig, SupervisedConfig
from headcount.config.model import (
    ClipConfig,
    ClipRankingConfig,
    ClipViTConfig,
    Freeze,
    ModelConfig,
    Neck,
    TinyConfig,
)
from headcount.config.optim import OptimConfig
from headcount.errors import ConfigError
from headcount.wording import cut, url_hint


class Accelerator(Enum):
    """The device that tensors are on."""

    auto = 1
    cpu = 2
    cuda = 3


class Precision(Enum):
    """Arithmetic of the network; losses and evaluation always use float32."""

    float32 = 1
    bf16 = 2
    fp16 = 3
    auto = 4


FP16_ON_CPU = "runtime.precision=fp16: needs a GPU, a CPU would compute in bf16; allowed on a CPU are float32 and bf16"


@dataclass
class RuntimeConfig:
    """Processes, devices, arithmetic."""

    accelerator: Accelerator = Accelerator.auto
    """Device: ``cpu``, ``cuda``, or ``auto``, which uses CUDA if it is available."""
    devices: int = number(1, 1, 64)
    """Number of training processes per machine, each with one device (or a share of the CPU) and an equal part of the
    batch."""
    num_nodes: int = number(1, 1, 1024)
    """Number of machines, each with ``devices`` processes."""
    sync_batchnorm: bool = True
    """With several processes, normalize by the statistics of all their crops, so that a step is the same on any number
    of processes; False normalizes each process by its own crops, which is faster. No effect on one process."""
    deterministic: bool = False
    """Repeat a run bit for bit on the same machine, also on a GPU, which is slower; operations that cannot are
    errors. A CPU does so anyway."""
    precision: Precision = Precision.float32
    """Arithmetic of the network: ``float32``, or mixed precision with ``bf16`` or ``fp16``; losses and evaluation
    always use float32. ``auto`` is bf16 where the hardware multiplies it natively, else float32; a resumed run keeps
    its own."""
    workers: int = number(1, 0, 128)
    """Number of data-loading processes per training process; 0 loads in the training process."""
    channels_last: bool = True
    """Memory layout of the network: channels last; faster on most machines, same results up to rounding."""
    compile: bool = False
    """Compile the network with torch.compile for training; the first steps take minutes; same results up to
    rounding."""

    @property
    def processes(self) -> int:
        """Number of training processes on all machines."""
        return self.devices * self.num_nodes

    @property
    def typed_processes(self) -> str:
        """The settings that determine the number of processes, as they are typed."""
        nodes = f" runtime.num_nodes={self.num_nodes}" if self.num_nodes > 1 else ""
        return f"runtime.devices={self.devices}{nodes}"


@dataclass
class ExpectedConfig:
    """A published result of an experiment; it does not affect the run."""

    mae: float | None = number(None, 0, 1e9)
    """Mean absolute error, in heads per image; None if none was published."""
    rmse: float | None = number(None, 0, 1e9)
    """Root mean squared error, in heads per image; None if none was published."""
    source: str = MISSING
    """The publication."""
    same_recipe: bool = True
    """Whether it was trained and measured like this experiment; if False, the two are never compared."""


class Tracker(Enum):
    """A place beside metrics.jsonl where the numbers of each epoch are logged."""

    tensorboard = 1
    wandb = 2
    mlflow = 3
    csv = 4
    none = 5


@dataclass
class TrainConfig:
    """Everything a training run depends on; written beside its results."""

    dataset: DatasetConfig = MISSING
    method: MethodConfig = field(default_factory=SupervisedConfig)
    model: ModelConfig = MISSING
    bins: BlocksConfig = MISSING
    augment: AugmentConfig = MISSING
    loss: LossConfig = MISSING
    optim: OptimConfig = MISSING
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING
    scale: str = "small"
    """Name of the chosen set of sizes; recorded, so that a reduced run is not mistaken for a full one."""
    epochs: int = number(40, 1, 1_000_000)
    """Number of passes over the training images."""
    batch_size: int = number(8, 1, 8192)
    """Number of crops per optimizer step, over all processes."""
    accumulate: int = number(1, 1, 1024)
    """Number of equal parts in which each process computes its crops of a step, one after the other, adding up their
    gradients: less memory, the same step, except that BatchNorm normalizes by the crops of one part."""
    eval_every_epochs: int = number(5, 1, 1_000_000)
    """Number of epochs between evaluations; the last epoch is always evaluated."""
    early_stopping: int | None = number(None, 1, 1_000_000)
    """Stop after this number of evaluations in a row without a lower MAE; None trains for all epochs."""
    init_from: str | None = None
    """Path of a checkpoint whose backbone, decoder and, if its bins are the same, head the training starts from; None
    starts from ``model.weights``. A resumed run continues with its own weights."""
    logger: list[Tracker] = field(default_factory=lambda: [Tracker.tensorboard])
    """Where the numbers of each epoch are logged, beside metrics.jsonl: ``tensorboard``, ``csv``, ``wandb`` or
    ``mlflow``, several of them as in ``[tensorboard,csv]``, or ``none``."""
    keep: str = "best"
    """Checkpoints that stay on the disk, beside last.pt: ``best``, that of the lowest MAE; ``last``, no other; ``all``,
    the best and one per evaluation; or a number N, the best and those of the last N evaluations. A best checkpoint that
    exists already is always kept up to date."""
    draw_every_evaluations: int = number(10, 0, 1_000_000)
    """Number of evaluations between density maps in TensorBoard (or wandb, mlflow); those of the first and the last
    evaluation are always drawn; 0 draws none at all."""
    save_every_minutes: float | None = number(10.0, 0, 10_080)
    """Minutes between saving the state within an epoch, which is all that a kill can cost; 0 or None saves only at the
    end of each epoch, and when a signal stops the run."""
    cv: int | None = number(None, 2, 1000)
    """Cross-validation: the number of folds of the training images. Each is held out by a run of its own, and the
    errors of all are averaged; typed on the command line only. None trains one run."""
    seed: int = number(1, 0, 2**32 - 1)
    """Seed of the weights, the order of images, and the augmentation."""
    data_root: str | None = None
    """Folder that contains the datasets; None uses the environment variable HEADCOUNT_DATA."""
    output_dir: str = "checkpoints"
    """Parent folder of runs, which are written to <output_dir>/<dataset>/<run name>/seed<seed>."""
    run_name: str = "auto"
    """Name of the run; ``auto`` composes it of model, bins and every setting that differs from the defaults."""
    resume: bool = False
    """Continue where the run in the same folder was saved last."""
    dry_run: bool = False
    """Build everything, print a summary, and stop."""
    expected: ExpectedConfig | None = None
    """The published result of this experiment, for comparison only."""


@dataclass
class EvalCommandConfig:
    """Settings of ``eval.py``; everything else comes from the checkpoint."""

    ckpt: Any = MISSING
    """Checkpoint: a file (``.pt``, or one of a ``.safetensors`` and ``.json`` pair), the name of a counter that comes
    with headcount, or ``hf-hub:owner/name`` on the Hugging Face Hub; or several, as in 'ckpt=[a.pt,b.pt]', whose counts
    are averaged."""
    split: str = "test"
    """Images to evaluate: train, val or test, if the dataset has that split."""
    data_root: str | None = None
    """Folder that contains the datasets; None uses the environment variable HEADCOUNT_DATA."""
    max_images: int | None = number(None, 1, 1_000_000_000)
    """Evaluate only the first N images; None evaluates all."""
    output_dir: str | None = None
    """Folder for the results; None uses one below eval/ beside the checkpoint, named by what is evaluated and how."""
    dataset: DatasetChoice | None = None
    """A dataset; the default, as None, is the one the counter was trained on (``TrainedDatasetConfig``)."""
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING

    @property
    def checkpoints(self) -> list[str]:
        """The paths of all checkpoints."""
        return [str(path) for path in (self.ckpt if isinstance(self.ckpt, list) else [self.ckpt])]

    @property
    def checkpoint(self) -> str:
        """The path of the only checkpoint.

        Raises:
            ConfigError: if there are several.
        """
        if len(self.checkpoints) != 1:
            raise ConfigError(f"ckpt=[{','.join(self.checkpoints)}]: this command uses one checkpoint; name one")
        return self.checkpoints[0]


PLACE = (
    *("resume", "dry_run", "data_root", "output_dir", "run_name", "draw_every_evaluations"),
    *("save_every_minutes", "keep", "logger"),
    *("dataset.root", "dataset.cache_dir", "dataset.cache"),
    *("runtime.accelerator", "runtime.workers", "runtime.channels_last", "runtime.compile", "runtime.deterministic"),
    *("runtime.devices", "runtime.num_nodes"),
)
"""Settings that determine where and how a run is executed, not what is learned."""


def as_of_one_dataset(key: str) -> str:
    """The full name of a setting, with that of a mixed dataset's part named as if it were the only dataset.

    ``dataset.datasets.sha.root`` becomes ``dataset.root``.
    """
    return re.sub(rf"^dataset\.datasets\.{PART_NAME}\.", "dataset.", key)


def check(config: TrainConfig, *, weights: bool = True) -> list[str]:
    """Find every error of a training config that its types do not exclude; one message each.

    Args:
        config: what a training run depends on.
        weights: whether to check the pretrained weights as well; to read a run, their file is not needed.
    """
    errors = range_errors(config)
    if errors:  # the checks below divide by these numbers
        return errors
    block_size, crop_size = config.bins.block_size, config.augment.crop_size
    errors += ranking.group_errors(config.method, config.model, config.loss) or _combination_errors(
        config.model, config.bins, config.loss
    )
    if isinstance(config.eval, SlidingWindowConfig) and "blocks" not in config.model.head.predicts:
        errors.append(
            f"eval=sliding_window: model.head={config.model.head.name} predicts one number per image, so that windows "
            "cannot be combined; choose eval=whole_image"
        )
    errors += bins.errors(config.bins)
    errors += counting.errors(config.eval)
    stride = config.model.stride(block_size)
    if stride is not None:
        wrong = crop_error(crop_size, block_size=block_size, stride=stride, model=config.model.name)
        errors += [] if wrong is None else [wrong]
    errors += augment.errors(config.augment)
    errors += _batch_errors(config)
    checked = config.model
    if isinstance(checked, model.PretrainedConfig) and not weights:
        checked = replace(checked, weights="none")
    errors += model.errors(checked)
    errors += ranking.errors(config.method, config.model, config.augment)
    errors += _fine_tuning_errors(config, weights=weights)
    errors += _record_errors(config)
    errors += loss.errors(config.loss)
    errors += optim.errors(config.optim, epochs=config.epochs)
    errors += _runtime_errors(config.runtime)
    errors += dataset.errors(config.dataset)
    if config.cv is not None:  # the command line replaces it by the folds
        errors.append(f"cv={config.cv}: is typed on the command line, as in train.py cv={config.cv}; leave it out here")
    errors += _bins_from_errors(config.dataset, config.bins)
    if stride is not None:
        mode = counting_mode(config.eval, config.model, crop_size=crop_size)
        wrong = window_error(mode, block_size, stride)
        errors += [] if wrong is None else [wrong]
    if config.run_name in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._+-]+", config.run_name):
        errors.append(f"run_name={config.run_name}: may only hold letters, digits, '.', '_', '+' and '-'")
    return errors


def _batch_errors(config: TrainConfig) -> list[str]:
    """A batch that processes and their parts of a step cannot share equally."""
    processes = config.runtime.processes
    if config.batch_size % processes:
        product = config.runtime.typed_processes.replace(" ", " * ")
        return [
            f"batch_size={config.batch_size}: must be a multiple of {product}, "
            "so that every process gets the same number of images"
        ]
    share = config.batch_size // processes
    if share % config.accumulate:
        allowed = ", ".join(str(k) for k in range(1, share + 1) if share % k == 0)
        of_each = f" ({share} of each process)" if processes > 1 else ""
        return [
            f"accumulate={config.accumulate}: must divide batch_size={config.batch_size}{of_each} into equal parts; "
            f"allowed are {allowed}"
        ]
    return []


def _fine_tuning_errors(config: TrainConfig, *, weights: bool) -> list[str]:
    """Frozen parts that would stay random, a learning rate of nothing, and a checkpoint that does not exist."""
    errors = []
    freeze, untrained = config.model.freeze, getattr(config.model, "weights", None) == "none"
    freezes_backbone = freeze in (Freeze.backbone, Freeze.all_but_head)
    if isinstance(config.model, ClipRankingConfig) and weights and untrained and config.init_from is None:
        errors += ranking.untrained_errors(config.model)
    if freezes_backbone and config.init_from is None and (untrained or isinstance(config.model, TinyConfig)):
        errors.append(
            f"model.freeze={freeze.name}: the backbone would keep its random weights; add init_from=CKPT, or choose "
            "model.freeze=none"
        )
    elif (
        freezes_backbone
        and config.init_from is None
        and isinstance(config.model, ClipViTConfig)
        and config.model.prompt_tokens
    ):
        errors.append(
            f"model.freeze={freeze.name}: the prompt tokens would stay random; model.frozen=true alone freezes the "
            "image encoder and trains them"
        )
    elif freeze is Freeze.all_but_head and config.init_from is None and getattr(config.model, "neck", None) is Neck.fpn:
        errors.append(
            "model.freeze=all_but_head: the feature pyramid would keep its random weights; choose "
            "model.freeze=backbone, or add init_from=CKPT"
        )
    adapter = getattr(config.model, "adapter", None)
    if (freezes_backbone or adapter is not None) and config.optim.backbone_lr_factor != 1:
        frozen_by = f"model.freeze={freeze.name}" if freezes_backbone else f"model.adapter={adapter}"
        errors.append(
            f"optim.backbone_lr_factor={config.optim.backbone_lr_factor:g}: {frozen_by} leaves no backbone to train; "
            "leave one of them out"
        )
    if weights and not config.resume and config.init_from is not None:
        missing = checkpoint_error(config.init_from, setting="init_from")
        errors += [] if missing is None else [missing]
    return errors


def _record_errors(config: TrainConfig) -> list[str]:
    """Loggers and kept checkpoints that contradict each other or are not known."""
    errors = []
    names = [tracker.name for tracker in config.logger]
    typed = f"logger=[{','.join(names)}]"
    if len(set(names)) < len(names):
        errors.append(f"{typed}: names one of them twice")
    if not names or ("none" in names and len(names) > 1):
        errors.append(f"{typed}: name one or more of tensorboard, csv, wandb, mlflow, or none alone")
    if config.keep not in ("best", "last", "all") and not re.fullmatch(r"[1-9]\d{0,5}", config.keep):
        errors.append(f"keep={config.keep}: must be best, last, all, or a number of evaluations from 1 to 999999")
    return errors


def _bins_from_errors(config: DatasetConfig, blocks: BlocksConfig) -> list[str]:
    """A part that is to give representative counts where none are means of training blocks."""
    if not isinstance(config, dataset.MixedConfig) or config.bins_from is None:
        return []
    middle = isinstance(blocks, bins.BinsConfig) and blocks.representatives is bins.Representatives.middle
    computed = isinstance(blocks, (bins.BinsConfig, bins.GivenBinsConfig)) and blocks.representative_counts is None
    if computed and not middle:
        return []
    return [
        f"dataset.bins_from={config.bins_from}: has no effect, because the representative counts of the bins are no "
        "means of training blocks; leave it out"
    ]


def _runtime_errors(config: RuntimeConfig) -> list[str]:
    """Devices and arithmetic that do not go together."""
    if config.accelerator is Accelerator.cpu and config.precision is Precision.fp16:
        return [FP16_ON_CPU]
    return []


def _combination_errors(model: ModelConfig, bins: BlocksConfig, loss: LossConfig) -> list[str]:
    """Head, bins and loss that do not belong together."""
    errors = []
    head = model.head
    if bins.has_bins and not head.needs_bins:
        others = [] if _fit(head, loss, has_bins=False) else _fitting_losses(head, has_bins=False)
        also = f" loss={others[0]}" if others else ""
        errors.append(f"model.head={head.name}: predicts counts without bins; add bins=none{also}")
    if head.needs_bins and not bins.has_bins:
        instead = next(kind for kind, other in HEADS.items() if not other.needs_bins)
        errors.append(f"bins=none: leaves model.head={head.name} nothing to classify; add model.head={instead}")
    if loss.needs_bins and not bins.has_bins:
        instead = next(kind for kind, other in LOSSES.items() if not other.needs_bins)
        errors.append(missing_bins(f"loss={loss.choice}", f"loss={instead}"))
    if not errors and not _fit(head, loss, has_bins=bins.has_bins):
        instead = " or ".join(f"loss={kind}" for kind in _fitting_losses(head, has_bins=bins.has_bins))
        errors.append(
            f"loss={loss.choice}: compares {_words(loss.compares)}, and model.head={head.name} predicts "
            f"{_words(head.predicts)}; choose {instead or 'another model.head'}{_fitting_head(loss)}"
        )
    if isinstance(bins, BlockwiseConfig) and isinstance(head, ZipHeadConfig):
        errors.append(
            "bins=blockwise: model.head=zip predicts whole numbers, and smoothed counts are none; choose bins=fine"
        )
    elif isinstance(bins, BlockwiseConfig) and isinstance(model, ClipConfig):
        errors.append(
            f"bins=blockwise: {model.name} reads a sentence about each bin, and there are none about intervals "
            "of smoothed counts; choose bins=fine, bins=dynamic or bins=coarse, or a model without texts"
        )
    return errors


def _fit(head: HeadConfig, loss: LossConfig | type[LossConfig], *, has_bins: bool) -> bool:
    """Whether the head predicts what the loss compares, and the loss has the bins it needs."""
    return loss.compares <= head.predicts and (has_bins or not loss.needs_bins)


def _fitting_losses(head: HeadConfig, *, has_bins: bool) -> list[str]:
    """The kinds of losses that go with a head."""
    return [kind for kind, loss in LOSSES.items() if _fit(head, loss, has_bins=has_bins)]


def _fitting_head(loss: LossConfig) -> str:
    """The kind of head that a loss belongs to, if it is the only one, as the end of a message."""
    kinds = [kind for kind, head in HEADS.items() if loss.compares <= head.predicts]
    return f"; or add model.head={kinds[0]}" if len(kinds) == 1 else ""


def _words(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))


def check_evaluation(config: EvalCommandConfig) -> list[str]:
    """Find every error of an evaluation's config that its types do not exclude; one message each."""
    errors = range_errors(config) or _runtime_errors(config.runtime)
    if not errors and config.dataset is not None:
        errors += dataset.errors(config.dataset)
    errors += counting.errors(config.eval)
    return errors + (
        ["ckpt is not set: type ckpt=..."] if config.ckpt is None else checkpoint_errors(config.checkpoints)
    )


def checkpoint_errors(checkpoints: Sequence[str]) -> list[str]:
    """Find checkpoints that do not exist or occur twice; one message each."""
    if not checkpoints:
        return ["ckpt=[]: names no checkpoint; type ckpt=..."]
    if found := [error for ckpt in checkpoints if (error := checkpoint_error(ckpt)) is not None]:
        return found
    files = [str(published.locate(ckpt) or ckpt) for ckpt in checkpoints]
    same = [os.path.realpath(os.path.expanduser(file)) for file in files]
    twice = [ckpt for k, ckpt in enumerate(checkpoints) if same[k] in same[:k]]
    return [f"ckpt={ckpt}: occurs twice among the checkpoints; name each once" for ckpt in twice[:1]]


def checkpoint_error(ckpt: str | Path, *, setting: str = "ckpt") -> str | None:
    """The error of a checkpoint that does not exist; None if it does, or lies on the hub, which is asked later.

    Args:
        ckpt: as it was typed.
        setting: the setting that named it.
    """
    if not str(ckpt).strip():
        return f"{setting}=: names no checkpoint; type {setting}=best_mae.pt"
    if published.is_on_hub(ckpt) or published.locate(ckpt) is not None:
        return None
    return missing_checkpoint(Path(ckpt).expanduser(), setting=setting)


def missing_checkpoint(path: Path, *, setting: str = "ckpt") -> str:
    """The message for a checkpoint that does not exist: its path, and the checkpoints beside it or in headcount.

    Args:
        path: as it was typed.
        setting: the setting that named it.
    """
    # Those of os.path are false, instead of an error, for a path that is too long.
    folder = path if os.path.isdir(path) else path.parent
    found = [*folder.glob("*.pt"), *folder.glob(f"*{published.WEIGHTS}")] if os.path.isdir(folder) else []
    hint = f"; there is {', '.join(sorted(map(str, found)))}" if found else url_hint(str(path))
    if not path.suffix and len(path.parts) == 1 and (names := published.names()):
        hint += f"; counters that come with headcount: {', '.join(names)}"
    problem = "is a folder" if os.path.isdir(path) else "no such file"
    return f"{setting}={cut(str(path), 1000)}: {problem}{hint}"
