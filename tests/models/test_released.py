"""Importing checkpoints of the released code: names, layouts, what is refused, published representative counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import headcount
from headcount.bins import CountBins, integer_bins
from headcount.config import ClipResNetConfig, ClipViTConfig, ConfigError, Decoder, PromptDepth, Strategy
from headcount.errors import CheckpointError
from headcount.models import clip
from headcount.models.build import build_model
from headcount.models.released import convert_released, published_counts
from headcount.types import BlockGrid

INF = float("inf")
EDGES = ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, INF))
BINS = CountBins(BlockGrid(8), EDGES, (0.0, 1.0, 2.0, 3.0, 4.21937))
TEXT: dict[str, Any] = {"text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 24}
RESNET: dict[str, Any] = {**TEXT, "width": 16, "layers": [1, 1, 1, 1], "decoder_channels": [40, 32]}
VIT: dict[str, Any] = {**TEXT, "width": 64, "layers": [2], "heads": 2, "decoder_channels": [48], "prompt_tokens": 3}


def released_clip(name: str, options: dict[str, Any]) -> tuple[dict[str, Tensor], nn.Module]:
    """A state dict under the released names, and the counter it describes."""
    torch.manual_seed(0)
    config = (ClipViTConfig if "vit" in name else ClipResNetConfig)(name=name, weights="none", **options)
    counter = build_model(config, BINS.grid, BINS, pretrained=False).eval()
    tower = clip.text_tower(clip.follow_weights(config))
    texts = ["There is no person.", "There is one person.", "There are two people.", "There are three people."]
    counter.head.text_features.copy_(clip.encode_texts(tower, [*texts, "There are more than four people."]))
    state = {f"text_encoder.{k}": v for k, v in tower.state_dict().items()}
    for key, value in counter.state_dict().items():
        if key == "backbone.prompts":
            state |= {f"vpt_{k}": v for k, v in enumerate(value)}
        elif key not in ("mean", "std", "head.text_features"):
            key = key.replace("backbone.tower", "image_encoder").replace("head.", "")
            state[f"image_{key}" if key.startswith("decoder") else key] = value
    return state, counter


def same(one: nn.Module, other: nn.Module) -> None:
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            one.predict_normalized(images).logits, other.predict_normalized(images).logits, rtol=1e-5, atol=1e-5
        )


CLIPS = [
    ("clip_rn50", RESNET),
    ("clip_rn101", {**RESNET, "decoder_channels": None}),
    ("clip_rn50", {**{k: v for k, v in RESNET.items() if k != "decoder_channels"}, "decoder": Decoder.none}),
    ("clip_vit_b16", VIT),
    ("clip_vit_b16", {**VIT, "prompt_depth": PromptDepth.shallow}),
    ("clip_vit_l14", VIT),
    ("clip_vit_b16", {**VIT, "prompt_tokens": 0, "frozen": False, "input_size": 256}),
]


@pytest.mark.parametrize(("name", "options"), CLIPS)
def test_clip_models(name: str, options: dict[str, Any]) -> None:
    state, counter = released_clip(name, options)
    same(headcount.convert_released(state, name, bins=BINS, **options), counter)


def test_both_layouts_and_several_processes() -> None:
    state, counter = released_clip("clip_rn50", RESNET)
    checkpoint = {"epoch": 7, "model_state_dict": {f"module.{k}": v for k, v in state.items()}, "best_scores": {}}
    same(convert_released(checkpoint, "clip_rn50", bins=BINS, **RESNET), counter)


def test_the_released_names_of_networks() -> None:
    state, counter = released_clip("clip_rn50", RESNET)
    same(convert_released(state, "clip_resnet50", bins=BINS, **RESNET), counter)


def test_pixels_are_normalized_as_the_released_code_does() -> None:
    state, _ = released_clip("clip_rn50", RESNET)
    assert convert_released(state, "clip_rn50", bins=BINS, **RESNET).mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra.weight": torch.zeros(1)}, r"extra\.weight is unknown"),
        ({"projection.bias": None}, r"head\.projection\.bias is missing"),
        ({"projection.bias": torch.zeros(3)}, r"head\.projection\.bias is \(3,\), not \(24,\)"),
        ({"text_encoder.ln_final.bias": None}, r"text_encoder\.ln_final\.bias and 0 more do not fit clip_rn50"),
        ({"vpt_0": torch.zeros(3, 64)}, r"vpt_0 is unknown"),
        ({"image_decoder.5.conv1.weight": torch.zeros(1)}, r"image_decoder\.5\.conv1\.weight is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    state: dict[str, Any] = released_clip("clip_rn50", RESNET)[0]
    for key, value in change.items():
        state.pop(key, None)
        if value is not None:
            state[key] = value
    with pytest.raises(ConfigError, match=message):
        convert_released(state, "clip_rn50", bins=BINS, **RESNET)


def test_names_and_settings_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"model=resnet9: no such model; allowed: tiny"):
        convert_released({}, "resnet9", bins=BINS)
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'depth'; allowed settings: "):
        convert_released({}, "clip_rn50", bins=BINS, depth=3)


def test_files_of_other_kinds_are_refused_in_words() -> None:
    for state in ({1: torch.zeros(1)}, {**released_clip("clip_rn50", RESNET)[0], "projection.bias": "text"}):
        with pytest.raises(CheckpointError, match="not a checkpoint of the released code"):
            convert_released(state, "clip_rn50", bins=BINS, **RESNET)
    with pytest.raises(ConfigError, match="block_size is missing"):
        convert_released({}, "csrnet")
    state, _ = released_clip("clip_vit_b16", VIT)
    with pytest.raises(ConfigError, match="vpt_x is unknown"):
        convert_released({**state, "vpt_x": torch.zeros(3, 64)}, "clip_vit_b16", bins=BINS, **VIT)
    with pytest.raises(ConfigError, match=r"vpt_1 is \(2, 64\), not \(3, 64\) as vpt_0"):
        convert_released({**state, "vpt_1": torch.zeros(2, 64)}, "clip_vit_b16", bins=BINS, **VIT)


def released_head(channels: int) -> dict[str, Tensor]:
    """The released classifier: direct up to 512 channels, else through 512 hidden ones."""
    if channels <= 512:
        return {"classifier.weight": torch.randn(5, channels, 1, 1) / 20, "classifier.bias": torch.randn(5)}
    hidden = {"classifier.0.weight": torch.randn(512, channels, 1, 1) / 40, "classifier.0.bias": torch.randn(512)}
    return hidden | {"classifier.2.weight": torch.randn(5, 512, 1, 1) / 20, "classifier.2.bias": torch.randn(5)}


def lose_stride(name: str, encoder: Any) -> None:
    """What the released code does to timm's networks at blocks of 8 and 16 px."""
    if name == "resnet101":
        encoder.layer4[0].conv2.stride = encoder.layer4[0].downsample[0].stride = (1, 1)
    elif name == "mobilenet_v2":
        encoder.blocks[5][0].conv_dw.stride = (1, 1)
    else:
        encoder.features_transition3.pool = nn.Identity()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("mobilenet_v2", "mobilenetv2_100"),
        pytest.param("resnet101", "resnet101", marks=pytest.mark.slow),
        pytest.param("densenet201", "densenet201", marks=pytest.mark.slow),
    ],
)
def test_encoders_of_timm(name: str, theirs: str) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model(theirs, pretrained=False, features_only=True, out_indices=[-1]).eval()
    channels = encoder.feature_info.channels()[-1]
    head = released_head(channels)
    state = {f"backbone.encoder.{k}": v for k, v in encoder.state_dict().items()} | head
    counter = convert_released(state, name, bins=BINS)
    lose_stride(name, encoder)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = encoder(images)[-1]
        torch.testing.assert_close(counter.backbone(images), maps, rtol=1e-4, atol=1e-4 * float(maps.abs().max()))
        maps = torch.nn.functional.interpolate(maps, scale_factor=2, mode="bilinear")
        for key in sorted({k.rsplit(".", 1)[0] for k in head}):
            maps = torch.nn.functional.conv2d(maps, head[f"{key}.weight"], head[f"{key}.bias"])
            maps = maps.relu() if key == "classifier.0" else maps
        torch.testing.assert_close(
            counter.predict_normalized(images).logits, maps, rtol=1e-4, atol=1e-4 * float(maps.abs().max())
        )


def test_any_timm_encoder() -> None:
    encoder = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=[-1])
    state = {f"backbone.encoder.{k}": v for k, v in encoder.state_dict().items()} | released_head(512)
    from headcount.config import TimmConfig

    counter = convert_released(state, TimmConfig(name="resnet18", weights="none"), bins=BINS)
    assert torch.equal(counter.backbone.features.conv1.weight, encoder.conv1.weight)


@pytest.mark.parametrize(
    ("name", "decoder"), [("dmcount", "reg_layer"), ("csrnet", "decoder"), ("cannet", "decoder"), ("vgg16", None)]
)
def test_networks_on_vgg(name: str, decoder: str | None) -> None:
    from headcount.config import ImageNetConfig

    torch.manual_seed(0)
    counter = build_model(ImageNetConfig(name=name, weights="none"), BINS.grid, BINS).eval()
    state = {}
    for key, value in counter.state_dict().items():
        if key not in ("mean", "std"):
            key = key.replace("head.to_logits", "classifier")
            state[key.replace("decoder", f"backbone.{decoder}", 1) if key.startswith("decoder") else key] = value
    same(convert_released(state, name, bins=BINS), counter)


def test_published_representative_counts() -> None:
    assert published_counts("sha", block_size=8, m=4, strategy="fine") == [0, 1, 2, 3, 4.29992]
    assert published_counts("qnrf", block_size=16, m=8, strategy="coarse") == [0, 1.14978, 3.27641, 5.30609, 8.11466]
    dynamic = published_counts("qnrf", block_size=32, m=19, strategy="dynamic")
    assert dynamic == [*range(10), 10.42903, 12.4332, 14.43341, 16.43521, 21.93548]
    assert published_counts("sha", block_size=16, m=8, strategy="fine") is None


def test_published_counts_are_the_golden_ones(golden_dir: Path) -> None:
    rows = json.loads((golden_dir / "bins" / "anchor_check.json").read_text())
    assert len(rows) == 35
    for row in rows:
        block_size = int(row["config"].removeprefix("reduction_").removesuffix(".json"))
        m, strategy = int(row["truncation"]), row["granularity"]
        counts = published_counts(row["dataset"], block_size=block_size, m=m, strategy=strategy)
        assert counts is not None
        edges = integer_bins(Strategy[strategy], m)
        assert len(counts) == len(edges)
        assert counts[edges.index(tuple(map(float, row["bin"])))] == row["config_average"]
