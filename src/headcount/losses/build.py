"""From a loss's config to the object that computes it.

A loss of your own: a config (``headcount.config.register("loss", name, YourConfig)``), a :class:`Loss`,
and a builder registered with ``@build_loss.register``.
"""

from functools import singledispatch
from typing import Protocol, runtime_checkable

from headcount.bins import CountBins
from headcount.config import (
    ClipLossConfig,
    ConfigError,
    CrossEntropyConfig,
    DaceBlockErrorConfig,
    DaceConfig,
    DmConfig,
    LossConfig,
    MmrConfig,
    MseConfig,
    ReleasedTransportConfig,
    StableTransportConfig,
    TransportConfig,
    ZipConfig,
    missing_bins,
)
from headcount.losses.blocks import BlockError, MseLoss
from headcount.losses.cross_entropy import CrossEntropyLoss
from headcount.losses.dace import DaceLoss
from headcount.losses.dm import DmLoss
from headcount.losses.ranking import ClipLoss, MmrLoss
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.stable import StableSinkhorn
from headcount.losses.transport import TransportLoss, TransportSolver
from headcount.losses.zero_inflated import ZipLoss
from headcount.types import Batch, BlockGrid, LossTerms, Prediction


@runtime_checkable
class Loss(Protocol):
    """Compares a prediction with the targets of its batch."""

    needs: frozenset[str]
    """Names of the targets that the loader must make (:class:`headcount.data.loading.Targets`).

    A loss that leaves out what is outside the images' masks also states ``honors_masks = True``, and finds the share of
    each block inside in the target ``mask``, which only datasets with masks have (:meth:`Batch.within_mask`).
    """

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """The loss of a prediction, in float32 even under autocast."""
        ...


@singledispatch
def build_loss(config: LossConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    """Build the loss of ``config``; other losses register builders by config type.

    Args:
        grid: the predicted blocks.
        bins: the classes of a block; None if the config has none (``bins=none``).

    Raises:
        ConfigError: if the loss needs bins and there are none, or if no builder is registered for it.
    """
    raise ConfigError(f"loss={config.name}: no builder is registered for {type(config).__name__}")


@build_loss.register(DaceConfig)
def _build_dace(config: DaceConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    _require_bins(bins, config)
    return DaceLoss(_build_transport(config.transport, grid), weight=config.weight)


@build_loss.register(DaceBlockErrorConfig)
def _build_dace_block_error(config: DaceBlockErrorConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    _require_bins(bins, config)
    return DaceLoss(BlockError(config.error), weight=config.weight)


@build_loss.register(CrossEntropyConfig)
def _build_cross_entropy(config: CrossEntropyConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    _require_bins(bins, config)
    return CrossEntropyLoss()


@build_loss.register(DmConfig)
def _build_dm(config: DmConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return DmLoss(_build_transport(config.transport, grid))


@build_loss.register(MseConfig)
def _build_mse(config: MseConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return MseLoss(config.scale)


@build_loss.register(ZipConfig)
def _build_zip(config: ZipConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    _require_bins(bins, config)
    return ZipLoss(
        cross_entropy_weight=config.cross_entropy_weight,
        nll_weight=config.nll_weight,
        epsilon=config.epsilon,
        scales=list(zip(config.scales, config.scale_weights, strict=True)),
        mae_weight=config.mae_weight,
        count_weight=config.count_weight,
    )


@build_loss.register(MmrConfig)
def _build_mmr(config: MmrConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return MmrLoss(margin=config.margin, compared=config.compared)


@build_loss.register(ClipLossConfig)
def _build_clip(config: ClipLossConfig, grid: BlockGrid, bins: CountBins | None) -> Loss:
    return ClipLoss()


def require_masks(loss: Loss, config: LossConfig) -> None:
    """Refuse a loss that would compare what is outside the images' masks.

    Raises:
        ConfigError: if the loss does not state that it honors masks.
    """
    if not getattr(loss, "honors_masks", False):
        raise ConfigError(
            f"loss={config.choice}: the images have masks, which this loss does not honor; choose another loss, or "
            "count everywhere with dataset.mask=none"
        )


def _require_bins(bins: CountBins | None, config: LossConfig) -> None:
    if bins is None:
        raise ConfigError(missing_bins(f"loss={config.choice}", "loss=dm"))


def _build_transport(config: TransportConfig, grid: BlockGrid) -> TransportLoss:
    solver: TransportSolver
    match config:
        case ReleasedTransportConfig():
            solver = TruncatedSinkhorn(config.regularization, config.iterations)
        case StableTransportConfig():
            solver = StableSinkhorn(config.regularization, config.max_iterations, config.tolerance)
        case _:
            raise ConfigError(f"loss.transport: no solver is built from a {type(config).__name__}")
    return TransportLoss(
        solver,
        block_size=grid.block_size,
        ot_weight=config.ot_weight,
        ot_reduction=config.ot_reduction,
        tv_weight=config.tv_weight,
        count_weight=config.count_weight,
    )
