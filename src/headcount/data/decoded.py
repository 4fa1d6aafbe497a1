"""Decode a dataset's images once, so that a training sample reads no more than its window.

One NumPy file an image, bytes as they lie in memory, beside the resized images; mapped, not read: a
sample touches the pages of its window alone, and processes share them. Takes about 2.4 MB for
1024 x 768 pixels. Nothing is removed: where images were exchanged, the folder may be deleted to make room.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError
from headcount.data.prepare import PreparedImage, image_origin
from headcount.data.readers import read_image
from headcount.files import atomic_write, make_folder


def decode_images(images: Sequence[PreparedImage], folder: Path, *, label: str) -> list[Path]:
    """Write the pixels of each image into ``folder``; only those that are missing, out of date or cut short.

    Args:
        folder: made if it does not exist.
        label: what the progress bar calls the work.

    Returns:
        The file of each image.

    Raises:
        ConfigError: if the folder cannot be made, or the disk has no room for what is missing.
    """
    files = [folder / f"{image.path.stem}-{_origin(image)}.npy" for image in images]
    due = [(image, file) for image, file in zip(images, files, strict=True) if not _is_whole(file, image.size)]
    if not due:
        return files
    make_folder(folder, "dataset.cache_dir")
    needed = sum(3 * image.size[0] * image.size[1] for image, _ in due)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"dataset.cache=decoded: {len(due)} images take {needed / 1e9:.1f} GB, and {folder} has "
            f"{free / 1e9:.1f} GB free; choose another disk with dataset.cache_dir=..., or dataset.cache=none"
        )
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        tasks = [pool.submit(_decode, image, file) for image, file in due]
        bar = tqdm(as_completed(tasks), total=len(tasks), desc=f"decoding {label} once", unit="image")
        for task in bar:
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return files


def open_decoded(file: Path) -> UInt8[Tensor, "3 height width"]:
    """The image of a file that :func:`decode_images` wrote; its pixels are read where they are used."""
    # "c": writing, which nobody does, would change memory and not the file; torch asks for a writable array.
    return torch.from_numpy(np.load(file, mmap_mode="c")).permute(2, 0, 1)


def _origin(image: PreparedImage) -> str:
    """A word for the image as distributed and the size it has here.

    Not for the file at ``image.path``: a second run that prepares the same folder may write that anew.
    """
    return hashlib.sha256(image_origin(image.source, image.size)).hexdigest()[:12]


def _is_whole(file: Path, size: tuple[int, int]) -> bool:
    """Whether a file holds as many pixels as an image of this (width, height)."""
    try:
        return bool(np.load(file, mmap_mode="r").shape == (size[1], size[0], 3))
    except (OSError, EOFError, ValueError):  # missing, empty, or cut short
        return False


def _decode(image: PreparedImage, target: Path) -> None:
    """Write the pixels, unless another run has meanwhile.

    Versions of another origin stay: a run that goes on may be reading them.
    """
    if _is_whole(target, image.size):
        return
    pixels = read_image(image.path).permute(1, 2, 0).contiguous().numpy()
    try:
        with atomic_write(target) as part, part.open("wb") as file:
            np.save(file, pixels)
    except OSError as error:
        raise ConfigError(f"{image.path} could not be decoded into {target}: {error}") from error
