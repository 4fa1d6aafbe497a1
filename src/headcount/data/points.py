"""Head positions as plain tensors: count them in blocks and windows, smooth, crop, flip, scale and tidy them.

A point (x, y) is a position in pixels, x right, y down; an image covers [0, width) x [0, height).
Every function returns new tensors and keeps points inside that half-open area, whatever rounding
does: a head must not leave its image, nor change its block, because of a last bit. Nothing here
touches pixels (``data.augment``).
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from torch import Tensor

MIN_SIGMA = 0.1
"""Pixels; heads on one spot have no distance to adapt to, and a narrower Gaussian differs from a point in no block."""


def block_counts(
    points: Float[Tensor, "n 2"], *, height: int, width: int, block_size: int
) -> Float[Tensor, "rows cols"]:
    """Count the annotated heads in each block of an image.

    A point on a block's left or top edge belongs to it. Two heads in one pixel count as two.

    Args:
        points: (x, y) in pixels of this image, x right, y down; may be empty.
        height, width: image size in pixels, multiples of ``block_size``.

    Returns:
        Heads per block; sums to ``n``.

    Raises:
        ValueError: if a size is no multiple of ``block_size`` or a point lies outside.

    Source: arXiv:2403.09281, section III-A.
    """
    for side, size in (("height", height), ("width", width)):
        if size < 1 or size % block_size:
            raise ValueError(f"{side} {size} is no positive multiple of the block size {block_size}")
    within = inside(points, width=width, height=height)
    if not bool(within.all()):
        x, y = points[~within][0].tolist()
        raise ValueError(f"point ({x:g}, {y:g}) lies outside the {width} x {height} image; clamp_into moves it inside")
    rows, cols = height // block_size, width // block_size
    # Whole pixels first: a float division may round a point just left of an edge onto it.
    block = points.floor().long() // block_size
    return torch.bincount(block[:, 1] * cols + block[:, 0], minlength=rows * cols).view(rows, cols).float()


def window_counts(points: Float[Tensor, "n 2"], *, height: int, width: int, window: int) -> Counter[int]:
    """How many windows of an image hold 0, 1, 2, ... heads: all of ``window`` x ``window`` px, one a pixel apart.

    Two heads in one pixel count as one, and points outside the image as none (datasets pass them as
    training has them): published representative counts are means over these windows. Windows lie
    within the image; a smaller image has none.
    """
    if min(height, width) < window:
        return Counter()
    column, row = points[inside(points, width=width, height=height)].floor().long().unbind(1)
    # Few bits, since it is the memory's speed that counts: an image has as many windows as pixels.
    heads = np.zeros((height, width), dtype=np.uint16 if window < 256 else np.uint32)
    heads[row.numpy(), column.numpy()] = 1
    sums = _sliding_sum(_sliding_sum(heads, window).T, window)
    numbers = np.bincount(sums[sums > 0], minlength=1)  # most windows are empty
    numbers[0] = sums.size - numbers.sum()
    return Counter({count: n for count, n in enumerate(numbers.tolist()) if n})


def _sliding_sum(values: np.ndarray, n: int) -> np.ndarray:
    """Sums of each ``n`` neighbors along the first axis."""
    # Sums of 1, 2, 4, ... neighbors; those that n is made of are put side by side.
    run, length, total, covered = values, 1, None, 0
    outputs = len(values) - n + 1
    while covered < n:
        if n & length:
            piece = run[covered : covered + outputs]
            total = piece if total is None else total + piece
            covered += length
        if covered < n:
            run, length = run[:-length] + run[length:], 2 * length
    assert total is not None
    return total


@dataclass(frozen=True)
class Smoothing:
    """Width of the Gaussian on each head."""

    sigma: float
    """Standard deviation, pixels."""
    neighbors: int | None = None
    """Take ``beta`` times the mean distance to so many nearest heads instead, where there are so many others."""
    beta: float = 0.3

    def sigmas(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """The standard deviation at each head, pixels.

        Source of the geometry-adaptive width: Zhang et al., CVPR 2016; arXiv:1802.10062, equation 1.
        """
        if self.neighbors is None or len(points) <= self.neighbors:
            return torch.full((len(points),), self.sigma, dtype=torch.float64)
        distances, _ = KDTree(points.numpy()).query(points.numpy(), k=self.neighbors + 1)  # the nearest is itself
        return torch.from_numpy(self.beta * distances[:, 1:].mean(axis=1)).clamp(min=MIN_SIGMA)


def smoothed_counts(
    points: Float[Tensor, "n 2"], sigmas: Float[Tensor, " n"], *, height: int, width: int, block_size: int
) -> Float[Tensor, "rows cols"]:
    """Heads in each block after a Gaussian has spread each of them inside the image.

    Each Gaussian is integrated over the blocks, not sampled, and what of it lies outside the image is
    given back to the blocks inside in proportion.

    Args:
        points: inside the image.
        sigmas: standard deviation at each point, pixels, above 0.

    Returns:
        Heads per block, in float64; sums to ``n``.
    """
    by_column, by_row = (
        _gaussian_shares(points[:, axis], sigmas, blocks=size // block_size, block_size=block_size)
        for axis, size in ((0, width), (1, height))
    )
    return by_row.T @ by_column


def _gaussian_shares(
    x: Float[Tensor, " n"], sigmas: Float[Tensor, " n"], *, blocks: int, block_size: int
) -> Float[Tensor, "n blocks"]:
    """Along one axis: the share of each Gaussian in each block; those of a point sum to 1. In float64."""
    ends = block_size * torch.arange(blocks + 1, dtype=torch.float64)
    below = torch.special.ndtr((ends - x.double()[:, None]) / sigmas.double()[:, None])
    shares = below.diff(dim=1).clamp(min=0)  # a last bit of two ends far from the head may say less than nothing
    return shares / shares.sum(1, keepdim=True)


def inside(points: Float[Tensor, "n 2"], *, width: int, height: int) -> Bool[Tensor, " n"]:
    """Which points lie in [0, width) x [0, height)."""
    return ((points >= 0) & (points < points.new_tensor([width, height]))).all(dim=1)


def clamp_into(points: Float[Tensor, "n 2"], *, width: int, height: int) -> Float[Tensor, "n 2"]:
    """Move points outside [0, width) x [0, height) onto its border, the last float inside."""
    return torch.minimum(points.clamp(min=0), _below(points.new_tensor([width, height])))


def crop(
    points: Float[Tensor, "n 2"], *, left: int, top: int, width: int, height: int
) -> tuple[Float[Tensor, "kept 2"], Bool[Tensor, " n"]]:
    """Points in the window [left, left + width) x [top, top + height), as seen from its corner.

    Returns:
        The points that are kept, and which ones these are.
    """
    shifted = points - points.new_tensor([left, top])
    keep = inside(shifted, width=width, height=height)
    return shifted[keep], keep


def flip(points: Float[Tensor, "n 2"], *, width: int) -> Float[Tensor, "n 2"]:
    """Mirror left and right: x becomes width - x, kept in the mirrored pixel.

    A head in pixel column p lands in column width - 1 - p, and so in the mirrored block for every
    block size. Where width - x is the column's right edge (x on a pixel's left edge, or so close
    that the difference rounds to it), it becomes the next smaller float.

    Args:
        points: inside the image of that width.
    """
    # Released code: width - 1 - x, which shifts every fractional position by a pixel and needs
    # a clamp; here: the mirror image of the plane, because positions are not pixel indices.
    x = points[:, 0]
    column = width - 1 - x.floor()
    mirrored = torch.minimum(torch.maximum(width - x, column), _below(column + 1))
    return torch.stack([mirrored, points[:, 1]], dim=1)


def scale(
    points: Float[Tensor, "n 2"], *, from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "n 2"]:
    """Move points along with an image that is resized; none rounds over the border.

    Args:
        points: inside the image of ``from_size``.
        from_size, to_size: (width, height) in pixels.
    """
    # Released code: clamps to width - 1, which moves heads by up to a pixel; here: the last float.
    ratio = torch.tensor(to_size, dtype=torch.float64) / torch.tensor(from_size, dtype=torch.float64)
    moved = (points.double() * ratio).to(points.dtype)
    return clamp_into(moved, width=to_size[0], height=to_size[1])


def one_head_per_pixel(points: Float[Tensor, "n 2"]) -> Float[Tensor, "kept 2"]:
    """The first point of each pixel, in the given order."""
    _, pixel = torch.unique(points.floor(), dim=0, return_inverse=True)
    order = torch.arange(len(points))
    first = torch.full((len(points),), len(points)).scatter_reduce(0, pixel, order, "amin")
    return points[first[first < len(points)].sort().values]


def _below(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The greatest float below ``value``."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def spread_blocks(
    blocks: Float[np.ndarray, "rows cols"], *, image: tuple[int, int], panel: tuple[int, int], block_size: int
) -> Float[np.ndarray, "height width"]:
    """Share block counts among the equal cells of a map of another size; the sum stays.

    Each block's heads are spread evenly over the part of the block inside the image.

    Args:
        blocks: heads per block, the last ones may reach over the image.
        image: height and width of the image, pixels.
        panel: height and width of the map, pixels.
        block_size: side of a block, pixels of the image.
    """
    down, across = (
        _shares(n, side=side, pixels=pixels, block_size=block_size)
        for n, side, pixels in zip(blocks.shape, image, panel, strict=True)
    )
    return down @ blocks @ across.T


def _shares(n: int, *, side: int, pixels: int, block_size: int) -> Float[np.ndarray, "pixels n"]:
    """Share of each of ``n`` blocks along a side of the image that falls into each pixel of the map."""
    blocks = np.minimum(np.arange(n + 1) * block_size, side)
    edges = np.linspace(0, side, pixels + 1)
    low = np.maximum(edges[:-1, None], blocks[:-1])
    high = np.minimum(edges[1:, None], blocks[1:])
    return np.maximum(high - low, 0) / np.diff(blocks)
