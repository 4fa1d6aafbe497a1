"""Write a table with our runs: a Markdown page, a LaTeX table, and a picture."""

import math
import re
import statistics
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from headcount.report.markdown import pipe_table, plain
from headcount.report.pictures import from_zero, save_figure
from headcount.report.tables.cells import (
    IMPORTANT_SETTINGS,
    ReproducedTable,
    TableCell,
    improvement,
    mean_and_deviation,
    paired_difference,
    verdict,
    why_not_evaluated,
)
from headcount.report.tables.judged import (
    interval_rows,
    judged_differences,
    judged_grid,
    judged_maes,
    not_judged,
    selection_names,
)
from headcount.report.tables.paper import TABLES, PaperRow
from headcount.runs import LAST_EVALUATIONS

_OTHERWISE = "*"
"""Marks published numbers that come from other training settings than those of the experiment file."""
_OTHERWISE_NOTE = f"{_OTHERWISE} published for another training than this project's file: not compared"
_MAX_CHANGES = 12
_DPI = 120
_PLUS_MINUS = r"$\pm$"
_OURS, _OURS_LATE, _PUBLISHED = "#0072b2", "#9ecae1", "#d55e00"
_SLOT_INCHES = 1.1
"""Width of a cell in the picture."""


def markdown(table: ReproducedTable) -> str:
    """Format a page: ours, published, improvements, the runs, what is missing and what was refused."""
    headings = ["", *table.columns]
    lines = [f"# {table.paper.title}", "", *_warnings(table)]
    lines += [] if table.paper.judged_on is None else [*_judged(table, table.paper.judged_on), ""]
    lines += [
        "## Ours, MAE / RMSE" if table.paper.judged_on is None else "## On the images that select, MAE / RMSE",
        "",
    ]
    lines += pipe_table([headings, *_grid(table, _ours(table, bold=("**", "**")))], markup=True)
    lines += ["", _how_selected(table)]
    if _any_published(table):
        lines += ["", "## Published, MAE / RMSE", ""]
        lines += pipe_table([headings, *_grid(table, _published(table))], markup=True)
    if _any_otherwise(table):
        lines += ["", _OTHERWISE_NOTE.replace(_OTHERWISE, "\\" + _OTHERWISE)]
    improvements, notes = _improvements(table)
    if improvements:
        lines += ["", "## Improvements", "", *pipe_table(improvements, markup=True)]
    if notes:
        lines += ["", *notes]
    unevaluated = _not_evaluated(table)
    if unevaluated:
        lines += ["", "## Not evaluated", "", "Intervals need the error of every image.", ""]
        lines += [f"* {plain(reason)}" for reason in unevaluated]
    lines += ["", "## Runs", "", *pipe_table(_run_rows(table))]
    missing = table.missing()
    if missing:
        lines += ["", f"## Missing: {len(missing)} runs", "", "```sh"]
        lines += [table.command(cell, seed) for cell, seed in missing] + ["```"]
    refused = dict.fromkeys(reason for cell in table.cells.values() for reason in cell.refused)
    if refused:
        lines += ["", "## Refused", "", *(f"* {plain(reason)}" for reason in refused)]
    return "\n".join(lines) + "\n"


def _judged(table: ReproducedTable, split: str) -> list[str]:
    """What the checkpoints that the runs keep are worth on a split that selected none of them in training."""
    lines = [f"## On the {split} images, MAE / RMSE", ""]
    lines += pipe_table(judged_grid(table, split, bold=("**", "**")), markup=True)
    lines += ["", _how_judged(table, split)]
    if differences := judged_differences(table, split):
        lines += ["", f"## Differences of the MAE on the {split} images [95 % of images]", "", *pipe_table(differences)]
        lines += [
            "",
            f"Of the best on the {split} images, the difference only: images that chose the checkpoints cannot tell "
            "chance from a better counter.",
        ]
    if intervals := interval_rows(table, split):
        lines += ["", f"## Intervals of the counts of the {split} images, last epoch", "", *pipe_table(intervals), ""]
        lines += [
            "Own intervals rest on the counter's probabilities, calibrated ones on its errors on held-out images. "
            "Covered: percent of the images whose true count lies in the interval; widths and scores in heads; "
            "images unlike the calibration: number of those whose size or density of people no calibration image has, "
            "or that were counted in another way."
        ]
    if unevaluated := not_judged(table, split):
        lines += ["", f"## Not evaluated on the {split} images", "", *(f"* {plain(reason)}" for reason in unevaluated)]
    return lines


def latex(table: ReproducedTable) -> str:
    r"""Format the table for a paper: ours with the deviation over seeds, published in parentheses.

    Needs the package booktabs, as its first line says; ``\label`` is ``tab:`` and the table's name.
    """
    bold = (r"\textbf{", "}")
    if table.paper.judged_on is None:
        ours, published = _ours(table, bold=bold), _published(table)
        both = {k: f"{ours[k]} ({published[k]})" if published[k] != "-" else ours[k] for k in table.cells}
        grid = [["", *table.columns], *_grid(table, both)]
    else:
        grid = judged_grid(table, table.paper.judged_on, bold=bold)
    rows = [[_escape(label), *(text.replace("+-", _PLUS_MINUS) for text in texts)] for label, *texts in grid[1:]]
    alignment = ["left"] + ["right"] * (len(grid[0]) - 1)
    headings = list(map(_escape, grid[0]))
    tabular = tabulate(rows, headings, tablefmt="latex_raw", disable_numparse=True, colalign=alignment)
    # tabulate's booktabs format escapes the markup of the cells; its raw format has \hline for all three rules.
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        tabular = tabular.replace(r"\hline", rule, 1)
    caption = [_escape(table.paper.title), "MAE / RMSE"]
    if _any_published(table):
        caption.append("Published in brackets")
    if table.changed:
        than = "than the published numbers" if _any_published(table) else "than this project's files say"
        caption.append(f"Ours was trained otherwise {than}")
    if _any_otherwise(table):
        caption.append(_OTHERWISE_NOTE)
    split = table.paper.judged_on
    how = _how_selected(table) if split is None else _how_judged(table, split)
    caption.append(_escape(how).replace("+-", _PLUS_MINUS))
    lines = [
        r"% Needs the package booktabs: \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{'. '.join(caption)}}}",
        f"\\label{{tab:{_name(table)}}}",
        tabular,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def table_picture(table: ReproducedTable, path: Path) -> None:
    """Draw the MAE of every cell: ours with the deviation over seeds, and the published number as a marker.

    Args:
        table: the table.
        path: the picture file; its suffix determines the format.

    Raises:
        OSError: if the file cannot be written.
    """
    if table.paper.judged_on is not None:
        _judged_picture(table, table.paper.judged_on, path)
        return
    rows = _shown_rows(table)
    groups = [(column, [(row.label, table.cells.get((row.label, column))) for row in rows]) for column in table.columns]
    if len(rows) == 1:  # one diagram of all columns
        groups = [(rows[0].label, [(column, cells[0][1]) for column, cells in groups])]
    across = min(2, len(groups))
    down = math.ceil(len(groups) / across)
    width = across * max(7.0 / across, 1.0 + _SLOT_INCHES * max(len(cells) for _, cells in groups))
    figure = Figure(figsize=(width, 3.6 * down + 1.2), dpi=_DPI, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    for axis, (heading, cells) in zip(axes, groups, strict=False):
        for k, (_, cell) in enumerate(cells):
            if cell is not None:
                _draw_cell(axis, k, cell)
        names = [textwrap.fill(name, 13, break_long_words=False, break_on_hyphens=False) for name, _ in cells]
        axis.set_xticks(range(len(cells)), names, parse_math=False)
        axis.set_xlim(-0.6, len(cells) - 0.4)
        from_zero(axis)
        axis.set_ylabel("MAE, heads per image")
        axis.set_title(heading if len(table.columns) > 1 else "", parse_math=False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    handles: dict[str, Any] = {}
    for axis in axes:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 if width < 10 else 4)
    title = [table.paper.title, _how_selected(table).replace("+-", "\u00b1")]
    if table.changed and _any_published(table):
        title.append("ours was trained otherwise than the published numbers: they cannot be compared")
    wrapped = [textwrap.fill(line, int(11 * width)) for line in title]
    figure.suptitle("\n".join(wrapped), parse_math=False, fontsize="medium")
    save_figure(figure, path)


def _judged_picture(table: ReproducedTable, split: str, path: Path) -> None:
    """Draw the MAE of every row on the judging images, by selection, with the deviation over seeds."""
    rows, slot = _shown_rows(table), 0.27
    width = max(7.0, 1.0 + 1.6 * len(rows))
    figure = Figure(figsize=(width, 4.8), dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    colors = (_OURS, _OURS_LATE, _PUBLISHED)
    for place, (selection, color) in enumerate(zip(selection_names(split).items(), colors, strict=True), start=-1):
        for k, row in enumerate(rows):
            maes = judged_maes(table, row, split, selection[0])
            if maes:
                deviation = statistics.stdev(maes) if len(maes) > 1 else None
                bar: dict[str, Any] = {"yerr": deviation, "capsize": 3, "color": color, "label": selection[1]}
                axis.bar(k + place * slot, statistics.mean(maes), 0.9 * slot, **bar)
            else:
                axis.text(k + place * slot, 0, " missing", rotation=90, ha="center", va="bottom", color="gray")
    axis.set_xticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    axis.set_xlim(-0.6, len(rows) - 0.4)
    from_zero(axis)
    axis.set_ylabel(f"MAE on the {split} images, heads per image")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    drawn, labels = axis.get_legend_handles_labels()
    if drawn:
        handles = dict(zip(labels, drawn, strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    title = [table.paper.title, _how_judged(table, split).replace("+-", "\u00b1")]
    figure.suptitle(
        "\n".join(textwrap.fill(line, int(11 * width)) for line in title), parse_math=False, fontsize="medium"
    )
    save_figure(figure, path)


def _draw_cell(axis: Axes, x: int, cell: TableCell) -> None:
    """Draw ours (the best and the last evaluations) and the published MAE of one cell, beside each other."""
    best, slot = cell.best("mae"), 0.27
    if best:
        deviation = statistics.stdev(best) if len(best) > 1 else None
        bar: dict[str, Any] = {"yerr": deviation, "capsize": 3, "color": _OURS, "label": "ours, best evaluation"}
        axis.bar(x - slot, statistics.mean(best), 0.9 * slot, **bar)
        axis.bar(x, statistics.mean(cell.late("mae")), 0.9 * slot, color=_OURS_LATE, label="ours, last evaluations")
    else:
        axis.text(x - slot / 2, 0, " missing", rotation=90, ha="center", va="bottom", color="gray")
    if cell.expected is not None and cell.expected.mae is not None:
        face, label = _PUBLISHED, "published"
        if cell.published_otherwise:
            face, label = "none", "published, trained otherwise"
        marker: dict[str, Any] = {
            "linestyle": "",
            "marker": "D",
            "color": _PUBLISHED,
            "markerfacecolor": face,
            "label": label,
        }
        axis.plot(x + slot, cell.expected.mae, **marker)


# ------------------------------------------------------------------------------------------------ texts


def _shown_rows(table: ReproducedTable) -> list[PaperRow]:
    """The rows that have a selected cell."""
    return [row for row in table.paper.rows if any((row.label, column) in table.cells for column in table.columns)]


def _any_published(table: ReproducedTable) -> bool:
    return any(cell.expected is not None and cell.expected.mae is not None for cell in table.cells.values())


def _any_otherwise(table: ReproducedTable) -> bool:
    return any(cell.published_otherwise for cell in table.cells.values())


def _warnings(table: ReproducedTable) -> list[str]:
    """The changed settings, for which ours cannot be compared with any published numbers, as lines of Markdown."""
    if not table.changed:
        return []
    keys = sorted(table.changed, key=lambda key: key not in IMPORTANT_SETTINGS)
    shown = [plain(f"{key} {table.changed[key][1]} for {table.changed[key][0]}") for key in keys[:_MAX_CHANGES]]
    more = f", and {len(keys) - _MAX_CHANGES} more" if len(keys) > _MAX_CHANGES else ""
    start = "**Not the published recipe, so no number below reproduces one of the paper's.** "
    return [f"{start if _any_published(table) else 'Changed settings: '}{', '.join(shown)}{more}.", ""]


def _how_selected(table: ReproducedTable) -> str:
    """How ours were trained and selected, in one sentence."""
    runs = [run for cell in table.cells.values() for run in cell.runs.values()]
    if not runs:
        return "No run yet."
    splits = sorted({f"{run.config.dataset.name} {run.selection}" for run in runs})
    epochs = sorted({run.config.epochs for run in runs})
    return (
        f"Best checkpoint of {', '.join(map(str, epochs))} epochs, selected on {', '.join(splits)} by MAE; mean +- "
        "standard deviation over seeds where there are several."
    )


def _how_judged(table: ReproducedTable, split: str) -> str:
    """How ours were trained and judged, in one sentence."""
    runs = [run for cell in table.cells.values() for run in cell.runs.values()]
    if not runs:
        return "No run yet."
    epochs = sorted({run.config.epochs for run in runs})
    names = sorted({f"{run.config.dataset.name} {split}" for run in runs})
    return (
        f"Checkpoints of {', '.join(map(str, epochs))} epochs on {', '.join(names)}; mean +- standard deviation over "
        "seeds where there are several."
    )


def _ours(table: ReproducedTable, *, bold: tuple[str, str]) -> dict[tuple[str, str], str]:
    """Our MAE / RMSE of each cell; the lowest MAE of several in a column stands between the two marks ``bold``."""
    means = {key: statistics.mean(cell.best("mae")) for key, cell in table.cells.items() if cell.runs}
    texts = {}
    for key, cell in table.cells.items():
        if not cell.runs:
            texts[key] = "missing"
            continue
        mae, rmse = mean_and_deviation(cell.best("mae")), mean_and_deviation(cell.best("rmse"))
        maes = [value for (_, column), value in means.items() if column == key[1]]
        if len(maes) > 1 and means[key] == min(maes):
            mae = f"{bold[0]}{mae}{bold[1]}"
        texts[key] = f"{mae} / {rmse}"
    return texts


def _published(table: ReproducedTable) -> dict[tuple[str, str], str]:
    """The published MAE / RMSE of each cell."""
    texts = {}
    for key, cell in table.cells.items():
        expected = cell.expected
        if expected is None or expected.mae is None:
            texts[key] = "-"
            continue
        texts[key] = " / ".join(_as_printed(value) for value in (expected.mae, expected.rmse) if value is not None)
        if cell.published_otherwise:
            texts[key] += _OTHERWISE
    return texts


def _as_printed(error: float) -> str:
    """A published error with the digits that the paper gives: one, or two if needed."""
    return f"{error:.1f}" if round(error, 1) == error else f"{error:.2f}"


def _grid(table: ReproducedTable, texts: dict[tuple[str, str], str]) -> list[list[str]]:
    """The rows of the table, each with its label and the text of every column."""
    return [
        [row.label, *(texts.get((row.label, column), "-") for column in table.columns)] for row in _shown_rows(table)
    ]


def _improvements(table: ReproducedTable) -> tuple[list[list[str]], list[str]]:
    """Compare each row with the one it should improve on.

    Returns:
        The rows of a table, headings first, empty if there is nothing to compare; and notes on percentages that the
        paper prints and that differ from those of its own errors.
    """
    headings = ["", "column", "published MAE", "published RMSE", "ours MAE", "MAE difference of ours [95 % of images]"]
    rows: list[list[str]] = []
    notes: list[str] = []
    for row in table.paper.rows:
        for k, column in enumerate(table.paper.columns):
            cell, base = table.cells.get((row.label, column)), table.cells.get((row.against or "", column))
            if cell is None or base is None:
                continue
            printed = row.printed[k] if row.printed else (None, None)
            published = [
                _published_improvement(cell, base, key, value, notes)
                for key, value in zip(("mae", "rmse"), printed, strict=True)
            ]
            ours = "-"
            if cell.runs and base.runs:
                ours = f"{improvement(statistics.mean(cell.best('mae')), statistics.mean(base.best('mae'))):.1f} %"
                if cell.published_otherwise or base.published_otherwise:
                    ours += _OTHERWISE
            rows.append([f"{row.label} over {row.against}", column, *published, ours, verdict(cell, base)])
    return ([headings, *rows] if rows else []), notes


def _not_evaluated(table: ReproducedTable) -> list[str]:
    """Why differences have no interval: an evaluation that is missing, or images that differ between two rows."""
    reasons: dict[str, None] = {}
    for row in table.paper.rows:
        for column in table.columns:
            cell, base = table.cells.get((row.label, column)), table.cells.get((row.against or "", column))
            if cell is None or base is None or not cell.runs or not base.runs or paired_difference(cell, base):
                continue
            runs = [run for each in (cell, base) for run in each.runs.values()]
            found = [reason for run in runs if (reason := why_not_evaluated(run))]
            reasons |= dict.fromkeys(found or [f"{row.label} and {row.against}: the evaluated images differ"])
    return list(reasons)


def _published_improvement(cell: TableCell, base: TableCell, key: str, printed: float | None, notes: list[str]) -> str:
    """Improvement of the published error ``key``; appends a note if the paper prints another percentage."""
    now, before = getattr(cell.expected, key, None), getattr(base.expected, key, None)
    if now is None or before is None:
        return "-"
    percent = improvement(now, before)
    if printed is None or f"{printed:.1f}" == f"{percent:.1f}":
        return f"{percent:.1f} %"
    mark = f"({len(notes) + 1})"
    notes.append(f"{mark} the paper prints {printed:g} %; {before:g} to {now:g} is {percent:.1f} %.")
    return f"{percent:.1f} % {mark}"


def _run_rows(table: ReproducedTable) -> list[list[str]]:
    """One row per cell, headings first: its runs, how they were trained and selected, ours and the published error."""
    late = f"mean of last {LAST_EVALUATIONS}"
    rows = [["", "column", "seeds", "epochs", "images", "selected on", "MAE", late, "RMSE", "published", "difference"]]
    rows[0].append("commit")
    for (label, column), cell in table.cells.items():
        runs = [run for _, run in sorted(cell.runs.items())]
        expected = cell.expected.mae if cell.expected is not None else None
        difference = "-"
        if runs and expected is not None:
            ours = statistics.mean(cell.best("mae"))
            difference = f"{ours - expected:+.1f}" if cell.comparable else "other recipe"
        rows.append(
            [
                label,
                column,
                ", ".join(str(run.config.seed) for run in runs) or "none",
                _distinct(str(run.config.epochs) for run in runs),
                _distinct(str(run.images[0]) if run.images else "unknown" for run in runs),
                _distinct(f"{run.config.dataset.name} {run.selection}" for run in runs),
                mean_and_deviation(cell.best("mae")),
                mean_and_deviation(cell.late("mae")) + _fewer({len(run.last_evaluations) for run in runs}),
                mean_and_deviation(cell.best("rmse")),
                "-" if expected is None else _as_printed(expected),
                difference,
                _distinct(_short_commit(commit) for run in runs for commit in run.commits or ["unknown"]),
            ]
        )
    return rows


def _distinct(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts))) or "-"


def _fewer(evaluations: set[int]) -> str:
    """How many evaluations were averaged, if they are fewer than usual."""
    usual = not evaluations or evaluations == {LAST_EVALUATIONS}
    return "" if usual else f" ({', '.join(map(str, sorted(evaluations)))})"


def _short_commit(commit: str) -> str:
    """The start of a commit, with the mark of an edited source tree."""
    name, plus, changes = commit.partition("+")
    return name[:7] + plus + changes


def _name(table: ReproducedTable) -> str:
    """The table's name as a label: ``table3``, ``count-loss``."""
    name = next((name for name, paper in TABLES.items() if paper is table.paper), "paper")
    return f"table{name}" if name.isdigit() else name.replace("_", "-")


def _escape(text: str) -> str:
    """Escape the special characters of LaTeX, and set symbols with their value, such as lambda, as formulas."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: f"\\{c}" for c in "%&_#${}"}
    escaped = "".join(special.get(c, c) for c in text)
    escaped = re.sub(r"\blambda ([\d.]+)", r"$\\lambda = \1$", escaped)
    return re.sub(r"\br = (\d+)", r"$r = \1$", escaped)
