"""The DACE loss: cross-entropy over the bins of each block plus a loss on the expected counts.

Implements arXiv:2403.09281, equation 3. The count loss is a separate object: any loss that compares block counts.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from headcount.losses.blocks import blocks_of
from headcount.losses.cross_entropy import cross_entropy
from headcount.types import Batch, LossTerms, Prediction


@runtime_checkable
class CountLoss(Protocol):
    """A loss on block counts; see ``TransportLoss`` and ``BlockError``."""

    def __call__(self, predicted: Tensor, points: list[Tensor], true: Tensor) -> LossTerms:
        """Compare predicted with true block counts.

        Args:
            predicted: heads per block, (batch, 1, rows, cols).
            points: (x, y) of the heads of each image, each (n, 2), in pixels of the input image.
            true: heads per block, (batch, 1, rows, cols).
        """
        ...


class DaceLoss:
    """Cross-entropy, summed over blocks and averaged over images, plus ``weight`` times ``count_loss``.

    Args:
        count_loss: loss on the expected counts of the blocks; not computed if ``weight`` is 0.
        weight: weight of ``count_loss`` (the paper's lambda).

    Source: arXiv:2403.09281, equation 3.
    """

    honors_masks = True

    def __init__(self, count_loss: CountLoss, *, weight: float) -> None:
        self.count_loss = count_loss
        self.weight = weight
        self.needs = frozenset({"labels", "points", "block_counts"} if weight else {"labels"})

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast.

        The expected counts are compared with the unsmoothed counts, even if the labels are bins of smoothed counts.

        Returns:
            The total and its parts: ``cross_entropy``, and those of the count loss multiplied by ``weight``; values
            that the count loss only logs are not multiplied.

        Raises:
            ValueError: if the prediction has no logits, or the batch lacks a target.
        """
        with torch.autocast(prediction.count.device.type, enabled=False):
            classification = cross_entropy(prediction, batch, name="dace")
            parts = {"cross_entropy": classification.detach()}
            if self.weight == 0:
                return LossTerms(total=classification, parts=parts)
            counts = self.count_loss(blocks_of(prediction, batch), batch.target("points"), batch.target("block_counts"))
            parts |= {name: self.weight * part for name, part in counts.parts.items()}
            return LossTerms(classification + self.weight * counts.total, parts, counts.logged)
