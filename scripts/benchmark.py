"""Measures speed and memory on this machine: ``python scripts/benchmark.py loss --help``.

Each subcommand compares two ways of doing the same thing in one run, in turns, and prints medians.
"""

import argparse
import collections
import copy
import dataclasses
import gc
import os
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

if TYPE_CHECKING:
    from headcount.bins import CountBins
    from headcount.config import Precision, TrainConfig
    from headcount.data.augment import TrainAugment
    from headcount.data.datasets import CrowdDataset
    from headcount.losses.sinkhorn import TransportSolution
    from headcount.models.counter import Counter
    from headcount.types import Batch, BlockPrediction

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Parse the command line and run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    add_loss(commands)
    add_data(commands)
    add_step(commands)
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
            name: (step(dense_sinkhorn), step(TruncatedSinkhorn(regularization=10.0, iterations=100)), 1e-3),
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
    command.add_argument(
        "--epochs", type=int, default=10, help="passes for the loader's workers and memory; 0 for none"
    )
    command.set_defaults(run=data)


def data(arguments: argparse.Namespace) -> None:
    """JPEGs of two sizes to augmented crops, in one process on one thread: ours against Pillow and floats.

    Plain is how it is usually written: Pillow decodes, all else happens on float tensors, normalization included
    (ours leaves that to the model, on its device). Decoded is ours with dataset.cache=decoded. All draw the same
    chances. A table of our stages follows, then the loader with workers, and its memory over many epochs.
    """
    from PIL import Image

    from headcount.data.augment import TrainAugment
    from headcount.data.datasets import CrowdDataset, sample_seed
    from headcount.data.decoded import decode_images, open_decoded
    from headcount.data.prepare import PreparedImage
    from headcount.data.readers import read_image

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    augment = TrainAugment(crop_size=arguments.crop_size)
    with tempfile.TemporaryDirectory() as folder:
        for size in ((1024, 768), (2048, 1536)):
            files = [Path(folder) / f"{size[0]}_{k}.jpg" for k in range(arguments.images)]
            for file in tqdm(files, desc="drawing", unit="image"):
                Image.fromarray(photograph(rng, *size)).save(file, quality=90)
            points = [torch.from_numpy(rng.uniform((0, 0), size, (500, 2)).astype(np.float32)) for _ in files]
            prepared = [PreparedImage(file, file, size, size) for file in files]
            mapped = decode_images(prepared, Path(folder) / "decoded", label="all")

            def dataset(
                images: Callable[[int], Tensor], points: list[Tensor] = points, size: tuple[int, int] = size
            ) -> CrowdDataset:
                names, sizes = [str(k) for k in range(len(points))], [size] * len(points)
                return CrowdDataset(names, images, points, source_sizes=sizes, sizes=sizes, augment=augment)

            compressed = dataset(partial(read_indexed, read_image, files))
            decoded = dataset(partial(read_indexed, open_decoded, mapped))
            seconds = np.zeros((3, arguments.rounds + 1, len(files)))  # The first pass warms up.
            for epoch in tqdm(range(arguments.rounds + 1), desc="timing", unit="pass"):
                for k in range(len(files)):
                    times = [time.perf_counter()]
                    plain_sample(files[k], points[k], augment, torch.Generator().manual_seed(sample_seed(0, epoch, k)))
                    times.append(time.perf_counter())
                    compressed[epoch, k]
                    times.append(time.perf_counter())
                    decoded[epoch, k]
                    seconds[:, epoch, k] = np.diff([*times, time.perf_counter()])
            # A sample's cost depends on its chances, so the medians are those of whole passes.
            plain, ours, fast = len(files) / np.median(seconds[:, 1:].sum(axis=2), axis=1)
            print(
                f"{size[0]} x {size[1]}, plain {plain:.1f} images a second, ours {ours:.1f}: {ours / plain:.2f}x; "
                f"decoded {fast:.1f}: {fast / plain:.2f}x"
            )
            if size == (1024, 768):
                print(f"\n{'stage':>16} {'median ms':>10} {'happens':>8} {'ms a sample':>12}")
                for stage, (milliseconds, share) in stage_times(files, points, augment).items():
                    print(f"{stage:>16} {milliseconds:10.2f} {share:8.0%} {milliseconds * share:12.2f}")
                print()
                # An epoch of few batches measures how workers start and end it.
                several = files * 32
                workload = dataset(partial(read_indexed, read_image, several), points * 32)
        if arguments.epochs:
            print_loading(workload, epochs=arguments.epochs)


def read_indexed(read: Callable[[Path], Tensor], files: list[Path], index: int) -> Tensor:
    """The image of an index; a function that worker processes can be given."""
    return read(files[index])


def print_loading(dataset: "CrowdDataset", *, epochs: int) -> None:
    """Print images a second of the training loader with one and two workers, and how its memory grows."""
    from headcount.data.loading import build_train_loader

    rates = {}
    for workers in (1, 2):
        loader = build_train_loader(dataset, batch_size_per_process=4, seed=0, block_size=8, workers=workers)
        memory = []
        for epoch in range(epochs + 1):
            if epoch == 1:  # the first one starts the workers
                start = time.perf_counter()
            for _ in loader.epoch(epoch):
                pass
            memory.append(resident_bytes())
        rates[workers] = epochs * len(loader) * 4 / (time.perf_counter() - start)
        grown = (memory[-1] - memory[len(memory) // 2]) / 2**20
        print(
            f"{workers} worker(s): {rates[workers]:.1f} images a second; memory grew {grown:+.1f} MiB in the later half"
        )
    print(f"two workers against one: {rates[2] / rates[1]:.2f}")


def resident_bytes() -> int:
    """Memory of this process and its workers that no file backs, as Linux counts it; 0 elsewhere."""
    total = 0
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        return 0
    for process in (str(os.getpid()), *children.read_text().split()):
        status = Path(f"/proc/{process}/status").read_text()
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return total


def stage_times(files: list[Path], points: list[Tensor], augment: "TrainAugment") -> dict[str, tuple[float, float]]:
    """Median milliseconds of each stage of our pipeline, and how often it happens."""
    from headcount.data.augment import blur, jitter_colors, random_window, resize, salt_and_pepper
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
            image = timed("jitter", jitter_colors, image, a.jitter, generator)
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
    from headcount.data.augment import BLUR_SIGMA, happens, jitter_colors, uniform

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
        image = jitter_colors(image, augment.jitter, generator)
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


# -------------------------------------------------------------------------------------------- step

IMAGE_PX = (1024, 768)  # width, height
MOST_AT_ONCE = 1024  # images; the search for the largest batch ends here, wherever memory ends


def add_step(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand ``step``."""
    command = commands.add_parser("step", help="a training step against its bare layers", description=step.__doc__)
    command.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of train.py, all in one place")
    command.add_argument("--batch", type=int, default=2, help="crops a step")
    command.add_argument("--crop-size", type=int, help="side of a crop, pixels; 448, for CLIP's ViTs their input_size")
    command.add_argument("--points", type=int, default=300, help="heads a crop")
    command.add_argument("--precision", choices=["float32", "bf16"], help="measure this alone")
    command.add_argument("--repeats", type=int, default=10, help="rounds in which each thing is measured in turn")
    command.set_defaults(run=step)


def step(arguments: argparse.Namespace) -> None:
    """A whole training step, as train.py takes it, against its bare layers and its loss; and one evaluated image.

    Bare is forward and backward of the same modules on normalized floats that lie on the device, from the mean of
    the logits (or counts). The whole step adds the batch's way to the device, normalization, loss, clipping, optimizer,
    average and meter. Every round measures everything once; times are medians, ratios medians of the rounds' ratios.
    Where the layout is contiguous, so are bare's floats; training's images stay as they are decoded, channels last.
    Memory is what ``loss --help`` says. Weights are random unless model.weights says which. With a CLIP without a
    decoder its head follows, against a textbook one; on CUDA images a second, also compiled. The CPU's threads are
    torch's own: OMP_NUM_THREADS sets them.
    """
    from headcount.config import Precision
    from headcount.models.heads import CosineClassifier

    setup = StepSetup.from_settings(arguments)
    counter, config = setup.counter, setup.config
    precisions = [Precision[arguments.precision]] if arguments.precision else [Precision.float32, Precision.bf16]
    layouts = {"channels last": True, "contiguous": False}
    steps = {
        (precision.name, layout): TrainingStep.build(setup, arguments.batch, precision, channels_last=last)
        for precision in precisions
        for layout, last in layouts.items()
    }
    device = next(iter(steps.values())).device
    parameters = [sum(p.numel() for p in counter.parameters() if p.requires_grad or frozen) for frozen in (True, False)]
    print(
        f"{' '.join(setup.settings)}\n{arguments.batch} crops of {config.augment.crop_size} px with {arguments.points} "
        f"heads each; {parameters[0] / 1e6:.2f} M parameters, {parameters[1] / 1e6:.2f} M trained by "
        f"{config.optim.algorithm.name}; loss {config.loss.name}; {device_words(device)}; {arguments.repeats} rounds",
        flush=True,
    )
    functions: dict[tuple[str, ...], Callable[[], object]] = {}
    for key, parts in steps.items():
        # In this order: bare leaves gradients, which clipping and the optimizer find, and which the latter clears.
        for name in ("whole", "bare", "clip", "update", "follow", "loss"):
            functions[*key, name] = getattr(parts, name)
        if isinstance(counter.head, CosineClassifier) and counter.decoder is None:
            functions[*key, "textbook head"], functions[*key, "our head"] = parts.cosine_heads()
    for layout, last in layouts.items():
        functions[layout, "evaluation"] = evaluation(setup, channels_last=last)
    for function in functions.values():
        function()
    taken = in_turns(list(functions.values()), rounds=arguments.repeats, device=device)
    times = {key: np.array(t) * 1e3 for key, t in zip(functions, taken, strict=True)}
    peaks = {
        key: peak_bytes(function, device=device) / 1e6
        for key, function in functions.items()
        if key[-1] in ("whole", "bare", "update", "evaluation")  # the optimizer's clears what bare leaves
    }

    print(
        f"\n{'precision':>9} {'layout':>13}   step ms  bare ms  loss ms  step/(bare+loss)  step<=1.05bare+loss"
        "   optimizer ms  clip ms  average ms  without them   step MB  bare MB"
    )
    for key in steps:
        whole, bare, clip, update, follow, loss = (
            times[*key, name] for name in ("whole", "bare", "clip", "update", "follow", "loss")
        )
        met = "yes" if np.median(whole - 1.05 * bare - loss) <= 0 else "no"
        rest = (whole - clip - update - follow) / (bare + loss)
        print(
            f"{key[0]:>9} {key[1]:>13}  {np.median(whole):8.1f} {np.median(bare):8.1f} {np.median(loss):8.1f}"
            f"  {np.median(whole / (bare + loss)):16.3f}  {met:>19}   {np.median(update):12.1f} {np.median(clip):8.1f}"
            f"  {np.median(follow):10.1f}  {np.median(rest):12.3f}  {peaks[*key, 'whole']:8.1f} "
            f"{peaks[*key, 'bare']:8.1f}"
        )
    print(
        "goal: step/(bare+loss) at most 1.05. Optimizer, clipping and average belong to the step and not to bare: "
        "'without them' is the ratio of the rest."
    )
    print(f"\nevaluation of one image, {IMAGE_PX[0]} x {IMAGE_PX[1]} px, float32:")
    for layout in layouts:
        key = (layout, "evaluation")
        print(f"{layout:>23}  {np.median(times[key]):8.1f} ms {peaks[key]:8.1f} MB")
    if (*next(iter(steps)), "our head") in times:
        print("\ncosine head, forward and backward: up-sampled features, then projected, against ours (goal: 1.3x)")
        for key in steps:
            textbook, ours = times[*key, "textbook head"], times[*key, "our head"]
            print(
                f"{key[0]:>9} {key[1]:>13}  {np.median(textbook):8.2f} ms {np.median(ours):8.2f} ms "
                f"{np.median(textbook / ours):5.2f}x"
            )
    if device == "cuda":
        del functions, steps, parts
        throughput(setup, repeats=arguments.repeats)


@dataclass
class StepSetup:
    """What every variant of a step shares."""

    settings: list[str]
    config: "TrainConfig"
    counter: "Counter"
    bins: "CountBins | None"
    picture: Tensor
    """A photograph, bytes, which crops are cut from."""
    points: int
    """Heads a crop."""

    @classmethod
    def from_settings(cls, arguments: argparse.Namespace) -> "StepSetup":
        """Compose the config as train.py does and build its network, for crops with drawn heads."""
        from headcount.bins import build_bins
        from headcount.command import compose, to_config
        from headcount.config import ClipViTConfig, ConfigError, PretrainedConfig, check, crop_error
        from headcount.models.build import build_model

        settings = list(arguments.settings)
        try:
            model = to_config(compose(settings, config_name="train", config_dir=ROOT / "configs")).model
            if isinstance(model, PretrainedConfig) and not any(s.startswith("model.weights=") for s in settings):
                settings.append("model.weights=none")
            crop = arguments.crop_size or (model.input_size if isinstance(model, ClipViTConfig) else CROP_PX)
            sizes = [f"batch_size={arguments.batch}", f"augment.crop_size={crop}", "runtime.devices=1"]
            config = to_config(compose([*settings, *sizes], config_name="train", config_dir=ROOT / "configs"))
            if errors := check(config):
                raise ConfigError("\n  ".join(errors))
            side = max(crop, *IMAGE_PX)
            picture = torch.from_numpy(photograph(np.random.default_rng(0), side, side)).permute(2, 0, 1)
            setup = cls(settings, config, None, None, picture, arguments.points)  # type: ignore[arg-type]
            blocks = setup.batch(8).block_counts.flatten().int().tolist()
            histogram = dict(sorted(collections.Counter(blocks).items()))
            setup.bins = build_bins(config.bins, histogram)
            torch.manual_seed(0)
            setup.counter = build_model(
                config.model, setup.bins, block_size=config.bins.block_size, histogram=histogram
            )
            if wrong := crop_error(
                crop,
                block_size=config.bins.block_size,
                stride=setup.counter.stride,
                model=config.model.name,
            ):
                raise ConfigError(wrong)
        except ConfigError as error:
            raise SystemExit(f"benchmark.py: {error}") from error
        return setup

    def batch(self, images: int) -> "Batch":
        """Crops of the photograph as the loader gives them, with heads drawn evenly."""
        from headcount.data.loading import collate
        from headcount.types import Sample

        crop, generator = self.config.augment.crop_size, torch.Generator().manual_seed(0)
        samples = []
        for k in range(images):
            top, left = (int(torch.randint(n - crop + 1, (), generator=generator)) for n in self.picture.shape[1:])
            points = torch.rand(self.points, 2, generator=generator, dtype=torch.float64).mul(crop - 0.01).float()
            samples.append(Sample(self.picture[:, top : top + crop, left : left + crop], points, f"crop {k}"))
        return collate(samples, block_size=self.config.bins.block_size)


@dataclass
class TrainingStep:
    """The parts of a training step on one batch, each ready to be called; ``whole`` holds them all."""

    device: str
    whole: Callable[[], None]
    bare: Callable[[], None]
    """Leaves gradients behind."""
    clip: Callable[[], None]
    update: Callable[[], None]
    """The optimizer's step; clears the gradients."""
    follow: Callable[[], None]
    """The average's update."""
    loss: Callable[[], None]
    cosine_heads: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
    """The textbook's and ours, on the features of this batch."""

    @classmethod
    def build(
        cls, setup: StepSetup, images: int, precision: "Precision", *, channels_last: bool, compiled: bool | None = None
    ) -> "TrainingStep":
        """Set a copy of the network up as train.py does, for a batch of so many ``images``.

        Args:
            compiled: None takes what runtime.compile says.
        """
        from headcount.config import Precision
        from headcount.engine.optim import LearningRate, build_average, build_optimizer
        from headcount.engine.records import Meter
        from headcount.engine.runtime import Runtime, unwrap
        from headcount.losses.build import build_loss
        from headcount.types import Batch, BlockPrediction

        config = setup.config
        compiled = config.runtime.compile if compiled is None else compiled
        runtime = Runtime(
            dataclasses.replace(
                config.runtime, precision=precision, channels_last=channels_last, compile=compiled, devices=1
            )
        )
        device = runtime.device.type
        loaded = setup.batch(images)
        loaded = loaded.pin_memory() if device == "cuda" else loaded  # as the loader does
        counter = copy.deepcopy(setup.counter).train()
        loss_fn = build_loss(config.loss, setup.bins, block_size=config.bins.block_size)
        model, optimizer = runtime.setup(counter, build_optimizer(config.optim, counter))
        schedule = LearningRate(config.optim, optimizer, epochs=config.epochs, steps_per_epoch=1000)
        average = build_average(config.optim, counter)
        meter = Meter()

        def whole(batch: Batch = loaded) -> None:
            # The loop of headcount.engine.train.fit, word for word.
            batch = runtime.to_device(batch)
            prediction = model(batch.images)
            loss = loss_fn(prediction, batch)
            runtime.backward(loss.total)
            runtime.clip_gradients(model, optimizer, config.optim.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update(unwrap(model))
            meter.add(loss, prediction, batch)
            if meter.steps % 10 == 1:
                meter.look()

        here = runtime.to_device(loaded)
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def autocast() -> torch.autocast:
            return torch.autocast(device, torch.bfloat16, enabled=precision is Precision.bf16)

        with torch.no_grad(), autocast():
            floats = counter.normalize(here.images).contiguous(memory_format=layout)
            example = counter(floats)
        network = torch.compile(counter) if compiled else counter

        def bare() -> None:
            with autocast():
                prediction = network(floats)
                maps = prediction.block_counts if prediction.logits is None else prediction.logits
            maps.mean().backward()

        def clip() -> None:
            runtime.clip_gradients(model, optimizer, config.optim.max_grad_norm)

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        def follow() -> None:
            average.update(counter)

        leaves = [t.detach().requires_grad_() for t in (example.block_counts, example.logits) if t is not None]
        predicted = BlockPrediction(*leaves)

        def loss() -> None:
            # A loss of counts alone uses no logits.
            torch.autograd.grad(loss_fn(predicted, here).total, leaves, allow_unused=True)

        def cosine_heads() -> tuple[Callable[[], object], Callable[[], object]]:
            with torch.no_grad(), autocast():
                features = counter.backbone(floats).detach().requires_grad_()
            head, factor = counter.head, counter.stride / counter.block_size
            wanted = [features, *head.parameters()]

            def gradients(function: Callable[..., BlockPrediction]) -> Callable[[], list[Tensor]]:
                def run() -> list[Tensor]:
                    with autocast():
                        prediction = function(features, factor=factor)
                    assert prediction.logits is not None
                    scalar = prediction.logits.float().mean() + prediction.block_counts.mean()
                    return [prediction.logits.detach(), *torch.autograd.grad(scalar, wanted)]

                return run

            textbook, ours = gradients(partial(textbook_cosines, head)), gradients(head)
            if precision is Precision.float32:  # in bf16 the textbook's cosines are rough
                for expected, found in zip(textbook(), ours(), strict=True):
                    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
            return textbook, ours

        return cls(device, whole, bare, clip, update, follow, loss, cosine_heads)


def textbook_cosines(head: Any, features: Tensor, *, factor: float) -> "BlockPrediction":
    """CLIP-EBC's head as its equations are written: up-sample, project, normalize, scale, softmax, expectation."""
    from headcount.types import BlockPrediction

    images = head.projection(F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False))
    images = images / images.norm(dim=1, keepdim=True)
    texts = head.text_features / head.text_features.norm(dim=1, keepdim=True)
    logits = head.logit_scale.exp() * torch.einsum("bdhw,nd->bnhw", images, texts)
    counts = (logits.float().softmax(dim=1) * head.representatives.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    return BlockPrediction(counts, logits)


def evaluation(setup: StepSetup, *, channels_last: bool) -> Callable[[], Tensor]:
    """Count one photograph as eval.py does."""
    from headcount.engine.runtime import Runtime
    from headcount.engine.tiling import predict_blocks

    runtime = Runtime(dataclasses.replace(setup.config.runtime, channels_last=channels_last, devices=1))
    counter = runtime.place(copy.deepcopy(setup.counter).eval())
    width, height = IMAGE_PX
    return lambda: predict_blocks(counter, setup.picture[:, :height, :width]).counts


def throughput(setup: StepSetup, *, repeats: int) -> None:
    """Print images a second of the whole step in bf16 on CUDA: 8, 16, ... until memory ends; compiled at both ends."""
    from headcount.config import Precision

    def row(images: int, compiled: bool) -> bool:
        # What the last size held; and a size must not be compiled as another's exception.
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()
        try:
            parts = TrainingStep.build(
                setup, images, Precision.bf16, channels_last=setup.config.runtime.channels_last, compiled=compiled
            )
            for _ in range(3):  # libraries choose kernels, the optimizer makes its state, compilers compile
                parts.whole()
            whole, loss = (np.array(t) for t in in_turns([parts.whole, parts.loss], rounds=repeats, device="cuda"))
            peak = peak_bytes(parts.whole, device="cuda") / 1e6
        except torch.OutOfMemoryError:
            print(f"{'on' if compiled else 'off':>7} {images:6d}   out of memory", flush=True)
            return False
        print(
            f"{'on' if compiled else 'off':>7} {images:6d}  {images / np.median(whole):9.1f}  "
            f"{1e3 * np.median(whole):8.1f}  {np.median(loss / whole):10.1%} {peak:9.1f}",
            flush=True,
        )
        return True

    print("\nwhole step in bf16:\ncompile  batch   images/s   step ms  loss share   step MB")
    images = largest = 8
    while images <= MOST_AT_ONCE and row(images, False):
        largest, images = images, 2 * images
    for images in sorted({8, largest}):
        row(images, True)


def device_words(device: str) -> str:
    """What computes, for a person."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


# ------------------------------------------------------------------------------------- measurements


def interleaved(functions: list[Callable[[], object]], *, seconds: float, device: str) -> list[float]:
    """Median seconds of each function, called in turns for at least ``seconds`` and three times each."""
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for taken, once in zip(times, in_turns(functions, rounds=1, device=device), strict=True):
            taken += once
    return [statistics.median(t) for t in times]


def in_turns(functions: list[Callable[[], object]], *, rounds: int, device: str) -> list[list[float]]:
    """Seconds of each function in each round; a round calls them all, one after the other."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, taken in zip(functions, times, strict=True):
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            taken.append(time.perf_counter() - start)
    return times


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
