"""Measures speed and memory on this machine: ``python scripts/benchmark.py loss --help``.

Each subcommand compares two ways of doing the same thing in one run, in turns, and prints medians.
"""

import argparse
import os
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

if TYPE_CHECKING:
    from headcount.data.augment import TrainAugment
    from headcount.losses.sinkhorn import TransportSolution


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    add_loss(commands)
    add_data(commands)
    arguments = parser.parse_args()
    arguments.run(arguments)


# -------------------------------------------------------------------------------------------- loss

CROP_PX, BLOCK_PX, BATCH = 448, 8, 8


def add_loss(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand ``loss``."""
    command = commands.add_parser("loss", help="transport loss against a dense Sinkhorn", description=loss.__doc__)
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    command.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    command.add_argument("--seconds", type=float, default=8.0, help="time for each row of the table, at least 3 pairs")
    command.add_argument("--points", type=int, nargs="*", default=[50, 300, 1000, 3000], help="points an image")
    root = os.environ.get("HEADCOUNT_DATA") or None
    command.add_argument("--data-root", type=Path, default=root, help="folder of datasets")
    command.set_defaults(run=loss)


def loss(arguments: argparse.Namespace) -> None:
    """Forward and backward of the transport term of 8 crops of 448 px with blocks of 8 px, ours against dense.

    Dense is the textbook: one image at a time, kernel and cost matrix kept, 100 iterations in float32, no plan
    formed. Memory is the most that tensors hold at once beyond what they held before: on the CPU the storages
    that torch operations return, on CUDA what the allocator says. The last rows draw their crops, at a scale of 1
    to 2, from ShanghaiTech A (they need --data-root or HEADCOUNT_DATA). The two must agree, or the run fails.

    Rows that say "stable" take the fullest image of the batch alone, and compare the solver that never underflows
    with the textbook in logarithms: as many iterations, two sums of exponentials in each.
    """
    from headcount.losses.sinkhorn import TruncatedSinkhorn
    from headcount.losses.stable import StableSinkhorn
    from headcount.losses.transport import TransportSolver, transport_surrogate

    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    cases = {str(n): [torch.rand(n, 2, generator=generator) * CROP_PX for _ in range(BATCH)] for n in arguments.points}
    if arguments.data_root:
        cases |= shanghaitech_batches(arguments.data_root, batches=4, generator=generator)
    side = CROP_PX // BLOCK_PX
    print(f"{'points an image':>36}   dense ms  ours ms  ratio   dense MB  ours MB  ratio", flush=True)
    for name, points in cases.items():
        predicted = torch.rand(BATCH, side, side, generator=generator).square() * max(len(p) for p in points) / 1000
        predicted = predicted.to(arguments.device).requires_grad_()
        points = [p.to(arguments.device) for p in points]

        def step(
            solver: TransportSolver, predicted: Tensor = predicted, points: list[Tensor] = points
        ) -> Callable[[], Tensor]:
            def run() -> Tensor:
                share = predicted.detach() / predicted.detach().sum((1, 2), keepdim=True)
                potentials = solver(points, share, block_size=BLOCK_PX).potentials
                return torch.autograd.grad(transport_surrogate(predicted, potentials).mean(), predicted)[0]

            return run

        fullest = max(range(BATCH), key=lambda k: len(points[k]))
        alone = predicted.detach()[fullest : fullest + 1].requires_grad_()
        few = [points[fullest]]
        compared = {
            name: (step(dense_sinkhorn), step(TruncatedSinkhorn(regularisation=10.0, iterations=100)), 1e-3),
            f"{len(points[fullest])} stable": (
                step(log_sinkhorn, alone, few),
                step(StableSinkhorn(10.0, 100), alone, few),
                1e-4,
            ),
        }
        for row, (dense, ours, tolerance) in compared.items():
            torch.testing.assert_close(ours(), dense(), rtol=0, atol=tolerance * float(dense().abs().max()))
            times = interleaved([dense, ours], seconds=arguments.seconds, device=arguments.device)
            peaks = [peak_bytes(f, device=arguments.device) / 1e6 for f in (dense, ours)]
            print(
                f"{row:>36}  {times[0] * 1e3:9.1f} {times[1] * 1e3:8.1f} {times[0] / times[1]:5.1f}x"
                f"  {peaks[0]:9.2f} {peaks[1]:8.2f} {peaks[0] / peaks[1]:5.1f}x",
                flush=True,
            )


def log_sinkhorn(points: list[Tensor], blocks: Tensor, *, block_size: int) -> "TransportSolution":
    """The textbook solver in logarithms: no kernel, but two sums of exponentials an iteration."""
    from headcount.losses.sinkhorn import TransportSolution

    potentials, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
    row, col = (block_size * (torch.arange(k, device=blocks.device) + 0.5) for k in blocks.shape[1:])
    for i, p in enumerate(points):
        if not len(p):
            continue
        cost = ((p[:, 1:] - row).square()[:, :, None] + (p[:, :1] - col).square()[:, None, :]).flatten(1)
        a, b = p.new_tensor(1 / len(p)).log(), blocks[i].flatten().log()
        f = torch.zeros_like(p[:, :1])
        for _ in range(100):
            g = b - torch.logsumexp(f - cost / 10, 0)
            f = (a - torch.logsumexp(g - cost / 10, 1))[:, None]
        potentials[i] = (10 * (g - g @ blocks[i].flatten())).view_as(potentials[i])
        costs[i] = ((f + g - cost / 10).exp() * cost).sum()
    return TransportSolution(potentials, costs)


def dense_sinkhorn(points: list[Tensor], blocks: Tensor, *, block_size: int) -> "TransportSolution":
    """The textbook solver: a dense kernel and cost matrix for one image after the other."""
    from headcount.losses.sinkhorn import TransportSolution

    beta, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
    row, col = (block_size * (torch.arange(k, device=blocks.device) + 0.5) for k in blocks.shape[1:])
    for i, p in enumerate(points):
        if not len(p):
            continue
        cost = ((p[:, 1:] - row).square()[:, :, None] + (p[:, :1] - col).square()[:, None, :]).flatten(1)
        kernel = (cost / -10).exp_()
        a, b = 1 / len(p), blocks[i].flatten()
        u = torch.full_like(p[:, 0], a)
        for _ in range(100):
            v = b / (kernel.T @ u + 1e-16)
            u = a / (kernel @ v + 1e-16)
        beta[i] = (10 * torch.log(v + 1e-16)).view_as(beta[i])
        costs[i] = u @ (kernel.mul_(cost) @ v)
        del cost, kernel  # before the next image's are formed
    return TransportSolution(beta, costs)


def shanghaitech_batches(root: Path, *, batches: int, generator: torch.Generator) -> dict[str, list[Tensor]]:
    """Points in random crops of ShanghaiTech A's training images, by a name that tells how many."""
    from PIL import Image
    from scipy.io import loadmat

    folder = root / "ShanghaiTech" / "part_A" / "train_data"
    annotations = sorted((folder / "ground-truth").glob("GT_IMG_*.mat"))
    if not annotations:
        raise SystemExit(f"no GT_IMG_*.mat in {folder / 'ground-truth'}: --data-root must hold ShanghaiTech/part_A")
    found = {}
    for _ in range(batches):
        crops = []
        for k in torch.randint(len(annotations), (BATCH,), generator=generator).tolist():
            points = torch.from_numpy(loadmat(annotations[k])["image_info"][0, 0][0, 0][0]).float()
            with Image.open(folder / "images" / f"{annotations[k].stem.removeprefix('GT_')}.jpg") as image:
                size = torch.tensor(image.size)
            scale, *place = torch.rand(3, generator=generator)
            window = (CROP_PX * (1 + scale)).clamp(max=size.min())
            points = (points - torch.stack(place) * (size - window)) * CROP_PX / window
            crops.append(points[((points >= 0) & (points < CROP_PX)).all(1)])
        counts = sorted(len(p) for p in crops)
        found[f"SHA {' '.join(map(str, counts))}"] = crops
    return found


# -------------------------------------------------------------------------------------------- data


def add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand ``data``."""
    command = commands.add_parser("data", help="training samples a second", description=data.__doc__)
    command.add_argument("--images", type=int, default=12, help="generated photographs")
    command.add_argument("--rounds", type=int, default=8, help="passes over them, each pipeline in turn")
    command.add_argument("--crop-size", type=int, default=448, help="side of a training crop, pixels")
    command.set_defaults(run=data)


def data(arguments: argparse.Namespace) -> None:
    """JPEGs of 1024 x 768 to augmented crops, in one process on one thread: ours against Pillow and floats.

    Plain is how it is usually written: Pillow decodes, all else happens on float tensors, normalisation included
    (ours leaves that to the model, on its device). Both draw the same chances. A table of our stages follows.
    """
    from PIL import Image

    from headcount.data.augment import TrainAugment
    from headcount.data.datasets import CrowdDataset, sample_seed
    from headcount.data.readers import read_image

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    size = (1024, 768)
    augment = TrainAugment(crop_size=arguments.crop_size)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.jpg" for k in range(arguments.images)]
        for file in tqdm(files, desc="drawing", unit="image"):
            Image.fromarray(photograph(rng, *size)).save(file, quality=90)
        points = [torch.from_numpy(rng.uniform((0, 0), size, (500, 2)).astype(np.float32)) for _ in files]
        dataset = CrowdDataset(
            [file.stem for file in files],
            lambda index: read_image(files[index]),
            points,
            source_sizes=[size] * len(files),
            sizes=[size] * len(files),
            augment=augment,
        )
        seconds = np.zeros((2, arguments.rounds + 1, len(files)))  # The first pass warms up.
        for epoch in tqdm(range(arguments.rounds + 1), desc="timing", unit="pass"):
            for k in range(len(files)):
                start = time.perf_counter()
                plain_sample(files[k], points[k], augment, torch.Generator().manual_seed(sample_seed(0, epoch, k)))
                middle = time.perf_counter()
                dataset[epoch, k]
                seconds[:, epoch, k] = middle - start, time.perf_counter() - middle
        # A sample's cost depends on its chances, so the medians are those of whole passes.
        plain, ours = len(files) / np.median(seconds[:, 1:].sum(axis=2), axis=1)
        print(f"images a second: plain {plain:.1f}, ours {ours:.1f}, ratio {ours / plain:.2f}")
        print(f"\n{'stage':>16} {'median ms':>10} {'happens':>8} {'ms a sample':>12}")
        for stage, (milliseconds, share) in stage_times(files, points, augment).items():
            print(f"{stage:>16} {milliseconds:10.2f} {share:8.0%} {milliseconds * share:12.2f}")


def stage_times(files: list[Path], points: list[Tensor], augment: "TrainAugment") -> dict[str, tuple[float, float]]:
    """Median milliseconds of each stage of our pipeline, and how often it happens."""
    from headcount.data.augment import blur, jitter_colours, random_window, resize, salt_and_pepper
    from headcount.data.readers import read_image

    a, generator = augment, torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[..., Any], *inputs: Any) -> Any:
        start = time.perf_counter()
        result = function(*inputs)
        seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result

    for _ in range(5):
        for file, heads in zip(files, points, strict=True):
            image = timed("decode", read_image, file)
            window = timed("window", random_window, image, heads, a.crop_size, a.min_scale, a.max_scale, generator)
            image, _ = timed("resize", resize, *window, a.crop_size)
            image = timed("jitter", jitter_colours, image, a.jitter, generator)
            image = timed("blur", blur, image, a.blur_size, generator)
            timed("salt and pepper", salt_and_pepper, image, a.salt_pepper, generator)
    sometimes = {
        "jitter": a.jitter_probability,
        "blur": a.blur_probability,
        "salt and pepper": a.salt_pepper_probability,
    }
    return {stage: (1e3 * statistics.median(taken), sometimes.get(stage, 1.0)) for stage, taken in seconds.items()}


def plain_sample(file: Path, points: Tensor, augment: "TrainAugment", generator: torch.Generator) -> Tensor:
    """A training crop as it is usually made; its points are moved too, but not returned."""
    import torchvision.transforms.v2.functional as pixels
    from PIL import Image

    from headcount.data import points as heads
    from headcount.data.augment import BLUR_SIGMA, happens, jitter_colours, uniform

    crop = augment.crop_size
    image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).contiguous().float() / 255
    height, width = image.shape[1:]
    side = min(int(crop * uniform(augment.min_scale, augment.max_scale, generator)), height, width)
    top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in (height, width))
    image = pixels.crop(image, top, left, side, side)
    points, _ = heads.crop(points, left=left, top=top, width=side, height=side)
    image = pixels.resize(image, [crop, crop], pixels.InterpolationMode.BICUBIC, antialias=True)
    points = heads.scale(points, from_size=(side, side), to_size=(crop, crop))
    if happens(augment.flip, generator):
        image, points = pixels.horizontal_flip(image), heads.flip(points, width=crop)
    if happens(augment.jitter_probability, generator):
        image = jitter_colours(image, augment.jitter, generator)
    if happens(augment.blur_probability, generator):
        sigma = uniform(*BLUR_SIGMA, generator)
        image = pixels.gaussian_blur(image, [augment.blur_size, augment.blur_size], [sigma, sigma])
    if happens(augment.salt_pepper_probability, generator):
        noise = torch.rand(image.shape, generator=generator)
        image = torch.where(noise < augment.salt_pepper, 1.0, image)
        image = torch.where(noise > 1 - augment.salt_pepper, 0.0, image)
    return pixels.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A picture that compresses as photographs of crowds do: about 240 KB at 1024 x 768 and quality 90."""
    from PIL import Image

    scene = np.full((height, width, 3), 118.0)
    for octave in range(9):  # Texture at every scale, weaker the finer.
        cells = (height >> (8 - octave), width >> (8 - octave))
        field = rng.normal(0, 0.6, (*cells, 1)) + rng.normal(0, 0.4, (*cells, 3))
        layers = [Image.fromarray(field[..., k].astype(np.float32)).resize((width, height)) for k in range(3)]
        scene += 45 * 0.75**octave * np.stack([np.asarray(layer) for layer in layers], axis=2)
    rows, cols = np.mgrid[:height, :width]
    for _ in range(200):  # Heads, larger towards the bottom.
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        disc = (cols - x) ** 2 + (rows - y) ** 2 < (3 + 14 * y / height) ** 2
        scene[disc] = 0.5 * scene[disc] + rng.uniform(0, 130, 3)
    scene += rng.normal(0, 4, scene.shape)  # The camera's noise.
    return scene.clip(0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------- measurements


def interleaved(functions: list[Callable[[], object]], *, seconds: float, device: str) -> list[float]:
    """Median seconds of each function, called in turns for at least ``seconds`` and three times each."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for function, taken in zip(functions, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]


def peak_bytes(function: Callable[[], object], *, device: str) -> int:
    """Most bytes of tensors alive at once during a call, beyond those alive before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        function()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations return, each until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and note what it allocated."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if is_strided(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in filter(is_strided, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def is_strided(value: object) -> bool:
    """Whether ``value`` is a tensor with a storage of its own (a sparse one consists of others that are)."""
    return isinstance(value, Tensor) and value.layout is torch.strided


def synchronize(device: str) -> None:
    """Wait until ``device`` has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
