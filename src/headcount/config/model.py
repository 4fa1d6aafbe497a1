"""The network: backbone, prediction head, input normalization, CLIP's prompts."""

import dataclasses
import math
import os
import string
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from headcount.config.fields import number


class Head(Enum):
    """What stands on the features: a classifier of blocks into bins, or a regression of their counts."""

    ebc = 1
    regression = 2


class Decoder(Enum):
    """What stands between CLIP's features and the projection: the released block, or nothing (paper)."""

    released = 1
    none = 2


class PromptDepth(Enum):
    """Prompt tokens of their own before every layer, or before the first alone."""

    deep = 1
    shallow = 2


class CountStyle(Enum):
    """How a prompt writes a count: "two" or "2"."""

    word = 1
    number = 2


class LastPrompt(Enum):
    """How the prompt of the open bin [m, inf) reads: "more than m" (released, paper) or "m or more"."""

    more_than = 1
    m_or_more = 2


@dataclass
class ModelConfig:
    """Fields that every model has."""

    names: ClassVar[dict[str, int | None]] = {}
    """The names this kind may have, with the pixels between two features; None: known once it is built."""
    name: str = MISSING
    """Name of the architecture."""
    head: Head = Head.ebc
    """``ebc`` classifies blocks into bins; ``regression`` predicts their counts, and takes ``bins=none``."""
    mean: list[float] | None = None
    """Mean of the red, green, blue input, in 0 to 1; None takes what the weights were trained with."""
    std: list[float] | None = None
    """Standard deviation of the input, in 0 to 1; None takes what the weights were trained with."""
    prior_bias: bool = True
    """Start the head at the share of training blocks in each bin; off (released code) at about equal shares."""

    def stride(self, block_size: int) -> int | None:
        """Pixels of the input between two features, for blocks of ``block_size`` px; None: known once built."""
        return self.names.get(self.name)


@dataclass
class TinyConfig(ModelConfig):
    """A small network that trains from nothing in seconds."""

    names: ClassVar[dict[str, int | None]] = {"tiny": 8}
    name: str = "tiny"
    width: int = number(32, 4)
    """Channels of the widest layers."""


@dataclass
class PretrainedConfig(ModelConfig):
    """Fields of a model whose backbone has published weights."""

    weights: str = "imagenet"
    """``imagenet`` (downloaded once), ``none``, or the path of a state dict."""


@dataclass
class ImageNetConfig(PretrainedConfig):
    """A network of torchvision, whole or as the encoder of a counting network."""

    names: ClassVar[dict[str, int | None]] = {
        **{"vgg16": 16, "vgg19": 16, "dmcount": 16, "csrnet": 8, "cannet": 8},
        **{"resnet101": 16, "densenet201": 16},
    }


@dataclass
class MobileNetV2Config(PretrainedConfig):
    """torchvision's MobileNetV2 at stride 16."""

    names: ClassVar[dict[str, int | None]] = {"mobilenet_v2": 16}
    name: str = "mobilenet_v2"
    stage: int = 320
    """Channels of the last stage kept: 320 (its stride set to 1) or 160 (likewise)."""


@dataclass
class TimmConfig(PretrainedConfig):
    """Any model of timm that offers feature maps; ``name`` is timm's."""

    weights: str = "pretrained"
    """``pretrained`` (timm's default for the name), ``none``, or the path of a state dict."""
    max_stride: int = number(16, 1)
    """The stride is lowered to this where the architecture allows it."""


@dataclass
class PromptsConfig:
    """The text that describes each bin to CLIP (arXiv:2403.09281, section III-B).

    In a phrase, ``{noun}`` is the singular for 0 and 1 and else the plural; ``{count}``, ``{low}``
    and ``{high}`` are counts.
    """

    style: CountStyle = CountStyle.word
    """Counts as words ("two") or numbers ("2")."""
    singular: str = "person"
    """Noun of what is counted."""
    plural: str = "people"
    """Its plural."""
    one: str = "There is {count} {noun}."
    """A bin of 0 ("no person") or 1."""
    many: str = "There are {count} {noun}."
    """A bin of one count above 1."""
    between: str = "There are between {low} and {high} {noun}."
    """A bin of several counts."""
    more_than: str = "There are more than {low} {noun}."
    """The open bin."""
    m_or_more: str = "There are {low} or more {noun}."
    """The open bin, if ``last`` says so."""
    last: LastPrompt = LastPrompt.more_than
    """How the prompt of the open bin [m, inf) reads."""


@dataclass
class ClipConfig(PretrainedConfig):
    """Fields of a model whose backbone is CLIP's image encoder; sizes left None are the architecture's own."""

    weights: str = "openai"
    """A tag of open_clip's table, ``none``, or a file: OpenAI's archive, open_clip's .bin or .safetensors."""
    quick_gelu: bool | None = None
    """The activation the weights were trained with; None follows them (``none`` counts as OpenAI's)."""
    prior_bias: bool = False
    """The cosine head has no bias to start at the bins' shares; of use with head=regression alone."""
    decoder: Decoder = Decoder.released
    """One residual block at the resolution of the blocks before the projection, or none."""
    decoder_channels: list[int] | None = None
    """Channels of each residual block of the decoder."""
    embed_dim: int | None = number(None, 1)
    """Dimensions of the space images and texts share."""
    width: int | None = number(None, 1)
    """Channels of the image encoder's first stage (ResNet) or of all layers (ViT)."""
    layers: list[int] | None = None
    """Blocks of each of the image encoder's four stages (ResNet), or the number of layers (ViT)."""
    text_width: int | None = number(None, 1)
    """Channels of the text encoder."""
    text_heads: int | None = number(None, 1)
    """Attention heads of the text encoder."""
    text_layers: int | None = number(None, 1)
    """Layers of the text encoder."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)


@dataclass
class ClipResNetConfig(ClipConfig):
    """CLIP's ResNet without its attention pooling."""

    names: ClassVar[dict[str, int | None]] = {"clip_rn50": 16, "clip_rn101": 16, "clip_rn50x4": 16, "clip_rn50x16": 16}
    name: str = "clip_rn50"

    def stride(self, block_size: int) -> int:
        """16, where the last stage has lost its stride, up to blocks of 16 px, and 32 above (released code)."""
        return 16 if block_size <= 16 else 32


@dataclass
class ClipViTConfig(ClipConfig):
    """CLIP's vision transformer without its pooling, tuned whole or through prompt tokens."""

    names: ClassVar[dict[str, int | None]] = {"clip_vit_b16": 16, "clip_vit_b32": 32, "clip_vit_l14": 14}
    name: str = "clip_vit_b16"
    heads: int | None = number(None, 1)
    """Attention heads of the image encoder."""
    input_size: int = number(224, 1)
    """Side of the images whose grid of positions is kept, pixels; others are interpolated from it."""
    frozen: bool = True
    """Keep the image encoder as it was pretrained: prompt tokens, decoder and head learn (version 2 of the paper)."""
    prompt_tokens: int = number(32, 0)
    """Learned tokens beside the patches (visual prompt tuning); 0 for none."""
    prompt_depth: PromptDepth = PromptDepth.deep
    """Tokens of their own before every layer, or before the first alone."""
    prompt_dropout: float = number(0.0, 0, 0.99)
    """Probability that a value of a prompt token is dropped in training."""


def errors(model: ModelConfig) -> list[str]:
    """Settings of a model that cannot be."""
    errors = []
    if model.names and model.name not in model.names:
        errors.append(f"model.name={model.name}: must be {', '.join(model.names)}; choose another with model=...")
    for name, values in (("mean", model.mean), ("std", model.std)):
        if values is not None and (
            len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0)
        ):
            errors.append(
                f"model.{name}={values}: must be three finite numbers (red, green, blue){', above 0' * (name == 'std')}"
            )
    if isinstance(model, MobileNetV2Config) and model.stage not in (160, 320):
        errors.append(f"model.stage={model.stage}: must be 160 or 320")
    if isinstance(model, PretrainedConfig):
        errors += _weights_errors(model)
    if isinstance(model, ClipConfig):
        errors += _clip_errors(model)
    return errors


def _weights_errors(model: PretrainedConfig) -> list[str]:
    """Weights that are neither a known word nor a file that is there."""
    weights = model.weights
    words = {f.name: f.default for f in dataclasses.fields(model)}["weights"]
    # A bare word may be a tag of open_clip's table, which is not loaded yet.
    may_be_tag = isinstance(model, ClipConfig) and os.path.basename(weights) == weights and "." not in weights
    if weights in (words, "none") or may_be_tag or os.path.isfile(os.path.expanduser(weights)):
        return []
    tag = "a tag of open_clip, " if isinstance(model, ClipConfig) else ""
    problem = "is a folder" if os.path.isdir(os.path.expanduser(weights)) else "no such file"
    return [f"model.weights={weights}: {problem}; allowed are {words}, {tag}none, or the path of a file of weights"]


def _clip_errors(model: ClipConfig) -> list[str]:
    """Sizes and prompts of CLIP that cannot be."""
    errors = []
    stages = 4 if isinstance(model, ClipResNetConfig) else 1
    if model.layers is not None and (len(model.layers) != stages or min(model.layers) < 1):
        errors.append(f"model.layers={model.layers}: must be {stages} whole number{'s' * (stages > 1)} above 0")
    if model.decoder_channels is not None and min(model.decoder_channels, default=0) < 1:
        errors.append(f"model.decoder_channels={model.decoder_channels}: must be one or more numbers above 0")
    if model.decoder_channels is not None and model.decoder is Decoder.none:
        errors.append("model.decoder_channels: model.decoder=none has no decoder to size")
    if model.prior_bias and model.head is Head.ebc:
        errors.append("model.prior_bias=True: the cosine head has no bias; of use with model.head=regression alone")
    if model.quick_gelu is False and model.weights == "openai":
        errors.append("model.quick_gelu=False: OpenAI's weights were trained with QuickGELU; leave it to the weights")
    if isinstance(model, ClipViTConfig):
        patch = model.names.get(model.name) or 1
        if model.input_size % patch:
            near = max(model.input_size // patch, 1) * patch
            errors.append(
                f"model.input_size={model.input_size}: must be a multiple of the patches' {patch} px; "
                f"nearest below or at: {near}"
            )
        if model.width is not None and model.heads is None and model.width % 64:
            errors.append(
                f"model.width={model.width}: set model.heads, which must divide it; a head has 64 channels by default"
            )
    allowed = {"one": {"count"}, "many": {"count"}, "between": {"low", "high"}, "more_than": {"low"}}
    allowed["m_or_more"] = {"low"}
    for key, counts in allowed.items():
        phrase = getattr(model.prompts, key)
        try:
            fields = [part[1:] for part in string.Formatter().parse(phrase) if part[1] is not None]
            # A format or a conversion ("{count:3}", "{count!r}") is for numbers, and these are words.
            found = {phrase if spec or conversion else name for name, spec, conversion in fields}
        except ValueError:
            found = {phrase}
        if not counts <= found <= counts | {"noun"}:
            needed = " and ".join(f"{{{name}}}" for name in sorted(counts))
            errors.append(f"model.prompts.{key}={phrase}: must hold {needed}, and may hold {{noun}}, nothing else")
    return errors
