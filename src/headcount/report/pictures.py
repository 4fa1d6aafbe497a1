"""Pictures of predictions beside the annotations, and of training curves.

Drawn with matplotlib's objects rather than pyplot, so that no global state changes and no display is needed. The maps
show heads per block. Truth and prediction are smoothed in the same way, for display only, and share a color scale: the
counts in the captions are sums of the unsmoothed data.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator
from PIL import Image
from scipy import ndimage
from torch import Tensor

from headcount.data.points import distribute_blocks
from headcount.files import atomic_write
from headcount.types import Sample, SampleMask
from headcount.wording import printable

COLORS = "inferno"
# Lowest maximum of a color scale, in heads per block: noise in an empty image stays dark.
MIN_SCALE = 0.5
MAPS_NOTE = (
    "heads per block, truth and prediction smoothed alike (Gaussian, sigma = 1 block)\n"
    "one color scale for both, from 0 to the larger maximum; square root, so that low densities are visible"
)
"""How the maps of truth and prediction are drawn; stated in the pictures."""
MASK_NOTE = "gray: outside the mask, not counted"
# Standard deviation in blocks: single annotated heads become as wide as predicted ones. Stated in MAPS_NOTE.
_SMOOTHING = 1.0
_MAX_NAME_LENGTH = 40
# Longer curves have a line without markers, except for errors, which are not known at every epoch.
_MAX_MARKED_EPOCHS = 30
_PANEL_INCHES = 3.6
_DPI = 110
# matplotlib refuses pictures of 65536 pixels or more; pictures of very many rows get a lower resolution.
_MAX_PIXELS = 60_000
_TENSORBOARD_PANEL = 256
_TENSORBOARD_GAP = 4
_MASK_CELLS = 400  # along the longer side of an image
_GRAY, _OPACITY = 0.5, 0.6


@dataclass
class ComparisonRow:
    """One image of a comparison picture."""

    image: UInt8[Tensor, "3 height width"]
    points: Float[Tensor, "n 2"]
    """Annotated heads (x, y), in pixels of the image."""
    true_count: float
    predicted_blocks: Float[Tensor, "rows cols"]
    """Expected heads in each block; blocks at the right and bottom may extend beyond the image."""
    block_size: int
    """Side of a block, in pixels."""
    name: str
    mask: SampleMask | None = None
    """Where heads are counted; everything else is drawn under gray. None counts everywhere."""


def comparison_picture(rows: Sequence[ComparisonRow], path: Path, *, title: str = "") -> None:
    """Draw one row per image: photo with the annotated heads, true density, predicted density.

    Truth and prediction of a row share a color scale.

    Args:
        rows: from top to bottom.
        path: the picture file; its suffix determines the format.
        title: written above all rows.

    Raises:
        ValueError: if there are no rows.
        OSError: if the file cannot be written.
    """
    if not rows:
        raise ValueError("a comparison picture needs at least one row")
    # Panels of very wide and very tall images have limited proportions; the rest of the panel stays blank.
    tall = [float(np.clip(row.image.shape[1] / row.image.shape[2], 0.3, 1.6)) for row in rows]
    inches = (3 * _PANEL_INCHES + 0.9, sum(_PANEL_INCHES * t + 0.35 for t in tall) + 1.0)
    figure = Figure(figsize=inches, dpi=min(_DPI, _MAX_PIXELS / inches[1]), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={"height_ratios": tall})
    for row, row_axes in zip(rows, axes, strict=True):
        _draw_row(figure, row_axes, row)
    for axis, heading in zip(axes[0], ("PHOTO, heads dotted", "TRUTH", "PREDICTION"), strict=True):
        axis.annotate(
            heading,
            (0.5, 1),
            xycoords="axes fraction",
            xytext=(0, 26),
            textcoords="offset points",
            ha="center",
            fontsize=12,
            fontweight="bold",
        )
    figure.suptitle(title, fontsize=13, parse_math=False)
    figure.supxlabel(maps_note(rows), fontsize=10)
    save_figure(figure, path)


def _draw_row(figure: Figure, axes: np.ndarray, row: ComparisonRow) -> None:
    """Draw photo, truth and prediction of one image."""
    photo, truth, prediction = axes
    predicted = float(row.predicted_blocks.double().sum())
    drawn = draw_panels(row, list(axes), photo_side=int(_PANEL_INCHES * _DPI))
    x, y = row.points.double().numpy().T
    photo.scatter(x, y, s=np.clip(500 / max(len(x), 1), 1.5, 7), c="#ffdd00", edgecolors="black", linewidths=0.4)
    bar = figure.colorbar(drawn, ax=[truth, prediction], fraction=0.04, pad=0.01, panchor=False)
    bar.set_label("heads per block")
    for axis, text in (
        (photo, shorten(row.name)),
        (truth, f"true {row.true_count:g}"),
        (prediction, f"predicted {predicted:.1f}, error {predicted - row.true_count:+.1f}"),
    ):
        axis.set_title(text, fontsize=11, parse_math=False)  # a dollar sign in a file name is not a formula


def draw_panels(row: ComparisonRow, axes: Sequence[Axes], *, photo_side: int) -> AxesImage:
    """Draw photo, truth and prediction of one image, without texts.

    Args:
        row: the image.
        axes: one for each of the three.
        photo_side: size in pixels at which the photo is drawn; see :func:`thumbnail`.

    Returns:
        The drawn prediction, whose color scale is also that of the truth; for a color bar.
    """
    _, height, width = row.image.shape
    frame = (0, width, height, 0)
    axes[0].imshow(thumbnail(row.image, photo_side), extent=frame, interpolation="antialiased")
    maps = density_maps(row.points, row.predicted_blocks, row.block_size)
    colors = color_scale(maps)
    rows, cols = maps[0].shape
    whole_blocks = (0, cols * row.block_size, rows * row.block_size, 0)
    for axis, values in zip(axes[1:], maps, strict=True):
        drawn = axis.imshow(values, extent=whole_blocks, cmap=COLORS, norm=colors)
    for axis in axes:
        if row.mask is not None:
            shade_outside(axis, row.mask, height=height, width=width)
        axis.set(xlim=frame[:2], ylim=frame[2:], xticks=[], yticks=[])
    return drawn


def maps_note(rows: Sequence[ComparisonRow]) -> str:
    """State how the maps of these images are drawn."""
    return MAPS_NOTE if all(row.mask is None for row in rows) else f"{MAPS_NOTE}\n{MASK_NOTE}"


def shade_outside(axis: Axes, mask: SampleMask, *, height: int, width: int) -> None:
    """Draw gray over what is outside the mask of an image of ``height`` x ``width`` pixels."""
    cell = _mask_cell(height, width)
    outside = 1 - mask.shares(cell).numpy()
    rows, cols = outside.shape
    shade = np.full((rows, cols, 4), _GRAY)
    shade[..., 3] = _OPACITY * outside
    axis.imshow(shade, extent=(0, cols * cell, rows * cell, 0), interpolation="nearest")


def _mask_cell(height: int, width: int) -> int:
    """Side of the cells, pixels, in which the mask of an image is drawn."""
    return max(1, max(height, width) // _MASK_CELLS)


def density_maps(
    points: Float[Tensor, "n 2"], predicted_blocks: Float[Tensor, "rows cols"], block_size: int
) -> tuple[Float[np.ndarray, "rows cols"], Float[np.ndarray, "rows cols"]]:
    """Compute the true and the predicted heads of each block, smoothed by the same Gaussian, which keeps their sums.

    Args:
        points: annotated heads (x, y), in pixels of the image.
        predicted_blocks: expected heads in each block.
        block_size: side of a block, in pixels.

    Returns:
        Truth and prediction, in heads per block.
    """
    predicted = predicted_blocks.double().numpy()
    return _smooth(_true_blocks(points, predicted.shape, block_size)), _smooth(predicted)


def color_scale(maps: Sequence[Float[np.ndarray, "rows cols"]], *, min_scale: float = MIN_SCALE) -> PowerNorm:
    """Make one color scale for truth and prediction, from 0 to the largest value of both.

    On a linear scale, a map whose values are far below those of the other would look empty.

    Args:
        maps: what is drawn.
        min_scale: lowest maximum of the scale.
    """
    return PowerNorm(0.5, vmin=0, vmax=max(min_scale, *(float(m.max()) for m in maps)))


def density_picture(
    sample: Sample, predicted_blocks: Float[Tensor, "rows cols"], block_size: int
) -> UInt8[np.ndarray, "3 height width"]:
    """Draw photo, truth and prediction side by side, small and fast; for TensorBoard.

    Args:
        sample: the image and its annotated heads.
        predicted_blocks: expected heads in each block.
        block_size: side of a block, in pixels.

    Returns:
        The picture, RGB, 0 to 255.
    """
    _, height, width = sample.image.shape
    shape = (max(1, min(round(_TENSORBOARD_PANEL * height / width), 4 * _TENSORBOARD_PANEL)), _TENSORBOARD_PANEL)
    maps = [
        distribute_blocks(m, image=(height, width), panel=shape, block_size=block_size)
        for m in density_maps(sample.points, predicted_blocks, block_size)
    ]
    # From heads per block to heads per pixel of the panel.
    colors = color_scale(maps, min_scale=MIN_SCALE * height * width / (block_size**2 * shape[0] * shape[1]))
    photo = Image.fromarray(sample.image.permute(1, 2, 0).numpy()).resize(shape[::-1])
    gap = np.full((shape[0], _TENSORBOARD_GAP, 3), 255, np.uint8)
    panels = [np.asarray(photo), *(matplotlib.colormaps[COLORS](colors(m), bytes=True)[:, :, :3] for m in maps)]
    if sample.mask is not None:
        cell = _mask_cell(height, width)
        outside = Image.fromarray(1 - sample.mask.shares(cell).float().numpy())
        part = (0, 0, width / cell, height / cell)
        opacity = _OPACITY * np.asarray(outside.resize(shape[::-1], Image.Resampling.BOX, box=part))[:, :, None]
        panels = [(panel * (1 - opacity) + 255 * _GRAY * opacity).astype(np.uint8) for panel in panels]
    panels = [strip for panel in panels for strip in (gap, panel)][1:]
    return np.ascontiguousarray(np.concatenate(panels, axis=1).transpose(2, 0, 1))


def curve_picture(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the training loss, and MAE and RMSE of the evaluations, with the best epoch marked.

    Args:
        records: one per epoch, as in metrics.jsonl: ``epoch`` and, if known, ``train/total``, ``eval/mae``,
            ``eval/rmse``.
        path: the picture file; its suffix determines the format.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 6.5), dpi=_DPI, layout="constrained")
    loss, errors = figure.subplots(2, 1, sharex=True)
    marker = "o" if len(records) <= _MAX_MARKED_EPOCHS else ""
    _curve(loss, records, "train/total", color="#0072b2", marker=marker)
    loss.set_ylabel("training loss")
    _curve(errors, records, "eval/mae", label="MAE", color="#0072b2", marker="o")
    _curve(errors, records, "eval/rmse", label="RMSE", color="#e69f00", marker="s")
    errors.set(ylabel="error, heads per image", xlabel="epoch")
    evaluated = [r for r in records if np.isfinite(r.get("eval/mae", np.nan))]
    if evaluated:
        best = min(evaluated, key=lambda r: r["eval/mae"])
        errors.axvline(best["epoch"], color="black", linestyle="--", linewidth=1, zorder=1)
        errors.set_title(f"best MAE {best['eval/mae']:.2f} at epoch {best['epoch']} (dashed)", fontsize=11, loc="left")
        # Above the axes, where it covers no point.
        errors.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2)
        from_zero(errors)  # a loss may be negative, an error cannot
    for axis in (loss, errors):
        axis.grid(alpha=0.3)
        if not axis.lines:
            axis.text(0.5, 0.5, "nothing recorded", transform=axis.transAxes, ha="center")
    epoch_axis(errors, [r["epoch"] for r in records])
    save_figure(figure, path)


def epoch_axis(axis: Axes, epochs: Sequence[int]) -> None:
    """Show whole numbers only on the axis of epochs, with space beside the first and the last epoch."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if epochs:
        first, last = min(epochs), max(epochs)
        margin = max(0.5, 0.02 * (last - first))
        axis.set_xlim(first - margin, last + margin)


def from_zero(axis: Axes) -> None:
    """Let the axis of errors begin at zero, with space above the largest one so that no marker is cut."""
    highest = axis.dataLim.y1  # not finite where nothing is drawn
    axis.set_ylim(0, 1.08 * highest if 0 < highest < np.inf else 1)


def _true_blocks(
    points: Float[Tensor, "n 2"], shape: tuple[int, int], block_size: int
) -> Float[np.ndarray, "rows cols"]:
    """Annotated heads in each block; a head outside the image counts in the nearest block."""
    counts = np.zeros(shape)
    x, y = np.floor(points.double().numpy().T / block_size).astype(int)
    np.add.at(counts, (y.clip(0, shape[0] - 1), x.clip(0, shape[1] - 1)), 1)
    return counts


def _smooth(blocks: Float[np.ndarray, "rows cols"]) -> Float[np.ndarray, "rows cols"]:
    return ndimage.gaussian_filter(blocks, _SMOOTHING, mode="reflect")  # reflection keeps the sum


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure atomically.

    Args:
        figure: the figure.
        path: the file; its suffix determines the format, PNG without one.
        options: of matplotlib's ``savefig``.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # they are drawn as boxes
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png", **options)


def shorten(name: str, max_length: int = _MAX_NAME_LENGTH) -> str:
    """Replace the middle of a printable name that has more than ``max_length`` letters by ``...``."""
    name, half = printable(name), max_length // 2
    return name if len(name) <= max_length else f"{name[:half]}...{name[-half:]}"


def thumbnail(image: UInt8[Tensor, "3 height width"], side: int) -> UInt8[np.ndarray, "rows cols 3"]:
    """Shrink an image so that no side is longer than twice ``side``, in pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((2 * side, 2 * side))
    return np.asarray(picture)


def _curve(axis: Axes, records: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    known = [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
    if known:
        axis.plot(*zip(*known, strict=True), **style)
