"""Compare the training images' pipeline with a plain one, and measure its loader: ``python benchmarks/data.py``.

Measures JPEG files of two sizes to augmented crops, in one process with one thread. "plain" is the usual way: Pillow
decodes, everything else works on float tensors, normalization included (ours leaves that to the network, on its
device). "ours" decodes a JPEG down to the bottom of its crop; "decoded" is ours with dataset.cache=decoded. All three
make the same random choices. The other tables measure the stages of our pipeline, and the loader with one and two
workers, with the growth of its memory over many epochs.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.data.augment import TrainAugment, blur, cut_square, jitter_colors, resize, salt_and_pepper
from headcount.data.crowd import CrowdDataset, sample_seed
from headcount.data.decoded import decode_images, open_decoded
from headcount.data.images import read_image
from headcount.data.loading import Targets, build_train_loader, collate
from headcount.data.prepare import PreparedImage
from headcount.progress import progress_bar
from headcount.types import BlockGrid
from textbook import load_sample
from timing import format_table, paired_ratio, time_in_turns
from workload import draw_photograph

SIZES = ((1024, 768), (2048, 1536))
"""Width and height of the generated photographs; the first size is used for the stages and the loader."""

POINTS = 500
"""Heads per photograph."""

BATCH_SIZE = 4
BLOCK_SIZE = 8
STAGE_ROUNDS = 5

# An epoch of few batches measures how workers start and finish it.
LOADER_REPETITIONS = 32


@dataclass
class Photographs:
    """Generated JPEG files of one size with random head positions."""

    size: tuple[int, int]
    """Width and height in pixels."""
    files: list[Path]
    points: list[Tensor]
    """(x, y) of the heads of each file, in pixels."""

    @classmethod
    def draw(cls, folder: Path, rng: np.random.Generator, *, size: tuple[int, int], images: int) -> "Photographs":
        """Generate ``images`` files in ``folder``."""
        files = [folder / f"{size[0]}_{k}.jpg" for k in range(images)]
        for file in progress_bar(files, label="drawing", unit="image"):
            Image.fromarray(draw_photograph(rng, *size)).save(file, quality=90)
        points = [torch.from_numpy(rng.uniform((0, 0), size, (POINTS, 2)).astype(np.float32)) for _ in files]
        return cls(size, files, points)

    def dataset(
        self, read: Callable[[Path], Tensor], files: list[Path], augment: TrainAugment, *, repetitions: int = 1
    ) -> CrowdDataset:
        """Training samples from ``files``, one for each photograph, opened by ``read``."""
        points = self.points * repetitions
        sizes = [self.size] * len(points)
        return CrowdDataset(
            [str(k) for k in range(len(points))],
            partial(read_file, read, files * repetitions),
            points,
            source_sizes=sizes,
            sizes=sizes,
            augment=augment,
            first_rows=partial(read_rows, files * repetitions) if read is read_image else None,
        )


def main() -> None:
    """Read the command line and print the tables."""
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=whole_number, default=12, help="number of generated photographs")
    parser.add_argument("--rounds", type=whole_number, default=8, help="passes over them with each pipeline")
    parser.add_argument("--crop-size", type=whole_number, default=448, help="side of a training crop, in pixels")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the loader with workers; 0 skips it")
    arguments = read_arguments(parser).options
    torch.set_num_threads(1)
    augment = TrainAugment(crop_size=arguments.crop_size)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = [Photographs.draw(folder, rng, size=size, images=arguments.images) for size in SIZES]
        rows = [compare_pipelines(some, augment, folder / "decoded", rounds=arguments.rounds) for some in photographs]
        print(f"Training samples of {augment.crop_size} px, images per second, CPU, 1 thread:\n\n{format_table(rows)}")
        print(f"\nStages of ours:\n\n{format_table(stage_rows(photographs[0], augment))}")
        if arguments.epochs:
            first = photographs[0]
            dataset = first.dataset(read_image, first.files, augment, repetitions=LOADER_REPETITIONS)
            print(f"\nTraining loader:\n\n{format_table(loader_rows(dataset, epochs=arguments.epochs))}")


def read_file(read: Callable[[Path], Tensor], files: list[Path], index: int) -> Tensor:
    """The image of an index; at module level, so that worker processes can receive it."""
    return read(files[index])


def read_rows(files: list[Path], index: int, rows: int) -> Tensor:
    """The first rows of the image of an index."""
    return read_image(files[index], rows=rows)


def compare_pipelines(photographs: Photographs, augment: TrainAugment, folder: Path, *, rounds: int) -> dict[str, str]:
    """One row: images per second of the three pipelines.

    Args:
        folder: where decoded images are cached.
    """
    size, files = photographs.size, photographs.files
    prepared = [PreparedImage(file, file, size, size) for file in files]
    decoded_files = decode_images(prepared, folder, label="all")
    compressed = photographs.dataset(read_image, files, augment)
    decoded = photographs.dataset(open_decoded, decoded_files, augment)

    def plain(key: tuple[int, int]) -> Tensor:
        epoch, k = key
        generator = torch.Generator().manual_seed(sample_seed(0, epoch, k))
        return load_sample(files[k], photographs.points[k], augment, generator)

    pipelines: dict[str, Callable[[tuple[int, int]], object]] = {
        "plain": plain,
        "ours": compressed.__getitem__,
        "decoded": decoded.__getitem__,
    }
    # The cost of a sample depends on its random choices, so the medians are taken over whole passes.
    passes: dict[str, list[float]] = {name: [] for name in pipelines}
    for epoch in progress_bar(range(rounds + 1), label="timing", unit="pass"):
        seconds = dict.fromkeys(pipelines, 0.0)
        for k in range(len(files)):
            functions = {name: partial(sample, (epoch, k)) for name, sample in pipelines.items()}
            for name, times in time_in_turns(functions, device="cpu", rounds=1).items():
                seconds[name] += float(times[0])
        if epoch > 0:  # the first pass warms up
            for name in pipelines:
                passes[name].append(seconds[name])
    taken = {name: np.array(seconds) for name, seconds in passes.items()}
    row = {"image": f"{size[0]} x {size[1]}"}
    row |= {name: f"{len(files) / np.median(taken[name]):.1f}" for name in pipelines}
    row |= {f"{name} / plain": f"{paired_ratio(taken['plain'], taken[name]):.2f}x" for name in ("ours", "decoded")}
    return row


def stage_rows(photographs: Photographs, augment: TrainAugment) -> list[dict[str, str]]:
    """Median time of each stage of our pipeline, the share of samples that pass it, and its mean time per sample."""
    a, generator = augment, torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {}

    def timed(stage: str, function: Callable[..., Any], *inputs: Any) -> Any:
        start = time.perf_counter()
        result = function(*inputs)
        seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return result

    for _ in range(STAGE_ROUNDS):
        for file, heads in zip(photographs.files, photographs.points, strict=True):
            square = timed("draw", a.draw_square, *photographs.size, generator)
            image = timed("decode", partial(read_image, rows=square.top + square.side), file)
            window = timed("cut", cut_square, image, heads, square)
            image, _ = timed("resize", resize, *window, a.crop_size)
            image = timed("jitter", jitter_colors, image, a.jitter, generator)
            image = timed("blur", blur, image, a.blur_size, generator)
            timed("salt and pepper", salt_and_pepper, image, a.salt_pepper, generator)
    shares = {"jitter": a.jitter_probability, "blur": a.blur_probability, "salt and pepper": a.salt_pepper_probability}
    rows = []
    for stage, taken in seconds.items():
        milliseconds, share = 1e3 * statistics.median(taken), shares.get(stage, 1.0)
        rows.append(
            {
                "stage": stage,
                "median ms": f"{milliseconds:.2f}",
                "applied to": f"{share:.0%}",
                "ms per sample": f"{milliseconds * share:.2f}",
            }
        )
    return rows


def loader_rows(dataset: CrowdDataset, *, epochs: int) -> list[dict[str, str]]:
    """Images per second of the training loader with one and two workers, and how much its memory grows."""
    make_batch = partial(collate, targets=Targets(frozenset({"points", "block_counts"}), BlockGrid(BLOCK_SIZE)))
    rows = []
    rates: list[float] = []
    for workers in (1, 2):
        loader = build_train_loader(dataset, make_batch, batch_size_per_process=BATCH_SIZE, seed=0, workers=workers)
        memory = []
        for epoch in range(epochs + 1):
            if epoch == 1:  # the first epoch starts the workers
                start = time.perf_counter()
            for _ in loader.epoch(epoch):
                pass
            memory.append(resident_bytes())
        rates.append(epochs * len(loader) * BATCH_SIZE / (time.perf_counter() - start))
        rows.append(
            {
                "workers": str(workers),
                "images per second": f"{rates[-1]:.1f}",
                "against one worker": f"{rates[-1] / rates[0]:.2f}x",
                "MiB grown in the second half": f"{(memory[-1] - memory[len(memory) // 2]) / 2**20:+.1f}",
            }
        )
    return rows


def resident_bytes() -> int:
    """Anonymous memory of this process and its workers as Linux reports it, in bytes; 0 on other systems."""
    total = 0
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        return 0
    for process in (str(os.getpid()), *children.read_text().split()):
        status = Path(f"/proc/{process}/status").read_text()
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))
    return total


if __name__ == "__main__":
    main()
