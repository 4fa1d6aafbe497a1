"""Evaluations of several counters on several datasets as a matrix: tables, numbers, and a heat map."""

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from headcount.report.markdown import pipe_table

MARKDOWN, CSV, JSON, PICTURE = "cross.md", "cross.csv", "cross.json", "cross.png"

_DPI = 110
_COLORS = "viridis_r"  # dark is a large error
_FAILED = "#d9d9d9"
# From the best of a column to so many times its MAE the color changes at least: near misses look alike.
_LEAST_RANGE = 2.0


@dataclass
class Cell:
    """One counter on one dataset."""

    mae: float | None = None
    rmse: float | None = None
    images: int = 0
    own: bool = False
    """Whether the counter was trained on this dataset."""
    selected: bool = False
    """Whether this split selected its checkpoint, which flatters it."""
    error: str | None = None
    """Why there are no numbers; None where there are."""


@dataclass
class Row:
    """One counter."""

    checkpoint: str
    trained_on: str | None
    """Its training dataset; None, as what follows, for a checkpoint that cannot be read."""
    model: str | None
    seed: int | None
    cells: list[Cell]
    """One a column of the matrix."""


@dataclass
class Matrix:
    """Counters in rows, datasets in columns."""

    columns: list[tuple[str, str]]
    """Dataset and split."""
    rows: list[Row]

    def column_names(self) -> list[str]:
        """Dataset and split in words."""
        return [f"{dataset} {split}" for dataset, split in self.columns]

    def row_names(self) -> list[str]:
        """Training dataset and model, with the seed or else the checkpoint where several rows have the same."""
        names = [f"{row.trained_on} {row.model}" if row.trained_on else row.checkpoint for row in self.rows]
        alike: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            alike.setdefault(name, []).append(k)
        for group in alike.values():
            if len(group) > 1:
                more = [f"seed {self.rows[k].seed}" for k in group]
                if len(set(more)) < len(group):
                    more = [f"({path})" for path in _shortened([self.rows[k].checkpoint for k in group])]
                for k, m in zip(group, more, strict=True):
                    names[k] += f" {m}"
        return names

    def failures(self) -> list[str]:
        """What kept cells from having numbers, with the cells, a text each."""
        cells: dict[str, list[str]] = {}
        for name, row in zip(self.row_names(), self.rows, strict=True):
            for column, cell in zip(self.column_names(), row.cells, strict=True):
                if cell.error is not None:
                    cells.setdefault(cell.error, []).append(f"{name} on {column}")
        return [f"{'; '.join(names)}: {error}" for error, names in cells.items()]


def _shortened(paths: Sequence[str]) -> list[str]:
    """Paths without the folders they all begin with, and the file name they all end with."""
    parts = [Path(path).parts for path in paths]
    first = next((k for k, same in enumerate(zip(*parts, strict=False)) if len(set(same)) > 1), None)
    last = -1 if len({p[-1] for p in parts}) == 1 else None
    return ["/".join(p[first:last]) or p[-1] for p in parts]


def write_cross(matrix: Matrix, folder: Path) -> str:
    """Write cross.md, cross.csv, cross.json and cross.png into ``folder``.

    Returns:
        The table, for a terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKDOWN).write_text(markdown(matrix))
    with (folder / CSV).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["checkpoint", "trained_on", "model", "seed", "dataset", "split", *_cell_keys()])
        for row in matrix.rows:
            for (dataset, split), cell in zip(matrix.columns, row.cells, strict=True):
                facts = [row.checkpoint, row.trained_on, row.model, row.seed, dataset, split]
                writer.writerow([*facts, *(getattr(cell, key) for key in _cell_keys())])
    plain: dict[str, Any] = {
        "columns": [{"dataset": dataset, "split": split} for dataset, split in matrix.columns],
        "rows": [dataclasses.asdict(row) for row in matrix.rows],
    }
    (folder / JSON).write_text(json.dumps(plain, indent=2) + "\n")
    cross_figure(matrix).savefig(folder / PICTURE)
    return terminal_table(matrix)


def _cell_keys() -> list[str]:
    return [field.name for field in dataclasses.fields(Cell)]


def terminal_table(matrix: Matrix) -> str:
    """MAE / RMSE of every cell, with what the marks mean."""
    rows = _texts(matrix)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, *_notes(matrix)])


def markdown(matrix: Matrix) -> str:
    """The same as a page of Markdown, with the failures."""
    lines = ["# Evaluation across datasets", "", *pipe_table(_texts(matrix), numbers_from=1), "", *_notes(matrix)]
    if failures := matrix.failures():
        lines += ["", "## Failed", "", *("* " + failure.split("\n")[0] for failure in failures)]
    checkpoints = zip(matrix.row_names(), matrix.rows, strict=True)
    lines += ["", "## Checkpoints", "", *(f"* {name}: `{row.checkpoint}`" for name, row in checkpoints)]
    return "\n".join(lines) + "\n"


def _texts(matrix: Matrix) -> list[list[str]]:
    """Every cell of the table in words, headings first."""
    rows = [["trained on, model", *matrix.column_names()]]
    for name, row in zip(matrix.row_names(), matrix.rows, strict=True):
        rows.append([name, *(_text(cell) + _mark(cell) for cell in row.cells)])
    return rows


def _text(cell: Cell) -> str:
    return "failed" if cell.mae is None or cell.rmse is None else f"{cell.mae:.2f} / {cell.rmse:.2f}"


def _mark(cell: Cell) -> str:
    return "" if not cell.own else " **" if cell.selected else " *"


def _notes(matrix: Matrix) -> list[str]:
    cells = [cell for row in matrix.rows for cell in row.cells]
    notes = ["MAE / RMSE, heads an image."]
    if any(cell.own and not cell.selected for cell in cells):
        notes.append("`*`: the counter's own training dataset.")
    if any(cell.own and cell.selected for cell in cells):
        notes.append(
            "`**`: the counter's own training dataset, whose split here selected the checkpoint, which flatters it."
        )
    counts = {
        name: sorted({row.cells[k].images for row in matrix.rows if row.cells[k].mae is not None})
        for k, name in enumerate(matrix.column_names())
    }
    known = [f"{name} {' or '.join(map(str, images))}" for name, images in counts.items() if images]
    return notes + ([f"Images: {', '.join(known)}."] if known else [])


# ------------------------------------------------------------------------------------------ picture


def cross_figure(matrix: Matrix) -> Figure:
    """The matrix as a heat map; colors compare the counters within a column, as datasets differ in scale."""
    names, columns = matrix.row_names(), matrix.column_names()
    # Room for the longest texts: about 0.09 inches a letter.
    wide = max(1.7, *(0.1 * len(name) + 0.2 for name in columns))
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
    """0 for the least error of a column to 1 for the greatest, by their ratio; None where there is none."""
    known = [error for error in errors if error is not None]
    if not known:
        return [None] * len(errors)
    least = max(min(known), 1e-6)
    full = max(math.log(max(known) / least) if max(known) > least else 0.0, math.log(_LEAST_RANGE))
    return [None if error is None else math.log(max(error, least) / least) / full for error in errors]


def readable_on(fill: tuple[float, float, float]) -> str:
    """Black or white, whichever stands out more from ``fill`` (RGB, 0 to 1); the contrast is at least 4.5."""
    return "black" if contrast("black", fill) >= contrast("white", fill) else "white"


def contrast(ink: str, fill: tuple[float, float, float]) -> float:
    """Contrast of two colors, 1 to 21.

    Source: WCAG 2.1, relative luminance and contrast ratio.
    """
    light = []
    for color in (to_rgb(ink), fill):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)
