"""Operations on head positions: count them in blocks and windows, smooth, crop, flip, scale and clamp them.

A point (x, y) is a position in pixels, x right, y down; an image covers [0, width) x [0, height). Every function
returns new tensors and keeps points inside that half-open area despite rounding: a rounding error must not move a head
out of its image or into another block. Pixels are changed in ``data.augment``.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_MIN_KEPT = 1e-6
MIN_SIGMA = 0.1
"""Smallest standard deviation, pixels. Heads at the same position have no distance to adapt to, and block counts of a
narrower Gaussian equal those of a point."""


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
        ValueError: if a size is not a multiple of ``block_size`` or a point lies outside.

    Source: arXiv:2403.09281, section III-A.
    """
    for side, size in (("height", height), ("width", width)):
        if size < 1 or size % block_size:
            raise ValueError(f"{side} {size} is not a positive multiple of the block size {block_size}")
    within = inside(points, width=width, height=height)
    if not bool(within.all()):
        x, y = points[~within][0].tolist()
        raise ValueError(f"point ({x:g}, {y:g}) lies outside the {width} x {height} image; clamp_into moves it inside")
    rows, cols = height // block_size, width // block_size
    # Whole pixels first: a float division may round a point just left of an edge onto it.
    block = points.floor().long() // block_size
    return torch.bincount(block[:, 1] * cols + block[:, 0], minlength=rows * cols).view(rows, cols).float()


def window_counts(
    points: Float[Tensor, "n 2"],
    *,
    height: int,
    width: int,
    window: int,
    inside_mask: Bool[np.ndarray, "height width"] | None = None,
) -> Counter[int]:
    """Count the windows of an image that hold 0, 1, 2, ... heads.

    Windows are all squares of ``window`` x ``window`` pixels inside the image, at every pixel; an image smaller than
    that has none. Two heads in one pixel count as one, and points outside the image are ignored. The published
    representative counts are means over these windows.

    Args:
        points: (x, y) in pixels of this image.
        height, width: image size, pixels.
        window: side of a window, pixels.
        inside_mask: pixels inside the mask, if there is one; only windows entirely inside are counted.

    Returns:
        Number of windows by number of heads.
    """
    if min(height, width) < window:
        return Counter()
    column, row = points[inside(points, width=width, height=height)].floor().long().unbind(1)
    # Small integers, because memory bandwidth is the limit: an image has as many windows as pixels.
    heads = np.zeros((height, width), dtype=np.uint16 if window < 256 else np.uint32)
    heads[row.numpy(), column.numpy()] = 1
    sums = _sliding_sum(_sliding_sum(heads, window).T, window)
    if inside_mask is not None:
        pixels = _sliding_sum(_sliding_sum(inside_mask.astype(heads.dtype), window).T, window)
        sums = sums[pixels == window**2]
    numbers = np.bincount(sums[sums > 0], minlength=1)  # Most windows are empty.
    numbers[0] = sums.size - numbers.sum()
    return Counter({count: n for count, n in enumerate(numbers.tolist()) if n})


def _sliding_sum(values: np.ndarray, n: int) -> np.ndarray:
    """Sum each ``n`` consecutive values along the first axis."""
    # Sums of 1, 2, 4, ... values; those in the binary form of n are concatenated to runs of n.
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
    """Width of the Gaussian that replaces each head."""

    sigma: float
    """Standard deviation, pixels."""
    neighbors: int | None = None
    """Use ``beta`` times the mean distance to this many nearest heads instead of ``sigma``, in images with that many
    other heads; None uses ``sigma`` everywhere."""
    beta: float = 0.3
    """Factor of the mean distance."""

    def sigmas(self, points: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Return the standard deviation at each head, pixels, in float64.

        Source of the geometry-adaptive width: Zhang et al., CVPR 2016; arXiv:1802.10062, equation 1.
        """
        if self.neighbors is None or len(points) <= self.neighbors:
            return torch.full((len(points),), self.sigma, dtype=torch.float64)
        from scipy.spatial import KDTree  # late: takes time to load, and few settings need it

        distances, _ = KDTree(points.numpy()).query(
            points.numpy(), k=self.neighbors + 1
        )  # The nearest is the head itself.
        return torch.from_numpy(self.beta * distances[:, 1:].mean(axis=1)).clamp(min=MIN_SIGMA)


def smoothed_counts(
    points: Float[Tensor, "n 2"],
    sigmas: Float[Tensor, " n"],
    *,
    height: int,
    width: int,
    block_size: int,
    inside: Float[Tensor, "rows cols"] | None = None,
) -> Float[Tensor, "rows cols"]:
    """Count the heads in each block after replacing each head by a Gaussian.

    Each Gaussian is integrated over the blocks, not sampled, and the part of it outside the image, or outside its mask,
    is redistributed proportionally to the blocks inside.

    Args:
        points: (x, y) in pixels, inside the image.
        sigmas: standard deviation at each point, pixels, above 0.
        height, width: image size in pixels, multiples of ``block_size``.
        inside: share of each block inside the mask; None without a mask.

    Returns:
        Heads per block, in float64; sums to ``n``.
    """
    by_column = _gaussian_shares(points[:, 0], sigmas, blocks=width // block_size, block_size=block_size)
    by_row = _gaussian_shares(points[:, 1], sigmas, blocks=height // block_size, block_size=block_size)
    if inside is None:
        return by_row.T @ by_column
    inside = inside.double()
    kept = ((by_row @ inside) * by_column).sum(1, keepdim=True)
    # Not 0 but for a narrow Gaussian on the edge of a block that is outside.
    return inside * (by_row.T @ (by_column / kept.clamp(min=_MIN_KEPT)))


def _gaussian_shares(
    x: Float[Tensor, " n"], sigmas: Float[Tensor, " n"], *, blocks: int, block_size: int
) -> Float[Tensor, "n blocks"]:
    """Return the share of each Gaussian in each block along one axis, in float64; the shares of a point sum to 1."""
    ends = block_size * torch.arange(blocks + 1, dtype=torch.float64)
    below = torch.special.ndtr((ends - x.double()[:, None]) / sigmas.double()[:, None])
    shares = below.diff(dim=1).clamp(min=0)  # Far from the head, rounding may make it negative.
    return shares / shares.sum(1, keepdim=True)


def inside(points: Float[Tensor, "n 2"], *, width: int, height: int) -> Bool[Tensor, " n"]:
    """Return which points lie in [0, width) x [0, height)."""
    return ((points >= 0) & (points < points.new_tensor([width, height]))).all(dim=1)


def clamp_into(points: Float[Tensor, "n 2"], *, width: int, height: int) -> Float[Tensor, "n 2"]:
    """Move points outside [0, width) x [0, height) onto its border: 0, or the last float below the size."""
    return torch.minimum(points.clamp(min=0), _below(points.new_tensor([width, height])))


def crop(
    points: Float[Tensor, "n 2"], *, left: int, top: int, width: int, height: int
) -> tuple[Float[Tensor, "kept 2"], Bool[Tensor, " n"]]:
    """Keep the points in the window [left, left + width) x [top, top + height).

    Returns:
        The points that are kept, relative to the window's top left corner, and a mask of which ones these are.
    """
    shifted = points - points.new_tensor([left, top])
    keep = inside(shifted, width=width, height=height)
    return shifted[keep], keep


def flip(points: Float[Tensor, "n 2"], *, width: int) -> Float[Tensor, "n 2"]:
    """Mirror points horizontally: x becomes width - x, kept in the mirrored pixel.

    A head in pixel column p moves to column width - 1 - p, and so to the mirrored block for every block size. If
    width - x is the column's right edge (x is on a pixel's left edge, or so close that the difference rounds to it),
    it becomes the next smaller float.

    Args:
        points: (x, y) in pixels, inside the image.
        width: image width, pixels.
    """
    # Released code: width - 1 - x, which shifts every fractional position by a pixel and needs
    # a clamp; here: width - x, because positions are coordinates in the plane, not pixel indices.
    x = points[:, 0]
    column = width - 1 - x.floor()
    mirrored = torch.minimum(torch.maximum(width - x, column), _below(column + 1))
    return torch.stack([mirrored, points[:, 1]], dim=1)


def scale(
    points: Float[Tensor, "n 2"], *, from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float[Tensor, "n 2"]:
    """Scale points together with an image that is resized; rounding moves none out of the image.

    Args:
        points: (x, y) in pixels, inside the image of ``from_size``.
        from_size, to_size: (width, height) in pixels.
    """
    # Released code: clamps to width - 1, which moves heads by up to a pixel; here: to the last float
    # below width, because a position may be anywhere in the last pixel.
    ratio = torch.tensor(to_size, dtype=torch.float64) / torch.tensor(from_size, dtype=torch.float64)
    moved = (points.double() * ratio).to(points.dtype)
    return clamp_into(moved, width=to_size[0], height=to_size[1])


def one_head_per_pixel(points: Float[Tensor, "n 2"]) -> Float[Tensor, "kept 2"]:
    """Keep the first point of each pixel, in the given order."""
    _, pixel = torch.unique(points.floor(), dim=0, return_inverse=True)
    order = torch.arange(len(points))
    first = torch.full((len(points),), len(points)).scatter_reduce(0, pixel, order, "amin")
    return points[first[first < len(points)].sort().values]


def _below(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the greatest float below ``value``."""
    return torch.nextafter(value, torch.full_like(value, -torch.inf))


def distribute_blocks(
    blocks: Float[np.ndarray, "rows cols"], *, image: tuple[int, int], panel: tuple[int, int], block_size: int
) -> Float[np.ndarray, "height width"]:
    """Resample block counts to a map of another size with the same sum.

    The heads of a block are distributed evenly over the part of the block inside the image.

    Args:
        blocks: heads per block; the last ones may extend beyond the image.
        image: height and width of the image, pixels.
        panel: height and width of the map, pixels; its cells divide the image evenly.
        block_size: side of a block, pixels of the image.

    Returns:
        Heads per cell of the map; sums to the sum of ``blocks``.
    """
    down = _shares(blocks.shape[0], side=image[0], pixels=panel[0], block_size=block_size)
    across = _shares(blocks.shape[1], side=image[1], pixels=panel[1], block_size=block_size)
    return down @ blocks @ across.T


def _shares(n: int, *, side: int, pixels: int, block_size: int) -> Float[np.ndarray, "pixels n"]:
    """Return the share of each of ``n`` blocks, along one side of the image, that falls into each pixel of the map."""
    blocks = np.minimum(np.arange(n + 1) * block_size, side)
    edges = np.linspace(0, side, pixels + 1)
    low = np.maximum(edges[:-1, None], blocks[:-1])
    high = np.minimum(edges[1:, None], blocks[1:])
    return np.maximum(high - low, 0) / np.diff(blocks)
