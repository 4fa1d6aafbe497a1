"""DM-Count's loss on block counts, without a classification term; for prediction heads with or without bins.

Implements arXiv:2009.13077; the terms are computed by ``transport``.
"""

import torch

from headcount.losses.transport import TransportLoss
from headcount.types import Batch, BlockPrediction, LossTerms


class DmLoss:
    """Optimal-transport, total-variation and count terms of the predicted block counts."""

    def __init__(self, transport: TransportLoss) -> None:
        self.transport = transport

    def __call__(self, prediction: BlockPrediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast; parts as in :class:`TransportLoss`."""
        with torch.autocast(prediction.block_counts.device.type, enabled=False):
            return self.transport(prediction.block_counts.float(), batch.points, batch.block_counts)
