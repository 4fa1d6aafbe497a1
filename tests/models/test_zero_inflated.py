"""The zero-inflated Poisson head: by convolutions and by CLIP's texts."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headcount.bins import CountBins
from headcount.config import (
    ClipConfig,
    ClipResNetConfig,
    ClipViTConfig,
    ConfigError,
    Strategy,
    TinyConfig,
    ZipHeadConfig,
)
from headcount.models.build import build_model
from headcount.models.heads import build_head, resample
from headcount.models.zero_inflated import CosineLogits, ZipHead
from headcount.types import BlockGrid
from headcount.zero_inflated import ZipPrediction

HISTOGRAM = {0: 90, 1: 5, 2: 3, 4: 1, 9: 1}
BINS = CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(8), strategy=Strategy.fine, m=4)
TEXT: dict[str, Any] = {"text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 24, "weights": "none"}


def head_of(channels: int = 16) -> ZipHead:
    torch.manual_seed(0)
    head = build_head(ZipHeadConfig(), channels, BINS.grid, BINS)
    assert isinstance(head, ZipHead)
    return head


@pytest.mark.parametrize("factor", [2, 0.5, 14 / 8])
def test_it_equals_resampling_first(factor: float) -> None:
    head = head_of().double()
    features = torch.randn(2, 16, 6, 8, dtype=torch.float64)
    prediction = head(features, factor=factor)
    resampled = resample(features, factor)
    occupied = head.gate.to_logits(resampled).softmax(1)[:, 1:]
    shares = head.rate.to_logits(resampled).softmax(1)
    rate = sum(shares[:, k : k + 1] * value for k, value in enumerate(BINS.representatives[1:]))
    torch.testing.assert_close(prediction.rate, rate)
    torch.testing.assert_close(prediction.blocks, occupied * rate)
    torch.testing.assert_close(prediction.count, prediction.blocks.sum((1, 2, 3)))
    assert prediction.probabilities().shape[1] == len(BINS)


def test_it_is_two_convolutions_of_single_features() -> None:
    convolutions = [layer for layer in head_of().modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size) for layer in convolutions] == [(2, (1, 1)), (4, (1, 1))]
    assert set(head_of().state_dict()) == {
        f"{part}.to_logits.{kind}" for part in ("gate", "rate") for kind in ("weight", "bias")
    }


def test_it_starts_at_the_blocks_of_the_training_images() -> None:
    head = head_of()
    head.start_at(HISTOGRAM)
    prediction = head(torch.zeros(1, 16, 1, 1), factor=1)
    torch.testing.assert_close(prediction.gate_logits.softmax(1).flatten(), torch.tensor([0.9, 0.1]))
    # {3} has no block; its share is small, not 0.
    expected = torch.tensor([0.05, 0.03, 1e-5, 0.02])
    torch.testing.assert_close(prediction.bin_logits.softmax(1).flatten(), expected / expected.sum())
    mean = sum(count * blocks for count, blocks in HISTOGRAM.items()) / 100
    assert prediction.count.item() == pytest.approx(mean, rel=1e-4)


def test_its_arithmetic_is_float32_under_autocast() -> None:
    head = head_of()
    features = torch.randn(1, 16, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = head(features, factor=1)
    for value in (prediction.count, prediction.blocks, prediction.rate, prediction.gate_logits, prediction.bin_logits):
        assert value.dtype == torch.float32


def clip_config(kind: type[ClipConfig]) -> ClipConfig:
    sizes = (
        {"width": 16, "layers": [1, 1, 1, 1]} if kind is ClipResNetConfig else {"width": 64, "layers": [1], "heads": 2}
    )
    return kind(head=ZipHeadConfig(), **TEXT, **sizes)


@pytest.mark.parametrize("kind", [ClipResNetConfig, ClipViTConfig])
def test_with_clip_it_compares_two_projections_with_texts(kind: type[ClipConfig]) -> None:
    torch.manual_seed(0)
    counter = build_model(clip_config(kind), BINS.grid, BINS).eval()
    head = counter.head
    assert isinstance(head, ZipHead)
    for part, texts in ((head.gate, 2), (head.rate, len(BINS) - 1)):
        assert isinstance(part, CosineLogits)
        assert part.projection.bias is None
        assert part.text_features.shape == (texts, 24)
        assert part.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert head.gate.projection is not head.rate.projection
    assert head.gate.logit_scale is not head.rate.logit_scale
    head.rate.logit_scale.data.fill_(math.log(3))
    features = torch.randn(1, head.gate.projection.in_channels, 2, 3)
    prediction = head(features, factor=1)
    cosines = F.cosine_similarity(
        head.rate.projection(features)[:, None], head.rate.text_features[None, :, :, None, None], dim=2
    )
    torch.testing.assert_close(prediction.bin_logits, 3 * cosines, rtol=1e-4, atol=1e-5)
    # A checkpoint fills a counter that was built without its texts.
    again = build_model(clip_config(kind), BINS.grid, BINS, pretrained=False).eval()
    assert not again.head.gate.text_features.any()
    again.load_state_dict(counter.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    first, second = counter(images), again(images)
    assert isinstance(second, ZipPrediction)
    assert torch.equal(first.blocks, second.blocks)


def test_texts_of_its_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def encode(tower: Any, sentences: list[str]) -> torch.Tensor:
        encoded.append(list(sentences))
        return torch.zeros(len(sentences), 24)

    monkeypatch.setattr("headcount.models.clip.encode_texts", encode)
    build_model(clip_config(ClipResNetConfig), BINS.grid, BINS)
    assert encoded == [
        ["There is no person.", "There are one or more people."],
        [
            "There is one person.",
            "There are two people.",
            "There are three people.",
            "There are more than four people.",
        ],
    ]


def test_bins_that_it_cannot_use() -> None:
    with pytest.raises(ConfigError, match=r"model\.head=zip: classifies blocks into bins, and bins=none has none"):
        build_model(TinyConfig(head=ZipHeadConfig()), BlockGrid(8), None)
    smoothed = CountBins.from_edges([0.5, 1.0], grid=BlockGrid(8))
    with pytest.raises(ConfigError, match=r"model\.head=zip: counts whole heads"):
        build_model(TinyConfig(head=ZipHeadConfig()), BlockGrid(8), smoothed)


def test_a_single_bin_above_zero_fixes_the_rate() -> None:
    bins = CountBins(BlockGrid(8), ((0, 0), (1, math.inf)), (0.0, 1.3))
    head = build_head(ZipHeadConfig(), 4, bins.grid, bins)
    prediction = head(torch.randn(1, 4, 3, 3), factor=1)
    torch.testing.assert_close(prediction.rate, torch.full((1, 1, 3, 3), 1.3))
    torch.testing.assert_close(prediction.probabilities().sum(1), torch.ones(1, 3, 3))
