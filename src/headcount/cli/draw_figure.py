"""Draw images from sparse to dense with their true and their predicted density, as figure 6 of arXiv:2403.09281.

  python scripts/draw_figure.py ckpt=best_mae.pt
  python scripts/draw_figure.py ckpt=best_mae.pt --images 4 --output figure.pdf
  python scripts/draw_figure.py ckpt=best_mae.pt --names IMG_7 IMG_12 dataset=shb eval=sliding_window

Takes images at equal steps of the rank of their true counts, from the sparsest to the densest, and counts only these.
Settings are those of eval.py. Exit status: 0, or 2 if nothing could be drawn.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.cli.arguments import read_arguments, refuse_set, script_parser, single_process_errors, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError, DatasetConfig, EvalCommandConfig, check_evaluation
from headcount.errors import CheckpointError
from headcount.files import make_folder, name_text
from headcount.wording import first_names, printable

if TYPE_CHECKING:
    from headcount.data.crowd import CrowdDataset


_IMAGES = 6


def main() -> None:
    """Read the command line and draw."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="ckpt=, split=, data_root=, dataset=, ..., as for eval.py"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--images", type=int, help="how many, from the sparsest to the densest; default 6, or all")
    which.add_argument("--names", nargs="+", metavar="NAME", help="these instead, in this order; without extension")
    parser.add_argument(
        "--output", type=to_path, default=Path("figure.png"), help="ends in .png (default), .pdf or .svg"
    )
    with exit_on_error(parser.prog, MemoryError):
        arguments = read_arguments(parser, mixed=("names",), old_flags=("ckpt", "split", "data_root"))
        config = evaluation_config(arguments.settings)
        draw(config, arguments.options)


def evaluation_config(overrides: Sequence[str]) -> EvalCommandConfig:
    """The settings of an evaluation in one process.

    Raises:
        ConfigError: if any is invalid.
    """
    refuse_set(overrides, {"output_dir": "type --output"})
    config: EvalCommandConfig = to_config(compose(overrides, config_name="eval"))
    refuse(check_evaluation(config) + single_process_errors(config, "a few images take"), overrides, config)
    return config


def choose(dataset: "CrowdDataset", split: str, *, images: int | None, names: list[str] | None) -> list[int]:
    """Indices of the images to draw, from left to right.

    Raises:
        ConfigError: if there are fewer images, or none with a given name.
    """
    from headcount.report.figure import choose_by_rank

    if names is None:
        images = min(_IMAGES, len(dataset)) if images is None else images
        if not 1 <= images <= len(dataset):
            raise ConfigError(f"--images {images}: must be 1 to {len(dataset)}, the number of images in {split}")
        return choose_by_rank([dataset.count(index) for index in range(len(dataset))], images)
    for name in map(name_text, names):
        if name not in dataset.names:
            raise ConfigError(f"--names {name}: {split} has no image of this name; it has {first_names(dataset.names)}")
    return [dataset.names.index(name_text(name)) for name in names]


def draw(config: EvalCommandConfig, options: argparse.Namespace) -> None:
    """Count the chosen images and draw them.

    Raises:
        ConfigError: if nothing can be drawn.
    """
    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.engine import checkpoint
        from headcount.engine.evaluate import open_evaluated
        from headcount.engine.runtime import Runtime
        from headcount.report.figure import check_format, density_figure
        from headcount.report.pictures import ComparisonRow

    output = options.output.expanduser()
    check_format(output)
    make_folder(output.parent, "--output")
    loaded = checkpoint.load(config.checkpoint)
    mode = loaded.counting_mode(config.eval)
    dataset = open_evaluated(config, loaded.config)
    indices = choose(dataset, config.split, images=options.images, names=options.names)
    counter = Runtime(config.runtime).move_to_device(loaded.counter)
    columns = []
    for index in indices:
        sample = dataset[index]
        counted, true = counter.count(sample.image, mode), dataset.count(index)
        if sample.mask is not None:
            counted = counted.within(sample.mask.shares(counter.grid.block_size))
        if not math.isfinite(counted.count):
            raise CheckpointError(
                f"ckpt={config.ckpt}: the predicted count of {sample.name} is {counted.count}; choose another "
                "checkpoint"
            )
        if counted.blocks is None:
            raise ConfigError(
                f"ckpt={config.ckpt}: this counter predicts one number per image; there is no density to draw"
            )
        print(f"{sample.name}: true {true:g}, predicted {counted.count:.1f}", flush=True)
        columns.append(
            ComparisonRow(
                image=sample.image,
                points=sample.points,
                true_count=true,
                predicted_blocks=counted.blocks,
                block_size=counter.grid.block_size,
                name=sample.name,
                mask=sample.mask,
            )
        )
    typed = config.dataset
    name = typed.name if isinstance(typed, DatasetConfig) else loaded.config.dataset.name
    title = f"{name} {config.split}, counted by {loaded.config.model.name} (trained on {loaded.config.dataset.name})"
    density_figure(columns, output, title=printable(title))
    print(printable(f"  {output}"))
    for line in dataset.describe_left_out():
        print(f"  {line}")
