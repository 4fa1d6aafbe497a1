"""Intervals of an evaluation: how often they held the true count, as a table and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from headcount.config import DEFAULT_LEVEL
from headcount.coverage import Coverage, IntervalMetrics, JudgedImage, JudgedIntervals, LevelMetrics
from headcount.intervals import Calibration, conformal_rank, supported_promises
from headcount.report.pictures import save_figure
from headcount.types import CountInterval
from headcount.wording import many

_DPI = 110
_LINEAR_BELOW = 10  # heads; a logarithmic axis would stretch these
_BLUE, _ORANGE, _GRAY = "#0072b2", "#d55e00", "#777777"


def usual_intervals(intervals: JudgedIntervals) -> dict[str, CountInterval]:
    """The interval of each image at the default level, or the highest below it: calibrated if possible."""
    found = {}
    for image in intervals.best:
        found[image.name] = [of for of in image.intervals if of.level <= DEFAULT_LEVEL][-1]
    return found


def describe_calibration(calibration: Calibration, *, has_variance: bool) -> str:
    """What a calibration promises, as a table for a terminal, indented by two spaces."""
    unit = "deviation of the counter's own distribution" if has_variance else "square root of count + 1"
    rows = []
    for level in supported_promises(len(calibration)):
        score = calibration.scores[conformal_rank(len(calibration), level) - 1]
        rows.append([f"{100 * level:g} %", f"count +- {score:.2f}"])
    table = tabulate(rows, ["level", f"interval, in units of the {unit}"], tablefmt="plain", disable_numparse=True)
    return "\n".join(f"  {line}" for line in table.splitlines())


def intervals_to_plain(intervals: JudgedIntervals) -> dict[str, Any]:
    """The metrics of all intervals as plain values, for metrics.json; None for those that there are not."""
    calibration, own, calibrated = intervals.calibration, intervals.measure_own(), intervals.measure_calibrated()
    return {
        "own": None if own is None else own.to_plain(),
        "calibrated": None if calibrated is None else calibrated.to_plain(),
        "calibration": None
        if calibration is None
        else {
            "images": len(calibration),
            "dataset": calibration.dataset,
            "split": calibration.split,
            "mode": calibration.mode,
            "overlapping": intervals.overlapping,
        },
    }


def describe_intervals(intervals: JudgedIntervals) -> str:
    """The metrics of intervals as tables for a terminal, indented by two spaces; empty without any."""
    lines: list[str] = []
    calibration, own, calibrated = intervals.calibration, intervals.measure_own(), intervals.measure_calibrated()
    if own is not None:
        lines += _table(own, "intervals by the counter's own probabilities, uncalibrated")
    if calibration is not None:
        origin = f"{many(len(calibration), 'image')} of {calibration.dataset} {calibration.split}"
        if calibrated is not None:
            lines += _table(calibrated, f"intervals calibrated on {origin}")
            if calibrated.outside:
                lines.append(
                    f"{calibrated.outside} of {many(calibrated.images, 'image')} unlike those of the calibration"
                )
        if intervals.overlapping:
            left_out = many(intervals.overlapping, "image")
            lines.append(f"{left_out} not judged, being among those of the calibration ({origin})")
    return "\n".join(f"  {line}" for line in lines)


def _table(metrics: IntervalMetrics, title: str) -> list[str]:
    rows = [
        [
            f"{100 * of.level:g} %",
            f"{100 * of.coverage.share:.1f} %",
            f"{100 * of.coverage.low:.1f} to {100 * of.coverage.high:.1f}",
            f"{of.width:.1f}",
            "-" if math.isnan(of.relative_width) else f"{100 * of.relative_width:.0f} %",
            f"{of.score:.1f}",
            _verdict(of),
        ]
        for of in metrics.levels
    ]
    headings = ["promised", "covered", "95 % bounds", "width", "width / true", "Winkler score", ""]
    align = [*["right"] * 6, "left"]
    table = tabulate(rows, headings, tablefmt="plain", disable_numparse=True, colalign=align)
    chosen = _usual_level(metrics)
    crowds = ", ".join(f"{name}: {_share(coverage)}" for name, coverage in chosen.by_crowd.items())
    return [
        f"{title} ({many(metrics.images, 'image')}, CRPS {metrics.crps:.2f})",
        *(f"  {line.rstrip()}" for line in table.splitlines()),
        f"  covered at {100 * chosen.level:g} % by heads: {crowds}",
    ]


def _usual_level(metrics: IntervalMetrics) -> LevelMetrics:
    """The metrics of the default level, or of the highest below it."""
    return [of for of in metrics.levels if of.level <= DEFAULT_LEVEL][-1]


def _share(coverage: Coverage) -> str:
    return f"{coverage.covered} of {coverage.images}"


def _verdict(of: LevelMetrics) -> str:
    """In what the coverage differs from the promise by more than accident."""
    low, high = of.plausible
    return "too narrow" if of.coverage.share < low else "too wide" if of.coverage.share > high else ""


def coverage_picture(intervals: JudgedIntervals, path: Path, *, title: str = "") -> None:
    """Draw coverage against promise, and each image's interval with its true count.

    Args:
        intervals: with at least one image.
        path: the picture file; its suffix determines the format.
        title: written above the plots.

    Raises:
        ValueError: if there is no image.
        OSError: if the file cannot be written.
    """
    calibrated, own = intervals.measure_calibrated(), intervals.measure_own()
    best = calibrated or own
    if best is None:
        raise ValueError("a picture of intervals needs at least one image that has one")
    figure = Figure(figsize=(12.5, 5.4), dpi=_DPI, layout="constrained")
    levels, images = figure.subplots(1, 2, width_ratios=(2, 3))
    for metrics, name, color, shift in (
        (calibrated, "calibrated", _BLUE, 0.004),
        (own, "uncalibrated", _ORANGE, -0.004),
    ):
        if metrics is not None:
            _draw_coverage(levels, metrics, name, color, shift)
    levels.plot([0.4, 1], [0.4, 1], color=_GRAY, linestyle="--", linewidth=1, zorder=1)
    levels.set(xlim=(0.45, 1), ylim=(-0.02, 1.02), xlabel="promised level", ylabel="share of images covered")
    levels.set_title("coverage, with 95 % binomial bounds", fontsize=11, loc="left")
    levels.grid(alpha=0.3)
    levels.legend(loc="lower right", fontsize=10)
    usual = _usual_level(best)
    _draw_images(images, intervals.best, [of.level for of in best.levels].index(usual.level))
    kind = "uncalibrated" if calibrated is None else "calibrated"
    images.set_title(
        f"{100 * usual.level:g} % intervals, {kind}: {_share(usual.coverage)} hold", fontsize=11, loc="left"
    )
    figure.suptitle(title, fontsize=12, parse_math=False)
    save_figure(figure, path)


def _draw_coverage(axis: Axes, metrics: IntervalMetrics, name: str, color: str, shift: float) -> None:
    at = np.array([of.level for of in metrics.levels])
    shares = np.array([of.coverage.share for of in metrics.levels])
    bounds = np.array([[of.coverage.low, of.coverage.high] for of in metrics.levels]).T
    below_and_above = np.abs(bounds - shares)
    axis.errorbar(at + shift, shares, below_and_above, color=color, marker="o", linewidth=1.3, capsize=4, label=name)


def _draw_images(axis: Axes, judged: Sequence[JudgedImage], k: int) -> None:
    """Draw interval ``k`` of each image, in the order of the counts."""
    ordered = sorted(judged, key=lambda image: image.predicted)
    at = np.arange(len(ordered))
    ends = np.array([[image.intervals[k].low, image.intervals[k].high] for image in ordered])
    predicted, true = (np.array([getattr(image, key) for image in ordered]) for key in ("predicted", "true"))
    hit = np.array([image.is_covered(k) for image in ordered])
    width = float(np.clip(220 / len(ordered), 0.6, 5))
    axis.vlines(at, ends[:, 0], ends[:, 1], color="#9ecae1", linewidth=width)
    axis.plot(at, predicted, color=_BLUE, linewidth=1.2, label="count")
    size = float(np.clip(1500 / len(ordered), 5, 25))
    axis.scatter(at[hit], true[hit], s=size, color="black", zorder=3, label="true, within")
    axis.scatter(at[~hit], true[~hit], s=size, color=_ORANGE, marker="D", zorder=4, label="true, outside")
    if predicted.max() > 20 * max(float(np.quantile(predicted, 0.1)), _LINEAR_BELOW):
        axis.set_yscale("symlog", linthresh=_LINEAR_BELOW, linscale=0.5)
        axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=0)
    axis.set(xlabel="images, from the lowest to the highest count", ylabel="heads")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper left", fontsize=10)  # where the images are sparse
