"""Read files as they are distributed: one function for images, one for each annotation format.

Annotation readers take a path and return (n, 2) float32 positions (x, y) in pixels of the stored
image, for one image or, where a file is about many, for each of them. What a dataset's folder looks
like is the business of ``data.layouts``.
"""

import csv
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from headcount.config import ConfigError, PointsFormat

# Shapes of arrays that say an image has no people: a list of nothing, MATLAB's [], no rows of x and y.
_NOBODY = ((0,), (0, 0), (0, 2))
# Names that people give to the column of an image's name, and to the list of heads in a JSON object.
NAME_KEYS = ("image", "name", "file", "filename")
POINTS_KEYS = ("points", "annotations", "human_points", "annPoints", "locations")


def read_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """An image file as RGB bytes.

    Gray images are repeated; palettes, CMYK and 16 bits are converted; transparency is dropped.
    An EXIF orientation is ignored: annotations are given in pixels as stored.

    Returns:
        Channels first in shape, last in memory: what decoding yields and resizing is fastest on.

    Raises:
        ConfigError: if the file is missing or no image.
    """
    data = np.fromfile(path, dtype=np.uint8) if path.is_file() else np.zeros(0, dtype=np.uint8)
    image = _decode_jpeg(torch.from_numpy(data)) if data[:2].tolist() == [0xFF, 0xD8] else None
    if image is not None and len(image) == 3:
        return image
    if image is not None and len(image) == 1:
        return image[0].unsqueeze(-1).repeat(1, 1, 3).permute(2, 0, 1)
    # Not a JPEG, a damaged one, or CMYK, which Pillow converts better.
    return torch.from_numpy(np.array(read_pillow(path))).permute(2, 0, 1)


def _decode_jpeg(data: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, "channels height width"] | None:
    """A JPEG's pixels, the same as Pillow's in three quarters of the time; None where this cannot be done."""
    with warnings.catch_warnings():
        # torchvision announces that its decoders will go; Pillow then takes their place.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from torchvision.io import decode_jpeg

            return decode_jpeg(data)
        except (ImportError, RuntimeError):
            return None


def read_pillow(path: Path, *, upright: bool = False) -> Image.Image:
    """An image file of any mode as a Pillow image in RGB; see :func:`read_image`.

    Of an animation, the first frame.

    Args:
        upright: turn it as its EXIF orientation says.

    Raises:
        ConfigError: if the file is missing, damaged or no image.
        MemoryError: if it does not fit into memory.
    """
    try:
        with open_pillow(path) as file:
            return as_rgb(file, upright=upright)
    except ConfigError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files.
        raise ConfigError(f"{path} cannot be read as an image: {str(error) or type(error).__name__}") from error


def as_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """A Pillow image of any mode in RGB; see :func:`read_image`.

    Args:
        upright: turn it as its EXIF orientation says.

    Raises:
        ValueError: if its pixels are floating-point numbers, whose range nobody knows.
    """
    image.load()  # before asking for the orientation: a TIFF is turned by Pillow itself, a PNG may say it at its end
    turn = _TURNS.get(_orientation(image)) if upright else None
    if turn is not None:
        image = image.transpose(turn)
        for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # it stands upright now
            image.info.pop(key, None)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut them at 255.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    # Pillow warns where a palette with transparency becomes RGB at once.
    image = image.convert("RGBA") if "transparency" in image.info else image
    return image if image.mode == "RGB" else image.convert("RGB")  # without a copy: it may have 100 million pixels


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """What EXIF says of how to turn a loaded image; 1, as it is, where its EXIF is damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF is no reason to lose a picture; it raises whatever it likes.
        return 1


@contextmanager
def open_pillow(path: Path) -> Iterator[Image.Image]:
    """An image file, of which Pillow has read the header; every error of reading names it."""
    try:
        with warnings.catch_warnings():
            # Pictures of 90 million pixels are one's own; twice as many are refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged EXIF
            image = Image.open(path)
        with image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error


def check_image(path: Path) -> None:
    """Find out whether an image is there and whole, without decoding it where its format allows that.

    Damage amid a JPEG is not seen, nor does it keep one from being decoded.

    Raises:
        ConfigError: if it cannot be read.
    """
    with open_pillow(path) as image:
        if image.format == "PNG":
            image.verify()  # its checksums
        elif image.format != "JPEG" or not _ends_as_jpeg(path):
            image.load()


def _ends_as_jpeg(path: Path) -> bool:
    """Whether the last two bytes are those of a complete JPEG; some have others after them."""
    with path.open("rb") as file:
        file.seek(-2, 2)
        return file.read() == b"\xff\xd9"


def read_shanghaitech_mat(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of a ShanghaiTech ``GT_IMG_<k>.mat``.

    They are the field ``location`` (or the first element) of ``image_info``, under one to three
    layers of 1 x 1 cells. The count stored beside them is not read: some files hold it as uint8.

    Raises:
        ConfigError: if there are no positions, naming what the file holds.
    """
    content = _load_mat(path)
    found = f"it holds {_keys(content)}, expected image_info with a field location"
    return _as_points(_unpacked(content.get("image_info"), "location"), path, found)


def read_ann_points_mat(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of UCF-QNRF, UCF_CC_50 and NWPU-Crowd: the matrix ``annPoints`` of a .mat file.

    Raises:
        ConfigError: if there are no positions, naming what the file holds.
    """
    content = _load_mat(path)
    found = f"it holds {_keys(content)}, expected annPoints"
    return _as_points(content.get("annPoints"), path, found)


def read_mall_mat(path: Path) -> list[Float[Tensor, "_ 2"]]:
    """Head positions of every frame of Mall's ``mall_gt.mat``: the field ``loc`` of each of ``frame``.

    Raises:
        ConfigError: if there are none, naming what the file holds.
    """
    content = _load_mat(path)
    frames = content.get("frame")
    if not isinstance(frames, np.ndarray) or not frames.size:
        raise ConfigError(f"{path} has no frames: it holds {_keys(content)}, expected frame")
    return [
        _as_points(_unpacked(frame, "loc"), path, f"frame {k} has no field loc")
        for k, frame in enumerate(frames.flat, start=1)
    ]


def read_text_points(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of a text file, a line each: x and y, or more columns that the first line names.

    Of named columns those called x and y are taken. What separates them, see :func:`_read_rows`. An
    empty file has no heads.

    Raises:
        ConfigError: if there are other columns than x and y without names, or a line is not of this kind.
    """
    rows = _read_rows(path)
    columns: tuple[int, ...] = (0, 1)
    width = 2
    if rows and not any(_is_number(field) for field in rows[0].fields):
        width = len(rows[0].fields)
        columns = _columns(rows.pop(0), path, "x", "y")
    elif rows and len(rows[0].fields) != width:
        # The first two need not be x and y: an index, a class or a box may stand before them.
        raise ConfigError(
            f"{path}, line {rows[0].line}: {rows[0].text[:80]!r} has {len(rows[0].fields)} columns, without names only "
            "x and y are allowed; name the columns x,y in a first line"
        )
    return _as_points(_positions(rows, columns, width, path), path, "its lines hold no x,y")


def read_jhu_text(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of JHU-CROWD++: the first two of each line's x y w h o b; an empty file has no heads.

    Raises:
        ConfigError: if a line is not of this kind, naming it.
    """
    rows = _read_rows(path)
    width = max(2, len(rows[0].fields)) if rows else 2
    return _as_points(_positions(rows, (0, 1), width, path), path, "its lines hold no x y w h o b")


def read_json_points(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of a JSON file: a list of [x, y] or {"x": .., "y": ..}, or an object that has one.

    In NWPU-Crowd's objects the list is ``points``; ``human_num`` beside it, at times a float, is not read.

    Raises:
        ConfigError: if there are no positions, naming what the file holds.
    """
    return _json_points(_load_json(path), path)


def read_npy_points(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of an array file of shape (n, 2).

    Raises:
        ConfigError: if it is no such file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} is no readable .npy file: {error}") from error
    return _as_points(array, path, f"it holds an array of {array.dtype} of shape {array.shape}")


def read_mat_points(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of a .mat file, in ``annPoints`` or in ``image_info`` as ShanghaiTech has them.

    Raises:
        ConfigError: if it has neither, naming what it holds.
    """
    content = _load_mat(path)
    values = content["annPoints"] if "annPoints" in content else _unpacked(content.get("image_info"), "location")
    return _as_points(values, path, f"it holds {_keys(content)}, expected annPoints or image_info")


# Endings of files about one image.
READERS: dict[str, tuple[PointsFormat, Callable[[Path], Float[Tensor, "n 2"]]]] = {
    ".csv": (PointsFormat.csv, read_text_points),
    ".txt": (PointsFormat.csv, read_text_points),
    ".json": (PointsFormat.json, read_json_points),
    ".npy": (PointsFormat.npy, read_npy_points),
    ".mat": (PointsFormat.mat, read_mat_points),
}


def read_points_table(path: Path, points_format: PointsFormat = PointsFormat.auto) -> dict[str, Float[Tensor, "_ 2"]]:
    """Head positions of many images from one file, by the names it gives them.

    A csv file has a header with the columns image (or name, file, filename), x and y, and a line for
    each head; an empty x and y is an image without people. A JSON file holds
    ``{name: [[x, y], ...]}`` or ``[{"image": name, "points": [[x, y], ...]}, ...]``.

    Raises:
        ConfigError: if it is of neither kind, naming the line or the image.
    """
    if points_format is PointsFormat.auto:
        points_format = READERS.get(path.suffix.lower(), (PointsFormat.auto, None))[0]
    if points_format is PointsFormat.csv:
        return _csv_table(path)
    if points_format is PointsFormat.json:
        return _json_table(path)
    raise ConfigError(
        f"{path}: one file with the heads of all images is a csv or json file; name its kind with "
        "dataset.points_format, or a folder with a file for each image with dataset.points"
    )


def _csv_table(path: Path) -> dict[str, Float[Tensor, "_ 2"]]:
    rows = _read_rows(path)
    header = rows.pop(0) if rows else _Row(1, "", [])
    names = [field.lower() for field in header.fields]
    key = next((key for key in NAME_KEYS if key in names), NAME_KEYS[0])
    name, x, y = _columns(header, path, key, "x", "y")
    points: dict[str, list[_Row]] = {}
    for row in rows:
        if len(row.fields) != len(names) or not row.fields[name]:
            raise ConfigError(
                f"{path}, line {row.line}: {row.text[:80]!r} is no image with x and y: {len(names)} columns "
                "expected, as in the first line; an image without people has an empty x and y"
            )
        heads = points.setdefault(row.fields[name], [])
        if row.fields[x] or row.fields[y]:
            heads.append(row)
    return {
        image: _as_points(_positions(heads, (x, y), len(names), path), path, f"those of {image}")
        for image, heads in points.items()
    }


class _Row(NamedTuple):
    """A line of a table."""

    line: int
    """Its number in the file, from 1."""
    text: str
    fields: list[str]


def _read_rows(path: Path) -> list[_Row]:
    """The lines of a table; empty ones are left out.

    Fields are separated by what the first line has most of: commas, semicolons or tabs, or else by
    blanks. A file has one separator, so that a decimal comma is never taken for it.
    """
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=first.count)
    if separator not in first:
        separator, lines = " ", [line.strip() for line in lines]
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        found = [
            _Row(rows.line_num, lines[rows.line_num - 1].strip(), [field.strip() for field in row]) for row in rows
        ]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}: {error}; correct the quotation marks") from error
    return [row for row in found if any(row.fields)]


def _columns(header: _Row, path: Path, *wanted: str) -> tuple[int, ...]:
    """Where the columns of these names are, each of which there must be once."""
    names = [field.lower() for field in header.fields]
    if any(names.count(name) != 1 for name in wanted):
        raise ConfigError(
            f"{path}, line {header.line}: the columns are {header.text[:80]!r}, expected {', '.join(wanted)} once; "
            "name these in the first line"
        )
    return tuple(names.index(name) for name in wanted)


def _positions(rows: Sequence[_Row], columns: tuple[int, ...], width: int, path: Path) -> np.ndarray:
    """The numbers in these columns of lines that have ``width`` of them."""
    for row in rows:
        if len(row.fields) != width or not all(_is_number(row.fields[column]) for column in columns):
            raise ConfigError(
                f"{path}, line {row.line}: {row.text[:80]!r} is no position: {width} columns expected, as in the "
                "first line, with numbers as x and y and points as decimal marks"
            )
    return np.array([[float(row.fields[column]) for column in columns] for row in rows])


def _json_table(path: Path) -> dict[str, Float[Tensor, "_ 2"]]:
    content = _load_json(path)
    if isinstance(content, list):
        table: dict[str, Any] = {}
        for k, item in enumerate(content):
            key = next((key for key in NAME_KEYS if key in item), None) if isinstance(item, dict) else None
            if key is None or not isinstance(item[key], str):
                raise ConfigError(f'{path}: item {k} is no {{"image": name, "points": [[x, y], ...]}}')
            if item[key] in table:
                raise ConfigError(f"{path} has {item[key]} twice")
            table[item[key]] = item
        content = table
    if not isinstance(content, dict):
        raise ConfigError(f'{path} holds neither {{name: [[x, y], ...]}} nor [{{"image": .., "points": ..}}, ...]')
    return {name: _json_points(value, path, f"{name}: ") for name, value in content.items()}


def _json_points(value: Any, path: Path, image: str = "") -> Float[Tensor, "n 2"]:
    if isinstance(value, dict):
        key = next((key for key in POINTS_KEYS if key in value), None)
        if key is None:
            raise ConfigError(
                f"{path} has no head positions: {image}it holds {_keys(value)}, expected {' or '.join(POINTS_KEYS)}"
            )
        value = value[key]
    found = f"{image}expected a list of [x, y]"
    if not isinstance(value, list):
        raise ConfigError(f"{path} has no (n, 2) head positions: {found}")
    if all(isinstance(item, dict) and {"x", "y"} <= item.keys() for item in value):
        value = [[item["x"], item["y"]] for item in value]
    try:
        array = np.array(value)
    except ValueError as error:  # lists of different lengths
        raise ConfigError(f"{path} has no (n, 2) head positions: {found}") from error
    return _as_points(array, path, found)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no readable .json file: {error}") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        ConfigError: if it is not there or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the first letter
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no readable text: {error}") from error


def _load_mat(path: Path) -> dict[str, Any]:
    try:
        return scipy.io.loadmat(path)
    except Exception as error:  # Its reader raises half a dozen kinds on damaged files.
        raise ConfigError(f"{path} is no readable .mat file: {error}") from error


def _keys(content: Mapping[str, Any]) -> list[str] | str:
    return sorted(key for key in content if not key.startswith("__")) or "nothing"


def _unpacked(node: object, field: str) -> object:
    """What lies under structs (in ``field``, or else their first) and 1 x 1 cells, however nested."""
    while isinstance(node, np.ndarray | np.void) and (node.dtype.names or node.dtype == object):
        if node.dtype.names:
            node = node[field if field in node.dtype.names else node.dtype.names[0]]
        elif node.size:
            node = node.flat[0]
        else:
            break
    return node


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_points(values: object, path: Path, found: str) -> Float[Tensor, "n 2"]:
    """Positions as a tensor, or an error that says what the file held."""
    array = np.asarray(values)
    if array.dtype.kind in "iuf" and array.shape in _NOBODY:
        return torch.zeros(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise ConfigError(f"{path} has no (n, 2) head positions: {found}")
    with np.errstate(over="ignore"):
        points = array.astype(np.float32)
    if not (finite := np.isfinite(points).all(axis=1)).all():
        x, y = array[~finite][0]
        raise ConfigError(
            f"{path} has head positions that are not finite, ({x:g}, {y:g}) first (float32 ends at 3.4e38); "
            "correct or remove them"
        )
    return torch.from_numpy(points)
