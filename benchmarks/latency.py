"""Time to count one picture by PyTorch, torch.compile and ONNX Runtime: ``python benchmarks/latency.py model=tiny``.

Counts an image of 1024 x 768 px as eval.py does, in float32 with random weights, and as files of scripts/export.py:
ONNX in float32, in int8 with ranges measured on each image (--int8), and in int8 with ranges measured before on other
images (--int8 --calibrate). Every round times each of them once, in turns, all with the threads that torch has
(OMP_NUM_THREADS). Recording, compiling and a first call are not timed. A ratio is the median over the rounds.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from headcount.bins import build_bins
from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.status import exit_on_error
from headcount.config import SlidingWindowConfig, WholeImageConfig, counting_mode, register_schemas
from headcount.engine.checkpoint import LoadedCheckpoint
from headcount.engine.export import build_graph, describe, to_onnx, trace
from headcount.engine.exported import check_parity, from_onnx
from headcount.engine.quantize import quantize
from headcount.models.counter import Counter
from headcount.types import SeenImages
from networks import HISTOGRAM, build
from timing import device_name, format_table, median_ms, paired_ratio, time_in_turns
from workload import IMAGE_SIZE, draw_photograph, parse_config

EAGER = "PyTorch"
CALIBRATION_IMAGES = 4


def main() -> None:
    """Read the command line, measure and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of train.py, such as model=tiny")
    parser.add_argument("--repeats", type=whole_number, default=10, help="rounds in which everything is timed once")
    parser.add_argument("--size", type=whole_number, nargs=2, default=IMAGE_SIZE, metavar="PX", help="width and height")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        options = arguments.options
        register_schemas()
        width, height = options.size
        variants, name, sizes = build_variants(arguments.settings, width=width, height=height)
        for count in variants.values():
            count()
        times = time_in_turns(variants, device="cpu", rounds=options.repeats)
        rows = []
        for variant, seconds in times.items():
            row = {"by": variant, "ms": f"{median_ms(seconds):.0f}", "MB": sizes.get(variant, "")}
            rows.append(row | {"of PyTorch's time": f"{paired_ratio(seconds, times[EAGER]):.2f}"})
        print(f"{name}, {width} x {height} px; {device_name('cpu')}; {options.repeats} rounds\n\n{format_table(rows)}")


def build_variants(
    settings: list[str], *, width: int, height: int
) -> tuple[dict[str, Callable[[], object]], str, dict[str, str]]:
    """What is timed, by name; the name of the model; and the size of each file in MB.

    Raises:
        ConfigError: if a setting is invalid, or the model cannot be exported.
    """
    config = parse_config(settings)
    counter = build(config).eval()
    mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)
    content: dict[str, Any] = {"epoch": None, "best": None, "selection": {}, "commit": "unknown"}
    seen = SeenImages.from_plain(None, crop_size=config.augment.crop_size)
    loaded = LoadedCheckpoint(counter, config, build_bins(config.bins, HISTOGRAM), content, seen)
    program = trace(build_graph(counter, mode), config.model.name)
    float32 = to_onnx(program, describe(loaded, mode, "random weights"))
    files = {
        "ONNX, float32": float32,
        "ONNX, int8": quantize(float32, None),
        "ONNX, int8, calibrated": quantize(float32, _calibration(mode, width=width, height=height)),
    }
    image = torch.from_numpy(draw_photograph(np.random.default_rng(0), width, height)).permute(2, 0, 1)
    variants: dict[str, Callable[[], object]] = {
        EAGER: partial(counter.count, image, mode),
        "torch.compile": partial(_compiled(counter).count, image, mode),
    }
    sizes = {}
    for name, proto in files.items():
        exported = from_onnx(proto.SerializeToString(), name, threads=torch.get_num_threads())
        if proto is float32:
            check_parity(exported, counter)
        variants[name] = partial(exported.count, image)
        sizes[name] = f"{proto.ByteSize() / 1e6:.1f}"
    return variants, config.model.name, sizes


def _compiled(counter: Counter) -> Counter:
    """The same counter with a compiled network."""
    compiled = copy.deepcopy(counter)
    compiled.predict_normalized = torch.compile(compiled.predict_normalized)  # type: ignore[method-assign]
    return compiled


def _calibration(
    mode: WholeImageConfig | SlidingWindowConfig, *, width: int, height: int
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Other pictures than the one that is counted, or windows of them."""
    side = mode.window if isinstance(mode, SlidingWindowConfig) else None
    pictures = [draw_photograph(np.random.default_rng(k), width, height) for k in range(1, 1 + CALIBRATION_IMAGES)]
    return [picture[:side, :side] for picture in pictures]


if __name__ == "__main__":
    main()
