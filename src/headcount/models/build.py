"""From a model's config to a counter."""

from collections.abc import Mapping

from torch import nn

from headcount.bins import CountBins
from headcount.config import (
    ClipConfig,
    ConfigError,
    Head,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    TimmConfig,
    TinyConfig,
)
from headcount.models import backbones, heads
from headcount.models.counter import Counter
from headcount.models.weights import load_backbone


def build_model(
    config: ModelConfig,
    bins: CountBins | None,
    *,
    block_size: int | None = None,
    histogram: Mapping[int, int] | None = None,
    pretrained: bool = True,
) -> Counter:
    """The counter that ``config`` describes.

    Args:
        bins: the classes of the head; None for a head that regresses counts.
        block_size: side of a block, pixels; needed without bins, which else say it.
        histogram: block count -> number of training blocks; where ``prior_bias`` is set, the head
            starts at them. None leaves it.
        pretrained: False builds the same network without its weights, for a checkpoint to fill.

    Raises:
        ConfigError: if weights are missing, or do not fit.
    """
    if (bins is None) is not (config.head is Head.regression):
        raise ConfigError(f"model.head={config.head.name}: ebc needs bins, regression bins=none")
    block_size = block_size if bins is None else bins.block_size
    if block_size is None:
        raise ValueError("block_size is needed where no bins say it")
    if isinstance(config, ClipConfig):
        counter = _build_clip(config, bins, block_size=block_size, pretrained=pretrained)
    else:
        backbone, decoder, channels = _build_backbone(config, pretrained=pretrained)
        counter = Counter(
            backbone,
            heads.CountRegressor(channels) if bins is None else heads.BlockClassifier(channels, bins),
            block_size=block_size,
            mean=tuple(config.mean or backbone.mean),
            std=tuple(config.std or backbone.std),
            decoder=decoder,
        )
    if histogram is not None and config.prior_bias:
        counter.head.start_at(histogram)
    return counter


def follow_weights(config: ModelConfig) -> ModelConfig:
    """The config with what its weights decide filled in, so that a checkpoint rebuilds without them.

    Raises:
        ConfigError: if the config contradicts its weights, or there is no such model or are no such weights.
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
            backbone = backbones.timm_backbone(config.name, max_stride=config.max_stride, pretrained=published)
            if pretrained and config.weights not in ("pretrained", "none"):
                load_backbone(backbone, config.weights, None)
        case _:
            raise ConfigError(f"no network is built from a {type(config).__name__}")
    return backbone, None, backbone.channels


def _build_clip(config: ClipConfig, bins: CountBins | None, *, block_size: int, pretrained: bool) -> Counter:
    # Imported when it is needed: open_clip takes seconds to load.
    from headcount.models.clip import build_clip
    from headcount.models.prompts import write_prompts

    clip = build_clip(config, block_size=block_size, pretrained=pretrained)
    return Counter(
        clip.backbone,
        heads.CountRegressor(clip.channels)
        if bins is None
        else heads.CosineClassifier(
            clip.channels, bins, clip.texts.encode(write_prompts(bins.edges, clip.texts.prompts))
        ),
        block_size=block_size,
        mean=tuple(config.mean or clip.mean),
        std=tuple(config.std or clip.std),
        decoder=clip.decoder,
    )
