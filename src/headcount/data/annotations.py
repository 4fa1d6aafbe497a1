"""Read head positions from annotation files: one function per format.

A reader takes a path and returns (n, 2) float32 positions (x, y) in pixels of the image: for one image or, if
the file is about several, for each of them. Which files belong to which image is known to ``data.layouts`` and
``data.custom``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import PointsFormat
from headcount.data.kinds import DataErrorKind
from headcount.data.marks import HeadMarks, Size, ToolFile
from headcount.data.matfile import load_mat
from headcount.data.rows import Row, find_columns, read_rows, to_positions
from headcount.data.textfile import is_number, load_json
from headcount.data.tools import SharedLabels, read_tool_csv, read_tool_json, read_tool_xml
from headcount.errors import DataError
from headcount.files import quoted
from headcount.wording import cut, one_line

# Shapes of arrays that mean an image without people: an empty list, MATLAB's [], no rows of x and y.
_EMPTY_SHAPES = ((0,), (0, 0), (0, 2))
_MAX_KEYS = 12  # in a message
# Accepted names of the column with the image name, and of the list of heads in a JSON object.
NAME_KEYS = ("image", "name", "file", "filename")
NO_RULES = HeadMarks()
"""Files of annotation tools with a single label and without boxes."""
POINTS_KEYS = ("points", "annotations", "human_points", "annPoints", "locations")


@dataclass(frozen=True)
class Annotation:
    """What a file says about one image."""

    heads: Float[Tensor, "_ 2"]
    """(x, y) in pixels of the image."""
    tool: str | None = None
    """The tool that wrote the file, if its files have labels; None for plain lists of positions."""
    size: Size | None = None
    """Size of the image as the tool saw it; None if the file does not hold it."""


def _invalid(path: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.annotation, file=path)


# -------------------------------------------------------------------------------------------- MATLAB


def read_shanghaitech_mat(path: Path) -> Float[Tensor, "n 2"]:
    """Read the head positions of a ShanghaiTech ``GT_IMG_<k>.mat``.

    They are the field ``location`` (or the first field) of ``image_info``, inside one to three layers of 1 x 1 cells.
    The count stored with them is not used: some files hold it as uint8.

    Raises:
        DataError: if there are no positions; names the content of the file.
    """
    content = _load_mat(path, "image_info")
    found = f"it holds {_keys(content)}, expected image_info with a field location"
    return _as_points(_unpacked(content.get("image_info"), "location"), path, found)


def read_ann_points_mat(path: Path) -> Float[Tensor, "n 2"]:
    """Read the matrix ``annPoints`` of a .mat file, as used by UCF-QNRF, UCF_CC_50 and NWPU-Crowd.

    Raises:
        DataError: if there are no positions; names the content of the file.
    """
    content = _load_mat(path, "annPoints")
    found = f"it holds {_keys(content)}, expected annPoints"
    return _as_points(content.get("annPoints"), path, found)


def read_mall_mat(path: Path) -> list[Float[Tensor, "_ 2"]]:
    """Read the head positions of every frame of Mall's ``mall_gt.mat``: the field ``loc`` of each ``frame``.

    Raises:
        DataError: if there are none; names the content of the file.
    """
    content = _load_mat(path, "frame")
    frames = content.get("frame")
    if not isinstance(frames, np.ndarray) or not frames.size:
        raise _invalid(path, f"{path} has no frames: it holds {_keys(content)}, expected frame")
    return [
        _as_points(_unpacked(frame, "loc"), path, f"frame {k} has no field loc")
        for k, frame in enumerate(frames.flat, start=1)
    ]


def read_mat_points(path: Path) -> Float[Tensor, "n 2"]:
    """Read a .mat file of either form: ``annPoints``, or ``image_info`` as in ShanghaiTech.

    Raises:
        DataError: if it has neither or both; names the content of the file.
    """
    content = _load_mat(path, "annPoints", "image_info")
    if {"annPoints", "image_info"} <= content.keys():
        raise _invalid(path, f"{path} holds annPoints and image_info, either of which could be meant; remove one")
    values = content["annPoints"] if "annPoints" in content else _unpacked(content.get("image_info"), "location")
    return _as_points(values, path, f"it holds {_keys(content)}, expected annPoints or image_info")


def _load_mat(path: Path, *wanted: str) -> dict[str, Any]:
    try:
        return load_mat(path, *wanted)
    except Exception as error:  # scipy raises half a dozen types of errors on damaged files.
        raise _invalid(path, f"{path} is not a readable .mat file: {one_line(error)}") from error


def _unpacked(node: object, field: str) -> object:
    """Return the content of nested structs and 1 x 1 cells; None if there are several, or which field is unclear."""
    while isinstance(node, np.ndarray | np.void) and (node.dtype.names or node.dtype == object):
        if node.size != 1:
            return None
        if node.dtype.names:
            names = list(node.dtype.names)
            known = [name for name in (field, "location", "position", "points") if name in names]
            if not known and len(names) > 1:
                return None
            node = node[known[0] if known else names[0]]
        else:
            node = node.item()
    return node


# ---------------------------------------------------------------------------------- text, JSON, NumPy


def read_text_points(path: Path) -> Float[Tensor, "n 2"]:
    """Read a text file with one head per line: x and y, or several columns whose names are in the first line.

    Named columns must include x and y. See :func:`read_rows` for separators. An empty file has no heads.

    Raises:
        DataError: if there are more columns without names, or a line is invalid; names the line.
    """
    rows = read_rows(path)
    columns: tuple[int, ...] = (0, 1)
    width = 2
    if rows and not any(is_number(field) for field in rows[0].fields):
        width = len(rows[0].fields)
        columns = find_columns(rows.pop(0), path, "x", "y")
    elif rows and len(rows[0].fields) != width:
        # The first two columns may be something else: an index, a class, or a box.
        what_to_do = "without names only x and y are allowed; name the columns x,y in a first line"
        if len(rows[0].fields) > width and _are_shares(rows):
            what_to_do = (
                "those after the first from 0 to 1: these are shares of the image, as YOLO writes them; convert the "
                "heads to pixels, and write one x,y per line"
            )
        raise _invalid(
            path,
            f"{path}, line {rows[0].line}: {rows[0].text[:80]!r} has {len(rows[0].fields)} columns, {what_to_do}",
        )
    return _as_points(to_positions(rows, columns, width, path), path, "its lines hold no x,y")


def _are_shares(rows: Sequence["Row"]) -> bool:
    """Whether all columns after the first hold numbers from 0 to 1."""
    fields = [field for row in rows for field in row.fields[1:]]
    return all(is_number(field) and 0 <= float(field) <= 1 for field in fields)


def read_jhu_text(path: Path) -> Float[Tensor, "n 2"]:
    """Read a JHU-CROWD++ file: the first two of each line's x y w h o b; an empty file has no heads.

    Raises:
        DataError: if a line is invalid; names the line.
    """
    rows = read_rows(path)
    width = max(2, len(rows[0].fields)) if rows else 2
    return _as_points(to_positions(rows, (0, 1), width, path), path, "its lines hold no x y w h o b")


def read_json_points(path: Path) -> Float[Tensor, "n 2"]:
    """Read a JSON file: a list of [x, y] or {"x": .., "y": ..}, or an object that contains such a list.

    In NWPU-Crowd's objects the list is ``points``; ``human_num``, which is sometimes a float, is not used.

    Raises:
        DataError: if there are no positions; names the content of the file.
    """
    return _json_points(load_json(path), path)


def read_npy_points(path: Path) -> Float[Tensor, "n 2"]:
    """Read a NumPy file with an array of shape (n, 2).

    Raises:
        DataError: if the file cannot be read or holds another array.
    """
    try:
        with path.open("rb") as file:
            array = _read_array(file)
    except Exception as error:  # NumPy raises half a dozen types of errors on damaged files.
        raise _invalid(path, f"{path} is not a readable .npy file: {one_line(error)}") from error
    return _as_points(array, path, f"it holds an array of {array.dtype} of shape {array.shape}")


def _read_array(file: BinaryIO) -> np.ndarray:
    """Read an array whose header agrees with the size of the file: NumPy reserves whatever memory a header names."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    start = file.tell()
    stored, expected = file.seek(0, 2) - start, math.prod(shape) * dtype.itemsize
    if dtype.hasobject:  # A pickle, which could run code.
        raise ValueError("it holds Python objects, expected numbers")
    if stored != expected:
        raise ValueError(f"an array of {dtype} of shape {shape} takes {expected} bytes, but the file has {stored}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


READERS: dict[str, tuple[PointsFormat, Callable[[Path], Float[Tensor, "n 2"]]]] = {
    ".csv": (PointsFormat.csv, read_text_points),
    ".txt": (PointsFormat.csv, read_text_points),
    ".json": (PointsFormat.json, read_json_points),
    ".npy": (PointsFormat.npy, read_npy_points),
    ".mat": (PointsFormat.mat, read_mat_points),
}
"""Format and reader by file ending, for files about one image."""
FORMATS = {ending: kind for ending, (kind, _) in READERS.items()} | {".xml": PointsFormat.xml}
"""Format by file ending."""


def read_annotation(path: Path, marks: HeadMarks = NO_RULES, shared: SharedLabels | None = None) -> Annotation:
    """Read a file about one image by its ending and, if an annotation tool wrote it, by its content.

    Args:
        marks: which marks of a tool's file are heads.
        shared: the labels of all files of the dataset; None for a file on its own.

    Raises:
        DataError: if the file has no head positions, or is about several images.
    """
    ending = path.suffix.lower()
    if ending == ".xml":
        raise _about_many(path, read_tool_xml(path).tool)
    try:
        content = load_json(path) if ending == ".json" else None
        tool = read_tool_json(content, path) if ending == ".json" else None
        if tool is None:
            points = _json_points(content, path) if ending == ".json" else READERS[ending][1](path)
            _check_no_label(path, marks)
            return Annotation(points)
    except DataError:
        if ending in (".csv", ".txt") and (table := read_tool_csv(path)) is not None:
            raise _about_many(path, table.tool) from None
        raise
    if not tool.about_one:
        raise _about_many(path, tool.tool)
    heads = tool.heads(path, marks, shared.counts if shared is not None else None)
    ((image, positions),) = heads.items()
    return Annotation(_as_points(positions, path, "its marks are no points"), tool.tool, tool.sizes.get(image))


def _check_no_label(path: Path, marks: HeadMarks) -> None:
    if marks.label is not None:
        raise _invalid(
            path,
            f"dataset.label={marks.label} has no effect: {path} is no file of an annotation tool, and has no labels; "
            "remove the setting, or the annotation",
        )


def _about_many(path: Path, tool: str) -> DataError:
    message = f"{path} is a file of {tool} about many images; read it with dataset.points={quoted(path)}"
    return DataError(message, kind=DataErrorKind.other_format, file=path)


# ------------------------------------------------------------------------------- one file, many images


def read_points_table(
    path: Path, points_format: PointsFormat = PointsFormat.auto, marks: HeadMarks = NO_RULES
) -> dict[str, Annotation]:
    """Read the head positions of many images from one file: one of an annotation tool, or a table.

    A csv file has a header with the columns image (or name, file, filename), x and y, and one line per head; an empty
    x and y is an image without people. A JSON file holds ``{name: [[x, y], ...]}`` or
    ``[{"image": name, "points": [[x, y], ...]}, ...]``.

    Args:
        points_format: csv, json or xml; ``auto`` decides by the file's ending.
        marks: which marks of a tool's file are heads.

    Returns:
        What the file says of each image, by its name as written in the file.

    Raises:
        DataError: if the format is another, or the content is invalid; names the line or the image.
    """
    if points_format is PointsFormat.auto:
        points_format = FORMATS.get(path.suffix.lower(), PointsFormat.auto)
    if points_format is PointsFormat.xml:
        return _tool_table(read_tool_xml(path), path, marks)
    if points_format is PointsFormat.csv:
        tool = read_tool_csv(path)
        return _plain_table(_csv_table(path), path, marks) if tool is None else _tool_table(tool, path, marks)
    if points_format is PointsFormat.json:
        content = load_json(path)
        tool = read_tool_json(content, path)
        if tool is None:
            return _plain_table(_json_table(content, path), path, marks)
        return _tool_table(tool, path, marks)
    raise _invalid(
        path,
        f"{path}: one file with the heads of all images is a csv, json or xml file; name its kind with "
        "dataset.points_format, or a folder with a file for each image with dataset.points",
    )


def _plain_table(table: Mapping[str, Float[Tensor, "_ 2"]], path: Path, marks: HeadMarks) -> dict[str, Annotation]:
    _check_no_label(path, marks)
    return {image: Annotation(heads) for image, heads in table.items()}


def _tool_table(tool: ToolFile, path: Path, marks: HeadMarks) -> dict[str, Annotation]:
    if tool.about_one:
        raise _invalid(
            path,
            f"{path} is a file of {tool.tool} about one image, but dataset.points names the file of all images; name "
            "the folder with a file for each image",
        )
    return {
        image: Annotation(_as_points(heads, path, f"those of {cut(image)}"), tool.tool, tool.sizes.get(image))
        for image, heads in tool.heads(path, marks).items()
    }


def describe_table(path: Path) -> str | None:
    """Say how to read a file that seems to hold the heads of many images; None for any other file.

    Its name is that of no image; it is recognized by a column or key with names of images.
    """
    ending = path.suffix.lower()
    tool: ToolFile | None = None
    found = False
    try:
        if ending == ".xml":
            tool = read_tool_xml(path)
        elif ending in (".csv", ".txt"):
            tool = read_tool_csv(path)
            rows = read_rows(path) if tool is None else []
            columns = {field.lower() for field in rows[0].fields} if rows else set()
            found = {"x", "y"} <= columns and not columns.isdisjoint(NAME_KEYS)
        elif ending == ".json":
            content = load_json(path)
            tool = read_tool_json(content, path)
            found = tool is None and _is_table(content)
    except DataError as error:  # A file that no reader knows says so.
        return str(error) if error.kind == DataErrorKind.other_format else None
    if tool is not None and not tool.about_one:
        return str(_about_many(path, tool.tool))
    return f"{path} holds the heads of many images; read it with dataset.points={quoted(path)}" if found else None


def _is_table(content: Any) -> bool:
    if isinstance(content, list):
        return bool(content) and all(isinstance(i, dict) and not i.keys().isdisjoint(NAME_KEYS) for i in content)
    if not isinstance(content, dict) or not content.keys().isdisjoint(POINTS_KEYS):
        return False
    values = [value if isinstance(value, list) else [value] for value in content.values()]
    return bool(values) and all(isinstance(item, list | dict) for value in values for item in value)


def _csv_table(path: Path) -> dict[str, Float[Tensor, "_ 2"]]:
    rows = read_rows(path)
    header = rows.pop(0) if rows else Row(1, "", [])
    names = [field.lower() for field in header.fields]
    key = next((key for key in NAME_KEYS if key in names), NAME_KEYS[0])
    name, x, y = find_columns(header, path, key, "x", "y")
    points: dict[str, list[Row]] = {}
    empty: dict[str, Row] = {}
    for row in rows:
        if len(row.fields) != len(names) or not row.fields[name]:
            raise _invalid(
                path,
                f"{path}, line {row.line}: {row.text[:80]!r} is not an image with x and y: {len(names)} columns "
                "expected, as in the first line; an image without people has an empty x and y",
            )
        heads = points.setdefault(row.fields[name], [])
        if row.fields[x] or row.fields[y]:
            heads.append(row)
        else:
            empty[row.fields[name]] = row
    for image, row in empty.items():
        if points[image]:
            raise _invalid(
                path,
                f"{path}, line {row.line}: {row.text[:80]!r} says that {cut(image)} has no people, but line "
                f"{points[image][0].line} has a head of it; remove one of them",
            )
    return {
        image: _as_points(to_positions(heads, (x, y), len(names), path), path, f"those of {cut(image)}")
        for image, heads in points.items()
    }


def _json_table(content: Any, path: Path) -> dict[str, Float[Tensor, "_ 2"]]:
    if isinstance(content, list):
        table: dict[str, Any] = {}
        for k, item in enumerate(content):
            key = next((key for key in NAME_KEYS if key in item), None) if isinstance(item, dict) else None
            if key is None or not isinstance(item[key], str):
                raise _invalid(path, f'{path}: item {k} is not {{"image": name, "points": [[x, y], ...]}}')
            if item[key] in table:
                raise _invalid(path, f"{path} has {cut(item[key])} twice")
            table[item[key]] = item
        content = table
    if not isinstance(content, dict):
        raise _invalid(path, f'{path} holds neither {{name: [[x, y], ...]}} nor [{{"image": .., "points": ..}}, ...]')
    return {name: _json_points(value, path, f"{cut(name)}: ") for name, value in content.items()}


# ---------------------------------------------------------------------------------------- conversions


def _json_points(value: Any, path: Path, image: str = "") -> Float[Tensor, "n 2"]:
    if isinstance(value, dict):
        keys = [key for key in POINTS_KEYS if key in value]
        if not keys:
            raise _invalid(
                path,
                f"{path} has no head positions: {image}it holds {_keys(value)}, expected {' or '.join(POINTS_KEYS)}",
            )
        if len(keys) > 1:
            raise _invalid(
                path, f"{path}: {image}it holds {' and '.join(keys)}, either of which could be meant; remove one"
            )
        value = value[keys[0]]
    found = f"{path} has no (n, 2) head positions: {image}expected a list of [x, y]"
    if not isinstance(value, list):
        raise _invalid(path, found)
    pairs = [[item.get("x"), item.get("y")] if isinstance(item, dict) else item for item in value]
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not {type(number) for number in pair} <= {int, float}:
            raise _invalid(path, found)
    try:
        array = np.array(pairs, dtype=np.float64)
    except OverflowError as error:  # An integer of hundreds of digits.
        message = f"{path} has head positions that are not finite: {image}{error}; correct or remove them"
        raise DataError(message, kind=DataErrorKind.not_finite, file=path) from error
    return _as_points(array, path, found)


def _keys(content: Mapping[str, Any]) -> str:
    names = sorted(key for key in content if not key.startswith("__"))
    shown = ", ".join(repr(cut(name)) for name in names[:_MAX_KEYS])
    return f"[{shown}, ...]" if len(names) > _MAX_KEYS else f"[{shown}]" if names else "nothing"


def _as_points(values: object, path: Path, found: str) -> Float[Tensor, "n 2"]:
    """Convert positions to a tensor.

    Args:
        found: what the file holds instead of positions, for the error message.

    Raises:
        DataError: if ``values`` are not n finite pairs of numbers.
    """
    array = np.asarray(values)
    if array.dtype == bool:
        raise _invalid(path, f"{path} has no (n, 2) head positions: its values are true and false")
    if array.dtype.kind in "iuf" and array.shape in _EMPTY_SHAPES:
        return torch.zeros(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise _invalid(path, f"{path} has no (n, 2) head positions: {found}")
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32, a signaling NaN: named below
        points = array.astype(np.float32)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        x, y = array[~finite][0]
        raise DataError(
            f"{path} has head positions that are not finite, ({x:g}, {y:g}) first (float32 ends at 3.4e38); "
            "correct or remove them",
            kind=DataErrorKind.not_finite,
            file=path,
        )
    return torch.from_numpy(points)
