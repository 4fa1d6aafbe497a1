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

from headcount.config import ConfigError, DatasetConfig, FolderDatasetConfig, MixedConfig
from headcount.data.images import image_size, open_pillow, read_image
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.files import atomic_write, make_folder, name_text, short_name
from headcount.progress import progress_bar
from headcount.wording import first_names

# This many bytes at both ends, and the length, identify the version of a compressed image; other files are read whole.
_CHECKED_BYTES = 16384
_COMPRESSED = (".jpg", ".jpeg", ".png", ".webp")
_END_OF_JPEG = b"\xff\xd9"
MAX_SIDE = 65_500  # libjpeg's limit, pixels

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

    @classmethod
    def for_pictures(cls, dataset: DatasetConfig) -> "ResizeRule | None":
        """The rule for the pictures that a counter counts; None if it does not resize them.

        Args:
            dataset: what the counter was trained on; of a mixed one, the first part that resizes its images decides.
        """
        parts = list(dataset.datasets.values()) if isinstance(dataset, MixedConfig) else [dataset]
        return next((cls.from_config(part) for part in parts if isinstance(part, FolderDatasetConfig)), None)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that an image is resized to, pixels.

        The aspect ratio is kept up to rounding (half to even). If it allows only one of the two limits, ``min_side``
        wins.

        Args:
            width, height: size of the image before resizing, pixels.
        """
        short, long = min(width, height), max(width, height)
        ratio = max(1.0, self.min_side / short)
        if self.max_side is not None and long / short <= self.max_side / self.min_side:
            ratio = min(ratio, self.max_side / long)
        return (
            round(width * ratio / self.multiple) * self.multiple,
            round(height * ratio / self.multiple) * self.multiple,
        )


def resize_note(dataset: DatasetConfig) -> str:
    """What to know of the photos of a counter that was trained on this dataset; empty unless its parts' rules differ.

    Photos have one rule: that of the first part that is read from files.
    """
    if not isinstance(dataset, MixedConfig):
        return ""
    parts = {name: part for name, part in dataset.datasets.items() if isinstance(part, FolderDatasetConfig)}
    rules = {name: ResizeRule.from_config(part) for name, part in parts.items()}
    first = next(iter(rules), None)
    others = [name for name in rules if first is not None and rules[name] != rules[first]]
    if first is None or not others:
        return ""
    return (
        f"photos are resized by the rule of {first} (min_side={rules[first].min_side}, max_side="
        f"{rules[first].max_side}); this counter's images of {first_names(others)} were resized by other rules"
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
    """(width, height) of the image before resizing, pixels; if ``upright``, after turning it."""
    upright: bool = False
    """Whether the source is turned by its EXIF orientation."""


def cache_folder(cache_dir: str, *, dataset: str, root: Path, rule: ResizeRule, upright: bool = False) -> Path:
    """Return the folder for the resized images of one dataset folder, one rule and one way to read orientations.

    Args:
        cache_dir: folder of all caches.
        dataset: name of the dataset.
        root: its folder.
        upright: whether images are turned by their EXIF orientation.

    Raises:
        ConfigError: if ``cache_dir`` lies inside the dataset's own folder.
    """
    base = check_cache_dir(cache_dir, root)
    facts = {"root": str(root.resolve()), **dataclasses.asdict(rule)}
    key = json.dumps({**facts, "upright": True} if upright else facts, sort_keys=True)
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


def plan_image(source: Path, folder: Path, *, rule: ResizeRule, upright: bool = False) -> PreparedImage:
    """Find out from an image's header what it is resized to, and where; nothing is decoded or written.

    Args:
        folder: of the resized images.
        upright: turn the image by its EXIF orientation.

    Raises:
        DataError: if the image is missing, its header cannot be read, or it cannot be resized by the rule.
    """
    source_size = image_size(source, upright=upright)
    size = resized_size(source, source_size, rule=rule)
    path = source if size == source_size else folder / short_name(source.stem, ".jpg")
    return PreparedImage(source, path, size, source_size, upright)


def resized_size(source: Path, size: tuple[int, int], *, rule: ResizeRule) -> tuple[int, int]:
    """Return the (width, height) that an image of this size is resized to, pixels.

    Raises:
        DataError: if it is too narrow: enlarged, it would be longer than the cache can store.
    """
    new = rule.size(*size)
    if new != size and max(new) > MAX_SIDE:
        raise DataError(
            f"{source} is too narrow: its {size[0]} x {size[1]} pixels would become {new[0]} x {new[1]}, and no side "
            f"may have more than {MAX_SIDE}; crop it, or lower dataset.min_side={rule.min_side}",
            kind=DataErrorKind.image,
            file=source,
        )
    return new


def prepare_images(images: Sequence[PreparedImage], *, label: str) -> dict[Path, DataError]:
    """Resize the images that need it, only those that are missing or out of date, and try to decode the others.

    Args:
        images: from :func:`plan_image`; the names of their sources without endings must differ.
        label: name of the images in the progress bar.

    Returns:
        The errors of the images that cannot be decoded, by source.

    Raises:
        ConfigError: if the folder cannot be created.
        DataError: if a resized image cannot be written.
    """
    bad: dict[Path, DataError] = {}
    unchanged = [image for image in images if image.path == image.source]
    due = [
        image
        for image in images
        if image.path != image.source and not _is_current(image.path, image_origin(image.source, image.size))
    ]

    def prepare(image: PreparedImage) -> None:
        try:
            if image.path == image.source:
                read_image(image.source, upright=image.upright)
            else:
                resize_image(image)
        except DataError as error:
            if error.kind == DataErrorKind.cache:
                raise
            bad[image.source] = error

    for folder in {image.path.parent for image in due}:
        make_folder(folder, "dataset.cache_dir")
    run_in_threads(prepare, due, label=f"resizing {label} once")
    run_in_threads(prepare, unchanged, label=f"checking {label}", silent_images=1000)
    return bad


def run_in_threads(work: Callable[[Item], None], items: Sequence[Item], *, label: str, silent_images: int = 0) -> None:
    """Call ``work`` on every item in a few threads, with a progress bar; the first error cancels what has not begun.

    Threads are enough: Pillow, simplejpeg and NumPy decode, resize, encode and write without Python's lock.

    Args:
        label: text of the progress bar.
        silent_images: no progress bar up to this number of items.
    """
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        tasks = [pool.submit(work, item) for item in items]
        silent = len(tasks) <= silent_images
        for task in progress_bar(as_completed(tasks), total=len(tasks), label=label, disable=silent):
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
    return json.dumps({"source": name_text(source.name), "bytes": length, "crc32": checked, "size": size}).encode()


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


def resize_image(image: PreparedImage) -> None:
    """Write the resized image into the cache.

    Raises:
        DataError: if the source cannot be decoded, or the file cannot be written.
    """
    origin = image_origin(image.source, image.size)  # Before reading: a source changed meanwhile is then out of date.
    pixels = read_image(image.source, upright=image.upright)
    # Released code: OpenCV's bicubic, which skips pixels when it shrinks; here: antialiased, because skipped pixels
    # change how heads look.
    resized = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(image.size, Image.Resampling.BICUBIC)
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
