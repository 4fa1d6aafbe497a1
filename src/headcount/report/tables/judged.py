"""Judge the runs of a table on a split that selected none of their checkpoints.

A run can be judged by its last checkpoint; by the one with the lowest error on the images that select; or, as most
publications do, by the one with the lowest error on the judging images themselves. Reads the evaluations of the
checkpoints that a run keeps with ``keep=all``.
"""

import csv
import itertools
import json
import math
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from headcount.commands import as_typed
from headcount.errors import CheckpointError
from headcount.files import quoted, read_csv, read_text
from headcount.report.tables.cells import (
    ReproducedTable,
    TableCell,
    describe_difference,
    mean_and_deviation,
    mean_over_runs,
    paired,
)
from headcount.report.tables.paper import PaperRow
from headcount.runs import CALIBRATED, COUNTS_FILE, EVALUATION_FILE, RunRecord, epoch_file, evaluation_folder

WIDTH_LEVEL = 0.9
"""Level of the intervals whose width and score are shown."""


class Selection(Enum):
    """How the checkpoint of a run is chosen."""

    last = "the last epoch"
    held_out = "selected on held-out images"
    judging = "best on the judging images"


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A checkpoint of a run, evaluated on the judging images."""

    errors: dict[str, float]
    """Absolute error of each image by name, in heads."""
    intervals: dict[str, Any]
    """How good its intervals were, as in metrics.json."""

    @property
    def mae(self) -> float:
        """Mean absolute error, in heads per image."""
        return statistics.mean(self.errors.values())

    @property
    def rmse(self) -> float:
        """Root mean squared error, in heads per image."""
        return math.sqrt(statistics.mean(error**2 for error in self.errors.values()))


@dataclass(frozen=True)
class JudgedRun:
    """The evaluations of a run on the judging images."""

    run: RunRecord
    checkpoints: dict[int, JudgedCheckpoint]
    """By epoch; without those that are not evaluated."""
    missing: dict[int, str]
    """Epoch -> why its checkpoint is not evaluated."""

    def chosen(self, selection: Selection) -> JudgedCheckpoint | None:
        """The checkpoint of a selection; None if it, or one that it is chosen among, is not evaluated."""
        if selection is Selection.judging:
            return None if self.missing else min(self.checkpoints.values(), key=lambda judged: judged.mae)
        last, best = self.run.evaluations[-1], self.run.best
        record = last if selection is Selection.last or best is None else best
        return self.checkpoints.get(record["epoch"])


# ------------------------------------------------------------------------------------------- reading


def judged_runs(cell: TableCell, split: str) -> list[JudgedRun]:
    """The evaluations of the runs of a cell on a split, ordered by seed."""
    return [judge_run(run, split) for _, run in sorted(cell.runs.items())]


def judge_run(run: RunRecord, split: str) -> JudgedRun:
    """Read the evaluations of the kept checkpoints of a run on a split."""
    checkpoints, missing = {}, {}
    for record in run.evaluations:
        epoch = record["epoch"]
        try:
            checkpoints[epoch] = _read_checkpoint(run, epoch, split)
        except CheckpointError as error:
            missing[epoch] = str(error)
    return JudgedRun(run, checkpoints, missing)


def checkpoint_names(run: RunRecord, epoch: int) -> list[str]:
    """Files of the checkpoint of an epoch: its calibrated copy first if it is the last, whose intervals are judged."""
    name = epoch_file(epoch)
    path = Path(name)
    return [f"{path.stem}{CALIBRATED}{path.suffix}", name] if epoch == run.evaluations[-1]["epoch"] else [name]


def _read_checkpoint(run: RunRecord, epoch: int, split: str) -> JudgedCheckpoint:
    """Read the evaluation of the checkpoint of an epoch.

    Raises:
        CheckpointError: if it is missing, damaged, or of another checkpoint.
    """
    names, limit = checkpoint_names(run, epoch), run.config.dataset.max_eval_images
    settings = {"max_images": limit} if limit else {}
    folders = [
        evaluation_folder(run.folder, run.config.dataset.name, split, checkpoint=name, settings=settings)
        for name in names
    ]
    folder = next((folder for folder in folders if (folder / EVALUATION_FILE).is_file()), None)
    if folder is None:
        typed = [f"ckpt={quoted(run.folder / names[0])}", f"split={split}"]
        arguments = shlex.join([*typed, *(f"{key}={value}" for key, value in settings.items())])
        raise CheckpointError(f"{folders[0]} is missing; {as_typed('python eval.py')} {arguments} writes it")
    try:
        errors = {row["image"]: abs(float(row["error"])) for row in read_csv(folder / COUNTS_FILE)}
        facts = json.loads(read_text(folder / EVALUATION_FILE))
        found, wanted = [facts["epoch"], facts["seed"]], [epoch, run.config.seed]
        intervals = facts["intervals"] or {}
    except (OSError, csv.Error, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error!r}") from error
    if not errors:
        raise CheckpointError(f"{folder / COUNTS_FILE} holds no images")
    if found != wanted:
        raise CheckpointError(f"{folder} is of another checkpoint: epoch and seed are {found}, not {wanted}")
    return JudgedCheckpoint(errors, intervals)


# ------------------------------------------------------------------------------------------- tables


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
    judged = {key: judged_runs(cell, split) for key, cell in table.cells.items()}
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
    """The difference of the MAEs of every two cells by selection, headings first; empty if there is none."""
    judged = {key: runs for key, cell in table.cells.items() if (runs := judged_runs(cell, split))}
    rows = []
    for one, other in itertools.combinations(judged, 2):
        texts = []
        for selection in Selection:
            ours, theirs = _chosen(judged[one], selection), _chosen(judged[other], selection)
            if not ours or not theirs:
                texts.append("-")
                continue
            on_images = paired(_mean_errors(ours), _mean_errors(theirs))
            texts.append(describe_difference(_maes(ours), _maes(theirs), on_images))
        rows.append([f"{_label(table, one)} over {_label(table, other)}", *texts])
    return [["", *selection_names(split).values()], *rows] if rows else []


def interval_rows(table: ReproducedTable, split: str) -> list[list[str]]:
    """How good the intervals of each cell's last checkpoints were, headings first; empty if there are none."""
    rows, levels = [], dict.fromkeys(level for _, _, found in _intervals(table, split) for level in _by_level(found[0]))
    percent = f"{100 * WIDTH_LEVEL:g} %"
    headings = ["", "intervals", "runs", *(f"covered at {100 * level:g} %" for level in levels)]
    headings += [f"width at {percent}", f"width / true at {percent}", f"Winkler score at {percent}", "CRPS", "outside"]
    for label, kind, found in _intervals(table, split):
        by_level = [_by_level(one) for one in found]
        shares = [
            mean_and_deviation([100 * one[level]["coverage"]["share"] for one in by_level if level in one])
            for level in levels
        ]
        shown = [one[WIDTH_LEVEL] for one in by_level if WIDTH_LEVEL in one]
        rows.append(
            [
                *(label, kind, str(len(found)), *shares),
                mean_and_deviation([one["width"] for one in shown]),
                mean_and_deviation([one["relative_width"] or math.nan for one in shown], 2),
                mean_and_deviation([one["score"] for one in shown]),
                mean_and_deviation([one["crps"] for one in found]),
                mean_and_deviation([one["outside"] for one in found]) if kind == "calibrated" else "-",
            ]
        )
    return [headings, *rows] if rows else []


def not_judged(table: ReproducedTable, split: str) -> list[str]:
    """Why checkpoints of the runs are not evaluated, one line each."""
    return [
        reason
        for cell in table.cells.values()
        for judged in judged_runs(cell, split)
        for reason in judged.missing.values()
    ]


def judged_maes(table: ReproducedTable, row: PaperRow, split: str, selection: Selection) -> list[float]:
    """The MAE on the split of each run of a row, ordered by seed, of the runs that are evaluated."""
    cells = [cell for (label, _), cell in table.cells.items() if label == row.label]
    return [mae for cell in cells for mae in _maes(_chosen(judged_runs(cell, split), selection))]


def _intervals(table: ReproducedTable, split: str) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """The row's label, the kind of intervals, and their metrics in each run, where there are any."""
    for key, cell in table.cells.items():
        last = _chosen(judged_runs(cell, split), Selection.last)
        for kind in ("own", "calibrated"):
            if found := [metrics for one in last if (metrics := one.intervals.get(kind))]:
                yield _label(table, key), kind, found


def _by_level(metrics: dict[str, Any]) -> dict[float, dict[str, Any]]:
    return {of_level["level"]: of_level for of_level in metrics["levels"]}


def _chosen(runs: list[JudgedRun], selection: Selection) -> list[JudgedCheckpoint]:
    """The chosen checkpoint of each run, of those that are evaluated."""
    return [chosen for judged in runs if (chosen := judged.chosen(selection)) is not None]


def _maes(chosen: list[JudgedCheckpoint]) -> list[float]:
    return [one.mae for one in chosen]


def _mean_errors(chosen: list[JudgedCheckpoint]) -> dict[str, float] | None:
    """Mean absolute error of each image; None if the images differ."""
    return mean_over_runs([one.errors for one in chosen])


def _label(table: ReproducedTable, key: tuple[str, str]) -> str:
    """The row's label, with its column where there are several."""
    label, column = key
    return label if len(table.columns) < 2 else f"{label}, {column}"
