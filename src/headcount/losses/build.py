"""Turns the loss of a config into the object that computes it."""

from collections.abc import Callable

from headcount.bins import CountBins
from headcount.config import DaceConfig, LossConfig, TransportConfig
from headcount.losses.dace import DaceLoss
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.transport import TransportLoss
from headcount.types import Batch, BlockPrediction, LossTerms

Loss = Callable[[BlockPrediction, Batch], LossTerms]


def build_loss(config: LossConfig, bins: CountBins) -> Loss:
    """The loss of ``config`` for blocks and bins of ``bins``.

    Raises:
        ValueError: if there is no loss of this kind.
    """
    match config:
        case DaceConfig():
            return DaceLoss(_build_transport(config.transport, bins), bins=bins, weight=config.weight)
    raise ValueError(f"no loss of kind {type(config).__name__} ({config.name}); there is: DaceConfig (dace)")


def _build_transport(config: TransportConfig, bins: CountBins) -> TransportLoss:
    return TransportLoss(
        TruncatedSinkhorn(regularisation=config.regularisation, iterations=config.iterations),
        block_size=bins.block_size,
        ot_weight=config.ot_weight,
        ot_reduction=config.ot_reduction,
        tv_weight=config.tv_weight,
        count_weight=config.count_weight,
    )
