"""Prediction heads of the zero-inflated Poisson distribution, by 1x1 convolutions or by CLIP's texts.

Implements the heads of arXiv:2506.19955. The distribution itself is ``headcount.zero_inflated``; it has nothing to
learn but two sets of logits, one for "structurally empty or not" (pi) and one over the bins above 0 (lambda).
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import ConfigError, ZipHeadConfig, missing_bins
from headcount.models.heads import PredictionHead, TextEncoder, build_head, cosine_logits, resample
from headcount.models.prompts import write_gate_prompts, write_prompts
from headcount.types import BlockGrid
from headcount.zero_inflated import ZipPrediction, bin_counts


class ConvolutionalLogits(nn.Module):
    """A 1x1 convolution of the features, which runs before they are resampled to the blocks."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.to_logits = nn.Conv2d(channels, classes, 1)

    @torch.no_grad()
    def start_at(self, shares: Float[Tensor, " classes"]) -> None:
        """Make the untrained layer predict these shares of the blocks."""
        # A class without training blocks must stay within reach of the gradient.
        shares = shares.clamp(min=1e-5)
        self.to_logits.bias.copy_((shares / shares.sum()).log())  # type: ignore[union-attr]

    def forward(
        self, features: Float[Tensor, "batch channels h w"], *, factor: float
    ) -> Float[Tensor, "batch classes rows cols"]:
        """Logits of each block, in float32 at least."""
        logits = resample(self.to_logits(features), factor)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class CosineLogits(nn.Module):
    """Cosine similarity of projected features with text features, times a learned scale."""

    text_features: Tensor

    def __init__(self, channels: int, text_features: Float[Tensor, "classes embed"]) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, text_features.shape[1], 1, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # as CosineClassifier
        self.register_buffer("text_features", text_features)

    def start_at(self, shares: Float[Tensor, " classes"]) -> None:
        """Do nothing: there is no bias."""

    def forward(
        self, features: Float[Tensor, "batch channels h w"], *, factor: float
    ) -> Float[Tensor, "batch classes rows cols"]:
        """Logits of each block, in float32."""
        projected = resample(self.projection(features), factor)
        return cosine_logits(projected, self.text_features, self.logit_scale)


class ZipHead(PredictionHead):
    """Two sets of logits to a zero-inflated Poisson distribution for each block.

    The rate is an expectation over the representative counts of the bins above 0, so that it lies between the first of
    them, 1, and the last.

    Args:
        gate: features to two logits: structurally empty, or not.
        rate: features to one logit per bin above 0.
        bins: of integers; the first one is {0}.

    Source: arXiv:2506.19955.
    """

    representatives: Tensor
    bin_counts: Tensor

    def __init__(
        self, gate: ConvolutionalLogits | CosineLogits, rate: ConvolutionalLogits | CosineLogits, bins: CountBins
    ) -> None:
        super().__init__()
        self.gate = gate
        self.rate = rate
        self.bins = bins
        # Buffers follow the model to its device, so that no step copies them from the host.
        self.register_buffer("representatives", torch.tensor(bins.representatives[1:]), persistent=False)
        self.register_buffer("bin_counts", bin_counts(bins.edges), persistent=False)

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """See :class:`PredictionHead`.

        Every block without heads is taken as structurally empty, which makes the expected count that of the blocks.
        """
        shares = torch.tensor(self.bins.shares(histogram))
        self.gate.start_at(torch.stack([shares[0], shares[1:].sum()]))
        self.rate.start_at(shares[1:])

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> ZipPrediction:
        """See :class:`PredictionHead`."""
        gate_logits, bin_logits = self.gate(features, factor=factor), self.rate(features, factor=factor)
        with torch.autocast(features.device.type, enabled=False):
            return ZipPrediction.from_logits(
                gate_logits, bin_logits, representatives=self.representatives, bin_counts=self.bin_counts
            )


@build_head.register(ZipHeadConfig)
def _build_zip(
    config: ZipHeadConfig,
    channels: int,
    grid: BlockGrid,
    bins: CountBins | None,
    texts: TextEncoder | None = None,
) -> PredictionHead:
    if bins is None:
        raise ConfigError(missing_bins("model.head=zip", "bins=fine"))
    if bins.smoothed:
        raise ConfigError(
            "model.head=zip: counts whole heads, and bins=blockwise are of smoothed ones; choose bins=fine"
        )
    if texts is None:
        positive = ConvolutionalLogits(channels, len(bins) - 1)
        return ZipHead(ConvolutionalLogits(channels, 2), positive, bins)
    gate = CosineLogits(channels, texts.encode(write_gate_prompts(texts.prompts)))
    return ZipHead(gate, CosineLogits(channels, texts.encode(write_prompts(bins.edges[1:], texts.prompts))), bins)
