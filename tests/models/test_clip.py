"""CLIP's towers against open_clip's own forward passes, its weights from every kind of file, prompt tokens."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headcount.bins import CountBins
from headcount.config import (
    ClipConfig,
    ClipResNetConfig,
    ClipViTConfig,
    ConfigError,
    Decoder,
    ModelConfig,
    PromptDepth,
    PromptsConfig,
    RegressionHeadConfig,
    Strategy,
)
from headcount.errors import CheckpointError
from headcount.models import clip, clip_weights
from headcount.models.build import build_model, follow_weights
from headcount.models.counter import Counter
from headcount.models.heads import CosineClassifier, resample
from headcount.types import BlockGrid

HISTOGRAM = {0: 90, 1: 5, 2: 3, 4: 1, 9: 1}
TEXT = {"text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 24}
RESNET: dict[str, Any] = {**TEXT, "width": 16, "layers": [1, 1, 1, 1]}
VIT: dict[str, Any] = {**TEXT, "width": 64, "layers": [2], "heads": 2}


def bins_of(block_size: int = 8) -> CountBins:
    return CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(block_size), strategy=Strategy.fine, m=4)


def small(kind: type[ClipConfig], **changes: Any) -> ClipConfig:
    sizes = RESNET if kind is ClipResNetConfig else VIT
    return kind(**{"weights": "none", **sizes, **changes})


def counter_of(config: ModelConfig, block_size: int = 8, **options: Any) -> Counter:
    torch.manual_seed(0)
    return build_model(config, BlockGrid(block_size), bins_of(block_size), **options).eval()


def library(kind: type[ClipConfig], *, quick_gelu: bool = True, image_size: int = 224) -> Any:
    """The same small network, whole, as open_clip builds it."""
    torch.manual_seed(1)
    vision: dict[str, Any] = {"image_size": image_size, "width": 16, "layers": [1, 1, 1, 1]}
    if kind is ClipViTConfig:
        vision = {"image_size": image_size, "width": 64, "layers": 2, "head_width": 32, "patch_size": 16}
    text = {"width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    for parameter in model.parameters():  # open_clip starts some at zero, and what is zero hides mistakes
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


KINDS = pytest.mark.parametrize("kind", [ClipResNetConfig, ClipViTConfig], ids=["resnet", "vit"])


# ---------------------------------------------------------------------------------------- weights


def as_torchscript(model: Any, folder: Path) -> Path:
    """An archive of the kind OpenAI published: half precision, traced."""
    file = folder / "archive.pt"
    images, texts = torch.zeros(1, 3, 224, 224), open_clip.tokenize(["a"])
    with warnings.catch_warnings(action="ignore"):
        torch.jit.trace(model, (images, texts), check_trace=False).save(str(file))
    return file


def as_bin(model: Any, folder: Path) -> Path:
    file = folder / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), file)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    return file


def as_safetensors(model: Any, folder: Path) -> Path:
    file = folder / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    return file


def as_distributed(model: Any, folder: Path) -> Path:
    file = as_bin(model, folder)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, file)
    return file


@KINDS
@pytest.mark.parametrize("write", [as_torchscript, as_bin, as_safetensors, as_distributed])
def test_both_towers_equal_open_clip(
    kind: type[ClipConfig], write: Callable[[Any, Path], Path], tmp_path: Path
) -> None:
    model = library(kind)
    frozen = {"prompt_tokens": 0} if kind is ClipViTConfig else {}
    counter = counter_of(small(kind, weights=str(write(model, tmp_path)), **frozen), 32)
    images = torch.randn(2, 3, 224, 224)
    texts = ["There is no person.", "There is one person.", "There are two people.", "There are three people."]
    texts.append("There are more than four people.")
    with torch.no_grad():
        text_features = model.encode_text(open_clip.tokenize(texts))
        if kind is ClipViTConfig:
            golden = model.visual.forward_intermediates(images, indices=1, normalize_intermediates=True)
            maps = golden["image_intermediates"][-1]
        else:
            maps = model.visual.forward_intermediates(images, indices=[4])["image_intermediates"][-1]
        torch.testing.assert_close(counter.backbone(images), maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(counter.head.text_features, text_features, rtol=1e-5, atol=1e-6)


def test_a_model_with_a_text_tower_of_its_own(tmp_path: Path) -> None:
    model = library(ClipResNetConfig)
    text = ("positional_embedding", "text_projection", "token_embedding", "transformer", "ln_final", "attn_mask")
    state = {f"text.{k}" if k.startswith(text) else k: v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "custom.bin")
    config = small(ClipResNetConfig, weights=str(tmp_path / "custom.bin"), quick_gelu=True)
    expected = counter_of(small(ClipResNetConfig, weights=str(as_bin(model, tmp_path))))
    assert torch.equal(counter_of(config).head.text_features, expected.head.text_features)


def test_positions_of_another_input_size_are_interpolated(tmp_path: Path) -> None:
    model = library(ClipViTConfig)
    config = small(ClipViTConfig, weights=str(as_bin(model, tmp_path)), input_size=256)
    positions = counter_of(config).backbone.tower.positional_embedding
    assert positions.shape == (16 * 16 + 1, 64)
    own = model.visual.positional_embedding
    grid = own[1:].T.reshape(1, 64, 14, 14)
    expected = F.interpolate(grid, (16, 16), mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(positions[1:].T, expected.reshape(64, 256))
    assert torch.equal(positions[0], own[0])


def test_quick_gelu_follows_the_weights(tmp_path: Path) -> None:
    assert follow_weights(ClipViTConfig(weights="openai")).quick_gelu is True
    assert follow_weights(ClipViTConfig(weights="laion2b_s34b_b88k")).quick_gelu is False
    assert follow_weights(ClipViTConfig(weights="none")).quick_gelu is True
    assert follow_weights(ClipViTConfig(weights="none", quick_gelu=False)).quick_gelu is False
    file = as_bin(library(ClipViTConfig, quick_gelu=False), tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 24}}))
    config = small(ClipViTConfig, weights=str(file))
    assert follow_weights(config).quick_gelu is False
    block = counter_of(config).backbone.tower.transformer.resblocks[0]
    assert isinstance(block.mlp.gelu, nn.GELU)


def test_a_mismatch_of_activations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"quick_gelu=True: but model\.weights=laion2b_s34b_b88k were trained with GELU"
    ):
        follow_weights(ClipViTConfig(weights="laion2b_s34b_b88k", quick_gelu=True))
    archive = as_torchscript(library(ClipViTConfig), tmp_path)
    with pytest.raises(ConfigError, match=r"quick_gelu=False: but .*archive\.pt were trained with QuickGELU"):
        counter_of(small(ClipViTConfig, weights=str(archive), quick_gelu=False))


def test_a_file_that_does_not_say_its_activation(tmp_path: Path) -> None:
    file = as_bin(library(ClipViTConfig), tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ConfigError, match=r"set model\.quick_gelu=true"):
        counter_of(small(ClipViTConfig, weights=str(file)))
    counter_of(small(ClipViTConfig, weights=str(file), quick_gelu=True))


@pytest.mark.parametrize("content", ["{", "[1, 2]", '{"model_cfg": 3}', b"\xff\xfe"])
def test_a_broken_description_beside_the_weights_is_named(content: str | bytes, tmp_path: Path) -> None:
    file = as_bin(library(ClipViTConfig), tmp_path)
    beside = tmp_path / "open_clip_config.json"
    beside.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        CheckpointError, match=r"open_clip_config\.json in the same folder is not a description written"
    ):
        follow_weights(small(ClipViTConfig, weights=str(file)))


@pytest.mark.parametrize("content", [b"", b"hello", "half"])
def test_a_file_that_cannot_be_read_is_told_before_its_activation_is_asked_for(
    content: bytes | str, tmp_path: Path
) -> None:
    file = as_torchscript(library(ClipViTConfig), tmp_path)
    whole = file.read_bytes()
    file.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"archive\.pt: (the file is truncated|not a state dict)"):
        follow_weights(small(ClipViTConfig, weights=str(file)))


def test_a_damaged_archive_is_told_as_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("archive/code/model.py", "")
    with pytest.raises(CheckpointError, match=r"archive\.pt: a damaged archive"):
        counter_of(small(ClipViTConfig, weights=str(tmp_path / "archive.pt")))


def test_an_unknown_tag_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"weights=opanai: neither a file nor a tag of open_clip for RN50; tags: openai"
    ):
        counter_of(small(ClipResNetConfig, weights="opanai"))


def test_offline_names_the_files_and_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(clip_weights, "download_pretrained", offline)
    with pytest.raises(ConfigError) as caught:
        counter_of(ClipResNetConfig(weights="openai"))
    for words in ("RN50", "https://", "open_clip_model.safetensors", "model.weights=FILE", "model.weights=none"):
        assert words in str(caught.value)


def test_a_tag_is_downloaded_by_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading code, on a file of ours where the download would have put it."""
    model = library(ClipResNetConfig)
    asked = []

    def download(tag: dict[str, Any]) -> str:
        asked.append(tag["hf_hub"])
        return str(as_safetensors(model, tmp_path))

    monkeypatch.setattr(clip_weights, "download_pretrained", download)
    counter = counter_of(small(ClipResNetConfig, weights="openai"))
    assert asked == ["timm/resnet50_clip.openai/"]
    assert torch.equal(counter.backbone.tower.conv1.weight, model.visual.conv1.weight)


@KINDS
def test_weights_of_other_sizes_are_refused(kind: type[ClipConfig], tmp_path: Path) -> None:
    file = str(as_bin(library(kind), tmp_path))
    with pytest.raises(ConfigError, match=r"text_projection is \(32, 24\), not \(32, 40\)"):
        counter_of(small(kind, weights=file, embed_dim=40))
    with pytest.raises(ConfigError, match=r"transformer\.resblocks\.1\S* is missing"):
        counter_of(small(kind, weights=file, text_layers=2))


def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    file = str(as_bin(library(ClipViTConfig), tmp_path))
    with pytest.raises(ConfigError, match=r"visual\.transformer\.resblocks\.1\S* is not part of clip_vit_b16"):
        counter_of(small(ClipViTConfig, weights=file, layers=[1]))


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("bomb-went-off").touch, ())


def test_truncated_foreign_and_malicious_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = as_torchscript(library(ClipViTConfig), tmp_path).read_bytes()
    contents = {"half.pt": whole[: len(whole) // 2], "text.pt": b"hello", "bomb.pt": pickle.dumps(Bomb())}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            counter_of(small(ClipViTConfig, weights=str(tmp_path / name), quick_gelu=True))
    assert not (tmp_path / "bomb-went-off").exists()


# ------------------------------------------------------------------------------------ architecture


# Millions of parameters of the image tower in the table of open_clip's documentation (model_profile.csv).
PROFILE = {"clip_rn50": 38.32, "clip_rn101": 56.26, "clip_rn50x4": 87.14, "clip_rn50x16": 167.33}
PROFILE |= {"clip_vit_b16": 86.19, "clip_vit_b32": 87.85, "clip_vit_l14": 303.97}
# Channels of the features, dimensions of the shared space, side of the grid of positions in the pooling.
SHAPES = {"clip_rn50": (2048, 1024, 7), "clip_rn101": (2048, 512, 7), "clip_rn50x4": (2560, 640, 9)}
SHAPES |= {"clip_rn50x16": (3072, 768, 12), "clip_vit_b16": (768, 512, 0), "clip_vit_b32": (768, 512, 0)}
SHAPES |= {"clip_vit_l14": (1024, 768, 0)}
DECODERS = {"clip_rn50": [2048], "clip_rn101": [2048, 1024], "clip_rn50x4": [1280], "clip_rn50x16": [1536]}
DECODERS |= {"clip_vit_b16": [768], "clip_vit_b32": [768], "clip_vit_l14": [1024]}
LAYERS = {"clip_vit_b16": 12, "clip_vit_b32": 12, "clip_vit_l14": 24}


def decoder_parameters(channels: int, widths: list[int], bottleneck: bool) -> int:
    total = 0
    for width in widths:
        inside = channels * width + 9 * width**2 + width**2 if bottleneck else 9 * channels * width + 9 * width**2
        total += inside + 2 * width * (3 if bottleneck else 2)
        total += channels * width + 2 * width if channels != width else 0
        channels = width
    return total


@pytest.mark.parametrize("name", list(SHAPES))
def test_parameters_at_full_size(name: str) -> None:
    vit = "vit" in name
    channels, embed, grid = SHAPES[name]
    config = (ClipViTConfig if vit else ClipResNetConfig)(name=name, weights="none")
    with torch.device("meta"):
        counter = build_model(config, BlockGrid(8), bins_of(), pretrained=False)
    pooling = channels * embed if vit else (grid**2 + 1) * channels + 3 * (channels**2 + channels)
    pooling += 0 if vit else channels * embed + embed
    tower = sum(p.numel() for p in counter.backbone.tower.parameters())
    assert round((tower + pooling) / 1e6, 2) == PROFILE[name]
    decoder = decoder_parameters(channels, DECODERS[name], bottleneck=not vit)
    last = DECODERS[name][-1]
    prompts = LAYERS[name] * 32 * channels if vit else 0
    own = decoder + last * embed + embed + 1 + prompts
    assert sum(p.numel() for p in counter.parameters()) == tower + own
    trainable = sum(p.numel() for p in counter.parameters() if p.requires_grad)
    assert trainable == (own if vit else tower + own)


def test_nothing_of_the_text_encoder_is_stored() -> None:
    state = counter_of(small(ClipViTConfig)).state_dict()
    assert not [k for k in state if "token_embedding" in k or "text_encoder" in k]
    assert state["head.text_features"].shape == (5, 24)


def test_the_stride_follows_the_blocks() -> None:
    for block_size, stride in ((8, 16), (16, 16), (32, 32)):
        assert counter_of(small(ClipResNetConfig), block_size).stride == stride


@pytest.mark.parametrize(("name", "rows"), [("clip_vit_b16", 12), ("clip_vit_b32", 12), ("clip_vit_l14", 12)])
def test_blocks_of_patches_that_are_no_multiple(name: str, rows: int) -> None:
    """104 px hold 6 patches of 16, 3 of 32, 7 of 14, so 12, 12 and 12.25 blocks of 8."""
    counter = counter_of(small(ClipViTConfig, name=name))
    with torch.no_grad():
        blocks = counter(torch.zeros(1, 3, 104, 136, dtype=torch.uint8)).blocks
    assert blocks.shape[2] == rows


# ------------------------------------------------------------------------------------ prompt tokens


def test_deep_and_shallow_tokens_against_a_loop_by_hand() -> None:
    for depth in PromptDepth:
        counter = counter_of(small(ClipViTConfig, prompt_tokens=3, prompt_depth=depth))
        backbone, tower = counter.backbone, counter.backbone.tower
        assert backbone.prompts.shape == (2 if depth is PromptDepth.deep else 1, 3, 64)
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            patches = tower.conv1(images).flatten(2).permute(0, 2, 1)
            x = torch.cat([tower.class_embedding.expand(2, 1, 64), patches], 1) + tower.positional_embedding
            x = tower.ln_pre(x)
            first, carried, rest = x[:, :1], backbone.prompts[0].expand(2, 3, 64), x[:, 1:]
            for index, block in enumerate(tower.transformer.resblocks):
                if index and depth is PromptDepth.deep:
                    carried = backbone.prompts[index].expand(2, 3, 64)
                x = block(torch.cat([first, carried, rest], 1))
                first, carried, rest = x[:, :1], x[:, 1:4], x[:, 4:]
            expected = tower.ln_post(rest).permute(0, 2, 1).reshape(2, 64, 14, 14)
            torch.testing.assert_close(backbone(images), expected)


def test_what_learns() -> None:
    frozen = counter_of(small(ClipViTConfig))
    assert {n for n, p in frozen.backbone.named_parameters() if p.requires_grad} == {"prompts"}
    whole = counter_of(small(ClipViTConfig, frozen=False, prompt_tokens=0))
    assert all(p.requires_grad for p in whole.parameters())
    assert whole.backbone.prompts is None
    linear = counter_of(small(ClipViTConfig, frozen=True, prompt_tokens=0))
    assert not any(p.requires_grad for p in linear.backbone.parameters())


def test_prompt_dropout_acts_in_training_alone() -> None:
    counter = counter_of(small(ClipViTConfig, prompt_dropout=0.5, prompt_tokens=4))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(counter.backbone(images), counter.backbone(images))
        counter.train()
        assert not torch.equal(counter.backbone(images), counter.backbone(images))


# ---------------------------------------------------------------------------------------------- head


def test_projecting_before_up_sampling_is_exact() -> None:
    torch.manual_seed(0)
    head = CosineClassifier(40, bins_of(), torch.randn(5, 24)).double()
    head.text_features, head.representatives = head.text_features.double(), head.representatives.double()
    features = torch.randn(2, 40, 6, 8, dtype=torch.float64)
    late = F.normalize(head.projection(resample(features, 2)), dim=1).permute(0, 2, 3, 1)
    cosines = late @ F.normalize(head.text_features, dim=1).T
    expected = cosines.permute(0, 3, 1, 2) / 0.07
    # The head itself works in float32.
    torch.testing.assert_close(head(features, factor=2).logits.double(), expected, rtol=0, atol=2e-5)


def test_no_projection_where_widths_match() -> None:
    assert isinstance(CosineClassifier(24, bins_of(), torch.randn(5, 24)).projection, nn.Identity)


def test_without_a_decoder_only_a_projection_stands_on_the_features() -> None:
    counter = counter_of(small(ClipResNetConfig, decoder=Decoder.none))
    assert counter.decoder is None
    assert counter.head.projection.weight.shape == (24, 512, 1, 1)


def test_the_texts_are_those_of_the_prompts() -> None:
    person, car = (
        counter_of(small(ClipResNetConfig, prompts=PromptsConfig(singular=noun, plural=f"{noun}s")))
        for noun in ("person", "car")
    )
    assert not torch.equal(person.head.text_features, car.head.text_features)


def test_a_head_encodes_sentences_of_its_own_choice() -> None:
    config = small(ClipResNetConfig)
    torch.manual_seed(0)
    texts = clip.build_clip(config, block_size=8).texts
    assert texts.prompts == config.prompts
    first, second = texts.encode(["One person.", "No person."]), texts.encode(["No person."])
    assert first.shape == (2, 24)
    assert not first.requires_grad
    torch.testing.assert_close(first[1:], second)
    assert not torch.equal(first[0], first[1])
    unfilled = clip.build_clip(config, block_size=8, pretrained=False).texts.encode(["One person."] * 3)
    assert torch.equal(unfilled, torch.zeros(3, 24))


def test_a_prompt_that_is_too_long_is_refused() -> None:
    long = PromptsConfig(many="There are {count} {noun} " + "and so on " * 30)
    with pytest.raises(ConfigError, match="longer than the 77 tokens that CLIP reads"):
        counter_of(small(ClipResNetConfig, prompts=long))


@KINDS
def test_regression_on_clip_features(kind: type[ClipConfig]) -> None:
    counter = build_model(small(kind, head=RegressionHeadConfig()), BlockGrid(8), None)
    prediction = counter(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    assert prediction.probabilities() is None
    assert prediction.blocks.shape == (1, 1, 8, 8)


@KINDS
@pytest.mark.parametrize("decoder", list(Decoder), ids=lambda d: d.name)
def test_a_state_dict_rebuilds_the_counter_without_weights(kind: type[ClipConfig], decoder: Decoder) -> None:
    config = small(kind, decoder=decoder)
    counter, other = counter_of(config), build_model(config, BlockGrid(8), bins_of(), pretrained=False).eval()
    other.load_state_dict(counter.state_dict())
    images: Tensor = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(counter(images).blocks, other(images).blocks)


def test_clips_own_mean_and_std() -> None:
    mean = counter_of(small(ClipViTConfig)).mean.flatten().tolist()
    assert mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_initial_logit_scale() -> None:
    assert counter_of(small(ClipViTConfig)).head.logit_scale.exp().item() == pytest.approx(1 / 0.07)


# ------------------------------------------------------------------------- attention, activation


@pytest.mark.parametrize("frozen", [True, False])
def test_attention_is_that_of_torch(frozen: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(24, 3, batch_first=True).double().requires_grad_(not frozen)
    nn.init.normal_(attention.in_proj_bias)
    tokens = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    found, expected = clip.attend(attention, tokens), attention(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    wanted = [tokens] if frozen else [tokens, *attention.parameters()]
    weights = torch.randn_like(expected)
    both = [torch.autograd.grad((values * weights).sum(), wanted) for values in (found, expected)]
    for ours, given in zip(*both, strict=True):
        torch.testing.assert_close(ours, given, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_of_attention_are_not_copied_for_each_token(dtype: torch.dtype) -> None:
    attention = nn.MultiheadAttention(24, 3, batch_first=True).requires_grad_(False)
    tokens = torch.randn(2, 50, 24, requires_grad=True)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with Sizes(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        clip.attend(attention, tokens).float().sum().backward()
    assert max(sizes) <= 2 * 50 * 3 * 24  # the projected tokens; a copy for each is 50 times the weights' 3 * 24 * 24


def quick_gelu(x: Tensor) -> Tensor:
    """As its definition is written."""
    return x * torch.sigmoid(1.702 * x)


def test_quick_gelu_in_float64() -> None:
    x = torch.linspace(-30, 30, 241, dtype=torch.float64, requires_grad=True)
    activation = clip.FastQuickGELU()
    torch.testing.assert_close(activation(x), quick_gelu(x), rtol=1e-14, atol=1e-14)
    found, expected = (torch.autograd.grad(f(x).sum(), x)[0] for f in (activation, quick_gelu))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
    assert torch.autograd.gradcheck(activation, x[::10].detach().requires_grad_())


def test_quick_gelu_in_float32_is_as_close_to_float64_as_its_definition() -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).mul_(3)
    errors = []
    for function in (quick_gelu, clip.FastQuickGELU()):
        given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        values, true = function(given), quick_gelu(exact)
        gradients = torch.autograd.grad(values.sum(), given)[0], torch.autograd.grad(true.sum(), exact)[0]
        errors.append([float((a.double() - b).abs().max()) for a, b in ((values.detach(), true.detach()), gradients)])
    assert all(ours <= 2 * plain for plain, ours in zip(*errors, strict=True)), errors
    assert max(errors[1]) < 4e-6  # some units of the last place of values up to 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_quick_gelu_in_half_precision_is_open_clips(dtype: torch.dtype) -> None:
    x = torch.linspace(-9, 9, 181).to(dtype)
    assert torch.equal(clip.FastQuickGELU()(x), open_clip.transformer.QuickGELU()(x))


def test_only_encoders_with_quick_gelu_use_it() -> None:
    for quick in (True, False):
        tower = counter_of(small(ClipViTConfig, quick_gelu=quick)).backbone.tower
        kinds = {type(block.mlp.gelu) for block in tower.transformer.resblocks}
        assert kinds == ({clip.FastQuickGELU} if quick else {nn.GELU})
