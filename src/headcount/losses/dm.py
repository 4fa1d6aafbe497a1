"""DM-Count's loss of block counts alone, for heads without bins (and with them).

Implements arXiv:2009.13077; the terms are ``transport``'s.
"""

import torch

from headcount.losses.transport import TransportLoss
from headcount.types import Batch, BlockPrediction, LossTerms


class DmLoss:
    """Optimal transport, total variation and count of the predicted block counts."""

    def __init__(self, transport: TransportLoss) -> None:
        self.transport = transport

    def __call__(self, prediction: BlockPrediction, batch: Batch) -> LossTerms:
        """The loss of a prediction, in float32 even under autocast."""
        with torch.autocast(prediction.block_counts.device.type, enabled=False):
            return self.transport(prediction.block_counts.float(), batch.points, batch.block_counts)
