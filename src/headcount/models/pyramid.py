"""A feature pyramid network: combine a backbone's maps of several strides at the resolution of the finest.

Source: arXiv:1612.03144, figure 3. Only the finest output is computed, because one grid of blocks is predicted. The
paper's 3x3 convolution is linear; here BatchNorm and ReLU follow it, because the head after it is a single layer.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headcount.models.backbones import initialize


class FeaturePyramid(nn.Module):
    """The top-down pathway: each coarser map is upsampled and added to the next finer one.

    Args:
        channels: numbers of channels of the maps, finest map first.
        out_channels: number of channels of the pyramid.
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, out_channels, 1) for count in channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )
        initialize(self)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "batch out rows cols"]:
        """Combine the maps, finest first, into one of the size of the finest."""
        combined = self.lateral[-1](maps[-1])
        for lateral, finer in zip(list(self.lateral)[-2::-1], maps[-2::-1], strict=True):
            combined = lateral(finer) + F.interpolate(combined, size=finer.shape[-2:], mode="nearest")
        return self.smooth(combined)
