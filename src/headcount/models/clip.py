"""CLIP's image encoder as a backbone, and its text encoder, which encodes the sentences that a prediction head chooses.

Implements section III-B of arXiv:2403.09281 and the visual prompt tuning (arXiv:2203.12119) of its second version, with
open_clip's encoders, tokenizer and tables of weights. Cosine similarities are computed by the prediction head.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.modified_resnet import ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer
from torch import Tensor, nn

from headcount.config import (
    ClipConfig,
    ClipEncodersConfig,
    ClipRankingConfig,
    ClipResNetConfig,
    ClipTowerConfig,
    ClipViTConfig,
    ConfigError,
    Decoder,
    PromptDepth,
    PromptsConfig,
)
from headcount.errors import CheckpointError
from headcount.models.archives import is_torchscript
from headcount.models.clip_towers import Clip, TimmTower, architecture, follow_tag, library_config
from headcount.models.clip_weights import interpolate_positions, load_encoders, read_weights
from headcount.models.torchvision_networks import residual_decoder

# ----------------------------------------------------------------------------------- image encoders


class ClipResNet(nn.Module):
    """CLIP's ResNet up to its last stage.

    Args:
        tower: open_clip's image encoder; modified in place.
        stride: pixels between two features, 16 or 32; 16 sets the stride of the last stage to 1.
    """

    def __init__(self, tower: ModifiedResNet, *, stride: int) -> None:
        super().__init__()
        self.tower = tower
        self.channels = tower.attnpool.k_proj.in_features
        self.stride = stride
        tower.attnpool = nn.Identity()
        if stride == 16:
            # CLIP's ResNet reduces its maps by pooling, in the main path and before the convolution of the shortcut.
            first = tower.layer4[0]
            first.avgpool = nn.Identity()
            first.downsample[0] = nn.Identity()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Compute one feature per complete ``stride`` x ``stride`` square of the image."""
        height, width = images.shape[-2:]
        return self.tower(images)[..., : height // self.stride, : width // self.stride]


class FastQuickGELU(QuickGELU):
    """open_clip's QuickGELU, x * sigmoid(1.702 x), up to rounding; in float32 in half the time and memory."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply the activation to each value."""
        if x.dtype is torch.bfloat16 or x.dtype is torch.float16:  # a factor more would round once more
            return super().forward(x)
        return _ScaledSiLU.apply(x)


class _ScaledSiLU(torch.autograd.Function):
    """silu(1.702 x) / 1.702, whose derivative is that of SiLU at 1.702 x: one pass and one stored tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)


class ClipViT(nn.Module):
    """CLIP's vision transformer up to the normalized patches of its last layer.

    With ``prompt_tokens``, learned tokens are inserted between the class token and the patches: new ones before every
    layer (deep), or only before the first layer, passed on through all layers (shallow).

    Args:
        tower: open_clip's image encoder; modified in place.
        stride: pixels between two features, the side of a patch.
        frozen: whether the parameters of ``tower`` are not trained; prompt tokens always are.
        prompt_tokens: number of prompt tokens per layer; 0 for none.
        prompt_depth: deep or shallow, see above.
        prompt_dropout: probability of dropping a value of a prompt token in training.

    Attributes:
        prompts: (layers that have prompt tokens, tokens, width); None without prompt tokens.

    Source: arXiv:2203.12119.
    """

    def __init__(
        self,
        tower: VisionTransformer,
        *,
        stride: int,
        frozen: bool,
        prompt_tokens: int,
        prompt_depth: PromptDepth,
        prompt_dropout: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.channels: int = tower.conv1.out_channels
        self.stride = stride
        self.dropout = nn.Dropout(prompt_dropout)
        tower.proj = None
        tower.requires_grad_(not frozen)
        self.prompts: nn.Parameter | None = None
        if prompt_tokens:
            layers = len(tower.transformer.resblocks) if prompt_depth is PromptDepth.deep else 1
            # Xavier's range for a layer from one patch (3 x stride inputs, as in the released code) to the width.
            bound = math.sqrt(6 / (3 * self.stride + self.channels))
            self.prompts = nn.Parameter(torch.empty(layers, prompt_tokens, self.channels).uniform_(-bound, bound))

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Compute one feature per complete patch of the image."""
        tower = self.tower
        patches = tower.conv1(images)
        rows, cols = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        first = tower.class_embedding.expand(images.shape[0], 1, -1).to(patches.dtype)
        positions = interpolate_positions(tower.positional_embedding, tower.grid_size, (rows, cols))
        tokens = tower.ln_pre(torch.cat([first, patches], dim=1) + positions)
        own = 0 if self.prompts is None else self.prompts.shape[1]
        for index, block in enumerate(tower.transformer.resblocks):
            if self.prompts is not None and index < len(self.prompts):
                prompts = self.dropout(self.prompts[index].expand(images.shape[0], -1, -1)).to(tokens.dtype)
                tokens = torch.cat([tokens[:, :1], prompts, tokens[:, 1 + (own if index else 0) :]], dim=1)
            tokens = tokens + block.ls_1(attend(block.attn, block.ln_1(tokens)))
            tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        maps = tower.ln_post(tokens[:, 1 + own :])
        return maps.transpose(1, 2).unflatten(2, (rows, cols))


def attend(
    attention: nn.MultiheadAttention, tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch tokens width"]:
    """Self-attention with the weights of ``attention``, as its own forward pass computes it, up to rounding.

    That one transposes the tokens first, after which the product with weights that are not trained is taken for each
    token alone, from a copy of the weights for each of them: in bf16 on a CPU, ten times as slow.
    """
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    values = F.scaled_dot_product_attention(query, key, value)
    return attention.out_proj(values.transpose(1, 2).flatten(2))


# Channels of the released decoders, where they differ from a single block with the channels of the encoder.
_RELEASED_DECODERS = {"clip_rn101": [2048, 1024], "clip_rn50x4": [1280], "clip_rn50x16": [1536]}


# ------------------------------------------------------------------------------------------- building


class ClipTexts:
    """CLIP's text encoder, for as long as a prediction head is being built; a counter does not keep it.

    Args:
        prompts: the phrases from which heads write the sentences of their bins.
        embed_dim: dimensions of a text feature.
        tower: the text encoder; None if a checkpoint will provide the features.
    """

    def __init__(self, prompts: PromptsConfig, *, embed_dim: int, tower: TextTransformer | None) -> None:
        self.prompts = prompts
        self._embed_dim = embed_dim
        self._tower = tower

    def encode(self, sentences: list[str]) -> Float[Tensor, "sentences embed"]:
        """Encode sentences, without gradient.

        Returns:
            The output of the text encoder, not normalized; zeros, to be filled by a checkpoint, if it was built with
            ``pretrained=False``.

        Raises:
            ConfigError: if a sentence is longer than the encoder reads.
        """
        if self._tower is None:
            return torch.zeros(len(sentences), self._embed_dim)
        return encode_texts(self._tower, sentences)


@dataclass
class ClipParts:
    """The parts of a counter that are built from CLIP."""

    backbone: ClipResNet | ClipViT | TimmTower
    decoder: nn.Sequential | None
    channels: int
    """Channels of the features that the head receives: those of the decoder, or of the backbone without one."""
    mean: tuple[float, ...]
    """Mean of red, green and blue, in 0 to 1, with which the weights were trained."""
    std: tuple[float, ...]
    """Standard deviation of red, green and blue, in 0 to 1."""
    texts: ClipTexts
    """The text encoder; drop it once the head is built."""


def build_clip(config: ClipConfig, *, block_size: int, pretrained: bool = True) -> ClipParts:
    """Build CLIP's image encoder, the decoder on top of it, and the text encoder.

    Args:
        config: the model's config.
        block_size: side of a block, in pixels; ResNets choose their stride by it.
        pretrained: False builds the same encoder without weights and without the text encoder.

    Raises:
        ConfigError: if weights are missing, do not fit, or were trained with another activation.
        CheckpointError: if the file of weights is damaged.
    """
    config = settle_activation(config, pretrained=pretrained)
    encoders = build_encoders(config, pretrained=pretrained)
    backbone = _backbone(config, encoders.image, block_size=block_size)
    channels = backbone.channels
    decoder = None
    if config.decoder is Decoder.released:
        widths = config.decoder_channels or _RELEASED_DECODERS.get(config.name, [channels])
        decoder = residual_decoder(channels, widths, bottleneck=isinstance(config, ClipResNetConfig))
        channels = widths[-1]
    return ClipParts(
        backbone,
        decoder,
        channels,
        mean=encoders.mean,
        std=encoders.std,
        texts=ClipTexts(config.prompts, embed_dim=encoders.embed_dim, tower=encoders.text),
    )


@dataclass(frozen=True)
class ClipEncoders:
    """CLIP's two encoders, with their weights."""

    image: Any
    text: TextTransformer | None
    """None if a checkpoint will fill the weights: it has the features of the texts."""
    embed_dim: int
    mean: tuple[float, ...]
    """Of the images that the weights were trained on; likewise ``std``."""
    std: tuple[float, ...]


def build_encoders(config: ClipEncodersConfig, *, pretrained: bool, pooled: bool = False) -> ClipEncoders:
    """Build the encoders of a config whose activation is settled.

    Args:
        pretrained: False builds the image encoder without weights and no text encoder.
        pooled: also load the weights of the image encoder's pooling.

    Raises:
        ConfigError, CheckpointError: as :func:`build_clip`.
    """
    sizes = encoder_sizes(config)
    image = image_encoder(config, sizes)
    text = text_tower(config) if pretrained else None
    if text is not None and config.weights != "none":
        load_encoders(image, text, read_weights(config), config, pooled=pooled)
    tag = get_pretrained_cfg(architecture(config), config.weights) or {}
    mean, std = tag.get("mean") or OPENAI_DATASET_MEAN, tag.get("std") or OPENAI_DATASET_STD
    return ClipEncoders(image, text, sizes["embed_dim"], mean, std)


def _backbone(config: ClipConfig, image: Any, *, block_size: int) -> ClipResNet | ClipViT | TimmTower:
    if isinstance(image, TimmTower):
        return image
    stride = config.stride(block_size)
    assert stride is not None, f"the config of {config.name} states no stride"
    if not isinstance(config, ClipViTConfig):
        return ClipResNet(image, stride=stride)
    return ClipViT(
        image,
        stride=stride,
        frozen=config.frozen,
        prompt_tokens=config.prompt_tokens,
        prompt_depth=config.prompt_depth,
        prompt_dropout=config.prompt_dropout,
    )


def settle_activation(config: Clip, *, pretrained: bool) -> Clip:
    """The config with the activation that its network is built with.

    Args:
        pretrained: whether its weights are loaded; if not, a checkpoint that fills them records the activation.

    Raises:
        ConfigError, CheckpointError: as :func:`follow_weights`, or if the activation is not recorded.
    """
    if pretrained or (config.quick_gelu is None and config.weights == "none"):
        config = follow_weights(config)
    if config.quick_gelu is None:  # a checkpoint records it, and the file of weights that it names is never read
        raise ConfigError(f"model.quick_gelu is not recorded for model.weights={config.weights}")
    return config


def follow_weights(config: Clip) -> Clip:
    """Fill in the tag that ``pretrained`` stands for, and the activation that the weights were trained with.

    Another activation gives wrong features without any error.

    Raises:
        ConfigError: if the config sets another activation, or the activation is unknown.
        CheckpointError: if the file of weights, or the description beside it, is damaged.
    """
    config = follow_tag(config)
    trained = _quick_gelu_of_weights(config)
    if trained is None and config.quick_gelu is None:
        read_weights(config)  # an unreadable file is reported as such
        raise ConfigError(
            f"model.weights={config.weights}: the file does not say whether these weights were trained with QuickGELU; "
            "set model.quick_gelu=true (OpenAI's weights, and those whose name contains quickgelu) or false, or put "
            "their open_clip_config.json in the same folder"
        )
    if trained is not None and config.quick_gelu is not None and trained != config.quick_gelu:
        raise ConfigError(
            f"model.quick_gelu={config.quick_gelu}: but model.weights={config.weights} were trained with "
            f"{'QuickGELU' if trained else 'GELU'}; omit the setting to follow the weights"
        )
    return replace(config, quick_gelu=config.quick_gelu if trained is None else trained)


def _quick_gelu_of_weights(config: ClipEncodersConfig) -> bool | None:
    """Whether the weights were trained with QuickGELU; None if unknown."""
    if config.weights == "none":
        # Random weights of OpenAI's networks count as OpenAI's.
        own = not isinstance(config, ClipTowerConfig) or bool(library_config(config).get("quick_gelu", False))
        return own if config.quick_gelu is None else config.quick_gelu
    file = os.path.expanduser(config.weights)
    if not os.path.isfile(file):
        tag = get_pretrained_cfg(architecture(config), config.weights)
        if not tag:
            known = ", ".join(list_pretrained_tags_by_model(architecture(config)))
            raise ConfigError(
                f"model.weights={config.weights}: neither a file nor a tag of open_clip for "
                f"{architecture(config)}; tags: {known}"
            )
        return bool(tag.get("quick_gelu", False))
    if is_torchscript(Path(file)):  # only OpenAI published weights in this format
        return True
    beside = os.path.join(os.path.dirname(file), "open_clip_config.json")
    if not os.path.isfile(beside):
        return None
    try:
        with open(beside, encoding="utf-8") as stream:
            content = json.load(stream)
        return bool(content.get("model_cfg", content).get("quick_gelu", False))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"model.weights={config.weights}: {beside} in the same folder is not a description written by open_clip "
            f"({error}); replace it, or remove it and set model.quick_gelu=true or false"
        ) from error


def encoder_sizes(config: ClipEncodersConfig) -> dict[str, Any]:
    """Sizes of the architecture: those set in the config, else open_clip's."""
    library = library_config(config)
    vision, text = library["vision_cfg"], library["text_cfg"]
    layers = config.layers or vision.get("layers")
    return {
        "embed_dim": config.embed_dim or library["embed_dim"],
        "width": config.width or vision.get("width"),
        "layers": layers[0] if _is_vit(config) and isinstance(layers, list) else layers,
        "text_width": config.text_width or text["width"],
        "text_heads": config.text_heads or text["heads"],
        "text_layers": config.text_layers or text["layers"],
        "no_causal_mask": text.get("no_causal_mask", False),
        "timm_name": vision.get("timm_model_name"),
    }


def _is_vit(config: ClipEncodersConfig) -> TypeGuard[ClipViTConfig | ClipRankingConfig]:
    return isinstance(config, ClipViTConfig) or (isinstance(config, ClipRankingConfig) and config.is_vit)


def image_encoder(config: ClipEncodersConfig, sizes: Mapping[str, Any]) -> Any:
    """Build open_clip's image encoder, without weights.

    Args:
        sizes: from :func:`encoder_sizes`.

    Raises:
        ConfigError: if ``model.heads`` does not divide the width.
    """
    if isinstance(config, ClipTowerConfig):
        return TimmTower(sizes["timm_name"])
    if not _is_vit(config):
        layers, width = list(sizes["layers"]), sizes["width"]
        if not isinstance(config, ClipRankingConfig):
            # The number of heads is that of the attention pooling, which is not used.
            return ModifiedResNet(layers, sizes["embed_dim"], heads=1, width=width)
        heads = _heads(32 * width, config.heads or width // 2, "model.heads")
        return ModifiedResNet(layers, sizes["embed_dim"], heads=heads, width=width, image_size=config.input_size)
    patch = config.patch_size if isinstance(config, ClipRankingConfig) else config.names[config.name]
    return VisionTransformer(
        image_size=config.input_size,
        patch_size=patch,
        width=sizes["width"],
        layers=sizes["layers"],
        heads=_heads(sizes["width"], config.heads or sizes["width"] // 64, "model.heads"),
        mlp_ratio=4.0,
        output_dim=sizes["embed_dim"],
        act_layer=FastQuickGELU if config.quick_gelu else nn.GELU,
    )


def text_tower(config: ClipEncodersConfig) -> TextTransformer:
    """Build CLIP's text encoder with the config's sizes and activation, without weights.

    Raises:
        ConfigError: if ``model.text_heads`` does not divide the width.
    """
    sizes = encoder_sizes(config)
    return TextTransformer(
        width=sizes["text_width"],
        heads=_heads(sizes["text_width"], sizes["text_heads"], "model.text_heads"),
        layers=sizes["text_layers"],
        output_dim=sizes["embed_dim"],
        no_causal_mask=sizes["no_causal_mask"],
        act_layer=QuickGELU if config.quick_gelu else nn.GELU,
    )


def _heads(width: int, heads: int, setting: str) -> int:
    if heads < 1 or width % heads:
        raise ConfigError(f"{setting}={heads}: must divide the width {width}")
    return heads


@torch.no_grad()
def encode_texts(tower: TextTransformer, texts: Sequence[str]) -> Float[Tensor, "texts embed"]:
    """Encode texts, without gradient.

    Returns:
        The output of the text encoder for each text, not normalized.

    Raises:
        ConfigError: if a text is longer than the encoder reads.
    """
    tokenizer = SimpleTokenizer()
    for text in texts:
        if len(tokenizer.encode(text)) + 2 > DEFAULT_CONTEXT_LENGTH:
            raise ConfigError(f"prompt {text!r}: is longer than the {DEFAULT_CONTEXT_LENGTH} tokens that CLIP reads")
    return tower.eval()(tokenizer(list(texts)))
