"""What stands on the features: bins of blocks by 1x1 convolutions or by CLIP's texts, or counts.

Implements equation 1 of arXiv:2403.09281. A head knows no backbone and no loss. Each takes features
on a grid that is ``factor`` times coarser than the blocks; whatever commutes with bilinear
resampling (a 1x1 convolution does: the weights of a resampled value sum to one) runs on the
smaller map.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headcount.bins import CountBins, expected_counts
from headcount.types import BlockPrediction

# More channels than this pass a hidden layer of this width before the bins (released code).
_HIDDEN = 512


def resample(maps: Float[Tensor, "batch channels h w"], factor: float) -> Float[Tensor, "batch channels rows cols"]:
    """Bilinear resampling of features or logits (never of counts) by ``factor``, downwards too.

    As the released code does it: align_corners false, no antialias.
    """
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


class Head(nn.Module, ABC):
    """Predicts blocks from features; the interface of the heads below."""

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """Let the untrained head predict the blocks of ``histogram`` (block count -> blocks), if it has a bias.

        Nearly all blocks are empty: from equal shares the first epochs only unlearn crowds.
        """
        return

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BlockPrediction:
        """Predict blocks from features on a grid that is ``factor`` times coarser than the blocks."""


class BlockClassifier(Head):
    """1x1 convolutions to a logit for each bin; a block's count is the softmax expectation."""

    representatives: Tensor

    def __init__(self, channels: int, bins: CountBins) -> None:
        super().__init__()
        self.bins = bins
        self.hidden = channels > _HIDDEN
        self.to_logits: nn.Module = nn.Conv2d(min(channels, _HIDDEN), len(bins), 1)
        if self.hidden:
            self.to_logits = nn.Sequential(nn.Conv2d(channels, _HIDDEN, 1), nn.ReLU(inplace=True), self.to_logits)
        # A buffer: it follows the model to its device, and no step copies it from the host.
        self.register_buffer("representatives", torch.tensor(bins.representatives), persistent=False)

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """See :class:`Head`."""
        # A bin nobody has fallen into yet must stay within reach of the gradient.
        prior = torch.tensor(self.bins.shares(histogram)).clamp(min=1e-5)
        last = list(self.to_logits.modules())[-1]
        with torch.no_grad():
            last.bias.copy_((prior / prior.sum()).log())  # type: ignore[operator]

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BlockPrediction:
        """See :class:`Head`."""
        if self.hidden:  # its ReLU does not commute
            logits = self.to_logits(resample(features, factor)).float()
        else:
            logits = resample(self.to_logits(features), factor).float()
        return BlockPrediction(block_counts=expected_counts(logits.softmax(1), self.representatives), logits=logits)


class CosineClassifier(Head):
    """Cosine similarity of projected features with the text features of each bin's prompt.

    The texts are constants: encoded once, kept with the weights. Without a decoder the projection
    runs before up-sampling; the norm, which does not commute, is taken after it.

    Source: arXiv:2403.09281, section III-B.
    """

    representatives: Tensor
    text_features: Tensor

    def __init__(self, channels: int, bins: CountBins, text_features: Float[Tensor, "bins embed"]) -> None:
        super().__init__()
        embed = text_features.shape[1]
        self.projection: nn.Module = nn.Identity() if channels == embed else nn.Conv2d(channels, embed, 1)
        # Released code: starts at 1 / 0.07, as CLIP itself did, not where CLIP's training ended.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("text_features", text_features)
        self.register_buffer("representatives", torch.tensor(bins.representatives), persistent=False)

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BlockPrediction:
        """See :class:`Head`."""
        projected = resample(self.projection(features), factor)
        # Cosines need the digits that bfloat16 does not have.
        with torch.autocast(features.device.type, enabled=False):
            directions = F.normalize(projected.float(), dim=1)
            texts = F.normalize(self.text_features.float(), dim=1)
            logits = self.logit_scale.exp() * F.conv2d(directions, texts[:, :, None, None])
        return BlockPrediction(block_counts=expected_counts(logits.softmax(1), self.representatives), logits=logits)


class CountRegressor(Head):
    """One 1x1 convolution and ReLU to the count of each block.

    Source: arXiv:2009.13077; the comparison without bins in arXiv:2403.09281, table I.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_counts = nn.Conv2d(channels, 1, 1)
        # Where every count starts below zero, ReLU passes no gradient.
        nn.init.kaiming_normal_(self.to_counts.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.to_counts.bias)  # type: ignore[arg-type]

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """See :class:`Head`."""
        mean = sum(c * n for c, n in histogram.items()) / max(sum(histogram.values()), 1)
        # The same count everywhere: blocks that begin below zero would get no gradient through ReLU.
        nn.init.zeros_(self.to_counts.weight)
        nn.init.constant_(self.to_counts.bias, mean)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BlockPrediction:
        """See :class:`Head`."""
        return BlockPrediction(block_counts=resample(self.to_counts(features), factor).float().relu())
