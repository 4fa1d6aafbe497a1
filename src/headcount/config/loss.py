"""What training minimizes.

Settings that only one form of a loss reads belong to a kind of their own: ``loss.transport`` is ``released`` or
``stable``, ``loss.kernel`` is ``fixed`` or ``adaptive``.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from headcount.config.fields import number


class Reduction(Enum):
    """How the transport term is reduced over the images of a batch."""

    mean = 1
    sum = 2


class BlockErrorKind(Enum):
    """Error of the block counts: absolute (``mae``) or squared (``mse``)."""

    mae = 1
    mse = 2


class Compared(Enum):
    """What a ranking loss compares with the similarity of a crop and its own sentence."""

    crops = 1
    prompts = 2


# ---------------------------------------------------------------------------------- optimal transport


@dataclass
class TransportConfig:
    """DM-Count's loss: optimal transport, total variation, count (arXiv:2009.13077)."""

    ot_weight: float = number(0.8, 0, 1e6)
    """Weight of the transport term; 0.8 with ``mean`` equals the released 0.1 with ``sum`` at 8 images per batch."""
    ot_reduction: Reduction = Reduction.mean
    """Reduction over the images of a batch: ``mean`` does not depend on the batch size, ``sum`` does (released)."""
    tv_weight: float = number(0.01, 0, 1e6)
    """Weight of the total-variation term."""
    count_weight: float = number(1.0, 0, 1e6)
    """Weight of the absolute error of the count."""
    regularization: float = number(10.0, 0.001, 1e6)
    """Entropic regularization, in squared pixels."""


@dataclass
class ReleasedTransportConfig(TransportConfig):
    """Solved by the iteration of the released code, which published numbers depend on."""

    iterations: int = number(100, 1, 10_000)
    """Number of Sinkhorn iterations; published numbers need exactly 100."""


@dataclass
class StableTransportConfig(TransportConfig):
    """The same problem, solved by an iteration that never underflows."""

    iterations: int | None = number(None, 1, 10_000)
    """Maximum number of Sinkhorn iterations per image; None is 100, or 10,000 with a ``tolerance``."""
    tolerance: float | None = number(None, 1e-6, 2)
    """Stop earlier once the shares of all blocks differ from their targets by less than this in total; None always
    runs all ``iterations``."""

    @property
    def max_iterations(self) -> int:
        """Maximum number of Sinkhorn iterations per image."""
        if self.iterations is not None:
            return self.iterations
        return 100 if self.tolerance is None else 10_000


# ------------------------------------------------------------------------------------ Gaussian kernels


@dataclass
class KernelConfig:
    """The Gaussian that smooths each head."""


@dataclass
class FixedKernelConfig(KernelConfig):
    """One width for all heads."""

    sigma: float = number(15.0, 1e-3, 1000)
    """Standard deviation, in pixels of the training crop."""


@dataclass
class AdaptiveKernelConfig(KernelConfig):
    """A width proportional to the distance to the nearest heads (geometry-adaptive)."""

    sigma: float = number(15.0, 1e-3, 1000)
    """Standard deviation in crops with too few heads to have ``neighbors``, in pixels of the training crop."""
    neighbors: int = number(3, 1, 1000)
    """Number of nearest heads whose distance is averaged."""
    beta: float = number(0.3, 1e-3, 100)
    """Standard deviation as a fraction of that mean distance."""


# --------------------------------------------------------------------------------------------- losses


@dataclass
class LossConfig:
    """Fields that every loss has."""

    compares: ClassVar[frozenset[str]] = frozenset()
    """What the loss compares, out of count, blocks, logits, mixture and similarities; the prediction head must predict
    all of it."""
    needs_bins: ClassVar[bool] = False
    """Whether the loss classifies blocks into bins."""

    name: str = MISSING
    """Name of the loss."""

    @property
    def choice(self) -> str:
        """What selects this loss on the command line, after ``loss=``."""
        return self.name


@dataclass
class DaceConfig(LossConfig):
    """Cross-entropy over bins plus DM-Count's loss (arXiv:2403.09281, equation 3)."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks", "logits"})
    needs_bins: ClassVar[bool] = True

    name: str = "dace"
    weight: float = number(1.0, 0, 1e6)
    """Weight of DM-Count's loss (the paper's lambda)."""
    transport: TransportConfig = field(default_factory=ReleasedTransportConfig)
    """DM-Count's loss: ``released`` or ``stable``."""


@dataclass
class DaceBlockErrorConfig(LossConfig):
    """Cross-entropy over bins plus an error of the block counts (arXiv:2403.09281, equation 3)."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks", "logits"})
    needs_bins: ClassVar[bool] = True

    name: str = "dace"
    weight: float = number(1.0, 0, 1e6)
    """Weight of the error of the block counts (the paper's lambda)."""
    error: BlockErrorKind = BlockErrorKind.mae
    """Absolute (``mae``) or squared (``mse``) error of the block counts, summed over blocks, averaged over images."""

    @property
    def choice(self) -> str:
        """See :attr:`LossConfig.choice`."""
        return f"{self.name}_{self.error.name}"


@dataclass
class CrossEntropyConfig(LossConfig):
    """Cross-entropy over bins alone."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks", "logits"})
    needs_bins: ClassVar[bool] = True

    name: str = "cross_entropy"


@dataclass
class DmConfig(LossConfig):
    """DM-Count's loss of the block counts alone (arXiv:2009.13077)."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks"})

    name: str = "dm"
    transport: TransportConfig = field(default_factory=ReleasedTransportConfig)
    """How the transport is solved: ``released`` or ``stable``."""


@dataclass
class MseConfig(LossConfig):
    """Squared error of the block counts against heads smoothed by a Gaussian (CSRNet, arXiv:1802.10062)."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks"})

    name: str = "mse"
    kernel: KernelConfig = field(default_factory=FixedKernelConfig)
    """The Gaussian that smooths each head: ``fixed`` or ``adaptive``."""
    scale: float = number(1.0, 1e-6, 1e6)
    """Factor on the loss; block counts are small, and their squared errors even smaller."""


@dataclass
class ZipConfig(LossConfig):
    """The loss of the zero-inflated Poisson head (arXiv:2506.19955): cross-entropy of the bins above 0, negative
    log-likelihood, absolute errors of the blocks at several scales, and of the count."""

    compares: ClassVar[frozenset[str]] = frozenset({"blocks", "mixture"})
    needs_bins: ClassVar[bool] = True

    name: str = "zip"
    cross_entropy_weight: float = number(1.0, 0, 1e6)
    """Weight of the cross-entropy over the bins above 0, which is summed over the blocks with heads."""
    nll_weight: float = number(1.0, 0, 1e6)
    """Weight of the negative log-likelihood of the blocks' counts."""
    epsilon: float = number(1e-8, 0, 0.1)
    """Added to each probability before its logarithm; 0 makes the loss of an impossible count infinite."""
    scales: list[int] = number([1, 2, 4], 1, 1024)
    """Sides of the square cells that blocks are averaged over, in blocks; each is a term of the multi-scale error.
    A cell at the border that is not full is filled with blocks without error."""
    scale_weights: list[float] = number([0.25, 0.5, 1.0], 0, 1e6)
    """Weight of each of the ``scales``."""
    mae_weight: float = number(1.0, 0, 1e6)
    """Weight of the multi-scale error: absolute errors of the averages, summed over cells."""
    count_weight: float = number(1.0, 0, 1e6)
    """Weight of the absolute error of the count of an image."""


@dataclass
class MmrConfig(LossConfig):
    """Multimodal ranking loss of nested crops: hinges on similarities, 100 times the cosine (arXiv:2304.04231)."""

    compares: ClassVar[frozenset[str]] = frozenset({"similarities"})

    name: str = "mmr"
    margin: float = number(0.0, 0, 200)
    """By how much a crop must be more similar to its own sentence; 200 is the largest possible difference."""
    compared: Compared = Compared.crops
    """``crops``: the sentence of a crop must be less similar to each smaller crop; ``prompts``: a crop must be less
    similar to the sentence of each smaller crop."""


@dataclass
class ClipLossConfig(LossConfig):
    """CLIP's loss over the nested crops of an image: cross-entropy of the crops given a sentence, and of the sentences
    given a crop (arXiv:2103.00020)."""

    compares: ClassVar[frozenset[str]] = frozenset({"similarities"})

    name: str = "clip"


LOSSES: dict[str, type[LossConfig]] = {
    "dace": DaceConfig,
    "dace_block_error": DaceBlockErrorConfig,
    "cross_entropy": CrossEntropyConfig,
    "dm": DmConfig,
    "mse": MseConfig,
    "zip": ZipConfig,
    "mmr": MmrConfig,
    "clip": ClipLossConfig,
}
"""Kind -> schema."""
TRANSPORTS: dict[str, type[TransportConfig]] = {"released": ReleasedTransportConfig, "stable": StableTransportConfig}
"""Kind -> schema."""
KERNELS: dict[str, type[KernelConfig]] = {"fixed": FixedKernelConfig, "adaptive": AdaptiveKernelConfig}
"""Kind -> schema."""


def errors(config: LossConfig) -> list[str]:
    """Find settings of the loss that contradict each other; one message each."""
    if not isinstance(config, ZipConfig):
        return []
    if len(config.scales) != len(config.scale_weights) or not config.scales:
        return [
            f"loss.scales={config.scales} loss.scale_weights={config.scale_weights}: need one weight for each scale, "
            "and at least one scale"
        ]
    return []
