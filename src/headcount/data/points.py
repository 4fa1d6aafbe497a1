"""Head positions as plain tensors: count them in blocks, crop, flip, scale and tidy them.

A point (x, y) is a position in pixels, x right, y down; an image covers [0, width) x [0, height).
Every function returns new tensors and keeps points inside that half-open area, whatever rounding
does: a head must not leave its image, nor change its block, because of a last bit. Nothing here
touches pixels (``data.augment``).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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
