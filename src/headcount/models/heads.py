"""The shared block-classification head: features to one logit a bin, logits to expected counts.

Implements equation 1 of arXiv:2403.09281. It knows no backbone and no loss.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headcount.bins import CountBins, expected_counts
from headcount.types import BlockPrediction


def resample(maps: Float[Tensor, "batch channels h w"], factor: float) -> Float[Tensor, "batch channels rows cols"]:
    """Bilinear resampling of features or logits (never of counts) by ``factor``, downwards too.

    As the released code does it: align_corners false, no antialias.
    """
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


class BlockClassifier(nn.Module):
    """One 1x1 convolution to a logit for each bin; a block's count is the softmax expectation."""

    representatives: Tensor

    def __init__(self, channels: int, bins: CountBins) -> None:
        super().__init__()
        self.to_logits = nn.Conv2d(channels, len(bins), 1)
        # A buffer: it follows the model to its device, and no step copies it from the host.
        self.register_buffer("representatives", torch.tensor(bins.representatives), persistent=False)

    def start_at(self, shares: Sequence[float]) -> None:
        """Set the biases so that an untrained head predicts these shares of the bins.

        Nearly all blocks are empty: from equal shares the first epochs only unlearn crowds.
        """
        # A bin nobody has fallen into yet must stay within reach of the gradient.
        prior = torch.tensor(shares).clamp(min=1e-5)
        with torch.no_grad():
            self.to_logits.bias.copy_((prior / prior.sum()).log())  # type: ignore[union-attr]

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BlockPrediction:
        """Predict blocks from features on a grid that is ``factor`` times coarser than the blocks.

        A 1x1 convolution and bilinear resampling commute (the weights of a resampled value sum to
        one), so the convolution runs first, on the smaller map when enlarging.
        """
        logits = resample(self.to_logits(features), factor).float()
        return BlockPrediction(block_counts=expected_counts(logits.softmax(1), self.representatives), logits=logits)
