"""Masks: the part of an image in which heads are counted, in training and in evaluation.

A head counts if the center of the pixel in which it lies is inside. A block counts by the share of its area that is
inside, computed exactly: a mask of the whole image changes nothing, and masks that divide an image have counts that sum
to that of the image. Masks are never resampled: they stay in the pixels of the image before resizing, and a crop knows
which window of it it shows. Files: ``data.mask_files``.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import shapely
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headcount.data.regions import Shape, block_shares

_ROUNDING = 1e-9
"""Shares this close to 0 or 1 are 0 or 1."""


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels."""

    left: float
    top: float
    width: float
    height: float


@runtime_checkable
class Mask(Protocol):
    """The part of one image in which heads are counted, in pixels before resizing."""

    def holds(self, points: Float[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
        """Return which heads count.

        Args:
            points: (x, y) inside the image.
        """
        ...

    def shares(self, window: Window, *, size: tuple[int, int], block_size: int) -> Float[np.ndarray, "rows cols"]:
        """Return the share of each block's area that is inside, 0 to 1.

        Args:
            window: what is seen of the image.
            size: (width, height) to which the window is resized, pixels.
            block_size: side of a block, in pixels of the resized window; of blocks that reach beyond it, only the part
                in the window has an area.
        """
        ...

    def content(self) -> bytes:
        """Return what distinguishes it from other masks, the same on every machine."""
        ...


@dataclass(frozen=True)
class PixelMask:
    """A mask with one value per pixel."""

    size: tuple[int, int]
    """(width, height), pixels."""
    packed: bytes
    """The pixels as compressed bits: a few kilobytes, which processes can copy."""

    @classmethod
    def pack(cls, inside: Bool[np.ndarray, "height width"]) -> "PixelMask":
        """Make a mask from the pixels that are inside."""
        return cls((inside.shape[1], inside.shape[0]), zlib.compress(np.packbits(inside).tobytes(), level=1))

    def pixels(self) -> Bool[np.ndarray, "height width"]:
        """Return which pixels are inside."""
        width, height = self.size
        bits = np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8)
        return np.unpackbits(bits, count=width * height).view(bool).reshape(height, width)

    def holds(self, points: Float[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
        """Return which heads lie in a pixel that is inside."""
        column, row = points.floor().long().unbind(1)
        return torch.from_numpy(self.pixels())[row, column]

    def shares(self, window: Window, *, size: tuple[int, int], block_size: int) -> Float[np.ndarray, "rows cols"]:
        """See :meth:`Mask.shares`."""
        xs = window.left + _edges(size[0], block_size) * (window.width / size[0])
        ys = window.top + _edges(size[1], block_size) * (window.height / size[1])
        of_rows = _integrals(self.pixels(), ys)
        areas = _integrals(of_rows.T, xs).T
        return _rounded(areas / (np.diff(ys)[:, None] * np.diff(xs)))

    def content(self) -> bytes:
        """See :meth:`Mask.content`; not the compressed bits, which depend on the compressor."""
        return repr(self.size).encode() + np.packbits(self.pixels()).tobytes()


@dataclass(frozen=True)
class PolygonMask:
    """A mask with a polygon, or several, as its border."""

    shape: Shape
    """x right and y down from the image's top left corner, pixels; may have holes."""

    def holds(self, points: Float[Tensor, "n 2"]) -> Bool[Tensor, " n"]:
        """Return which heads lie in a pixel whose center is inside or on the border."""
        x, y = (points.double().floor() + 0.5).unbind(1)
        return torch.from_numpy(np.asarray(shapely.intersects_xy(self.shape, x.numpy(), y.numpy())))

    def shares(self, window: Window, *, size: tuple[int, int], block_size: int) -> Float[np.ndarray, "rows cols"]:
        """See :meth:`Mask.shares`."""
        origin, seen = (window.left, window.top), (window.width, window.height)
        moved = shapely.transform(self.shape, lambda corners: (corners - origin) / seen * size)
        return _rounded(block_shares(moved, photo_size=size, image_size=size, block_size=block_size))

    def content(self) -> bytes:
        """See :meth:`Mask.content`."""
        return shapely.to_wkb(shapely.normalize(self.shape))


@dataclass(frozen=True)
class PlacedMask:
    """The mask of an image as it is loaded: whole or cropped, resized, and mirrored or not."""

    mask: Mask
    window: Window
    """What is seen of the image."""
    size: tuple[int, int]
    """(width, height) of the loaded image, pixels."""
    mirrored: bool = False
    """Whether it was flipped horizontally; then its width is a multiple of the block size."""

    @classmethod
    def whole(cls, mask: Mask, *, source_size: tuple[int, int], size: tuple[int, int]) -> "PlacedMask":
        """Place a mask on a whole image, which was resized from ``source_size`` (width, height) to ``size``."""
        return cls(mask, Window(0.0, 0.0, *map(float, source_size)), size)

    def cropped(self, part: Window, *, size: tuple[int, int], mirrored: bool) -> "PlacedMask":
        """Return the mask of a part of a whole image.

        Args:
            part: in pixels of the image of :meth:`whole`.
            size: (width, height) to which the part is resized, pixels.
            mirrored: whether it is then flipped.
        """
        across, down = self.window.width / self.size[0], self.window.height / self.size[1]
        window = Window(part.left * across, part.top * down, part.width * across, part.height * down)
        return PlacedMask(self.mask, window, size, mirrored)

    def shares(self, block_size: int) -> Float[Tensor, "rows cols"]:
        """Return the share of each block's area that is inside, 0 to 1, in float64.

        Args:
            block_size: side of a block, in pixels of the loaded image.
        """
        shares = torch.from_numpy(self.mask.shares(self.window, size=self.size, block_size=block_size))
        return shares.flip(1) if self.mirrored else shares


def union(shapes: Sequence[Shape]) -> PolygonMask:
    """Return a mask with everything inside that is in one of the polygons."""
    return PolygonMask(shapely.union_all(list(shapes)))


def _edges(side: int, block_size: int) -> Float[np.ndarray, " edges"]:
    """Return where the blocks along a side begin, and where the last one ends, pixels."""
    return np.minimum(np.arange(0, side + block_size, block_size), side).astype(np.float64)


def _integrals(values: np.ndarray, edges: Float[np.ndarray, " edges"]) -> Float[np.ndarray, "intervals _"]:
    """Integrate values that are constant on [k, k + 1), along the first axis, between consecutive edges."""
    first = int(edges[0])
    values = values[first : int(np.ceil(edges[-1]))]
    edges = (edges - first).clip(0, len(values))
    whole = edges.astype(int).clip(max=len(values) - 1)
    sums = np.concatenate([np.zeros_like(values[:1], dtype=np.float64), values.cumsum(0, dtype=np.float64)])
    return np.diff(sums[whole] + (edges - whole)[:, None] * values[whole], axis=0)


def _rounded(shares: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, "rows cols"]:
    """Remove rounding errors from the shares of blocks that are wholly inside or outside."""
    shares = np.where(shares > 1 - _ROUNDING, 1.0, shares)
    return np.where(shares < _ROUNDING, 0.0, shares)
