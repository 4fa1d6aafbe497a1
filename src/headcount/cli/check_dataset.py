"""Audit a dataset: what it contains, what is broken or unusual, and which bins its blocks fall into.

  python scripts/check_dataset.py dataset=sha data_root=~/data
  python scripts/check_dataset.py dataset=custom dataset.root=my_pictures bins=dynamic bins.block_size=16

Settings are those of train.py. Prints a report and writes it, with all numbers and pictures, to audit/<dataset> (of own
data with the name of their folder) or --output. Nothing is resized or changed. Exit status: 0 if training would run, 1
if it would stop at what is listed as errors, 2 if a setting is invalid or the dataset is missing.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.compose import checked_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import CustomConfig, DatasetConfig, TrainConfig
from headcount.files import make_folder, short_name
from headcount.wording import printable


def main() -> None:
    """Read the command line and audit."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="dataset=, bins=, ..., as for train.py")
    parser.add_argument(
        "--output",
        type=to_path,
        help="folder of the report; default audit/<dataset>, of own data with their folder's name",
    )
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        sys.exit(0 if audit(arguments.settings, arguments.options.output) else FAILED)


def audit(overrides: Sequence[str], output: Path | None) -> bool:
    """Audit the dataset that the settings name, and write the report.

    Returns:
        Whether training would run.

    Raises:
        ConfigError: if a setting is invalid or the dataset's folder is missing.
    """
    config: TrainConfig = checked_config(overrides, config_name="train")

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.data.audit import audit_dataset
        from headcount.engine.setup import build_count_bins
        from headcount.report.audit import write_audit

    folder = output.expanduser() if output else Path("audit") / _report_name(config.dataset)
    make_folder(folder, "--output")
    found = audit_dataset(config.dataset, data_root=config.data_root, block_size=config.bins.block_size)
    histogram = found.blocks.get(config.bins.block_size)
    bins = build_count_bins(config.bins, found.train, histogram) if found.train and histogram else None
    print(write_audit(found, config.bins, bins, folder))
    print(
        "\n".join(printable(str(file)) for file in sorted(folder.iterdir()) if file.suffix in (".md", ".json", ".png"))
    )
    return not found.errors


def _report_name(dataset: DatasetConfig) -> str:
    """The name of a dataset's report; those of two folders of own data differ."""
    if not isinstance(dataset, CustomConfig):
        return dataset.name
    folder = os.path.abspath(os.path.expanduser(dataset.root or dataset.train or ""))
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return short_name(f"{dataset.name}_{Path(folder).name}", f"_{digest}")
