"""Optimizer, learning-rate schedule and weight averaging from their config."""

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from headcount.config import Algorithm, OptimConfig, Schedule, ScheduleStep, Warmup

# What the names of the backbone's parameters begin with.
_BACKBONE = "backbone."
# Layers that a backbone adds to its pretrained ones.
_ADDED = ("backbone.context.", "backbone.neck.")


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Adam, RAdam (weight decay added to the gradient) or AdamW over the trainable parameters.

    The parameters of the backbone come last, in groups of their own, if their learning rate differs.

    AdamW does not decay biases and normalization weights; Adam treats all parameters alike, like the released code.
    Fused: one pass over the weights, which takes a third of the time of torch's default on a CPU.
    """
    groups: list[dict[str, Any]] = []
    for parameters, factor in _by_rate(config, model):
        rate = {"lr": config.lr * factor}
        if config.algorithm is not Algorithm.adamw:
            groups.append({"params": parameters, "weight_decay": config.weight_decay, **rate})
            continue
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "weight_decay": config.weight_decay, **rate})
        groups.append({"params": vectors, "weight_decay": 0.0, **rate})
    if config.algorithm is Algorithm.adam:
        return Adam(groups, lr=config.lr, fused=True)
    if config.algorithm is Algorithm.radam:
        return RAdam(groups, lr=config.lr)
    return AdamW(groups, lr=config.lr, fused=True)


def _by_rate(config: OptimConfig, model: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """The trainable parameters and the factor of their learning rate; one entry for all if it is the same."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.backbone_lr_factor == 1:
        return [([p for _, p in trained], 1.0)]
    backbone = [p for name, p in trained if _is_pretrained(name)]
    others = [p for name, p in trained if not _is_pretrained(name)]
    return [(others, 1.0), (backbone, config.backbone_lr_factor)]


def _is_pretrained(name: str) -> bool:
    return name.startswith(_BACKBONE) and not name.startswith(_ADDED)


def learning_rate_factor(config: OptimConfig, epoch: float, *, epochs: int) -> float:
    """The learning rate at ``epoch`` (which may be fractional), as a fraction of its peak.

    Warm-up from ``warmup_lr``, linear in the rate or in its logarithm, then the peak, or steps down at ``milestones``,
    or one cosine to ``min_lr`` at ``epochs``, or cosines that restart after ``restart_epochs``, each ``restart_factor``
    times as long as the one before.

    Source: arXiv:1608.03983; arXiv:2403.09281, section IV.
    """
    if epoch < config.warmup_epochs:
        start = config.warmup_lr / config.lr
        if config.warmup is Warmup.log_linear:
            return float(start ** (1 - epoch / config.warmup_epochs))
        return start + (1 - start) * epoch / config.warmup_epochs
    if config.schedule is Schedule.constant:
        return 1.0
    if config.schedule is Schedule.milestones:
        return config.milestone_factor ** sum(epoch >= milestone for milestone in config.milestones)
    since, length = epoch - config.warmup_epochs, epochs - config.warmup_epochs
    if config.schedule is Schedule.cosine_restarts:
        # Released code: finds the cycle by a logarithm, which rounds some restarts into the cycle before them (with
        # T_0 5: epoch 605 for T_mult 3, 555 for 10); here: by subtraction, because every restart must be at the peak.
        length = config.restart_epochs
        while since >= length:
            since -= length
            length *= config.restart_factor
    low = config.min_lr / config.lr
    return low + (1 - low) * (1 + math.cos(math.pi * min(since / length, 1.0))) / 2


def build_schedule(config: OptimConfig, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """The learning-rate schedule; its ``step`` is called after each optimizer step."""

    def factor(steps: int) -> float:
        by_epoch = config.step is ScheduleStep.epoch
        epoch = float(steps // steps_per_epoch) if by_epoch else steps / steps_per_epoch
        return learning_rate_factor(config, epoch, epochs=epochs)

    return LambdaLR(optimizer, factor)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer.

    Raises:
        ValueError: if the state is that of other parameters, which torch would notice at the next step only.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name!r} is {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")


def load_schedule_state(schedule: LambdaLR, state: dict[str, Any]) -> None:
    """Restore a schedule; the learning rate itself is part of the optimizer's state."""
    if "steps" in state:  # checkpoints of format 1 store the number of optimizer steps
        state = {**schedule.state_dict(), "last_epoch": state["steps"], "_step_count": state["steps"] + 1}
    if not isinstance(state["last_epoch"], int):
        raise TypeError(f"'last_epoch' of the schedule is {state['last_epoch']!r}")
    schedule.load_state_dict(state)


def follow_schedule(schedule: LambdaLR) -> None:
    """Set the learning rates of the next step to those of the schedule, after one of another length was restored."""
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(schedule.last_epoch)


class WeightAverage:
    """Exponential moving average of weights and normalization statistics, in torch's ``AveragedModel``.

    The model must keep its parameter and buffer tensors; only their values change.
    """

    # AveragedModel's own update copies its counter to the GPU, a device sync, and searches all modules for tensors at
    # every step. The average is the same bit for bit: that update calls torch._foreach_lerp_, too.

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = AveragedModel(model, use_buffers=True)
        self.decay = decay
        self.updates = 0
        self._current = _tensors(model)
        pairs = list(zip(_tensors(self.average.module), self._current, strict=True))
        self._floating = _unzip([(mean, value) for mean, value in pairs if value.is_floating_point()])
        self._integers = _unzip([(mean, value) for mean, value in pairs if not value.is_floating_point()])

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after an optimizer step; the first call copies them. Integers are always copied."""
        if self.updates:
            torch._foreach_lerp_(*self._floating, 1 - self.decay)
        else:
            torch._foreach_copy_(*self._floating)
        if self._integers[0]:
            torch._foreach_copy_(*self._integers)
        self.updates += 1

    def evaluated(self, model: nn.Module) -> Any:
        """The network to evaluate and save: the average."""
        assert all(map(operator.is_, _tensors(model), self._current)), "the model has other tensors than at first"
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights and the number of updates."""
        self.average.n_averaged.fill_(self.updates)
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.average.load_state_dict(state)
        self.updates = int(self.average.n_averaged)


def _tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def _unzip(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


class NoAverage:
    """Used without averaging: the network itself is evaluated."""

    def update(self) -> None:
        """Do nothing."""

    def evaluated(self, model: nn.Module) -> Any:
        """The network itself."""
        return model

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing."""


def build_average(config: OptimConfig, model: nn.Module) -> WeightAverage | NoAverage:
    """The averaging with decay ``config.ema_decay``; ``NoAverage`` if that is None."""
    return NoAverage() if config.ema_decay is None else WeightAverage(model, config.ema_decay)
