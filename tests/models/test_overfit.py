"""Every family of networks, with either head and its real loss, learns four images by heart; one step is a step."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    ClipResNetConfig,
    ClipViTConfig,
    DaceConfig,
    Decoder,
    DmConfig,
    Head,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    Strategy,
    SyntheticConfig,
    TimmConfig,
    TinyConfig,
)
from headcount.data.points import block_counts
from headcount.data.synthetic import draw_crowd
from headcount.losses.build import Loss, build_loss
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.types import Batch

BLOCK = 8
SIZE = 64  # px
HEADS = (2, 9, 20, 35)

TEXT: dict[str, Any] = {"embed_dim": 32, "text_width": 32, "text_heads": 2, "text_layers": 1}
RESNET: dict[str, Any] = {**TEXT, "width": 16, "layers": [1, 1, 1, 1]}
VIT: dict[str, Any] = {**TEXT, "width": 64, "layers": [2], "heads": 2, "input_size": SIZE}
SMALL_DECODER: dict[str, Any] = {"decoder_channels": [64]}
NO_DECODER: dict[str, Any] = {"decoder": Decoder.none}
FAMILIES: dict[str, tuple[type[ModelConfig], dict[str, Any]]] = {
    "tiny": (TinyConfig, {"width": 16}),
    "mobilenet_v2": (MobileNetV2Config, {}),
    **{
        name: (ImageNetConfig, {"name": name})
        for name in ("vgg16", "dmcount", "csrnet", "cannet", "resnet101", "densenet201")
    },
    "timm_resnet18": (TimmConfig, {"name": "resnet18"}),
    "timm_convnext_atto": (TimmConfig, {"name": "convnext_atto"}),
    "clip_rn50": (ClipResNetConfig, {**RESNET, **SMALL_DECODER}),
    "clip_rn50_bare": (ClipResNetConfig, {**RESNET, **NO_DECODER}),
    "clip_vit_prompted": (ClipViTConfig, {**VIT, **SMALL_DECODER, "frozen": True, "prompt_tokens": 4}),
    "clip_vit_prompted_bare": (ClipViTConfig, {**VIT, **NO_DECODER, "frozen": True, "prompt_tokens": 4}),
    "clip_vit_tuned": (ClipViTConfig, {**VIT, **SMALL_DECODER, "frozen": False, "prompt_tokens": 0}),
    "clip_vit_tuned_bare": (ClipViTConfig, {**VIT, **NO_DECODER, "frozen": False, "prompt_tokens": 0}),
}
HEADS_OF_A_MODEL = pytest.mark.parametrize("head", list(Head), ids=lambda h: h.name)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Generated crowds of ``HEADS`` heads."""
    config = SyntheticConfig(width=SIZE, height=SIZE, max_people=80)
    samples = {}
    for index in range(1000):
        sample = draw_crowd(index, config=config, split="train")
        samples.setdefault(len(sample.points), sample)
        if samples.keys() >= set(HEADS):
            break
    chosen = [samples[n] for n in HEADS]
    counts = [block_counts(s.points, height=SIZE, width=SIZE, block_size=BLOCK) for s in chosen]
    return Batch(
        images=torch.stack([s.image for s in chosen]),
        points=[s.points for s in chosen],
        block_counts=torch.stack(counts)[:, None],
        names=[s.name for s in chosen],
    )


def build(family: str, head: Head, batch: Batch) -> tuple[Counter, Loss]:
    """A counter without pretrained weights, as the command builds it, and the loss of its head."""
    torch.manual_seed(0)
    values, numbers = batch.block_counts.long().unique(return_counts=True)
    histogram = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    bins = CountBins.from_histogram(histogram, block_size=BLOCK, strategy=Strategy.fine, m=4)
    kind, changes = FAMILIES[family]
    if kind is not TinyConfig:
        changes = {**changes, "weights": "none"}
    own_bins = bins if head is Head.ebc else None
    counter = build_model(kind(head=head, **changes), own_bins, block_size=BLOCK, histogram=histogram)
    loss = build_loss(DaceConfig() if head is Head.ebc else DmConfig(), own_bins, block_size=BLOCK)
    return counter, loss


def errors(counter: Counter, batch: Batch) -> Tensor:
    """Of each image's count, as a share of the truth."""
    counter.eval()
    with torch.no_grad():
        counts = counter(batch.images).block_counts.sum(dim=(1, 2, 3))
    counter.train()
    truth = batch.block_counts.sum(dim=(1, 2, 3))
    return (counts - truth).abs() / truth
