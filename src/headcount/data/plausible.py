"""Find head positions and image files that are readable but cannot be meant: refuse them, or describe them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from headcount.data.images import image_size
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import image_name
from headcount.errors import DataError
from headcount.files import FileIdentity, file_identity
from headcount.wording import first_names, many

_MAX_SHARE = 1.1
"""Positions that are shares of the image may lie a little outside it."""
_MIN_HEAP = 3
"""Heads in one pixel; two may be a click that was counted twice."""
_MIN_SIDE_FOR_PERCENT = 250
"""Pixels. In smaller images, many true heads lie within the first 100."""
_MANY = 10
"""Heads of one image. Fewer may all lie in a corner of 100 pixels."""


def check_pixels(points: Float[Tensor, "n 2"], image: Path) -> Float[Tensor, "n 2"]:
    """Return the positions of an image, unless they are shares of its size instead of pixels.

    Raises:
        DataError: if there are several heads, and all are within one pixel of the corner and not in whole numbers.
    """
    if len(points) > 1 and _may_be_shares(points):
        raise DataError(
            f"image {image}: all {len(points)} annotated heads lie within 0 and 1, so they are shares of the image "
            "as YOLO and others write them, not pixels; multiply x by its width and y by its height",
            kind=DataErrorKind.annotation,
            file=image,
        )
    return points


def check_size(stored: tuple[int, int], image: Path, annotation: Path, *, upright: bool) -> None:
    """Refuse an annotation that was made on an image of another size, in which its positions would be wrong.

    Args:
        stored: (width, height) of the image according to the annotation, pixels.
        upright: whether the image is turned by its EXIF orientation.

    Raises:
        DataError: if the image has another size; names both.
    """
    try:
        size = image_size(image, upright=upright)
        if stored == size:
            return
        turned = image_size(image, upright=not upright)
    except DataError:  # Reported when the image itself is read.
        return
    what_to_do = "annotate the image that is in the folder, or put back the one that was annotated"
    if stored == turned:
        what_to_do = (
            "the difference is its EXIF orientation; if the positions refer to the pixels "
            f"{'as stored' if upright else 'as turned by it'}, set dataset.exif_orientation={str(not upright).lower()}"
        )
    raise DataError(
        f"image {image} has {size[0]} x {size[1]} pixels, but its annotation in {annotation} was made on "
        f"{stored[0]} x {stored[1]} pixels; {what_to_do}",
        kind=DataErrorKind.annotation,
        file=annotation,
    )


def doubtful_positions(
    names: Sequence[str], heads: Sequence[Float[Tensor, "_ 2"]], sizes: Sequence[tuple[int, int]]
) -> list[str]:
    """Describe positions that are probably not pixels of their image, one line per reason.

    Args:
        names: of the images of a split.
        heads: positions in each image.
        sizes: (width, height) of each image, pixels.
    """
    annotated = [item for item in zip(names, heads, sizes, strict=True) if len(item[1])]
    if not annotated:
        reason = f"none of the {len(names)} images has an annotated head, so the best count is 0; check the annotations"
        return [reason] if names else []
    lines = []
    heaped = [name for name, points, _ in annotated if _is_heaped(points)]
    if heaped:
        lines.append(
            f"{_images(heaped)} at least half of the heads in one pixel or a few: {first_names(heaped)}; check the "
            "positions"
        )
    shares = [name for name, points, _ in annotated if _may_be_shares(points)]
    if len(shares) > 1 or len(shares) == len(annotated):
        lines.append(
            f"{_images(shares)} all heads within 0 and 1: {first_names(shares)}; these may be shares of the image "
            "instead of pixels"
        )
    percent = [(name, len(points)) for name, points, size in annotated if _may_be_percent(points, size)]
    in_all = len(percent) == len(annotated) and sum(number for _, number in percent) >= _MIN_HEAP
    shown = [name for name, number in percent if in_all or number >= _MANY]
    if shown:
        lines.append(
            f"{_images(shown)} all heads within the first 100 pixels of a far larger image: {first_names(shown)}; "
            "these may be percent of the image instead of pixels"
        )
    return lines


def _images(names: Sequence[str]) -> str:
    return f"{many(len(names), 'image')} {'has' if len(names) == 1 else 'have'}"


def _is_heaped(points: Float[Tensor, "n 2"]) -> bool:
    """Whether at least half of the heads share their pixel with several others."""
    _, numbers = points.floor().unique(dim=0, return_counts=True)
    heaped = int(numbers[numbers >= _MIN_HEAP].sum())
    return heaped > 0 and heaped >= len(points) / 2


def _may_be_shares(points: Float[Tensor, "n 2"]) -> bool:
    """Whether all positions are within one pixel of the corner, and not in whole numbers."""
    return bool((points.abs() <= _MAX_SHARE).all()) and bool((points != points.round()).any())


def _may_be_percent(points: Float[Tensor, "n 2"], size: tuple[int, int]) -> bool:
    """Whether the heads fill a corner of 100 pixels, and no more, of a far larger image."""
    fill = bool((points >= -1).all()) and 25 < float(points.max()) <= 101
    return fill and min(size) >= _MIN_SIDE_FOR_PERCENT


def shared_files(files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Find files that several splits have in common, by whatever path, symbolic or hard link.

    Args:
        files: image files by split; missing ones are ignored.

    Returns:
        The places of each such file, such as ``train/a = val/b``.
    """
    places: dict[FileIdentity, list[tuple[str, str]]] = {}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        if os.path.exists(path):  # Path.exists raises for a name that is too long. Both are reported when it is read.
            places.setdefault(file_identity(path), []).append((split, image_name(path)))
    return [
        " = ".join(f"{split}/{name}" for split, name in group)
        for group in places.values()
        if len({split for split, _ in group}) > 1
    ]
