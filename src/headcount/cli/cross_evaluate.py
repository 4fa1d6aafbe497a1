"""Evaluate several counters on several datasets: MAE / RMSE of each on each, as tables and a heat map.

  python scripts/cross_evaluate.py sha.pt shb.pt --datasets sha shb data_root=~/data
  python scripts/cross_evaluate.py sha.pt nwpu.pt --datasets sha qnrf nwpu:val --output results/cross
  python scripts/cross_evaluate.py sha.pt --datasets sha shb max_images=20 eval=sliding_window runtime=cpu

A dataset is resized by its own rule, except that the one a counter was trained on is resized by the rule in its
checkpoint. NAME:SPLIT replaces split= (default: test) for one dataset. Settings are those of eval.py; dataset.key=value
goes to every dataset. Writes cross.md, cross.csv, cross.json and cross.png, and the counts of every evaluation in a
folder of its own. Exit status: 0, 1 if an evaluation failed (the others are completed), 2 if a setting is invalid.
"""

import contextlib
import io
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.arguments import read_arguments, refuse_set, script_parser, single_process_errors, to_path
from headcount.cli.choices import schemas
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import (
    DEFAULT_LEVEL,
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    MixedConfig,
    TrainedDatasetConfig,
    check_evaluation,
)
from headcount.errors import HeadcountError
from headcount.files import make_folder, quoted
from headcount.wording import printable

if TYPE_CHECKING:
    from headcount.config import TrainConfig
    from headcount.report.cross import CrossCell, CrossMatrix, CrossRow

Column = tuple[str, str]
"""Dataset and split."""
# Settings that this script takes in another form.
_NOT_HERE = {
    "ckpt": "name the checkpoints first",
    "dataset": "type --datasets",
    "output_dir": "type --output",
}


def main() -> None:
    """Read the command line and evaluate."""
    parser = script_parser(__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CKPT", help="files such as best_mae.pt")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME[:SPLIT]", help="as dataset= of eval.py")
    parser.add_argument("--output", type=to_path, default=Path("cross"), help="folder of the results; default cross")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, mixed=("checkpoints", "datasets"), old_flags=("split", "data_root"))
        options = arguments.options
        splits = [text.partition("=")[2] for text in arguments.settings if text.startswith("split=")]
        columns = split_columns(options.datasets, splits[-1] if splits else "test")
        if len({Path(ckpt).expanduser().resolve() for ckpt in options.checkpoints}) < len(options.checkpoints):
            raise ConfigError(f"{' '.join(options.checkpoints)}: a checkpoint is named twice")
        settings = [text for text in arguments.settings if not text.startswith("split=")]
        good = cross_evaluate(options.checkpoints, columns, output=options.output.expanduser(), overrides=settings)
    sys.exit(0 if good else FAILED)


def split_columns(datasets: Sequence[str], default: str) -> list[Column]:
    """The datasets and splits that were typed as NAME or NAME:SPLIT.

    Raises:
        ConfigError: if one is named twice.
    """
    columns = []
    for text in datasets:
        name, _, split = text.partition(":")
        columns.append((name, split or default))
    if len(set(columns)) < len(columns):
        raise ConfigError(f"--datasets {' '.join(datasets)}: one is named twice")
    return columns


def evaluation_configs(
    checkpoints: Sequence[str], columns: Sequence[Column], overrides: Sequence[str]
) -> list[list[EvalCommandConfig]]:
    """The settings of every evaluation: a row per checkpoint, a column per dataset.

    Raises:
        ConfigError: if any is invalid.
    """
    refuse_set(overrides, _NOT_HERE)
    pictures = [] if any(o.startswith("eval.pictures=") for o in overrides) else ["eval.pictures=0"]
    rows = []
    for ckpt in checkpoints:
        row = []
        for dataset, split in columns:
            fitting = [text for text in overrides if not _is_foreign_place(text, dataset)]
            typed = [f"ckpt={quoted(ckpt)}", f"dataset={dataset}", f"split={split}", *pictures, *fitting]
            config: EvalCommandConfig = to_config(compose(typed, config_name="eval"))
            errors = check_evaluation(config) + single_process_errors(config, "one evaluation after the other takes")
            refuse(errors, typed, config)
            row.append(config)
        rows.append(row)
    return rows


def _is_foreign_place(text: str, dataset: str) -> bool:
    """Whether a setting says where files are (``dataset.cache_dir=...``) that this dataset does not have."""
    group, _, key = text.partition("=")[0].partition(".")
    schema = schemas("dataset").get(dataset)
    return schema is not None and group == "dataset" and hasattr(TrainedDatasetConfig, key) and not hasattr(schema, key)


def check_splits(row: Sequence[EvalCommandConfig]) -> None:
    """Refuse a split that its dataset does not have, before anything is evaluated.

    Raises:
        ConfigError: lists those it has.
    """
    from headcount.data.catalogue import dataset_info, split_names

    for config in row:
        assert isinstance(config.dataset, DatasetConfig)
        if isinstance(config.dataset, CustomConfig | MixedConfig):
            continue  # the splits of a custom dataset depend on its folders, those of a mixed one on its parts
        name, closed = config.dataset.name, dataset_info(config.dataset.name).unannotated
        splits = [split for split in split_names(config.dataset) if split != closed]
        if config.split not in splits:
            why = "its annotations are not public; " if config.split == closed else ""
            raise ConfigError(
                f"--datasets {name}, split {config.split}: {why}{name} has {', '.join(splits)}; "
                f"type {name}:{splits[-1]}"
            )


def own_dataset(config: EvalCommandConfig, trained: "TrainConfig", overrides: Sequence[str]) -> bool:
    """Whether a column is the dataset that the counter was trained on; if so, it is resized as the checkpoint says."""
    from headcount.engine.evaluate import locate_evaluated

    located = locate_evaluated(config, trained, overrides=overrides)
    if located.own:
        config.dataset, config.data_root = located.config, located.data_root
    return located.own


def evaluate_cell(config: EvalCommandConfig, cell: "CrossCell") -> None:
    """Evaluate one counter on one dataset, and write the errors, or the reason of a failure, into ``cell``."""
    with deferred_interrupt():
        from headcount.engine.evaluate import evaluate_checkpoint
        from headcount.report.evaluation import write_evaluation

    try:
        result = evaluate_checkpoint(config)
        assert result is not None  # there is one process
        with contextlib.redirect_stdout(io.StringIO()):  # the matrix reports it in one line
            write_evaluation(
                result.evaluation, result.dataset, result.folder, facts=result.facts, intervals=result.intervals
            )
    except HeadcountError as error:
        cell.error = str(error)
        return
    except Exception as error:  # no error stops the other evaluations
        traceback.print_exc()
        cell.error = f"{type(error).__name__}: {error}"
        return
    errors = result.evaluation.errors
    cell.mae, cell.rmse, cell.images = errors.mae, errors.rmse, errors.images
    cell.selected = cell.own and result.facts.selected_on == config.split
    calibrated = result.intervals.measure_calibrated()
    for of in calibrated.levels if calibrated is not None else []:
        if of.level == DEFAULT_LEVEL:
            cell.covered, cell.width = of.coverage.share, of.width


def cross_evaluate(
    checkpoints: Sequence[str], columns: list[Column], *, output: Path, overrides: Sequence[str]
) -> bool:
    """Evaluate everything and write the matrix.

    Returns:
        Whether all evaluations succeeded.

    Raises:
        ConfigError: if a setting is invalid.
    """
    rows = evaluation_configs(checkpoints, columns, overrides)
    check_splits(rows[0])

    from headcount.report.cross import CSV_FILE, JSON_FILE, MARKDOWN_FILE, PICTURE_FILE, CrossMatrix, write_cross

    make_folder(output, "--output")
    matrix = CrossMatrix(columns, [_read_row(row, overrides) for row in rows])
    _evaluate_all(matrix, rows, output)
    print()
    print(printable(write_cross(matrix, output), keep="\n"))
    for file in (MARKDOWN_FILE, CSV_FILE, JSON_FILE, PICTURE_FILE):
        print(f"  {output / file}")
    if failures := matrix.failures():
        print(printable("\n  ".join(["failed:", *failures]), keep="\n"), file=sys.stderr)
    return not failures


def _read_row(configs: Sequence[EvalCommandConfig], overrides: Sequence[str]) -> "CrossRow":
    """The row of a checkpoint, with its own dataset marked; nothing is evaluated yet."""
    with deferred_interrupt():
        from headcount.engine import checkpoint
        from headcount.report.cross import CrossCell, CrossRow

    ckpt = configs[0].checkpoint
    cells = [CrossCell(error="not evaluated yet") for _ in configs]
    try:
        trained = checkpoint.recorded_config(checkpoint.read(ckpt), ckpt)
    except HeadcountError as error:
        return CrossRow(ckpt, None, None, None, [CrossCell(error=str(error)) for _ in configs])
    for config, cell in zip(configs, cells, strict=True):
        cell.own = own_dataset(config, trained, overrides)
    return CrossRow(ckpt, trained.dataset.name, trained.model.name, trained.seed, cells)


def _evaluate_all(matrix: "CrossMatrix", rows: Sequence[Sequence[EvalCommandConfig]], output: Path) -> None:
    """Fill every cell of a checkpoint that could be read, and print a line for each."""
    done, total = 0, sum(len(row) for row in rows)
    names = matrix.row_names()
    for number, (name, row, configs) in enumerate(zip(names, matrix.rows, rows, strict=True), start=1):
        for column, config, cell in zip(matrix.column_names(), configs, row.cells, strict=True):
            done += 1
            if row.trained_on is not None:
                cell.error = None
                folder = f"{number}_{re.sub(r'[^A-Za-z0-9._-]+', '_', f'{row.trained_on}_{row.model}')}"
                config.output_dir = str(output / folder / column.replace(" ", "_"))
                evaluate_cell(config, cell)
            if cell.mae is None:
                outcome = "failed: " + str(cell.error).split("\n")[0]
            else:
                outcome = f"MAE {cell.mae:.2f}, RMSE {cell.rmse:.2f}"
            print(printable(f"[{done}/{total}] {name} on {column}: {outcome}"), flush=True)
