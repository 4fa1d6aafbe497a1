"""Backbones: networks that turn normalized pixels into a map of features.

Each has ``channels`` and ``stride`` and returns exactly ``size // stride`` features per side: the features that padded
convolutions add for an incomplete stride at the right and bottom are cropped, so that every architecture returns the
same grid. The strides are stated by the configs (``ModelConfig.names``) and passed in. Backbones do not resample,
classify, count or read weights.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
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
from torchvision.models.resnet import BasicBlock, Bottleneck

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A feature extractor with its number of channels and its stride.

    Args:
        features: maps images to (batch, ``channels``, rows, cols).
        channels: number of channels of the features.
        stride: pixels between two features.
        prefix: prefix of these layers in state dicts of the published classifier of the same architecture.
        context: refines the cropped map; published state dicts do not contain it.
        mean, std: of red, green and blue, in 0 to 1, with which the pretrained weights were trained.
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
        """Compute one feature per complete ``stride`` x ``stride`` square of the image."""
        height, width = images.shape[-2:]
        maps = self.features(images)[..., : height // self.stride, : width // self.stride]
        return maps if self.context is None else self.context(maps)


def _initialize(module: nn.Module) -> None:
    """He et al. (2015) for convolutions that a ReLU follows, as in the released code."""
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


def tiny(width: int, *, stride: int) -> Backbone:
    """Three strided convolutions and two residual blocks, without pretrained weights; ``2 * width`` channels."""

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
    return Backbone(features, channels=2 * width, stride=stride)


def mobilenet_v2(stage: int, *, stride: int) -> Backbone:
    """torchvision's MobileNetV2 up to the stage with 160 or 320 channels.

    The stage with 160 channels keeps its layers, and its stride is set to 1.

    Args:
        stage: channels of the last stage, 160 or 320.
        stride: pixels between two features.

    Source: arXiv:1801.04381; arXiv:2403.09281, table IV.
    """
    layers = torchvision.models.mobilenet_v2(weights=None).features[: {160: 17, 320: 18}[stage]]
    # Block 14 would halve the map a fifth time, by its depthwise convolution.
    layers[14].conv[1][0].stride = (1, 1)
    return Backbone(layers, channels=stage, stride=stride)


def _vgg(configuration: str, layers: int) -> nn.Sequential:
    """The first layers of one of torchvision's VGGs, initialized as in torchvision.

    Not taken from a complete network, because initializing the 120 million weights of its classifier takes time.
    """
    features = vgg.make_layers(vgg.cfgs[configuration])[:layers]
    _initialize(features)
    return features


def vgg16(stride: int) -> Backbone:
    """torchvision's VGG16 without its last pooling; 512 channels.

    Source: arXiv:1409.1556.
    """
    return Backbone(_vgg("D", 30), channels=512, stride=stride)


def vgg19(stride: int) -> Backbone:
    """torchvision's VGG19 without its last pooling; 512 channels.

    Source: arXiv:1409.1556; the encoder of arXiv:2009.13077.
    """
    return Backbone(_vgg("E", 36), channels=512, stride=stride)


def csrnet(stride: int) -> Backbone:
    """VGG16 up to its tenth convolution; 512 channels.

    Source: arXiv:1802.10062, the front end.
    """
    return Backbone(_vgg("D", 23), channels=512, stride=stride)


def cannet(stride: int) -> Backbone:
    """CSRNet's encoder followed by a context module; 512 channels.

    Source: arXiv:1811.10452.
    """
    return Backbone(_vgg("D", 23), channels=512, stride=stride, context=ContextModule(512))


def resnet101(stride: int) -> Backbone:
    """torchvision's ResNet-101 up to its last stage, whose stride is set to 1; 2048 channels.

    Source: arXiv:1512.03385; arXiv:2403.09281, table IV.
    """
    whole: Any = torchvision.models.resnet101(weights=None)
    whole.layer4[0].conv2.stride = (1, 1)
    whole.layer4[0].downsample[0].stride = (1, 1)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    layers = nn.Sequential(OrderedDict((name, getattr(whole, name)) for name in names))
    return Backbone(layers, channels=2048, stride=stride, prefix="")


def densenet201(stride: int) -> Backbone:
    """torchvision's DenseNet-201 without its classifier and the pooling of its third transition; 1920 channels.

    Source: arXiv:1608.06993; arXiv:2403.09281, table IV.
    """
    layers = torchvision.models.densenet201(weights=None).features
    layers.transition3.pool = nn.Identity()
    layers.add_module("relu5", nn.ReLU(inplace=True))  # torchvision applies it outside of ``features``
    return Backbone(layers, channels=1920, stride=stride)


# ------------------------------------------------------------------------------- context and decoders


class ContextModule(nn.Module):
    """Adds features of the surroundings to each position of a map, weighted over four scales.

    The scales are averages over 1, 2, 3 and 6 cells per side, weighted by how they differ from the position.

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
        _initialize(self)

    def forward(self, maps: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch out rows cols"]:
        """Combine each position with the weighted averages around it."""
        weighted, total = torch.zeros_like(maps), torch.zeros_like(maps)
        for scale in self.scales:
            around = F.interpolate(scale(maps), size=maps.shape[-2:], mode="bilinear", align_corners=False)
            weight = self.weight_net(maps - around).sigmoid()
            weighted, total = weighted + weight * around, total + weight
        average = weighted / (total + 1e-6)  # four sigmoids may all be 0
        return self.bottleneck(torch.cat([average, maps], dim=1)).relu()


def dm_count_decoder(channels: int = 512) -> nn.Sequential:
    """DM-Count's two 3x3 convolutions, applied at the resolution of the blocks; 128 output channels.

    Source: arXiv:2009.13077.
    """
    return _decoder([channels, 256, 128], dilation=1)


def csrnet_decoder() -> nn.Sequential:
    """CSRNet's six 3x3 convolutions of dilation 2, from 512 channels to 64.

    Source: arXiv:1802.10062, configuration B of table 3.
    """
    return _decoder([512, 512, 512, 512, 256, 128, 64], dilation=2)


class _Bottleneck(Bottleneck):
    """torchvision's bottleneck block with the same number of channels inside as outside."""

    expansion = 1


class _WideBlocks(nn.Sequential):
    """Residual blocks that run in the memory layout of their weights, whatever that of the features.

    Attributes:
        contiguous_on_cpu: on a CPU in float32, convolutions of 768 to 2048 channels are 6 to 30 % faster contiguous
            than channels last; in bf16 they are not (:meth:`headcount.engine.runtime.Runtime.setup`).
    """

    contiguous_on_cpu = True

    def forward(self, x: Tensor) -> Tensor:
        first: Any = self[0]
        if first.conv2.weight.is_contiguous():  # 3x3, unlike conv1, whose layout is ambiguous
            x = x.contiguous()
        for block in self:
            x = block(x)
        return x


def residual_decoder(channels: int, widths: Sequence[int], *, bottleneck: bool) -> nn.Sequential:
    """Residual blocks between CLIP's features and the projection, applied at the resolution of the image's blocks.

    The text of the paper does not mention them; they follow the released code.

    Args:
        channels: input channels.
        widths: output channels of each residual block.
        bottleneck: whether to use bottleneck blocks (released code: for ResNets) or basic blocks (for ViTs).
    """
    blocks = []
    for width in widths:
        shortcut = None
        if width != channels:
            shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        blocks.append((_Bottleneck if bottleneck else BasicBlock)(channels, width, downsample=shortcut))
        channels = width
    decoder = _WideBlocks(*blocks)
    _initialize(decoder)
    return decoder


def _decoder(channels: list[int], *, dilation: int) -> nn.Sequential:
    """3x3 convolutions that keep the size, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    decoder = nn.Sequential(*layers)
    _initialize(decoder)
    return decoder


# ---------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Network:
    """A torchvision encoder, and the decoder of the counting network that it belongs to."""

    build: Callable[[int], Backbone]
    """Builds the encoder with the stride that its config states, in pixels; without weights."""
    published: WeightsEnum
    """The ImageNet weights of the encoder."""
    decoder: Callable[[], nn.Sequential] | None = None
    decoder_channels: int | None = None
    """Output channels of the decoder; None without a decoder."""


MOBILENET_V2_WEIGHTS = MobileNet_V2_Weights.IMAGENET1K_V1

_DM_COUNT = Network(vgg19, VGG19_Weights.IMAGENET1K_V1, dm_count_decoder, 128)
NETWORKS: dict[str, Network] = {
    "vgg16": Network(vgg16, VGG16_Weights.IMAGENET1K_V1),
    "vgg19": _DM_COUNT,
    "dmcount": _DM_COUNT,
    "csrnet": Network(csrnet, VGG16_Weights.IMAGENET1K_V1, csrnet_decoder, 64),
    "cannet": Network(cannet, VGG16_Weights.IMAGENET1K_V1, csrnet_decoder, 64),
    # V1 of torchvision's two sets of weights, as for the others: trained as described in its paper.
    "resnet101": Network(resnet101, ResNet101_Weights.IMAGENET1K_V1),
    "densenet201": Network(densenet201, DenseNet201_Weights.IMAGENET1K_V1),
}
