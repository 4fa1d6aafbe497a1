"""Draw a predicted density map over its photo.

The map is smoothed slightly, for display only: the count in the title is the sum of the unsmoothed data. Large photos
are drawn at reduced size.
"""

from collections.abc import Sequence
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

from headcount.data.points import distribute_blocks
from headcount.report.pictures import save_figure, shorten
from headcount.report.regions import DrawnRegion, draw_regions

_COLORS = "turbo"
_FROM, _TO = 0.1, 0.93  # part of the color map that is used: its ends are too dark to be seen in dark photos
_LONG_SIDE = 1400  # maximum side of the drawn photo, in pixels
_DPI = 100
_SMOOTHING = 0.7  # blocks
_MIN_SCALE = 0.2  # lowest maximum of the color scale, in heads per block: noise must not get the full color
_MAX_OPACITY = 0.8  # weight of the color at the densest place; the rest is photo
_BLACK, _WHITE = 0.15, 0.8  # gray levels that replace black and white, so that colors are visible on any photo
_LETTER_WIDTH = 12  # of the title, in pixels


def overlay_picture(
    image: UInt8[Tensor, "3 height width"],
    block_counts: Float[Tensor, "rows cols"],
    path: Path,
    *,
    block_size: int,
    title: str,
    interval: str = "",
    regions: Sequence[DrawnRegion] = (),
) -> None:
    """Draw a photo in gray with its predicted density in color, the count above it and a color bar beside it.

    Args:
        image: the photo.
        block_counts: expected heads in each block; the last blocks may extend beyond the image.
        path: the picture file; its suffix determines the format.
        block_size: side of a block, in pixels of ``image``.
        title: written above the count.
        interval: of the count, as text; empty without one.
        regions: outlined, with name and count.

    Raises:
        OSError: if the file cannot be written.
    """
    _, height, width = image.shape
    shrink = min(1.0, _LONG_SIDE / max(height, width))
    panel = max(1, round(height * shrink)), max(1, round(width * shrink))
    blocks = block_counts.double().numpy()
    drawn, scale = heat_map(image, blocks, panel=panel, block_size=block_size)
    drawn = draw_regions(drawn, regions)
    count = float(blocks.sum())
    framed_picture(drawn, path, count=count, scale=scale, block_size=block_size, title=title, interval=interval)


def framed_picture(
    drawn: UInt8[np.ndarray, "height width 3"],
    path: Path,
    *,
    count: float,
    scale: float,
    block_size: int,
    title: str,
    interval: str = "",
) -> None:
    """Write what :func:`heat_map` drew, with the count above it and a color bar beside it.

    Args:
        drawn: the picture, with its regions.
        path: the picture file; its suffix determines the format.
        count: expected people.
        scale: maximum of the color scale, heads per block.
        block_size: side of a block, in pixels of the picture that was counted.
        title: written above the count.
        interval: of the count, as text; empty without one.

    Raises:
        OSError: if the file cannot be written.
    """
    inches = max(drawn.shape[1] / _DPI, 4.0) + 1.3, max(drawn.shape[0] / _DPI, 2.4) + 0.7
    figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    axis.imshow(drawn, interpolation="antialiased")
    axis.set_axis_off()
    name = shorten(title, int(inches[0] * _DPI / _LETTER_WIDTH))
    people = f"{count:.1f} people  {interval}".rstrip()
    figure.suptitle(f"{name}\n{people}", fontsize=14, parse_math=False)
    colors = ListedColormap(color_scale(256))
    bar = figure.colorbar(ScalarMappable(Normalize(0, scale), colors), ax=axis, fraction=0.04, pad=0.01)
    bar.set_label(f"people per block, smoothed\n(blocks of {block_size} x {block_size} pixels)")
    save_figure(figure, path)


def color_scale(levels: int) -> Float[np.ndarray, "levels 3"]:
    """The colors of :func:`heat_map` from nobody to its maximum, as they look on a medium gray photo; 0 to 1."""
    return _blend(np.full(levels, (_BLACK + _WHITE) / 2), np.linspace(0, 1, levels))


def heat_map(
    image: UInt8[Tensor, "3 height width"],
    blocks: Float[np.ndarray, "rows cols"] | None,
    *,
    panel: tuple[int, int],
    block_size: int,
    scale: float = _MIN_SCALE,
) -> tuple[UInt8[np.ndarray, "panel_height panel_width 3"], float]:
    """A photo in gray with its predicted density in color.

    Args:
        image: the photo.
        blocks: expected heads in each block; None draws the photo alone.
        panel: height and width of the result, pixels.
        block_size: side of a block, in pixels of ``image``.
        scale: lowest maximum of the color scale, heads per block.

    Returns:
        RGB, and the maximum of the color scale.
    """
    photo = resized_photo(image, panel)
    gray = photo.convert("L").point([round(255 * _BLACK + (_WHITE - _BLACK) * level) for level in range(256)])
    if blocks is None:
        return np.asarray(gray.convert("RGB")), scale
    per_block = _per_block(blocks, image=(image.shape[1], image.shape[2]), panel=panel, block_size=block_size)
    scale = max(scale, float(per_block.max()))
    # Tables of 256 levels: the color of every pixel would take most of the time that a frame of a video takes.
    levels = (per_block * (255 / scale)).round().clip(0, 255).astype(np.uint8)
    color, weight = _color(np.linspace(0, 1, 256))
    colored = Image.frombytes("P", gray.size, levels.tobytes())
    colored.putpalette((255 * color).round().astype(np.uint8).tobytes())
    mask = Image.fromarray((255 * weight).round().astype(np.uint8)[levels])
    return np.asarray(Image.composite(colored.convert("RGB"), gray.convert("RGB"), mask)), scale


def resized_photo(image: UInt8[Tensor, "3 height width"], panel: tuple[int, int]) -> Image.Image:
    """A photo in the size in which it is drawn, (height, width) in pixels."""
    smaller = panel[0] <= image.shape[1]
    resampling = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
    return Image.fromarray(image.permute(1, 2, 0).numpy()).resize(panel[::-1], resampling)


def _per_block(
    blocks: Float[np.ndarray, "rows cols"], *, image: tuple[int, int], panel: tuple[int, int], block_size: int
) -> Float[np.ndarray, "height width"]:
    """Smoothed heads per whole block at each pixel of the panel, also in blocks that extend beyond the image."""
    smooth = ndimage.gaussian_filter(blocks, _SMOOTHING, mode="reflect")
    visible = [
        (np.minimum(np.arange(1, n + 1) * block_size, side) - np.arange(n) * block_size) / block_size
        for n, side in zip(blocks.shape, image, strict=True)
    ]
    shown = distribute_blocks(smooth * np.outer(*visible), image=image, panel=panel, block_size=block_size)
    return shown * panel[0] * panel[1] * block_size**2 / (image[0] * image[1])


def _blend(gray: Float[np.ndarray, "*shape"], share: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Blend the color of ``share`` with ``gray``, both from 0 to 1."""
    color, weight = _color(share.clip(0, 1))
    return (1 - weight[..., None]) * gray[..., None] + weight[..., None] * color


def _color(share: Float[np.ndarray, "*shape"]) -> tuple[Float[np.ndarray, "*shape 3"], Float[np.ndarray, "*shape"]]:
    """The color of a density from 0 to 1, and how much of it is blended with the photo."""
    color = colormaps[_COLORS](_FROM + (_TO - _FROM) * share)[..., :3]
    # The square root keeps single people visible beside a crowd.
    return color, _MAX_OPACITY * np.minimum(1, 1.5 * np.sqrt(share))
