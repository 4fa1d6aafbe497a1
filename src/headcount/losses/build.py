"""Turns the loss of a config into the object that computes it."""

from collections.abc import Callable

from headcount.bins import CountBins
from headcount.config import (
    CrossEntropyConfig,
    DaceBlockErrorConfig,
    DaceConfig,
    DmConfig,
    LossConfig,
    MseConfig,
    ReleasedTransportConfig,
    StableTransportConfig,
    TransportConfig,
)
from headcount.losses.blocks import BlockError, MseLoss
from headcount.losses.cross_entropy import CrossEntropyLoss
from headcount.losses.dace import DaceLoss
from headcount.losses.dm import DmLoss
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.stable import StableSinkhorn
from headcount.losses.transport import TransportLoss, TransportSolver
from headcount.types import Batch, BlockPrediction, LossTerms

Loss = Callable[[BlockPrediction, Batch], LossTerms]


def build_loss(config: LossConfig, bins: CountBins | None, *, block_size: int | None = None) -> Loss:
    """The loss of ``config``.

    Args:
        bins: the classes; None for a loss of counts alone.
        block_size: side of a block, pixels; needed without bins, which else say it.

    Raises:
        ValueError: if there is no loss of this kind, or it needs bins.
    """
    block_size = block_size if bins is None else bins.block_size
    if block_size is None:
        raise ValueError("block_size is needed where no bins say it")
    match config:
        case _ if config.needs_bins and bins is None:
            raise ValueError(f"the {config.name} loss classifies blocks into bins, and there are none")
        case DaceConfig():
            assert bins is not None
            return DaceLoss(_build_transport(config.transport, block_size), bins=bins, weight=config.weight)
        case DaceBlockErrorConfig():
            assert bins is not None
            return DaceLoss(BlockError(config.error), bins=bins, weight=config.weight)
        case CrossEntropyConfig():
            assert bins is not None
            return CrossEntropyLoss(bins)
        case DmConfig():
            return DmLoss(_build_transport(config.transport, block_size))
        case MseConfig():
            return MseLoss(config.scale)
    raise ValueError(
        f"no loss of kind {type(config).__name__} ({config.name}); "
        "there are DaceConfig, DaceBlockErrorConfig, CrossEntropyConfig, DmConfig, MseConfig"
    )


def _build_transport(config: TransportConfig, block_size: int) -> TransportLoss:
    solver: TransportSolver
    match config:
        case ReleasedTransportConfig():
            solver = TruncatedSinkhorn(regularization=config.regularization, iterations=config.iterations)
        case StableTransportConfig():
            solver = StableSinkhorn(config.regularization, config.iterations, config.tolerance)
        case _:
            raise ValueError(f"no transport of kind {type(config).__name__}")
    return TransportLoss(
        solver,
        block_size=block_size,
        ot_weight=config.ot_weight,
        ot_reduction=config.ot_reduction,
        tv_weight=config.tv_weight,
        count_weight=config.count_weight,
    )
