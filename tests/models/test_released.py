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
from headcount.config import (
    ClipResNetConfig,
    ClipViTConfig,
    ConfigError,
    Decoder,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    PromptDepth,
    RegressionHeadConfig,
    Strategy,
    TimmConfig,
)
from headcount.errors import CheckpointError
from headcount.models import clip
from headcount.models.build import build_model
from headcount.models.released import convert_released, published_counts, released_config
from headcount.types import BlockGrid

INF = float("inf")
EDGES = ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0), (4.0, INF))
BINS = CountBins(BlockGrid(8), EDGES, (0.0, 1.0, 2.0, 3.0, 4.21937))
TEXT: dict[str, Any] = {"text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 24}
RESNET: dict[str, Any] = {**TEXT, "width": 16, "layers": [1, 1, 1, 1], "decoder_channels": [40, 32]}
VIT: dict[str, Any] = {**TEXT, "width": 64, "layers": [2], "heads": 2, "decoder_channels": [48], "prompt_tokens": 3}
MODEL_OF: dict[str, ModelConfig] = {
    "mobilenet_v2": MobileNetV2Config(head=RegressionHeadConfig()),
    "resnet101": ImageNetConfig(name="resnet101", head=RegressionHeadConfig()),
}


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
@pytest.mark.slow
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
        ({"projection.bias": None}, r": projection\.bias is missing"),
        ({"projection.bias": torch.zeros(3)}, r": projection\.bias is \(3,\), not \(24,\)"),
        ({"projection.bias": torch.zeros(24, dtype=torch.int64)}, r": projection\.bias is torch\.int64, not torch"),
        ({"text_encoder.ln_final.bias": None}, r"text_encoder\.ln_final\.bias is missing"),
        ({"head.projection.bias": torch.zeros(24)}, r": head\.projection\.bias is unknown"),
        ({"mean": torch.zeros(1, 3, 1, 1)}, r": mean is unknown"),
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
    with pytest.raises(ConfigError, match=r"vpt_1 is \(2, 64\), not \(3, 64\)"):
        convert_released({**state, "vpt_1": torch.zeros(2, 64)}, "clip_vit_b16", bins=BINS, **VIT)


def released_head(channels: int) -> dict[str, Tensor]:
    """The released classifier: direct up to 512 channels, else through 512 hidden ones."""
    if channels <= 512:
        return {"classifier.weight": torch.randn(5, channels, 1, 1) / 20, "classifier.bias": torch.randn(5)}
    hidden = {"classifier.0.weight": torch.randn(512, channels, 1, 1) / 40, "classifier.0.bias": torch.randn(512)}
    return hidden | {"classifier.2.weight": torch.randn(5, 512, 1, 1) / 20, "classifier.2.bias": torch.randn(5)}


def released_strides(name: str, encoder: Any, block_size: int) -> int:
    """What the released code does to the strides of timm's networks, and the stride that results."""
    if block_size > 16:
        return 32
    if name in ("resnet18", "resnet50", "resnet101"):
        block = encoder.layer4[0]
        (block.conv1 if name == "resnet18" else block.conv2).stride = block.downsample[0].stride = (1, 1)
    elif name == "mobilenetv2_100":
        encoder.blocks[5][0].conv_dw.stride = (1, 1)
    elif name.startswith("densenet"):
        encoder.features_transition3.pool = nn.Identity()
    else:
        return 32
    return 16


def fill_norms(network: nn.Module) -> None:
    """Random BatchNorm: timm starts some at zero, which hides the layers before them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)


def timm_config(name: str) -> TimmConfig:
    return TimmConfig(name=name, weights="none")


@pytest.mark.parametrize(
    ("model", "theirs", "block_size"),
    [
        ("mobilenet_v2", "mobilenetv2_100", 8),
        pytest.param("mobilenet_v2", "mobilenetv2_100", 32, marks=pytest.mark.slow),
        ("mobilenetv2_100", "mobilenetv2_100", 16),
        pytest.param(timm_config("mobilenetv2_100"), "mobilenetv2_100", 8, marks=pytest.mark.slow),
        (timm_config("resnet18"), "resnet18", 8),
        (timm_config("resnet18"), "resnet18", 32),
        pytest.param(timm_config("efficientnet_b0"), "efficientnet_b0", 8, marks=pytest.mark.slow),
        pytest.param(timm_config("resnet50"), "resnet50", 8, marks=pytest.mark.slow),
        pytest.param(timm_config("densenet121"), "densenet121", 16, marks=pytest.mark.slow),
        pytest.param("resnet101", "resnet101", 8, marks=pytest.mark.slow),
        pytest.param("resnet101", "resnet101", 32, marks=pytest.mark.slow),
        pytest.param("densenet201", "densenet201", 8, marks=pytest.mark.slow),
        pytest.param("densenet201", "densenet201", 32, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_encoders_of_timm_compute_what_the_released_code_computes(
    model: str | ModelConfig, theirs: str, block_size: int
) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model(theirs, pretrained=False, features_only=True, out_indices=[-1]).eval()
    fill_norms(encoder)
    head = released_head(encoder.feature_info.channels()[-1])
    state = {f"backbone.encoder.{k}": v for k, v in encoder.state_dict().items()} | head
    bins = CountBins(BlockGrid(block_size), EDGES, BINS.representatives)
    counter = convert_released(dict(sorted(state.items())), model, bins=bins)  # in no particular order
    stride = released_strides(theirs, encoder, block_size)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = encoder(images)[-1]
        assert maps.shape[-2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(counter.backbone(images), maps, rtol=1e-4, atol=1e-4 * float(maps.abs().max()))
        if stride != block_size:
            maps = torch.nn.functional.interpolate(maps, scale_factor=stride / block_size, mode="bilinear")
        for key in sorted({k.rsplit(".", 1)[0] for k in head}):
            maps = torch.nn.functional.conv2d(maps, head[f"{key}.weight"], head[f"{key}.bias"])
            maps = maps.relu() if key == "classifier.0" else maps
        torch.testing.assert_close(
            counter.predict_normalized(images).logits, maps, rtol=1e-4, atol=1e-4 * float(maps.abs().max())
        )


@pytest.mark.slow
def test_a_config_of_a_released_network_rebuilds_it(tmp_path: Path) -> None:
    """The strides are part of the config, which a checkpoint records."""
    for name, block_size, stride in (("mobilenet_v2", 32, 32), ("resnet101", 32, 32), ("mobilenet_v2", 16, 16)):
        config = released_config(MODEL_OF[name], block_size=block_size)
        assert build_model(config, BlockGrid(block_size), None, pretrained=False).stride == stride
        assert released_config(config, block_size=block_size) == config


def test_a_stride_that_cannot_be_removed_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.dilate=False: the stride of the last stage of efficientnet_b0 cannot"
    ):
        build_model(TimmConfig(name="efficientnet_b0", weights="none", dilate=False), BINS.grid, BINS)
    # Its shortcut pools, so that the released code fails on it.
    with pytest.raises(ConfigError, match=r"model\.dilate=False: the stride of the last stage of resnet26d cannot"):
        convert_released({}, timm_config("resnet26d"), bins=BINS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.full((24,), torch.nan), "projection.bias holds NaN or infinity"),
        (torch.full((24,), 1e300, dtype=torch.float64), "projection.bias holds NaN or infinity"),
        (torch.zeros(24, dtype=torch.complex64), "projection.bias holds complex numbers"),
        (torch.zeros(24).to_sparse(), "projection.bias is not a dense tensor"),
    ],
)
def test_tensors_that_cannot_be_weights_are_refused(value: Tensor, message: str) -> None:
    state = released_clip("clip_rn50", RESNET)[0] | {"projection.bias": value}
    with pytest.raises(CheckpointError, match=message):
        convert_released(state, "clip_rn50", bins=BINS, **RESNET)


def test_a_parameter_that_is_there_twice_is_refused() -> None:
    state = released_clip("clip_rn50", RESNET)[0]
    with pytest.raises(CheckpointError, match=r"projection\.bias is there twice"):
        convert_released({**state, "module.projection.bias": torch.zeros(24)}, "clip_rn50", bins=BINS, **RESNET)


@pytest.mark.parametrize(
    ("numbers", "depth", "message"),
    [
        ((0, 7), PromptDepth.deep, "vpt_7 is unknown; vpt_1 is missing"),
        ((5,), PromptDepth.shallow, "vpt_5 is unknown; vpt_0 is missing"),
        ((0,), PromptDepth.deep, "vpt_1 is missing"),
        ((0, 1), PromptDepth.shallow, "vpt_1 is unknown"),
        (("00", 1), PromptDepth.deep, "vpt_00 is unknown"),
    ],
)
def test_prompt_tokens_of_other_layers_are_refused(
    numbers: tuple[int | str, ...], depth: PromptDepth, message: str
) -> None:
    options = {**VIT, "prompt_depth": depth}
    state = {k: v for k, v in released_clip("clip_vit_b16", options)[0].items() if not k.startswith("vpt_")}
    state |= {f"vpt_{number}": torch.zeros(3, 64) for number in numbers}
    with pytest.raises(ConfigError, match=message):
        convert_released(state, "clip_vit_b16", bins=BINS, **options)


def test_models_that_the_released_code_does_not_have() -> None:
    for model, bins in (("tiny", BINS), ("clip_rn50", None)):
        with pytest.raises(ConfigError, match=f"model={model}: the released code has no such model"):
            convert_released({}, model, bins=bins, block_size=8)


def test_an_encoder_without_its_decoder_is_refused_by_name() -> None:
    encoder = build_model(ImageNetConfig(name="vgg19", weights="none"), BINS.grid, BINS).backbone.state_dict()
    state = {f"backbone.{name}": value for name, value in encoder.items()} | released_head(512)
    with pytest.raises(ConfigError, match=r"backbone\.reg_layer\.0\.weight is missing.*vgg16 is the only plain VGG"):
        convert_released(state, "vgg19", bins=BINS)


@pytest.mark.parametrize(
    ("name", "decoder"), [("dmcount", "reg_layer"), ("csrnet", "decoder"), ("cannet", "decoder"), ("vgg16", None)]
)
@pytest.mark.slow
def test_networks_on_vgg(name: str, decoder: str | None) -> None:
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
