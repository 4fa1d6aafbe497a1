"""Convert a checkpoint of the paper's released code into one of ours, which eval.py reads like any other.

  python scripts/convert_checkpoint.py released.pth out.pt model=clip_rn50 dataset=sha
  python scripts/convert_checkpoint.py ckpt.pth out.pt model=clip_vit_b16 dataset=nwpu bins.block_size=8
  python scripts/convert_checkpoint.py released.pth out.pt model=csrnet model.head=regression bins=none loss=dm

Both layouts are read: a bare state dict, and a training checkpoint. Settings are those of train.py; model= also takes
the names of the released code, such as clip_resnet50 or vgg19_ae. The bins are those of the settings; their
representative counts are the published ones for the dataset, or bins.representative_counts=[...].
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.commands import as_typed
from headcount.config import BinsConfig, ConfigError, PretrainedConfig, TrainConfig, check, to_plain
from headcount.config.model import RELEASED_NAMES


def main() -> None:
    """Read the command line and convert."""
    parser = script_parser(__doc__)
    parser.add_argument("released", type=to_path, help="file of the released code, such as best_mae.pth or ckpt.pth")
    parser.add_argument("out", type=to_path, help="where the checkpoint is written; must not exist")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="model=, dataset=, bins=, ..., as for train.py"
    )
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        options = arguments.options
        convert(options.released.expanduser(), options.out.expanduser(), arguments.settings)


def convert(released: Path, out: Path, overrides: Sequence[str]) -> None:
    """Read the released checkpoint, convert it and save it.

    Raises:
        ConfigError: if a setting is invalid, the file cannot be read, or does not fit the settings.
    """
    config: TrainConfig = to_config(compose([_with_our_name(text) for text in overrides], config_name="train"))
    if isinstance(config.model, PretrainedConfig):
        config.model.weights = "none"
    if not released.is_file():
        raise ConfigError(f"{released}: no such file")
    if out.exists():
        raise ConfigError(f"{out}: exists; name another file, or remove it")
    refuse(check(config), overrides, config)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: its folder cannot be created ({error}); name a file elsewhere") from error

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.bins import build_bins
        from headcount.data.catalogue import selection_split
        from headcount.engine import checkpoint
        from headcount.models.released import convert_released, released_config

    content = checkpoint.read_plain(released, setting="released")
    if isinstance(config.bins, BinsConfig) and config.bins.representative_counts is None:
        counts = _published(config, config.bins)
        # Settings of computed counts have no effect beside given ones.
        config.bins = replace(
            config.bins,
            representative_counts=counts,
            representatives=BinsConfig.representatives,
            counted=BinsConfig.counted,
        )
    bins = build_bins(config.bins, {})
    config.model = released_config(config.model, block_size=config.bins.block_size)
    counter = convert_released(content, config.model, bins=bins, block_size=config.bins.block_size)
    # The released code stores the number of the next epoch.
    epoch = content.get("epoch")
    converted: dict[str, Any] = {
        "commit": checkpoint.commit(),
        "config": to_plain(config),
        "bins": None if bins is None else bins.to_dict(),
        "epoch": epoch - 1 if type(epoch) is int and epoch > 0 else None,
        "best": None,
        "selection": {"split": selection_split(config.dataset), "dataset": config.dataset.name, "metric": "mae"},
        "converted_from": released.name,
        "model": counter.state_dict(),
    }
    checkpoint.save(converted, out)
    following = f"{as_typed('python eval.py')} ckpt={out}"
    print(f"{out}: {config.model.name}, blocks of {config.bins.block_size} px; next: {following}")


def _with_our_name(override: str) -> str:
    """The setting with our name of a model in place of the released one."""
    key, _, value = override.partition("=")
    return f"model={RELEASED_NAMES.get(value, value)}" if key == "model" else override


def _published(config: TrainConfig, bins: BinsConfig) -> list[float]:
    """The representative counts that the released code has for a dataset and these bins.

    Raises:
        ConfigError: if it has none.
    """
    from headcount.models.released import published_counts

    strategy = bins.strategy.name
    found = published_counts(config.dataset.name, block_size=bins.block_size, m=bins.m, strategy=strategy)
    if found is None:
        raise ConfigError(
            f"no representative counts are published for dataset={config.dataset.name} bins={strategy} "
            f"bins.block_size={bins.block_size} and m = {bins.m}: name the dataset and the bins that the model was "
            "trained with, such as dataset=sha, or type its counts as bins.representative_counts=[0,1,2,...]"
        )
    return found
