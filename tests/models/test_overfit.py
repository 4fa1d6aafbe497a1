"""Every family of networks and every head learns four images by heart; steps move what is trained."""

import math
from functools import cache
from typing import Any, NamedTuple

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
    LossConfig,
    MobileNetV2Config,
    ModelConfig,
    Neck,
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
SMALL = 32  # px, for large networks without BatchNorm, which needs many features
HEADS = {SIZE: (10, 18, 27, 40), SMALL: (4, 7, 11, 16)}

TEXT: dict[str, Any] = {"embed_dim": 32, "text_width": 32, "text_heads": 2, "text_layers": 1}
RESNET: dict[str, Any] = {**TEXT, "width": 16, "layers": [1, 1, 1, 1]}
VIT: dict[str, Any] = {**TEXT, "width": 64, "layers": [2], "heads": 2, "input_size": SIZE}
SMALL_DECODER: dict[str, Any] = {"decoder_channels": [64]}
NO_DECODER: dict[str, Any] = {"decoder": Decoder.none}
FAMILIES: dict[str, tuple[type[ModelConfig], dict[str, Any]]] = {
    "tiny": (TinyConfig, {"width": 16}),
    "mobilenet_v2": (MobileNetV2Config, {}),
    **{name: (ImageNetConfig, {"name": name}) for name in ("vgg16", "dmcount", "csrnet", "cannet", "densenet201")},
    # ResNet101 would take longest, and has no other kinds of layers; test_backbones compares its features with timm's.
    "timm_resnet18": (TimmConfig, {"name": "resnet18"}),
    "timm_pyramid": (TimmConfig, {"name": "resnet10t", "neck": Neck.fpn, "neck_channels": 32, "max_stride": 8}),
    "timm_convnext_atto": (TimmConfig, {"name": "convnext_atto"}),
    "clip_rn50": (ClipResNetConfig, {**RESNET, **SMALL_DECODER}),
    "clip_rn50_bare": (ClipResNetConfig, {**RESNET, **NO_DECODER}),
    "clip_vit_prompted": (ClipViTConfig, {**VIT, **SMALL_DECODER, "frozen": True, "prompt_tokens": 4}),
    "clip_vit_prompted_bare": (ClipViTConfig, {**VIT, **NO_DECODER, "frozen": True, "prompt_tokens": 4}),
    "clip_vit_tuned": (ClipViTConfig, {**VIT, **SMALL_DECODER, "frozen": False, "prompt_tokens": 0}),
    "clip_vit_tuned_bare": (ClipViTConfig, {**VIT, **NO_DECODER, "frozen": False, "prompt_tokens": 0}),
}
KINDS: dict[str, tuple[HeadConfig, LossConfig]] = {
    "ebc": (EbcHeadConfig(), DaceConfig()),
    "regression": (RegressionHeadConfig(), DmConfig()),
    "zip": (ZipHeadConfig(), ZipConfig()),
}


@cache
def crowds(size: int) -> Batch:
    """Four generated crowds with as many people as ``HEADS`` says."""
    config = SyntheticConfig(width=size, height=size, max_people=2 * max(HEADS[size]))
    samples = {}
    for index in range(1000):
        sample = draw_crowd(index, config=config, split="train")
        samples.setdefault(len(sample.points), sample)
        if samples.keys() >= set(HEADS[size]):
            break
    chosen = [samples[n] for n in HEADS[size]]
    counts = torch.stack([block_counts(s.points, height=size, width=size, block_size=BLOCK) for s in chosen])[:, None]
    return batch_of(
        torch.stack([s.image for s in chosen]),
        [s.points for s in chosen],
        counts,
        [s.name for s in chosen],
        bins=bins_of(histogram_of(counts)),
    )


class Recipe(NamedTuple):
    """How a network learns by heart, with room on each side: that it can learn is all that is asked."""

    lr: float
    steps: int
    """Most steps."""
    copies: int = 1
    """Of the four images in a step. BatchNorm divides by the biased variance of a batch in training and by the unbiased
    one in evaluation, which over the layers of a deep network on few features adds up to a fifth of the counts."""
    size: int = SIZE


def histogram_of(counts: Tensor) -> dict[int, int]:
    values, numbers = counts.long().unique(return_counts=True)
    return dict(zip(values.tolist(), numbers.tolist(), strict=True))


def bins_of(histogram: dict[int, int]) -> CountBins:
    return CountBins.from_histogram(histogram, grid=BlockGrid(BLOCK), strategy=Strategy.fine, m=4)


def build(family: str, head: str, batch: Batch) -> tuple[Counter, Loss]:
    """A counter without pretrained weights, as the command builds it, and the loss of its head."""
    torch.manual_seed(0)
    histogram = histogram_of(batch.target("block_counts"))
    bins = bins_of(histogram)
    kind, changes = FAMILIES[family]
    if kind is not TinyConfig:
        changes = {**changes, "weights": "none"}
    config, loss = KINDS[head]
    own_bins = bins if config.needs_bins else None
    counter = build_model(kind(head=config, **changes), bins.grid, own_bins, histogram=histogram)
    return counter, build_loss(loss, bins.grid, own_bins)


def errors(counter: Counter, batch: Batch) -> Tensor:
    """Of each image's count, as a share of the truth."""
    counter.eval()
    with torch.no_grad():
        counts = counter(batch.images).count
    counter.train()
    truth = batch.target("block_counts").sum(dim=(1, 2, 3))
    return (counts - truth).abs() / truth


def learn_by_heart(counter: Counter, loss: Loss, batch: Batch, recipe: Recipe) -> None:
    """Adam with warm-up and one cosine, until each count is within 10 % in evaluation, or for the most steps.

    The learning rate must fall: the loss of counts is an absolute error, around whose minimum steps
    of one length go back and forth.
    """
    # Fused, and gradients stay allocated: memory that is new in each step costs large networks most of their time.
    optimizer = torch.optim.Adam([p for p in counter.parameters() if p.requires_grad], lr=recipe.lr, fused=True)
    repeated = {
        name: target * recipe.copies
        if isinstance(target, list)
        else target.repeat(recipe.copies, *[1] * (target.ndim - 1))
        for name, target in batch.targets.items()
    }
    step_batch = Batch(batch.images.repeat(recipe.copies, 1, 1, 1), batch.names * recipe.copies, repeated)
    worst = math.inf
    counter.train()
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1, step / 20) * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        optimizer.zero_grad(set_to_none=False)
        loss(counter(step_batch.images), step_batch).total.backward()
        optimizer.step()
        if step % 10 == 0:
            worst = float(errors(counter, batch).max())
            if worst <= 0.1:
                break
    assert worst <= 0.1, f"after {step} steps the worst count is {worst:.0%} off"


# Each backbone and each decoder learns with one head at least: its layers pass on what the loss asks for. Each head,
# which is the same code everywhere, learns on networks of several kinds, the small ones. A regressor learns nothing
# more once its ReLU has set all counts to zero, and where steps are long, the rounding of a processor decides whether
# it does: its rates are a third, at most, of one that still worked.
RECIPES: dict[tuple[str, str], Recipe] = {
    ("tiny", "ebc"): Recipe(3e-3, 600),
    ("tiny", "regression"): Recipe(1e-3, 600),
    ("tiny", "zip"): Recipe(3e-3, 600),
    ("mobilenet_v2", "ebc"): Recipe(1e-3, 400, copies=2),
    ("vgg16", "ebc"): Recipe(1e-4, 300, size=SMALL),
    ("dmcount", "ebc"): Recipe(1e-4, 300, size=SMALL),
    ("csrnet", "ebc"): Recipe(1e-4, 300, size=SMALL),
    ("cannet", "ebc"): Recipe(1e-4, 300, size=SMALL),
    ("densenet201", "ebc"): Recipe(3e-4, 120, copies=2),
    ("timm_resnet18", "zip"): Recipe(3e-4, 200, copies=2),
    ("timm_pyramid", "ebc"): Recipe(2e-3, 300, copies=2),
    ("timm_convnext_atto", "ebc"): Recipe(3e-4, 300),
    ("timm_convnext_atto", "regression"): Recipe(1e-4, 300),
    ("clip_rn50", "ebc"): Recipe(1e-2, 800, copies=2),
    ("clip_rn50", "regression"): Recipe(2e-4, 800, copies=2),
    ("clip_rn50_bare", "ebc"): Recipe(1e-2, 800, copies=3),
    ("clip_rn50_bare", "zip"): Recipe(1e-2, 800, copies=3),
    ("clip_vit_prompted", "ebc"): Recipe(3e-3, 800),
    ("clip_vit_prompted", "regression"): Recipe(3e-4, 800),
    ("clip_vit_prompted_bare", "ebc"): Recipe(3e-3, 800),
    ("clip_vit_tuned", "ebc"): Recipe(3e-3, 800),
    ("clip_vit_tuned", "regression"): Recipe(1e-4, 600),
    ("clip_vit_tuned", "zip"): Recipe(3e-3, 800),
    ("clip_vit_tuned_bare", "ebc"): Recipe(3e-3, 800),
    ("clip_vit_tuned_bare", "regression"): Recipe(1e-4, 800),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "head"), RECIPES)
def test_a_network_learns_four_images_by_heart(family: str, head: str) -> None:
    recipe = RECIPES[family, head]
    batch = crowds(recipe.size)
    counter, loss = build(family, head, batch)
    learn_by_heart(counter, loss, batch, recipe)


def test_every_family_and_every_head_learns() -> None:
    assert {family for family, _ in RECIPES} == set(FAMILIES)
    assert {head for _, head in RECIPES} == set(KINDS)


@pytest.mark.parametrize("head", KINDS)
@pytest.mark.parametrize("family", ["tiny", "clip_rn50", "clip_vit_prompted", "clip_vit_tuned"])
def test_steps_move_what_is_trained_and_nothing_else(family: str, head: str) -> None:
    batch = crowds(SIZE)
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
