"""DM-Count's loss on block counts, without a classification term; for prediction heads with or without bins.

Implements arXiv:2009.13077; the terms are computed by ``transport``.
"""

import torch

from headcount.losses.blocks import blocks_of
from headcount.losses.transport import TransportLoss
from headcount.types import Batch, LossTerms, Prediction


class DmLoss:
    """Optimal-transport, total-variation and count terms of the predicted block counts."""

    needs = frozenset({"points", "block_counts"})
    honors_masks = True

    def __init__(self, transport: TransportLoss) -> None:
        self.transport = transport

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast; parts as in :class:`TransportLoss`."""
        with torch.autocast(prediction.count.device.type, enabled=False):
            return self.transport(blocks_of(prediction, batch), batch.target("points"), batch.target("block_counts"))
