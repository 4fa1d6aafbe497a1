"""Average counts of one picture: of its mirror image, of other sizes of it, of several networks.

Block counts are averaged on one grid: a block that lies in several of its blocks is divided among them by area, so
that no head is lost. Where the grids agree, as those of a mirror image whose width is a multiple of the block size,
this is exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from headcount.config import SlidingWindowConfig, View, WholeImageConfig
from headcount.types import Counted


@dataclass(frozen=True)
class GridPlace:
    """The block grid of an image, as a part of the picture that the image shows."""

    height: int
    width: int
    block_size: int
    """Side of a block, in pixels."""
    mirrored: bool = False
    """Whether the image is flipped horizontally."""

    @classmethod
    def of(cls, image: UInt8[Tensor, "3 height width"], block_size: int, *, mirrored: bool = False) -> "GridPlace":
        """The grid of blocks of ``block_size`` pixels over a whole image."""
        return cls(image.shape[1], image.shape[2], block_size, mirrored)


def average(
    counted: Sequence[Counted],
    grids: Sequence[GridPlace],
    *,
    onto: GridPlace,
    mode: WholeImageConfig | SlidingWindowConfig,
) -> Counted:
    """The mean of several counts of one picture.

    Args:
        counted: counts of the picture.
        grids: the block grid of each.
        onto: the grid of the result, which is not mirrored.
        mode: how the picture was counted, for the result.

    Returns:
        Blocks are None if any count has none. So are probabilities and variances unless all grids have the same blocks:
        in blocks of another size, the same bins mean other densities.
    """
    blocks = [one.blocks for one in counted]
    maps = [one.probabilities for one in counted]
    same = all((grid.height, grid.width, grid.block_size) == _size(onto) for grid in grids)
    probabilities = None
    if same and all(of_bins is not None for of_bins in maps):
        placed = [_place(of_bins, grid, onto, per_block=True) for of_bins, grid in zip(maps, grids, strict=True)]  # type: ignore[arg-type]
        probabilities = torch.stack(placed).mean(0).float()
    averaged, variance = None, None
    if all(block is not None for block in blocks):
        placed = [place_blocks(block, grid, onto=onto) for block, grid in zip(blocks, grids, strict=True)]  # type: ignore[arg-type]
        averaged = torch.stack(placed).mean(0).float()
        if same and all(one.variance is not None for one in counted):
            # A block's distribution is the mixture of all: mean squares are averaged.
            squares = [one.variance + one.blocks.square() for one in counted]  # type: ignore[operator, union-attr]
            placed = [_place(square, grid, onto, per_block=True) for square, grid in zip(squares, grids, strict=True)]
            variance = (torch.stack(placed).mean(0) - averaged.double().square()).clamp(min=0).float()
    return Counted(
        count=math.fsum(one.count for one in counted) / len(counted),
        blocks=averaged,
        probabilities=probabilities,
        mode=mode,
        reason=next((one.reason for one in counted if one.reason), ""),
        variance=variance,
        measured={
            name: math.fsum(one.measured[name] for one in counted) / len(counted) for name in counted[0].measured
        },
    )


def place_blocks(
    blocks: Float[Tensor, "rows cols"], grid: GridPlace, *, onto: GridPlace
) -> Float64[Tensor, "new_rows new_cols"]:
    """Block counts on another grid over the same picture; their sum stays the same."""
    return _place(blocks, grid, onto, per_block=False)


def _place(maps: Float[Tensor, "*maps rows cols"], grid: GridPlace, onto: GridPlace, *, per_block: bool) -> Tensor:
    """Maps on another grid.

    Args:
        per_block: average the values of all blocks that a new block overlaps, as for probabilities; otherwise divide
            the value of each block among the new ones.
    """
    down = _overlaps(grid.height, grid.block_size, onto.height, onto.block_size)
    across = _overlaps(grid.width, grid.block_size, onto.width, onto.block_size, mirrored=grid.mirrored)
    over = 0 if per_block else 1
    down, across = (lengths / lengths.sum(over, keepdim=True) for lengths in (down, across))
    return down.T @ maps.double() @ across


def _overlaps(
    side: int, block_size: int, new_side: int, new_block_size: int, *, mirrored: bool = False
) -> Float64[Tensor, "blocks new_blocks"]:
    """How much of each block along one side lies in each new block; both sides are the whole picture's.

    In units that make all edges whole numbers, so that blocks that agree overlap in one only.
    """
    edges, new_edges = (
        torch.arange(-(-length // block) + 1).mul(block).clamp(max=length) * unit
        for length, block, unit in ((side, block_size, new_side), (new_side, new_block_size, side))
    )
    low, high = edges[:-1, None], edges[1:, None]
    if mirrored:
        low, high = side * new_side - high, side * new_side - low
    return (torch.minimum(high, new_edges[1:]) - torch.maximum(low, new_edges[:-1])).clamp(min=0).double()


def _size(grid: GridPlace) -> tuple[int, int, int]:
    return grid.height, grid.width, grid.block_size


def show_view(image: UInt8[Tensor, "3 height width"], view: View, *, multiple: int) -> UInt8[Tensor, "3 _ _"]:
    """An image as a view shows it.

    Args:
        multiple: the sides of an image of another size are rounded to multiples of this, in pixels.
    """
    if view.scale != 1:
        size = [max(1, round(side * view.scale / multiple)) * multiple for side in image.shape[1:]]
        resized = interpolate(image[None].float(), size, mode="bicubic", antialias=True)
        image = resized[0].round_().clamp_(0, 255).byte()
    return image.flip(2) if view.mirrored else image
