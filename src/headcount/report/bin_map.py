"""Draw the most probable count bin of each block over a photo."""

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

_COLORS = "plasma"
_FROM, _TO = 0.4, 0.97  # part of the color map that is used: its dark end cannot be seen in dark photos
_OPACITY = 0.8
_BORDER = 0.85  # brightness of the lines between blocks
_MIN_BLOCK = 6  # drawn pixels; smaller blocks have no lines between them


def bin_colors(bins: int) -> Float[np.ndarray, "bins 3"]:
    """A color for each bin, 0 to 1; the first bin, of empty blocks, has none in the map and is gray here."""
    shares = np.linspace(_FROM, _TO, max(bins - 1, 1))[: bins - 1]
    return np.vstack([np.full((1, 3), 0.6), colormaps[_COLORS](shares)[:, :3]])


def bin_map(
    photo: UInt8[np.ndarray, "height width 3"],
    bins: UInt8[np.ndarray, "rows cols"],
    *,
    number_of_bins: int,
    image_size: tuple[int, int],
    block_size: int,
) -> UInt8[np.ndarray, "height width 3"]:
    """A photo in gray with each block in the color of its most probable bin; blocks of the first bin stay gray.

    Args:
        photo: the picture in the size in which it is drawn.
        bins: the number of each block's bin, from 0; the last blocks may extend beyond the picture.
        number_of_bins: that the counter distinguishes.
        image_size: (width, height) of the picture that the blocks lie on, pixels.
        block_size: side of a block, in pixels of that picture.
    """
    height, width = photo.shape[:2]
    across = (np.arange(width) + 0.5) * image_size[0] / width / block_size
    down = (np.arange(height) + 0.5) * image_size[1] / height / block_size
    drawn = bins[np.ix_(down.astype(int), across.astype(int))]
    color = bin_colors(number_of_bins)[drawn]
    gray = np.repeat(np.asarray(Image.fromarray(photo).convert("L"))[..., None] / 255, 3, axis=2)
    weight = np.where(drawn > 0, _OPACITY, 0.0)[..., None]
    result = gray * (1 - weight) + color * weight
    if min(width / image_size[0], height / image_size[1]) * block_size >= _MIN_BLOCK:
        first = (np.diff(down.astype(int), prepend=0) > 0)[:, None] | (np.diff(across.astype(int), prepend=0) > 0)
        result[first] *= _BORDER
    return (255 * result).round().astype(np.uint8)
