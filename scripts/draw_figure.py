"""Draw images from sparse to dense with their true and their predicted density, as figure 6 of arXiv:2403.09281.

  python scripts/draw_figure.py --ckpt best_mae.pt
  python scripts/draw_figure.py --ckpt best_mae.pt --images 4 --output figure.pdf
  python scripts/draw_figure.py --ckpt best_mae.pt --names IMG_7 IMG_12 dataset=shb eval=sliding_window

Takes images at equal steps of the rank of their true counts, the sparsest and the densest included, and counts
these alone. Settings are those of eval.py. Exit status: 0, or 2 if nothing could be drawn.
"""

import argparse
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.command import compose, to_config
from headcount.config import (
    ConfigError,
    EvalCommandConfig,
    check_evaluation,
    counting_mode,
    window_error,
)
from headcount.files import make_folder

if TYPE_CHECKING:
    from headcount.data.crowd import CrowdDataset

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Settings that are flags here.
FLAGS = {"ckpt": "--ckpt", "split": "--split", "data_root": "--data-root", "output_dir": "--output"}


def evaluation_config(options: argparse.Namespace) -> EvalCommandConfig:
    """The settings, as eval.py would have them.

    Raises:
        ConfigError: if any is wrong.
    """
    for override in options.settings:
        if flag := FLAGS.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: cannot be set here; type {flag}")
    config: EvalCommandConfig = to_config(
        compose(["ckpt=unused", *options.settings], config_name="eval", config_dir=CONFIGS)
    )
    config.ckpt, config.split, config.data_root = options.ckpt, options.split, options.data_root
    errors = check_evaluation(config)
    if config.runtime.devices > 1:
        errors.append(f"runtime.devices={config.runtime.devices}: a few images take 1")
    if errors:
        raise ConfigError("\n  ".join(errors))
    return config


def choose(dataset: "CrowdDataset", split: str, *, images: int, names: list[str] | None) -> list[int]:
    """Indices of the images to draw, from left to right.

    Raises:
        ConfigError: if there are not so many, or none of a name.
    """
    from headcount.report.figure import spread_over_ranks

    if names is None:
        if not 1 <= images <= len(dataset):
            raise ConfigError(f"--images {images}: must be 1 to {len(dataset)}, as many as the {split} split has")
        return spread_over_ranks([dataset.count(index) for index in range(len(dataset))], images)
    for name in names:
        if name not in dataset.names:
            some = ", ".join(dataset.names[:5]) + ", ..." * (len(dataset) > 5)
            raise ConfigError(f"--names {name}: the {split} split has no image of this name; it has {some}")
    return [dataset.names.index(name) for name in names]


def draw(options: argparse.Namespace) -> None:
    """Count the chosen images and draw them.

    Raises:
        ConfigError: if nothing can be drawn.
    """
    config = evaluation_config(options)

    # Heavy imports after the checks.
    from headcount.engine import checkpoint
    from headcount.engine.evaluate import open_evaluated
    from headcount.engine.runtime import Runtime
    from headcount.engine.tiling import predict_blocks
    from headcount.report.figure import check_format, density_figure
    from headcount.report.pictures import ComparisonRow

    output = options.output.expanduser()
    check_format(output)
    make_folder(output.parent, "--output ")
    loaded = checkpoint.load(config.ckpt)
    trained = loaded.config
    mode = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=config.eval)
    if wrong := window_error(mode, loaded.counter.block_size, loaded.counter.stride):
        raise ConfigError(wrong)
    dataset = open_evaluated(config, loaded.config)
    chosen = choose(dataset, config.split, images=options.images, names=options.names)
    counter = Runtime(config.runtime).place(loaded.counter)
    columns = []
    for index in chosen:
        sample = dataset[index]
        blocks = predict_blocks(counter, sample.image, mode).counts
        predicted, true = float(blocks.double().sum()), dataset.count(index)
        if not math.isfinite(predicted):
            raise ConfigError(f"ckpt={config.ckpt}: the predicted count of {sample.name} is {predicted}; take another")
        print(f"{sample.name}: true {true:g}, predicted {predicted:.1f}", flush=True)
        columns.append(
            ComparisonRow(
                image=sample.image,
                points=sample.points,
                true_count=true,
                predicted_blocks=blocks,
                block_size=counter.block_size,
                name=sample.name,
            )
        )
    name = (config.dataset or loaded.config.dataset).name
    title = f"{name} {config.split}, counted by {loaded.config.model.name} (trained on {loaded.config.dataset.name})"
    density_figure(columns, output, title=title)
    print(f"  {output}")
    for line in dataset.describe_left_out():
        print(f"  {line}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="checkpoint, such as best_mae.pt")
    parser.add_argument("--split", default="test", help="which images to choose from; default test")
    parser.add_argument("--data-root", help="folder of the datasets; default: environment variable HEADCOUNT_DATA")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--images", type=int, default=6, help="how many, from the sparsest to the densest; default 6")
    which.add_argument("--names", nargs="+", metavar="NAME", help="these instead, in this order: files without ending")
    parser.add_argument("--output", type=Path, default=Path("figure.png"), help="ends in .png (default), .pdf or .svg")
    # Settings may stand anywhere, behind --names too.
    settings = [a for a in sys.argv[1:] if re.match(r"[~+]*[A-Za-z_][\w./]*=", a)]
    options = parser.parse_args([a for a in sys.argv[1:] if a not in settings])
    options.settings = settings
    try:
        draw(options)
    except (ConfigError, MemoryError) as error:
        print(f"draw_figure.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
