"""The runs of a table, judged on a split that selected none of their checkpoints in training.

Each run is judged by several of the checkpoints that it keeps (``kept``): the last one, the one that held-out images
select, and the one that the judging images themselves select.
"""

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

from headcount.report.tables.cells import (
    ReproducedTable,
    describe_difference,
    mean_and_deviation,
    mean_over_runs,
    paired,
)
from headcount.report.tables.kept import JudgedCheckpoint, JudgedRun, Selection, judge_run, without_strangers
from headcount.report.tables.paper import PaperRow

WIDTH_LEVEL = 0.9
"""Level of the intervals whose width and score are shown."""


def judged_cells(table: ReproducedTable, split: str) -> dict[tuple[str, str], list[JudgedRun]]:
    """The evaluations of the runs of each cell on a split, ordered by seed."""
    keys = [(key, run) for key, cell in table.cells.items() for _, run in sorted(cell.runs.items())]
    judged: dict[tuple[str, str], list[JudgedRun]] = {key: [] for key in table.cells}
    for (key, _), one in zip(keys, without_strangers(judge_run(run, split) for _, run in keys), strict=True):
        judged[key].append(one)
    return judged


def selection_names(split: str) -> dict[Selection, str]:
    """How the table names each selection."""
    return {selection: selection.value.replace("the judging", f"the {split}") for selection in Selection}


def judged_grid(table: ReproducedTable, split: str, *, bold: tuple[str, str]) -> list[list[str]]:
    """MAE / RMSE of each cell by selection, headings first.

    Args:
        table: the table.
        split: that judges.
        bold: the marks around the lowest of several MAEs of a selection.
    """
    rows = [["", *selection_names(split).values()]]
    judged = judged_cells(table, split)
    lowest: dict[Selection, float] = {}
    for selection in Selection:
        means = [statistics.mean(maes) for runs in judged.values() if (maes := _maes(_chosen(runs, selection)))]
        lowest[selection] = min(means) if len(means) > 1 else math.nan
    for key, runs in judged.items():
        texts = []
        for selection in Selection:
            chosen = _chosen(runs, selection)
            mae = mean_and_deviation(_maes(chosen))
            if chosen and statistics.mean(_maes(chosen)) == lowest[selection]:
                mae = f"{bold[0]}{mae}{bold[1]}"
            of_all = f" ({len(chosen)} of {len(runs)} runs)" if len(chosen) < len(runs) else ""
            text = f"{mae} / {mean_and_deviation([one.rmse for one in chosen])}{of_all}"
            texts.append(text if chosen else "not evaluated" if runs else "missing")
        rows.append([_label(table, key), *texts])
    return rows


def judged_differences(table: ReproducedTable, split: str) -> list[list[str]]:
    """The difference of the MAEs of every two cells by selection, headings first; empty if there is none.

    Of the seeds that both cells have. The images that chose the checkpoints cannot tell whether the difference is due
    to chance: no interval and no verdict for these.
    """
    judged = {key: runs for key, runs in judged_cells(table, split).items() if runs}
    rows = []
    for one, other in itertools.combinations(judged, 2):
        texts = [_difference(judged[one], judged[other], selection) for selection in Selection]
        rows.append([f"{_label(table, one)} over {_label(table, other)}", *texts])
    return [["", *selection_names(split).values()], *rows] if rows else []


def _difference(runs: list[JudgedRun], others: list[JudgedRun], selection: Selection) -> str:
    """The difference of the MAEs of two cells, of the seeds that both have; which these are, if one has more."""
    of_seeds, of_other_seeds = _by_seed(runs, selection), _by_seed(others, selection)
    seeds = [seed for seed in of_seeds if seed in of_other_seeds]
    if not seeds:
        return "-"
    ours, theirs = [of_seeds[seed] for seed in seeds], [of_other_seeds[seed] for seed in seeds]
    if selection is Selection.judging:
        text = f"{statistics.mean(_maes(ours)) - statistics.mean(_maes(theirs)):+.1f}"
    else:
        text = describe_difference(_maes(ours), _maes(theirs), paired(_mean_errors(ours), _mean_errors(theirs)))
    if len(seeds) == len(runs) == len(others):
        return text
    return f"{text}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))} only"


def interval_rows(table: ReproducedTable, split: str) -> list[list[str]]:
    """How good the intervals of each cell's last checkpoints were, headings first; empty if there are none."""
    intervals = list(_intervals(table, split))
    levels = sorted({level for _, _, found in intervals for one in found for level in _by_level(one)})
    percent = f"{100 * WIDTH_LEVEL:g} %"
    headings = ["", "intervals", "runs", *(f"covered at {100 * level:g} %" for level in levels)]
    headings += [f"mean width at {percent}", f"mean of width / true count at {percent}", f"Winkler score at {percent}"]
    headings += ["CRPS", "images unlike the calibration"]
    rows = []
    for label, kind, found in intervals:
        by_level = [_by_level(one) for one in found]
        shares = [
            mean_and_deviation([100 * one[level]["coverage"]["share"] for one in by_level if level in one])
            for level in levels
        ]
        shown = [one[WIDTH_LEVEL] for one in by_level if WIDTH_LEVEL in one]
        relative = [one["relative_width"] for one in shown if one["relative_width"] is not None]
        rows.append(
            [
                *(label, kind, str(len(found)), *shares),
                mean_and_deviation([one["width"] for one in shown]),
                mean_and_deviation(relative, 2),
                mean_and_deviation([one["score"] for one in shown]),
                mean_and_deviation([one["crps"] for one in found]),
                mean_and_deviation([one["outside"] for one in found]) if kind == "calibrated" else "-",
            ]
        )
    return [headings, *rows] if rows else []


def not_judged(table: ReproducedTable, split: str) -> list[str]:
    """Why checkpoints of the runs are not evaluated, one line each."""
    return [
        reason for runs in judged_cells(table, split).values() for judged in runs for reason in judged.missing.values()
    ]


def judged_maes(table: ReproducedTable, row: PaperRow, split: str, selection: Selection) -> list[float]:
    """The MAE on the split of each run of a row, ordered by seed, of the runs that are evaluated."""
    cells = [runs for (label, _), runs in judged_cells(table, split).items() if label == row.label]
    return [mae for runs in cells for mae in _maes(_chosen(runs, selection))]


def _intervals(table: ReproducedTable, split: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """The row's label, the kind of intervals, and their metrics in each run, where there are any."""
    for key, runs in judged_cells(table, split).items():
        last = _chosen(runs, Selection.last)
        for kind in ("own", "calibrated"):
            if found := [metrics for one in last if (metrics := one.intervals.get(kind))]:
                yield _label(table, key), kind, found


def _by_level(metrics: dict[str, Any]) -> dict[float, dict[str, Any]]:
    return {of_level["level"]: of_level for of_level in metrics["levels"]}


def _chosen(runs: list[JudgedRun], selection: Selection) -> list[JudgedCheckpoint]:
    """The chosen checkpoint of each run, of those that are evaluated."""
    return [chosen for judged in runs if (chosen := judged.chosen(selection)) is not None]


def _by_seed(runs: list[JudgedRun], selection: Selection) -> dict[int, JudgedCheckpoint]:
    """The chosen checkpoint of each seed, of those that are evaluated."""
    return {one.run.config.seed: chosen for one in runs if (chosen := one.chosen(selection)) is not None}


def _maes(chosen: list[JudgedCheckpoint]) -> list[float]:
    return [one.mae for one in chosen]


def _mean_errors(chosen: list[JudgedCheckpoint]) -> dict[str, float] | None:
    """Mean absolute error of each image; None if the images differ."""
    return mean_over_runs([one.errors for one in chosen])


def _label(table: ReproducedTable, key: tuple[str, str]) -> str:
    """The row's label, with its column where there are several."""
    label, column = key
    return label if len(table.columns) < 2 else f"{label}, {column}"
