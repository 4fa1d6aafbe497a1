"""Turns the loss of a config into the object that computes it."""

from collections.abc import Callable

from headcount.bins import CountBins
from headcount.config import DaceConfig, DmConfig, LossConfig, TransportConfig
from headcount.losses.dace import DaceLoss
from headcount.losses.dm import DmLoss
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.transport import TransportLoss
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
        case DaceConfig():
            if bins is None:
                raise ValueError("the dace loss classifies blocks into bins, and there are none")
            return DaceLoss(_build_transport(config.transport, block_size), bins=bins, weight=config.weight)
        case DmConfig():
            return DmLoss(_build_transport(config.transport, block_size))
    raise ValueError(f"no loss of kind {type(config).__name__} ({config.name}); there are DaceConfig, DmConfig")


def _build_transport(config: TransportConfig, block_size: int) -> TransportLoss:
    return TransportLoss(
        TruncatedSinkhorn(regularisation=config.regularisation, iterations=config.iterations),
        block_size=block_size,
        ot_weight=config.ot_weight,
        ot_reduction=config.ot_reduction,
        tv_weight=config.tv_weight,
        count_weight=config.count_weight,
    )
