"""From a model's config to a counter."""

from collections.abc import Mapping

from torch import nn

from headcount.bins import CountBins
from headcount.config import (
    ClipConfig,
    ConfigError,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    TimmConfig,
    TinyConfig,
)
from headcount.models import backbones
from headcount.models.counter import Counter
from headcount.models.heads import build_head
from headcount.models.weights import load_backbone
from headcount.types import BlockGrid


def build_model(
    config: ModelConfig,
    grid: BlockGrid,
    bins: CountBins | None,
    *,
    histogram: Mapping[int, int] | None = None,
    pretrained: bool = True,
) -> Counter:
    """The counter that ``config`` describes.

    Args:
        bins: the classes of a block; None if the config has none.
        histogram: block count -> number of training blocks; with ``prior_bias``, the prediction head
            is initialized to predict these. None leaves its default initialization.
        pretrained: False builds the same network without its weights, for a checkpoint to fill.

    Raises:
        ConfigError: if weights are missing or do not fit, or if the head needs bins and there are none.
    """
    if isinstance(config, ClipConfig):
        counter = _build_clip(config, grid, bins, pretrained=pretrained)
    else:
        backbone, decoder, channels = _build_backbone(config, pretrained=pretrained)
        counter = Counter(
            backbone,
            build_head(config.head, channels, grid, bins),
            grid=grid,
            mean=tuple(config.mean or backbone.mean),
            std=tuple(config.std or backbone.std),
            decoder=decoder,
        )
    if histogram is not None and config.prior_bias:
        counter.head.start_at(histogram)
    return counter


def follow_weights(config: ModelConfig) -> ModelConfig:
    """The config with settings that depend on its weights filled in, so that a checkpoint rebuilds without them.

    Raises:
        ConfigError: if the config contradicts its weights, or the model or the weights do not exist.
    """
    if isinstance(config, TimmConfig):
        backbones.check_timm_name(config.name)
    if not isinstance(config, ClipConfig):
        return config
    from headcount.models import clip

    return clip.follow_weights(config)


def _stride(config: ModelConfig) -> int:
    """The stride that the config states for its name, in pixels."""
    stride = config.names[config.name]
    assert stride is not None, f"{type(config).__name__} states no stride"
    return stride


def _build_backbone(config: ModelConfig, *, pretrained: bool) -> tuple[backbones.Backbone, nn.Module | None, int]:
    """Feature extractor, decoder, and the number of channels that the head gets."""
    match config:
        case TinyConfig():
            backbone = backbones.tiny(config.width, stride=_stride(config))
        case MobileNetV2Config():
            backbone = backbones.mobilenet_v2(config.stage, stride=_stride(config))
            if pretrained:
                load_backbone(backbone, config.weights, backbones.MOBILENET_V2_WEIGHTS)
        case ImageNetConfig():
            network = backbones.NETWORKS[config.name]
            backbone = network.build(_stride(config))
            if pretrained:
                load_backbone(backbone, config.weights, network.published)
            if network.decoder is not None:
                assert network.decoder_channels is not None
                return backbone, network.decoder(), network.decoder_channels
        case TimmConfig():
            published = pretrained and config.weights == "pretrained"
            backbone = backbones.timm_backbone(
                config.name, max_stride=config.max_stride, dilate=config.dilate, pretrained=published
            )
            if pretrained and config.weights not in ("pretrained", "none"):
                load_backbone(backbone, config.weights, None)
        case _:
            raise ConfigError(f"no network is built from a {type(config).__name__}")
    return backbone, None, backbone.channels


def _build_clip(config: ClipConfig, grid: BlockGrid, bins: CountBins | None, *, pretrained: bool) -> Counter:
    from headcount.models.clip import build_clip  # late: open_clip takes seconds to load

    clip = build_clip(config, block_size=grid.block_size, pretrained=pretrained)
    return Counter(
        clip.backbone,
        build_head(config.head, clip.channels, grid, bins, clip.texts),
        grid=grid,
        mean=tuple(config.mean or clip.mean),
        std=tuple(config.std or clip.std),
        decoder=clip.decoder,
    )
