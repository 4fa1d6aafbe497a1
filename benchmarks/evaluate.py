"""Compare the evaluation of one photograph with a bare forward pass: ``python benchmarks/evaluate.py model=tiny``.

Counts one image of 1024 x 768 px in float32 as eval.py does, in both memory layouts. "bare" normalizes the image and
passes it through the network once; a model that counts in windows has no such row. Weights are random unless
model.weights names some. Memory is the peak size of the tensors that exist beyond those that existed before.
"""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor

from headcount.config import SlidingWindowConfig, WholeImageConfig
from headcount.models.counter import Counter
from step import LAYOUTS
from timing import device_name, format_table, median_ms, paired_ratio, peak_bytes, time_in_turns
from workload import IMAGE_SIZE, Workload, run_benchmark


def main() -> None:
    """Read the command line and run the benchmark."""
    run_benchmark(__doc__, compare_evaluation, of_training=False)


def compare_evaluation(workload: Workload, _: str | None) -> None:
    """Measure both layouts and print the table."""
    width, height = IMAGE_SIZE
    image = workload.photograph[:, :height, :width]
    functions: dict[tuple[str, str], Callable[[], object]] = {}
    for layout, channels_last in LAYOUTS.items():
        runtime, job = workload.set_up(channels_last=channels_last)
        counter = runtime.move_to_device(job.counter.eval())
        functions[layout, "ours"] = partial(counter.count, image, job.mode)
        if isinstance(job.mode, WholeImageConfig):
            functions[layout, "bare"] = bare(counter, image)
    device = runtime.device.type
    print(
        f"{workload.describe(job)}\nimage of {width} x {height} px, {describe_mode(job.mode)}, float32; "
        f"{device_name(device)}; {workload.repeats} rounds\n",
        flush=True,
    )
    for function in functions.values():
        function()
    times = time_in_turns(functions, device=device, rounds=workload.repeats)
    rows = []
    for layout in LAYOUTS:
        peak = peak_bytes(functions[layout, "ours"], device=device) / 1e6
        row = {"layout": layout, "ours ms": f"{median_ms(times[layout, 'ours']):.1f}", "ours MB": f"{peak:.1f}"}
        if (layout, "bare") in times:
            row["bare ms"] = f"{median_ms(times[layout, 'bare']):.1f}"
            row["ours/bare"] = f"{paired_ratio(times[layout, 'ours'], times[layout, 'bare']):.3f}"
        rows.append(row)
    print(format_table(rows))


def bare(counter: Counter, image: UInt8[Tensor, "3 height width"]) -> Callable[[], object]:
    """Normalize the image and pass it through the network."""

    @torch.inference_mode()
    def run() -> object:
        return counter(image[None].to(counter.mean.device))

    return run


def describe_mode(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """How the image is counted."""
    return "as a whole image" if isinstance(mode, WholeImageConfig) else f"in windows of {mode.window} px"


if __name__ == "__main__":
    main()
