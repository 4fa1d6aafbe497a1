"""Optimizer, learning-rate schedule and weight averaging from their config."""

import math
from typing import Any

from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headcount.config import Algorithm, OptimConfig, Schedule, ScheduleStep


def build_optimizer(config: OptimConfig, model: nn.Module) -> Optimizer:
    """Adam (weight decay added to the gradient) or AdamW over the trainable parameters.

    AdamW does not shrink biases and normalization weights; Adam treats all alike, as released.
    Fused: one pass over the weights, a third of the time of torch's default on a CPU.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.algorithm is Algorithm.adam:
        return Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=config.lr, fused=True)


def learning_rate_factor(config: OptimConfig, epoch: float, *, epochs: int) -> float:
    """The learning rate at ``epoch`` (which may be fractional), as a share of its peak.

    Linear warm-up from ``warmup_lr``, then one cosine to ``min_lr`` at ``epochs``, or cosines that
    restart after ``restart_epochs``, each ``restart_factor`` times as long as the last.

    Source: arXiv:1608.03983; arXiv:2403.09281, section IV.
    """
    if epoch < config.warmup_epochs:
        start = config.warmup_lr / config.lr
        return start + (1 - start) * epoch / config.warmup_epochs
    since, length = epoch - config.warmup_epochs, epochs - config.warmup_epochs
    if config.schedule is Schedule.cosine_restarts:
        # Released code: finds the cycle by a logarithm, which for T_mult 3 rounds the fifth restart
        # into the cycle before; here: by subtraction, because every restart must be at the peak.
        length = config.restart_epochs
        while since >= length:
            since -= length
            length *= config.restart_factor
    low = config.min_lr / config.lr
    return low + (1 - low) * (1 + math.cos(math.pi * min(since / length, 1.0))) / 2


class LearningRate:
    """Sets the learning rate of every parameter group, before each optimizer step."""

    def __init__(self, config: OptimConfig, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> None:
        self.config = config
        self.optimizer = optimizer
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.steps = 0
        self._set()

    def step(self) -> None:
        """One optimizer step was taken."""
        self.steps += 1
        self._set()

    @property
    def value(self) -> float:
        """The learning rate of the next optimizer step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def _set(self) -> None:
        epoch = self.steps / self.steps_per_epoch
        if self.config.step is ScheduleStep.epoch:
            epoch = float(self.steps // self.steps_per_epoch)
        factor = learning_rate_factor(self.config, epoch, epochs=self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    def state_dict(self) -> dict[str, int]:
        """Steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the steps of ``state``."""
        self.steps = state["steps"]
        self._set()


class WeightAverage:
    """An exponential moving average of weights and normalization statistics (torch's own)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step; the first time, take them over."""
        self.average.update_parameters(model)

    def evaluated(self, model: nn.Module) -> Any:
        """The network to evaluate and keep: the average."""
        return self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights and the number of updates."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self.average.load_state_dict(state)


class NoAverage:
    """Stands where no average is kept: the network itself is evaluated."""

    def update(self, model: nn.Module) -> None:
        """Nothing to do."""

    def evaluated(self, model: nn.Module) -> Any:
        """The network itself."""
        return model

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def build_average(config: OptimConfig, model: nn.Module) -> WeightAverage | NoAverage:
    """The average that ``config.ema_decay`` asks for."""
    return NoAverage() if config.ema_decay is None else WeightAverage(model, config.ema_decay)
