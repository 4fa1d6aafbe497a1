"""Compare the optimal-transport loss with textbook solvers: ``python benchmarks/loss.py``.

Measures forward and backward of the transport term of 8 crops of 448 px with blocks of 8 px. "dense" is Sinkhorn's
iteration with a dense kernel, one image at a time, 100 iterations in float32. "logarithms" is the same iteration on
logarithms, compared with our stable solver on the image of the batch that has the most points, for the same number of
iterations. Memory is the peak size of the tensors that exist beyond those that existed before. The rows called SHA
take random crops, at a scale of 1 to 2, of ShanghaiTech A (they need data_root= or HEADCOUNT_DATA). The command fails
if the gradients of the two solvers differ.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.status import exit_on_error
from headcount.config import Accelerator, RuntimeConfig
from headcount.data.locate import DATA_ROOT_VARIABLE
from headcount.data.open import list_split
from headcount.engine.runtime import Runtime
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.stable import StableSinkhorn
from headcount.losses.transport import TransportSolver, transport_surrogate
from headcount.progress import progress_bar
from textbook import ITERATIONS, REGULARIZATION, dense_sinkhorn, log_sinkhorn
from timing import device_name, format_table, median_ms, paired_ratio, peak_bytes, time_in_turns
from workload import parse_config

CROP_SIZE = 448
BLOCK_SIZE = 8
BATCH_SIZE = 8
SHANGHAITECH_BATCHES = 4


@dataclass
class Case:
    """The transport problem of one batch."""

    name: str
    """Points per image."""
    points: list[Tensor]
    """(x, y) of the points of each image, in pixels."""
    predicted: Tensor
    """Predicted heads per block, which the gradient is taken of."""

    def densest(self) -> "Case":
        """The image with the most points alone."""
        k = max(range(len(self.points)), key=lambda k: len(self.points[k]))
        predicted = self.predicted.detach()[k : k + 1].requires_grad_()
        return Case(str(len(self.points[k])), [self.points[k]], predicted)


def main() -> None:
    """Read the command line and print one table."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="data_root=FOLDER", help="folder of the datasets")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=whole_number, default=2, help="torch threads on the CPU")
    parser.add_argument("--seconds", type=float, default=8.0, help="time per row, at least 3 rounds")
    parser.add_argument("--points", nargs="*", default=["50", "300", "1000", "3000"], help="per image")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, mixed=["points"], only=["data_root"], old_flags=["data_root"])
        options = arguments.options
        data_root = arguments.values("data_root").get("data_root") or os.environ.get(DATA_ROOT_VARIABLE)
        torch.set_num_threads(options.threads)
        runtime = Runtime(RuntimeConfig(accelerator=Accelerator[options.device]))
        try:
            numbers = [whole_number(text) for text in options.points]
        except argparse.ArgumentTypeError as error:
            parser.error(f"--points {error}")
        cases = build_cases(numbers, data_root or None, device=options.device)
    rows = []
    for case in progress_bar(cases, label="timing", unit="case"):
        rows += compare_solvers(case, runtime, seconds=options.seconds)
    print(f"{BATCH_SIZE} crops of {CROP_SIZE} px, blocks of {BLOCK_SIZE} px; {device_name(options.device)}\n")
    print(format_table(rows))


def build_cases(numbers: list[int], data_root: str | None, *, device: str) -> list[Case]:
    """One case for each number of points per image, then those of ShanghaiTech A if there is a ``data_root``."""
    generator = torch.Generator().manual_seed(0)
    points = {str(n): [torch.rand(n, 2, generator=generator) * CROP_SIZE for _ in range(BATCH_SIZE)] for n in numbers}
    if data_root is not None:
        points |= shanghaitech_batches(data_root, generator=generator)
    side = CROP_SIZE // BLOCK_SIZE
    cases = []
    for name, batch in points.items():
        scale = max(len(p) for p in batch) / 1000
        predicted = torch.rand(BATCH_SIZE, side, side, generator=generator).square() * scale
        cases.append(Case(name, [p.to(device) for p in batch], predicted.to(device).requires_grad_()))
    return cases


def shanghaitech_batches(data_root: str, *, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Points in random crops of ShanghaiTech A's training images, by a name made of the numbers of points.

    Raises:
        ConfigError, DataError: if the dataset is not in ``data_root``, or its annotations cannot be read.
    """
    from PIL import Image

    _, listed = list_split(parse_config(["dataset=sha"]).dataset, "train", data_root=data_root)
    listed = sorted(listed, key=lambda image: image.name)
    batches = {}
    for _ in range(SHANGHAITECH_BATCHES):
        crops = []
        for k in torch.randint(len(listed), (BATCH_SIZE,), generator=generator).tolist():
            with Image.open(listed[k].image) as image:
                size = torch.tensor(image.size)
            scale, *place = torch.rand(3, generator=generator)
            window = (CROP_SIZE * (1 + scale)).clamp(max=size.min())
            points = (listed[k].heads() - torch.stack(place) * (size - window)) * CROP_SIZE / window
            crops.append(points[((points >= 0) & (points < CROP_SIZE)).all(1)])
        counts = sorted(len(points) for points in crops)
        batches[f"SHA {' '.join(map(str, counts))}"] = crops
    return batches


def compare_solvers(case: Case, runtime: Runtime, *, seconds: float) -> list[dict[str, str]]:
    """Two rows of the table: our default solver against the dense one, our stable one against logarithms.

    Raises:
        AssertionError: if the gradients of the two differ.
    """
    densest = case.densest()
    ours = TruncatedSinkhorn(regularization=REGULARIZATION, iterations=ITERATIONS)
    stable = StableSinkhorn(REGULARIZATION, ITERATIONS)
    return [
        compare(case, "dense", dense_sinkhorn, ours, runtime, tolerance=1e-3, seconds=seconds),
        compare(densest, "logarithms", log_sinkhorn, stable, runtime, tolerance=1e-4, seconds=seconds),
    ]


def compare(
    case: Case,
    name: str,
    textbook: TransportSolver,
    ours: TransportSolver,
    runtime: Runtime,
    *,
    tolerance: float,
    seconds: float,
) -> dict[str, str]:
    """One row: time and memory of ``ours`` against ``textbook``.

    Args:
        runtime: limits the threads of ours as in training.
        tolerance: maximum difference of the gradients, as a share of the largest entry.
    """

    def run_ours() -> Tensor:
        with runtime.single_thread():
            return transport_gradient(case, ours)

    device = runtime.device.type
    run_textbook = partial(transport_gradient, case, textbook)
    functions: dict[str, Callable[[], Tensor]] = {"textbook": run_textbook, "ours": run_ours}
    expected = functions["textbook"]()
    torch.testing.assert_close(functions["ours"](), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    taken = time_in_turns(functions, device=device, seconds=seconds)
    peaks = {key: peak_bytes(function, device=device) / 1e6 for key, function in functions.items()}
    return {
        "points per image": case.name,
        "textbook": name,
        "textbook ms": f"{median_ms(taken['textbook']):.1f}",
        "ours ms": f"{median_ms(taken['ours']):.1f}",
        "faster by": f"{paired_ratio(taken['textbook'], taken['ours']):.1f}x",
        "textbook MB": f"{peaks['textbook']:.2f}",
        "ours MB": f"{peaks['ours']:.2f}",
        "smaller by": f"{peaks['textbook'] / peaks['ours']:.1f}x",
    }


def transport_gradient(case: Case, solver: TransportSolver) -> Tensor:
    """The gradient of the transport term with respect to the prediction."""
    share = case.predicted.detach() / case.predicted.detach().sum((1, 2), keepdim=True)
    potentials = solver(case.points, share, block_size=BLOCK_SIZE).potentials
    return torch.autograd.grad(transport_surrogate(case.predicted, potentials).mean(), case.predicted)[0]


if __name__ == "__main__":
    main()
