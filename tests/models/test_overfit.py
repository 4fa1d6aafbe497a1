"""Every family of networks learns four images by heart with either head; steps move what is trained."""

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
    EbcHeadConfig,
    HeadConfig,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    RegressionHeadConfig,
    Strategy,
    SyntheticConfig,
    TimmConfig,
    TinyConfig,
    ZipConfig,
    ZipHeadConfig,
)
from headcount.data.points import block_counts
from headcount.data.synthetic import draw_crowd
from headcount.losses.build import Loss, build_loss
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.types import Batch, BlockGrid
from values import batch_of

BLOCK = 8
SIZE = 64  # px
HEADS = (10, 18, 27, 40)

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
HEADS_OF_A_MODEL = pytest.mark.parametrize("head", [EbcHeadConfig(), RegressionHeadConfig()], ids=lambda h: h.name)


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
    counts = torch.stack([block_counts(s.points, height=SIZE, width=SIZE, block_size=BLOCK) for s in chosen])[:, None]
    return batch_of(
        torch.stack([s.image for s in chosen]),
        [s.points for s in chosen],
        counts,
        [s.name for s in chosen],
        bins=bins_of(histogram_of(counts)),
    )


def histogram_of(counts: Tensor) -> dict[int, int]:
    values, numbers = counts.long().unique(return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def bins_of(histogram: dict[int, int]) -> CountBins:
    return CountBins.from_histogram(histogram, grid=BlockGrid(BLOCK), strategy=Strategy.fine, m=4)


def build(family: str, head: HeadConfig, batch: Batch) -> tuple[Counter, Loss]:
    """A counter without pretrained weights, as the command builds it, and the loss of its head."""
    torch.manual_seed(0)
    histogram = histogram_of(batch.target("block_counts"))
    bins = bins_of(histogram)
    kind, changes = FAMILIES[family]
    if kind is not TinyConfig:
        changes = {**changes, "weights": "none"}
    own_bins = bins if head.needs_bins else None
    counter = build_model(kind(head=head, **changes), bins.grid, own_bins, histogram=histogram)
    losses = {"ebc": DaceConfig(), "regression": DmConfig(), "zip": ZipConfig()}
    loss = build_loss(losses[head.name], bins.grid, own_bins)
    return counter, loss


def errors(counter: Counter, batch: Batch) -> Tensor:
    """Of each image's count, as a share of the truth."""
    counter.eval()
    with torch.no_grad():
        counts = counter(batch.images).count
    counter.train()
    truth = batch.target("block_counts").sum(dim=(1, 2, 3))
    return (counts - truth).abs() / truth


def learn_by_heart(counter: Counter, loss: Loss, batch: Batch, *, lr: float, steps: int, copies: int) -> None:
    """Adam with warm-up and one cosine, until each count is within 10 % in evaluation, or for ``steps`` steps.

    The learning rate must fall: the loss of counts is an absolute error, around whose minimum steps
    of one length go back and forth.

    Args:
        copies: of the four images in a step. BatchNorm divides by the biased variance of a batch in
            training and by the unbiased one in evaluation, which over the layers of a deep network on
            4 x 4 features of four images adds up to a fifth of the counts.
    """
    optimizer = torch.optim.Adam([p for p in counter.parameters() if p.requires_grad], lr=lr)
    repeated = {
        name: target * copies if isinstance(target, list) else target.repeat(copies, *[1] * (target.ndim - 1))
        for name, target in batch.targets.items()
    }
    step_batch = Batch(batch.images.repeat(copies, 1, 1, 1), batch.names * copies, repeated)
    worst = math.inf
    counter.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, step / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss(counter(step_batch.images), step_batch).total.backward()
        optimizer.step()
        if step % 10 == 0:
            worst = float(errors(counter, batch).max())
            if worst <= 0.1:
                break
    assert worst <= 0.1, f"after {step} steps the worst count is {worst:.0%} off"


# Learning rate for the classifier and for the regression, most steps, copies of the images in a step.
# Chosen by trial, and not for speed of learning: that a network can learn is all that is asked.
SETTINGS: dict[str, tuple[float, float, int, int]] = {
    "tiny": (3e-3, 3e-3, 600, 1),
    "mobilenet_v2": (1e-3, 1e-4, 400, 2),
    "vgg16": (1e-4, 1e-4, 300, 1),
    "dmcount": (1e-4, 1e-4, 300, 1),
    "csrnet": (1e-4, 1e-4, 300, 1),
    "cannet": (1e-4, 1e-4, 300, 1),
    "resnet101": (1e-4, 1e-4, 120, 3),
    "densenet201": (3e-4, 1e-4, 120, 2),
    "timm_resnet18": (3e-4, 1e-4, 200, 2),
    "timm_convnext_atto": (3e-4, 5e-4, 300, 1),
    "clip_rn50": (1e-2, 5e-4, 800, 2),
    "clip_rn50_bare": (1e-2, 1e-4, 800, 3),
    "clip_vit_prompted": (3e-3, 3e-3, 800, 1),
    "clip_vit_prompted_bare": (3e-3, 3e-3, 800, 1),
    "clip_vit_tuned": (3e-3, 1e-3, 800, 1),
    "clip_vit_tuned_bare": (3e-3, 1e-4, 800, 1),
}


@pytest.mark.slow
@HEADS_OF_A_MODEL
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_learns_four_images_by_heart(family: str, head: HeadConfig, batch: Batch) -> None:
    counter, loss = build(family, head, batch)
    classifier_lr, regression_lr, steps, copies = SETTINGS[family]
    lr = classifier_lr if head.needs_bins else regression_lr
    learn_by_heart(counter, loss, batch, lr=lr, steps=steps, copies=copies)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["tiny", "timm_resnet18", "clip_rn50_bare", "clip_vit_tuned"])
def test_a_network_learns_four_images_by_heart_with_the_zip_head(family: str, batch: Batch) -> None:
    counter, loss = build(family, ZipHeadConfig(), batch)
    lr, _, steps, copies = SETTINGS[family]
    learn_by_heart(counter, loss, batch, lr=lr, steps=steps, copies=copies)


@pytest.mark.parametrize("head", [EbcHeadConfig(), RegressionHeadConfig(), ZipHeadConfig()], ids=lambda h: h.name)
@pytest.mark.parametrize("family", ["tiny", "clip_rn50", "clip_vit_prompted", "clip_vit_tuned"])
def test_steps_move_what_is_trained_and_nothing_else(family: str, head: HeadConfig, batch: Batch) -> None:
    counter, loss = build(family, head, batch)
    before = {k: v.detach().clone() for k, v in counter.named_parameters()}
    trainable = [p for p in counter.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3)
    for _ in range(3):  # residual blocks that begin at zero hide the layers in them from the first step
        optimizer.zero_grad()
        total = loss(counter.train()(batch.images), batch).total
        total.backward()
        optimizer.step()
    assert math.isfinite(total.item())
    for name, parameter in counter.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name
    frozen = [name for name, p in counter.named_parameters() if not p.requires_grad]
    assert bool(frozen) is (family == "clip_vit_prompted")
    assert all(name.startswith("backbone.tower.") for name in frozen)
