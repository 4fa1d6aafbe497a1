"""Resize a dataset's images once into a cache, so that no epoch does it again.

The rule is the paper's pre-processing: short side at least ``min_side``, long side at most
``max_side``, both multiples of 32. Images that fit it already are used where they are. Each cached
file says in its JPEG comment what it was made from, and appears under its name only when complete:
an interrupted run goes on where it stopped, and a changed source is made anew.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from headcount.config import ConfigError
from headcount.data.readers import open_pillow, read_pillow
from headcount.files import atomic_write, make_folder

# So many bytes at either end, and the length, tell one version of a compressed image from another; others are read
# whole.
_CHECKED = 16384
_COMPRESSED = (".jpg", ".jpeg", ".png", ".webp")
_END_OF_JPEG = b"\xff\xd9"


@dataclass(frozen=True)
class PreparedImage:
    """Where an image's pixels are, and its size before and after preparation."""

    source: Path
    """The image as distributed."""
    path: Path
    """The cached file, or the source itself where it needed no resizing."""
    size: tuple[int, int]
    """(width, height) of the file at ``path``, pixels."""
    source_size: tuple[int, int]
    """(width, height) of the image as distributed, pixels."""


def prepared_size(width: int, height: int, *, min_side: int, max_side: int | None, multiple: int) -> tuple[int, int]:
    """The size an image is resized to once, before training and evaluation.

    The aspect ratio is kept up to rounding (half to even). Where it allows only one of the two
    limits, ``min_side`` wins.

    Args:
        width, height: size as distributed, pixels.
        min_side, max_side: limits of the short and the long side, multiples of ``multiple``;
            None for no upper limit.

    Returns:
        (width, height).

    Raises:
        ConfigError: if a limit is no multiple of ``multiple``, or they contradict each other.
    """
    for name, limit in (("min_side", min_side), ("max_side", max_side)):
        if limit is not None and (limit < 1 or limit % multiple):
            raise ConfigError(f"{name} is {limit}, but must be a positive multiple of side_multiple ({multiple})")
    if max_side is not None and max_side < min_side:
        raise ConfigError(f"max_side ({max_side}) is below min_side ({min_side})")
    short, long = min(width, height), max(width, height)
    ratio = max(1.0, min_side / short)
    if max_side is not None and long / short <= max_side / min_side:
        ratio = min(ratio, max_side / long)
    return round(width * ratio / multiple) * multiple, round(height * ratio / multiple) * multiple


def cache_folder(cache_dir: str, *, dataset: str, root: Path, settings: dict[str, int | None]) -> Path:
    """The folder for the resized images of one dataset folder at one setting.

    Raises:
        ConfigError: if it would lie inside the dataset's own folder.
    """
    base = Path(cache_dir).expanduser().resolve()
    if base.is_relative_to(root.resolve()):
        raise ConfigError(f"cache_dir {base} lies inside the dataset's folder {root}; choose a folder outside it")
    key = json.dumps({"root": str(root.resolve()), **settings}, sort_keys=True)
    return base / f"{dataset}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def prepare_images(
    sources: Sequence[Path], folder: Path, *, min_side: int, max_side: int | None, multiple: int, label: str
) -> list[PreparedImage]:
    """Resize the images that need it into ``folder``; only those that are missing or out of date.

    Args:
        sources: image files; their names without endings must differ.
        folder: made if it does not exist and something goes there.
        label: what the progress bar calls the work.
    """
    prepared: list[PreparedImage] = []
    due: list[PreparedImage] = []
    for source in sources:
        with open_pillow(source) as image:
            source_size = image.size
        size = prepared_size(*source_size, min_side=min_side, max_side=max_side, multiple=multiple)
        cached = folder / f"{source.stem}.jpg"
        image_ = PreparedImage(source, source if size == source_size else cached, size, source_size)
        prepared.append(image_)
        if size != source_size and not _is_current(cached, image_origin(source, size)):
            due.append(image_)
    if due:
        make_folder(folder, "dataset.cache_dir")
        # Threads suffice: Pillow decodes, resizes and encodes without Python's lock.
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            tasks = [pool.submit(_resize, image) for image in due]
            for task in tqdm(as_completed(tasks), total=len(tasks), desc=f"resizing {label} once", unit="image"):
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return prepared


def image_origin(source: Path, size: tuple[int, int]) -> bytes:
    """What a cached file was made from, and how large; the same for every copy of the source.

    No time: machines that share a cache have copies of the dataset made at different times.
    """
    length = source.stat().st_size
    with source.open("rb") as file:
        checked = zlib.crc32(file.read(_CHECKED))
        if source.suffix.lower() in _COMPRESSED:
            file.seek(max(0, length - _CHECKED))
        checked = zlib.crc32(file.read(), checked)
    return json.dumps({"source": source.name, "bytes": length, "crc32": checked, "size": size}).encode()


def _is_current(cached: Path, origin: bytes) -> bool:
    """Whether the cached file exists, was made from ``origin``, and has its end."""
    try:
        with open_pillow(cached) as image:
            current = bool(image.info.get("comment") == origin)
        with cached.open("rb") as file:
            file.seek(-len(_END_OF_JPEG), os.SEEK_END)
            return current and file.read() == _END_OF_JPEG
    except (ConfigError, OSError):  # Missing, or no image.
        return False


def _resize(image: PreparedImage) -> None:
    """Write the resized image."""
    origin = image_origin(image.source, image.size)  # Before reading: a source changed meanwhile is then out of date.
    # Released code: OpenCV's bicubic, which skips pixels when it shrinks; here: antialiased.
    resized = read_pillow(image.source).resize(image.size, Image.Resampling.BICUBIC)
    try:
        # JPEG, not PNG, which takes far longer to decode. Full color resolution and quality 95 keep
        # the second compression below the first one's noise.
        with atomic_write(image.path) as part:
            resized.save(part, "JPEG", quality=95, subsampling=0, comment=origin)
    except OSError as error:
        width, height = image.size
        raise ConfigError(
            f"{image.source} could not be resized to {width} x {height} pixels into {image.path}: {error}"
        ) from error
