"""Decode the images of a dataset once, so that a training sample reads only its crop.

One NumPy file per image holds the bytes as they are in memory, beside the resized images. Files are memory-mapped: a
sample touches only the pages of its crop, and processes share them. An image of 1024 x 768 pixels takes about 2.4 MB.
Nothing is deleted automatically; if images have been replaced, the folder may be deleted to free space.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from headcount.config import ConfigError
from headcount.data.images import read_image
from headcount.data.kinds import DataErrorKind
from headcount.data.prepare import PreparedImage, image_origin, run_in_threads
from headcount.errors import DataError
from headcount.files import atomic_write, make_folder, short_name


def decode_images(images: Sequence[PreparedImage], folder: Path, *, label: str) -> list[Path]:
    """Write the pixels of each image into ``folder``, only those that are missing, out of date or truncated.

    Args:
        folder: created if a file is written there.
        label: name of the images in the progress bar.

    Returns:
        The file of each image.

    Raises:
        ConfigError: if the folder cannot be created, or the disk has no room for the missing files.
        DataError: if an image cannot be read or written.
    """
    files = [folder / short_name(image.path.stem, f"-{_origin(image)}.npy") for image in images]
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
    run_in_threads(lambda pair: _decode(*pair), due, label=f"decoding {label} once")
    return files


def open_decoded(file: Path) -> UInt8[Tensor, "3 height width"]:
    """Open a file that :func:`decode_images` wrote; pixels are read from disk when they are used.

    Raises:
        DataError: if it was removed or truncated since.
    """
    try:
        # "c" (copy on write), because torch asks for a writable array; writing would change memory, not the file.
        return torch.from_numpy(np.load(file, mmap_mode="c")).permute(2, 0, 1)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read: {error}; it is a decoded image that the next start makes again",
            kind=DataErrorKind.cache,
            file=file,
        ) from error


def _origin(image: PreparedImage) -> str:
    """Hash the image as distributed and its prepared size.

    Not the file at ``image.path``: another run that prepares the same folder may write it again.
    """
    return hashlib.sha256(image_origin(image.source, image.size)).hexdigest()[:12]


def _is_whole(file: Path, size: tuple[int, int]) -> bool:
    """Whether a file holds all pixels of an image of this (width, height)."""
    try:
        return bool(np.load(file, mmap_mode="r").shape == (size[1], size[0], 3))
    except (OSError, EOFError, ValueError):  # Missing, empty, or truncated.
        return False


def _decode(image: PreparedImage, target: Path) -> None:
    """Write the pixels, unless another run has done so meanwhile.

    Files of other origins are kept: a running training may be reading them.
    """
    if _is_whole(target, image.size):
        return
    pixels = read_image(image.path, upright=image.upright).permute(1, 2, 0).contiguous().numpy()
    try:
        with atomic_write(target, sync=False) as part, part.open("wb") as file:
            np.save(file, pixels)
    except OSError as error:
        raise DataError(
            f"{image.path} could not be decoded into {target}: {error}", kind=DataErrorKind.cache, file=target
        ) from error
