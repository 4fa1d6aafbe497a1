"""Feature extractors: networks that turn normalised pixels into a map of features.

Each states ``channels`` and ``stride``, and gives exactly ``size // stride`` features a side: what
a padded convolution adds for an incomplete stride at the right and bottom is cut off, so that
every architecture answers the same grid. They do not resample, classify or count.
"""

import torchvision
from jaxtyping import Float
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A feature extractor, its number of channels and its stride in pixels.

    ``prefix`` is where torchvision's classifier of the same architecture keeps these layers: the
    names of pretrained weights.
    """

    def __init__(self, features: nn.Module, *, channels: int, stride: int, prefix: str = "features.") -> None:
        super().__init__()
        self.features = features
        self.channels = channels
        self.stride = stride
        self.prefix = prefix

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Features, one for every whole ``stride`` x ``stride`` square of the image."""
        height, width = images.shape[-2:]
        return self.features(images)[..., : height // self.stride, : width // self.stride]


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


def vgg19() -> Backbone:
    """torchvision's VGG19 without its last pooling, stride 16, 512 channels.

    Source: arXiv:1409.1556; the encoder of arXiv:2009.13077.
    """
    return Backbone(torchvision.models.vgg19(weights=None).features[:36], channels=512, stride=16)


def dm_count_decoder(channels: int) -> nn.Sequential:
    """DM-Count's two 3x3 convolutions, run at the resolution of the blocks; 128 channels out.

    Source: arXiv:2009.13077.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 128, 3, padding=1),
        nn.ReLU(inplace=True),
    )
