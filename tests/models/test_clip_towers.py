"""open_clip's towers of timm networks against open_clip's own forward passes, and the networks that are none."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from headcount.bins import CountBins
from headcount.config import ClipTowerConfig, ConfigError, Strategy, ZipHeadConfig
from headcount.models.build import build_model, follow_weights
from headcount.models.counter import Counter
from headcount.types import BlockGrid

BINS = CountBins.from_histogram({0: 90, 1: 5, 2: 3}, grid=BlockGrid(16), strategy=Strategy.fine, m=2)
TEXTS = ["There is no person.", "There is one person.", "There are more than two people."]
SMALL = "small-tower"


@pytest.fixture(scope="module", autouse=True)
def small_networks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small networks in open_clip's table: one like CLIP's ConvNeXts, one like MobileCLIP, and unusable ones."""
    folder = tmp_path_factory.mktemp("open_clip")
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision: dict[str, Any] = {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "image_size": 64}
    plain = {"embed_dim": 24, "vision_cfg": {**vision, "timm_pool": "", "timm_proj": "linear"}, "text_cfg": text}
    custom = {
        "embed_dim": 24,
        "vision_cfg": {**vision, "timm_pool": "avg", "timm_proj": None},
        "text_cfg": {**text, "no_causal_mask": True},
        "custom_text": True,
    }
    networks = {
        SMALL: plain,
        f"{SMALL}-custom": custom,
        f"{SMALL}-transformer": {**plain, "vision_cfg": {**vision, "timm_model_name": "test_vit"}},
        f"{SMALL}-other-text": {**plain, "text_cfg": {**text, "hf_tokenizer_name": "x"}},
    }
    for name, network in networks.items():
        (folder / f"{name}.json").write_text(json.dumps(network))
    open_clip.add_model_config(folder)


def counter_of(config: ClipTowerConfig, **options: Any) -> Counter:
    torch.manual_seed(0)
    return build_model(config, BINS.grid, BINS, **options).eval()


@pytest.mark.parametrize("name", [SMALL, f"{SMALL}-custom"])
def test_both_towers_equal_open_clip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model: Any = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(name)}))
    config = ClipTowerConfig(name=name, weights=str(tmp_path / "weights.bin"))
    counter = counter_of(config)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(counter.backbone(images), model.visual.trunk.forward_features(images))
        expected = model.encode_text(open_clip.tokenize(TEXTS))
    torch.testing.assert_close(counter.head.text_features, expected, rtol=1e-5, atol=1e-6)
    # A checkpoint fills a counter that was built without weights.
    again = counter_of(follow_weights(config), pretrained=False)
    again.load_state_dict(counter.state_dict())
    pictures = torch.randint(0, 256, (1, 3, 100, 90), dtype=torch.uint8)
    assert torch.equal(counter(pictures).blocks, again(pictures).blocks)


def test_features_of_complete_strides_on_the_grid_of_blocks() -> None:
    counter = counter_of(ClipTowerConfig(name=SMALL, weights="none", head=ZipHeadConfig()))
    assert counter.stride == 32
    assert counter.decoder is None
    images = torch.zeros(1, 3, 100, 130, dtype=torch.uint8)
    assert counter(images).blocks.shape == (1, 1, 6, 8)
    assert counter.count(images[0]).blocks.shape == (7, 9)  # type: ignore[union-attr]


def test_every_parameter_is_trained() -> None:
    counter = counter_of(ClipTowerConfig(name=SMALL, weights="none", head=ZipHeadConfig())).train()
    prediction = counter(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    (prediction.blocks.sum() + prediction.bin_logits.square().sum()).backward()
    assert [name for name, parameter in counter.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RN50x", "open_clip has no such model; there are convnext_base, .*MobileCLIP-S1"),
        ("ViT-B-16", "its image encoder is no timm network"),
        (f"{SMALL}-other-text", "its text encoder is not like CLIP's"),
        (f"{SMALL}-transformer", "the image encoder test_vit gives no feature maps of images of any size"),
    ],
)
def test_networks_that_cannot_be_used(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        counter_of(ClipTowerConfig(name=name, weights="none"))


def test_pretrained_is_the_first_tag() -> None:
    mobile, convnext = (follow_weights(ClipTowerConfig(name=n)) for n in ("MobileCLIP-S1", "convnext_base_w_320"))
    assert (mobile.weights, convnext.weights) == ("datacompdr", "laion_aesthetic_s13b_b82k")
    assert mobile.quick_gelu is convnext.quick_gelu is False
    with pytest.raises(ConfigError, match=r"model\.weights=pretrained: open_clip lists none of small-tower"):
        follow_weights(ClipTowerConfig(name=SMALL))
    with pytest.raises(ConfigError, match="neither a file nor a tag of open_clip for MobileCLIP-S1; tags: datacompdr"):
        follow_weights(ClipTowerConfig(name="MobileCLIP-S1", weights="openai"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileCLIP-S1", "convnext_base_w_320"])
def test_the_image_encoders_of_zip_at_full_size(name: str) -> None:
    """They are open_clip's without what follows the last feature map."""
    with torch.device("meta"):
        counter = build_model(ClipTowerConfig(name=name, weights="none"), BINS.grid, BINS, pretrained=False)
    library: Any = open_clip.create_model(name, device="meta")
    ours = {f"trunk.{key}": value.shape for key, value in counter.backbone.trunk.state_dict().items()}
    theirs = {key: value.shape for key, value in library.visual.state_dict().items()}
    assert ours == {key: shape for key, shape in theirs.items() if not key.startswith(("head.", "trunk.head."))}
    assert counter.backbone.channels == 1024
    assert counter.stride == 32
