"""A table of the paper from the runs there are, beside the published numbers, with the commands of those that miss.

  python scripts/reproduce_table.py table=3
  python scripts/reproduce_table.py table=3 run=true dataset=sha model=mobilenet_v2 recipe=short scale=small
  python scripts/reproduce_table.py table=1 dataset=sha seeds=1,2,3

Tables are 1, 2, 3, 4, tokens and count_loss. Settings are those of train.py, for every cell; dataset= and model= pick
cells where a table compares them. A run counts only if it was made with exactly a cell's settings; others of its name
are listed with the difference. run=true trains and evaluates what misses, one after the other; what was interrupted
goes on where it was, and a run that fails does not stop the rest.

Writes table<N>.md, .tex and .png to tables/ (output=FOLDER); runs are looked for in checkpoints/ (output_dir=FOLDER).
Exit status: 0; 1 if a run failed; 2 if a setting is wrong.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.command import INTERRUPTED, compose, quoted, to_config
from headcount.config import ConfigError, CustomConfig, FolderDatasetConfig, TrainConfig, check
from headcount.files import make_folder, write_text

if TYPE_CHECKING:
    from headcount.runs import RunRecord

ROOT = Path(__file__).resolve().parent.parent


@cache
def composed(overrides: tuple[str, ...]) -> TrainConfig:
    """The config that train.py makes of ``overrides``."""
    config: TrainConfig = to_config(compose(list(overrides), config_name="train", config_dir=ROOT / "configs"))
    return config


def reproduce(typed: list[str]) -> int:
    """Fill the table, with ``run=true`` after training what misses.

    Returns:
        The exit status.

    Raises:
        ConfigError: if a setting is wrong.
    """
    settings = {"table": "", "run": "false", "seeds": "1", "output": "tables", "output_dir": "checkpoints"}
    overrides = []
    for text in typed:
        key, equals, value = text.partition("=")
        if equals and key in settings:
            settings[key] = value
        elif key == "seed":
            raise ConfigError(f"{text}: a table takes seeds=1,2,3")
        elif key in ("experiment", "run_name", "resume", "dry_run") or key.startswith("expected"):
            raise ConfigError(f"{text}: is the table's own business; leave it out")
        else:
            overrides.append(text)
    if settings["run"] not in ("true", "false"):
        raise ConfigError(f"run={settings['run']}: must be true or false")
    try:
        seeds = sorted({int(seed) for seed in settings["seeds"].strip("[]").split(",")})
    except ValueError:
        raise ConfigError(
            f"seeds={settings['seeds']}: must be whole numbers with commas between, such as 1,2,3"
        ) from None
    if seeds[0] < 0:
        raise ConfigError(f"seeds={settings['seeds']}: must be at least 0")
    if not settings["table"]:
        raise ConfigError("table is not set: type table=1, or 2, 3, 4, tokens, count_loss")
    runs = Path(settings["output_dir"]).expanduser()
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"output_dir={runs}: is a file; name the folder of the runs")
    if not runs.is_dir() and settings["run"] == "false":
        print(f"reproduce_table.py: output_dir={runs}: there is no such folder yet, so no runs", file=sys.stderr)

    from headcount.report.tables import ReproducedTable, fill_table, image_errors, latex, markdown, table_picture

    def fill() -> ReproducedTable:
        return fill_table(settings["table"], overrides, compose=lambda o: composed(tuple(o)), runs=runs, seeds=seeds)

    filled = fill()
    for cell in filled.cells.values():
        errors = check(composed((f"experiment={cell.experiment}", *cell.overrides)))
        # To look at a table of runs made elsewhere, their files of weights are not needed here.
        if errors and (settings["run"] == "true" or not all("weights" in error for error in errors)):
            raise ConfigError(f"{cell.experiment}: " + "\n  ".join(errors))
    folder = Path(settings["output"]).expanduser()
    make_folder(folder, "output")
    failed = []
    if settings["run"] == "true":
        missing = filled.missing()
        for k, (cell, seed) in enumerate(missing, start=1):
            command = filled.command(cell, seed)
            print(f"\n[{k} of {len(missing)}] {command}", file=sys.stderr)
            if not run_python("train.py", *cell.typed(seed), f"output_dir={quoted(runs)}", "resume=true"):
                failed.append(command)
        filled = fill()
        left = [filled.command(cell, seed) for cell, seed in filled.missing()]
        failed += [command for command in left if command not in failed]  # trained, and yet it does not count
        for cell in filled.cells.values():  # counts of the images decide whether a difference means anything
            for run in cell.runs.values():
                if image_errors(run) is None and not evaluate(run, cell.overrides):
                    failed.append(f"the evaluation of {run.folder}")
    page = markdown(filled)
    stem = f"table{settings['table']}" if settings["table"].isdigit() else settings["table"]
    write_text(folder / f"{stem}.md", page)
    write_text(folder / f"{stem}.tex", latex(filled))
    table_picture(filled, folder / f"{stem}.png")
    print(page)
    print("\n".join(str(folder / f"{stem}{ending}") for ending in (".md", ".tex", ".png")))
    if failed:
        print("failed:", *(f"  {command}" for command in failed), sep="\n", file=sys.stderr)
    return 1 if failed else 0


def evaluate(run: "RunRecord", overrides: Sequence[str]) -> bool:
    """Count the images that selected, for the errors of each; whether that went well."""
    kept = [o for o in overrides if o.startswith(("data_root=", "runtime"))]
    dataset, fewer = run.config.dataset, run.config.dataset.max_eval_images
    if roots := [o for o in overrides if o.startswith("dataset.root=")]:  # where it is now, with the run's own sizes
        if isinstance(dataset, CustomConfig):
            kept += [roots[-1].replace("dataset.root=", "data_root=")]
        elif isinstance(dataset, FolderDatasetConfig):
            longest = "null" if dataset.max_side is None else dataset.max_side
            kept += [f"dataset={dataset.name}", roots[-1], f"dataset.cache_dir={quoted(Path(dataset.cache_dir))}"]
            kept += [f"dataset.min_side={dataset.min_side}", f"dataset.max_side={longest}"]
            kept += [f"dataset.side_multiple={dataset.side_multiple}"]
    return run_python(
        *("eval.py", f"ckpt={quoted(run.folder / 'best_mae.pt')}", f"split={run.selection}", "eval.pictures=0", *kept),
        *([f"max_images={fewer}"] if fewer else []),
    )


def run_python(script: str, *typed: str) -> bool:
    """Run train.py or eval.py; whether it went well."""
    return subprocess.run([sys.executable, str(ROOT / script), *typed]).returncode == 0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="table=1|2|3|4|tokens|count_loss, and settings")
    try:
        sys.exit(reproduce(parser.parse_args().settings))
    except ConfigError as error:
        print(f"reproduce_table.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nreproduce_table.py: interrupted; the same command goes on where it was, and without run=true it writes "
            "the table of what there is",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
