"""CLIP's image encoder as a feature extractor, and its text encoder's features of the prompts.

Towers, tokenizer and tables of weights are open_clip's. Implements section III-B of
arXiv:2403.09281 and the visual prompt tuning (arXiv:2203.12119) of its second version. The cosine
of the two is the head's (``heads``).
"""

import dataclasses
import json
import math
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.resnet import BasicBlock, Bottleneck

from headcount.config import ClipConfig, ClipResNetConfig, ClipViTConfig, ConfigError, Decoder, PromptDepth
from headcount.models.weights import read_state_dict

ARCHITECTURES = {
    "clip_rn50": "RN50",
    "clip_rn101": "RN101",
    "clip_rn50x4": "RN50x4",
    "clip_rn50x16": "RN50x16",
    "clip_vit_b16": "ViT-B-16",
    "clip_vit_b32": "ViT-B-32",
    "clip_vit_l14": "ViT-L-14",
}


# ----------------------------------------------------------------------------------- image encoders


class ClipResNet(nn.Module):
    """CLIP's ResNet up to its last stage; at stride 16 that stage keeps its layers and loses its stride."""

    def __init__(self, tower: ModifiedResNet, *, stride: int) -> None:
        super().__init__()
        self.tower = tower
        self.channels = tower.attnpool.k_proj.in_features
        self.stride = stride
        tower.attnpool = nn.Identity()
        if stride == 16:
            # CLIP's ResNet strides by pooling, in the main path and before the shortcut's convolution.
            first = tower.layer4[0]
            first.avgpool = nn.Identity()
            first.downsample[0] = nn.Identity()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features, one for every whole ``stride`` x ``stride`` square of the image."""
        height, width = images.shape[-2:]
        return self.tower(images)[..., : height // self.stride, : width // self.stride]


class ClipViT(nn.Module):
    """CLIP's vision transformer up to the normalized patches of its last layer.

    With ``prompt_tokens``, learned tokens stand between the class token and the patches: before
    every layer its own (deep), or before the first alone, and carried through (shallow).

    Attributes:
        prompts: (layers with tokens of their own, tokens, width); None without prompt tokens.
    """

    def __init__(
        self,
        tower: VisionTransformer,
        *,
        frozen: bool,
        prompt_tokens: int,
        prompt_depth: PromptDepth,
        prompt_dropout: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.channels: int = tower.conv1.out_channels
        self.stride: int = tower.patch_size[0]
        self.dropout = nn.Dropout(prompt_dropout)
        tower.proj = None
        tower.requires_grad_(not frozen)
        self.prompts: nn.Parameter | None = None
        if prompt_tokens:
            layers = len(tower.transformer.resblocks) if prompt_depth is PromptDepth.deep else 1
            # Xavier's range for a layer from one patch (3 x stride, as the released code counts it) to the width.
            bound = math.sqrt(6 / (3 * self.stride + self.channels))
            self.prompts = nn.Parameter(torch.empty(layers, prompt_tokens, self.channels).uniform_(-bound, bound))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features, one for every whole patch of the image."""
        tower = self.tower
        patches = tower.conv1(images)
        rows, cols = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        first = tower.class_embedding.expand(len(images), 1, -1).to(patches.dtype)
        positions = interpolate_positions(tower.positional_embedding, tower.grid_size, (rows, cols))
        tokens = tower.ln_pre(torch.cat([first, patches], dim=1) + positions)
        own = 0 if self.prompts is None else self.prompts.shape[1]
        for index, block in enumerate(tower.transformer.resblocks):
            if self.prompts is not None and index < len(self.prompts):
                prompts = self.dropout(self.prompts[index].expand(len(images), -1, -1)).to(tokens.dtype)
                tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1 + (own if index else 0) :]], dim=1)
            with _released_attention(tokens):
                tokens = block(tokens)
        maps = tower.ln_post(tokens[:, 1 + own :])
        return maps.transpose(1, 2).unflatten(2, (rows, cols))


def _released_attention(tokens: Tensor) -> AbstractContextManager[None]:
    """Plain attention where gradients are taken on a CPU; elsewhere torch's choice, which is fused.

    The rounding of the fused kernel is as good, but it moves units of the decoder's ReLUs across zero,
    and gradients by 1e-3, against those of the released code. It costs 4 % of a training step.
    """
    if tokens.device.type == "cpu" and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def interpolate_positions(
    positions: Float[Tensor, "places width"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new_places width"]:
    """Position embeddings of a ``grid`` of patches for another; the class token's, the first, stays.

    Bicubic without antialiasing, as the released code does it.
    """
    if tuple(grid) == tuple(new_grid):
        return positions
    maps = positions[1:].T.unflatten(1, tuple(grid))[None]
    maps = F.interpolate(maps.float(), size=tuple(new_grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], maps[0].flatten(1).T.to(positions.dtype)])


# -------------------------------------------------------------------------------------------- decoder


class _Bottleneck(Bottleneck):
    """torchvision's bottleneck block with as many channels inside as out."""

    expansion = 1


def residual_decoder(channels: int, widths: Sequence[int], *, bottleneck: bool) -> nn.Sequential:
    """Residual blocks between CLIP's features and the projection, run at the resolution of the blocks.

    The paper's text has none; the released code has, bottlenecks for ResNets and basic blocks for ViTs.

    Args:
        widths: output channels of each block.
    """
    blocks = []
    for width in widths:
        shortcut = None
        if width != channels:
            shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        blocks.append((_Bottleneck if bottleneck else BasicBlock)(channels, width, downsample=shortcut))
        channels = width
    decoder = nn.Sequential(*blocks)
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d):  # He et al. (2015), for the ReLUs that follow; so does the released code
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return decoder


# Channels of the released decoders that are not their encoder's alone.
_RELEASED_DECODERS = {"clip_rn101": [2048, 1024], "clip_rn50x4": [1280], "clip_rn50x16": [1536]}


# ------------------------------------------------------------------------------------------- building


@dataclasses.dataclass
class Clip:
    """What a counter takes of CLIP."""

    backbone: ClipResNet | ClipViT
    decoder: nn.Sequential | None
    channels: int
    """Channels of the backbone, or of the decoder where there is one."""
    text_features: Float[Tensor, "bins embed"]
    """The text encoder's output for each prompt, not normalized; zeros where a checkpoint will fill them."""
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_clip(config: ClipConfig, prompts: Sequence[str], *, block_size: int, pretrained: bool = True) -> Clip:
    """CLIP's image encoder and the text features of ``prompts``.

    Args:
        pretrained: False builds the same encoder without weights and without the text encoder.

    Raises:
        ConfigError: if weights are missing, do not fit, or were trained with another activation.
    """
    if pretrained or config.quick_gelu is None:  # else it was recorded, and the weights' file may be gone
        config = follow_weights(config)
    sizes = _sizes(config)
    image = _image_tower(config, sizes)
    tag = get_pretrained_cfg(ARCHITECTURES[config.name], config.weights) or {}
    mean, std = tag.get("mean") or OPENAI_DATASET_MEAN, tag.get("std") or OPENAI_DATASET_STD
    features = torch.zeros(len(prompts), sizes["embed_dim"])
    if pretrained:
        text = text_tower(config)
        if config.weights != "none":
            _load(image, text, _read(config), config)
        features = encode_texts(text, prompts)
    backbone: ClipResNet | ClipViT
    if isinstance(config, ClipViTConfig):
        backbone = ClipViT(
            image,
            frozen=config.frozen,
            prompt_tokens=config.prompt_tokens,
            prompt_depth=config.prompt_depth,
            prompt_dropout=config.prompt_dropout,
        )
    else:
        backbone = ClipResNet(image, stride=config.stride(block_size) or 32)
    channels = backbone.channels
    decoder = None
    if config.decoder is Decoder.released:
        widths = config.decoder_channels or _RELEASED_DECODERS.get(config.name, [channels])
        decoder = residual_decoder(channels, widths, bottleneck=isinstance(config, ClipResNetConfig))
        channels = widths[-1]
    return Clip(backbone, decoder, channels, features, mean, std)


def follow_weights(config: ClipConfig) -> ClipConfig:
    """The config with the activation its weights were trained with: a network with another is silently wrong.

    Raises:
        ConfigError: if the config asks for another activation, or nothing tells which it is.
    """
    trained = _quick_gelu_of_weights(config)
    if trained is None and config.quick_gelu is None:
        _read(config)  # an unreadable file is told as such
        raise ConfigError(
            f"model.weights={config.weights}: the file does not say whether these weights were trained with QuickGELU; "
            "set model.quick_gelu=true (OpenAI's weights, and those whose name says quickgelu) or false, or keep their "
            "open_clip_config.json beside them"
        )
    if trained is not None and config.quick_gelu is not None and trained != config.quick_gelu:
        raise ConfigError(
            f"model.quick_gelu={config.quick_gelu}: but model.weights={config.weights} were trained with "
            f"{'QuickGELU' if trained else 'GELU'}; leave the setting out, and the network follows its weights"
        )
    return dataclasses.replace(config, quick_gelu=config.quick_gelu if trained is None else trained)


def _quick_gelu_of_weights(config: ClipConfig) -> bool | None:
    """Whether the weights were trained with QuickGELU; None if nothing tells."""
    if config.weights == "none":
        return True if config.quick_gelu is None else config.quick_gelu
    file = os.path.expanduser(config.weights)
    if not os.path.isfile(file):
        tag = get_pretrained_cfg(ARCHITECTURES[config.name], config.weights)
        if not tag:
            known = ", ".join(list_pretrained_tags_by_model(ARCHITECTURES[config.name]))
            raise ConfigError(
                f"model.weights={config.weights}: neither a file nor a tag of open_clip for "
                f"{ARCHITECTURES[config.name]}; tags are {known}"
            )
        return bool(tag.get("quick_gelu", False))
    if _is_torchscript(file):  # the form in which OpenAI published, and nobody else
        return True
    beside = os.path.join(os.path.dirname(file), "open_clip_config.json")
    if not os.path.isfile(beside):
        return None
    try:
        with open(beside, encoding="utf-8") as stream:
            content = json.load(stream)
        return bool(content.get("model_cfg", content).get("quick_gelu", False))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"model.weights={config.weights}: {beside} beside it is not the description open_clip wrote ({error}); "
            "put that one there, or remove it and set model.quick_gelu=true or false"
        ) from error


def _sizes(config: ClipConfig) -> dict[str, Any]:
    """open_clip's sizes of the architecture, with those the config sets."""
    library: Any = open_clip.get_model_config(ARCHITECTURES[config.name])
    vision, text = library["vision_cfg"], library["text_cfg"]
    layers = config.layers or vision["layers"]
    return {
        "embed_dim": config.embed_dim or library["embed_dim"],
        "width": config.width or vision["width"],
        "layers": layers[0] if isinstance(config, ClipViTConfig) and isinstance(layers, list) else layers,
        "text_width": config.text_width or text["width"],
        "text_heads": config.text_heads or text["heads"],
        "text_layers": config.text_layers or text["layers"],
    }


def _image_tower(config: ClipConfig, sizes: Mapping[str, Any]) -> Any:
    if not isinstance(config, ClipViTConfig):
        # The heads are those of the attention pooling, which is not used.
        return ModifiedResNet(list(sizes["layers"]), sizes["embed_dim"], heads=1, width=sizes["width"])
    patch = config.names[config.name]
    return VisionTransformer(
        image_size=config.input_size,
        patch_size=patch,
        width=sizes["width"],
        layers=sizes["layers"],
        heads=_heads(sizes["width"], config.heads or sizes["width"] // 64, "model.heads"),
        mlp_ratio=4.0,
        output_dim=sizes["embed_dim"],
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
    )


def text_tower(config: ClipConfig) -> TextTransformer:
    """CLIP's text encoder of the config's sizes and activation, without weights."""
    sizes = _sizes(config)
    return TextTransformer(
        width=sizes["text_width"],
        heads=_heads(sizes["text_width"], sizes["text_heads"], "model.text_heads"),
        layers=sizes["text_layers"],
        output_dim=sizes["embed_dim"],
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
    )


def _heads(width: int, heads: int, setting: str) -> int:
    if heads < 1 or width % heads:
        raise ConfigError(f"{setting}={heads}: must divide the width {width}")
    return heads


@torch.no_grad()
def encode_texts(tower: TextTransformer, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """The text encoder's output for each text, not normalized.

    Raises:
        ConfigError: if a text is longer than the encoder reads.
    """
    tokenizer = SimpleTokenizer()
    for text in texts:
        if len(tokenizer.encode(text)) + 2 > DEFAULT_CONTEXT_LENGTH:
            raise ConfigError(f"model.prompts: {text!r} is longer than the {DEFAULT_CONTEXT_LENGTH} tokens CLIP reads")
    return tower.eval()(tokenizer(list(texts)))


# -------------------------------------------------------------------------------------------- weights


def _is_torchscript(file: str) -> bool:
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _read(config: ClipConfig) -> Mapping[str, Tensor]:
    """The weights of a tag or a file, under open_clip's names."""
    file = os.path.expanduser(config.weights)
    if not os.path.isfile(file):
        file = _download(config)
    if _is_torchscript(file):
        # torch wants archives re-exported, but this is how OpenAI's are.
        try:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                state: Mapping[str, Tensor] = torch.jit.load(file, map_location="cpu").state_dict()
        except RuntimeError as error:
            raise ConfigError(f"model.weights={config.weights}: a damaged archive; get it again") from error
    else:
        state = read_state_dict(file)
    # Checkpoints of several processes, and models with a text tower of their own, put a word before the names.
    return {k.removeprefix("module.").removeprefix("text."): v for k, v in state.items()}


def _download(config: ClipConfig) -> str:
    architecture = ARCHITECTURES[config.name]
    tag = get_pretrained_cfg(architecture, config.weights)
    try:
        return str(download_pretrained(tag))
    except Exception as error:  # the hub raises many kinds for a network that is not there
        source = f"https://huggingface.co/{tag.get('hf_hub', '')}".rstrip("/")
        archive = f" (or {tag['url']})" if tag.get("url") else ""
        raise ConfigError(
            f"model.weights={config.weights}: {architecture}'s weights could not be had ({type(error).__name__}). "
            f"Without a network, get open_clip_model.safetensors and open_clip_config.json from {source} on another "
            f"machine{archive}, put both in a folder of this one, and name the "
            "first with model.weights=FILE; or train from nothing with model.weights=none"
        ) from error


def _load(image: nn.Module, text: nn.Module, state: Mapping[str, Tensor], config: ClipConfig) -> None:
    """Fill both towers; every key must be theirs but for the parts that are not used."""
    state = dict(state)
    positions = state.get("visual.positional_embedding")
    if positions is not None and isinstance(image, VisionTransformer):
        side = math.isqrt(len(positions) - 1)
        if side * side == len(positions) - 1:
            state["visual.positional_embedding"] = interpolate_positions(
                positions.float(), (side, side), image.grid_size
            )
    # What is pooled, projected or scaled elsewhere; OpenAI's archives also hold three sizes.
    unused = (
        *("logit_scale", "logit_bias", "visual.attnpool.", "visual.proj"),
        *("input_resolution", "context_length", "vocab_size", "attn_mask"),
    )
    own = {f"visual.{k}": v for k, v in image.state_dict().items()} | dict(text.state_dict())
    own = {k: v for k, v in own.items() if not k.startswith(unused)}
    state = {k: v for k, v in state.items() if not k.startswith(unused)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    strange = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or strange or wrong:
        problem = (
            f"{missing[0]} is missing"
            if missing
            else f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
            if wrong
            else f"{strange[0]} is not part of {config.name}"
        )
        raise ConfigError(
            f"model.weights={config.weights}: not the weights of {ARCHITECTURES[config.name]} in these sizes: "
            f"{problem} ({len(missing)} missing, {len(wrong)} of another shape, {len(strange)} unknown)"
        )
    filled = {k: state.get(k, v).float() if v.is_floating_point() else state.get(k, v) for k, v in own.items()}
    visual = {k.removeprefix("visual."): v for k, v in filled.items() if k.startswith("visual.")}
    image.load_state_dict(visual, strict=False)  # all but the unused parts, as was checked above
    text.load_state_dict({k: v for k, v in filled.items() if not k.startswith("visual.")}, strict=False)
