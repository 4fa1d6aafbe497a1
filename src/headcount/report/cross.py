"""Write evaluations of several counters on several datasets as a matrix: tables, numbers, and a heat map."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tabulate import tabulate

from headcount.files import write_csv, write_json, write_text
from headcount.report.markdown import code, pipe_table, plain
from headcount.report.pictures import save_figure

MARKDOWN_FILE, CSV_FILE, JSON_FILE, PICTURE_FILE = "cross.md", "cross.csv", "cross.json", "cross.png"

_DPI = 110
_COLORS = "viridis_r"  # large errors are dark
_FAILED = "#d9d9d9"
# Minimum ratio of the MAEs at both ends of a column's color scale: nearly equal errors look alike.
_MIN_RANGE = 2.0


@dataclass
class CrossCell:
    """The evaluation of one counter on one dataset."""

    mae: float | None = None
    rmse: float | None = None
    images: int = 0
    own: bool = False
    """Whether the counter was trained on this dataset."""
    selected: bool = False
    """Whether this split selected its checkpoint, which makes the errors optimistic."""
    error: str | None = None
    """Why the evaluation failed; None if it did not."""
    covered: float | None = None
    """Share of the images whose true count lies in their 90 % interval; None for a counter that is not calibrated for
    that level."""
    width: float | None = None
    """Mean width of these intervals, in heads."""


@dataclass
class CrossRow:
    """The evaluations of one counter."""

    checkpoint: str
    trained_on: str | None
    """Its training dataset; None, like model and seed, for a checkpoint that cannot be read."""
    model: str | None
    seed: int | None
    cells: list[CrossCell]
    """One per column of the matrix."""


@dataclass
class CrossMatrix:
    """All evaluations: counters in rows, datasets in columns."""

    columns: list[tuple[str, str]]
    """Dataset and split."""
    rows: list[CrossRow]

    def column_names(self) -> list[str]:
        """Dataset and split of each column."""
        return [f"{dataset} {split}" for dataset, split in self.columns]

    def row_names(self) -> list[str]:
        """Training dataset and model of each row; equal names get the seed or, if needed, the checkpoint."""
        names = [f"{row.trained_on} {row.model}" if row.trained_on else row.checkpoint for row in self.rows]
        positions: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            positions.setdefault(name, []).append(k)
        for group in positions.values():
            if len(group) > 1:
                endings = [f"seed {self.rows[k].seed}" for k in group]
                if len(set(endings)) < len(group):
                    endings = [f"({path})" for path in _shortened([self.rows[k].checkpoint for k in group])]
                for k, ending in zip(group, endings, strict=True):
                    names[k] += f" {ending}"
        return names

    def failures(self) -> list[str]:
        """The errors of failed evaluations, each with the cells it occurred in."""
        cells: dict[str, list[str]] = {}
        for name, row in zip(self.row_names(), self.rows, strict=True):
            for column, cell in zip(self.column_names(), row.cells, strict=True):
                if cell.error is not None:
                    cells.setdefault(cell.error, []).append(f"{name} on {column}")
        return [f"{'; '.join(names)}: {error}" for error, names in cells.items()]


def _shortened(paths: Sequence[str]) -> list[str]:
    """Paths without their common first folders and their common file name."""
    parts = [Path(path).parts for path in paths]
    first = next((k for k, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), None)
    last = -1 if len({p[-1] for p in parts}) == 1 else None
    return ["/".join(p[first:last]) or p[-1] for p in parts]


def write_cross(matrix: CrossMatrix, folder: Path) -> str:
    """Write cross.md, cross.csv, cross.json and cross.png.

    Args:
        matrix: the evaluations.
        folder: created if missing.

    Returns:
        The table, for a terminal.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARKDOWN_FILE, markdown(matrix))
    rows: list[list[object]] = [["checkpoint", "trained_on", "model", "seed", "dataset", "split", *_cell_keys()]]
    for row in matrix.rows:
        for (dataset, split), cell in zip(matrix.columns, row.cells, strict=True):
            counter = [row.checkpoint, row.trained_on, row.model, row.seed]
            rows.append([*counter, dataset, split, *(getattr(cell, key) for key in _cell_keys())])
    write_csv(folder / CSV_FILE, rows)
    plain = {
        "columns": [{"dataset": dataset, "split": split} for dataset, split in matrix.columns],
        "rows": [dataclasses.asdict(row) for row in matrix.rows],
    }
    write_json(folder / JSON_FILE, plain)
    save_figure(cross_figure(matrix), folder / PICTURE_FILE)
    return terminal_table(matrix)


def _cell_keys() -> list[str]:
    return [field.name for field in dataclasses.fields(CrossCell)]


def terminal_table(matrix: CrossMatrix) -> str:
    """Format MAE / RMSE of every cell for a terminal, with notes on the marks."""
    alignment = ["left"] + ["right"] * len(matrix.columns)
    tables = [
        tabulate(rows, headings, tablefmt="plain", disable_numparse=True, colalign=alignment)
        for headings, *rows in (_texts(matrix), _interval_texts(matrix))
        if rows
    ]
    return "\n".join([*tables, *_notes(matrix)])


def markdown(matrix: CrossMatrix) -> str:
    """Format the same as a page of Markdown, with the errors of failed evaluations and the checkpoints."""
    lines = ["# Evaluation across datasets", "", *pipe_table(_texts(matrix), numbers_from=1), ""]
    if len(intervals := _interval_texts(matrix)) > 1:
        lines += [*pipe_table(intervals, numbers_from=1), ""]
    lines += _notes(matrix)
    failures = matrix.failures()
    if failures:
        lines += ["", "## Failed", "", *("* " + plain(failure.split("\n")[0]) for failure in failures)]
    checkpoints = zip(matrix.row_names(), matrix.rows, strict=True)
    lines += ["", "## Checkpoints", "", *(f"* {plain(name)}: {code(row.checkpoint)}" for name, row in checkpoints)]
    return "\n".join(lines) + "\n"


def _texts(matrix: CrossMatrix) -> list[list[str]]:
    """The texts of the table, headings first."""
    rows = [["trained on, model", *matrix.column_names()]]
    for name, row in zip(matrix.row_names(), matrix.rows, strict=True):
        rows.append([name, *(_text(cell) + _mark(cell) for cell in row.cells)])
    return rows


def _interval_texts(matrix: CrossMatrix) -> list[list[str]]:
    """Coverage and width of the calibrated intervals, headings first; no other rows if no counter is calibrated."""
    rows = [["90 % intervals", *matrix.column_names()]]
    for name, row in zip(matrix.row_names(), matrix.rows, strict=True):
        if any(cell.covered is not None for cell in row.cells):
            rows.append([name, *map(_interval_text, row.cells)])
    return rows


def _interval_text(cell: CrossCell) -> str:
    if cell.covered is None or cell.width is None:
        return "-"
    return f"{100 * cell.covered:.1f} % / {cell.width:.1f}"


def _text(cell: CrossCell) -> str:
    return "failed" if cell.mae is None or cell.rmse is None else f"{cell.mae:.2f} / {cell.rmse:.2f}"


def _mark(cell: CrossCell) -> str:
    return "" if not cell.own else " **" if cell.selected else " *"


def _notes(matrix: CrossMatrix) -> list[str]:
    cells = [cell for row in matrix.rows for cell in row.cells]
    notes = ["MAE / RMSE, in heads per image."]
    if any(cell.covered is not None for cell in cells):
        notes.append("Of 90 % intervals: share of images whose true count they hold / mean width, in heads.")
    if any(cell.own and not cell.selected for cell in cells):
        notes.append("`*`: the counter's own training dataset.")
    if any(cell.own and cell.selected for cell in cells):
        notes.append(
            "`**`: the counter's own training dataset; this split selected the checkpoint, which makes it optimistic."
        )
    counts = {
        name: sorted({row.cells[k].images for row in matrix.rows if row.cells[k].mae is not None})
        for k, name in enumerate(matrix.column_names())
    }
    known = [f"{name} {' or '.join(map(str, images))}" for name, images in counts.items() if images]
    return notes + ([f"Images: {', '.join(known)}."] if known else [])


# ------------------------------------------------------------------------------------------ picture


def cross_figure(matrix: CrossMatrix) -> Figure:
    """Draw the matrix as a heat map; colors compare the counters within a column, as datasets differ in scale."""
    names, columns = matrix.row_names(), matrix.column_names()
    # Space for the longest texts: about 0.09 inches per letter, a little more for bold ones.
    texts = [_text(cell) for row in matrix.rows for cell in row.cells]
    wide = max(1.7, *(0.1 * len(name) + 0.2 for name in [*columns, *texts]))
    left = 0.09 * max(len(name) for name in names) + 0.6
    figure = Figure(
        figsize=(max(left + wide * len(columns) + 1.4, 6.0), 0.75 * len(names) + 1.9), dpi=_DPI, layout="constrained"
    )
    axis = figure.subplots()
    colors = matplotlib.colormaps[_COLORS]
    shades = [_shades([row.cells[k].mae for row in matrix.rows]) for k in range(len(columns))]
    for y, row in enumerate(matrix.rows):
        for x, cell in enumerate(row.cells):
            shade = shades[x][y]
            fill = to_rgb(_FAILED) if shade is None else colors(shade)[:3]
            axis.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="white", linewidth=2))
            ink = readable_on(fill)
            if cell.own:
                inset = 0.045
                side = 1 - 2 * inset
                axis.add_patch(
                    Rectangle((x + inset, y + inset), side, side, fill=False, edgecolor=ink, linewidth=2, gid="own")
                )
            weight = "bold" if cell.own else "normal"
            axis.text(x + 0.5, y + 0.5, _text(cell), color=ink, ha="center", va="center", fontsize=11, weight=weight)
    axis.set(xlim=(0, len(columns)), ylim=(len(names), 0))
    axis.set_xticks([k + 0.5 for k in range(len(columns))], columns, parse_math=False)
    axis.set_yticks([k + 0.5 for k in range(len(names))], names, parse_math=False)
    axis.xaxis.tick_top()
    axis.tick_params(length=0, labelsize=11)
    for spine in axis.spines.values():
        spine.set_visible(False)
    scale = matplotlib.cm.ScalarMappable(cmap=colors)
    bar = figure.colorbar(scale, ax=axis, fraction=0.05, pad=0.02, ticks=[0, 1])
    bar.ax.set_yticklabels(["best of\nits column", "worst, at\nleast twice\nthe best"], fontsize=9)
    figure.suptitle("MAE / RMSE: counters (rows) on datasets (columns)", fontsize=13)
    figure.supxlabel("outlined: the counter's own training dataset", fontsize=10)
    return figure


def _shades(errors: Sequence[float | None]) -> list[float | None]:
    """From 0 for the lowest error of a column to 1 for the highest, logarithmically; None without an error."""
    known = [error for error in errors if error is not None]
    if not known:
        return [None] * len(errors)
    lowest = max(min(known), 1e-6)
    log_range = math.log(max(max(known) / lowest, _MIN_RANGE))
    return [None if error is None else math.log(max(error, lowest) / lowest) / log_range for error in errors]


def readable_on(fill: tuple[float, float, float]) -> str:
    """Choose black or white, whichever has the higher contrast to ``fill``; the contrast is at least 4.5.

    Args:
        fill: background color, RGB from 0 to 1.
    """
    return "black" if contrast("black", fill) >= contrast("white", fill) else "white"


def contrast(ink: str, fill: tuple[float, float, float]) -> float:
    """Compute the contrast ratio of two colors, from 1 to 21.

    Args:
        ink: any color of matplotlib.
        fill: RGB from 0 to 1.

    Source: WCAG 2.1, relative luminance and contrast ratio.
    """
    light = []
    for color in (to_rgb(ink), fill):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)
