"""What training minimizes."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from headcount.config.fields import number


class Reduction(Enum):
    """How the transport term is taken over the images of a batch."""

    mean = 1
    sum = 2


class CountTerm(Enum):
    """The count loss of DACE: DM-Count's, or an absolute or squared error of every block."""

    dm = 1
    mae = 2
    mse = 3


class Solver(Enum):
    """How the transport is solved: the released iteration, or one that never underflows."""

    released = 1
    stable = 2


class Kernel(Enum):
    """Width of the Gaussian on each head: one for all, or by the distance to its neighbors."""

    fixed = 1
    adaptive = 2


@dataclass
class TransportConfig:
    """DM-Count's loss: optimal transport, total variation, count (arXiv:2009.13077)."""

    ot_weight: float = number(0.8, 0)
    """Weight of the transport term; 0.8 averaged equals the released 0.1 summed over 8 images."""
    ot_reduction: Reduction = Reduction.mean
    """Over the images of a batch: ``mean`` is independent of its size, ``sum`` is the released form."""
    tv_weight: float = number(0.01, 0)
    """Weight of the total-variation term."""
    count_weight: float = number(1.0, 0)
    """Weight of the absolute count error."""
    regularization: float = number(10.0, 0.001)
    """Entropic regularization, squared pixels."""
    iterations: int = number(100, 1)
    """Sinkhorn iterations; a published number needs exactly 100."""
    solver: Solver = Solver.released
    """``released`` is the iteration of published numbers, ``stable`` the same problem without underflow."""
    tolerance: float | None = number(None, 1e-6)
    """``stable`` goes on until the shares of all blocks err by less than this in sum, at most 10,000 iterations;
    None takes ``iterations``."""


@dataclass
class LossConfig:
    """Fields that every loss has."""

    name: str = MISSING


@dataclass
class DaceConfig(LossConfig):
    """Cross-entropy over bins plus a count loss (arXiv:2403.09281, equation 3)."""

    name: str = "dace"
    weight: float = number(1.0, 0)
    """Weight of the count loss (the paper's lambda)."""
    count_loss: CountTerm = CountTerm.dm
    """DM-Count's loss, or the absolute or squared error of the blocks."""
    transport: TransportConfig = field(default_factory=TransportConfig)


@dataclass
class CrossEntropyConfig(LossConfig):
    """Cross-entropy over bins alone."""

    name: str = "cross_entropy"


@dataclass
class MseConfig(LossConfig):
    """Squared error of the block counts against heads smoothed by a Gaussian (CSRNet, arXiv:1802.10062)."""

    name: str = "mse"
    kernel: Kernel = Kernel.fixed
    """One width for all heads, or by the distance to the neighbors (geometry-adaptive)."""
    sigma: float = number(15.0, 1e-3)
    """Standard deviation of the fixed kernel, pixels of the training crop."""
    neighbors: int = number(3, 1)
    """Heads whose mean distance sets the adaptive kernel."""
    beta: float = number(0.3, 1e-3)
    """Adaptive standard deviation as a share of that distance."""
    scale: float = number(1.0, 1e-6)
    """Factor on the loss; block counts are small, and so are their squared errors."""


@dataclass
class DmConfig(LossConfig):
    """DM-Count's loss of the block counts alone (arXiv:2009.13077)."""

    name: str = "dm"
    transport: TransportConfig = field(default_factory=TransportConfig)
