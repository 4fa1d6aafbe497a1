"""Compare runs: the settings that differ, their errors, and their training curves.

Runs whose settings differ only in the seed form one experiment, with one color and one mean.
"""

import itertools
import math
import re
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from tabulate import tabulate

from headcount.errors import ConfigError, HeadcountError
from headcount.files import write_text
from headcount.report.markdown import code, pipe_table, plain
from headcount.report.pictures import epoch_axis, from_zero, save_figure, shorten
from headcount.runs import CONFIG_FILE, LAST_EVALUATIONS, METRICS_FILE, RunRecord, read_run, recipe
from headcount.wording import printable

MARKDOWN_FILE, PICTURE_FILE = "runs.md", "runs.png"

_DPI = 130
# Dark enough on white, and distinguishable with most color vision deficiencies; repeated with dashed lines.
_COLORS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00"),
    *("#56b4e9", "#8b0000", "#7f7f7f", "#6a3d9a", "#a6761d", "#b2df8a"),
)
_LINES = ("-", "--", ":")
# An axis is logarithmic if its largest value exceeds this many times its smallest.
_LOG_RATIO = 8
_MAX_NAME_LENGTH = 44
_MAX_VALUE_LENGTH = 24
_LEGEND_FONT = 10
_LEFT, _TOP, _GAP, _BOTTOM, _AXES_WIDTH = 0.9, 0.4, 0.35, 0.6, 6.8
"""Margins and width of the axes of runs.png, in inches."""


@dataclass
class Experiment:
    """Runs that differ only in their seed."""

    name: str
    runs: list[RunRecord]

    @property
    def finished(self) -> list[RunRecord]:
        """The runs that the mean is taken over: the first finished run of each seed."""
        first: dict[int, RunRecord] = {}
        for run in self.runs:
            if run.finished and run.evaluations:
                first.setdefault(run.config.seed, run)
        return list(first.values())

    @property
    def same_images(self) -> bool:
        """False if its runs are known to have seen different images; runs of early versions did not record them."""
        return len({run.digest for run in self.runs} - {None}) < 2


@dataclass
class Comparison:
    """The runs that could be read, by experiment, and the folders that could not."""

    experiments: list[Experiment]
    broken: list[str]
    """One line per folder: its name and what is wrong with it."""

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, in the order of the experiments."""
        return [run for experiment in self.experiments for run in experiment.runs]


# ------------------------------------------------------------------------------------------ reading


def compare(folders: Sequence[Path]) -> Comparison:
    """Read and group runs.

    Args:
        folders: of runs, or folders above runs.

    Returns:
        The experiments; folders that could not be read are listed in ``broken``.
    """
    runs: list[RunRecord] = []
    broken = []
    for folder in dict.fromkeys(itertools.chain.from_iterable(map(_run_folders, folders))):
        try:
            runs.append(_read(folder))
        except (HeadcountError, OSError) as error:
            message = str(error).split("\n")[0]
            broken.append(message if str(folder) in message else f"{folder}: {message}")
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(repr(sorted({**recipe(run.config), "seed": None}.items())), []).append(run)
    names = _names(list(groups.values()))
    experiments = [
        Experiment(name, sorted(group, key=lambda run: run.config.seed))
        for name, group in zip(names, groups.values(), strict=True)
    ]
    return Comparison(experiments, broken)


def _run_folders(folder: Path) -> list[Path]:
    """The folders at or below ``folder`` that hold a file of a run; ``folder`` itself if there are none."""
    found = {file.parent for name in (CONFIG_FILE, METRICS_FILE) for file in folder.rglob(name) if file.is_file()}
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    return sorted(visible) or [folder]


def _read(folder: Path) -> RunRecord:
    """Read a run that has at least one record.

    Raises:
        ConfigError: if there is no such run.
    """
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; give the folder of the run, {folder.parent}")
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give folders that train.py wrote, or a folder above them")
    file = folder / METRICS_FILE
    if not (folder / CONFIG_FILE).is_file() and not file.is_file():
        raise ConfigError(f"{folder}: neither it nor a folder below it holds {CONFIG_FILE} and {METRICS_FILE}")
    run = read_run(folder)
    if not file.is_file():
        raise ConfigError(f"{folder}: there is no {METRICS_FILE}")
    if not run.metrics:
        raise ConfigError(f"{file}: no epoch is recorded yet")
    return run


def differing(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Find the settings, other than the seed, that are not the same in all experiments.

    Args:
        experiments: to compare.

    Returns:
        For each such setting, by name, one value per experiment; ``-`` for an experiment without that setting.
    """
    all_settings = [recipe(experiment.runs[0].config) for experiment in experiments]
    keys = sorted({key for one in all_settings for key in one} - {"seed"})
    values = {key: [one.get(key, "-") for one in all_settings] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """A unique name for each experiment."""
    names = []
    for runs in groups:
        run_names = list(dict.fromkeys(run.config.run_name for run in runs))
        # Run names may end in the seed: use their common start.
        common = re.sub(r"[-_ ]*(seed|s)?$", "", _common_start(run_names)) if len(run_names) > 1 else ""
        names.append(common or run_names[0])
    if len({run.config.dataset.name for runs in groups for run in runs}) > 1:
        names = [f"{runs[0].config.dataset.name} {name}" for runs, name in zip(groups, names, strict=True)]
    names = list(map(printable, names))
    # Runs with different settings may have the same name.
    return [f"{name} ({names[:k].count(name) + 1})" if names.count(name) > 1 else name for k, name in enumerate(names)]


def _common_start(words: Sequence[str]) -> str:
    letters = itertools.takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))
    return "".join(same[0] for same in letters)


# ------------------------------------------------------------------------------------------- tables


def settings_table(comparison: Comparison) -> list[list[str]]:
    """The settings that differ, one column per experiment, headings first; empty if none differ."""
    rows = [[key, *map(_value, values)] for key, values in differing(comparison.experiments).items()]
    headings, number = ["setting"], 1
    for experiment in comparison.experiments:
        last = number + len(experiment.runs) - 1
        headings.append(f"[{number}]" if last == number else f"[{number}-{last}]")
        number = last + 1
    return [headings, *rows] if rows else []


def results_table(comparison: Comparison) -> list[list[str]]:
    """The errors of each run, headings first; the runs of an experiment are followed by the mean over its seeds."""
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
            last_records = run.last_evaluations
            span = f"{last_records[0]['epoch']}-{last_records[-1]['epoch']}"
            if len(last_records) < LAST_EVALUATIONS:
                span += f" ({len(last_records)})"
            best, last, late = (f"{mae:.2f} / {rmse:.2f}" for mae, rmse in _errors(run))
            best_epoch, last_epoch = str(run.best["epoch"]), str(last_records[-1]["epoch"])
            rows.append([*row, run.selection, best, best_epoch, last, last_epoch, late, span])
        finished = [_errors(run) for run in experiment.finished]
        if len(finished) > 1 and experiment.same_images:
            best, last, late = (_mean_over_seeds(pairs) for pairs in zip(*finished, strict=True))
            heading = f"{experiment.name}, mean of {len(finished)} seeds"
            rows.append(["", heading, "", "", "", "", best, "", last, "", late, ""])
    return rows


def _mean_over_seeds(errors: Sequence[tuple[float, float]]) -> str:
    """Mean and standard deviation of MAE / RMSE."""
    return " / ".join(f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in zip(*errors, strict=True))


def _errors(run: RunRecord) -> list[tuple[float, float]]:
    """MAE and RMSE of the best evaluation, of the last one, and the mean over the last ones of an evaluated run."""
    assert run.best is not None
    chosen = (run.best, run.evaluations[-1])
    return [*((r["eval/mae"], r["eval/rmse"]) for r in chosen), (run.late("mae"), run.late("rmse"))]


def _number(record: dict[str, Any], key: str) -> float:
    """A value of a record; NaN if it is missing."""
    value = record.get(key)
    return math.nan if value is None else float(value)


def _value(value: Any) -> str:
    """A setting as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    return "null" if value is None else printable(str(value))


def terminal_report(comparison: Comparison) -> str:
    """Format folders, differing settings and errors for a terminal; long names and values are shortened."""
    runs = comparison.runs
    settings = [[key, *(shorten(v, _MAX_VALUE_LENGTH) for v in values)] for key, *values in settings_table(comparison)]
    results = [[row[0], shorten(row[1], _MAX_NAME_LENGTH), *row[2:]] for row in results_table(comparison)]
    folders = [f"[{k}] {printable(str(run.folder))}" for k, run in enumerate(runs, start=1)]
    differences = _aligned(settings) if settings else _no_difference(comparison)
    return "\n".join([*folders, "", differences, "", _aligned(results), *_notes(comparison)])


def markdown(comparison: Comparison) -> str:
    """Format the same as a page of Markdown, unshortened, with the folders that could not be read."""
    runs = comparison.runs
    settings = settings_table(comparison)
    lines = ["# Runs", "", *(f"* [{k}] {code(str(run.folder))}" for k, run in enumerate(runs, start=1)), ""]
    lines += [
        "## Settings that differ",
        "",
        *(pipe_table(settings) if settings else [_no_difference(comparison)]),
        "",
    ]
    lines += [
        "## Errors",
        "",
        *pipe_table(results_table(comparison), numbers_from=2),
        "",
        *map(plain, _notes(comparison)),
    ]
    lines += ["", f"![training loss and MAE]({PICTURE_FILE})"]
    if comparison.broken:
        lines += ["", "## Not compared", "", *(f"* {plain(line)}" for line in comparison.broken)]
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
        notes.append(
            f"In heads per image. 'best' is the epoch with the lowest MAE on '{', '.join(splits)}', and its RMSE:"
        )
        notes.append(
            "selected and measured on one split, so it is optimistic; the mean of the last evaluations is not."
        )
    for experiment in comparison.experiments:
        if not experiment.same_images:
            notes.append(f"{experiment.name}: its runs saw different images or annotations, so they have no mean.")
        elif len({run.config.seed for run in experiment.runs}) < len(experiment.runs):
            notes.append(f"{experiment.name}: a seed occurs twice; the mean takes its first finished run.")
    if len(splits) > 1:
        notes.append("The splits differ: errors on different images cannot be compared.")
    if len({run.config.dataset.name for run in comparison.runs}) > 1:
        notes.append("The datasets differ: their errors cannot be compared.")
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    headings, *body = rows
    return tabulate(body, headings, tablefmt="plain", disable_numparse=True)


# ------------------------------------------------------------------------------------------ picture


def runs_picture(comparison: Comparison, path: Path) -> None:
    """Draw training loss and MAE of all runs by epoch.

    Each experiment has its color, and a dot marks the best epoch of each run.

    Args:
        comparison: the runs.
        path: the picture file; its suffix determines the format.

    Raises:
        OSError: if the file cannot be written.
    """
    labels = []
    for experiment in comparison.experiments:
        seeds = f" ({len(experiment.runs)} seeds)" if len(experiment.runs) > 1 else ""
        # Whole names: those of runs often differ only in the middle.
        labels.append(textwrap.fill(experiment.name + seeds, _MAX_NAME_LENGTH))
    width = _LEFT + _AXES_WIDTH + 0.15 + _text_width(labels) + 0.7
    height = max(6.6, sum(0.18 * (label.count("\n") + 1) + 0.09 for label in labels) + 0.6)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    axis_height = (height - _TOP - _GAP - _BOTTOM) / 2
    box = (_LEFT / width, _BOTTOM / height, _AXES_WIDTH / width, axis_height / height)
    loss = figure.add_axes((box[0], box[1] + (axis_height + _GAP) / height, *box[2:]))
    errors = figure.add_axes(box, sharex=loss)
    handles = _draw_curves(comparison, loss, errors)
    losses = [_number(record, "train/total") for run in comparison.runs for record in run.metrics]
    maes = [_number(record, "eval/mae") for run in comparison.runs for record in run.evaluations]
    _scale(loss, [value for value in losses if math.isfinite(value)], zero=False)
    _scale(errors, maes, zero=True)
    loss.set_ylabel("training loss", fontsize=11)
    errors.set_ylabel("MAE, heads per image", fontsize=11)
    loss.grid(alpha=0.3)
    errors.grid(alpha=0.3)
    loss.tick_params(labelbottom=False)
    errors.set_xlabel("epoch", fontsize=11)
    splits = sorted({run.selection for run in comparison.runs if run.evaluations})
    epoch_axis(errors, [record["epoch"] for run in comparison.runs for record in run.metrics])
    note = f"MAE on {' and '.join(splits)}; dots: best epoch of each run" if splits else "no epoch is evaluated yet"
    errors.set_title(note, fontsize=10, parse_math=False)
    corner = ((_LEFT + _AXES_WIDTH + 0.1) / width, 1 - (_TOP - 0.08) / height)
    legend = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=corner, fontsize=_LEGEND_FONT, frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def _text_width(labels: Sequence[str]) -> float:
    """Width of the widest label of the legend, in inches."""
    figure = Figure(dpi=_DPI)
    texts = [figure.text(0, 0, label, fontsize=_LEGEND_FONT, parse_math=False) for label in labels]
    return max(text.get_window_extent().width for text in texts) / _DPI


def _draw_curves(comparison: Comparison, loss: Axes, errors: Axes) -> list[Line2D]:
    """Draw all runs.

    Returns:
        One line per experiment, for the legend.
    """
    handles = []
    for k, experiment in enumerate(comparison.experiments):
        color = _COLORS[k % len(_COLORS)]
        style = {
            "color": color,
            "linestyle": _LINES[k // len(_COLORS) % len(_LINES)],
            "linewidth": 1.4,
            "alpha": 1.0 if len(experiment.runs) == 1 else 0.75,
        }
        lines = [_plot(loss, run.metrics, "train/total", **style) for run in experiment.runs]
        handles.append(lines[0])
        for run in experiment.runs:
            _plot(errors, run.evaluations, "eval/mae", **style)
            if run.best is not None:
                x, y = run.best["epoch"], run.best["eval/mae"]
                dot: dict[str, Any] = {"markersize": 7, "markeredgecolor": "white", "zorder": 3}
                errors.plot(x, y, marker="o", linestyle="", color=color, **dot)
    return handles


def _plot(axis: Axes, records: Sequence[dict[str, Any]], key: str, **style: Any) -> Line2D:
    """Draw a curve of the records that have the key; a single point is drawn as a marker."""
    known = [record for record in records if math.isfinite(_number(record, key))]
    epochs = [record["epoch"] for record in known]
    values = [_number(record, key) for record in known]
    (line,) = axis.plot(epochs, values, marker="x" if len(known) == 1 else "", **style)
    return line


def _scale(axis: Axes, values: Sequence[float], *, zero: bool) -> None:
    """Use a logarithmic axis for values of a wide range, else a linear one; ``zero`` starts it at 0."""
    if not values:
        axis.text(0.5, 0.5, "nothing recorded", transform=axis.transAxes, ha="center")
    elif min(values) > 0 and max(values) > _LOG_RATIO * min(values):
        axis.set_yscale("log")
        decades = math.log10(max(values) / min(values))
        subs = (1, 2, 3, 5, 7) if decades < 1.3 else (1, 2, 5) if decades < 3 else (1,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    elif zero:
        from_zero(axis)


def write_comparison(comparison: Comparison, folder: Path) -> str:
    """Write runs.md and runs.png.

    Args:
        comparison: the runs.
        folder: created if missing.

    Returns:
        The tables, for a terminal.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARKDOWN_FILE, markdown(comparison))
    runs_picture(comparison, folder / PICTURE_FILE)
    return terminal_report(comparison)
