"""Evaluate several counters on several datasets: MAE / RMSE of each on each, as tables and a heat map.

  python scripts/cross_evaluate.py sha.pt shb.pt --datasets sha shb --data-root ~/data
  python scripts/cross_evaluate.py sha.pt nwpu.pt --datasets sha qnrf nwpu:val --output results/cross
  python scripts/cross_evaluate.py sha.pt --datasets sha shb max_images=20 eval=sliding_window runtime=cpu

A dataset is read by its own resize rule, the one a counter was trained on by that in its checkpoint. NAME:SPLIT takes
another split than --split. Settings are those of eval.py; dataset.key=value goes to every dataset. Writes cross.md,
cross.csv, cross.json and cross.png, and the counts of every evaluation in a folder of its own. Exit status: 0, 1 if
an evaluation failed (the others go on), 2 if a setting is wrong.
"""

import argparse
import contextlib
import io
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.command import compose, to_config
from headcount.config import ConfigError, CustomConfig, EvalCommandConfig, check_evaluation
from headcount.files import make_folder

if TYPE_CHECKING:
    from headcount.config import TrainConfig
    from headcount.report.cross import Cell

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Settings that are flags here.
FLAGS = {
    "ckpt": "name the checkpoints first",
    "dataset": "type --datasets",
    "split": "type --split",
    "data_root": "type --data-root",
    "output_dir": "type --output",
}


def configs(
    checkpoints: list[str], columns: list[tuple[str, str]], data_root: str | None, overrides: list[str]
) -> list[list[EvalCommandConfig]]:
    """The settings of every evaluation: a row a checkpoint, a column a dataset.

    Raises:
        ConfigError: if any is wrong.
    """
    for override in overrides:
        if hint := FLAGS.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: cannot be set here; {hint}")
    pictures = [] if any(o.startswith("eval.pictures=") for o in overrides) else ["eval.pictures=0"]
    rows = []
    for ckpt in checkpoints:
        row = []
        for dataset, split in columns:
            typed = ["ckpt=unused", f"dataset={dataset}", f"split={split}", *pictures, *overrides]
            config: EvalCommandConfig = to_config(compose(typed, config_name="eval", config_dir=CONFIGS))
            config.ckpt, config.data_root = ckpt, data_root
            errors = check_evaluation(config)
            if config.runtime.devices > 1:
                errors.append(f"runtime.devices={config.runtime.devices}: one evaluation after the other takes 1")
            if errors:
                raise ConfigError("\n  ".join(errors))
            row.append(config)
        rows.append(row)
    return rows


def check_splits(row: list[EvalCommandConfig]) -> None:
    """Refuse a split that its dataset does not have, before anything is evaluated.

    Raises:
        ConfigError: lists those it has.
    """
    from headcount.data.catalogue import dataset_info, split_names

    for config in row:
        assert config.dataset is not None
        if isinstance(config.dataset, CustomConfig):
            continue  # its folders say, and those of a counter's own are in its checkpoint
        name, closed = config.dataset.name, dataset_info(config.dataset.name).unannotated
        splits = [split for split in split_names(config.dataset) if split != closed]
        if config.split not in splits:
            why = "its annotations are not public; " if config.split == closed else ""
            raise ConfigError(
                f"--datasets {name}, split {config.split}: {why}{name} has {', '.join(splits)}; "
                f"type {name}:{splits[-1]}"
            )


def own_dataset(config: EvalCommandConfig, trained: "TrainConfig", overrides: list[str]) -> bool:
    """Whether a column is what the counter was trained on; if so, it is read as the checkpoint says."""
    from headcount.engine.evaluate import as_trained, folder_of_datasets

    typed, own = config.dataset, trained.dataset
    assert typed is not None
    keys = [o.partition("=")[0].removeprefix("dataset.") for o in overrides if o.startswith("dataset.")]
    moved = isinstance(typed, CustomConfig) and any(key in ("root", "train", "val", "test") for key in keys)
    if typed.name != own.name or moved:
        return False
    config.dataset = as_trained(own, typed, overrides, data_root=config.data_root)
    config.data_root = folder_of_datasets(config.data_root, trained.data_root, own=True)
    return True


def evaluate_cell(config: EvalCommandConfig, cell: "Cell") -> None:
    """Evaluate one counter on one dataset, and put the errors, or why there are none, into ``cell``."""
    from headcount.engine.evaluate import evaluate_checkpoint
    from headcount.report.evaluation import write_evaluation

    try:
        result = evaluate_checkpoint(config)
        assert result is not None  # there is one process
        with contextlib.redirect_stdout(io.StringIO()):  # the matrix says it in one line
            write_evaluation(result.evaluation, result.dataset, result.folder, facts=result.facts)
    except ConfigError as error:
        cell.error = str(error)
        return
    except Exception as error:  # whatever it is, the others go on
        traceback.print_exc()
        cell.error = f"{type(error).__name__}: {error}"
        return
    errors = result.evaluation.errors
    cell.mae, cell.rmse, cell.images = errors.mae, errors.rmse, errors.images
    cell.selected = cell.own and result.facts["selected_on"] == config.split


def cross_evaluate(
    checkpoints: list[str],
    columns: list[tuple[str, str]],
    *,
    data_root: str | None,
    output: Path,
    overrides: list[str],
) -> bool:
    """Evaluate everything and write the matrix.

    Returns:
        Whether all evaluations went through.

    Raises:
        ConfigError: if a setting is wrong.
    """
    rows = configs(checkpoints, columns, data_root, overrides)
    check_splits(rows[0])

    from headcount.config import from_plain
    from headcount.engine import checkpoint
    from headcount.report.cross import CSV, JSON, MARKDOWN, PICTURE, Cell, Matrix, Row, write_cross

    make_folder(output, "--output")
    matrix = Matrix(columns, [])
    for configs_of_row in rows:
        ckpt = configs_of_row[0].ckpt
        cells = [Cell(error="not evaluated yet") for _ in columns]
        try:
            trained = from_plain(checkpoint.read(ckpt)["config"])
        except (ConfigError, KeyError) as error:
            cells = [Cell(error=str(error)) for _ in columns]
            matrix.rows.append(Row(ckpt, None, None, None, cells))
            continue
        for config, cell in zip(configs_of_row, cells, strict=True):
            cell.own = own_dataset(config, trained, overrides)
        matrix.rows.append(Row(ckpt, trained.dataset.name, trained.model.name, trained.seed, cells))

    done, total = 0, len(checkpoints) * len(columns)
    names = matrix.row_names()
    for number, (name, row, row_configs) in enumerate(zip(names, matrix.rows, rows, strict=True), start=1):
        for column, config, cell in zip(matrix.column_names(), row_configs, row.cells, strict=True):
            done += 1
            if row.trained_on is not None:
                cell.error = None
                folder = f"{number}_{re.sub(r'[^A-Za-z0-9._-]+', '_', f'{row.trained_on}_{row.model}')}"
                config.output_dir = str(output / folder / column.replace(" ", "_"))
                evaluate_cell(config, cell)
            said = (
                "failed: " + str(cell.error).split("\n")[0]
                if cell.mae is None
                else f"MAE {cell.mae:.2f}, RMSE {cell.rmse:.2f}"
            )
            print(f"[{done}/{total}] {name} on {column}: {said}", flush=True)
    print()
    print(write_cross(matrix, output))
    for file in (MARKDOWN, CSV, JSON, PICTURE):
        print(f"  {output / file}")
    if failures := matrix.failures():
        print("failed:", *(f"  {line}" for line in failures), sep="\n", file=sys.stderr)
    return not failures


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="files such as best_mae.pt")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME[:SPLIT]", help="as dataset= of eval.py")
    parser.add_argument("--split", default="test", help="of datasets that do not name their own; default test")
    parser.add_argument("--data-root", help="folder of the datasets; default: environment variable HEADCOUNT_DATA")
    parser.add_argument("--output", type=Path, default=Path("cross"), help="folder of the results; default cross")
    # Settings may stand anywhere, behind --datasets too; a file whose name looks like one is a checkpoint.
    typed = sys.argv[1:]
    settings = [a for a in typed if re.match(r"[~+]*[A-Za-z_][\w./]*=", a) and not Path(a).expanduser().is_file()]
    arguments = parser.parse_args([a for a in typed if a not in settings])
    columns = [(name, split or arguments.split) for name, _, split in (d.partition(":") for d in arguments.datasets)]
    try:
        if len(set(columns)) < len(columns):
            raise ConfigError(f"--datasets {' '.join(arguments.datasets)}: one is named twice")
        if len({Path(ckpt).expanduser().resolve() for ckpt in arguments.checkpoints}) < len(arguments.checkpoints):
            raise ConfigError(f"{' '.join(arguments.checkpoints)}: a checkpoint is named twice")
        good = cross_evaluate(
            arguments.checkpoints,
            columns,
            data_root=arguments.data_root,
            output=arguments.output.expanduser(),
            overrides=settings,
        )
    except ConfigError as error:
        print(f"cross_evaluate.py: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
