"""Optimizer, learning rate, gradient clipping, weight averaging."""

from dataclasses import dataclass
from enum import Enum

from headcount.config.fields import number


class Algorithm(Enum):
    """Optimizer."""

    adam = 1
    adamw = 2


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = 1
    cosine_restarts = 2


class ScheduleStep(Enum):
    """How often the learning rate moves."""

    step = 1
    epoch = 2


@dataclass
class OptimConfig:
    """Optimizer, learning rate, gradient clipping, weight averaging."""

    algorithm: Algorithm = Algorithm.adam
    lr: float = number(1e-4, 1e-12)
    """Peak learning rate."""
    weight_decay: float = number(1e-4, 0)
    """Adam adds it to the gradient (L2), AdamW shrinks the weights."""
    schedule: Schedule = Schedule.cosine_restarts
    step: ScheduleStep = ScheduleStep.epoch
    """The learning rate moves at every optimizer step, or once an epoch (released code)."""
    warmup_epochs: float = number(0.0, 0)
    """Epochs of linear warm-up from ``warmup_lr``."""
    warmup_lr: float = number(1e-6, 0)
    """Learning rate at the start of the warm-up."""
    min_lr: float = number(1e-7, 0)
    """Learning rate at the end of each cosine."""
    restart_epochs: int = number(5, 1)
    """Length of the first cosine with restarts, epochs (T_0)."""
    restart_factor: int = number(2, 1)
    """Each next cosine is so many times as long (T_mult)."""
    max_grad_norm: float | None = number(None, 1e-06)
    """Gradients are scaled down to this L2 norm; None leaves them."""
    ema_decay: float | None = number(None, 0, 0.999999)
    """Weights are averaged with this decay a step, and the average is evaluated; None does not average."""
