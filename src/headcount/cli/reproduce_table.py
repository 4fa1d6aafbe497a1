"""A table of the paper made from our runs, beside the published numbers, with the commands of the missing runs.

  python scripts/reproduce_table.py table=3
  python scripts/reproduce_table.py table=3 dataset=sha model=mobilenet_v2 recipe=short scale=small --run
  python scripts/reproduce_table.py table=1 dataset=sha --seeds 1,2,3

Tables are 1, 2, 3, 4, tokens, count_loss, zip, unsupervised, heads and backbones. Settings are those of train.py,
for every cell; dataset= and model= pick cells where a table compares them. A run counts only if it was made with
exactly a cell's settings; other runs of its name are listed with the difference. --run trains and evaluates what is
missing, one after the other; an interrupted run is resumed, and a run that fails does not stop the others.

Writes table<N>.md, .tex and .png to tables/ (--output FOLDER); runs are read from checkpoints/ (output_dir=FOLDER).
Exit status: 0; 1 if a run failed; 2 if a setting is invalid.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.arguments import Arguments, read_arguments, script_parser, to_path
from headcount.cli.compose import compose, config_dir, to_config
from headcount.cli.overrides import parse, show_typed
from headcount.cli.start import INTERRUPTED, deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.commands import to_start
from headcount.config import ConfigError, TrainConfig, TrainedDatasetConfig, check
from headcount.files import make_folder, quoted, write_text
from headcount.wording import printable

if TYPE_CHECKING:
    from headcount.report.tables import ReproducedTable
    from headcount.runs import RunRecord

TABLES = ("1", "2", "3", "4", "tokens", "count_loss", "zip", "unsupervised", "heads", "backbones")
"""The names of the tables, known without the slow imports of ``headcount.report.tables``."""


def main() -> None:
    """Read the command line and make the table."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help=f"table={', '.join(TABLES)}; and as for train.py",
    )
    parser.add_argument("--run", action="store_true", help="train and evaluate what is missing")
    parser.add_argument("--seeds", default="1", help="seeds that every cell needs, such as 1,2,3; default 1")
    parser.add_argument("--output", type=to_path, default=Path("tables"), help="folder of the table; default tables")
    try:
        with exit_on_error(parser.prog, interrupts=False):
            old = {"run": False, "seeds": True, "output": True}
            typed = read_table_arguments(read_arguments(parser, old_settings=old))
            sys.exit(reproduce(typed))
    except KeyboardInterrupt:
        print(
            f"\n{parser.prog}: interrupted; the same command resumes, and without --run it writes the table of the "
            "runs made so far",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


@dataclass
class TableArguments:
    """The parsed command line."""

    table: str
    overrides: list[str]
    """Settings of train.py for every cell."""
    runs: Path
    """The folder of all runs."""
    seeds: list[int]
    output: Path
    """The folder of the table."""
    run: bool
    """Train and evaluate what is missing."""

    def fill(self) -> "ReproducedTable":
        """The table with the existing runs."""
        with deferred_interrupt():
            from headcount.report.tables import fill_table

        return fill_table(
            self.table, self.overrides, compose=lambda o: composed(tuple(o)), runs=self.runs, seeds=self.seeds
        )


def read_table_arguments(arguments: Arguments) -> TableArguments:
    """Separate the settings of the table from those of train.py.

    Raises:
        ConfigError: if one is invalid.
    """
    own = {"table": "", "output_dir": "checkpoints"}
    overrides = []
    for text in arguments.settings:
        key, equals, value = text.partition("=")
        if equals and key in own:
            own[key] = value
        elif key == "seed":
            raise ConfigError(f"{text}: a table takes --seeds 1,2,3")
        elif sets_table(text):
            raise ConfigError(f"{text}: is set by the table; leave it out")
        else:
            overrides.append(text)
    options = arguments.options
    seeds = read_seeds(options.seeds)
    if not own["table"]:
        raise ConfigError(f"table is not set: type table={TABLES[0]}, or {', '.join(TABLES[1:])}")
    output_dir = own["output_dir"].strip("'\"")
    if not output_dir.strip():
        raise ConfigError("output_dir=: must not be empty; name the folder of the runs")
    runs = Path(output_dir).expanduser()
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"output_dir={runs}: is a file; name the folder of the runs")
    return TableArguments(own["table"], overrides, runs, seeds, options.output.expanduser(), options.run)


def sets_table(setting: str) -> bool:
    """Whether a setting of train.py, ``key=value``, is refused, because the table itself sets it."""
    key = setting.partition("=")[0].rstrip(".")
    return key in ("experiment", "seed", "run_name", "resume", "dry_run") or key.startswith("expected")


def read_seeds(text: str) -> list[int]:
    """The seeds in a text such as ``1,2,3``.

    Raises:
        ConfigError: if they are not whole numbers of at least 0.
    """
    try:
        seeds = sorted({int(seed) for seed in text.strip("[]").split(",")})
    except ValueError:
        raise ConfigError(f"--seeds {text}: must be whole numbers separated by commas, such as 1,2,3") from None
    if seeds[0] < 0:
        raise ConfigError(f"--seeds {text}: must be at least 0")
    return seeds


def reproduce(typed: TableArguments) -> int:
    """Fill the table, with ``--run`` after training what is missing, and write it.

    Returns:
        The exit status.

    Raises:
        ConfigError: if a setting is invalid.
    """
    filled = typed.fill()
    for cell in filled.cells.values():
        # Without --run, the files of pretrained weights are not needed: the runs may have been made elsewhere.
        config = composed((f"experiment={cell.experiment}", *cell.overrides))
        if errors := show_typed(check(config, weights=typed.run), parse(cell.overrides), config):
            raise ConfigError(f"{cell.experiment}: " + "\n  ".join(errors))
    if not typed.runs.is_dir() and not typed.run:
        print(f"output_dir={typed.runs}: no such folder yet, so there are no runs", file=sys.stderr)
    make_folder(typed.output, "--output")
    failed = []
    if typed.run:
        failed = run_missing(filled, typed.runs)
        filled = typed.fill()
        missing = [filled.command(cell, seed) for cell, seed in filled.missing()]
        failed += [command for command in missing if command not in failed]  # trained without error, but still missing
        failed += evaluate_runs(filled)
    write_table(filled, typed)
    if failed:
        print("failed:", *(f"  {command}" for command in failed), sep="\n", file=sys.stderr)
    return FAILED if failed else 0


def run_missing(filled: "ReproducedTable", runs: Path) -> list[str]:
    """Train the missing runs of a table.

    Returns:
        The commands that failed.
    """
    failed = []
    missing = filled.missing()
    for k, (cell, seed) in enumerate(missing, start=1):
        command = filled.command(cell, seed)
        print(f"\n[{k} of {len(missing)}] {command}", file=sys.stderr)
        if not run_python("train.py", *cell.typed(seed), f"output_dir={quoted(runs)}", "resume=true"):
            failed.append(command)
    return failed


def evaluate_runs(filled: "ReproducedTable") -> list[str]:
    """Evaluate the runs whose errors per image are missing: these decide whether a difference is significant.

    Returns:
        The evaluations that failed.
    """
    from headcount.report.tables import image_errors

    if filled.paper.judged_on is not None:
        return judge_runs(filled, filled.paper.judged_on)

    failed = []
    for cell in filled.cells.values():
        for run in cell.runs.values():
            if image_errors(run) is None and not evaluate(run, cell.overrides):
                failed.append(f"the evaluation of {run.folder}")
    return failed


def judge_runs(filled: "ReproducedTable", split: str) -> list[str]:
    """Evaluate what the runs keep on the split that judges them; the last checkpoint with calibrated intervals.

    Returns:
        What failed.
    """
    from headcount.report.tables import checkpoint_names, judge_run

    failed = []
    for cell in filled.cells.values():
        for run in cell.runs.values():
            for epoch in judge_run(run, split).missing:
                *calibrated, plain = [run.folder / name for name in checkpoint_names(run, epoch)]
                for file in calibrated:
                    if not file.exists() and not calibrate(plain, file, cell.overrides):
                        failed.append(f"the calibration of {plain}")
                file = next((file for file in calibrated if file.exists()), plain)
                if not evaluate(run, cell.overrides, checkpoint=file, split=split):
                    failed.append(f"the evaluation of {file}")
    return failed


def write_table(filled: "ReproducedTable", typed: TableArguments) -> None:
    """Print the table and write it as Markdown, LaTeX and a picture."""
    from headcount.report.tables import latex, markdown, table_picture

    page = markdown(filled)
    stem = f"table{typed.table}" if typed.table.isdigit() else typed.table
    files = [typed.output / f"{stem}{ending}" for ending in (".md", ".tex", ".png")]
    write_text(files[0], page)
    write_text(files[1], latex(filled))
    table_picture(filled, files[2])
    print(printable(page, keep="\n"))
    print("\n".join(printable(str(file)) for file in files))


@cache
def composed(overrides: tuple[str, ...]) -> TrainConfig:
    """The config that train.py makes of ``overrides``."""
    config: TrainConfig = to_config(compose(overrides, config_name="train"))
    return config


def calibrate(checkpoint: Path, output: Path, overrides: Sequence[str]) -> bool:
    """Calibrate a checkpoint on the images that were held out of its training.

    Returns:
        Whether that succeeded.
    """
    return run_python(
        "scripts/calibrate.py", f"ckpt={quoted(checkpoint)}", "--output", str(output), *_places(overrides)
    )


def evaluate(
    run: "RunRecord", overrides: Sequence[str], *, checkpoint: Path | None = None, split: str | None = None
) -> bool:
    """Evaluate a checkpoint of a run to get the error of each image.

    Args:
        run: the run.
        overrides: as typed for the table.
        checkpoint: None is the best one.
        split: None is the one that selected it.

    Returns:
        Whether that succeeded.
    """
    kept = _places(overrides)
    max_images = run.config.dataset.max_eval_images
    if max_images:
        kept += [f"max_images={max_images}"]
    ckpt = quoted(checkpoint or run.folder / "best_mae.pt")
    return run_python("eval.py", f"ckpt={ckpt}", f"split={split or run.selection}", "eval.pictures=0", *kept)


def _places(overrides: Sequence[str]) -> list[str]:
    """The settings that say where the images are now, and on what they are counted."""
    places = tuple(f"dataset.{key}=" for key in vars(TrainedDatasetConfig()))
    return [o for o in overrides if o.startswith(("data_root=", "runtime", *places))]


def run_python(script: str, *typed: str) -> bool:
    """Run train.py or eval.py.

    Returns:
        Whether it succeeded.
    """
    return subprocess.run([*to_start(script, config_dir().parent), *typed]).returncode == 0
