"""Size, cost and speed of models in one table: ``python benchmarks/networks.py tiny mobilenet_v2 clip_rn50``.

For images of 1024 x 768 and 1920 x 1080 px, counted as eval.py does: whole, or by a CLIP ViT in windows. GMACs are
billions of multiply-accumulates, by torch's counter of operations on tensors without storage, so that they take no
time; attention is included. --latency also counts each image in float32, with random weights. Without names, every
model of configs/model is listed; model=timm takes one more argument, such as model.name=convnext_tiny.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from headcount.bins import build_bins
from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.choices import all_choices
from headcount.cli.status import exit_on_error
from headcount.config import (
    ConfigError,
    PretrainedConfig,
    SlidingWindowConfig,
    TimmConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
    register_schemas,
)
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.tiling import whole_size, window_corners
from headcount.types import BlockGrid
from timing import device_name, format_table, median_ms, time_in_turns
from workload import parse_config

SIZES = ((1024, 768), (1920, 1080))
"""Width and height of the images, in pixels."""

HISTOGRAM = {0: 90, 1: 6, 2: 2, 3: 1, 4: 1}
"""Block count -> number of blocks, for bins of which only the number matters."""


def main() -> None:
    """Read the command line and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="as model= of train.py; default all")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of train.py for each of them")
    parser.add_argument("--latency", action="store_true", help="measure milliseconds per image")
    parser.add_argument("--repeats", type=whole_number, default=3, help="rounds in which everything is measured once")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, mixed=("names",))
        options = arguments.options
        register_schemas()
        names = options.names or [name for name in all_choices()["model"] if name != "timm"]
        rows = [describe(name, arguments.settings, rounds=options.repeats if options.latency else 0) for name in names]
        print(format_table(rows))
        if options.latency:
            print(f"\nfloat32, {device_name('cpu')}, median of {options.repeats} rounds")


def describe(name: str, settings: Sequence[str], *, rounds: int) -> dict[str, str]:
    """The row of a model.

    Args:
        name: as ``model=`` of train.py.
        settings: for every model.
        rounds: how often each image is counted for its latency; 0 measures none.

    Raises:
        ConfigError: if the model does not exist, or does not fit the settings.
    """
    config = parse_config([f"model={name}", *settings])
    mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)
    with FakeTensorMode():
        counter = build(config)
        trained = sum(p.numel() for p in counter.parameters() if p.requires_grad)
        costs = {size: macs(counter, mode, width=size[0], height=size[1]) for size in SIZES}
    row = {
        "model": config.model.name,
        "M parameters": f"{sum(p.numel() for p in counter.parameters()) / 1e6:.2f}",
        "M trained": f"{trained / 1e6:.2f}",
        "stride": str(counter.stride),
        "counted": "whole" if isinstance(mode, WholeImageConfig) else f"in windows of {mode.window}",
    }
    row |= {f"GMACs, {width} x {height}": f"{cost / 1e9:.1f}" for (width, height), cost in costs.items()}
    if rounds:
        real = build(config).eval()
        images = {f"ms, {w} x {h}": torch.randint(0, 256, (3, h, w), dtype=torch.uint8) for w, h in SIZES}
        times = time_in_turns(
            {size: partial(real.count, image, mode) for size, image in images.items()}, device="cpu", rounds=rounds
        )
        row |= {size: f"{median_ms(seconds):.0f}" for size, seconds in times.items()}
    return row


def build(config: TrainConfig) -> Counter:
    """The network with random weights."""
    grid = BlockGrid(config.bins.block_size)
    model = (
        dataclasses.replace(config.model, weights="none")
        if isinstance(config.model, PretrainedConfig)
        else config.model
    )
    if isinstance(model, TimmConfig) and not model.name:
        raise ConfigError("model=timm: add model.name=NAME")
    return build_model(model, grid, build_bins(config.bins, HISTOGRAM), pretrained=False)


def macs(counter: Counter, mode: WholeImageConfig | SlidingWindowConfig, *, width: int, height: int) -> int:
    """Multiply-accumulates that counting an image takes, for a network of tensors without storage."""
    block = counter.grid.block_size
    if isinstance(mode, WholeImageConfig):
        shape, windows = whole_size(height, width, stride=counter.stride, block_size=block), 1
    else:
        assert mode.window
        shape = (mode.window, mode.window)
        windows = len(window_corners(mode, height=height, width=width, block_size=block))
    # Neither attention in evaluation mode nor the fused kernel of a CPU is an operation that the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        counter.train().requires_grad_(False).predict_normalized(torch.zeros(1, 3, *shape))
    return int(flops.get_total_flops()) // 2 * windows


if __name__ == "__main__":
    main()
