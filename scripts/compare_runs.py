"""Compare training runs: the settings that differ, the errors, and the curves of all in one picture.

  python scripts/compare_runs.py checkpoints/sha
  python scripts/compare_runs.py checkpoints/sha/vgg19_fine/seed* checkpoints/sha/mobilenet_v2_fine --output results

A RUN is a folder with config.yaml and metrics.jsonl, as train.py writes them, or one that has such below it. Runs
that differ in the seed alone share a color and get a mean. Writes runs.md and runs.png. Exit status: 0, 1 if a
folder could not be read (the others are compared), 2 if there is nothing to compare.
"""

import argparse
import sys
from pathlib import Path

from headcount.config import ConfigError


def compare_runs(folders: list[Path], output: Path) -> bool:
    """Compare and write.

    Returns:
        Whether every folder could be read.

    Raises:
        ConfigError: if none could, or nothing can be written.
    """
    from headcount.report.compare import MARKDOWN_FILE, PICTURE_FILE, compare, write_comparison

    comparison = compare(folders)
    if not comparison.experiments:
        raise ConfigError("there is no run to compare:\n" + "\n".join(f"  {line}" for line in comparison.broken))
    try:
        print(write_comparison(comparison, output))
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error}); choose another folder") from error
    print(f"  {output / MARKDOWN_FILE}\n  {output / PICTURE_FILE}")
    if comparison.broken:
        print("not compared:", *(f"  {line}" for line in comparison.broken), sep="\n", file=sys.stderr)
    return not comparison.broken


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or one above several")
    parser.add_argument("--output", type=Path, default=Path("comparison"), help="folder of the results")
    options = parser.parse_args()
    try:
        good = compare_runs([folder.expanduser() for folder in options.runs], options.output.expanduser())
    except ConfigError as error:
        print(f"compare_runs.py: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
