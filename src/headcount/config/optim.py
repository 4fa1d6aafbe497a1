"""Optimizer, learning rate, gradient clipping, weight averaging."""

from dataclasses import dataclass
from enum import Enum

from headcount.config.fields import number


class Algorithm(Enum):
    """Optimizer."""

    adam = 1
    adamw = 2
    radam = 3


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = 1
    cosine_restarts = 2
    constant = 3
    milestones = 4


class ScheduleStep(Enum):
    """How often the learning rate is updated."""

    step = 1
    epoch = 2


class Warmup(Enum):
    """What grows evenly in the warm-up: the learning rate (``linear``) or its logarithm (``log_linear``)."""

    linear = 1
    log_linear = 2


@dataclass
class OptimConfig:
    """Optimizer, learning-rate schedule, gradient clipping and weight averaging."""

    algorithm: Algorithm = Algorithm.adam
    """Optimizer: ``adam``, ``adamw`` or ``radam``."""
    # No useful limit: training with a rate that is too high stops, and says so.
    lr: float = number(1e-4, 1e-12, 1e30)
    """Peak learning rate."""
    backbone_lr_factor: float = number(1.0, 1e-6, 1000)
    """Learning rate of the backbone relative to that of decoder and head, at every step of the schedule."""
    weight_decay: float = number(1e-4, 0, 10)
    """Weight decay: Adam and RAdam add it to the gradient (L2), AdamW shrinks the weights."""
    schedule: Schedule = Schedule.cosine_restarts
    """Shape of the learning rate after warm-up: one ``cosine``, ``cosine_restarts``, ``constant``, or constant
    between ``milestones``."""
    step: ScheduleStep = ScheduleStep.epoch
    """The learning rate is updated at every optimizer ``step``, or once per ``epoch`` (released code)."""
    warmup_epochs: float = number(0.0, 0, 1_000_000)
    """Duration of the warm-up from ``warmup_lr``, in epochs."""
    warmup: Warmup = Warmup.linear
    """What grows evenly in the warm-up: the learning rate (``linear``), or its logarithm (``log_linear``)."""
    warmup_lr: float = number(1e-6, 0, 1)
    """Learning rate at the start of the warm-up."""
    min_lr: float = number(1e-7, 0, 1)
    """Learning rate at the end of each cosine."""
    restart_epochs: int = number(5, 1, 1_000_000)
    """Duration of the first cosine with restarts, in epochs (T_0)."""
    restart_factor: int = number(2, 1, 1000)
    """Duration of each cosine relative to the one before it (T_mult)."""
    milestones: list[int] = number([], 1, 1_000_000)
    """Epochs, ascending, after each of which ``schedule=milestones`` multiplies the learning rate by
    ``milestone_factor``."""
    milestone_factor: float = number(0.1, 1e-6, 1)
    """See ``milestones``."""
    max_grad_norm: float | None = number(None, 1e-6, 1e9)
    """Gradients are scaled down to this L2 norm; None does not clip them."""
    ema_decay: float | None = number(None, 0, 0.999999)
    """Decay per optimizer step of the average of the weights, which is evaluated; None does not average."""


def errors(config: OptimConfig, *, epochs: int) -> list[str]:
    """Find settings of the learning rate that contradict each other; one message each.

    Args:
        epochs: of the run.
    """
    found = []
    if config.warmup_epochs >= epochs:
        found.append(f"optim.warmup_epochs={config.warmup_epochs:g}: must be below epochs={epochs}")
    if config.warmup is Warmup.log_linear and config.warmup_lr == 0:
        found.append("optim.warmup_lr=0: optim.warmup=log_linear needs a number above 0, because 0 has no logarithm")
    if (config.schedule is Schedule.milestones) != bool(config.milestones):
        found.append(
            f"optim.schedule={config.schedule.name} optim.milestones={config.milestones}: name epochs with "
            "optim.schedule=milestones, as in optim.milestones=[60], and none otherwise"
        )
    if config.min_lr > config.lr:
        found.append(f"optim.min_lr={config.min_lr:g}: must be at most optim.lr={config.lr:g}, from which it falls")
    return found
