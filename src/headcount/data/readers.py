"""Read files as they are distributed: one function for images, one for each annotation format.

Annotation readers take a path and return (n, 2) float32 positions (x, y) in pixels of the stored
image, for one image or, where a file is about many, for each of them. What a dataset's folder looks
like is the business of ``data.layouts``.
"""

import csv
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from headcount.config import ConfigError, PointsFormat

# Names that people give to the column of an image's name, and to the list of heads in a JSON object.
NAME_KEYS = ("image", "name", "file", "filename")
POINTS_KEYS = ("points", "annotations", "human_points", "annPoints", "locations")


def read_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """An image file as RGB bytes.

    Grey images are repeated; palettes, CMYK and 16 bits are converted; transparency is dropped.
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

    Args:
        upright: turn it as its EXIF orientation says.
    """
    with open_pillow(path) as file:
        image = ImageOps.exif_transpose(file) if upright else file
        if image.mode.startswith("I"):  # 16 bits; Pillow would cut them at 255.
            return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        # Pillow warns where a palette with transparency becomes RGB at once.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


@contextmanager
def open_pillow(path: Path) -> Iterator[Image.Image]:
    """An image file, of which Pillow has read the header; every error of reading names it."""
    try:
        with warnings.catch_warnings():
            # Pictures of 90 million pixels are one's own; twice as many are refused.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
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
    """Head positions of a text file, a line each: x and y, apart by commas, semicolons or blanks.

    Columns after these (JHU-CROWD++ has six) are left alone. A first line of words may name the
    columns; those called x and y are then taken. An empty file has no heads.

    Raises:
        ConfigError: if a line is not of this kind, naming it.
    """
    points, columns = [], (0, 1)
    rows = ((k, row) for k, row in enumerate(_read_text(path).splitlines(), start=1) if row.strip())
    for k, (line, row) in enumerate(rows):
        fields = [field.strip("\"'") for field in re.split(r"\s*[,;]\s*|\s+", row.strip())]
        if k == 0 and not any(_is_number(field) for field in fields):
            names = [field.lower() for field in fields]
            if not {"x", "y"} <= set(names):
                raise ConfigError(f"{path}, line {line}: the columns are {', '.join(fields)}, expected x and y")
            columns = (names.index("x"), names.index("y"))
            continue
        if len(fields) <= max(columns) or not all(_is_number(fields[column]) for column in columns):
            raise ConfigError(f"{path}, line {line}: {row.strip()[:80]!r} is no position x,y")
        points.append([float(fields[column]) for column in columns])
    return _as_points(np.array(points), path, "its lines hold no x,y")


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


# Endings of files about one image, those first that are taken where an image has several.
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
    each head; a line without x and y is an image without people. A JSON file holds
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
    lines = _read_text(path).splitlines()
    header = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter=max(",;\t", key=header.count))
    columns = [column.strip().lower() for column in next(rows, [])]
    name = next((columns.index(key) for key in NAME_KEYS if key in columns), None)
    if name is None or not {"x", "y"} <= set(columns):
        raise ConfigError(f"{path}: the first line is {header[:80]!r}, expected a header with the columns image, x, y")
    x, y = columns.index("x"), columns.index("y")
    points: dict[str, list[list[float]]] = {}
    for line, row in enumerate(rows, start=2):
        if not any(field.strip() for field in row):
            continue
        row = [field.strip() for field in row] + [""] * (len(columns) - len(row))
        somebody = row[x] or row[y]
        if not row[name] or (somebody and not (_is_number(row[x]) and _is_number(row[y]))):
            raise ConfigError(f"{path}, line {line}: {lines[line - 1][:80]!r} is no image with x and y")
        heads = points.setdefault(row[name], [])
        if somebody:
            heads.append([float(row[x]), float(row[y])])
    return {key: _as_points(np.array(heads), path, f"those of {key}") for key, heads in points.items()}


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
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no readable .json file: {error}") from error


def _read_text(path: Path) -> str:
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
    if array.size == 0 and isinstance(values, np.ndarray):
        return torch.zeros(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise ConfigError(f"{path} has no (n, 2) head positions: {found}")
    if not np.isfinite(array).all():
        raise ConfigError(f"{path} has head positions that are not finite; correct or remove them")
    return torch.from_numpy(array.astype(np.float32))
