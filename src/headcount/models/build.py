"""From a model's config to a counter.

A backbone of your own: a config derived from ``ModelConfig`` (``headcount.config.register("model", name, YourConfig)``)
and a builder registered with ``@build_backbone.register``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatch

from torch import nn

from headcount.bins import CountBins
from headcount.config import (
    ClipConfig,
    ClipEncodersConfig,
    ClipRankingConfig,
    ConfigError,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    Neck,
    TimmConfig,
    TinyConfig,
)
from headcount.extensions import BUILDERS, load_extensions
from headcount.models import backbones
from headcount.models.counter import Counter
from headcount.models.heads import build_head
from headcount.models.timm_networks import check_timm_name, timm_backbone, timm_pyramid
from headcount.models.weights import load_backbone
from headcount.models.zero_inflated import ZipHead  # noqa: F401 (registers its builder)
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
    load_extensions(BUILDERS)
    counter: Counter
    if isinstance(config, ClipConfig):
        counter = _build_clip(config, grid, bins, pretrained=pretrained)
    elif isinstance(config, ClipRankingConfig):
        from headcount.models.ranking import build_ranking  # late: open_clip takes seconds to load

        counter = build_ranking(config, grid, pretrained=pretrained)
    else:
        parts = build_backbone(config, pretrained=pretrained)
        counter = Counter(
            parts.backbone,
            build_head(config.head, parts.channels, grid, bins),
            grid=grid,
            mean=tuple(config.mean or parts.backbone.mean),
            std=tuple(config.std or parts.backbone.std),
            decoder=parts.decoder,
        )
    counter.freeze(config.freeze)
    if histogram is not None and config.prior_bias:
        counter.head.start_at(histogram)
    return counter


def follow_weights(config: ModelConfig) -> ModelConfig:
    """The config with settings that depend on its weights filled in, so that a checkpoint rebuilds without them.

    Raises:
        ConfigError: if the config contradicts its weights, or the model or the weights do not exist.
    """
    if isinstance(config, TimmConfig):
        check_timm_name(config.name)
    if not isinstance(config, ClipEncodersConfig):
        return config
    from headcount.models import clip

    return clip.follow_weights(config)


def _stride(config: ModelConfig) -> int:
    """The stride that the config states for its name, in pixels."""
    stride = config.names[config.name]
    assert stride is not None, f"{type(config).__name__} states no stride"
    return stride


@dataclass(frozen=True)
class Encoder:
    """A backbone, and the decoder after it."""

    backbone: backbones.Backbone
    decoder: nn.Module | None = None
    """Applied to the features after they were resampled to the blocks; None for none."""
    decoder_channels: int | None = None
    """Number of channels of the decoder's output."""

    @property
    def channels(self) -> int:
        """The number of channels that the head gets."""
        return self.backbone.channels if self.decoder_channels is None else self.decoder_channels


@singledispatch
def build_backbone(config: ModelConfig, *, pretrained: bool) -> Encoder:
    """Build the backbone of ``config``; other models register builders by config type.

    Args:
        pretrained: False builds the same network without its weights, for a checkpoint to fill.

    Raises:
        ConfigError: if weights are missing or do not fit, or if no builder is registered for the config.
    """
    raise ConfigError(f"model={config.name}: no builder is registered for {type(config).__name__}")


@build_backbone.register(TinyConfig)
def _build_tiny(config: TinyConfig, *, pretrained: bool) -> Encoder:
    return Encoder(backbones.tiny(config.width, stride=_stride(config)))


@build_backbone.register(MobileNetV2Config)
def _build_mobilenet_v2(config: MobileNetV2Config, *, pretrained: bool) -> Encoder:
    from headcount.models import torchvision_networks

    backbone = torchvision_networks.mobilenet_v2(config.stage, stride=_stride(config))
    if pretrained:
        load_backbone(backbone, config.weights, torchvision_networks.MOBILENET_V2_WEIGHTS)
    return Encoder(backbone)


@build_backbone.register(ImageNetConfig)
def _build_imagenet(config: ImageNetConfig, *, pretrained: bool) -> Encoder:
    from headcount.models.torchvision_networks import NETWORKS

    network = NETWORKS[config.name]
    backbone = network.build(_stride(config))
    if pretrained:
        load_backbone(backbone, config.weights, network.published)
    return Encoder(backbone, network.decoder() if network.decoder else None, network.decoder_channels)


@build_backbone.register(TimmConfig)
def _build_timm(config: TimmConfig, *, pretrained: bool) -> Encoder:
    published = pretrained and config.weights == "pretrained"
    name, stride = config.name, config.max_stride
    if config.neck is Neck.fpn:
        backbone = timm_pyramid(name, max_stride=stride, channels=config.neck_channels, pretrained=published)
    else:
        backbone = timm_backbone(name, max_stride=stride, dilate=config.dilate, pretrained=published)
    if pretrained and config.weights not in ("pretrained", "none"):
        load_backbone(backbone, config.weights, None)
    return Encoder(backbone)


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
