"""Audit a dataset: what there is, what is broken or odd, and which bins its blocks fall into.

  python scripts/check_dataset.py dataset=sha data_root=~/data
  python scripts/check_dataset.py dataset=custom dataset.root=my_pictures bins=dynamic bins.block_size=16

Prints a report and writes it, with all numbers and pictures, to audit/<dataset> or --output. Nothing is resized or
changed. Exit status: 0 if training would go through, 1 if it would stop at what is listed as errors, 2 if a setting is
wrong or the dataset is not there.
"""

import argparse
import sys
from pathlib import Path

from headcount.command import compose, to_config
from headcount.config import ConfigError, TrainConfig, check
from headcount.files import make_folder

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def audit(overrides: list[str], output: Path | None) -> bool:
    """Audit what the settings name.

    Returns:
        Whether training would go through.

    Raises:
        ConfigError: if a setting is wrong or the dataset's folder is not there.
    """
    config: TrainConfig = to_config(compose(overrides, config_name="train", config_dir=CONFIGS))
    if errors := check(config):
        raise ConfigError("\n  ".join(errors))

    # Heavy imports after the checks.
    from headcount.data.audit import audit_dataset
    from headcount.engine.train import count_bins
    from headcount.report.audit import write_audit

    folder = output or Path("audit") / config.dataset.name
    make_folder(folder, "--output ")
    found = audit_dataset(config.dataset, data_root=config.data_root, block_size=config.bins.block_size)
    bins = None if found.train is None else count_bins(config, found.train, found.blocks[config.bins.block_size])
    print(write_audit(found, config.bins, bins, folder))
    print("\n".join(str(file) for file in sorted(folder.iterdir()) if file.suffix in (".md", ".json", ".png")))
    return not found.errors


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="as for train.py: dataset=..., bins=..., key=value")
    parser.add_argument("--output", type=Path, help="folder of the report; default audit/<dataset>")
    arguments = parser.parse_args()
    try:
        sys.exit(0 if audit(arguments.settings, arguments.output) else 1)
    except ConfigError as error:
        print(f"check_dataset.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
