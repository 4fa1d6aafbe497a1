"""Backbones: networks that turn normalized pixels into a map of features.

Each has ``channels`` and ``stride`` and returns exactly ``size // stride`` features per side: the features that padded
convolutions add for an incomplete stride at the right and bottom are cropped, so that every architecture returns the
same grid. The strides are stated by the configs (``ModelConfig.names``) and passed in. Backbones do not resample,
classify, count or read weights.
"""

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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


def initialize(module: nn.Module) -> None:
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
        initialize(self)

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


def _decoder(channels: list[int], *, dilation: int) -> nn.Sequential:
    """3x3 convolutions that keep the size, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
    decoder = nn.Sequential(*layers)
    initialize(decoder)
    return decoder
