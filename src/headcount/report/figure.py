"""Images from sparse to dense over their true and their predicted density: figure 6 of arXiv:2403.09281.

Drawn through matplotlib's objects, never pyplot. The truth is smoothed for the eye only; the counts in
the texts are those of the data.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage
from torch import Tensor

from headcount.config import ConfigError
from headcount.data.points import spread_blocks
from headcount.report.pictures import COLORS, LEAST_SCALE, ComparisonRow, shorten, thumbnail

FORMATS = (".png", ".pdf", ".svg")

# Standard deviation of the Gaussian on each true head, blocks: a head spreads over its block and the next ones.
_SIGMA_BLOCKS = 0.75
# But at least so many pixels of a panel, or single heads could not be seen.
_LEAST_SIGMA = 1.0

_DPI = 200
_WIDTH = 15.0
"""Of the whole figure, inches, where the panels' least and greatest height allow it."""
_PANEL_HEIGHT = (1.3, 2.8)
_ASPECTS = (0.6, 2.4)
"""Width / height of a panel, at least and at most; an image beyond gets blank space beside it."""
_LEAST_COLUMN = 1.7
_LEAST_WIDTH = 6.5
"""Of all columns together: a title has to fit."""
_LEFT, _GAP, _TOP, _BOTTOM = 1.0, 0.12, 0.75, 1.05
_LETTER = 0.1
"""Width of a letter of a column's title, inches."""


def check_format(path: Path) -> None:
    """Refuse a file that no picture can be written to.

    Raises:
        ConfigError: lists the endings that are allowed.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {path}: a figure's file ends in {', '.join(FORMATS)}; type figure.png, say")


def spread_over_ranks(counts: Sequence[float], n: int) -> list[int]:
    """Indices of ``n`` images from the sparsest to the densest, at equal steps of rank; equal counts keep their order.

    One alone is the median.

    Raises:
        ValueError: if there are fewer images, or ``n`` is below 1.
    """
    if not 1 <= n <= len(counts):
        raise ValueError(f"{n} images of {len(counts)}: must be 1 to {len(counts)}")
    ranked = sorted(range(len(counts)), key=lambda index: counts[index])
    last = len(counts) - 1
    steps = [last / 2] if n == 1 else [k * last / (n - 1) for k in range(n)]
    return [ranked[round(step)] for step in steps]


def density_maps(
    column: ComparisonRow, *, panel: tuple[int, int]
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """True and predicted density at the size of a panel, heads per block; both keep the heads inside the image.

    The mean of a map times the number of blocks that fit into the image (fractions included) is the count.

    Args:
        column: the image.
        panel: height and width, pixels.
    """
    _, height, width = column.image.shape
    scale = panel[0] / height, panel[1] / width
    heads = _heads_in_pixels(column.points, scale=scale, panel=panel)
    sigma = [max(_SIGMA_BLOCKS * column.block_size * s, _LEAST_SIGMA) for s in scale]
    truth = ndimage.gaussian_filter(heads, sigma, mode="reflect")  # reflection keeps the sum
    blocks = column.predicted_blocks.double().numpy()
    prediction = spread_blocks(blocks, image=(height, width), panel=panel, block_size=column.block_size)
    per_block = column.block_size**2 * scale[0] * scale[1]  # pixels of the panel in a block
    return truth * per_block, prediction * per_block


def _heads_in_pixels(
    points: Float[Tensor, "n 2"], *, scale: tuple[float, float], panel: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Annotated heads in each pixel of a panel; one outside the image is shown at its border."""
    heads = np.zeros(panel)
    x, y = points.double().numpy().T
    row, col = (np.floor(v * s).astype(int).clip(0, n - 1) for v, s, n in zip((y, x), scale, panel, strict=True))
    np.add.at(heads, (row, col), 1)
    return heads


def density_figure(columns: Sequence[ComparisonRow], path: Path, *, title: str = "") -> None:
    """Draw each image in a column: the image, its smoothed truth, the prediction; below them the counts.

    Truth and prediction of a column have one color scale, which its color bar shows.

    Args:
        columns: from left to right.
        path: its ending says the format: one of ``FORMATS``.
        title: what was counted, and by what.

    Raises:
        ConfigError: if the ending is another.
        ValueError: if there is no image.
    """
    check_format(path)
    if not columns:
        raise ValueError("a figure needs at least one image")
    aspects = [float(np.clip(c.image.shape[2] / c.image.shape[1], *_ASPECTS)) for c in columns]
    room = _WIDTH - _LEFT - _GAP * len(columns)
    tall = float(np.clip(room / sum(aspects), *_PANEL_HEIGHT))
    least = max(_LEAST_COLUMN, _LEAST_WIDTH / len(columns))
    wide = [max(aspect * tall, least) for aspect in aspects]
    figure_size = (_LEFT + sum(wide) + _GAP * len(wide), _TOP + 3 * tall + 2 * _GAP + _BOTTOM)
    figure = Figure(figsize=figure_size, dpi=_DPI)

    def box(left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Inches as shares of the figure."""
        return left / figure_size[0], bottom / figure_size[1], width / figure_size[0], height / figure_size[1]

    bottoms = [_BOTTOM + k * (tall + _GAP) for k in (2, 1, 0)]
    left = _LEFT
    for column, width in zip(columns, wide, strict=True):
        panel = _panel_pixels(column, box_inches=(tall, width))
        maps = density_maps(column, panel=panel)
        scale = max(LEAST_SCALE, *(float(m.max()) for m in maps))
        axes = [figure.add_axes(box(left, bottom, width, tall)) for bottom in bottoms]
        axes[0].imshow(_fitted(column, panel), interpolation="antialiased")
        for axis, values in zip(axes[1:], maps, strict=True):
            drawn = axis.imshow(values, cmap=COLORS, vmin=0, vmax=scale, interpolation="antialiased")
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        axes[0].set_title(shorten(column.name, int(width / _LETTER)), fontsize=11, parse_math=False)

        inset = 0.06 * width
        bar_axis = figure.add_axes(box(left + inset, _BOTTOM - 0.2, width - 2 * inset, 0.1))
        bar = figure.colorbar(drawn, cax=bar_axis, orientation="horizontal", ticks=MaxNLocator(3))
        bar.ax.tick_params(labelsize=9, length=2, pad=1)
        middle = (left + width / 2) / figure_size[0]
        predicted = float(column.predicted_blocks.double().sum())
        for text, y in ((f"true {column.true_count:g}", 0.38), (f"predicted {predicted:.1f}", 0.14)):
            figure.text(middle, y / figure_size[1], text, ha="center", va="baseline", fontsize=12, fontweight="bold")
        left += width + _GAP
    for (head, note), bottom in zip(
        (("IMAGE", ""), ("TRUTH", "heads, smoothed\nfor display"), ("PREDICTION", "blocks, as\ncounted")),
        bottoms,
        strict=True,
    ):
        y = (bottom + tall / 2) / figure_size[1]
        figure.text(0.22 / figure_size[0], y, head, rotation=90, ha="center", va="center", fontsize=13, weight="bold")
        x = 0.62 / figure_size[0]
        figure.text(x, y, note, rotation=90, ha="center", va="center", fontsize=9, multialignment="center")
    x, y = 0.88 / figure_size[0], (_BOTTOM - 0.15) / figure_size[1]
    figure.text(x, y, "heads\nper block", ha="right", va="center", fontsize=9)
    figure.text(x, 0.26 / figure_size[1], "counts", ha="right", va="center", fontsize=12, fontweight="bold")
    figure.suptitle(title, fontsize=13, y=1 - 0.1 / figure_size[1], va="top", parse_math=False)
    figure.savefig(path)


def _panel_pixels(column: ComparisonRow, *, box_inches: tuple[float, float]) -> tuple[int, int]:
    """Height and width, in pixels of the picture, of the image as large as it fits into its box."""
    _, height, width = column.image.shape
    scale = min(box_inches[0] * _DPI / height, box_inches[1] * _DPI / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _fitted(column: ComparisonRow, panel: tuple[int, int]) -> np.ndarray:
    """The image in a panel's pixels, so that all three rows have one shape."""
    return np.asarray(Image.fromarray(thumbnail(column.image, max(panel))).resize(panel[::-1]))
