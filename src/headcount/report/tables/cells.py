"""Find the runs of each cell of a table, and compare cells.

A cell is an experiment file. A run counts for it only if every setting that changes what is learned is the cell's own
(or was set for the whole table). Published numbers are compared with ours only if nothing was set that changes the
recipe.
"""

import csv
import itertools
import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headcount.commands import as_typed
from headcount.config import ConfigError, ExpectedConfig, TrainConfig
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import quoted, read_csv
from headcount.metrics import Interval, bootstrap_interval
from headcount.report.tables.kept import check_judged, why_not_judged
from headcount.report.tables.paper import IMAGES, TABLES, PaperRow, PaperTable
from headcount.runs import (
    COUNTS_FILE,
    RunRecord,
    differences,
    evaluation_folder,
    find_runs,
    read_run,
    recipe,
)
from headcount.wording import first_names

Compose = Callable[[Sequence[str]], TrainConfig]
"""Overrides -> the config that train.py would make of them."""

_MAX_DIFFERENCES = 6
IMPORTANT_SETTINGS = ("dataset.name", "model.name", "epochs", "scale", "optim.lr")
"""Listed first where many settings differ."""


@dataclass
class TableCell:
    """One experiment of a table, and its runs."""

    row: PaperRow
    column: str
    experiment: str
    overrides: list[str]
    settings: dict[str, Any]
    """The recipe that its runs must have."""
    expected: ExpectedConfig | None
    changed: dict[str, tuple[Any, Any]]
    """Settings of the published recipe that were overridden: name -> (published value, value here)."""
    runs: dict[int, RunRecord] = field(default_factory=dict)
    """Seed -> its finished run, for the seeds of the table."""
    refused: list[str] = field(default_factory=list)
    """Runs named after the experiment that do not count, each with the reason."""

    @property
    def comparable(self) -> bool:
        """Whether our runs follow the recipe of the published number."""
        return not self.changed and self.expected is not None and self.expected.same_recipe

    @property
    def published_otherwise(self) -> bool:
        """Whether the published number comes from other training settings than those of the experiment file."""
        return self.expected is not None and not self.expected.same_recipe

    def typed(self, seed: int) -> list[str]:
        """The overrides of train.py that train this cell."""
        return [f"experiment={self.experiment}", *self.overrides, f"seed={seed}"]

    def best(self, key: str) -> list[float]:
        """``mae`` or ``rmse`` of each run's best checkpoint, ordered by seed."""
        return [run.best[f"eval/{key}"] for _, run in sorted(self.runs.items()) if run.best is not None]

    def late(self, key: str) -> list[float]:
        """Mean ``mae`` or ``rmse`` of each run's last evaluations, ordered by seed."""
        return [run.late(key) for _, run in sorted(self.runs.items())]


@dataclass
class ReproducedTable:
    """A table of the paper with our runs."""

    paper: PaperTable
    columns: list[str]
    """The columns of the paper's table that were selected."""
    cells: dict[tuple[str, str], TableCell]
    """(row label, column) -> cell."""
    seeds: list[int]
    runs: Path
    """The folder of all runs."""

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Settings of the published recipes that were overridden: name -> (published value, value here)."""
        changed: dict[str, tuple[Any, Any]] = {}
        for cell in self.cells.values():
            changed |= cell.changed
        return changed

    def command(self, cell: TableCell, seed: int) -> str:
        """The command that trains a cell, into the folder where its runs are looked for."""
        where = [] if self.runs == Path("checkpoints") else [f"output_dir={quoted(self.runs)}"]
        return f"{as_typed('python train.py')} {shlex.join([*cell.typed(seed), *where])}"

    def missing(self) -> list[tuple[TableCell, int]]:
        """Cells and seeds without a finished run."""
        return [(cell, seed) for cell in self.cells.values() for seed in self.seeds if seed not in cell.runs]


# ----------------------------------------------------------------------------------------- finding runs


def fill_table(
    name: str, overrides: Sequence[str], *, compose: Compose, runs: Path, seeds: Sequence[int]
) -> ReproducedTable:
    """Find the runs of each cell of a table.

    Args:
        name: of the table, a key of ``TABLES``.
        overrides: settings for every cell; ``dataset=`` or ``model=`` selects cells if the table compares datasets or
            models.
        compose: makes a config of overrides.
        runs: the folder of all runs.
        seeds: the seeds that each cell needs.

    Raises:
        ConfigError: if there is no such table, the overrides select no cell, they set what the table compares, or the
            images that judge a cell would select its checkpoints.
    """
    if name not in TABLES:
        raise ConfigError(f"table={name}: no such table; there are {', '.join(TABLES)}")
    paper = TABLES[name]
    configs = {
        experiment: compose([f"experiment={experiment}"]) for row in paper.rows for experiment in row.experiments
    }
    selected, overrides = _select(paper, configs, overrides)
    table = ReproducedTable(paper, [], {}, list(seeds), runs)
    found = _read_runs(runs)
    for row in paper.rows:
        for column, experiment in zip(paper.columns, row.experiments, strict=True):
            config = configs[experiment]
            if any(getattr(config, group).name != wanted for group, wanted in selected.items()):
                continue
            try:
                composed = compose([f"experiment={experiment}", *overrides])
                if paper.judged_on is not None:
                    check_judged(composed, paper.judged_on)
                settings = recipe(composed)
            except HeadcountError as error:
                raise ConfigError(f"{experiment}: {error}") from error
            changed = differences(recipe(config), settings, ignore=("seed",))
            cell = TableCell(row, column, experiment, list(overrides), settings, config.expected, changed)
            _collect(cell, found, seeds, paper.judged_on)
            table.cells[row.label, column] = cell
    if not table.cells:
        choice = " ".join(f"{group}={wanted}" for group, wanted in selected.items())
        raise ConfigError(f"{choice}: no cell of {paper.title} has both")
    _check_cells_differ(table, configs)
    _refuse_other_images(table)
    table.columns = [column for column in paper.columns if any(column == cell.column for cell in table.cells.values())]
    return table


def _select(
    paper: PaperTable, configs: dict[str, TrainConfig], overrides: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Split the overrides into those that select cells, as group -> name, and the settings of every cell.

    Raises:
        ConfigError: if no cell has the selected dataset or model.
    """
    selected: dict[str, str] = {}
    rest = list(overrides)
    for group in ("dataset", "model"):
        present = {getattr(config, group).name for config in configs.values()}
        choices = [override for override in rest if override.startswith(f"{group}=")]
        if choices and len(present) > 1:
            rest = [override for override in rest if override not in choices]
            selected[group] = choices[-1].split("=", 1)[1]
            if selected[group] not in present:
                raise ConfigError(f"{choices[-1]}: {paper.title} has {', '.join(sorted(present))}")
    return selected, rest


def _check_cells_differ(table: ReproducedTable, configs: dict[str, TrainConfig]) -> None:
    """Check that the overrides do not make two cells the same, which would contradict their rows or columns.

    Raises:
        ConfigError: names two such cells.
    """
    for other, cell in itertools.combinations(table.cells.values(), 2):
        same = other.settings == cell.settings
        if same and recipe(configs[other.experiment]) != recipe(configs[cell.experiment]):
            raise ConfigError(
                f"{' '.join(cell.overrides)}: makes {other.experiment} and {cell.experiment} the same; leave out "
                "what the table compares"
            )


def _refuse_other_images(table: ReproducedTable) -> None:
    """Of the runs with the same dataset settings, refuse those with other images than the first run."""
    first: dict[str, RunRecord] = {}
    for cell in table.cells.values():
        for seed, run in sorted(cell.runs.items()):
            if run.digest is None:  # runs of early versions did not record it
                continue
            settings = {k: v for k, v in recipe(run.config).items() if k.startswith(("dataset.", "kinds.dataset"))}
            before = first.setdefault(repr(sorted(settings.items())), run)
            if run.digest != before.digest:
                del cell.runs[seed]
                cell.refused.append(
                    f"{run.folder}: was trained or selected on other images or annotations than {before.folder}; "
                    "remove the one that should not count"
                )


def _read_runs(root: Path) -> dict[Path, tuple[RunRecord, dict[str, Any]] | HeadcountError]:
    """Every run below a folder with its recipe, or the error if it cannot be read."""
    found: dict[Path, tuple[RunRecord, dict[str, Any]] | HeadcountError] = {}
    for folder in find_runs(root) if root.is_dir() else []:
        try:
            run = read_run(folder)
            found[folder] = (run, recipe(run.config))
        except HeadcountError as error:
            found[folder] = error
    return found


def _collect(
    cell: TableCell,
    found: dict[Path, tuple[RunRecord, dict[str, Any]] | HeadcountError],
    seeds: Sequence[int],
    judged_on: str | None,
) -> None:
    """Add the runs that count to a cell, and to ``refused`` those that are named after it or repeat a seed."""
    slug = cell.experiment.replace("/", "-")
    named = {folder: folder.parent.name == slug or folder.parent.name.startswith(f"{slug}_") for folder in found}
    for folder in sorted(found, key=lambda folder: not named[folder]):  # runs named after the cell take precedence
        read = found[folder]
        if isinstance(read, HeadcountError):
            if named[folder]:
                cell.refused.append(f"{folder}: {read}")
            continue
        run, settings = read
        if cell.settings.get("model.quick_gelu") is None:  # derived from the weights, and recorded by the run
            settings = settings | {"model.quick_gelu": cell.settings.get("model.quick_gelu")}
        if cell.settings.get("runtime.precision") == "auto":  # settled by the hardware, and recorded by the run
            settings = settings | {"runtime.precision": "auto"}
        changed = differences(cell.settings, settings, ignore=("seed",))
        if changed:
            if named[folder]:
                cell.refused.append(f"{folder}: {_describe_changes(changed)}")
            continue
        first = cell.runs.get(run.config.seed)
        reason = _why_incomplete(run, judged_on)
        if reason is not None:
            cell.refused.append(f"{folder}: {reason}")
        elif first is not None:
            cell.refused.append(f"{folder}: has the settings and the seed of {first.folder}, which is used")
        elif run.config.seed in seeds:
            cell.runs[run.config.seed] = run


def _describe_changes(changed: dict[str, tuple[Any, Any]]) -> str:
    """The first differing settings of a run, the most important first."""
    keys = sorted(changed, key=lambda key: key not in IMPORTANT_SETTINGS)
    return first_names([f"{key} is {changed[key][1]}, not {changed[key][0]}" for key in keys], _MAX_DIFFERENCES)


def _why_incomplete(run: RunRecord, judged_on: str | None) -> str | None:
    """Why a run with the right settings does not count; None if it does."""
    wrong_images = _wrong_images(run)
    if wrong_images is not None:
        return wrong_images
    if not run.finished:
        return f"stopped at epoch {run.epochs} of {run.config.epochs}; resume=true continues it"
    if run.best is None:
        return "was never evaluated"
    return None if judged_on is None else why_not_judged(run, judged_on)


def _wrong_images(run: RunRecord) -> str | None:
    """Describe a wrong number of images of a run on a whole published dataset; None if the numbers are right."""
    dataset, published = run.config.dataset, IMAGES.get(run.config.dataset.name)
    reduced = dataset.max_train_images or dataset.max_eval_images or dataset.holds_out or dataset.train_fraction < 1
    if reduced or published is None or run.images is None or run.images == published:
        return None
    return (
        f"trained on {run.images[0]} images and selected on {run.images[1]}, where {dataset.name} has {published[0]} "
        f"and {published[1]}"
    )


# ------------------------------------------------------------------------------------- comparing cells


def improvement(ours: float, theirs: float) -> float:
    """By how much the error ``ours`` is below ``theirs``, in percent of ``theirs``."""
    return 100 * (1 - ours / theirs)


def paired_difference(one: TableCell, other: TableCell) -> tuple[float, Interval] | None:
    """Compare the MAE of two cells on the same images.

    Args:
        one, other: cells whose runs were evaluated on the same images. The errors of an image are averaged over seeds.

    Returns:
        MAE of ``one`` minus that of ``other`` and its 95 % bootstrap interval over images, in heads per image; None if
        counts.csv of an evaluation is missing or the images differ.
    """
    return paired(_mean_image_errors(one), _mean_image_errors(other))


def paired(ours: dict[str, float] | None, theirs: dict[str, float] | None) -> tuple[float, Interval] | None:
    """Compare the absolute errors of the same images.

    Args:
        ours, theirs: absolute error of each image by name, in heads; None if it is not known.

    Returns:
        The mean difference and its 95 % bootstrap interval over images; None if an error is not known or the images
        differ.
    """
    if ours is None or theirs is None or ours.keys() != theirs.keys():
        return None
    names = sorted(ours)
    values = np.array([ours[name] for name in names])
    baseline = np.array([theirs[name] for name in names])
    return float((values - baseline).mean()), bootstrap_interval(values, baseline)


def image_errors(run: RunRecord) -> dict[str, float] | None:
    """Read the errors of the images that selected a run from the evaluation of its best checkpoint.

    Args:
        run: a run whose best checkpoint was evaluated by eval.py.

    Returns:
        Absolute error of each image by name, in heads; None if there is none (:func:`why_not_evaluated`).
    """
    try:
        return _read_image_errors(run)
    except CheckpointError:
        return None


def why_not_evaluated(run: RunRecord) -> str | None:
    """Say why :func:`image_errors` finds none; None if it does."""
    try:
        _read_image_errors(run)
    except CheckpointError as error:
        return str(error)
    return None


def _read_image_errors(run: RunRecord) -> dict[str, float]:
    """Read the errors of the images that selected a run.

    Raises:
        CheckpointError: if the evaluation is missing, damaged, of some of the images, or of another checkpoint or
            other images, as its MAE differs from the run's.
    """
    name, limit = run.config.dataset.name, run.config.dataset.max_eval_images
    settings = {"max_images": limit} if limit else {}
    # Earlier versions wrote every evaluation of a split into the folder of the plain one.
    folders = [evaluation_folder(run.folder, name, run.selection, settings=s) for s in (settings, {})]
    file = next((folder for folder in folders if (folder / COUNTS_FILE).is_file()), folders[0]) / COUNTS_FILE
    try:
        errors = {row["image"]: abs(float(row["error"])) for row in read_csv(file)}
    except FileNotFoundError:
        typed = [f"ckpt={quoted(run.folder / 'best_mae.pt')}", f"split={run.selection}"]
        arguments = shlex.join([*typed, *(f"{key}={value}" for key, value in settings.items())])
        raise CheckpointError(f"{file} is missing; {as_typed('python eval.py')} {arguments} writes it") from None
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error!r}") from error
    if not errors or run.best is None:
        words = f"{file} holds no images" if run.best else f"{run.folder} was never evaluated in training"
        raise CheckpointError(words)
    if run.images is not None and len(errors) != run.images[1]:
        raise CheckpointError(f"{file} holds {len(errors)} of the {run.images[1]} images that selected the checkpoint")
    mae, expected = statistics.mean(errors.values()), run.best["eval/mae"]
    if not math.isclose(mae, expected, rel_tol=1e-3):
        raise CheckpointError(
            f"{file} has MAE {mae:.2f}, and the best checkpoint {expected:.2f}: it is of another checkpoint, counting "
            "mode or images"
        )
    return errors


def _mean_image_errors(cell: TableCell) -> dict[str, float] | None:
    """Mean absolute error of each image over the seeds; None if an evaluation is missing or the images differ."""
    return mean_over_runs([image_errors(run) for run in cell.runs.values()])


def mean_over_runs(errors: Sequence[dict[str, float] | None]) -> dict[str, float] | None:
    """Mean absolute error of each image over several runs.

    Args:
        errors: of each run: absolute error of each image by name, in heads; None if it is not known.

    Returns:
        By the name of the image; None if the errors of a run are not known or the images differ.
    """
    images: dict[str, list[float]] = {}
    for of_run in errors:
        if of_run is None:
            return None
        for name, error in of_run.items():
            images.setdefault(name, []).append(error)
    if not images or any(len(of_image) != len(errors) for of_image in images.values()):
        return None
    return {name: statistics.mean(of_image) for name, of_image in images.items()}


def verdict(one: TableCell, other: TableCell) -> str:
    """Describe whether ``one`` counts better than ``other``, as :func:`describe_difference` does."""
    if not one.runs or not other.runs:
        return ""
    return describe_difference(one.best("mae"), other.best("mae"), paired_difference(one, other))


def describe_difference(
    ours: Sequence[float], theirs: Sequence[float], difference_on_images: tuple[float, Interval] | None
) -> str:
    """Describe whether one experiment counts better than another.

    Args:
        ours, theirs: the MAE of each run; at least one.
        difference_on_images: their paired difference; None if it is not known.

    Returns:
        The difference of the MAEs with its 95 % interval over images, and ``better``, ``worse`` or ``undecided``.
        A difference is undecided if it is within the standard deviation over seeds, if its interval contains zero,
        or if there is a single seed.
    """
    difference = statistics.mean(ours) - statistics.mean(theirs)
    deviations = [statistics.stdev(maes) for maes in (ours, theirs) if len(maes) > 1]
    one_seed = len(deviations) < 2
    undecided = one_seed or abs(difference) < max(deviations)
    if difference_on_images is None:
        text = f"{difference:+.1f} [not evaluated]"
    elif math.isnan(difference_on_images[1].low):
        text, undecided = f"{difference:+.1f} [one image]", True
    else:
        interval = difference_on_images[1]
        text = f"{difference:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
        undecided = undecided or interval.low <= 0 <= interval.high
    if one_seed:
        return f"{text}, undecided (one seed)"
    if undecided:
        return f"{text}, undecided"
    return f"{text}, {'better' if difference < 0 else 'worse'}"


def mean_and_deviation(values: Sequence[float], decimals: int = 1) -> str:
    """Mean, and standard deviation of several values; ``-`` if none is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "-"
    deviation = f" +- {statistics.stdev(finite):.{decimals}f}" if len(finite) > 1 else ""
    return f"{statistics.mean(finite):.{decimals}f}{deviation}"
