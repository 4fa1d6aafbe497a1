"""The DACE loss: cross-entropy over the bins of each block plus a loss of the expected counts.

Implements arXiv:2403.09281, equation 3. The count loss is any that compares block counts.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from headcount.bins import CountBins
from headcount.losses.cross_entropy import cross_entropy
from headcount.types import Batch, BlockPrediction, LossTerms


@runtime_checkable
class CountLoss(Protocol):
    """A loss of block counts; see ``TransportLoss`` and ``BlockError``."""

    def __call__(self, predicted: Tensor, points: list[Tensor], true: Tensor) -> LossTerms:
        """Compare ``predicted`` with ``true`` block counts, (batch, 1, rows, cols), and with the heads' points."""
        ...


class DaceLoss:
    """Cross-entropy, summed over blocks and averaged over images, + ``weight`` times ``count_loss``.

    Without a weight the count loss is not computed.
    """

    def __init__(self, count_loss: CountLoss, *, bins: CountBins, weight: float) -> None:
        self.count_loss = count_loss
        self.bins = bins
        self.weight = weight

    def __call__(self, prediction: BlockPrediction, batch: Batch) -> LossTerms:
        """The loss of a prediction, in float32 even under autocast.

        The expected counts are compared with the heads themselves, even where the bins are of smoothed counts.

        Returns:
            The parts ``cross_entropy`` and those of the count loss, times ``weight`` where they are part of the sum.

        Raises:
            ValueError: if the prediction has no logits, or a true count lies in no bin.
        """
        with torch.autocast(prediction.block_counts.device.type, enabled=False):
            classification = cross_entropy(prediction, batch, self.bins, name="dace")
            parts = {"cross_entropy": classification.detach()}
            if self.weight == 0:
                return LossTerms(total=classification, parts=parts)
            counts = self.count_loss(prediction.block_counts.float(), batch.points, batch.block_counts)
            # The transport cost is told, not minimized: it stays in squared pixels.
            parts |= {k: v if k == "transport_cost" else self.weight * v for k, v in counts.parts.items()}
            return LossTerms(total=classification + self.weight * counts.total, parts=parts)
