"""Resize the images of a dataset once into a cache, so that no epoch has to.

The rule is the paper's pre-processing (:class:`ResizeRule`). Images that satisfy it already are used where they are.
Each cached file holds in its JPEG comment what it was made from, and appears under its name only when complete: an
interrupted preparation resumes where it stopped, and a changed source is prepared again.
"""

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from headcount.config import ConfigError, FolderDatasetConfig
from headcount.data.images import open_pillow, read_pillow
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.files import atomic_write, make_folder
from headcount.progress import progress_bar

# This many bytes at both ends, and the length, identify the version of a compressed image; other files are read whole.
_CHECKED_BYTES = 16384
_COMPRESSED = (".jpg", ".jpeg", ".png", ".webp")
_END_OF_JPEG = b"\xff\xd9"

Item = TypeVar("Item")


@dataclass(frozen=True)
class ResizeRule:
    """The size that images are resized to once, before training and evaluation.

    Args:
        min_side, max_side: limits of the short and of the long side, pixels, multiples of ``multiple``; None is no
            upper limit.
        multiple: both sides become multiples of this many pixels.

    Raises:
        ConfigError: if a limit is not a multiple of ``multiple``, or the limits contradict each other.

    Source: the pre-processing of arXiv:2403.09281, as in its released code.
    """

    min_side: int
    max_side: int | None
    multiple: int

    def __post_init__(self) -> None:
        for name, limit in (("min_side", self.min_side), ("max_side", self.max_side)):
            if limit is not None and (limit < 1 or limit % self.multiple):
                raise ConfigError(
                    f"{name} is {limit}, but must be a positive multiple of side_multiple ({self.multiple})"
                )
        if self.max_side is not None and self.max_side < self.min_side:
            raise ConfigError(f"max_side ({self.max_side}) is below min_side ({self.min_side})")

    @classmethod
    def from_config(cls, config: FolderDatasetConfig) -> "ResizeRule":
        """Return the rule of a dataset's settings.

        Raises:
            ConfigError: see the class.
        """
        return cls(min_side=config.min_side, max_side=config.max_side, multiple=config.side_multiple)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that an image is resized to, pixels.

        The aspect ratio is kept up to rounding (half to even). If it allows only one of the two limits, ``min_side``
        wins.

        Args:
            width, height: size of the stored image, pixels.
        """
        short, long = min(width, height), max(width, height)
        ratio = max(1.0, self.min_side / short)
        if self.max_side is not None and long / short <= self.max_side / self.min_side:
            ratio = min(ratio, self.max_side / long)
        return (
            round(width * ratio / self.multiple) * self.multiple,
            round(height * ratio / self.multiple) * self.multiple,
        )


@dataclass(frozen=True)
class PreparedImage:
    """Where the pixels of an image are, and its size before and after preparation."""

    source: Path
    """The image as distributed."""
    path: Path
    """The cached file, or the source itself if it needed no resizing."""
    size: tuple[int, int]
    """(width, height) of the file at ``path``, pixels."""
    source_size: tuple[int, int]
    """(width, height) of the image as distributed, pixels."""


def cache_folder(cache_dir: str, *, dataset: str, root: Path, rule: ResizeRule) -> Path:
    """Return the folder for the resized images of one dataset folder and one rule.

    Args:
        cache_dir: folder of all caches.
        dataset: name of the dataset.
        root: its folder.

    Raises:
        ConfigError: if ``cache_dir`` lies inside the dataset's own folder.
    """
    base = check_cache_dir(cache_dir, root)
    key = json.dumps({"root": str(root.resolve()), **dataclasses.asdict(rule)}, sort_keys=True)
    return base / f"{dataset}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def check_cache_dir(cache_dir: str, root: Path) -> Path:
    """Check that the cache is outside of a dataset's folder ``root``.

    Returns:
        The absolute path of ``cache_dir``.

    Raises:
        ConfigError: if it lies inside ``root``.
    """
    base = Path(cache_dir).expanduser().resolve()
    if base.is_relative_to(root.resolve()):
        raise ConfigError(f"cache_dir {base} lies inside the dataset's folder {root}; choose a folder outside it")
    return base


def prepare_images(sources: Sequence[Path], folder: Path, *, rule: ResizeRule, label: str) -> list[PreparedImage]:
    """Resize the images that need it into ``folder``, only those that are missing or out of date.

    Args:
        sources: image files; their names without endings must differ.
        folder: created if a file is written there.
        label: name of the images in the progress bar.

    Returns:
        One item per source.

    Raises:
        ConfigError: if the folder cannot be created.
        DataError: if an image cannot be read or written.
    """
    prepared: list[PreparedImage] = []
    due: list[PreparedImage] = []
    for source in sources:
        with open_pillow(source) as image:
            source_size = image.size
        size = rule.size(*source_size)
        cached = folder / f"{source.stem}.jpg"
        item = PreparedImage(source, source if size == source_size else cached, size, source_size)
        prepared.append(item)
        if size != source_size and not _is_current(cached, image_origin(source, size)):
            due.append(item)
    if due:
        make_folder(folder, "dataset.cache_dir")
        run_in_threads(_resize, due, label=f"resizing {label} once")
    return prepared


def run_in_threads(work: Callable[[Item], None], items: Sequence[Item], *, label: str) -> None:
    """Call ``work`` on every item in a few threads, with a progress bar; the first error cancels what has not begun.

    Threads are enough: Pillow, torchvision and NumPy decode, resize, encode and write without Python's lock.

    Args:
        label: text of the progress bar.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        tasks = [pool.submit(work, item) for item in items]
        for task in progress_bar(as_completed(tasks), total=len(tasks), label=label):
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)


def image_origin(source: Path, size: tuple[int, int]) -> bytes:
    """Describe what a cached file was made from and how large it is; the same for every copy of the source.

    No time stamp: machines that share a cache have copies of the dataset made at different times.

    Args:
        size: (width, height) of the cached file, pixels.
    """
    length = source.stat().st_size
    with source.open("rb") as file:
        checked = zlib.crc32(file.read(_CHECKED_BYTES))
        if source.suffix.lower() in _COMPRESSED:
            file.seek(max(0, length - _CHECKED_BYTES))
        checked = zlib.crc32(file.read(), checked)
    return json.dumps({"source": source.name, "bytes": length, "crc32": checked, "size": size}).encode()


def _is_current(cached: Path, origin: bytes) -> bool:
    """Whether the cached file exists, was made from ``origin``, and is complete."""
    try:
        with open_pillow(cached) as image:
            current = bool(image.info.get("comment") == origin)
        with cached.open("rb") as file:
            file.seek(-len(_END_OF_JPEG), os.SEEK_END)
            return current and file.read() == _END_OF_JPEG
    except (DataError, OSError):  # Missing, or not an image.
        return False


def _resize(image: PreparedImage) -> None:
    """Write the resized image."""
    origin = image_origin(image.source, image.size)  # Before reading: a source changed meanwhile is then out of date.
    # Released code: OpenCV's bicubic, which skips pixels when it shrinks; here: antialiased, because skipped pixels
    # change how heads look.
    resized = read_pillow(image.source).resize(image.size, Image.Resampling.BICUBIC)
    try:
        # JPEG, not PNG, which takes far longer to decode. Full color resolution and quality 95 keep the loss of the
        # second compression below that of the first one.
        with atomic_write(image.path, sync=False) as part:
            resized.save(part, "JPEG", quality=95, subsampling=0, comment=origin)
    except OSError as error:
        width, height = image.size
        raise DataError(
            f"{image.source} could not be resized to {width} x {height} pixels into {image.path}: {error}",
            kind=DataErrorKind.cache,
            file=image.path,
        ) from error
