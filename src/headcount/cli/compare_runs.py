"""Compare training runs: the settings that differ, the errors, and all curves in one picture.

  python scripts/compare_runs.py checkpoints/sha
  python scripts/compare_runs.py checkpoints/sha/vgg19_fine/seed* checkpoints/sha/mobilenet_v2_fine --output results

A RUN is a folder with config.yaml and metrics.jsonl, as train.py writes them, or a folder above such folders. Runs
that differ only in the seed share a color and get a mean. Writes runs.md and runs.png. Exit status: 0, 1 if a folder
could not be read (the others are compared), 2 if there is nothing to compare.
"""

import sys
from pathlib import Path

from headcount.cli.arguments import script_parser, to_path
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import ConfigError
from headcount.wording import printable


def main() -> None:
    """Read the command line and compare."""
    parser = script_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=to_path, metavar="RUN", help="folder of a run, or one above several")
    parser.add_argument("--output", type=to_path, default=Path("comparison"), help="folder of the results")
    with exit_on_error(parser.prog):
        options = parser.parse_args()
        good = compare_runs([folder.expanduser() for folder in options.runs], options.output.expanduser())
    sys.exit(0 if good else FAILED)


def compare_runs(folders: list[Path], output: Path) -> bool:
    """Compare the runs and write the comparison.

    Returns:
        Whether every folder could be read.

    Raises:
        ConfigError: if none could, or nothing can be written.
    """
    with deferred_interrupt():
        from headcount.report.compare import MARKDOWN_FILE, PICTURE_FILE, compare, write_comparison

    comparison = compare(folders)
    if not comparison.experiments:
        raise ConfigError("there is no run to compare:\n" + "\n".join(f"  {line}" for line in comparison.broken))
    try:
        print(write_comparison(comparison, output))
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error}); choose another folder") from error
    print(f"  {printable(str(output / MARKDOWN_FILE))}\n  {printable(str(output / PICTURE_FILE))}")
    if comparison.broken:
        print("not compared:", *(f"  {printable(line)}" for line in comparison.broken), sep="\n", file=sys.stderr)
    return not comparison.broken
