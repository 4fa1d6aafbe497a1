"""From a model's config to a counter, and pretrained weights into it."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, VGG19_Weights, WeightsEnum

from headcount.bins import CountBins
from headcount.config import ConfigError, MobileNetV2Config, ModelConfig, PretrainedConfig, TinyConfig, VGG19Config
from headcount.models import backbones
from headcount.models.counter import Counter
from headcount.models.heads import BlockClassifier


def build_model(config: ModelConfig, bins: CountBins, *, pretrained: bool = True) -> Counter:
    """The counter that ``config`` describes.

    Args:
        bins: give the head its classes and the block size.
        pretrained: False builds the same network without its weights, for a checkpoint to fill.

    Raises:
        ConfigError: if weights are missing, or do not fit.
    """
    decoder: nn.Module | None = None
    published: WeightsEnum | None = None
    if isinstance(config, TinyConfig):
        backbone = backbones.tiny(config.width)
    elif isinstance(config, MobileNetV2Config):
        backbone, published = backbones.mobilenet_v2(config.stage), MobileNet_V2_Weights.IMAGENET1K_V1
    elif isinstance(config, VGG19Config):
        backbone, published = backbones.vgg19(), VGG19_Weights.IMAGENET1K_V1
        decoder = backbones.dm_count_decoder(backbone.channels)
    else:
        raise ConfigError(f"no network is built from a {type(config).__name__}")
    if published is not None and isinstance(config, PretrainedConfig) and pretrained:
        load_backbone(backbone, config.weights, published)
    return Counter(
        backbone,
        BlockClassifier(128 if decoder is not None else backbone.channels, bins),
        block_size=bins.block_size,
        mean=tuple(config.mean or backbones.IMAGENET_MEAN),
        std=tuple(config.std or backbones.IMAGENET_STD),
        decoder=decoder,
    )


def load_backbone(backbone: backbones.Backbone, weights: str, published: WeightsEnum) -> None:
    """Fill ``backbone`` from ``imagenet``, or from a file; ``none`` leaves it as it is.

    A file holds the state dict of torchvision's classifier of the same architecture, with any
    number of classes: only the layers the backbone has are read.

    Raises:
        ConfigError: names what is missing, and where to put it.
    """
    if weights == "none":
        return
    state = _download(published) if weights == "imagenet" else _read(os.path.expanduser(weights))
    own = backbone.features.state_dict()
    found = {k.removeprefix(backbone.prefix): v for k, v in state.items() if k.startswith(backbone.prefix)}
    # BatchNorm's step counter is absent from old files and changes nothing.
    missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
    wrong = [k for k in own if k in found and found[k].shape != own[k].shape]
    if missing or wrong:
        problem = (
            f"{backbone.prefix}{missing[0]} is missing"
            if missing
            else f"{backbone.prefix}{wrong[0]} is {tuple(found[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
        raise ConfigError(
            f"model.weights={weights}: not this architecture's weights: {problem} "
            f"({len(missing)} missing, {len(wrong)} of another shape)"
        )
    backbone.features.load_state_dict({k: found.get(k, v) for k, v in own.items()})


def _download(published: WeightsEnum) -> Mapping[str, Tensor]:
    url = published.url
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    file = os.path.join(folder, os.path.basename(url))
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash a RuntimeError
        raise ConfigError(
            f"model.weights=imagenet: {os.path.basename(url)} could not be had ({error}). Without a network, put the "
            f"file from {url} at {file}, name a state dict with model.weights=FILE, or train from nothing with "
            "model.weights=none"
        ) from error


def _read(file: str) -> Mapping[str, Tensor]:
    try:
        state: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is truncated, foreign or unsafe
        raise ConfigError(f"model.weights={file}: not a readable state dict: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"model.weights={file}: holds {type(state).__name__}, not a state dict of tensors")
    return state
