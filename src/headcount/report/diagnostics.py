"""Draw diagnostics of an evaluation: scatter plot of counts, errors by count level, reliability diagram.

Drawn with matplotlib's objects rather than pyplot.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from headcount.metrics import Metrics, Reliability
from headcount.report.pictures import save_figure, shorten
from headcount.types import ImageCount

_DPI = 110
_BLUE, _ORANGE, _GRAY = "#0072b2", "#d55e00", "#777777"
# Axes are logarithmic if the largest count exceeds this many times the 10th percentile of the counts above zero.
_LOG_RATIO = 20
_NAMED_IMAGES = 5
# A fraction of fewer blocks is unreliable; its point is drawn hollow.
_MIN_BLOCKS = 30
_MAX_NAME_LENGTH = 34
_MAX_TICKS = 8


def scatter_picture(images: Sequence[ImageCount], path: Path, *, title: str = "") -> None:
    """Draw predicted against true counts with the diagonal; the images with the largest errors are numbered and named.

    Both axes have the same scale. Counts that span decades get logarithmic axes, which are linear between 0 and 1 so
    that images without people can be shown.

    Args:
        images: at least one.
        path: the picture file; its suffix determines the format.
        title: written above the plot.

    Raises:
        ValueError: if there is no image.
        OSError: if the file cannot be written.
    """
    if not images:
        raise ValueError("a scatter of counts needs at least one image")
    true = np.array([image.true for image in images])
    predicted = np.array([image.predicted for image in images])
    figure = Figure(figsize=(10.2, 6.4), dpi=_DPI)
    axis = figure.add_axes((0.08, 0.1, 0.51, 0.81))
    low, high = _scale(axis, true, predicted)
    axis.plot([low, high], [low, high], color=_GRAY, linestyle="--", linewidth=1, zorder=1)
    alpha = float(np.clip(20 / math.sqrt(len(images)), 0.35, 0.9))
    axis.scatter(true, predicted, s=22, color=_BLUE, alpha=alpha, linewidths=0, zorder=2)
    worst = np.argsort(-np.abs(predicted - true), kind="stable")[:_NAMED_IMAGES]
    axis.scatter(true[worst], predicted[worst], s=44, facecolors="none", edgecolors=_ORANGE, linewidths=1.4, zorder=3)
    _number(axis, np.stack([true, predicted], axis=1), worst)
    axis.set_xlabel("true count, heads", fontsize=11)
    axis.set_ylabel("predicted count, heads", fontsize=11)
    axis.grid(alpha=0.3)
    figure.text(0.62, 0.9, "largest errors", fontsize=12, fontweight="bold", va="top", color=_ORANGE)
    for number, index in enumerate(worst, start=1):
        y = 0.93 - 0.085 * number
        name = shorten(images[index].name, _MAX_NAME_LENGTH)
        error = f"     true {true[index]:g}, predicted {predicted[index]:.1f} ({predicted[index] - true[index]:+.1f})"
        figure.text(0.62, y, f"{number}  {name}", fontsize=10, va="top", parse_math=False)
        figure.text(0.62, y - 0.031, error, fontsize=9.5, va="top", color="#444444")
    figure.text(0.62, 0.135, "dashed: no error;\nabove: too many, below: too few", fontsize=10, va="center")
    figure.suptitle(title, fontsize=12, y=0.975, parse_math=False)
    save_figure(figure, path)


def _number(axis: Axes, points: Float[np.ndarray, "n 2"], chosen: Int[np.ndarray, " k"]) -> None:
    """Number the chosen points from 1; the numbers avoid each other and, if possible, all points."""
    everywhere = axis.transData.transform(points)  # needs the final limits and scale
    taken = list(everywhere[chosen])
    box = axis.get_window_extent()
    for number, index in enumerate(chosen, start=1):
        pixels = everywhere[index]
        candidates = [
            pixels + radius * np.array([math.cos(angle), math.sin(angle)])
            for radius in (18, 30, 44, 60)
            for angle in math.pi * (0.5 + np.arange(8) / 4)
        ]
        within = [c for c in candidates if box.x0 + 9 < c[0] < box.x1 - 9 and box.y0 + 9 < c[1] < box.y1 - 9]
        apart = [c for c in within if min(math.dist(c, t) for t in taken) > 17]
        free = [c for c in apart if np.linalg.norm(everywhere - c, axis=1).min() > 12]
        spot = (free or apart or within or candidates)[0]
        taken.append(spot)
        text = axis.annotate(
            str(number),
            points[index],
            xytext=(spot - pixels) * 72 / axis.figure.dpi,
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=10,
            fontweight="bold",
            color=_ORANGE,
            arrowprops={"arrowstyle": "-", "color": _ORANGE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4},
            zorder=4,
        )
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _scale(axis: Axes, true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Give both axes the same scale, limits and ticks; returns the limits."""
    values = np.concatenate([true, predicted])
    high = max(float(values.max()), 1.0)
    positive = true[true > 0]
    if len(positive) and high > _LOG_RATIO * float(np.quantile(positive, 0.1, method="lower")):
        least = float(values.min())
        low = least / 1.25 if least >= 1 else min(1.25 * least, 0.0) - 0.15
        limits = (low, 1.35 * high)
        axis.set_xscale("symlog", linthresh=1, linscale=0.5)
        axis.set_yscale("symlog", linthresh=1, linscale=0.5)
        ticks = _log_ticks(*limits)
    else:
        least = min(float(values.min()), 0.0)
        margin = 0.05 * (high - least)
        limits = (least - margin, high + margin)
        ticks = [t for t in MaxNLocator(6).tick_values(least, high) if limits[0] <= t <= limits[1]]
    for side in (axis.xaxis, axis.yaxis):
        side.set_ticks(ticks, [f"{tick:g}" if abs(tick) < 1e6 else f"{tick:.0e}" for tick in ticks])
        side.set_ticks([], minor=True)
    axis.set(xlim=limits, ylim=limits)
    return limits


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two limits, at most about ``_MAX_TICKS`` of them."""
    decades = range(math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [float(step * 10**k) for k in decades for step in steps]
        within = [tick for tick in [0.0, *ticks] if low <= tick <= high]
        if len(within) <= _MAX_TICKS:
            break
    return within


def levels_picture(metrics: Metrics, path: Path, *, title: str = "") -> None:
    """Draw MAE, RMSE and NAE by level of the true count; levels without images are left out.

    Args:
        metrics: of the evaluation.
        path: the picture file; its suffix determines the format.
        title: written above the plots.

    Raises:
        OSError: if the file cannot be written.
    """
    levels = [(name, errors) for name, errors in metrics.levels.items() if errors is not None]
    figure = Figure(figsize=(max(7.5, 2.2 + 2.1 * len(levels)), 5.0), dpi=_DPI, layout="constrained")
    absolute, relative = figure.subplots(1, 2, width_ratios=(3, 2))
    at = np.arange(len(levels))
    for shift, name, color in ((-0.2, "mae", _BLUE), (0.2, "rmse", _ORANGE)):
        _bars(absolute, at + shift, [getattr(e, name) for _, e in levels], 0.38, ".1f", name.upper(), color)
    absolute.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2, fontsize=10, frameon=False)
    _bars(relative, at, [e.nae for _, e in levels], 0.55, ".3f", "NAE", _BLUE)
    ticks = [f"{name}\n{e.images} image{'' if e.images == 1 else 's'}" for name, e in levels]
    for axis, heading, unit in (
        (absolute, "absolute", "error, heads per image"),
        (relative, "relative to the true count (NAE)", "mean of error / true count"),
    ):
        axis.set_xticks(at, ticks, fontsize=8.5)
        axis.set_title(heading, fontsize=11, loc="left")
        axis.set_ylabel(unit, fontsize=10)
        axis.set_xlim(-0.6, len(levels) - 0.4)
        axis.margins(y=0.2)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.supxlabel("true count, heads", fontsize=10)
    figure.suptitle(title, fontsize=12, parse_math=False)
    save_figure(figure, path)


def _bars(
    axis: Axes, at: np.ndarray, values: Sequence[float], width: float, style: str, label: str, color: str
) -> None:
    """Draw bars with their values on top; NaN, of a level without people, is labeled as such."""
    known = [0.0 if math.isnan(value) else value for value in values]
    axis.bar(at, known, width, color=color, label=label)
    for x, value, height in zip(at, values, known, strict=True):
        text = "no\npeople" if math.isnan(value) else f"{value:{style}}"
        axis.annotate(text, (x, height), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5)


def reliability_picture(reliability: Reliability, path: Path, *, title: str = "") -> None:
    """Draw a reliability diagram per bin: the observed fraction of blocks against the predicted probability.

    Bars below each diagram show the number of blocks behind each point of all blocks; points of few blocks are hollow.
    A second curve shows the blocks outside the first bin, which is usually that of the empty blocks.

    Args:
        reliability: with the blocks of at least one image.
        path: the picture file; its suffix determines the format.
        title: written above the diagrams.

    Raises:
        ValueError: if no block was added.
        OSError: if the file cannot be written.
    """
    error = reliability.calibration_error()
    if math.isnan(error):
        raise ValueError("a reliability diagram needs at least one block")
    bins = len(reliability.names)
    across = min(bins, 6)
    across = math.ceil(bins / math.ceil(bins / across))  # rows of about the same length
    down = math.ceil(bins / across)
    figure = Figure(figsize=(max(2.7 * across + 0.5, 7.5), 3.7 * down + 1.2), dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(2 * down, across, height_ratios=(5, 2) * down)
    for k in range(bins):
        row, col = divmod(k, across)
        fractions = figure.add_subplot(grid[2 * row, col])
        blocks = figure.add_subplot(grid[2 * row + 1, col], sharex=fractions)
        _draw_reliability(fractions, blocks, reliability, k)
        if col == 0:
            fractions.set_ylabel("observed fraction", fontsize=10)
            blocks.set_ylabel("all blocks,\nlog scale", fontsize=10)
        if k + across >= bins:
            blocks.set_xlabel("predicted probability", fontsize=10)
    lines = [title] if title else []
    lines.append(f"expected calibration error {error:.4f} over all blocks (blue)")
    note = f"hollow: fewer than {_MIN_BLOCKS} blocks; dashed: calibrated"
    occupied = reliability.occupied
    if occupied is not None and not math.isnan(without := occupied.calibration_error()):
        outside = f"blocks outside bin {reliability.names[0]}"
        lines.append(f"{without:.4f} over the {short_number(occupied.blocks[0].sum())} {outside} (orange)")
        note += f"\norange: {outside}, and the bins' probabilities given that a block is one of them"
    figure.suptitle("\n".join(lines), fontsize=12, parse_math=False)
    figure.supxlabel(note, fontsize=9, parse_math=False)
    save_figure(figure, path)


def _draw_reliability(fraction_axis: Axes, block_axis: Axes, reliability: Reliability, k: int) -> None:
    """Draw the reliability of bin ``k``, and the number of blocks behind each point of all blocks."""
    buckets = reliability.blocks.shape[1]
    fraction_axis.plot([0, 1], [0, 1], color=_GRAY, linestyle="--", linewidth=1)
    if reliability.occupied is not None and k:
        _draw_fractions(fraction_axis, reliability.occupied, k - 1, _ORANGE)
    _draw_fractions(fraction_axis, reliability, k, _BLUE)
    fraction_axis.set(xlim=(0, 1), ylim=(0, 1), yticks=[0, 0.5, 1])
    fraction_axis.tick_params(labelbottom=False)
    fraction_axis.grid(alpha=0.3)
    fraction_axis.set_title(f"bin {reliability.names[k]}", fontsize=11, parse_math=False)
    # The bar of a single block must be visible, and the text above the highest bar must fit.
    top = 0.5 * (2 * max(float(reliability.blocks.max()), 10)) ** 1.75
    edges = np.linspace(0, 1, buckets + 1)
    seen = reliability.blocks[k] > 0
    blocks = reliability.blocks[k, seen]
    centers = ((edges[:-1] + edges[1:]) / 2)[seen]
    block_axis.bar(centers, blocks, 0.8 / buckets, color="#9ecae1", log=True)
    block_axis.set(ylim=(0.5, top), xticks=[0, 0.5, 1], yticks=[])
    block_axis.minorticks_off()
    for center, count in zip(centers, blocks, strict=True):
        block_axis.annotate(
            short_number(count),
            (center, count),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=8,
        )


def _draw_fractions(axis: Axes, reliability: Reliability, k: int, color: str) -> None:
    """Draw the observed fractions of bin ``k``; those of few blocks are hollow."""
    seen = reliability.blocks[k] > 0
    blocks = reliability.blocks[k, seen]
    x, y = reliability.probability[k, seen] / blocks, reliability.observed[k, seen] / blocks
    axis.plot(x, y, color=color, linewidth=1.2, clip_on=False, zorder=3)
    for chosen, fill in ((blocks >= _MIN_BLOCKS, color), (blocks < _MIN_BLOCKS, "white")):
        axis.scatter(x[chosen], y[chosen], s=28, facecolors=fill, edgecolors=color, clip_on=False, zorder=4)


def short_number(value: float) -> str:
    """Abbreviate a count to about four characters: 950, 1.2k, 34k, 5.6M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            scaled = value / unit
            return f"{scaled:.1f}{name}" if scaled < 9.95 else f"{scaled:.0f}{name}"
    return f"{value:.0f}"
