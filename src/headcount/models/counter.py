"""A counter: pixels in, expected heads of every block out."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from headcount.models.heads import Head, resample
from headcount.types import BlockPrediction


class Counter(nn.Module):
    """Backbone, optional decoder at the resolution of the blocks, head.

    A backbone is a module that states its ``channels`` and its ``stride`` in pixels, and gives one
    feature for every whole stride.

    Source: arXiv:2403.09281, section III.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        *,
        block_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stride = int(backbone.stride)  # type: ignore[arg-type]
        self.decoder = decoder
        self.head = head
        self.block_size = block_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def normalize(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Bytes to the range the weights were trained on."""
        return images.float().div_(255).sub_(self.mean).div_(self.std)

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> BlockPrediction:
        """Predict the heads in each block.

        Args:
            images: bytes (0 to 255, RGB), which are normalized here; or floats that already are.
                Nothing is padded: the answer covers the whole strides of the backbone, so 104 x 136
                pixels at stride 16 give 12 x 16 blocks of 8.
        """
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        features = self.backbone(images)
        factor = self.stride / self.block_size
        if self.decoder is None:
            return self.head(features, factor=factor)
        return self.head(self.decoder(resample(features, factor)), factor=1)
