"""Prediction heads: classify blocks into bins by 1x1 convolutions or CLIP's texts, or regress their counts.

Implements equation 1 of arXiv:2403.09281. A head does not depend on backbone or loss. Each takes features
on a grid that is ``factor`` times coarser than the blocks; whatever commutes with bilinear
resampling (a 1x1 convolution does: the weights of a resampled value sum to one) runs on the
smaller map.

A head of your own: a config (``headcount.config.register("model/head", name, YourConfig)``), a
:class:`PredictionHead`, and a builder registered with ``@build_head.register``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headcount.bins import CountBins, expected_counts
from headcount.config import ConfigError, EbcHeadConfig, HeadConfig, PromptsConfig, RegressionHeadConfig, missing_bins
from headcount.distribution import bin_moments
from headcount.models.prompts import write_prompts
from headcount.types import BinPrediction, BlockGrid, Prediction

# Released code: more channels than this pass a hidden layer of this width before the bins.
_HIDDEN = 512


@runtime_checkable
class TextEncoder(Protocol):
    """What a backbone with a text encoder offers to heads; see ``clip.ClipTexts``."""

    prompts: PromptsConfig

    def encode(self, sentences: list[str]) -> Float[Tensor, "sentences embed"]:
        """Features of each sentence, not normalized."""
        ...


def resample(maps: Float[Tensor, "batch channels h w"], factor: float) -> Float[Tensor, "batch channels rows cols"]:
    """Bilinear resampling of features or logits (never of counts) by ``factor``, also below 1.

    As in the released code: ``align_corners=False``, no antialiasing.
    """
    if factor == 1:
        return maps
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


class PredictionHead(nn.Module, ABC):
    """Predicts the blocks of an image, or its count, from features; the interface of the heads below."""

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """Make the untrained head predict the blocks of ``histogram`` (block count -> blocks), if it has a bias.

        Nearly all blocks are empty; from equal probabilities, the first epochs would only learn that.
        """
        return

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> Prediction:
        """Predict from features on a grid that is ``factor`` times coarser than the blocks."""


class BlockClassifier(PredictionHead):
    """1x1 convolutions to one logit per bin; a block's count is the expectation under the softmax."""

    representatives: Tensor
    second_moments: Tensor

    def __init__(self, channels: int, bins: CountBins) -> None:
        super().__init__()
        self.bins = bins
        self.hidden = channels > _HIDDEN
        self.to_logits: nn.Module = nn.Conv2d(min(channels, _HIDDEN), len(bins), 1)
        if self.hidden:
            self.to_logits = nn.Sequential(nn.Conv2d(channels, _HIDDEN, 1), nn.ReLU(inplace=True), self.to_logits)
        # Buffers follow the model to its device, so that no step copies them from the host.
        self.register_buffer("representatives", torch.tensor(bins.representatives), persistent=False)
        self.register_buffer("second_moments", torch.tensor(bin_moments(bins)), persistent=False)

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """See :class:`PredictionHead`."""
        # A bin without training blocks must stay within reach of the gradient.
        prior = torch.tensor(self.bins.shares(histogram)).clamp(min=1e-5)
        last = list(self.to_logits.modules())[-1]
        with torch.no_grad():
            last.bias.copy_((prior / prior.sum()).log())  # type: ignore[operator]

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BinPrediction:
        """See :class:`PredictionHead`."""
        if self.hidden:  # its ReLU does not commute with resampling
            logits = self.to_logits(resample(features, factor)).float()
        else:
            logits = resample(self.to_logits(features), factor).float()
        return predict_bins(logits, self.representatives, self.second_moments)


class CosineClassifier(PredictionHead):
    """Cosine similarity of projected features with the text features of each bin's prompt.

    The texts are constants: encoded once and stored with the weights. Without a decoder the projection
    runs before up-sampling; the norm, which does not commute with it, is computed after it.

    Source: arXiv:2403.09281, section III-B.
    """

    representatives: Tensor
    second_moments: Tensor
    text_features: Tensor

    def __init__(self, channels: int, bins: CountBins, text_features: Float[Tensor, "bins embed"]) -> None:
        super().__init__()
        embed = text_features.shape[1]
        self.projection: nn.Module = nn.Identity() if channels == embed else nn.Conv2d(channels, embed, 1)
        # Released code: starts at 1 / 0.07, as CLIP itself did, rather than where CLIP's training ended.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.register_buffer("text_features", text_features)
        self.register_buffer("representatives", torch.tensor(bins.representatives), persistent=False)
        self.register_buffer("second_moments", torch.tensor(bin_moments(bins)), persistent=False)

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> BinPrediction:
        """See :class:`PredictionHead`."""
        projected = resample(self.projection(features), factor)
        # Cosines need more digits than bfloat16 has.
        with torch.autocast(features.device.type, enabled=False):
            directions = F.normalize(projected.float(), dim=1)
            texts = F.normalize(self.text_features.float(), dim=1)
            logits = self.logit_scale.exp() * F.conv2d(directions, texts[:, :, None, None])
        return predict_bins(logits, self.representatives, self.second_moments)


class CountRegressor(PredictionHead):
    """One 1x1 convolution and ReLU to the count of each block.

    Source: arXiv:2009.13077; the comparison without bins in arXiv:2403.09281, table I.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_counts = nn.Conv2d(channels, 1, 1)
        # If every count started below zero, ReLU would pass no gradient.
        nn.init.kaiming_normal_(self.to_counts.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.to_counts.bias)  # type: ignore[arg-type]

    def start_at(self, histogram: Mapping[int, int]) -> None:
        """See :class:`PredictionHead`."""
        mean = sum(c * n for c, n in histogram.items()) / max(sum(histogram.values()), 1)
        # The same count everywhere: blocks that start below zero would get no gradient through ReLU.
        nn.init.zeros_(self.to_counts.weight)
        nn.init.constant_(self.to_counts.bias, mean)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "batch channels h w"], *, factor: float) -> Prediction:
        """See :class:`PredictionHead`."""
        blocks = resample(self.to_counts(features), factor).float().relu()
        return Prediction(count=blocks.sum((1, 2, 3)), blocks=blocks)


def predict_bins(
    logits: Float[Tensor, "batch bins rows cols"],
    representatives: Float[Tensor, " bins"],
    second_moments: Float[Tensor, " bins"],
) -> BinPrediction:
    """The prediction of blocks with these logits: each counts as its expected representative count."""
    blocks = expected_counts(logits.softmax(1), representatives)
    return BinPrediction(count=blocks.sum((1, 2, 3)), blocks=blocks, logits=logits, second_moments=second_moments)


@singledispatch
def build_head(
    config: HeadConfig,
    channels: int,
    grid: BlockGrid,
    bins: CountBins | None,
    texts: TextEncoder | None = None,
) -> PredictionHead:
    """Build the prediction head of ``config``; other heads register builders by config type.

    Args:
        channels: channels of the features.
        grid: the blocks to predict.
        bins: the classes of a block; None if the config has none (``bins=none``).
        texts: encodes sentences for a head on CLIP's features; None for other backbones.

    Raises:
        ConfigError: if the head needs bins and there are none, or if no builder is registered for it.
    """
    raise ConfigError(f"model.head={config.name}: no builder is registered for {type(config).__name__}")


@build_head.register(EbcHeadConfig)
def _build_ebc(
    config: EbcHeadConfig,
    channels: int,
    grid: BlockGrid,
    bins: CountBins | None,
    texts: TextEncoder | None = None,
) -> PredictionHead:
    if bins is None:
        raise ConfigError(missing_bins("model.head=ebc", "bins=fine"))
    if texts is None:
        return BlockClassifier(channels, bins)
    return CosineClassifier(channels, bins, texts.encode(write_prompts(bins.edges, texts.prompts)))


@build_head.register(RegressionHeadConfig)
def _build_regression(
    config: RegressionHeadConfig,
    channels: int,
    grid: BlockGrid,
    bins: CountBins | None,
    texts: TextEncoder | None = None,
) -> PredictionHead:
    return CountRegressor(channels)
