"""Find the image and annotation files of a folder, and pair them by name.

What the folder of a particular dataset looks like is known to ``data.layouts`` (published datasets) and ``data.custom``
(a user's own images). Nothing here opens an image or an annotation.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from jaxtyping import Float
from torch import Tensor

from headcount.data.kinds import DataErrorKind
from headcount.data.masks import Mask
from headcount.errors import DataError
from headcount.files import name_text

ReadHeads = Callable[[Path], Float[Tensor, "n 2"]]
"""Reads the head positions of an annotation file, in pixels of the image before resizing."""
LoadHeads = Callable[[], Float[Tensor, "n 2"]]
"""The same for one particular image."""
LoadMask = Callable[[tuple[int, int]], Mask]
"""Reads the mask of one particular image, of this (width, height) in pixels before resizing."""

SPLITS = ("train", "val", "test")
_ESCAPED_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")
# In order of preference, for datasets that hold an image several times, such as copies in PNG.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Listed:
    """An image that belongs to a split, whether or not its file exists."""

    image: Path
    """The image file; if it is missing, the path where it was expected."""
    heads: LoadHeads
    """Reads the head positions, in pixels before resizing; raises DataError if image or annotation is missing."""
    mask: LoadMask | None = None
    """Reads the part of the image in which heads count; None if they count everywhere."""

    @property
    def name(self) -> str:
        """The file's name without its ending as text, which identifies the image in all outputs."""
        return image_name(self.image)


def pair_files(
    names: Iterable[str],
    images: Mapping[str, Path],
    annotations: Mapping[str, Path],
    read: ReadHeads,
    *,
    images_in: Path,
    annotations_in: Path,
    annotation: str,
    named_by: str = "",
) -> list[Listed]:
    """Pair images and annotations of the same name; a missing partner is reported when the heads are read.

    Args:
        names: the images that belong to the split.
        images, annotations: the files that exist, by image name.
        read: reads an annotation file.
        images_in, annotations_in: folders where files are expected, for error messages.
        annotation: pattern of an annotation's file name, with ``{}`` for the image name.
        named_by: where an image is listed that has neither file, for error messages.

    Returns:
        One item per name, in natural order.
    """
    listed = []
    for name in sorted(names, key=natural_key):
        image, heads = images.get(name), annotations.get(name)
        if image is None:
            image = images_in / f"{name}.jpg"
            what = f"annotation {heads}" if heads else f"{name}, {named_by},"
            listed.append(
                Listed(image, report_when_read(f"{what} has no image {image}", DataErrorKind.missing_image, image))
            )
        elif heads is None:
            expected = annotations_in / annotation.format(name)
            message = f"image {image} has no annotation {expected}"
            listed.append(Listed(image, report_when_read(message, DataErrorKind.missing_annotation, image)))
        else:
            listed.append(Listed(image, partial(read, heads)))
    return listed


def report_when_read(message: str, kind: DataErrorKind, image: Path) -> LoadHeads:
    """Raise DataError only when the heads are read, so that all faults of a split are reported together."""

    def fail() -> NoReturn:
        raise DataError(message, kind=kind, file=image)

    return fail


def loaded_heads(heads: Float[Tensor, "n 2"]) -> LoadHeads:
    """Return positions that are already in memory, from a file about many images."""
    return lambda: heads


# ---------------------------------------------------------------------------------------------- names


def sort_by_hash(names: Iterable[str], *, salt: str = "") -> list[str]:
    """Sort names in a pseudo-random order that depends only on each name and ``salt``, not on the other names."""
    return sorted(names, key=lambda name: name_hash(name, salt=salt))


def name_hash(name: str, *, salt: str) -> bytes:
    """Hash a name as :func:`image_name` returns it: 32 bytes, the same on every machine."""
    return hashlib.sha256(f"{salt}{name}".encode()).digest()


def image_name(file: Path) -> str:
    """Return the name that an image and its annotation have in common: without ending, as :func:`name_text`."""
    return name_text(file.stem)


def plain_name(name: str) -> str:
    """Remove folder and image ending from a name in a list: ``images/a.jpg`` and ``a`` are the same image.

    Returns:
        The name in the form of :func:`image_name`.
    """
    # As our tables write a byte that is not UTF-8; the backslash does not end a folder.
    name = _ESCAPED_BYTE.sub(lambda byte: chr(int(byte[1], 16)), name)
    file = re.split(r"[/\\]", name)[-1]
    return name_text(file[: file.rindex(".")] if file.lower().endswith(IMAGE_ENDINGS) else file)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that orders IMG_2 before IMG_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


# ------------------------------------------------------------------------------------ files and folders


def find_images(*folders: Path, unique: bool = False) -> dict[str, Path]:
    """Find image files, by :func:`image_name`; endings may have any case.

    Args:
        unique: refuse a name that belongs to several files; otherwise the first ending of ``IMAGE_ENDINGS`` wins.

    Raises:
        DataError: if ``unique`` and two files have the same name.
    """
    found: dict[str, Path] = {}
    files = [path for folder in folders for path in list_visible(folder) if path.suffix.lower() in IMAGE_ENDINGS]
    for path in sorted(files, key=lambda p: IMAGE_ENDINGS.index(p.suffix.lower())):
        name = image_name(path)
        if unique and name in found:
            raise _same_name(found[name], path, "an annotation could belong to either")
        found.setdefault(name, path)
    return found


def find_images_below(folder: Path) -> list[Path]:
    """Find image files in all subfolders, linked ones too; hidden files and folders are left out."""
    found, visited = [], set()
    for current, folders, files in os.walk(folder, followlinks=True):
        here = Path(current).resolve()
        if here in visited:  # A link to a folder above it.
            folders.clear()
            continue
        visited.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if current != str(folder):
            names = sorted(name for name in files if not name.startswith("."))
            found += [Path(current, name) for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
    return found


def find_files(folder: Path | None, ending: str) -> dict[str, Path]:
    """Find files with an ending (lower case, such as ``.mat``), by :func:`image_name`; empty if ``folder`` is None.

    Raises:
        DataError: if two files have the same name.
    """
    found: dict[str, Path] = {}
    for path in list_visible(folder) if folder is not None else ():
        if path.suffix.lower() == ending and found.setdefault(image_name(path), path) != path:
            raise _same_name(found[image_name(path)], path, "each could be that of an image")
    return found


def _same_name(one: Path, other: Path, why: str) -> DataError:
    message = f"{spelled_out([one, other])} have the same name; {why}: rename or remove one"
    return DataError(message, kind=DataErrorKind.ambiguous, file=other)


def spelled_out(files: Sequence[Path]) -> str:
    """List files in a message; names that look the same, such as an accent in two encodings, are spelled in ASCII."""
    alike = len({name_text(file.name) for file in files}) < len({file.name for file in files})
    return " and ".join(f"{file} ({file.name!a})" if alike else str(file) for file in files)


def find_folder(base: Path, *names: str) -> Path | None:
    """Find the first existing folder of several names (lower case), in any case; None if there is none."""
    return next(iter(find_folders(base, *names)), None)


def find_folders(base: Path, *names: str) -> list[Path]:
    """Find all existing folders of several names (lower case), in any case and in the order of ``names``."""
    found = {path.name.lower(): path for path in list_visible(base) if path.name.lower() in names and path.is_dir()}
    return [found[name] for name in names if name in found]


def list_visible(folder: Path) -> list[Path]:
    """List a folder without hidden files: archives made on a Mac add one for each file."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []
