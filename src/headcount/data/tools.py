"""Read files of annotation tools: the marks of each image, which ``data.marks`` turns into heads.

Recognized by their content: LabelMe (json), CVAT for images (xml), VIA 2 (json, csv), Label Studio (json), COCO (json),
Supervisely (json), makesense.ai (csv without a header). cclabeler's json holds ``points`` like any other json file.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from headcount.data.kinds import DataErrorKind
from headcount.data.listing import IMAGE_ENDINGS
from headcount.data.marks import CROWD, NO_AREA, Mark, Size, ToolFile
from headcount.data.textfile import is_number, load_json, read_text
from headcount.errors import DataError
from headcount.wording import cut, one_line, printable

_MAKESENSE_COLUMNS = 6  # label, x, y, image, width, height
_VIA_COLUMN = "region_shape_attributes"
_NO_LABEL = ("",)


class SharedLabels:
    """The labels of all files of a dataset that has one file per image; they are read when first asked for."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [path for path in paths if path.suffix.lower() == ".json"]

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of marks by label in all readable files; a damaged one is reported when it is read for its image."""
        counts: Counter[str] = Counter()
        for path in self._paths:
            try:
                found = read_tool_json(load_json(path), path)
            except DataError:
                continue
            if found is not None and found.about_one:
                counts.update(found.labels())
        return counts


# --------------------------------------------------------------------------------------------- JSON


def read_tool_json(content: Any, path: Path) -> ToolFile | None:
    """What a tool's JSON file says; None if it is of no known tool.

    Args:
        content: the parsed file.
        path: for messages only.

    Raises:
        DataError: if the file is of a known tool but damaged, or holds what cannot be converted.
    """
    for tool, recognized, read in _JSON_TOOLS:
        if recognized(content):
            try:
                return read(content)
            except DataError:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                reason = f"{type(error).__name__}: {error}" if type(error) is not ValueError else error
                message = f"{path} is a damaged file of {tool}: {one_line(reason)}"
                raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
    return None


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_labelme(content: Any) -> ToolFile:
    name = _text(content["imagePath"])
    found = ToolFile("LabelMe", {name: []}, about_one=True)
    for shape in content["shapes"]:
        kind = shape.get("shape_type", "polygon")
        found.images[name].append(_drawn(_text(shape["label"]), _text(kind), shape["points"]))
    found.set_size(name, _size(content.get("imageWidth"), content.get("imageHeight")))
    return found


def _drawn(label: str, kind: str, positions: Any) -> Mark:
    """A point, a rectangle given by two or four corners, or another shape."""
    if kind not in ("point", "rectangle"):
        return Mark((label,), kind)
    allowed = (1,) if kind == "point" else (2, 4)
    if not isinstance(positions, list) or len(positions) not in allowed:
        number = len(positions) if isinstance(positions, list) else "no list of"
        raise ValueError(f"a {kind} has {number} positions, expected {' or '.join(map(str, allowed))}")
    for position in positions:
        if not isinstance(position, list) or len(position) != 2:
            raise ValueError(f"{str(position)[:40]!r} is not a position [x, y]")
    x, y = ([_number(position[k]) for position in positions] for k in (0, 1))
    if kind == "point":
        return Mark((label,), "point", (x[0], y[0]))
    return _box((label,), min(x), min(y), max(x) - min(x), max(y) - min(y))


def _box(labels: tuple[str, ...], left: float, top: float, width: float, height: float) -> Mark:
    shape = "box" if width > 0 and height > 0 else NO_AREA
    return Mark(labels, shape, (left + width / 2, top + height / 2))


def _is_supervisely(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("objects"), list) and "size" in content


def _read_supervisely(content: Any) -> ToolFile:
    marks = []
    for item in content["objects"]:
        kind = _text(item["geometryType"])
        corners = item["points"]["exterior"] if kind in ("point", "rectangle") else []
        marks.append(_drawn(_text(item["classTitle"]), kind, corners))
    found = ToolFile("Supervisely", {"": marks}, about_one=True)
    size = content["size"] or {}
    found.set_size("", _size(size.get("width"), size.get("height")))
    return found


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def _read_coco(content: Any) -> ToolFile:
    categories = {item["id"]: item for item in content.get("categories", [])}
    names = {image["id"]: _text(image["file_name"]) for image in content["images"]}
    if len(set(names.values())) < len(content["images"]):
        raise ValueError("two images have one id or one file_name")
    found = ToolFile("COCO", {name: [] for name in names.values()})
    for image in content["images"]:
        found.set_size(names[image["id"]], _size(image.get("width"), image.get("height")))
    for item in content["annotations"]:
        if item["image_id"] not in names:
            raise ValueError(f"an annotation has image_id {cut(str(item['image_id']))}, which no image has")
        category = categories.get(item.get("category_id"), {})
        found.images[names[item["image_id"]]] += _coco_marks(item, category)
    return found


def _coco_marks(item: Mapping[str, Any], category: Mapping[str, Any]) -> Iterator[Mark]:
    """Visible keypoints of a category with one keypoint; otherwise the box."""
    labels = (_text(category.get("name", item.get("category_id", ""))),)
    keypoints = item.get("keypoints") or []
    if item.get("iscrowd"):
        yield Mark(labels, CROWD)
    elif keypoints and len(category.get("keypoints", ["head"])) <= 1:
        for x, y, visible in zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True):
            if _number(visible) > 0:
                yield Mark(labels, "point", (_number(x), _number(y)))
    elif item.get("bbox"):
        left, top, width, height = map(_number, item["bbox"])
        yield _box(labels, left, top, width, height)
    else:
        yield Mark(labels, "keypoints" if keypoints else "segmentation")


def _via_metadata(content: Any) -> Any:
    return content["_via_img_metadata"] if isinstance(content, dict) and "_via_img_metadata" in content else content


def _is_via(content: Any) -> bool:
    entries = _via_metadata(content)
    return (
        isinstance(entries, dict)
        and bool(entries)
        and all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries.values())
    )


def _read_via(content: Any) -> ToolFile:
    found = ToolFile("VIA")
    for entry in _via_metadata(content).values():
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # version 1 numbers them
        name = _text(entry["filename"])
        if name in found.images:
            raise ValueError(f"{cut(name)} comes twice")
        found.images[name] = [_via_mark(r["shape_attributes"], r.get("region_attributes", {})) for r in regions]
    return found


def _via_mark(shape: Mapping[str, Any], attributes: Mapping[str, Any]) -> Mark:
    """A region; its labels are the values of its attributes, and of checkboxes the names of those that are set."""
    values: list[str] = []
    for value in attributes.values():
        if isinstance(value, dict):
            values += [key for key, is_set in value.items() if is_set]
        elif isinstance(value, str) and value:
            values.append(value)
    labels = tuple(dict.fromkeys(values)) or _NO_LABEL
    if shape["name"] == "point":
        return Mark(labels, "point", (_number(shape["cx"]), _number(shape["cy"])))
    if shape["name"] == "rect":
        left, top, width, height = (_number(shape[key]) for key in ("x", "y", "width", "height"))
        return _box(labels, left, top, width, height)
    return Mark(labels, _text(shape["name"]))


def _is_label_studio(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content)
        and all(isinstance(task.get("annotations", task.get("completions")), list) for task in content)
    )


def _read_label_studio(content: Any) -> ToolFile:
    found = ToolFile("Label Studio")
    seen = set()
    for task in content:
        name = _studio_name(task["data"])
        done = [a for a in task.get("annotations", task.get("completions")) if not a.get("was_cancelled")]
        if len(done) > 1:
            raise ValueError(
                f"{cut(name)} has {len(done)} annotations, of several annotators; export one of each image"
            )
        if name in seen:
            raise ValueError(f"{cut(name)} comes twice")
        seen.add(name)
        if not done:  # not annotated yet, or skipped
            continue
        results = [r for r in done[0]["result"] if r.get("type", "").endswith(("labels", "keypoint"))]
        found.images[name] = [_studio_mark(result) for result in results]
        for result in results:
            found.set_size(name, _size(result.get("original_width"), result.get("original_height")))
    return found


def _studio_name(data: Mapping[str, Any]) -> str:
    """The file name of the only image of a task."""
    found = {v: name for v in data.values() if isinstance(v, str) and (name := _name_in_address(v)) is not None}
    if len(found) != 1:
        shown = f"{len(found)} images ({', '.join(map(cut, found.values()))})" if found else "no image"
        raise ValueError(f"a task has {shown}; export tasks of one image each ({', '.join(IMAGE_ENDINGS)})")
    return next(iter(found.values()))


def _name_in_address(address: str) -> str | None:
    """The file name at the end of a URL or path, or in its parameter ``d``; None if it is no image."""
    parts = urlsplit(address)
    served = [value[2:] for value in parts.query.split("&") if value.startswith("d=")]
    # A path that is no URL may contain ? and #.
    for path in (*served, parts.path, address):
        name = re.split(r"[/\\]", unquote(path))[-1]
        if name.lower().endswith(IMAGE_ENDINGS):
            return name
    return None


def _studio_mark(result: Mapping[str, Any]) -> Mark:
    """A result; its positions are percent of the image."""
    value, kind = result["value"], result["type"]
    labels = tuple(dict.fromkeys(map(_text, value.get(kind, [])))) or _NO_LABEL
    if kind not in ("keypointlabels", "keypoint", "rectanglelabels"):
        return Mark(labels, kind.removesuffix("labels"))
    if result.get("image_rotation"):
        raise ValueError(f"an image is turned by {result['image_rotation']} degrees; turn the image file instead")
    width, height = _number(result["original_width"]), _number(result["original_height"])
    x, y = _number(value["x"]) / 100 * width, _number(value["y"]) / 100 * height
    if kind == "rectanglelabels":
        return _box(labels, x, y, _number(value["width"]) / 100 * width, _number(value["height"]) / 100 * height)
    return Mark(labels, "point", (x, y))


_JSON_TOOLS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any], ToolFile]], ...] = (
    ("LabelMe", _is_labelme, _read_labelme),
    ("Supervisely", _is_supervisely, _read_supervisely),
    ("COCO", _is_coco, _read_coco),
    ("VIA", _is_via, _read_via),
    ("Label Studio", _is_label_studio, _read_label_studio),
)


# ---------------------------------------------------------------------------------------- XML and CSV


def read_tool_xml(path: Path) -> ToolFile:
    """What an XML file of CVAT says ("CVAT for images").

    Raises:
        DataError: if it is another XML file, names what was seen; or if it is damaged.
    """
    text = read_text(path)
    try:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it declares entities, which are not read")
        root = ElementTree.fromstring(text)
        images = root.findall("image")
        if root.tag == "annotations" and root.find("track") is not None:
            raise DataError(
                f"{path} is a file of CVAT for video, which is not read; export it as 'CVAT for images 1.1'",
                kind=DataErrorKind.other_format,
                file=path,
            )
        if root.tag != "annotations" or (root.find("version") is None and not images):
            inside = ", ".join(dict.fromkeys(child.tag for child in root)) or "nothing"
            raise DataError(
                f"{path} is an XML file with {cut(root.tag)} holding {inside[:80]}, which is not read; of XML files "
                "only those of CVAT (CVAT for images) are; export points as csv or json",
                kind=DataErrorKind.other_format,
                file=path,
            )
        found = ToolFile("CVAT")
        for image in images:
            name = image.attrib["name"]
            if name in found.images:
                raise ValueError(f"{cut(name)} comes twice")
            found.images[name] = [mark for shape in image for mark in _cvat_marks(shape)]
            found.set_size(name, _size(image.attrib.get("width"), image.attrib.get("height")))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        message = f"{path} is not a readable XML file of CVAT: {one_line(error)}"
        raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
    return found


def _cvat_marks(shape: ElementTree.Element) -> Iterator[Mark]:
    labels = (shape.attrib.get("label", ""),)
    if shape.tag == "points":
        for pair in shape.attrib["points"].split(";"):
            x, y = map(_number, pair.split(","))
            yield Mark(labels, "point", (x, y))
    elif shape.tag == "box":
        left, top, right, bottom = (_number(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        yield _box(labels, left, top, right - left, bottom - top)
    elif shape.tag != "tag":  # a tag is about the whole image
        yield Mark(labels, shape.tag)


def read_tool_csv(path: Path) -> ToolFile | None:
    """What a CSV file of VIA or makesense.ai says; None if it is of neither.

    Raises:
        DataError: if it is of one of them but damaged; names the line.
    """
    rows = csv.reader(read_text(path).splitlines(), strict=True)
    try:
        lines = [row for row in rows if row]
    except csv.Error:  # the reader of plain tables reports it
        return None
    if not lines:
        return None
    header = [name.strip().lstrip("#") for name in lines[0]]
    if _VIA_COLUMN in header:
        return _read_table(path, "VIA", lines[1:], lambda row: _via_row(dict(zip(header, row, strict=True))))
    if all(_is_makesense(row) for row in lines):
        return _read_table(path, "makesense.ai", lines, _makesense_row)
    return None


_Line = tuple[str, Mark | None, Size | None]
"""Image, its mark and its size, of a line."""


def _read_table(
    path: Path, tool: str, rows: Sequence[Sequence[str]], read: Callable[[Sequence[str]], _Line]
) -> ToolFile:
    found = ToolFile(tool)
    for row in rows:
        try:
            image, mark, size = read(row)
            found.set_size(image, size)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            message = f"{path}, a file of {tool}: {','.join(row)[:80]!r} cannot be read: {one_line(error)}"
            raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
        found.images.setdefault(image, []).extend([mark] if mark else [])
    return found


def _via_row(row: Mapping[str, str]) -> _Line:
    """A line of VIA; an image without regions has an empty shape."""
    shape = json.loads(row[_VIA_COLUMN] or "{}")
    attributes = json.loads(row.get("region_attributes") or "{}")
    return row["filename"], _via_mark(shape, attributes) if shape else None, None


def _is_makesense(row: Sequence[str]) -> bool:
    numbers = [row[k] for k in (1, 2, 4, 5)] if len(row) == _MAKESENSE_COLUMNS else []
    return bool(numbers) and all(map(is_number, numbers)) and row[3].lower().endswith(IMAGE_ENDINGS)


def _makesense_row(row: Sequence[str]) -> _Line:
    return row[3], Mark((row[0],), "point", (_number(row[1]), _number(row[2]))), _size(row[4], row[5])


# -------------------------------------------------------------------------------------------- values


def _number(value: Any) -> float:
    """A number, which may be written as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    if isinstance(value, str) and not is_number(value.strip()):
        raise ValueError(f"{value[:40]!r} is not a number")
    return float(value)


def _size(width: Any, height: Any) -> Size | None:
    """The size of an image; None if the file does not hold it, or zeros instead."""
    if not width or not height:
        return None
    numbers = _number(width), _number(height)
    if not all(number.is_integer() for number in numbers):
        raise ValueError(f"{width} x {height} is not the size of an image")
    return int(numbers[0]), int(numbers[1])


def _text(value: Any) -> str:
    if not isinstance(value, (str, int)):
        raise ValueError(f"{str(value)[:40]!r} is not a name")
    return str(value)
