"""Compare the optimal-transport loss with textbook solvers: ``python benchmarks/loss.py``.

Measures forward and backward of the transport term of 8 crops of 448 px with blocks of 8 px. "dense" is Sinkhorn's
iteration with a dense kernel, one image at a time, 100 iterations in float32. "logarithms" is the same iteration on
logarithms, compared with our stable solver on the image of the batch that has the most points, for the same number of
iterations. Memory is the peak size of the tensors that exist beyond those that existed before. The rows called SHA
take random crops, at a scale of 1 to 2, of ShanghaiTech A (they need --data-root or HEADCOUNT_DATA). The command fails
if the gradients of the two solvers differ.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError
from headcount.data.datasets import list_folder
from headcount.losses.sinkhorn import TruncatedSinkhorn
from headcount.losses.stable import StableSinkhorn
from headcount.losses.transport import TransportSolver, transport_surrogate
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--seconds", type=float, default=8.0, help="time per row, at least 3 rounds")
    parser.add_argument("--points", type=int, nargs="*", default=[50, 300, 1000, 3000], help="per image")
    root = os.environ.get("HEADCOUNT_DATA") or None
    parser.add_argument("--data-root", type=Path, default=root, help="folder of the datasets")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        cases = build_cases(arguments.points, arguments.data_root, device=arguments.device)
    except ConfigError as error:
        parser.exit(2, f"loss.py: {error}\n")
    rows = []
    for case in tqdm(cases, desc="timing", unit="case"):
        rows += compare_solvers(case, device=arguments.device, seconds=arguments.seconds)
    print(f"{BATCH_SIZE} crops of {CROP_SIZE} px, blocks of {BLOCK_SIZE} px; {device_name(arguments.device)}\n")
    print(format_table(rows))


def build_cases(numbers: list[int], data_root: Path | None, *, device: str) -> list[Case]:
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


def shanghaitech_batches(data_root: Path, *, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Points in random crops of ShanghaiTech A's training images, by a name made of the numbers of points.

    Raises:
        ConfigError: if the dataset is not in ``data_root``.
    """
    from PIL import Image

    _, listed = list_folder(parse_config(["dataset=sha"]).dataset, "train", data_root=str(data_root))
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


def compare_solvers(case: Case, *, device: str, seconds: float) -> list[dict[str, str]]:
    """Two rows of the table: our default solver against the dense one, our stable one against logarithms.

    Raises:
        AssertionError: if the gradients of the two differ.
    """
    densest = case.densest()
    ours = TruncatedSinkhorn(regularization=REGULARIZATION, iterations=ITERATIONS)
    stable = StableSinkhorn(REGULARIZATION, ITERATIONS)
    return [
        compare(case, "dense", dense_sinkhorn, ours, tolerance=1e-3, device=device, seconds=seconds),
        compare(densest, "logarithms", log_sinkhorn, stable, tolerance=1e-4, device=device, seconds=seconds),
    ]


def compare(
    case: Case,
    name: str,
    textbook: TransportSolver,
    ours: TransportSolver,
    *,
    tolerance: float,
    device: str,
    seconds: float,
) -> dict[str, str]:
    """One row: time and memory of ``ours`` against ``textbook``; gradients may differ by a share of the largest."""
    functions = {"textbook": gradient(case, textbook), "ours": gradient(case, ours)}
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


def gradient(case: Case, solver: TransportSolver) -> Callable[[], Tensor]:
    """A function that computes the transport term's gradient with respect to the prediction."""

    def run() -> Tensor:
        share = case.predicted.detach() / case.predicted.detach().sum((1, 2), keepdim=True)
        potentials = solver(case.points, share, block_size=BLOCK_SIZE).potentials
        return torch.autograd.grad(transport_surrogate(case.predicted, potentials).mean(), case.predicted)[0]

    return run


if __name__ == "__main__":
    main()
