"""Converts checkpoints of the paper's released code to counters.

Maps the name of every parameter, encodes the prompts with the text encoder in the checkpoint, and rejects a checkpoint
with unknown or missing parameters. It does not read files; ``scripts/convert_checkpoint.py`` does.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    MODELS,
    ClipConfig,
    ConfigError,
    EbcHeadConfig,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    PretrainedConfig,
    RegressionHeadConfig,
    Strategy,
    TimmConfig,
    TinyConfig,
    integer_bins,
)
from headcount.config.model import RELEASED_NAMES
from headcount.errors import CheckpointError
from headcount.models import backbones
from headcount.models.build import build_model, follow_weights
from headcount.models.counter import Counter
from headcount.models.prompts import write_prompts
from headcount.models.timm_networks import LAST_STRIDES, timm_backbone
from headcount.types import BlockGrid

# Our torchvision networks that are timm's in the released code -> their names there.
_FROM_TIMM = {"resnet101": "resnet101", "densenet201": "densenet201", "mobilenet_v2": "mobilenetv2_100"}
# Released code: for blocks of up to this many pixels, timm's networks lose the stride of their last stage; for larger
# ones they keep it.
_LARGEST_BLOCK_WITHOUT_LAST_STRIDE = 16
# No network of timm has a larger stride, so that none is reduced.
_ANY_STRIDE = 64

# Name of a layer's prompt tokens.
_PROMPT = re.compile(r"vpt_[0-9]+")

# Prefix of our name -> the released one. The first match counts.
_CLIP = {
    "backbone.tower.": "image_encoder.",
    "decoder.": "image_decoder.",
    "head.projection.": "projection.",
    "head.logit_scale": "logit_scale",
}
_HEADS = {"head.to_logits.": "classifier.", "head.to_counts.": "regressor.0."}
# Ours that the files do not contain: constants of the normalization, and what is computed from other tensors.
_NOT_IN_FILES = ("mean", "std", "backbone.prompts", "head.text_features")


def convert_released(
    state_dict: Any,
    model: str | ModelConfig,
    *,
    bins: CountBins | None = None,
    block_size: int | None = None,
    **options: Any,
) -> Counter:
    """Convert a checkpoint of the released code to a counter in evaluation mode.

    Args:
        state_dict: a state dict, or a training checkpoint that contains one.
        model: a model config, or the name of a model (ours or the released code's: ``clip_rn50`` or
            ``clip_resnet50``) whose settings are ``options``. Unless the config sets ``mean`` and ``std``, pixels are
            normalized with those of ImageNet, as in the released code; see :func:`released_config`.
        bins: edges and representative counts, which the released files do not contain; None for a model that
            regresses counts.
        block_size: side of a block, in pixels; required without ``bins``.
        options: settings of the model, if ``model`` is a name.

    Raises:
        ConfigError: if the model or a setting does not exist, or if parameters are unknown, missing or of another
            shape with these settings; names them.
        CheckpointError: if ``state_dict`` is not a checkpoint of the released code at all, or holds a tensor that
            cannot be a weight, such as NaN.
    """
    if bins is not None:
        grid = bins.grid
    elif block_size is not None:
        grid = BlockGrid(block_size)
    else:
        raise ConfigError("block_size is missing: the side of a block in pixels, required for a model without bins")
    config = model if isinstance(model, ModelConfig) else _config(model, bins, options)
    config = released_config(config, block_size=grid.block_size)
    if isinstance(config, TinyConfig) or (isinstance(config, ClipConfig) and bins is None):
        raise ConfigError(f"model={config.name}: the released code has no such model{'' if bins else ' without bins'}")
    state = _bare(state_dict)
    counter = build_model(config, grid, bins, pretrained=False)
    own = counter.state_dict()
    computed = {"mean": own["mean"], "std": own["std"]}
    if isinstance(config, ClipConfig):
        computed |= _clip_tensors(state, config, bins, own)
        state = {k: v for k, v in state.items() if not k.startswith("text_encoder.") and not _PROMPT.fullmatch(k)}
    theirs = {name: released for name, released in _released_names(config, own).items() if name not in _NOT_IN_FILES}
    _refuse_other_tensors(state, {released: own[name] for name, released in theirs.items()}, config)
    given = computed | {name: state[released] for name, released in theirs.items()}
    counter.load_state_dict(given)
    return counter.eval()


def released_config(config: ModelConfig, *, block_size: int) -> ModelConfig:
    """The config of the network that the released code builds, for blocks of ``block_size`` pixels.

    It has the mean and standard deviation of the released code, ``weights=none``, and the released strides of timm's
    networks, which depend on the blocks and are never reduced by dilation.
    """
    ours = isinstance(config, ImageNetConfig) or (isinstance(config, MobileNetV2Config) and config.stage == 320)
    if ours and config.name in _FROM_TIMM and block_size > _LARGEST_BLOCK_WITHOUT_LAST_STRIDE:
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(PretrainedConfig)}
        config = TimmConfig(**{**shared, "name": _FROM_TIMM[config.name]})
    changes: dict[str, Any] = {
        "mean": config.mean or list(backbones.IMAGENET_MEAN),
        "std": config.std or list(backbones.IMAGENET_STD),
    }
    if isinstance(config, PretrainedConfig):
        changes["weights"] = "none"
    if isinstance(config, TimmConfig):
        reduced = block_size <= _LARGEST_BLOCK_WITHOUT_LAST_STRIDE
        reduced = reduced and any(part in config.name for part in LAST_STRIDES)
        changes |= {"dilate": False, "max_stride": 16 if reduced else _ANY_STRIDE}
    return follow_weights(dataclasses.replace(config, **changes))


def _config(name: str, bins: CountBins | None, options: Mapping[str, Any]) -> ModelConfig:
    name = RELEASED_NAMES.get(name, name)
    kinds = [kind for kind in MODELS.values() if name in kind.names]
    if not kinds:
        known = ", ".join(n for kind in MODELS.values() for n in kind.names)
        raise ConfigError(
            f"model={name}: no such model; allowed: {known}; other networks of timm are model=timm model.name=NAME"
        )
    settings = {"head": RegressionHeadConfig() if bins is None else EbcHeadConfig(), **options, "name": name}
    try:
        config: ModelConfig = kinds[0](**settings)
    except TypeError as error:
        known = ", ".join(f.name for f in dataclasses.fields(kinds[0]))
        raise ConfigError(f"model={name}: {error}; allowed settings: {known}") from error
    return config


def _bare(content: Any) -> dict[str, Tensor]:
    """Extract the state dict from a training checkpoint, and remove the prefix of distributed runs from its names.

    Raises:
        CheckpointError: if there is none, or it holds a tensor that cannot be a weight; names it.
    """
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            "not a checkpoint of the released code: neither a state dict of tensors nor a training checkpoint that "
            "contains one as 'model_state_dict'"
        )
    bare: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{name} is not a dense tensor ({value.layout}, {value.dtype}); save it as one")
        # A number may be too large for the network's float32.
        if value.is_complex() or not bool((value.float() if value.is_floating_point() else value).isfinite().all()):
            what = "complex numbers" if value.is_complex() else "NaN or infinity"
            raise CheckpointError(f"{name} holds {what}: the file is damaged, or its training diverged")
        if name.removeprefix("module.") in bare:
            raise CheckpointError(f"{name.removeprefix('module.')} is there twice, once as module.*")
        bare[name.removeprefix("module.")] = value
    return bare


def _refuse_other_tensors(state: Mapping[str, Tensor], needed: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Compare the names, shapes and types of a file's tensors with those of the network.

    Raises:
        ConfigError: names those of the file that differ.
    """
    missing = [name for name in needed if name not in state]
    problems = [f"{name} is unknown" for name in state if name not in needed] + [
        f"{name} is missing" for name in missing
    ]
    for name in needed.keys() & state.keys():
        if state[name].shape != needed[name].shape:
            problems.append(f"{name} is {tuple(state[name].shape)}, not {tuple(needed[name].shape)}")
        elif state[name].is_floating_point() != needed[name].is_floating_point():
            problems.append(f"{name} is {state[name].dtype}, not {needed[name].dtype}")
    if not problems:
        return
    hint = "sizes, decoder, prompt tokens and input size are settings of the model"
    decoders = ("backbone.reg_layer.", "backbone.decoder.")
    if any(name.startswith(decoders) for name in missing) and not any(name.startswith(decoders) for name in state):
        hint = (
            f"the file holds an encoder without the decoder of {config.name}; vgg16 is the only plain VGG encoder that "
            "headcount offers"
        )
    shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
    raise ConfigError(f"not a checkpoint of {config.name} with these settings: {shown} ({hint})")


def _decoder(config: ModelConfig) -> str:
    """The released prefix of the layers between encoder and head."""
    return "backbone.reg_layer." if config.name in ("dmcount", "vgg19") else "backbone.decoder."


def _released_names(config: ModelConfig, own: Iterable[str]) -> dict[str, str]:
    """Our names of parameters -> the released ones."""
    if isinstance(config, ClipConfig):
        return {name: _renamed(name, _CLIP) for name in own}
    rules = {"decoder.": _decoder(config), **_HEADS}
    if isinstance(config, TimmConfig) or config.name == "resnet101":
        rules["backbone.features."] = "backbone.encoder."
    elif config.name == "densenet201":  # timm flattens the first level of names
        rules["backbone.features."] = "backbone.encoder.features_"
    names = {name: _renamed(name, rules) for name in own}
    if isinstance(config, MobileNetV2Config):
        # timm's layers have torchvision's order but other names.
        ours = [name for name in own if name.startswith("backbone.features.")]
        names |= dict(zip(ours, _mobilenet_names(), strict=False))
    return names


def _mobilenet_names() -> list[str]:
    """The released names of MobileNetV2's encoder, in the order of its layers."""
    with torch.device("meta"):
        encoder = timm_backbone("mobilenetv2_100", max_stride=_ANY_STRIDE, pretrained=False).features
    return [f"backbone.encoder.{name}" for name in encoder.state_dict()]


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for before, after in rules.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _clip_tensors(
    state: Mapping[str, Tensor], config: ClipConfig, bins: CountBins | None, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our tensors that are computed from several of the file: prompt tokens and text features.

    Raises:
        ConfigError: if tensors they need are missing, unknown or of another shape; names them.
    """
    from headcount.models import clip

    computed = {}
    tokens = own.get("backbone.prompts")
    needed = {} if tokens is None else {f"vpt_{layer}": value for layer, value in enumerate(tokens)}
    given = {name: value for name, value in state.items() if _PROMPT.fullmatch(name)}
    if needed or given:
        _refuse_other_tensors(given, needed, config)
    if needed:
        computed["backbone.prompts"] = torch.stack([given[name].float() for name in needed])
    if bins is not None:
        texts = {name: value for name, value in state.items() if name.startswith("text_encoder.")}
        tower = clip.text_tower(config)
        _refuse_other_tensors(texts, {f"text_encoder.{k}": v for k, v in tower.state_dict().items()}, config)
        tower.load_state_dict({name.removeprefix("text_encoder."): value for name, value in texts.items()})
        computed["head.text_features"] = clip.encode_texts(tower, write_prompts(bins.edges, config.prompts))
    return computed


# Representative counts published by the paper's authors, by dataset, block size in pixels, m and strategy: means over
# overlapping windows of the training images. Bins of a single count are represented by it; the others are listed here.
_PUBLISHED: dict[tuple[str, int, int, str], tuple[float, ...]] = {
    ("sha", 8, 2, "fine"): (2.24479,),
    ("shb", 8, 2, "fine"): (2.15171,),
    ("nwpu", 8, 2, "fine"): (2.10737,),
    ("qnrf", 8, 2, "fine"): (2.09296,),
    ("jhu", 8, 2, "fine"): (2.18589,),
    ("sha", 8, 4, "fine"): (4.29992,),
    ("shb", 8, 4, "fine"): (4.41009,),
    ("nwpu", 8, 4, "fine"): (4.21931,),
    ("qnrf", 8, 4, "fine"): (4.21937,),
    ("jhu", 8, 4, "fine"): (4.24058,),
    ("qnrf", 8, 11, "fine"): (11.0,),
    ("qnrf", 16, 8, "fine"): (9.23349,),
    ("qnrf", 16, 8, "dynamic"): (4.29278, 6.31441, 9.23349),
    ("qnrf", 16, 8, "coarse"): (1.14978, 3.27641, 5.30609, 8.11466),
    ("qnrf", 32, 19, "fine"): (23.01897,),
    ("qnrf", 32, 19, "dynamic"): (10.42903, 12.4332, 14.43341, 16.43521, 21.93548),
    ("qnrf", 32, 19, "coarse"): (
        *(1.23498, 3.36108, 5.40298, 7.41406, 9.42356, 11.43094, 13.43244, 15.43697, 17.43759, 23.01897),
    ),
}


def published_counts(dataset: str, *, block_size: int, m: int, strategy: str) -> list[float] | None:
    """Look up the representative counts that the paper's authors published.

    Args:
        dataset: name of the dataset.
        block_size: side of a block, in pixels.
        m: maximum count of a block.
        strategy: name of a :class:`Strategy`.

    Returns:
        One count per bin; None if none were published for these bins.
    """
    last = _PUBLISHED.get((dataset, block_size, m, strategy))
    if last is None:
        return None
    edges = integer_bins(Strategy[strategy], m)
    return [*(first for first, _ in edges[: -len(last)]), *last]
