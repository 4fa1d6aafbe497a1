"""Losses that compare counts block by block: absolute and squared errors, and CSRNet's loss on smoothed counts.

Implements alternatives to DM-Count's loss in arXiv:2403.09281, equation 3, and arXiv:1802.10062, equation 2. It does
not smooth the annotations; the batch provides smoothed counts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import BlockErrorKind
from headcount.types import Batch, LossTerms, Prediction


def blocks_of(prediction: Prediction, batch: Batch) -> Float[Tensor, "batch 1 rows cols"]:
    """The predicted heads per block, in float32; with masks, those inside: a block times the share of its area inside.

    Raises:
        ValueError: if the prediction has no blocks.
    """
    if prediction.blocks is None:
        raise ValueError("this loss compares blocks, but the head predicts one number per image; choose another loss")
    return batch.within_mask(prediction.blocks.float())


class BlockError:
    """Absolute (``mae``) or squared (``mse``) error per block, summed over blocks and averaged over images."""

    def __init__(self, kind: BlockErrorKind) -> None:
        self.kind = kind

    def __call__(
        self,
        predicted: Float[Tensor, "batch 1 rows cols"],
        points: list[Float[Tensor, "_ 2"]],
        true: Float[Tensor, "batch 1 rows cols"],
    ) -> LossTerms:
        """Compare ``predicted`` with ``true`` block counts.

        Args:
            predicted: heads per block.
            points: not used; part of the interface of a count loss.
            true: heads per block.

        Returns:
            The total, also as the part ``absolute_error`` or ``squared_error``.
        """
        error = predicted - true.to(predicted)
        name, per_block = (
            ("absolute_error", error.abs()) if self.kind is BlockErrorKind.mae else ("squared_error", error.square())
        )
        total = per_block.sum((1, 2, 3)).mean()
        return LossTerms(total, {name: total.detach()})


class MseLoss:
    """Half the squared error between block counts and smoothed counts, summed over blocks and averaged over images.

    Args:
        scale: factor of the loss.

    Source: arXiv:1802.10062, equation 2.
    """

    needs = frozenset({"smoothed"})
    honors_masks = True

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, prediction: Prediction, batch: Batch) -> LossTerms:
        """Compute the loss of a prediction, in float32 even under autocast.

        Returns:
            The total, also as the part ``squared_error``.

        Raises:
            ValueError: if the batch has no smoothed counts.
        """
        with torch.autocast(prediction.count.device.type, enabled=False):
            error = blocks_of(prediction, batch) - batch.target("smoothed")
            total = self.scale * error.square().sum((1, 2, 3)).mean() / 2
        return LossTerms(total, {"squared_error": total.detach()})
