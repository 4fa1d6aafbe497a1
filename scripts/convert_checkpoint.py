"""Turn a checkpoint of the paper's released code into one of ours, which eval.py reads like any other.

  python scripts/convert_checkpoint.py released.pth out.pt model=clip_rn50 dataset=sha
  python scripts/convert_checkpoint.py ckpt.pth out.pt model=clip_vit_b16 dataset=nwpu bins.block_size=8
  python scripts/convert_checkpoint.py released.pth out.pt model=csrnet model.head=regression bins=none loss=dm

Both layouts are read: a bare state dict, and a training checkpoint. The bins are those of the settings; their
representative counts are the published ones for the dataset, or bins.representative_counts=[...].
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from headcount.command import compose, to_config
from headcount.config import BinsConfig, ConfigError, PretrainedConfig, TrainConfig, check, to_plain

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def convert(released: Path, out: Path, overrides: list[str]) -> None:
    """Read, convert, save.

    Raises:
        ConfigError: if a setting is wrong, the file cannot be read, or does not fit.
    """
    config: TrainConfig = to_config(compose(overrides, config_name="train", config_dir=CONFIGS))
    if isinstance(config.model, PretrainedConfig):
        config.model.weights = "none"
    if not released.is_file():
        raise ConfigError(f"{released}: no such file")
    if out.exists():
        raise ConfigError(f"{out}: exists; name another file, or remove it")
    if errors := check(config):
        raise ConfigError("\n  ".join(errors))

    # Heavy imports after the checks.
    from headcount.bins import build_bins
    from headcount.data.catalogue import selection_split
    from headcount.engine import checkpoint
    from headcount.models.released import convert_released, published_counts, released_config

    bins_config = config.bins
    if isinstance(bins_config, BinsConfig) and bins_config.representative_counts is None:
        strategy = bins_config.strategy.name
        bins_config.representative_counts = published_counts(
            config.dataset.name, block_size=bins_config.block_size, m=bins_config.m, strategy=strategy
        )
        if bins_config.representative_counts is None:
            raise ConfigError(
                f"no representative counts are published for dataset={config.dataset.name} bins={strategy} "
                f"bins.block_size={bins_config.block_size} and m = {bins_config.m}: give those the model was trained "
                "with, as bins.representative_counts=[0,1,2,...]"
            )
    bins = build_bins(bins_config, {})
    content = checkpoint.read_plain(released, setting="released")
    config.model = released_config(config.model)
    counter = convert_released(content, config.model, bins=bins, block_size=bins_config.block_size)
    selection = selection_split(config.dataset)
    converted: dict[str, Any] = {
        "commit": checkpoint.commit(),
        "config": to_plain(config),
        "bins": None if bins is None else bins.to_dict(),
        "epoch": content["epoch"] if isinstance(content.get("epoch"), int) else None,
        "best": None,
        "selection": {"split": selection, "dataset": config.dataset.name, "metric": "mae"},
        "converted_from": released.name,
        "model": counter.state_dict(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(converted, out)
    print(f"{out}: {config.model.name}, blocks of {bins_config.block_size} px; next: python eval.py ckpt={out}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path, help="file of the released code, such as best_mae.pth or ckpt.pth")
    parser.add_argument("out", type=Path, help="where the checkpoint goes; must not exist")
    parser.add_argument("settings", nargs="*", help="as for train.py: model=..., dataset=..., bins=..., key=value")
    arguments = parser.parse_args()
    try:
        convert(arguments.released.expanduser(), arguments.out.expanduser(), arguments.settings)
    except ConfigError as error:
        print(f"convert_checkpoint.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
