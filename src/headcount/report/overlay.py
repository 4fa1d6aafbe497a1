"""A density map laid over the photo it was predicted from.

Smoothed a little, for the eye only: the count in the text is the sum of the data. A large photo is drawn shrunk.
"""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from torch import Tensor

from headcount.data.points import spread_blocks
from headcount.report.pictures import shorten

_COLORS = "turbo"
_FROM, _TO = 0.1, 0.93  # part of the colors: neither black, which hides in dark photos, nor as dark a red
_LONG_SIDE = 1400  # pixels of the drawn photo
_DPI = 100
_SMOOTHING = 0.7  # blocks
_LEAST_SCALE = 0.2  # heads a block; what is less is noise, and is not blown up to full color
_STRONGEST = 0.8  # share of color at the densest place; the rest is photo
_BLACK, _WHITE = 0.15, 0.8  # what they become, so that colors are seen on dark and on light photos alike
_LETTER = 12  # pixels


def overlay_picture(
    image: UInt8[Tensor, "3 height width"],
    block_counts: Float[Tensor, "rows cols"],
    path: Path,
    *,
    block_size: int,
    title: str,
) -> None:
    """Draw the photo in gray with its density in color, the count above it and a scale beside it.

    Args:
        image: the photo the blocks belong to.
        block_counts: expected heads in each block; the last ones may reach over the image.
        path: the picture's file; its ending says the format.
        block_size: side of a block, pixels of ``image``.
        title: written above the count.
    """
    _, height, width = image.shape
    shrink = min(1.0, _LONG_SIDE / max(height, width))
    panel = max(1, round(height * shrink)), max(1, round(width * shrink))
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(panel[::-1], Image.Resampling.BOX)
    gray = _BLACK + (_WHITE - _BLACK) * np.asarray(photo.convert("L"), dtype=np.float32) / 255
    blocks = block_counts.double().numpy()
    per_block = _per_block(blocks, image=(height, width), panel=panel, block_size=block_size)
    scale = max(_LEAST_SCALE, float(per_block.max()))

    inches = max(panel[1] / _DPI, 4.0) + 1.1, max(panel[0] / _DPI, 2.4) + 0.7
    figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    axis.imshow(_blend(gray, per_block / scale), interpolation="antialiased")
    axis.set_axis_off()
    name = shorten(title, int(inches[0] * _DPI / _LETTER))
    figure.suptitle(f"{name}\n{float(blocks.sum()):.1f} people", fontsize=14, parse_math=False)
    # The scale as it looks on a photo of middle gray.
    levels = np.linspace(0, 1, 256)
    seen = ListedColormap(_blend(np.full(256, (_BLACK + _WHITE) / 2), levels))
    bar = figure.colorbar(ScalarMappable(Normalize(0, scale), seen), ax=axis, fraction=0.04, pad=0.01)
    bar.set_label(f"people per block of {block_size} x {block_size} pixels")
    with warnings.catch_warnings():  # a name in a script the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path)


def _per_block(
    blocks: Float[np.ndarray, "rows cols"], *, image: tuple[int, int], panel: tuple[int, int], block_size: int
) -> Float[np.ndarray, "height width"]:
    """Smoothed heads per block at each pixel of the panel; of a whole block also where the image ends within one."""
    smooth = ndimage.gaussian_filter(blocks, _SMOOTHING, mode="reflect")
    visible = [
        (np.minimum(np.arange(1, n + 1) * block_size, side) - np.arange(n) * block_size) / block_size
        for n, side in zip(blocks.shape, image, strict=True)
    ]
    shown = spread_blocks(smooth * np.outer(*visible), image=image, panel=panel, block_size=block_size)
    return shown * panel[0] * panel[1] * block_size**2 / (image[0] * image[1])


def _blend(gray: Float[np.ndarray, "*shape"], share: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Colors for a share from 0 to 1 over a gray from 0 to 1."""
    share = share.clip(0, 1)
    color = colormaps[_COLORS](_FROM + (_TO - _FROM) * share)[..., :3]
    # The square root lets single people be seen beside a crowd.
    weight = _STRONGEST * np.minimum(1, 1.5 * np.sqrt(share))[..., None]
    return (1 - weight) * gray[..., None] + weight * color
