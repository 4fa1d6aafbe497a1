"""Errors and speed of exported files on a dataset: ``python benchmarks/exported.py a.onnx b.onnx ckpt=best_mae.pt``.

Counts every image of a split with the checkpoint and with each file of scripts/export.py, one after the other, and
prints MAE and RMSE of each, how far its counts are from the checkpoint's, and its time. All have the threads that torch
has (OMP_NUM_THREADS). Settings are those of eval.py: split=, max_images=, dataset=, data_root=.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.status import exit_on_error
from headcount.config import EvalCommandConfig, check_evaluation
from headcount.engine import checkpoint
from headcount.engine.evaluate import open_evaluated
from headcount.engine.exported import load_exported
from headcount.progress import progress_bar
from headcount.types import Counted, CountErrors
from timing import device_name, format_table, median_ms, paired_ratio

CHECKPOINT = "checkpoint"


def main() -> None:
    """Read the command line, count and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help=".onnx or .pt2, and settings of eval.py")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, mixed=("files",))
        config: EvalCommandConfig = to_config(compose(arguments.settings, config_name="eval"))
        refuse(check_evaluation(config), arguments.settings, config)
        loaded = checkpoint.load(config.ckpt)
        count: dict[str, Callable[..., Counted]] = {
            CHECKPOINT: partial(loaded.counter.count, mode=loaded.counting_mode(config.eval))
        }
        for file in arguments.options.files:
            exported = load_exported(to_path(file).expanduser(), threads=torch.get_num_threads())
            count[Path(file).name] = exported.count
        dataset = open_evaluated(config, loaded.config)
        true: list[float] = []
        counts: dict[str, list[float]] = {name: [] for name in count}
        seconds: dict[str, list[float]] = {name: [] for name in count}
        for k in progress_bar(range(len(dataset)), label="counting"):
            sample = dataset[k]
            true.append(float(len(sample.points)))
            for name, by in count.items():
                start = time.perf_counter()
                counts[name].append(by(sample.image).count)
                seconds[name].append(time.perf_counter() - start)
        print(f"{len(dataset)} images; {device_name('cpu')}\n")
        print(table(true, counts, {name: np.array(values) for name, values in seconds.items()}))


def table(true: list[float], counts: dict[str, list[float]], seconds: dict[str, np.ndarray]) -> str:
    """The errors and times of the checkpoint and of each file."""
    rows = []
    for name, predicted in counts.items():
        errors = CountErrors.from_counts(predicted, true)
        differences = np.abs(np.subtract(predicted, counts[CHECKPOINT]))
        rows.append(
            {
                "counted by": name,
                "MAE": f"{errors.mae:.3f}",
                "RMSE": f"{errors.rmse:.3f}",
                "mean difference": f"{differences.mean():.4f}",
                "largest": f"{differences.max():.4f}",
                "ms": f"{median_ms(seconds[name]):.0f}",
                "of the checkpoint's time": f"{paired_ratio(seconds[name], seconds[CHECKPOINT]):.2f}",
            }
        )
    return format_table(rows)


if __name__ == "__main__":
    main()
