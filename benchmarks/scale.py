"""Measure what each image of a large dataset costs before the first step: ``python benchmarks/scale.py``.

Writes custom datasets of several numbers of small images, each with an annotation of its own, and opens their training
split. Costs per image are the slope between the smallest and the largest dataset, in seconds of processor time, so that
other programs on the machine count less. The images are so small that decoding them takes almost no time: what it takes
for real ones is measured by data.py. See docs/scale.md for what follows from the numbers.
"""

import json
import os
import pickle
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.config import CustomConfig
from headcount.data.histograms import block_histogram
from headcount.data.listing import sort_by_hash
from headcount.data.open import list_split, open_split
from timing import format_table

SIDE = 64
BLOCK_SIZE = 8


def main() -> None:
    """Read the command line and print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=whole_number, default=8000, help="images of the largest dataset")
    parser.add_argument("--heads", type=whole_number, default=100, help="heads per image")
    parser.add_argument(
        "--target", type=whole_number, default=1_000_000, help="number of images to compute the cost of"
    )
    options = read_arguments(parser).options
    torch.set_num_threads(1)
    sizes = (max(options.images // 8, 1), options.images)
    costs = [measure(size, heads=options.heads) for size in sizes]
    rows = []
    for what in costs[0]:
        slope = (costs[1][what] - costs[0][what]) / max(sizes[1] - sizes[0], 1)
        unit, factor = ("bytes", 1) if what.startswith("memory") else ("microseconds", 1e6)
        at_target = slope * options.target
        rows.append(
            {
                "step": what,
                "per image": f"{slope * factor:.0f} {unit}",
                f"at {options.target:,} images": f"{at_target / 1e9:.2f} GB" if factor == 1 else f"{at_target:.0f} s",
            }
        )
    print(f"{sizes[0]} and {sizes[1]} images, {options.heads} heads per image:\n\n{format_table(rows)}")


def measure(images: int, *, heads: int) -> dict[str, float]:
    """Write a dataset of this many images, and measure each step of opening it.

    Returns:
        Seconds of processor time, or bytes of memory, by step.
    """
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        folder.mkdir()
        write_images(folder, images, heads=heads)
        config = CustomConfig(root=str(folder), val_fraction=0, test_fraction=0, min_side=SIDE, side_multiple=SIDE)
        config.cache_dir = str(Path(name) / "cache")
        _, listed = timed(found, "list images and annotations", lambda: list_split(config, "train", data_root=None))
        timed(found, "read annotations (.json)", lambda: [item.heads() for item in listed])
        timed(found, "hash names for splits", lambda: sort_by_hash(item.name for item in listed))
        del listed
        before = memory()
        dataset = timed(found, "open the split, all of these and every header", lambda: open_split(config, "train"))
        found["memory of the open split"] = memory() - before
        found["memory of a copy for a worker that is not forked"] = len(pickle.dumps(dataset))
        timed(found, "count the blocks of all images", lambda: block_histogram(dataset, BLOCK_SIZE))
        timed(found, "order of an epoch", lambda: torch.randperm(len(dataset)).tolist())
    return found


def write_images(folder: Path, images: int, *, heads: int) -> None:
    """Copies of one small photograph, each with a JSON file of random positions."""
    Image.new("RGB", (SIDE, SIDE), (90, 120, 60)).save(folder / "00000000.jpg")
    points = (torch.rand(heads, 2) * SIDE).round(decimals=1).tolist()
    text = json.dumps(points)
    for k in range(images):
        if k:
            shutil.copyfile(folder / "00000000.jpg", folder / f"{k:08d}.jpg")
        (folder / f"{k:08d}.json").write_text(text)


def timed(found: dict[str, float], what: str, work: Callable[[], Any]) -> Any:
    """Record the processor time of ``work``, and return its result."""
    started = time.process_time()
    result = work()
    found[what] = time.process_time() - started
    return result


def memory() -> int:
    """Bytes of this process in memory; the peak where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
