"""Checkpoints of the paper's released code as counters of ours.

Maps every parameter's name, encodes the prompts with the text encoder that the file brings, and
refuses what it cannot place. It reads no file; ``scripts/convert_checkpoint.py`` does.
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
from headcount.models import backbones
from headcount.models.build import build_model, follow_weights
from headcount.models.counter import Counter
from headcount.models.prompts import write_prompts
from headcount.types import BlockGrid

# What the released code calls the networks, where ours has another name.
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

# The prompt tokens of a layer.
_PROMPT = re.compile(r"vpt_[0-9]+")

# Beginning of a released name -> of ours. The first that fits is taken.
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
    """The counter of a checkpoint of the released code, in evaluation mode.

    Args:
        state_dict: a bare state dict, or the training checkpoint that holds one.
        model: a config, or the name of one (ours or the released code's, ``clip_rn50`` or
            ``clip_resnet50``) with its settings as ``options``. Pixels are normalized as the released
            code does it, by ImageNet's mean and standard deviation, unless the config says otherwise.
        bins: edges and representative counts, which the released files do not hold; None for a model
            that regresses counts.
        block_size: side of a block, pixels; needed without ``bins``.

    Raises:
        ConfigError: if the model has no such name or setting, or a parameter is left over, missing, or
            of another shape; names it.
    """
    if bins is not None:
        grid = bins.grid
    elif block_size is not None:
        grid = BlockGrid(block_size)
    else:
        raise ConfigError("block_size is not given: the side of a block in pixels, needed for a model without bins")
    config = released_config(model if isinstance(model, ModelConfig) else _config(model, bins, options))
    state = _bare(state_dict)
    counter = build_model(config, grid, bins, pretrained=False)
    own = counter.state_dict()
    if isinstance(config, ClipConfig):
        ours = _clip_names(state, config, bins)
    elif isinstance(config, MobileNetV2Config):
        ours = _mobilenet_names(state, own)
    elif config.name == "densenet201":  # timm, which the released code builds on, flattens the names
        ours = {_renamed(name.replace("encoder.features_", "encoder."), _OTHERS): v for name, v in state.items()}
    else:
        ours = {_renamed(name, _OTHERS): value for name, value in state.items()}
    # The names people find in their file.
    theirs = {_renamed(name, _CLIP if isinstance(config, ClipConfig) else _OTHERS): name for name in state}
    theirs["backbone.prompts"] = ", ".join(filter(_PROMPT.fullmatch, state))
    given = {"mean": own["mean"], "std": own["std"], **ours}
    left_over = [theirs.get(name, name) for name in given if name not in own]
    missing = [name for name in own if name not in given]
    reshaped = [name for name in own if name in given and given[name].shape != own[name].shape]
    if left_over or missing or reshaped:
        problems = [f"no place for {name}" for name in left_over] + [f"nothing for {name}" for name in missing]
        problems += [f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}" for name in reshaped]
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise ConfigError(
            f"not a checkpoint of {config.name} with these settings: {shown} "
            "(sizes, decoder, prompt tokens and input size are settings of the model)"
        )
    counter.load_state_dict({name: value.to(own[name].dtype) for name, value in given.items()})
    return counter.eval()


def released_config(config: ModelConfig) -> ModelConfig:
    """The config with the pixels' mean and standard deviation of the released code, and no weights to load."""
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
        raise ConfigError(f"model={name}: no such model; there are {known}")
    settings = {"head": RegressionHeadConfig() if bins is None else EbcHeadConfig(), **options, "name": name}
    try:
        config: ModelConfig = kinds[0](**settings)
    except TypeError as error:
        known = ", ".join(f.name for f in dataclasses.fields(kinds[0]))
        raise ConfigError(f"model={name}: {error}; its settings are {known}") from error
    return config


def _bare(content: Any) -> dict[str, Tensor]:
    """The state dict itself: a training checkpoint keeps it under a name, several processes behind a word."""
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ConfigError(
            "not a checkpoint of the released code: neither a state dict of tensors nor a training checkpoint that "
            "holds one as 'model_state_dict'"
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
                f"text_encoder.{min(wrong)} and {len(wrong) - 1} more are not those of {config.name} with these "
                "settings (model.embed_dim, text_width, text_heads, text_layers are settings of the model)"
            )
        tower.load_state_dict(texts)
        ours["head.text_features"] = clip.encode_texts(tower, write_prompts(bins.edges, config.prompts))
    return ours


def _mobilenet_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm, which the released code builds on, has torchvision's layers in the same order under other names."""
    theirs = [name for name in state if name.startswith("backbone.encoder.")]
    ours = [name for name in own if name.startswith("backbone.features.")]
    if len(theirs) != len(ours):
        raise ConfigError(f"not a checkpoint of mobilenet_v2: {len(theirs)} tensors in the encoder, not {len(ours)}")
    rest = {_renamed(name, _OTHERS): value for name, value in state.items() if name not in theirs}
    return {**{after: state[before] for before, after in zip(theirs, ours, strict=True)}, **rest}


# Representative counts the paper's authors published, by dataset, side of a block, m and strategy: means over
# overlapping windows of the training images. Bins of one count stand for it; the others are listed.
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
    """The representative counts the paper's authors published for these bins; None if they did not."""
    last = _PUBLISHED.get((dataset, block_size, m, strategy))
    if last is None:
        return None
    edges = integer_bins(Strategy[strategy], m)
    return [*(first for first, _ in edges[: -len(last)]), *last]
