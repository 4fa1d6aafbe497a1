"""CLIP as a counter by ranking: features against open_clip's own, filters, crowd sizes, what is trained."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcount.config import (
    ClipEncoder,
    ClipRankingConfig,
    ConfigError,
    NoPatchLeft,
    RankingHeadConfig,
    SlidingWindowConfig,
    TinyConfig,
    Tta,
    WholeImageConfig,
)
from headcount.crops import cut_resized, patch_boxes
from headcount.models.build import build_model
from headcount.models.ranking import RankingCounter, RankingHead
from headcount.types import BlockGrid

SMALL: dict[str, Any] = {"embed_dim": 24, "text_width": 32, "text_heads": 2, "text_layers": 1, "weights": "none"}
RESNET = {**SMALL, "encoder": ClipEncoder.rn50, "width": 16, "layers": [1, 1, 1, 1], "input_size": 64}
VIT = {**SMALL, "encoder": ClipEncoder.vit_b16, "width": 64, "layers": [2], "heads": 2, "input_size": 64}
NO_FILTERS: dict[str, Any] = {"scenes": [], "parts": []}
ENCODERS = pytest.mark.parametrize("sizes", [RESNET, VIT], ids=["resnet", "vit"])


def counter_of(sizes: dict[str, Any], head: RankingHeadConfig | None = None, **changes: Any) -> RankingCounter:
    """With random directions as features of the sentences, because a text encoder takes a second."""
    torch.manual_seed(0)
    config = ClipRankingConfig(head=head or RankingHeadConfig(), **{**sizes, **changes})
    counter = build_model(config, BlockGrid(8), None, pretrained=False)
    assert isinstance(counter, RankingCounter)
    for name, features in counter.head.named_buffers():
        if name.endswith("_features"):
            features.copy_(F.normalize(torch.randn_like(features), dim=-1))
    return counter.eval()


def image_of(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def library(sizes: dict[str, Any]) -> Any:
    """The same small network as open_clip builds it."""
    torch.manual_seed(1)
    vision: dict[str, Any] = {"image_size": 64, "width": 16, "layers": [1, 1, 1, 1], "head_width": 64}
    if sizes is VIT:
        vision = {"image_size": 64, "width": 64, "layers": 2, "head_width": 32, "patch_size": 16}
    model = open_clip.CLIP(
        embed_dim=24, vision_cfg=vision, text_cfg={"width": 32, "heads": 2, "layers": 1}, quick_gelu=True
    )
    for parameter in model.parameters():  # open_clip starts some at zero, and what is zero hides mistakes
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@ENCODERS
def test_similarities_are_those_of_open_clip(sizes: dict[str, Any], tmp_path: Path) -> None:
    model = library(sizes)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    config = ClipRankingConfig(
        head=RankingHeadConfig(), **{**sizes, "weights": str(tmp_path / "weights.bin"), "quick_gelu": True}
    )
    counter = build_model(config, BlockGrid(8), None).eval()
    images = torch.stack([image_of(64, 64, seed) for seed in range(3)])
    sentences = [f"There are {n} persons in the crowd" for n in (20, 55, 90, 125, 160, 195)]
    with torch.no_grad():
        features = F.normalize(model.encode_image(counter.normalize(images)), dim=1)
        texts = F.normalize(model.encode_text(open_clip.tokenize(sentences)), dim=1)
        prediction = counter(images)
    expected = 100 * features @ texts.T
    torch.testing.assert_close(prediction.similarities[:, 0], expected, rtol=1e-4, atol=1e-3)
    numbers = torch.tensor([20, 55, 90, 125, 160, 195])
    assert torch.equal(prediction.count.long(), numbers[expected.argmax(1)])
    assert prediction.blocks is None


class WrittenTexts:
    """Encodes a sentence about a number or a word as the direction that belongs to it."""

    prompts: Any = None

    def __init__(self, *known: str) -> None:
        self.known = known

    def encode(self, sentences: list[str]) -> Tensor:
        found = [next(k for k, word in enumerate(self.known) if f" {word}" in sentence) for sentence in sentences]
        return torch.eye(8)[torch.tensor(found)]


def head_of(config: RankingHeadConfig, *known: str) -> RankingHead:
    return RankingHead(config, WrittenTexts(*known))


def features_of(*rows: list[float]) -> Tensor:
    return F.pad(torch.tensor(rows), (0, 8 - len(rows[0])))[:, :, None, None]


def test_filters_by_hand() -> None:
    config = RankingHeadConfig(numbers=[1, 2], scenes=["crowd", "tree"], parts=["heads", "legs", "road"], parts_kept=2)
    head = head_of(config, "1", "2", "crowd", "tree", "heads", "legs", "road")
    crowd, tree = [0.0, 0, 2, 1], [0.0, 0, 1, 2]
    scene, parts = head.keeps(
        features_of(
            [*crowd, 3.0, 2, 1],  # heads first
            [*crowd, 2.0, 3, 1],  # heads second
            [*crowd, 1.0, 2, 3],  # heads third, one too late
            [*tree, 3.0, 2, 1],
        )
    )
    assert scene.tolist() == [True, True, True, False]
    assert parts.tolist() == [True, True, False, True]


def test_the_most_similar_number_counts() -> None:
    head = head_of(RankingHeadConfig(numbers=[10, 40, 70], **NO_FILTERS), "10", "40", "70")
    prediction = head(features_of([1.0, 0, 0], [0.1, 0.2, 0.9], [3.0, 4.0, 0.0]))
    assert prediction.count.tolist() == [10, 70, 40]
    torch.testing.assert_close(prediction.similarities[2, 0], torch.tensor([60.0, 80.0, 0.0]))


def test_similarities_are_float32_in_mixed_precision() -> None:
    head = head_of(RankingHeadConfig(numbers=[10, 40, 70], **NO_FILTERS), "10", "40", "70")
    features = torch.randn(4, 8, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = head(features).similarities
    assert mixed.dtype is torch.float32
    assert torch.equal(mixed, head(features).similarities)


def test_crowd_sizes_choose_the_numbers() -> None:
    config = RankingHeadConfig(numbers=[10, 20], crowd_sizes=[40, 200], **NO_FILTERS)
    head = head_of(config, "20 ", "40 ", "100 ", "200 ")
    assert head.numbers.tolist() == [[20, 40], [100, 200]]
    tuned = features_of([1.0, 0.5, 1, 2], [1.0, 0.5, 1, 2])
    untuned = features_of([0.0, 1, 0, 0], [0.0, 0, 0, 1])  # similar to 40, and to 200
    prediction = head(tuned, untuned=untuned)
    assert prediction.sets.tolist() == [0, 1]
    assert prediction.count.tolist() == [20, 200]


def with_answers(counter: RankingCounter, keep: list[bool], counts: list[int]) -> RankingCounter:
    """The counter, whose filters and numbers answer this for the patches of an image."""
    head = counter.head
    head.keeps = lambda untuned: (torch.tensor(keep), torch.ones(len(keep), dtype=torch.bool))  # type: ignore[method-assign]
    forward = head.forward

    def answer(*args: Any, **options: Any) -> Any:
        prediction = forward(*args, **options)
        prediction.count = torch.tensor(counts, dtype=torch.float32)
        return prediction

    head.forward = answer  # type: ignore[method-assign]
    return counter


def test_the_patches_that_are_kept_are_summed() -> None:
    config = RankingHeadConfig(patches=2)
    counter = with_answers(counter_of(RESNET, config), [True, False, True, False], [20, 55, 90, 195])
    counted = counter.count(image_of(50, 70))
    assert counted.count == 110
    assert counted.blocks is None
    assert counted.measured == {"patches": 4, "dropped_by_scene": 2, "dropped_by_parts": 0}


@pytest.mark.parametrize(("choice", "expected"), [(NoPatchLeft.zero, 0), (NoPatchLeft.all, 75)])
def test_where_no_patch_is_left(choice: NoPatchLeft, expected: float) -> None:
    config = RankingHeadConfig(patches=2, no_patch_left=choice)
    counter = with_answers(counter_of(RESNET, config), [False] * 4, [20, 20, 20, 15])
    assert counter.count(image_of(50, 70)).count == expected


@pytest.mark.parametrize("size", [(50, 70), (1, 1), (2, 300)])
def test_counting_is_the_network_on_each_patch(size: tuple[int, int]) -> None:
    counter = counter_of(VIT, RankingHeadConfig(patches=5, **NO_FILTERS))
    image = image_of(*size)
    boxes = patch_boxes(size[1], size[0], patches=5)
    with torch.no_grad():
        expected = sum(float(counter(cut_resized(image, [box], size=64)).count) for box in boxes)
    assert counter.count(image).count == expected


def test_mirror_images_and_batches() -> None:
    counter = counter_of(RESNET)
    images = [image_of(60, 90, seed) for seed in range(2)]
    alone = [counter.count(image) for image in images]
    assert [one.count for one in counter.count_batch(images)] == [one.count for one in alone]
    flipped = counter.count(images[0].flip(2))
    averaged = counter.count(images[0], WholeImageConfig(tta=Tta.flip))
    assert averaged.count == (alone[0].count + flipped.count) / 2
    assert averaged.measured["patches"] == 9
    with pytest.raises(ConfigError, match="choose eval=whole_image"):
        counter.count(images[0], SlidingWindowConfig(window=64, stride=64))


def train_step(counter: RankingCounter) -> None:
    counter.train()
    trained = [p for p in counter.parameters() if p.requires_grad]
    prediction = counter(torch.stack([image_of(64, 64, seed) for seed in range(4)]))
    prediction.similarities.square().mean().backward()
    torch.optim.SGD(trained, lr=1e-3).step()


@ENCODERS
def test_the_untuned_encoder_and_the_texts_do_not_change(sizes: dict[str, Any]) -> None:
    counter = counter_of(sizes, RankingHeadConfig(crowd_sizes=[50, 400]))
    before = {name: value.clone() for name, value in counter.state_dict().items()}
    assert counter.untuned is not None
    train_step(counter)
    changed = {name for name, value in counter.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("backbone.") for name in changed)
    assert not counter.untuned.training


def test_an_adapter_is_trained_instead_of_the_encoder() -> None:
    counter = counter_of(RESNET, adapter=8)
    assert counter.untuned is None  # the encoder itself
    before = {name: value.clone() for name, value in counter.state_dict().items()}
    train_step(counter)
    changed = {name for name, value in counter.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder.layers.0.weight", "decoder.layers.2.weight"}


def test_the_adapter_mixes_by_its_ratio() -> None:
    counter = counter_of(VIT, adapter=8, adapter_ratio=0.25)
    features = torch.randn(2, 24, 1, 1)
    assert counter.decoder is not None
    with torch.no_grad():
        mixed = counter.decoder(features)
        torch.testing.assert_close(mixed, 0.25 * counter.decoder.layers(features) + 0.75 * features)  # type: ignore[operator]


@ENCODERS
def test_a_checkpoint_rebuilds_it_without_weights(sizes: dict[str, Any]) -> None:
    counter = counter_of(sizes)
    config = ClipRankingConfig(head=RankingHeadConfig(), **sizes)
    rebuilt = build_model(config, BlockGrid(8), None, pretrained=False)
    rebuilt.load_state_dict(counter.state_dict())
    image = image_of(50, 70)
    assert rebuilt.eval().count(image).count == counter.count(image).count


def test_nothing_untuned_is_kept_that_nothing_asks() -> None:
    assert counter_of(RESNET, RankingHeadConfig(**NO_FILTERS)).untuned is None


def test_a_head_needs_texts() -> None:
    with pytest.raises(ConfigError, match="no text encoder; choose model=clip_ranking"):
        build_model(TinyConfig(head=RankingHeadConfig()), BlockGrid(8), None)
    long = RankingHeadConfig(prompt="{number} " + "very " * 100 + "many")
    with pytest.raises(ConfigError, match="tokens that CLIP reads"):
        build_model(ClipRankingConfig(head=long, **RESNET), BlockGrid(8), None)
