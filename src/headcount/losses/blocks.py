"""Losses that compare counts block by block: absolute and squared errors, and CSRNet's against smoothed heads.

Implements the count losses that arXiv:2403.09281, equation 3, may take instead of DM-Count's, and
arXiv:1802.10062, equation 2. It does not smooth heads; the batch brings them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import BlockErrorKind
from headcount.types import Batch, BlockPrediction, LossTerms


class BlockError:
    """Absolute (``mae``) or squared (``mse``) error of every block, summed over blocks and averaged over images."""

    def __init__(self, kind: BlockErrorKind) -> None:
        self.kind = kind

    def __call__(
        self,
        predicted: Float[Tensor, "batch 1 rows cols"],
        points: list[Float[Tensor, "_ 2"]],
        true: Float[Tensor, "batch 1 rows cols"],
    ) -> LossTerms:
        """Compare ``predicted`` with ``true`` block counts; ``points`` are not looked at."""
        error = predicted - true.to(predicted)
        absolute = self.kind is BlockErrorKind.mae
        total = (error.abs() if absolute else error.square()).sum((1, 2, 3)).mean()
        return LossTerms(total, {"absolute_error" if absolute else "squared_error": total.detach()})


class MseLoss:
    """Half the squared error of the block counts against smoothed heads, summed over blocks, averaged over images."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, prediction: BlockPrediction, batch: Batch) -> LossTerms:
        """The loss of a prediction, in float32 even under autocast.

        Raises:
            ValueError: if the batch has no smoothed counts.
        """
        if batch.smoothed is None:
            raise ValueError(
                "the mse loss compares with smoothed counts, but the batch has none: collate needs a smoothing"
            )
        with torch.autocast(prediction.block_counts.device.type, enabled=False):
            error = prediction.block_counts.float() - batch.smoothed
            total = self.scale * error.square().sum((1, 2, 3)).mean() / 2
        return LossTerms(total, {"squared_error": total.detach()})
