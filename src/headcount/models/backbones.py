"""Feature extractors: networks that turn normalized pixels into a map of features.

Each states ``channels`` and ``stride``, and gives exactly ``size // stride`` features a side: what
a padded convolution adds for an incomplete stride at the right and bottom is cut off, so that
every architecture answers the same grid. They do not resample, classify, count or read weights.
"""

import difflib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import (
    DenseNet201_Weights,
    MobileNet_V2_Weights,
    ResNet101_Weights,
    VGG16_Weights,
    VGG19_Weights,
    WeightsEnum,
    vgg,
)

from headcount.config import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A feature extractor, its number of channels and its stride in pixels.

    ``prefix`` is where the published classifier of the same architecture keeps these layers: the
    names of pretrained weights. ``context`` refines the finished map and is in no such file.
    ``mean`` and ``std`` of red, green, blue, in 0 to 1, are what the weights were trained with.
    """

    def __init__(
        self,
        features: nn.Module,
        *,
        channels: int,
        stride: int,
        prefix: str = "features.",
        context: nn.Module | None = None,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.features = features
        self.context = context
        self.channels = channels
        self.stride = stride
        self.prefix = prefix
        self.mean = mean
        self.std = std

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features, one for every whole ``stride`` x ``stride`` square of the image."""
        height, width = images.shape[-2:]
        maps = self.features(images)[..., : height // self.stride, : width // self.stride]
        return maps if self.context is None else self.context(maps)


def _start(module: nn.Module) -> None:
    """He et al. (2015) for the ReLUs that follow each convolution, as the released code also does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


# ----------------------------------------------------------------------------------------- encoders


class _Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int, *, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.body(x))


def tiny(width: int) -> Backbone:
    """Three strided convolutions and two residual blocks, stride 8, from nothing."""

    def halve(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )

    features = nn.Sequential(
        halve(3, width // 2),
        halve(width // 2, width),
        halve(width, 2 * width),
        _Residual(2 * width, dilation=1),
        _Residual(2 * width, dilation=2),
    )
    return Backbone(features, channels=2 * width, stride=8)


def mobilenet_v2(stage: int) -> Backbone:
    """torchvision's MobileNetV2 up to the stage of 160 or 320 channels, stride 16.

    The stage of 160 channels keeps its layers and loses its stride.

    Source: arXiv:1801.04381; arXiv:2403.09281, table IV.
    """
    layers = torchvision.models.mobilenet_v2(weights=None).features[: {160: 17, 320: 18}[stage]]
    # Block 14 is the one that would halve the map a fifth time; its depthwise convolution does.
    layers[14].conv[1][0].stride = (1, 1)
    return Backbone(layers, channels=stage, stride=16)


def _vgg(configuration: str, layers: int) -> nn.Sequential:
    """The first layers of one of torchvision's VGGs, started as torchvision does.

    Not cut out of the whole network: its classifier has 120 million weights to draw and throw away.
    """
    features = vgg.make_layers(vgg.cfgs[configuration])[:layers]
    _start(features)
    return features


def vgg16() -> Backbone:
    """torchvision's VGG16 without its last pooling, stride 16, 512 channels.

    Source: arXiv:1409.1556.
    """
    return Backbone(_vgg("D", 30), channels=512, stride=16)


def vgg19() -> Backbone:
    """torchvision's VGG19 without its last pooling, stride 16, 512 channels.

    Source: arXiv:1409.1556; the encoder of arXiv:2009.13077.
    """
    return Backbone(_vgg("E", 36), channels=512, stride=16)


def csrnet() -> Backbone:
    """VGG16 up to its tenth convolution, stride 8, 512 channels.

    Source: arXiv:1802.10062, the front end.
    """
    return Backbone(_vgg("D", 23), channels=512, stride=8)


def cannet() -> Backbone:
    """CSRNet's encoder with a context module on top, stride 8, 512 channels.

    Source: arXiv:1811.10452.
    """
    return Backbone(_vgg("D", 23), channels=512, stride=8, context=ContextModule(512))


def resnet101() -> Backbone:
    """torchvision's ResNet-101 up to its last stage, which loses its stride: 16, 2048 channels.

    Source: arXiv:1512.03385; arXiv:2403.09281, table IV.
    """
    whole: Any = torchvision.models.resnet101(weights=None)
    whole.layer4[0].conv2.stride = (1, 1)
    whole.layer4[0].downsample[0].stride = (1, 1)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    layers = nn.Sequential(OrderedDict((name, getattr(whole, name)) for name in names))
    return Backbone(layers, channels=2048, stride=16, prefix="")


def densenet201() -> Backbone:
    """torchvision's DenseNet-201 before its classifier; the third transition does not pool: 16, 1920 channels.

    Source: arXiv:1608.06993; arXiv:2403.09281, table IV.
    """
    layers = torchvision.models.densenet201(weights=None).features
    layers.transition3.pool = nn.Identity()
    layers.add_module("relu5", nn.ReLU(inplace=True))  # which torchvision keeps outside of the layers
    return Backbone(layers, channels=1920, stride=16)


# ------------------------------------------------------------------------------- context and decoders


class ContextModule(nn.Module):
    """Adds to each place of a map what its surroundings look like, at the scale that tells most there.

    Averages of 1, 2, 3 and 6 cells a side are weighted by how they differ from the place itself.

    Source: arXiv:1811.10452, section 3.1.
    """

    def __init__(self, channels: int, out_channels: int = 512) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d((cells, cells)), nn.Conv2d(channels, channels, 1, bias=False))
            for cells in (1, 2, 3, 6)
        )
        self.weight_net = nn.Conv2d(channels, channels, 1)
        self.bottleneck = nn.Conv2d(2 * channels, out_channels, 1)
        _start(self)

    def forward(self, maps: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch out rows cols"]:
        """The map, each place joined with the weighted averages around it."""
        weighted, total = torch.zeros_like(maps), torch.zeros_like(maps)
        for scale in self.scales:
            around = F.interpolate(scale(maps), size=maps.shape[-2:], mode="bilinear", align_corners=False)
            weight = self.weight_net(maps - around).sigmoid()
            weighted, total = weighted + weight * around, total + weight
        average = weighted / (total + 1e-6)  # four sigmoids may all be 0
        return self.bottleneck(torch.cat([average, maps], dim=1)).relu()


def dm_count_decoder(channels: int = 512) -> nn.Sequential:
    """DM-Count's two 3x3 convolutions, run at the resolution of the blocks; 128 channels out.

    Source: arXiv:2009.13077.
    """
    return _decoder([channels, 256, 128], dilation=1)


def csrnet_decoder() -> nn.Sequential:
    """CSRNet's six 3x3 convolutions of dilation 2, from 512 channels to 64.

    Source: arXiv:1802.10062, configuration B of table 3.
    """
    return _decoder([512, 512, 512, 512, 256, 128, 64], dilation=2)


def _decoder(channels: list[int], *, dilation: int) -> nn.Sequential:
    """3x3 convolutions that keep the size, a ReLU after each."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    decoder = nn.Sequential(*layers)
    _start(decoder)
    return decoder


# ---------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Network:
    """A torchvision encoder, and the decoder of the counting network it is part of."""

    build: Callable[[], Backbone]
    published: WeightsEnum
    decoder: Callable[[], nn.Sequential] | None = None
    decoder_channels: int | None = None
    """Channels the decoder gives; None without one."""


MOBILENET_V2_WEIGHTS = MobileNet_V2_Weights.IMAGENET1K_V1

_DM_COUNT = Network(vgg19, VGG19_Weights.IMAGENET1K_V1, dm_count_decoder, 128)
NETWORKS: dict[str, Network] = {
    "vgg16": Network(vgg16, VGG16_Weights.IMAGENET1K_V1),
    "vgg19": _DM_COUNT,
    "dmcount": _DM_COUNT,
    "csrnet": Network(csrnet, VGG16_Weights.IMAGENET1K_V1, csrnet_decoder, 64),
    "cannet": Network(cannet, VGG16_Weights.IMAGENET1K_V1, csrnet_decoder, 64),
    # The first of torchvision's two sets, as for the others: trained by the recipe of its paper.
    "resnet101": Network(resnet101, ResNet101_Weights.IMAGENET1K_V1),
    "densenet201": Network(densenet201, DenseNet201_Weights.IMAGENET1K_V1),
}


# ----------------------------------------------------------------------------------------------- timm


class TimmBackbone(Backbone):
    """The last of the feature maps of a timm network.

    Pixels beyond the last whole stride are cut off before the network, not features after it: a
    transformer takes no incomplete patch. ``channels_last``: the network gives (batch, rows, cols, channels).
    """

    def __init__(self, features: nn.Module, *, channels_last: bool, **description: Any) -> None:
        super().__init__(features, **description)
        self.channels_last = channels_last

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features, one for every whole ``stride`` x ``stride`` square of the image."""
        height, width = (size // self.stride * self.stride for size in images.shape[-2:])
        maps = self.features(images[..., :height, :width])[-1]
        return maps.movedim(-1, 1) if self.channels_last else maps


def check_timm_name(name: str) -> None:
    """Whether timm has a model of this name; cheap, since nothing is built.

    Raises:
        ConfigError: if it has not; names those near.
    """
    import timm

    if not timm.is_model(name):
        near = _near(name, timm.list_models())
        raise ConfigError(f"model.name={name}: timm has no such model; near: {', '.join(near) or 'none'}")


def timm_backbone(name: str, *, max_stride: int, pretrained: bool) -> Backbone:
    """A network of timm that gives feature maps of images of any size.

    Its stride is lowered to ``max_stride`` where the architecture can (timm's ``output_stride``),
    or to the next power of two above; else it stays as it is.

    Raises:
        ConfigError: if timm has no such name, the network gives no such maps, or its weights could not be had.
    """
    import timm  # takes seconds to load, and most models do without

    check_timm_name(name)
    options, last = _timm_options(name, max_stride)
    try:
        features: Any = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except Exception as error:  # the hub raises many kinds for a network that is not there
        if not pretrained:
            raise
        raise ConfigError(
            f"model.weights=pretrained: timm's weights of {name} could not be had ({_first_line(error)}). Without a "
            "network, name a state dict with model.weights=FILE, or train from nothing with model.weights=none"
        ) from error
    trained = features.pretrained_cfg
    return TimmBackbone(
        features,
        **last,
        prefix="",
        mean=tuple(trained.get("mean") or IMAGENET_MEAN),
        std=tuple(trained.get("std") or IMAGENET_STD),
    )


def _timm_options(name: str, max_stride: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What timm must be asked for ``name``, and what its last feature map is then.

    Tried on the meta device, where nothing is drawn or computed but shapes are.
    """
    # Transformers take images of one size unless they are asked.
    sizes: list[dict[str, Any]] = [{}, {"dynamic_img_size": True}, {"strict_img_size": False}]
    reasons = []
    for size in sizes:
        try:
            last = _probe(name, **size)
        except Exception as error:  # timm refuses by many kinds: TypeError, AssertionError, RuntimeError, ...
            reasons.append(_first_line(error))
            continue
        stride = 1 << (max_stride.bit_length() - 1)
        while stride < last["stride"]:
            try:
                lower = _probe(name, output_stride=stride, **size)
            except Exception:  # as above
                stride *= 2
                continue
            if lower["stride"] < last["stride"]:
                return {"output_stride": stride, **size}, lower
            break
        return size, last
    raise ConfigError(f"model.name={name}: cannot be a backbone for images of any size: {reasons[0]}")


def _probe(name: str, **options: Any) -> dict[str, Any]:
    """Channels, stride and layout of the last feature map, as timm describes and an image confirms them."""
    import timm

    with torch.device("meta"), torch.no_grad():
        network: Any = timm.create_model(name, pretrained=False, features_only=True, **options).eval()
        channels, stride = network.feature_info.channels()[-1], network.feature_info.reduction()[-1]
        # The second: some attend within windows that happen to divide the first.
        for height, width in ((64, 96), (160, 224)):
            rows, cols = height // stride, width // stride
            shape = tuple(network(torch.zeros(1, 3, rows * stride, cols * stride))[-1].shape)
            if shape not in ((1, channels, rows, cols), (1, rows, cols, channels)):
                raise ValueError(f"{height} x {width} px gave {shape}, not {(1, channels, rows, cols)}")
    return {"channels": channels, "stride": stride, "channels_last": shape[1] != channels}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _near(name: str, names: list[str]) -> list[str]:
    """At most five of ``names`` that contain ``name``, shortest first, or resemble it."""
    containing = sorted((n for n in names if name in n), key=len)
    return (containing + [n for n in difflib.get_close_matches(name, names, n=5) if n not in containing])[:5]
