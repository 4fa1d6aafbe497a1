"""Find and read the masks of a dataset: one for all images, one file per image, or a table with polygons."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
from jaxtyping import Bool
from shapely.geometry import box

from headcount.config import ConfigError, CustomConfig, FolderDatasetConfig, PointsFormat
from headcount.data.annotations import NAME_KEYS
from headcount.data.images import open_pillow
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import (
    IMAGE_ENDINGS,
    LoadMask,
    find_folder,
    image_name,
    list_visible,
    plain_name,
    spelled_out,
)
from headcount.data.locate import resolve_below
from headcount.data.masks import Mask, PixelMask, union
from headcount.data.matfile import load_mat
from headcount.data.region_files import read_regions
from headcount.data.regions import Region, region_from_text
from headcount.data.rows import Row, read_rows
from headcount.errors import DataError
from headcount.wording import cut, one_line

MASK_FOLDERS = ("masks", "mask")
"""Folders beside a custom dataset's images that are searched for masks, if ``dataset.mask`` is not set."""
COLUMN = "mask"
"""Column of a table with the polygon of each image."""
_POLYGON_ENDINGS = (".json", ".geojson")
_ENDINGS = (*IMAGE_ENDINGS, ".mat", *_POLYGON_ENDINGS)
# What may follow an image's name in that of its mask; the last one is that of TRANCOS.
_SUFFIXES = ("", "_mask", "-mask", "_roi", "mask")
_MAT_NAMES = ("mask", "BW", "roi")
_NO_MASKS = "set dataset.mask=none to count everywhere"

Content: TypeAlias = PixelMask | Sequence[Region]
"""What a file says, before the size of the image is known."""
MaskOf = Callable[[Path], LoadMask]
"""Maps an image file to the function that reads its mask."""


def find_masks(config: FolderDatasetConfig, root: Path, split: str, own: Mapping[str, str]) -> MaskOf | None:
    """Find the masks of a dataset.

    Args:
        root: the dataset's folder, or that of this split.
        split: a split of the dataset itself.
        own: file of each mask with which the dataset is distributed, by name.

    Returns:
        None if heads count everywhere.

    Raises:
        ConfigError: if ``dataset.mask`` names a mask of another dataset.
        DataError: if what ``dataset.mask`` names does not exist, a file about all images cannot be used, or masks are
            found in two places.
    """
    if config.mask == "none":
        return None
    if config.mask is None:
        return _masks_beside(config, root, split) if isinstance(config, CustomConfig) else None
    if config.mask in own:
        return _same_for_all(root / own[config.mask])
    if config.mask == "roi":
        raise ConfigError(
            f"dataset.mask=roi: {config.name} is not distributed with a mask; give a file or a folder of masks"
        )
    folder = mask_folder(config, root, split)
    if folder is not None:
        return _in_folder(folder)
    path = _named(config.mask, config, root)
    if path.suffix.lower() in (".csv", ".txt"):
        return _in_table(path)
    return _same_for_all(path)


def mask_folder(config: FolderDatasetConfig, root: Path, split: str) -> Path | None:
    """Return the folder with a file for each image: the one that ``dataset.mask`` names, or that of a custom dataset.

    Args:
        root, split: as for :func:`find_masks`.
    """
    if config.mask == "none":
        return None
    if config.mask is not None:
        path = _named(config.mask, config, root)
        # As for annotations, three folders of images may have three folders of masks.
        of_splits = isinstance(config, CustomConfig) and config.train is not None
        return ((of_splits and find_folder(path, split)) or path) if path.is_dir() else None
    if not isinstance(config, CustomConfig):
        return None
    bases = [root, root.parent] if root.name.lower() == "images" else [root]
    found = (find_folder(base, *MASK_FOLDERS) for base in bases)
    return next((folder for folder in found if folder is not None), None)


def _named(mask: str, config: FolderDatasetConfig, root: Path) -> Path:
    """Return the path of ``dataset.mask``: below the dataset's folder, or else as it is."""
    return resolve_below(mask, config.root if isinstance(config, CustomConfig) else str(root))


def read_mask(path: Path) -> Content:
    """Read a mask from an image, a .mat file or polygons; what it is follows from the file's ending.

    Raises:
        DataError: if the file is missing, of another kind or damaged, not binary, or nothing is inside.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise _invalid(path, f"mask {path} does not exist")
    if ending in _POLYGON_ENDINGS:
        return read_regions(path)
    if ending == ".mat":
        inside = _read_mat(path)
    elif ending in IMAGE_ENDINGS:
        inside = _read_pixels(path)
    else:
        raise _invalid(path, f"mask {path}: the files that are read end in {', '.join(_ENDINGS)}")
    if not inside.any():
        raise _invalid(path, f"mask {path} is empty: all of its pixels are 0, which is outside")
    return PixelMask.pack(inside)


def fit(content: Content, size: tuple[int, int], *, image: Path, file: Path) -> Mask:
    """Make the mask of one image.

    Args:
        size: (width, height) of the image before resizing, pixels; upright if the dataset's images are.
        file: where the mask comes from, for error messages.

    Raises:
        DataError: if it is that of an image of another size, or nothing of the image is inside.
    """
    if isinstance(content, PixelMask):
        if content.size != size:
            raise _invalid(
                file,
                f"image {image} has {size[0]} x {size[1]} pixels, but its mask {file} has {content.size[0]} x "
                f"{content.size[1]}; a mask has the size of its image",
            )
        return content
    try:
        mask = union([region.placed(*size) for region in content])
    except ConfigError as error:
        raise _invalid(file, f"image {image}: its mask in {file} cannot be used: {error}") from error
    if not mask.shape.intersection(box(0, 0, *size)).area:
        raise _invalid(file, f"image {image}: its mask in {file} is empty: no part of it lies in the image")
    return mask


@dataclass(frozen=True)
class _Fitted:
    """A mask of many images, made once for each size of image."""

    content: Content
    file: Path
    made: dict[tuple[int, int], Mask] = field(default_factory=dict)

    def load(self, image: Path, size: tuple[int, int]) -> Mask:
        if size not in self.made:
            self.made[size] = fit(self.content, size, image=image, file=self.file)
        return self.made[size]


def _same_for_all(path: Path) -> MaskOf:
    fitted = _Fitted(read_mask(path), path)
    return lambda image: partial(fitted.load, image)


def _masks_beside(config: CustomConfig, root: Path, split: str) -> MaskOf | None:
    """Return the masks that a custom dataset has without a setting.

    Raises:
        DataError: if there are a folder and a column.
    """
    folder = mask_folder(config, root, split)
    points = resolve_below(config.points, config.root) if config.points is not None else None
    is_csv = config.points_format in (PointsFormat.auto, PointsFormat.csv)
    if points is None or not is_csv or points.suffix.lower() not in (".csv", ".txt") or not _has_column(points):
        return _in_folder(folder) if folder is not None else None
    if folder is not None:
        raise DataError(
            f"{folder} holds masks, and so does the column {COLUMN} of {points}; choose with dataset.mask={folder} or "
            f"dataset.mask={points}, or {_NO_MASKS}",
            kind=DataErrorKind.ambiguous,
            file=folder,
        )
    return _in_table(points)


def _in_folder(folder: Path) -> MaskOf:
    files: dict[str, list[Path]] = {}
    for path in list_visible(folder):
        if path.suffix.lower() in _ENDINGS:
            files.setdefault(image_name(path), []).append(path)

    def mask_of(image: Path) -> LoadMask:
        name = image_name(image)
        found = [path for suffix in _SUFFIXES for path in files.get(name + suffix, [])]
        if len(found) > 1:
            message = f"image {image} has {len(found)} masks, {spelled_out(found)}; keep one"
            return _reported(message, DataErrorKind.mask, image)
        if not found:
            message = f"image {image} has no mask {name}.png (or .mat, .json) in {folder}; add one, or {_NO_MASKS}"
            return _reported(message, DataErrorKind.missing_mask, image)
        return partial(_read_and_fit, found[0], image)

    return mask_of


def _read_and_fit(file: Path, image: Path, size: tuple[int, int]) -> Mask:
    return fit(read_mask(file), size, image=image, file=file)


def _reported(message: str, kind: DataErrorKind, image: Path) -> LoadMask:
    """Raise DataError only when the mask is read, so that all faults of a split are reported together."""

    def fail(size: tuple[int, int]) -> NoReturn:
        raise DataError(message, kind=kind, file=image)

    return fail


# ---------------------------------------------------------------------------------------------- tables


def _in_table(path: Path) -> MaskOf:
    """Read the polygon of each image from a table with the columns image and mask.

    Raises:
        DataError: if it has other columns, a polygon cannot be read, or an image has two.
    """
    header, *rows = _rows(path)
    names = [name.lower() for name in header.fields]
    keys = [key for key in NAME_KEYS if key in names]
    if COLUMN not in names or not keys:
        raise _invalid(
            path,
            f"{path}, line {header.line}: the columns are {header.text[:80]!r}, expected image and {COLUMN}; name "
            "these in the first line",
        )
    texts: dict[str, str] = {}
    regions: dict[str, _Fitted] = {}
    for row in rows:
        fields = dict(zip(names, row.fields, strict=False))
        name, text = plain_name(fields.get(keys[0], "")), fields.get(COLUMN, "")
        if not text:
            continue
        if texts.setdefault(name, text) != text:
            raise _invalid(
                path,
                f"{path}, line {row.line}: {cut(name)} has another mask than before; write it once, or give several "
                "polygons in a file of LabelMe or GeoJSON",
            )
        if name not in regions:
            try:
                regions[name] = _Fitted([region_from_text(COLUMN, text)], path)
            except ConfigError as error:
                raise _invalid(path, f"{path}, line {row.line}, mask of {cut(name)}: {error}") from error

    def mask_of(image: Path) -> LoadMask:
        if image_name(image) in regions:
            return partial(regions[image_name(image)].load, image)
        message = f"image {image} has no mask in the column {COLUMN} of {path}; add one, or {_NO_MASKS}"
        return _reported(message, DataErrorKind.missing_mask, image)

    return mask_of


def _has_column(path: Path) -> bool:
    """Whether a table of head positions has a column with masks; a file that cannot be read is reported as such."""
    try:
        return COLUMN in [name.lower() for name in _rows(path)[0].fields]
    except DataError:
        return False


def _rows(path: Path) -> list[Row]:
    rows = read_rows(path)
    if not rows:
        raise _invalid(path, f"{path} is empty")
    return rows


# ---------------------------------------------------------------------------------------------- pixels


def _read_pixels(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read an image of two values, of which one is 0."""
    try:
        with open_pillow(path) as image:
            # Numbers as they are: 1 of 16 bits must not become 0. Colors count unless all channels are 0.
            plain = image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L")
            values = np.asarray(image if plain else image.convert("RGB"))
    except DataError as error:
        raise _invalid(path, f"mask {error}") from error
    return _binary(values if values.ndim == 2 else values.astype(np.uint32) @ (1 << 16, 1 << 8, 1), path)


def _read_mat(path: Path) -> Bool[np.ndarray, "height width"]:
    """Read a matrix, by itself or in a struct ``roi`` with the field ``mask``, as in Mall and UCSD."""
    try:
        content = load_mat(path, *_MAT_NAMES)
    except Exception as error:  # scipy raises half a dozen types of errors on damaged files.
        raise _invalid(path, f"mask {path} is not a readable .mat file: {one_line(error)}") from error
    found = [content[name] for name in _MAT_NAMES if name in content]
    values = found[0] if len(found) == 1 else None
    while isinstance(values, np.ndarray) and values.size == 1 and (values.dtype.names or values.dtype == object):
        values = values[COLUMN] if COLUMN in (values.dtype.names or ()) else values.item()
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "biuf":
        raise _invalid(
            path,
            f"mask {path} holds {', '.join(map(cut, content)) or 'nothing'}; expected one matrix called "
            f"{' or '.join(_MAT_NAMES)}, or a struct roi with the field {COLUMN}",
        )
    return _binary(values, path)


def _binary(values: np.ndarray, path: Path) -> Bool[np.ndarray, "height width"]:
    different = np.unique(values)
    if different.size - (0 in different) > 1:
        raise _invalid(
            path,
            f"mask {path} is not binary: it has {different.size} different values; a mask has 0 outside and one other "
            "value inside, without soft borders, and is not saved as JPEG",
        )
    return values != 0


def _invalid(path: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.mask, file=path)
