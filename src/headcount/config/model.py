"""The network: backbone, prediction head, input normalization, CLIP's prompts."""

import dataclasses
import os
import string
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from headcount.config.fields import nearest_multiples, number
from headcount.config.head import EbcHeadConfig, HeadConfig, RankingHeadConfig, ZipHeadConfig

# Upper limit of the mean and standard deviation of an input; pixels are from 0 to 1.
_MAX_PIXEL = 1000


class Decoder(Enum):
    """Layers between CLIP's features and the projection: the released block, or none (paper)."""

    released = 1
    none = 2


class PromptDepth(Enum):
    """Each layer has its own prompt tokens (``deep``), or only the first layer has any (``shallow``)."""

    deep = 1
    shallow = 2


class CountStyle(Enum):
    """How a prompt writes a count: as a word ("two") or a number ("2")."""

    word = 1
    number = 2


class LastPrompt(Enum):
    """Wording of the prompt of the open bin [m, inf): "more than m" (released code, paper) or "m or more"."""

    more_than = 1
    m_or_more = 2


class ClipEncoder(Enum):
    """OpenAI's CLIP models, by the architecture of their image encoder."""

    vit_b16 = 1
    vit_b32 = 2
    vit_l14 = 3
    rn50 = 4
    rn101 = 5
    rn50x4 = 6
    rn50x16 = 7


class Freeze(Enum):
    """Parts of a network that are not trained."""

    none = 1
    batch_norm = 2
    backbone = 3
    all_but_head = 4


class Neck(Enum):
    """Layers that combine several maps of the backbone: a feature pyramid (``fpn``), or none."""

    none = 1
    fpn = 2


@dataclass
class ModelConfig:
    """Fields that every model has."""

    names: ClassVar[dict[str, int | None]] = {}
    """Allowed name -> stride: pixels of the input between two features, None if only the built
    network knows it. The one place that states strides, because crop sizes are checked before torch is imported."""

    name: str = MISSING
    """Name of the architecture."""
    head: HeadConfig = field(default_factory=EbcHeadConfig)
    """Prediction head: ``ebc`` classifies blocks into bins; ``zip`` predicts a zero-inflated Poisson distribution,
    with ``loss=zip``; ``regression`` predicts their counts and needs ``bins=none``; ``ranking`` belongs to
    ``method=ranking``."""
    mean: list[float] | None = None
    """Mean of the red, green and blue input, from 0 to 1; None uses the values the weights were trained with."""
    std: list[float] | None = None
    """Standard deviation of the input, from 0 to 1; None uses the values the weights were trained with."""
    prior_bias: bool = True
    """Initialize the head's bias so that it predicts the training blocks' distribution over bins; False (released
    code) starts at roughly equal probabilities."""
    freeze: Freeze = Freeze.none
    """Parts that are not trained, and stay in evaluation mode: ``none``; ``batch_norm``, the BatchNorm layers of the
    backbone, which then normalize by their stored statistics; ``backbone``; or ``all_but_head``, backbone and
    decoder."""

    def stride(self, block_size: int) -> int | None:
        """Pixels of the input between two features, for blocks of ``block_size`` pixels.

        None if only the built network knows it.
        """
        return self.names.get(self.name)


@dataclass
class TinyConfig(ModelConfig):
    """A small network that trains from scratch in seconds."""

    names: ClassVar[dict[str, int | None]] = {"tiny": 8}
    name: str = "tiny"
    width: int = number(32, 4, 1024)
    """Number of channels of the widest layers."""


@dataclass
class PretrainedConfig(ModelConfig):
    """Fields of a model whose backbone has published weights."""

    weights: str = "imagenet"
    """``imagenet`` (downloaded once), ``none`` (random), or the path of a state dict."""


@dataclass
class ImageNetConfig(PretrainedConfig):
    """A torchvision network, by itself or as the encoder of a counting network."""

    names: ClassVar[dict[str, int | None]] = {
        **{"vgg16": 16, "vgg19": 16, "dmcount": 16, "csrnet": 8, "cannet": 8},
        **{"resnet101": 16, "densenet201": 16},
    }


@dataclass
class MobileNetV2Config(PretrainedConfig):
    """torchvision's MobileNetV2 at stride 16."""

    names: ClassVar[dict[str, int | None]] = {"mobilenet_v2": 16}
    name: str = "mobilenet_v2"
    stage: int = number(320, 1, 320)
    """Number of channels of the last stage kept: 320 or 160; its stride is set to 1."""


@dataclass
class TimmConfig(PretrainedConfig):
    """Any timm model that provides feature maps; ``name`` is timm's."""

    weights: str = "pretrained"
    """``pretrained`` (timm's default for the name), ``none`` (random), or the path of a state dict."""
    max_stride: int = number(16, 1, 64)
    """Maximum stride, in pixels; the stride is reduced to it if the architecture allows that. With ``neck=fpn``, the
    maximum stride of the pyramid's finest map."""
    dilate: bool = True
    """Dilate the layers after a reduced stride (timm's ``output_stride``). False (released code) removes the stride of
    the last stage alone and dilates nothing; for ResNets without average pooling in their shortcuts, MobileNetV2s and
    DenseNets. Not with ``neck=fpn``."""
    neck: Neck = Neck.none
    """Layers between the backbone and the head: ``fpn``, a feature pyramid over the network's own strides
    (arXiv:1612.03144), whose finest map the head gets; or ``none``, the last map."""
    neck_channels: int = number(128, 8, 2048)
    """Number of channels of the feature pyramid."""


@dataclass
class PromptsConfig:
    """The text that describes each bin to CLIP (arXiv:2403.09281, section III-B).

    In a phrase, ``{noun}`` is the singular for 0 and 1 and the plural otherwise; ``{count}``, ``{low}``
    and ``{high}`` are counts.
    """

    style: CountStyle = CountStyle.word
    """Counts as words ("two") or numbers ("2")."""
    singular: str = "person"
    """Singular noun of the counted objects."""
    plural: str = "people"
    """Plural noun of the counted objects."""
    one: str = "There is {count} {noun}."
    """Phrase for a bin of 0 ("no person") or 1; must contain ``{count}``."""
    many: str = "There are {count} {noun}."
    """Phrase for a bin of one count above 1; must contain ``{count}``."""
    between: str = "There are between {low} and {high} {noun}."
    """Phrase for a bin of several counts; must contain ``{low}`` and ``{high}``."""
    more_than: str = "There are more than {low} {noun}."
    """Phrase for the open bin if ``last`` is ``more_than``; must contain ``{low}``."""
    m_or_more: str = "There are {low} or more {noun}."
    """Phrase for the open bin if ``last`` is ``m_or_more``; must contain ``{low}``."""
    last: LastPrompt = LastPrompt.more_than
    """Wording of the open bin [m, inf): ``more_than`` (released code, paper) or ``m_or_more``."""


@dataclass
class ClipEncodersConfig(PretrainedConfig):
    """Fields of a model with CLIP's image and text encoders; a size of None is the architecture's own."""

    weights: str = "openai"
    """A pretrained tag of open_clip, ``none`` (random), or a file: OpenAI's archive, open_clip's .bin or
    .safetensors."""
    quick_gelu: bool | None = None
    """Use QuickGELU; None uses the activation the weights were trained with (``none`` counts as OpenAI's)."""
    embed_dim: int | None = number(None, 1, 4096)
    """Dimension of the embedding that images and texts share."""
    width: int | None = number(None, 1, 2048)
    """Number of channels of the image encoder's first stage (ResNet) or of all its layers (ViT)."""
    layers: list[int] | None = number(None, 1, 100)
    """Number of blocks in each of the image encoder's four stages (ResNet), or its number of layers (ViT)."""
    text_width: int | None = number(None, 1, 4096)
    """Number of channels of the text encoder."""
    text_heads: int | None = number(None, 1, 256)
    """Number of attention heads of the text encoder."""
    text_layers: int | None = number(None, 1, 100)
    """Number of layers of the text encoder."""

    @property
    def architecture(self) -> str:
        """Name of the pair of encoders: ours for those of OpenAI's CLIP, otherwise open_clip's."""
        return self.name


@dataclass
class ClipConfig(ClipEncodersConfig):
    """Fields of a model whose backbone is CLIP's image encoder, and which predicts blocks."""

    prior_bias: bool = False
    """Initialize the head's bias from the training blocks; only with ``head=regression``, because the cosine head has
    no bias."""
    decoder: Decoder = Decoder.released
    """One residual block at the resolution of the blocks before the projection (``released``), or ``none`` (paper)."""
    decoder_channels: list[int] | None = number(None, 1, 4096)
    """Number of channels of each residual block of the decoder; None uses one block as wide as the features."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    """The text that describes each bin."""


@dataclass
class ClipResNetConfig(ClipConfig):
    """CLIP's ResNet without its attention pooling."""

    names: ClassVar[dict[str, int | None]] = {"clip_rn50": 16, "clip_rn101": 16, "clip_rn50x4": 16, "clip_rn50x16": 16}
    name: str = "clip_rn50"

    def stride(self, block_size: int) -> int:
        """16, with stride 1 in the last stage, for blocks of up to 16 px; 32 for larger blocks (released code)."""
        return 16 if block_size <= 16 else 32


@dataclass
class ClipViTConfig(ClipConfig):
    """CLIP's vision transformer without its pooling, fine-tuned or with learned prompt tokens."""

    names: ClassVar[dict[str, int | None]] = {"clip_vit_b16": 16, "clip_vit_b32": 32, "clip_vit_l14": 14}
    name: str = "clip_vit_b16"
    heads: int | None = number(None, 1, 256)
    """Number of attention heads of the image encoder."""
    input_size: int = number(224, 1, 2048)
    """Side of the images whose position embeddings are stored, in pixels; interpolated for other sizes."""
    frozen: bool = True
    """Train only prompt tokens, decoder and head, not the image encoder (version 2 of the paper)."""
    prompt_tokens: int = number(32, 0, 1000)
    """Number of learned tokens per layer beside the patches (visual prompt tuning); 0 uses none."""
    prompt_depth: PromptDepth = PromptDepth.deep
    """Each layer has its own tokens (``deep``), or only the first layer has any (``shallow``)."""
    prompt_dropout: float = number(0.0, 0, 0.99)
    """Dropout probability of the prompt tokens in training."""


@dataclass
class ClipTowerConfig(ClipConfig):
    """Any image encoder of open_clip that is a timm network with feature maps; ``name`` is open_clip's."""

    weights: str = "pretrained"
    """``pretrained`` (the first tag that open_clip lists for the name), another pretrained tag of open_clip, ``none``
    (random), or a file: open_clip's .bin or .safetensors."""
    decoder: Decoder = Decoder.none
    """One residual block at the resolution of the blocks before the projection (``released``), or ``none``."""


@dataclass
class ClipRankingConfig(ClipEncodersConfig):
    """CLIP's image encoder with its pooling, for ``method=ranking``: one feature for a whole image."""

    name: str = "clip_ranking"
    encoder: ClipEncoder = ClipEncoder.vit_b16
    """Architecture: a ViT (``vit_b16``, ``vit_b32``, ``vit_l14``) or a ResNet (``rn50``, ``rn101``, ``rn50x4``,
    ``rn50x16``)."""
    head: HeadConfig = field(default_factory=RankingHeadConfig)
    """Prediction head: ``ranking``, no other."""
    prior_bias: bool = False
    """False: this model's prediction head has no bias."""
    heads: int | None = number(None, 1, 256)
    """Number of attention heads of a ViT, or of the pooling of a ResNet."""
    input_size: int = number(224, 32, 2048)
    """Side of the square to which crops and patches are resized, in pixels."""
    adapter: int | None = number(None, 1, 65536)
    """Number of hidden units of an adapter after the image encoder (arXiv:2110.04544), which is trained instead of it;
    None trains the image encoder."""
    adapter_ratio: float = number(0.2, 0.001, 1)
    """Share of the adapter's output in the feature of an image; the rest is the image encoder's own."""

    @property
    def is_vit(self) -> bool:
        """Whether the image encoder is a vision transformer, not a ResNet."""
        return self.encoder.name.startswith("vit")

    @property
    def architecture(self) -> str:
        """See :class:`ClipEncodersConfig`."""
        return f"clip_{self.encoder.name}"

    @property
    def patch_size(self) -> int:
        """Divides ``input_size``: side of a ViT's patch, or stride of a ResNet, in pixels."""
        return {ClipEncoder.vit_b16: 16, ClipEncoder.vit_l14: 14}.get(self.encoder, 32)


MODELS: dict[str, type[ModelConfig]] = {
    "tiny": TinyConfig,
    "mobilenet_v2": MobileNetV2Config,
    "imagenet": ImageNetConfig,
    "timm": TimmConfig,
    "clip_resnet": ClipResNetConfig,
    "clip_vit": ClipViTConfig,
    "clip_tower": ClipTowerConfig,
    "clip_ranking": ClipRankingConfig,
}
"""Kind -> schema."""
RELEASED_NAMES: dict[str, str] = {
    "clip_resnet50": "clip_rn50",
    "clip_resnet101": "clip_rn101",
    "clip_resnet50x4": "clip_rn50x4",
    "clip_resnet50x16": "clip_rn50x16",
    "clip_vit_b_16": "clip_vit_b16",
    "clip_vit_b_32": "clip_vit_b32",
    "clip_vit_l_14": "clip_vit_l14",
    "vgg19_ae": "dmcount",
    "mobilenetv2_100": "mobilenet_v2",
}
"""Names of networks in the released code -> ours, where they differ."""


def errors(model: ModelConfig) -> list[str]:
    """Find invalid settings of the model; one message each."""
    found = []
    if model.names and model.name not in model.names:
        found.append(f"model.name={model.name}: must be {', '.join(model.names)}; choose another with model=...")
    for name, values in (("mean", model.mean), ("std", model.std)):
        positive = name == "std"
        if values is not None and (
            len(values) != 3 or not all(abs(v) <= _MAX_PIXEL for v in values) or (positive and min(values) <= 0)
        ):
            lowest = "above 0, at most" if positive else f"from -{_MAX_PIXEL} to"
            found.append(
                f"model.{name}={values}: must be three finite numbers (red, green, blue), {lowest} {_MAX_PIXEL}"
            )
    if isinstance(model, TimmConfig) and model.neck is Neck.fpn and not model.dilate:
        found.append("model.dilate=False: a feature pyramid keeps all strides of the network; leave it out")
    if isinstance(model, TimmConfig) and model.neck is Neck.none and model.neck_channels != TimmConfig.neck_channels:
        found.append(
            f"model.neck_channels={model.neck_channels}: has no effect without a feature pyramid; add model.neck=fpn"
        )
    if isinstance(model, MobileNetV2Config) and model.stage not in (160, 320):
        found.append(f"model.stage={model.stage}: must be 160 or 320")
    if isinstance(model, PretrainedConfig):
        found += _weights_errors(model)
    if isinstance(model, ClipConfig):
        found += _clip_errors(model)
    return found


def _weights_errors(model: PretrainedConfig) -> list[str]:
    """Weights that are neither a known word nor an existing file."""
    weights = model.weights
    default = {f.name: f.default for f in dataclasses.fields(model)}["weights"]
    # A bare word may be a tag of open_clip's table, which is not loaded yet.
    may_be_tag = isinstance(model, ClipEncodersConfig) and os.path.basename(weights) == weights and "." not in weights
    if weights in (default, "none") or may_be_tag or os.path.isfile(os.path.expanduser(weights)):
        return []
    tag = "a tag of open_clip, " if isinstance(model, ClipEncodersConfig) else ""
    problem = "is a folder" if os.path.isdir(os.path.expanduser(weights)) else "no such file"
    return [f"model.weights={weights}: {problem}; allowed are {default}, {tag}none, or the path of a file of weights"]


def encoder_errors(model: ClipEncodersConfig, *, stages: int) -> list[str]:
    """Sizes of CLIP's image encoder that do not fit, and an activation that its weights exclude.

    Args:
        stages: number of ``model.layers``.
    """
    found = []
    if model.layers is not None and (len(model.layers) != stages or min(model.layers) < 1):
        numbers = "number" if stages == 1 else "numbers"
        found.append(f"model.layers={model.layers}: must be {stages} whole {numbers} above 0")
    if model.quick_gelu is False and model.weights == "openai":
        found.append(
            "model.quick_gelu=False: OpenAI's weights were trained with QuickGELU; leave it at null, which follows the "
            "weights"
        )
    return found


def _clip_errors(model: ClipConfig) -> list[str]:
    """Sizes of CLIP that do not fit, and settings that its weights or its head exclude."""
    found = []
    if isinstance(model, ClipTowerConfig):
        found += [
            f"model.{name}={getattr(model, name)}: {model.name} has sizes of its own; leave it out"
            for name in ("width", "layers")
            if getattr(model, name) is not None
        ]
    else:
        found += encoder_errors(model, stages=4 if isinstance(model, ClipResNetConfig) else 1)
    if model.decoder_channels is not None and min(model.decoder_channels, default=0) < 1:
        found.append(f"model.decoder_channels={model.decoder_channels}: must be one or more numbers above 0")
    if model.decoder_channels is not None and model.decoder is Decoder.none:
        found.append("model.decoder_channels: model.decoder=none has no decoder to size")
    if model.prior_bias and isinstance(model.head, (EbcHeadConfig, ZipHeadConfig)):
        found.append("model.prior_bias=True: the cosine head has no bias; only for model.head=regression")
    if isinstance(model, ClipViTConfig):
        found += _vit_errors(model)
    return found + _prompt_errors(model.prompts)


def _vit_errors(model: ClipViTConfig) -> list[str]:
    found = []
    patch = model.names.get(model.name) or 1
    if model.input_size % patch:
        found.append(
            f"model.input_size={model.input_size}: must be a multiple of the patches' {patch} px; "
            f"{nearest_multiples(model.input_size, patch)}"
        )
    if model.width is not None and model.heads is None and model.width % 64:
        found.append(
            f"model.width={model.width}: set model.heads, which must divide it; a head has 64 channels by default"
        )
    return found


def _prompt_errors(prompts: PromptsConfig) -> list[str]:
    """Phrases without the counts they need, or with other fields than these."""
    needed = {
        "one": {"count"},
        "many": {"count"},
        "between": {"low", "high"},
        "more_than": {"low"},
        "m_or_more": {"low"},
    }
    found = []
    for key, counts in needed.items():
        phrase = getattr(prompts, key)
        names = phrase_fields(phrase)
        if names is None or not counts <= names <= counts | {"noun"}:
            words = " and ".join(f"{{{name}}}" for name in sorted(counts))
            found.append(f"model.prompts.{key}={phrase}: must hold {words}, and may hold {{noun}}, nothing else")
    return found


def phrase_fields(phrase: str) -> set[str] | None:
    """Names of the fields in braces; None if the phrase cannot be filled in."""
    names = set()
    try:
        for _, name, spec, conversion in string.Formatter().parse(phrase):
            # A format or a conversion ("{count:3}", "{count!r}") is for numbers, and these are words.
            if spec or conversion:
                return None
            if name is not None:
                names.add(name)
    except ValueError:
        return None
    return names
