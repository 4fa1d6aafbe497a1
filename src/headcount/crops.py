"""Parts of an image that are shown to a network of one input size: nested crops, and a grid of patches.

Source: arXiv:2304.04231.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from headcount.config import CropLayout


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels in an image."""

    left: int
    top: int
    width: int
    height: int


def nested_boxes(width: int, height: int, *, crops: int, layout: CropLayout) -> list[Box]:
    """The nested crops of an image, smallest first; each is part of the next, and the last is the whole image.

    Crop i of n has i/n of the image's sides, rounded to whole pixels (halves up), but at least one. A concentric one
    that cannot lie exactly in the middle is moved half a pixel to the left or up.

    Args:
        width, height: of the image, in pixels.
        crops: number of crops.
    """
    boxes = []
    for i in range(1, crops + 1):
        w, h = (max(1, (2 * side * i + crops) // (2 * crops)) for side in (width, height))
        corner = ((width - w) // 2, (height - h) // 2) if layout is CropLayout.concentric else (0, 0)
        boxes.append(Box(*corner, w, h))
    return boxes


def patch_boxes(width: int, height: int, *, patches: int) -> list[Box]:
    """The patches that divide an image into ``patches`` rows and columns, row by row; every pixel is in one of them.

    Sides differ by at most one pixel. An image with fewer pixels than patches in a row or column has fewer patches.
    """
    columns, rows = (_divide(side, patches) for side in (width, height))
    return [Box(left, top, w, h) for top, h in rows for left, w in columns]


def _divide(side: int, parts: int) -> list[tuple[int, int]]:
    """Start and length of each part of a side, without empty ones."""
    edges = [side * k // parts for k in range(parts + 1)]
    return [(start, end - start) for start, end in itertools.pairwise(edges) if end > start]


def cut_resized(
    image: UInt8[Tensor, "3 height width"], boxes: Sequence[Box], *, size: int
) -> UInt8[Tensor, "boxes 3 size size"]:
    """Cut boxes out of an image and resize each to ``size`` x ``size`` pixels, whatever its shape.

    Bicubic and antialiased, as CLIP's images were resized.
    """
    parts = []
    for box in boxes:
        part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
        if (box.height, box.width) != (size, size):
            resized = F.interpolate(part[None].float(), (size, size), mode="bicubic", antialias=True)[0]
            part = resized.round().clamp(0, 255).to(torch.uint8)
        parts.append(part)
    return torch.stack(parts)
