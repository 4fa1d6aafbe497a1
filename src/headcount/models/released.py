"""Converts checkpoints of the paper's released code to counters.

Maps the name of every parameter, encodes the prompts with the text encoder in the checkpoint, and rejects a checkpoint
with unknown or missing parameters. It does not read files; ``scripts/convert_checkpoint.py`` does.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    MODELS,
    ClipConfig,
    ConfigError,
    EbcHeadConfig,
    MobileNetV2Config,
    ModelConfig,
    PretrainedConfig,
    RegressionHeadConfig,
    Strategy,
    integer_bins,
)
from headcount.errors import CheckpointError
from headcount.models import backbones
from headcount.models.build import build_model, follow_weights
from headcount.models.counter import Counter
from headcount.models.prompts import write_prompts
from headcount.types import BlockGrid

# Names of networks in the released code -> ours, where they differ.
_BACKBONES = {
    "clip_resnet50": "clip_rn50",
    "clip_resnet101": "clip_rn101",
    "clip_resnet50x4": "clip_rn50x4",
    "clip_resnet50x16": "clip_rn50x16",
    "clip_vit_b_16": "clip_vit_b16",
    "clip_vit_b_32": "clip_vit_b32",
    "clip_vit_l_14": "clip_vit_l14",
    "vgg19_ae": "dmcount",
}

# Name of a layer's prompt tokens.
_PROMPT = re.compile(r"vpt_[0-9]+")

# Prefix of a released name -> ours. The first match counts.
_CLIP = {
    "image_encoder.": "backbone.tower.",
    "image_decoder.": "decoder.",
    "projection.": "head.projection.",
    "logit_scale": "head.logit_scale",
}
_OTHERS = {
    "backbone.features.": "backbone.features.",
    "backbone.context.": "backbone.context.",
    "backbone.decoder.": "decoder.",
    "backbone.reg_layer.": "decoder.",
    "backbone.encoder.": "backbone.features.",
    "classifier.": "head.to_logits.",
    "regressor.0.": "head.to_counts.",
}


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
            normalized with those of ImageNet, as in the released code.
        bins: edges and representative counts, which the released files do not contain; None for a model that
            regresses counts.
        block_size: side of a block, in pixels; required without ``bins``.
        options: settings of the model, if ``model`` is a name.

    Raises:
        ConfigError: if the model or a setting does not exist, or if parameters are unknown, missing or of another
            shape with these settings; names them.
        CheckpointError: if ``state_dict`` is not a checkpoint of the released code at all.
    """
    if bins is not None:
        grid = bins.grid
    elif block_size is not None:
        grid = BlockGrid(block_size)
    else:
        raise ConfigError("block_size is missing: the side of a block in pixels, required for a model without bins")
    config = released_config(model if isinstance(model, ModelConfig) else _config(model, bins, options))
    state = _bare(state_dict)
    counter = build_model(config, grid, bins, pretrained=False)
    own = counter.state_dict()
    given = {"mean": own["mean"], "std": own["std"], **_our_names(state, config, bins, own)}
    # The names in the user's file, for error messages.
    theirs = {_renamed(name, _CLIP if isinstance(config, ClipConfig) else _OTHERS): name for name in state}
    theirs["backbone.prompts"] = ", ".join(filter(_PROMPT.fullmatch, state))
    left_over = [theirs.get(name, name) for name in given if name not in own]
    missing = [name for name in own if name not in given]
    reshaped = [name for name in own if name in given and given[name].shape != own[name].shape]
    if left_over or missing or reshaped:
        problems = [f"{name} is unknown" for name in left_over] + [f"{name} is missing" for name in missing]
        problems += [f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}" for name in reshaped]
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ConfigError(
            f"not a checkpoint of {config.name} with these settings: {shown} "
            "(sizes, decoder, prompt tokens and input size are settings of the model)"
        )
    counter.load_state_dict({name: value.to(own[name].dtype) for name, value in given.items()})
    return counter.eval()


def _our_names(
    state: Mapping[str, Tensor], config: ModelConfig, bins: CountBins | None, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The released ``state`` by our names; ``own`` is the state dict of the counter."""
    if isinstance(config, ClipConfig):
        return _clip_names(state, config, bins)
    if isinstance(config, MobileNetV2Config):
        return _mobilenet_names(state, own)
    if config.name == "densenet201":  # the released code uses timm, which flattens the names
        state = {name.replace("encoder.features_", "encoder."): value for name, value in state.items()}
    return {_renamed(name, _OTHERS): value for name, value in state.items()}


def released_config(config: ModelConfig) -> ModelConfig:
    """The config with the mean and standard deviation of the released code, and ``weights=none``."""
    changes: dict[str, Any] = {
        "mean": config.mean or list(backbones.IMAGENET_MEAN),
        "std": config.std or list(backbones.IMAGENET_STD),
    }
    if isinstance(config, PretrainedConfig):
        changes["weights"] = "none"
    return follow_weights(dataclasses.replace(config, **changes))


def _config(name: str, bins: CountBins | None, options: Mapping[str, Any]) -> ModelConfig:
    name = _BACKBONES.get(name, name)
    kinds = [kind for kind in MODELS.values() if name in kind.names]
    if not kinds:
        known = ", ".join(n for kind in MODELS.values() for n in kind.names)
        raise ConfigError(f"model={name}: no such model; allowed: {known}")
    settings = {"head": RegressionHeadConfig() if bins is None else EbcHeadConfig(), **options, "name": name}
    try:
        config: ModelConfig = kinds[0](**settings)
    except TypeError as error:
        known = ", ".join(f.name for f in dataclasses.fields(kinds[0]))
        raise ConfigError(f"model={name}: {error}; allowed settings: {known}") from error
    return config


def _bare(content: Any) -> dict[str, Tensor]:
    """Extract the state dict from a training checkpoint, and remove the prefix of distributed runs from its names."""
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(
            "not a checkpoint of the released code: neither a state dict of tensors nor a training checkpoint that "
            "contains one as 'model_state_dict'"
        )
    return {name.removeprefix("module."): value for name, value in state.items()}


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for before, after in rules.items():
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def _clip_names(state: Mapping[str, Tensor], config: ClipConfig, bins: CountBins | None) -> dict[str, Tensor]:
    from headcount.models import clip

    texts = {k.removeprefix("text_encoder."): v for k, v in state.items() if k.startswith("text_encoder.")}
    prompts = sorted(filter(_PROMPT.fullmatch, state), key=lambda k: int(k.removeprefix("vpt_")))
    rest = {k: v for k, v in state.items() if not k.startswith("text_encoder.") and k not in prompts}
    ours = {_renamed(name, _CLIP): value for name, value in rest.items()}
    for name in prompts:
        if state[name].shape != state[prompts[0]].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(state[prompts[0]].shape)} as {prompts[0]}"
            raise ConfigError(f"not a checkpoint of {config.name}: {name} is {shapes}")
    if prompts:
        ours["backbone.prompts"] = torch.stack([state[name].float() for name in prompts])
    if bins is not None:
        tower = clip.text_tower(config)
        own = tower.state_dict()
        wrong = [
            k for k in own.keys() | texts.keys() if k not in own or k not in texts or texts[k].shape != own[k].shape
        ]
        if wrong:
            raise ConfigError(
                f"text_encoder.{min(wrong)} and {len(wrong) - 1} more do not fit {config.name} with these "
                "settings (model.embed_dim, text_width, text_heads, text_layers are settings of the model)"
            )
        tower.load_state_dict(texts)
        ours["head.text_features"] = clip.encode_texts(tower, write_prompts(bins.edges, config.prompts))
    return ours


def _mobilenet_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map names by order: the released code uses timm, whose layers have torchvision's order but other names."""
    theirs = [name for name in state if name.startswith("backbone.encoder.")]
    ours = [name for name in own if name.startswith("backbone.features.")]
    if len(theirs) != len(ours):
        raise ConfigError(f"not a checkpoint of mobilenet_v2: {len(theirs)} tensors in the encoder, not {len(ours)}")
    rest = {_renamed(name, _OTHERS): value for name, value in state.items() if name not in theirs}
    return {**{after: state[before] for before, after in zip(theirs, ours, strict=True)}, **rest}


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
