"""Several runs side by side: what they differ in, how well they did, and their curves.

Runs whose settings differ in the seed alone are one experiment: one color, and one mean.
"""

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from headcount.config import ConfigError
from headcount.report.markdown import pipe_table
from headcount.report.pictures import shorten
from headcount.runs import CONFIG, LAST_EVALUATIONS, METRICS, RunRecord, read_run, recipe

MARKDOWN, PICTURE = "runs.md", "runs.png"

_DPI = 130
# Dark enough on white, and told apart by most people who confuse red and green; then again with dashes.
_COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00"),
    *("#56b4e9", "#8b0000", "#7f7f7f", "#6a3d9a", "#a6761d", "#b2df8a"),
)
_LINES = ("-", "--", ":")
# An axis is logarithmic where its values span so much.
_LOG_SPAN = 8
_LONGEST_NAME = 44
_LONGEST_VALUE = 24


@dataclass
class Experiment:
    """Runs that differ in their seed alone."""

    name: str
    runs: list[RunRecord]

    @property
    def finished(self) -> list[RunRecord]:
        """The runs a mean is of: the first finished one of each seed."""
        first: dict[int, RunRecord] = {}
        for run in self.runs:
            if run.finished and run.evaluations:
                first.setdefault(run.config.seed, run)
        return list(first.values())

    @property
    def same_images(self) -> bool:
        """Whether nothing tells that its runs saw different images; runs of earlier versions tell nothing."""
        return len({run.digest for run in self.runs} - {None}) < 2


@dataclass
class Comparison:
    """Runs that could be read, by experiment, and folders that could not."""

    experiments: list[Experiment]
    broken: list[str]
    """Folder and what is wrong with it, a line each."""

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, in the order of the experiments."""
        return [run for experiment in self.experiments for run in experiment.runs]


# ------------------------------------------------------------------------------------------ reading


def compare(folders: Sequence[Path]) -> Comparison:
    """Read the runs in ``folders``: each is one of a run, or has such below it."""
    runs: list[RunRecord] = []
    broken = []
    for folder in dict.fromkeys(itertools.chain.from_iterable(map(_run_folders, folders))):
        try:
            runs.append(_read(folder))
        except (ConfigError, OSError) as error:
            words = str(error).split("\n")[0]
            broken.append(words if str(folder) in words else f"{folder}: {words}")
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(repr(sorted({**recipe(run.config), "seed": None}.items())), []).append(run)
    names = _names(list(groups.values()))
    return Comparison(
        [Experiment(n, sorted(g, key=_seed)) for n, g in zip(names, groups.values(), strict=True)], broken
    )


def _seed(run: RunRecord) -> int:
    return run.config.seed


def _run_folders(folder: Path) -> list[Path]:
    """The folders at or below ``folder`` that hold something of a run; itself if there is none."""
    found = {file.parent for name in (CONFIG, METRICS) for file in folder.rglob(name) if file.is_file()}
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    return sorted(visible) or [folder]


def _read(folder: Path) -> RunRecord:
    """A run with records that can be drawn.

    Raises:
        ConfigError: if there is none.
    """
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; name the folder of the run, {folder.parent}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; name folders that train.py wrote, or one above them")
    file = folder / METRICS
    if not (folder / CONFIG).is_file() and not file.is_file():
        raise ConfigError(f"{folder}: neither it nor a folder below it holds {CONFIG} and {METRICS}")
    run = read_run(folder)
    if not file.is_file():
        raise ConfigError(f"{folder}: there is no {METRICS}")
    if not run.metrics:
        raise ConfigError(f"{file}: no epoch is recorded yet")
    return run


def differing(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Settings that are not the same in all experiments: name -> a value each, ``-`` where one has no such setting.

    The seed, which runs of one experiment do not share, is no setting here.
    """
    all_settings = [recipe(experiment.runs[0].config) for experiment in experiments]
    keys = sorted({key for one in all_settings for key in one} - {"seed"})
    values = {key: [one.get(key, "-") for one in all_settings] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """What each experiment is called, no two alike."""
    names = []
    for runs in groups:
        run_names = list(dict.fromkeys(run.config.run_name for run in runs))
        # Names that themselves end in the seed: what they have in common.
        common = re.sub(r"[-_ ]*(seed|s)?$", "", _common_start(run_names)) if len(run_names) > 1 else ""
        names.append(common or run_names[0])
    if len({run.config.dataset.name for runs in groups for run in runs}) > 1:
        names = [f"{runs[0].config.dataset.name} {name}" for runs, name in zip(groups, names, strict=True)]
    # Different settings under one name, in different folders.
    return [f"{name} ({names[:k].count(name) + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]


def _common_start(words: Sequence[str]) -> str:
    letters = itertools.takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))
    return "".join(same[0] for same in letters)


# ------------------------------------------------------------------------------------------- tables


def settings_table(comparison: Comparison) -> list[list[str]]:
    """Differing settings with a column for each experiment, headings first; no rows if none differ."""
    rows = [[key, *map(_value, values)] for key, values in differing(comparison.experiments).items()]
    headings, number = ["setting"], 1
    for experiment in comparison.experiments:
        last = number + len(experiment.runs) - 1
        headings.append(f"[{number}]" if last == number else f"[{number}-{last}]")
        number = last + 1
    return [headings, *rows] if rows else []


def results_table(comparison: Comparison) -> list[list[str]]:
    """How well each run did, headings first; experiments end with the mean over their seeds, if several."""
    late_heading = f"mean of last {LAST_EVALUATIONS}, MAE / RMSE"
    headings = ["", "run", "seed", "epochs", "finished", "split", "best MAE / RMSE", "at", "last MAE / RMSE", "at"]
    rows = [[*headings, late_heading, "epochs"]]
    number = 0
    for experiment in comparison.experiments:
        for run in experiment.runs:
            number += 1
            row = [f"[{number}]", experiment.name, str(run.config.seed), f"{run.epochs}/{run.config.epochs}"]
            row.append("yes" if run.finished else "no")
            if run.best is None:
                rows.append([*row, *"-------"])
                continue
            seen = run.last_evaluations
            span = f"{seen[0]['epoch']}-{seen[-1]['epoch']}" + f" ({len(seen)})" * (len(seen) < LAST_EVALUATIONS)
            best, last, late = (f"{mae:.2f} / {rmse:.2f}" for mae, rmse in _errors(run))
            rows.append([*row, run.selection, best, str(run.best["epoch"]), last, str(seen[-1]["epoch"]), late, span])
        finished = [_errors(run) for run in experiment.finished]
        if len(finished) > 1 and experiment.same_images:
            best, last, late = (
                " / ".join(f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in zip(*pairs, strict=True))
                for pairs in zip(*finished, strict=True)
            )
            heading = f"{experiment.name}, mean of {len(finished)} seeds"
            rows.append(["", heading, "", "", "", "", best, "", last, "", late, ""])
    return rows


def _errors(run: RunRecord) -> list[tuple[float, float]]:
    """MAE and RMSE of the best, of the last, and mean of the last evaluations of a run that has any."""
    assert run.best is not None
    chosen = (run.best, run.evaluations[-1])
    return [*((r["eval/mae"], r["eval/rmse"]) for r in chosen), (run.late("mae"), run.late("rmse"))]


def _number(record: dict[str, Any], key: str) -> float:
    """A record's value; NaN where it has none."""
    value = record.get(key)
    return math.nan if value is None else float(value)


def _value(value: Any) -> str:
    """A setting as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    return "null" if value is None else str(value)


def terminal_report(comparison: Comparison) -> str:
    """Runs, differing settings and results as tables for a terminal."""
    runs = comparison.runs
    table = [
        [shorten(cell, _LONGEST_VALUE) if k else cell for k, cell in enumerate(r)] for r in settings_table(comparison)
    ]
    results = [[row[0], shorten(row[1], _LONGEST_NAME), *row[2:]] for row in results_table(comparison)]
    folders = [f"[{k}] {run.folder}" for k, run in enumerate(runs, start=1)]
    lines = [*folders, "", *(_aligned(table) if table else [_no_difference(comparison)]), "", *_aligned(results)]
    return "\n".join([*lines, *_notes(comparison)])


def markdown(comparison: Comparison) -> str:
    """The same as a page of Markdown, with whole values, and the folders that could not be read."""
    runs = comparison.runs
    table = settings_table(comparison)
    lines = ["# Runs", "", *(f"* [{k}] `{run.folder}`" for k, run in enumerate(runs, start=1)), ""]
    lines += [
        "## Settings that differ",
        "",
        *(pipe_table(table) if table else [_no_difference(comparison)]),
        "",
    ]
    lines += ["## Errors", "", *pipe_table(results_table(comparison), numbers_from=2), "", *_notes(comparison)]
    lines += ["", f"![training loss and MAE]({PICTURE})"]
    if comparison.broken:
        lines += ["", "## Not compared", "", *(f"* {line}" for line in comparison.broken)]
    return "\n".join(lines) + "\n"


def _no_difference(comparison: Comparison) -> str:
    if len(comparison.runs) == 1:
        return "one run: there is nothing to compare it with"
    seeds = [run.config.seed for run in comparison.runs]
    return "no settings differ" + (" but the seed" if len(set(seeds)) > 1 else ", not even the seed")


def _notes(comparison: Comparison) -> list[str]:
    splits = sorted({run.selection for run in comparison.runs if run.evaluations})
    notes = []
    if splits:
        notes.append(f"Heads an image. 'best' is the epoch of the least MAE on '{', '.join(splits)}', with its RMSE:")
        notes.append("chosen and measured on one split, which flatters it; the mean of the last evaluations is not.")
    for experiment in comparison.experiments:
        if not experiment.same_images:
            notes.append(f"{experiment.name}: its runs saw different images or annotations, so they have no mean.")
        elif len({run.config.seed for run in experiment.runs}) < len(experiment.runs):
            notes.append(f"{experiment.name}: a seed comes twice; the mean takes its first finished run.")
    if len(splits) > 1:
        notes.append("The splits differ: errors of different images do not compare.")
    if len({run.config.dataset.name for run in comparison.runs}) > 1:
        notes.append("The datasets differ: their errors do not compare.")
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


# ------------------------------------------------------------------------------------------ picture


def runs_picture(comparison: Comparison, path: Path) -> None:
    """Draw training loss and MAE of all runs by epoch; one color an experiment, a dot at each best epoch."""
    names = [shorten(experiment.name, _LONGEST_NAME) for experiment in comparison.experiments]
    labels = [
        name + (f" ({len(e.runs)} seeds)" if len(e.runs) > 1 else "")
        for name, e in zip(names, comparison.experiments, strict=True)
    ]
    legend_inches = 0.085 * max(map(len, labels)) + 0.9
    rows_inches = 0.26 * len(labels) + 0.6
    size = (0.9 + 6.8 + 0.15 + legend_inches, max(6.6, rows_inches))
    figure = Figure(figsize=size, dpi=_DPI)
    top, gap, bottom = 0.4, 0.35, 0.6
    tall = (size[1] - top - gap - bottom) / 2
    loss, errors = (
        figure.add_axes((0.9 / size[0], y / size[1], 6.8 / size[0], tall / size[1]))
        for y in (bottom + tall + gap, bottom)
    )
    errors.sharex(loss)
    handles = []
    for k, experiment in enumerate(comparison.experiments):
        style = {"color": _COLORS[k % len(_COLORS)], "linestyle": _LINES[k // len(_COLORS) % len(_LINES)]}
        alpha = 1.0 if len(experiment.runs) == 1 else 0.75
        for number, run in enumerate(experiment.runs):
            (line,) = _plot(loss, run.metrics, "train/total", linewidth=1.4, alpha=alpha, **style)
            _plot(errors, run.evaluations, "eval/mae", linewidth=1.4, alpha=alpha, **style)
            if best := run.best:
                dot: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white", "zorder": 3}
                errors.plot(best["epoch"], best["eval/mae"], marker="o", linestyle="", color=style["color"], **dot)
            if number == 0:
                handles.append(line)
    for axis, records, key, what in (
        (loss, "metrics", "train/total", "training loss"),
        (errors, "evaluations", "eval/mae", "MAE, heads an image"),
    ):
        values = [_number(r, key) for run in comparison.runs for r in getattr(run, records)]
        _scale(axis, [v for v in values if math.isfinite(v)], from_zero=axis is errors)
        axis.set_ylabel(what, fontsize=11)
        axis.grid(alpha=0.3)
    loss.tick_params(labelbottom=False)
    errors.set_xlabel("epoch", fontsize=11)
    splits = sorted({run.selection for run in comparison.runs if run.evaluations})
    note = f"MAE on {' and '.join(splits)}; dots: best epoch of each run" if splits else "no epoch is evaluated yet"
    errors.set_title(note, fontsize=10, parse_math=False)
    legend = figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=((0.9 + 6.8 + 0.1) / size[0], 1 - (top - 0.08) / size[1]),
        fontsize=10,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path)


def _plot(axis: Axes, records: Sequence[dict[str, Any]], key: str, **style: Any) -> list[Any]:
    """A curve of the records that have the key; one point alone is a mark."""
    known = [(r["epoch"], _number(r, key)) for r in records if math.isfinite(_number(r, key))]
    epochs, values = [k[0] for k in known], [k[1] for k in known]
    return axis.plot(epochs, values, marker="x" if len(known) == 1 else "", **style)


def _scale(axis: Axes, values: Sequence[float], *, from_zero: bool) -> None:
    """A logarithmic axis with round numbers for values that span much, else a plain one."""
    if not values:
        axis.text(0.5, 0.5, "nothing recorded", transform=axis.transAxes, ha="center")
    elif min(values) > 0 and max(values) > _LOG_SPAN * min(values):
        axis.set_yscale("log")
        decades = math.log10(max(values) / min(values))
        subs = (1, 2, 3, 5, 7) if decades < 1.3 else (1, 2, 5) if decades < 3 else (1,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    elif from_zero:
        axis.set_ylim(bottom=0)


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Write runs.md and runs.png into ``folder``.

    Returns:
        The tables, for a terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKDOWN).write_text(markdown(comparison))
    runs_picture(comparison, folder / PICTURE)
    return terminal_report(comparison)
