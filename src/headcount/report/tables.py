"""The paper's tables from the runs of its experiments, beside the published numbers.

A cell is an experiment file. A run counts for it only if every setting that changes what is learned
is the cell's own (or what was typed for the whole table); what was published is compared with ours
only where nothing was typed that changes the recipe.

Source of the tables: arXiv:2403.09281, version 1; of the tokens: version 2, figure 5.
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
from matplotlib.figure import Figure

from headcount.config import ConfigError, ExpectedConfig, TrainConfig
from headcount.files import quoted
from headcount.metrics import Interval
from headcount.report.markdown import pipe_table
from headcount.runs import (
    COUNTS_FILE,
    LAST_EVALUATIONS,
    RunRecord,
    differences,
    evaluation_folder,
    find_runs,
    read_run,
    recipe,
)

Compose = Callable[[Sequence[str]], TrainConfig]
"""Overrides -> the config that train.py would make of them."""

_RESAMPLES = 5000
# Marks a published number that the experiment file does not train for.
OTHERWISE = "*"
_OTHERWISE_NOTE = f"{OTHERWISE} published for another training than this project's file: not compared"
# Of many settings that differ these are told first.
_TELLING = ("dataset.name", "model.name", "epochs", "scale", "optim.lr")
_DPI = 120
_PLUS_MINUS = r"$\pm$"
_OURS, _PUBLISHED = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Row:
    """A row of a table: an experiment a column."""

    label: str
    experiments: tuple[str, ...]
    against: str | None = None
    """Label of the row that this one is meant to improve on."""
    printed: tuple[tuple[float, float | None], ...] = ()
    """Improvement over it in MAE and RMSE that the paper prints for each column, per cent."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def _row(label: str, folder: str, names: Sequence[str], **rest: Any) -> Row:
    return Row(label, tuple(f"{folder}/{name}" for name in names), **rest)


_DATASETS = ("sha", "shb", "qnrf", "nwpu")
_BACKBONES = ("vgg16", "resnet101", "mobilenet_v2", "densenet201")
_BINS = ("fine", "dynamic", "coarse")
_TOKENS = (0, 8, 16, 32, 64, 128)
# Images that train and images that select, as published.
_IMAGES = {"sha": (300, 182), "shb": (400, 316), "qnrf": (1201, 334), "nwpu": (3109, 500)}

TABLES: dict[str, Table] = {
    "1": Table(
        "Table I: regression, EBC and CLIP-EBC",
        ("SHA", "SHB", "QNRF", "NWPU val"),
        (
            _row("CSRNet", "table1", [f"csrnet_{d}" for d in _DATASETS]),
            _row(
                *("CSRNet-EBC", "table1", [f"csrnet_ebc_{d}" for d in _DATASETS]),
                against="CSRNet",
                printed=((2.7, 8.6), (34.9, 29.3), (33.4, 35.7), (45.5, 76.9)),
            ),
            _row("DMCount", "table1", [f"dmcount_{d}" for d in _DATASETS]),
            _row(
                *("DMCount-EBC", "table1", [f"dmcount_ebc_{d}" for d in _DATASETS]),
                against="DMCount",
                printed=((-4.3, -3.3), (5.4, 7.6), (9.8, 12.0), (43.8, 73.2)),
            ),
            _row("CLIP-EBC (ResNet50)", "table1", [f"clip_rn50_{d}" for d in _DATASETS]),
            _row("CLIP-EBC (ViT-B/16)", "table1", [f"clip_vit_b16_{d}" for d in _DATASETS]),
        ),
    ),
    "2": Table(
        "Table II: block sizes and bins",
        ("fine", "dynamic", "coarse"),
        tuple(_row(f"r = {r}", "table2", [f"{bins}_{r}" for bins in _BINS]) for r in (16, 32)),
    ),
    "3": Table(
        "Table III: components of EBC",
        ("MAE",),
        (
            _row("Blockwise", "table3", ["blockwise"]),
            _row("enhanced bins", "table3", ["enhanced_bins"], against="Blockwise", printed=((37.1, None),)),
            _row("+ label correction", "table3", ["label_correction"], against="enhanced bins"),
            *(
                _row(f"lambda {value}", "table3", [f"lambda_{name}"], against="+ label correction")
                for value, name in (("0.01", "001"), ("0.1", "01"), ("1", "1"), ("2", "2"))
            ),
        ),
    ),
    "4": Table(
        "Table IV: Blockwise and EBC",
        ("VGG16", "ResNet101", "MobileNetV2", "DenseNet201"),
        (
            _row("Blockwise", "table4", [f"blockwise_{b}" for b in _BACKBONES]),
            _row(
                *("EBC", "table4", [f"ebc_{b}" for b in _BACKBONES]),
                against="Blockwise",
                printed=((44.5, None), (37.3, None), (38.7, None), (29.8, None)),
            ),
        ),
    ),
    "tokens": Table(
        "Version 2, figure 5: learned tokens of the frozen ViT",
        tuple(map(str, _TOKENS)),
        (_row("tokens a layer", "tokens", [f"tokens_{n}" for n in _TOKENS]),),
    ),
    "count_loss": Table(
        "Count loss of equation 3",
        ("DM-Count", "absolute", "squared"),
        (_row("CLIP-EBC (ResNet50)", "count_loss", ["dm", "mae", "mse"]),),
    ),
}


@dataclass
class Cell:
    """One experiment of a table, and the runs that were made of it."""

    row: Row
    column: str
    experiment: str
    overrides: list[str]
    settings: dict[str, Any]
    """The recipe that its runs must have."""
    expected: ExpectedConfig | None
    changed: dict[str, tuple[Any, Any]]
    """Settings of the published recipe that were typed otherwise: name -> (published, typed)."""
    runs: dict[int, RunRecord] = field(default_factory=dict)
    """Seed -> its finished run, of the seeds that were asked for."""
    refused: list[str] = field(default_factory=list)
    """Runs that bear the experiment's name and do not count, with the reason."""

    @property
    def comparable(self) -> bool:
        """Whether ours was made as the published number was."""
        return not self.changed and self.expected is not None and self.expected.same_recipe

    def typed(self, seed: int) -> list[str]:
        """The settings that train this cell."""
        return [f"experiment={self.experiment}", *self.overrides, f"seed={seed}"]

    def best(self, key: str) -> list[float]:
        """``mae`` or ``rmse`` of each run's best checkpoint, by seed."""
        return [run.best[f"eval/{key}"] for _, run in sorted(self.runs.items()) if run.best is not None]

    def late(self, key: str) -> list[float]:
        """The mean of each run's last evaluations, by seed."""
        return [run.late(key) for _, run in sorted(self.runs.items())]


@dataclass
class Filled:
    """A table with its runs."""

    table: Table
    columns: list[str]
    """Those that were asked for."""
    cells: dict[tuple[str, str], Cell]
    """(row label, column) -> cell."""
    seeds: list[int]
    runs: Path
    """The folder of all runs."""

    def command(self, cell: Cell, seed: int) -> str:
        """What trains a cell, into the folder that is looked through."""
        where = [] if self.runs == Path("checkpoints") else [f"output_dir={quoted(self.runs)}"]
        return shlex.join(["python", "train.py", *cell.typed(seed), *where])

    def missing(self) -> list[tuple[Cell, int]]:
        """Cells and seeds that have no finished run."""
        return [(cell, seed) for cell in self.cells.values() for seed in self.seeds if seed not in cell.runs]


def fill_table(name: str, overrides: Sequence[str], *, compose: Compose, runs: Path, seeds: Sequence[int]) -> Filled:
    """Find the runs of each cell of a table.

    Args:
        overrides: typed for every cell; ``dataset=`` or ``model=`` picks cells where a table differs in it.
        compose: makes a config of overrides.
        runs: the folder of all runs.
        seeds: those a cell needs.

    Raises:
        ConfigError: if there is no such table, or the overrides leave no cell.
    """
    if name not in TABLES:
        raise ConfigError(f"table={name}: no such table; there are {', '.join(TABLES)}")
    table = TABLES[name]
    plain = {e: compose([f"experiment={e}"]) for row in table.rows for e in row.experiments}
    picked = {}
    for group in ("dataset", "model"):
        present = {getattr(config, group).name for config in plain.values()}
        typed = [o for o in overrides if o.startswith(f"{group}=")]
        if typed and len(present) > 1:
            overrides = [o for o in overrides if o not in typed]
            picked[group] = typed[-1].split("=", 1)[1]
            if picked[group] not in present:
                raise ConfigError(f"{typed[-1]}: {table.title} has {', '.join(sorted(present))}")
    filled = Filled(table, [], {}, list(seeds), runs)
    found = _read_runs(runs)
    for row in table.rows:
        for column, experiment in zip(table.columns, row.experiments, strict=True):
            config = plain[experiment]
            if any(getattr(config, group).name != wanted for group, wanted in picked.items()):
                continue
            try:
                settings = recipe(compose([f"experiment={experiment}", *overrides]))
            except ConfigError as error:
                raise ConfigError(f"{experiment}: {error}") from error
            cell = Cell(
                *(row, column, experiment, list(overrides), settings, config.expected),
                changed=differences(recipe(config), settings, ignore=("seed",)),
            )
            _collect(cell, found, seeds)
            filled.cells[row.label, column] = cell
    _refuse_settings_that_cells_differ_in(filled, plain)
    _refuse_other_images(filled)
    if not filled.cells:
        raise ConfigError(f"{' '.join(f'{k}={v}' for k, v in picked.items())}: no cell of {table.title} has both")
    filled.columns = [c for c in table.columns if any(column == c for _, column in filled.cells)]
    return filled


def _refuse_settings_that_cells_differ_in(filled: Filled, plain: dict[str, TrainConfig]) -> None:
    """Two cells that what was typed makes the same are no longer what their row or column says.

    Raises:
        ConfigError: names two such cells.
    """
    for other, cell in itertools.combinations(filled.cells.values(), 2):
        same = other.settings == cell.settings
        if same and recipe(plain[other.experiment]) != recipe(plain[cell.experiment]):
            raise ConfigError(
                f"{' '.join(cell.overrides)}: makes {other.experiment} and {cell.experiment} the same; leave out "
                "what the table compares"
            )


def _refuse_other_images(filled: Filled) -> None:
    """Of runs with one dataset's settings and not the same images, those like the first one count."""
    first: dict[str, RunRecord] = {}
    for cell in filled.cells.values():
        for seed, run in sorted(cell.runs.items()):
            if run.digest is None:  # kept by later versions only
                continue
            settings = {k: v for k, v in recipe(run.config).items() if k.startswith(("dataset.", "kinds.dataset"))}
            before = first.setdefault(repr(sorted(settings.items())), run)
            if run.digest != before.digest:
                del cell.runs[seed]
                cell.refused.append(
                    f"{run.folder}: was trained or selected on other images or annotations than {before.folder}; "
                    "remove the one that should not count"
                )


def _read_runs(root: Path) -> dict[Path, tuple[RunRecord, dict[str, Any]] | ConfigError]:
    """Every run below a folder with its recipe, or why it cannot be read."""
    found: dict[Path, tuple[RunRecord, dict[str, Any]] | ConfigError] = {}
    for folder in find_runs(root) if root.is_dir() else []:
        try:
            run = read_run(folder)
            found[folder] = (run, recipe(run.config))
        except ConfigError as error:
            found[folder] = error
    return found


def _collect(
    cell: Cell,
    found: dict[Path, tuple[RunRecord, dict[str, Any]] | ConfigError],
    seeds: Sequence[int],
) -> None:
    """Sort runs into those that count for a cell and those that only bear its name, or come second."""
    slug = cell.experiment.replace("/", "-")
    names = {folder: folder.parent.name == slug or folder.parent.name.startswith(f"{slug}_") for folder in found}
    for folder in sorted(found, key=lambda folder: not names[folder]):  # those of the name come first
        named, read = names[folder], found[folder]
        if isinstance(read, ConfigError):
            if named:
                cell.refused.append(f"{folder}: {read}")
            continue
        run, other = read[0], dict(read[1])
        if cell.settings.get("model.quick_gelu") is None:  # follows the weights, and is then written down
            other["model.quick_gelu"] = cell.settings.get("model.quick_gelu")
        changed = differences(cell.settings, other, ignore=("seed",))
        if changed:
            if named:
                telling = sorted(changed, key=lambda key: key not in _TELLING)
                words = [f"{key} is {changed[key][1]}, not {changed[key][0]}" for key in telling[:6]]
                cell.refused.append(f"{folder}: {', '.join(words)}{', ...' if len(changed) > 6 else ''}")
        elif wrong := _wrong_images(run):
            cell.refused.append(f"{folder}: {wrong}")
        elif not run.finished:
            cell.refused.append(f"{folder}: stopped at epoch {run.epochs} of {run.config.epochs}; resume=true goes on")
        elif run.best is None:
            cell.refused.append(f"{folder}: was never evaluated")
        elif (first := cell.runs.get(run.config.seed)) is not None:
            cell.refused.append(f"{folder}: has the settings and the seed of {first.folder}, which is taken")
        elif run.config.seed in seeds:
            cell.runs[run.config.seed] = run


def _wrong_images(run: RunRecord) -> str | None:
    """What is wrong with the images of a run on a whole published dataset, from their numbers; None if nothing is."""
    dataset, published = run.config.dataset, _IMAGES.get(run.config.dataset.name)
    shrunk = dataset.max_train_images or dataset.max_eval_images or dataset.holdout or dataset.train_fraction < 1
    if shrunk or published is None or run.images in (None, published):
        return None
    told = " and ".join(map(str, published))
    return f"trained on {run.images[0]} images and selected on {run.images[1]}, where {dataset.name} has {told}"


def improvement(ours: float, theirs: float) -> float:
    """By how much an error is below another one, per cent of that."""
    return 100 * (1 - ours / theirs)


def paired_difference(one: Cell, other: Cell) -> tuple[float, Interval] | None:
    """MAE of ``one`` minus ``other`` and its 95 % bootstrap interval over the images both have counted.

    The errors of an image are averaged over the seeds. None where counts.csv of an evaluation is missing.
    """
    errors = [_image_errors(cell) for cell in (one, other)]
    if errors[0] is None or errors[1] is None or errors[0].keys() != errors[1].keys():
        return None
    names = sorted(errors[0])
    difference = np.array([errors[0][name] - errors[1][name] for name in names])
    rng = np.random.default_rng(0)
    means = difference[rng.integers(0, len(names), (_RESAMPLES, len(names)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), Interval(float(low), float(high))


def counts_file(run: RunRecord) -> Path:
    """Where the evaluation of a run's best checkpoint, on the split that selected it, tells of every image."""
    return evaluation_folder(run.folder, run.config.dataset.name, run.selection) / COUNTS_FILE


def image_errors(run: RunRecord) -> dict[str, float] | None:
    """Absolute error of each image that selected a run, from the evaluation of its best checkpoint.

    None where there is none, or it is of another checkpoint or of other images: its MAE is not the one of the run.
    """
    try:
        rows = list(csv.DictReader(counts_file(run).read_text().splitlines()))
        errors = {row["image"]: abs(float(row["error"])) for row in rows}
    except (OSError, KeyError, TypeError, ValueError):
        return None
    if not errors or run.best is None:
        return None
    return errors if math.isclose(statistics.mean(errors.values()), run.best["eval/mae"], rel_tol=1e-3) else None


def _image_errors(cell: Cell) -> dict[str, float] | None:
    """Mean absolute error of each image over the seeds, from the evaluations of the best checkpoints."""
    images: dict[str, list[float]] = {}
    for run in cell.runs.values():
        errors = image_errors(run)
        if errors is None:
            return None
        for name, error in errors.items():
            images.setdefault(name, []).append(error)
    if not images or any(len(errors) != len(cell.runs) for errors in images.values()):
        return None
    return {name: statistics.mean(errors) for name, errors in images.items()}


def verdict(one: Cell, other: Cell) -> str:
    """Whether ``one`` counts better than ``other``: undecided within the spread of seeds or images, or on one seed."""
    if not one.runs or not other.runs:
        return ""
    paired = paired_difference(one, other)
    difference = statistics.mean(one.best("mae")) - statistics.mean(other.best("mae"))
    spreads = [statistics.stdev(c.best("mae")) for c in (one, other) if len(c.runs) > 1]
    text = f"{difference:+.1f}" + " [not evaluated]" * (paired is None)
    undecided = len(spreads) < 2 or abs(difference) < max(spreads)
    if paired is not None:
        interval = paired[1]
        text += f" [{interval.low:+.1f}, {interval.high:+.1f}]"
        undecided = undecided or interval.low <= 0 <= interval.high
    if undecided:
        return f"{text}, undecided" + " (one seed)" * (len(spreads) < 2)
    return f"{text}, {'better' if difference < 0 else 'worse'}"


# --------------------------------------------------------------------------------------- rendering


def markdown(filled: Filled) -> str:
    """The table, how it was made, what is missing and what was refused."""
    table = filled.table
    lines = [f"# {table.title}", "", *_warnings(filled), "## Ours, MAE / RMSE", ""]
    lines += pipe_table([["", *filled.columns], *_grid(filled, _ours(filled, bold="**"))])
    lines += ["", _how(filled), "", "## Published, MAE / RMSE", ""]
    lines += pipe_table([["", *filled.columns], *_grid(filled, _published(filled))])
    lines += ["", _OTHERWISE_NOTE.replace(OTHERWISE, "\\" + OTHERWISE)] * _any_otherwise(filled)
    if improvements := _improvements(filled):
        lines += ["", "## Improvements", "", *pipe_table(improvements[0])]
        lines += ["", *(f"{mark} {note}" for mark, note in improvements[1])] * bool(improvements[1])
    lines += ["", "## Runs", "", *pipe_table(_run_rows(filled))]
    if missing := filled.missing():
        lines += ["", f"## Missing: {len(missing)} runs", "", "```sh"]
        lines += [filled.command(cell, seed) for cell, seed in missing] + ["```"]
    refused = [reason for cell in filled.cells.values() for reason in cell.refused]
    if refused:
        lines += ["", "## Refused", "", *(f"* {reason}" for reason in dict.fromkeys(refused))]
    return "\n".join(lines) + "\n"


def latex(filled: Filled) -> str:
    """The table for a paper: ours with the spread over seeds, the published number in brackets."""
    ours = _ours(filled, bold="\\textbf{")
    published = _published(filled)
    both = {k: f"{ours[k]} ({published[k]})" if published[k] != "-" else ours[k] for k in filled.cells}
    body = [
        " & ".join(_escape(cell) if k == 0 else cell.replace("+-", _PLUS_MINUS) for k, cell in enumerate(row)) + r" \\"
        for row in _grid(filled, both)
    ]
    caption = [_escape(filled.table.title), "MAE / RMSE", "Published in brackets"]
    if _changed(filled):
        caption.append("Ours was trained otherwise than the published numbers")
    if _any_otherwise(filled):
        caption.append(_OTHERWISE_NOTE)
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            f"\\caption{{{'. '.join(caption)}. {_escape(_how(filled)).replace('+-', _PLUS_MINUS)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(filled.columns)}}}",
            r"\toprule",
            " & ".join(["", *map(_escape, filled.columns)]) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def table_picture(filled: Filled, path: Path) -> None:
    """MAE of every cell: ours with the spread over seeds, and the published number as a mark."""
    rows = [row for row in filled.table.rows if any((row.label, c) in filled.cells for c in filled.columns)]
    figure = Figure(
        figsize=(max(5.0, 1.0 + 1.1 * len(rows)) * min(len(filled.columns), 4), 4.6), dpi=_DPI, layout="constrained"
    )
    axes = figure.subplots(1, len(filled.columns), squeeze=False)[0]
    for axis, column in zip(axes, filled.columns, strict=True):
        for k, row in enumerate(rows):
            cell = filled.cells.get((row.label, column))
            if cell is None:
                continue
            if best := cell.best("mae"):
                spread = statistics.stdev(best) if len(best) > 1 else 0.0
                axis.bar(k, statistics.mean(best), yerr=spread or None, capsize=4, color=_OURS, label="ours (best)")
                axis.plot(k, statistics.mean(cell.late("mae")), "k_", markersize=22, label="ours, last evaluations")
            else:
                axis.text(k, 0, "missing", rotation=90, ha="center", va="bottom", color="gray")
            if cell.expected is not None and cell.expected.mae is not None:
                face, label = (
                    ("none", "published, trained otherwise") if _otherwise(cell) else (_PUBLISHED, "published")
                )
                axis.plot(k, cell.expected.mae, "D", color=_PUBLISHED, markerfacecolor=face, label=label)
        axis.set_xticks(range(len(rows)), [row.label for row in rows], rotation=30, ha="right")
        axis.set_xlim(-0.7, len(rows) - 0.3)
        axis.set_ylim(bottom=0)
        axis.set(ylabel="MAE, heads an image")
        axis.set_title(column if len(filled.columns) > 1 else "", parse_math=False)
        axis.grid(axis="y", alpha=0.3)
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    note = "\nours was trained otherwise than the published numbers: they do not compare" if _changed(filled) else ""
    figure.suptitle(f"{filled.table.title}\n{_how(filled)}{note}", parse_math=False, fontsize="medium", wrap=True)
    figure.savefig(path)


def _otherwise(cell: Cell | None) -> bool:
    return cell is not None and cell.expected is not None and not cell.expected.same_recipe


def _any_otherwise(filled: Filled) -> bool:
    return any(map(_otherwise, filled.cells.values()))


def _warnings(filled: Filled) -> list[str]:
    """What keeps ours from being compared with what was published."""
    changed = _changed(filled)
    if not changed:
        return []
    telling = sorted(changed, key=lambda key: key not in _TELLING)
    shown = [f"{key} {changed[key][1]} for {changed[key][0]}" for key in telling[:12]]
    more = f", and {len(changed) - 12} more" if len(changed) > 12 else ""
    return [
        f"**Not the published recipe, so no number below reproduces one of the paper's.** {', '.join(shown)}{more}.",
        "",
    ]


def _changed(filled: Filled) -> dict[str, tuple[Any, Any]]:
    """Settings of the published recipes that were typed otherwise."""
    changed: dict[str, tuple[Any, Any]] = {}
    for cell in filled.cells.values():
        changed |= cell.changed
    return changed


def _how(filled: Filled) -> str:
    """How ours were selected and trained, in a sentence."""
    runs = [run for cell in filled.cells.values() for run in cell.runs.values()]
    if not runs:
        return "No run yet."
    splits = sorted({f"{run.config.dataset.name} {run.selection}" for run in runs})
    epochs = sorted({run.config.epochs for run in runs})
    return (
        f"Best checkpoint of {', '.join(map(str, epochs))} epochs, selected on {', '.join(splits)} by MAE; mean +- "
        "standard deviation over seeds where there are several."
    )


def _ours(filled: Filled, *, bold: str) -> dict[tuple[str, str], str]:
    """Our MAE / RMSE of each cell; the best MAE of a column in bold, where it has rivals."""
    means = {key: statistics.mean(cell.best("mae")) for key, cell in filled.cells.items() if cell.runs}
    close = "}" if bold.endswith("{") else bold
    texts = {}
    for key, cell in filled.cells.items():
        if not cell.runs:
            texts[key] = "missing"
            continue
        rivals = [mae for (_, column), mae in means.items() if column == key[1]]
        mae, rmse = (_spread(cell.best(k)) for k in ("mae", "rmse"))
        best = means[key] == min(rivals) and len(rivals) > 1
        texts[key] = f"{bold}{mae}{close} / {rmse}" if best else f"{mae} / {rmse}"
    return texts


def _published(filled: Filled) -> dict[tuple[str, str], str]:
    texts = {}
    for key, cell in filled.cells.items():
        expected = cell.expected
        if expected is None or expected.mae is None:
            texts[key] = "-"
            continue
        texts[key] = " / ".join(_as_printed(value) for value in (expected.mae, expected.rmse) if value is not None)
        if not expected.same_recipe:
            texts[key] += OTHERWISE
    return texts


def _as_printed(error: float) -> str:
    """A published error with the digits that the paper gives it: one, or two where it has them."""
    return f"{error:.1f}" if round(error, 1) == error else f"{error:.2f}"


def _grid(filled: Filled, texts: dict[tuple[str, str], str]) -> list[list[str]]:
    rows = []
    for row in filled.table.rows:
        if any((row.label, c) in texts for c in filled.columns):
            rows.append([row.label, *(texts.get((row.label, c), "-") for c in filled.columns)])
    return rows


def _improvements(filled: Filled) -> tuple[list[list[str]], list[tuple[str, str]]] | None:
    """Each row against the one it is meant to improve on; and notes where the paper prints other percentages."""
    rows = [["", "column", "published MAE", "published RMSE", "ours MAE", "MAE difference of ours [95 % of images]"]]
    notes: list[tuple[str, str]] = []
    for row in filled.table.rows:
        for k, column in enumerate(filled.table.columns):
            cell, base = (filled.cells.get((label or "", column)) for label in (row.label, row.against))
            if cell is None or base is None:
                continue
            published = []
            for key, index in (("mae", 0), ("rmse", 1)):
                now, before = (getattr(c.expected, key, None) for c in (cell, base))
                if now is None or before is None:
                    published.append("-")
                    continue
                percent = improvement(now, before)
                text = f"{percent:.1f} %"
                printed = row.printed[k][index] if row.printed else None
                if printed is not None and f"{printed:.1f}" != f"{percent:.1f}":
                    mark = f"({len(notes) + 1})"
                    text += f" {mark}"
                    notes.append((mark, f"the paper prints {printed:g} %; {before:g} to {now:g} is {percent:.1f} %."))
                published.append(text)
            ours = "-"
            if cell.runs and base.runs:
                ours = f"{improvement(statistics.mean(cell.best('mae')), statistics.mean(base.best('mae'))):.1f} %"
                ours += OTHERWISE * (_otherwise(cell) or _otherwise(base))
            rows.append([f"{row.label} over {row.against}", column, *published, ours, verdict(cell, base)])
    return (rows, notes) if len(rows) > 1 else None


def _run_rows(filled: Filled) -> list[list[str]]:
    """A line a cell: how many runs, how long, selected where, best and last, against what was published."""
    late = f"mean of last {LAST_EVALUATIONS}"
    rows = [["", "column", "seeds", "epochs", "images", "selected on", "MAE", late, "RMSE", "published", "difference"]]
    rows[0].append("commit")
    for (label, column), cell in filled.cells.items():
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
                ", ".join(sorted({str(run.config.epochs) for run in runs})) or "-",
                ", ".join(sorted({str(run.images[0]) if run.images else "unknown" for run in runs})) or "-",
                ", ".join(sorted({f"{run.config.dataset.name} {run.selection}" for run in runs})) or "-",
                _spread(cell.best("mae")),
                _spread(cell.late("mae")) + _how_many({len(run.last_evaluations) for run in runs}),
                _spread(cell.best("rmse")),
                "-" if expected is None else _as_printed(expected),
                difference,
                ", ".join(sorted({_short(commit) for run in runs for commit in run.commits or ["unknown"]})) or "-",
            ]
        )
    return rows


def _how_many(evaluations: set[int]) -> str:
    """How many evaluations a mean of the last is of, where they are fewer than usual."""
    usual = not evaluations or evaluations == {LAST_EVALUATIONS}
    return "" if usual else f" ({', '.join(map(str, sorted(evaluations)))})"


def _short(commit: str) -> str:
    """The start of a commit; that the tree was edited stays."""
    name, plus, changes = commit.partition("+")
    return name[:7] + plus + changes


def _spread(values: Sequence[float]) -> str:
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _escape(text: str) -> str:
    return "".join({"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#"}.get(c, c) for c in text)
