"""Backbones and decoders from torchvision: its networks, without their weights, and its residual blocks."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torchvision
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

from headcount.models.backbones import Backbone, ContextModule, csrnet_decoder, dm_count_decoder, initialize


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
    initialize(features)
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
    initialize(decoder)
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
