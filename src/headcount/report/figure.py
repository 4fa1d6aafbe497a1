"""Draw images from sparse to dense above their true and predicted density, as figure 6 of arXiv:2403.09281.

Drawn with matplotlib's objects rather than pyplot. Truth and prediction are drawn as in the other pictures
(``pictures.draw_panels``): smoothed alike for display only; the counts in the captions are those of the unsmoothed
data.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headcount.config import ConfigError
from headcount.report.pictures import ComparisonRow, draw_panels, maps_note, save_figure, shorten

FORMATS = (".png", ".pdf", ".svg")

# All sizes below are in inches.
_DPI = 200
_WIDTH = 15.0
"""Width of the whole figure, where the limits of the panels' height allow it."""
_PANEL_HEIGHT = (1.3, 2.8)
"""Minimum and maximum."""
_ASPECTS = (0.6, 2.4)
"""Minimum and maximum of a panel's width / height; an image beyond these gets blank space beside it."""
_MIN_COLUMN_WIDTH = 1.7
_MIN_COLUMNS_WIDTH = 6.5
"""Of all columns together: the title must fit."""
_LEFT, _GAP, _TOP, _BOTTOM = 0.9, 0.12, 0.75, 1.5
_LETTER_WIDTH = 0.1
"""Of a letter in a column's title."""
_ROWS = ("IMAGE", "TRUTH", "PREDICTION")
"""Heading of each row."""


def check_format(path: Path) -> None:
    """Check the suffix of a figure's file.

    Raises:
        ConfigError: if it is not one of ``FORMATS``; lists them.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--output {path}: a figure's file ends in {', '.join(FORMATS)}; for example figure.png")


def choose_by_rank(counts: Sequence[float], n: int) -> list[int]:
    """Choose ``n`` images at equal steps of the rank of their counts, the sparsest and the densest included.

    A single image is the median.

    Args:
        counts: heads in each image.
        n: number of images to choose.

    Returns:
        Indices from the sparsest to the densest; images with equal counts keep their order.

    Raises:
        ValueError: if ``n`` is below 1 or above the number of images.
    """
    if not 1 <= n <= len(counts):
        raise ValueError(f"{n} images of {len(counts)}: must be 1 to {len(counts)}")
    ranked = sorted(range(len(counts)), key=lambda index: counts[index])
    last = len(counts) - 1
    steps = [last / 2] if n == 1 else [k * last / (n - 1) for k in range(n)]
    return [ranked[round(step)] for step in steps]


def density_figure(columns: Sequence[ComparisonRow], path: Path, *, title: str = "") -> None:
    """Draw one column per image: the image, its truth, the prediction; the counts below them.

    Truth and prediction of a column are smoothed alike and share a color scale, which the color bar below them shows.

    Args:
        columns: from left to right.
        path: the file; its suffix, one of ``FORMATS``, determines the format.
        title: what was counted, and by which counter.

    Raises:
        ConfigError: if the suffix is not one of ``FORMATS``.
        ValueError: if there is no image.
        OSError: if the file cannot be written.
    """
    check_format(path)
    if not columns:
        raise ValueError("a figure needs at least one image")
    aspects = [float(np.clip(c.image.shape[2] / c.image.shape[1], *_ASPECTS)) for c in columns]
    available = _WIDTH - _LEFT - _GAP * len(columns)
    row_height = float(np.clip(available / sum(aspects), *_PANEL_HEIGHT))
    min_width = max(_MIN_COLUMN_WIDTH, _MIN_COLUMNS_WIDTH / len(columns))
    widths = [max(aspect * row_height, min_width) for aspect in aspects]
    size = (_LEFT + sum(widths) + _GAP * len(widths), _TOP + 3 * row_height + 2 * _GAP + _BOTTOM)
    figure = Figure(figsize=size, dpi=_DPI)
    left = _LEFT
    for column, width in zip(columns, widths, strict=True):
        _draw_column(figure, column, left=left, width=width, row_height=row_height)
        left += width + _GAP
    x = 0.78 / size[0]
    for heading, bottom in zip(_ROWS, _row_bottoms(row_height), strict=True):
        y = (bottom + row_height / 2) / size[1]
        figure.text(0.5 / size[0], y, heading, rotation=90, ha="center", va="center", fontsize=13, weight="bold")
    figure.text(x, (_BOTTOM - 0.15) / size[1], "heads\nper block", ha="right", va="center", fontsize=9)
    figure.text(x, 0.71 / size[1], "counts", ha="right", va="center", fontsize=12, fontweight="bold")
    figure.text(0.5, 0.08 / size[1], maps_note(columns), ha="center", va="bottom", fontsize=9, multialignment="center")
    figure.suptitle(title, fontsize=13, y=1 - 0.1 / size[1], va="top", parse_math=False)
    save_figure(figure, path)


def _draw_column(figure: Figure, column: ComparisonRow, *, left: float, width: float, row_height: float) -> None:
    """Draw one image with its densities, color bar and counts; positions and sizes in inches."""
    figure_width, figure_height = figure.get_size_inches()

    def box(left: float, bottom: float, width: float, height: float) -> tuple[float, float, float, float]:
        """From inches to fractions of the figure."""
        return left / figure_width, bottom / figure_height, width / figure_width, height / figure_height

    axes = [figure.add_axes(box(left, bottom, width, row_height)) for bottom in _row_bottoms(row_height)]
    drawn = draw_panels(column, axes, photo_side=int(_PANEL_HEIGHT[1] * _DPI))
    axes[0].set_title(shorten(column.name, int(width / _LETTER_WIDTH)), fontsize=11, parse_math=False)

    inset = 0.06 * width
    bar_axis = figure.add_axes(box(left + inset, _BOTTOM - 0.2, width - 2 * inset, 0.1))
    bar = figure.colorbar(drawn, cax=bar_axis, orientation="horizontal", ticks=MaxNLocator(3))
    bar.ax.tick_params(labelsize=9, length=2, pad=1)
    middle = (left + width / 2) / figure_width
    predicted = float(column.predicted_blocks.double().sum())
    for text, y in ((f"true {column.true_count:g}", 0.83), (f"predicted {predicted:.1f}", 0.59)):
        figure.text(middle, y / figure_height, text, ha="center", va="baseline", fontsize=12, fontweight="bold")


def _row_bottoms(row_height: float) -> list[float]:
    """Lower edges of the three rows from top to bottom, in inches."""
    return [_BOTTOM + k * (row_height + _GAP) for k in (2, 1, 0)]
