"""Files of annotation tools: what each says about its images, and which of its marks are heads.

Recognized by their content: LabelMe (json), CVAT for images (xml), VIA 2 (json, csv), Label Studio (json), COCO (json),
Supervisely (json), makesense.ai (csv without a header). cclabeler's json holds ``points`` like any other json file.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from headcount.config import Boxes
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import IMAGE_ENDINGS
from headcount.data.textfile import is_number, read_text
from headcount.errors import DataError
from headcount.files import quoted
from headcount.wording import cut, many, one_line, printable

_MAKESENSE_COLUMNS = 6  # label, x, y, image, width, height
_VIA_COLUMN = "region_shape_attributes"


@dataclass(frozen=True)
class HeadMarks:
    """Which marks of a tool's file are heads."""

    label: str | None = None
    """Only marks with this label; None accepts a file with a single label."""
    boxes: Boxes = Boxes.refuse


@dataclass(frozen=True)
class Mark:
    """One mark in an image."""

    label: str
    shape: str
    """``point``, ``box``, or the tool's name for another shape."""
    xy: tuple[float, float]
    """The point or the center of the box, in pixels; of no meaning for other shapes."""


@dataclass
class ToolFile:
    """What a tool's file says."""

    tool: str
    images: dict[str, list[Mark]] = field(default_factory=dict)
    """Marks by image, as the file names it."""
    about_one: bool = False
    """Whether the file is about one image, which its own name names."""

    def heads(self, path: Path, marks: HeadMarks) -> dict[str, np.ndarray]:
        """The positions (n, 2) of the heads of each image.

        Raises:
            DataError: if it is unclear which marks are heads; says what there is and what to set.
        """
        every = [mark for of_image in self.images.values() for mark in of_image]
        chosen = [mark for mark in every if marks.label in (None, mark.label)]
        if problem := _problem(every, chosen, marks):
            message = f"{path}, a file of {self.tool}: {problem}"
            raise DataError(printable(message), kind=DataErrorKind.annotation, file=path)
        return {
            image: np.array([m.xy for m in of_image if marks.label in (None, m.label)], np.float64).reshape(-1, 2)
            for image, of_image in self.images.items()
        }


def _problem(every: Sequence[Mark], chosen: Sequence[Mark], marks: HeadMarks) -> str | None:
    """Why the heads among the marks are unclear; None if they are not."""
    labels = Counter(mark.label for mark in every)
    shapes = Counter(mark.shape for mark in chosen)
    listed = ", ".join(f"{cut(label)} ({number})" for label, number in labels.most_common(8))
    if marks.label is None and len(labels) > 1:
        first = quoted(cut(next(iter(labels))))
        return f"it has the labels {listed}; choose the one of the heads with dataset.label={first}"
    if marks.label is not None and every and not chosen:
        return f"dataset.label={marks.label}: no mark has this label; there are {listed}"
    others = [f"{number} of shape {cut(shape)}" for shape, number in shapes.items() if shape not in ("point", "box")]
    if others:
        return f"{', '.join(others)} cannot be heads; mark heads as points, or choose a label with dataset.label"
    boxes = f"{shapes['box']} {'box' if shapes['box'] == 1 else 'boxes'}"
    if shapes["box"] and shapes["point"]:
        return (
            f"it has {many(shapes['point'], 'point')} and {boxes}, which may mark the same heads; remove one kind, or "
            "choose a label with dataset.label"
        )
    if shapes["box"] and marks.boxes is Boxes.refuse:
        return f"it has {boxes}; if each is around one head, count their centers with dataset.boxes=centers"
    return None


# --------------------------------------------------------------------------------------------- JSON


def read_tool_json(content: Any, path: Path) -> ToolFile | None:
    """What a tool's JSON file says; None if it is of no known tool.

    Args:
        content: the parsed file.
        path: for messages only.

    Raises:
        DataError: if the file is of a known tool but damaged, or holds what cannot be converted.
    """
    for recognized, read in _JSON_TOOLS:
        if recognized(content):
            try:
                return read(content)
            except DataError:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
                tool = read.__name__.removeprefix("_read_")
                message = f"{path} is a damaged file of {_NAMES[tool]}: {one_line(f'{type(error).__name__}: {error}')}"
                raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
    return None


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_labelme(content: Any) -> ToolFile:
    marks = []
    for shape in content["shapes"]:
        kind = {"rectangle": "box"}.get(shape.get("shape_type", "polygon"), shape.get("shape_type", "polygon"))
        x, y = np.mean([[_number(v) for v in point] for point in shape["points"]], axis=0)
        marks.append(Mark(_text(shape["label"]), kind, (float(x), float(y))))
    return ToolFile("LabelMe", {_text(content["imagePath"]): marks}, about_one=True)


def _is_supervisely(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("objects"), list) and "size" in content


def _read_supervisely(content: Any) -> ToolFile:
    marks = []
    for item in content["objects"]:
        kind = {"rectangle": "box"}.get(item["geometryType"], item["geometryType"])
        corners = item["points"]["exterior"] if kind in ("point", "box") else [[0, 0]]
        x, y = np.mean([[_number(v) for v in point] for point in corners], axis=0)
        marks.append(Mark(_text(item["classTitle"]), kind, (float(x), float(y))))
    return ToolFile("Supervisely", {"": marks}, about_one=True)


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def _read_coco(content: Any) -> ToolFile:
    categories = {item["id"]: item for item in content.get("categories", [])}
    names = {image["id"]: _text(image["file_name"]) for image in content["images"]}
    if len(set(names.values())) < len(content["images"]):
        raise ValueError("two images have one id or one file_name")
    found = ToolFile("COCO", {name: [] for name in names.values()})
    for item in content["annotations"]:
        category = categories.get(item.get("category_id"), {})
        found.images[names[item["image_id"]]] += _coco_marks(item, category)
    return found


def _coco_marks(item: Mapping[str, Any], category: Mapping[str, Any]) -> Iterator[Mark]:
    """Visible keypoints of a category with one keypoint; otherwise the box."""
    label = _text(category.get("name", item.get("category_id", "")))
    keypoints = item.get("keypoints") or []
    if keypoints and len(category.get("keypoints", ["head"])) <= 1:
        for x, y, visible in zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True):
            if _number(visible) > 0:
                yield Mark(label, "point", (_number(x), _number(y)))
    elif item.get("bbox"):
        x, y, width, height = map(_number, item["bbox"])
        yield Mark(label, "box", (x + width / 2, y + height / 2))
    else:
        yield Mark(label, "keypoints" if keypoints else "segmentation", (0, 0))


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
    """A region; its label is the value of its only attribute."""
    values = [value for value in attributes.values() if isinstance(value, str) and value]
    label = values[0] if len(values) == 1 else ""
    if shape["name"] == "point":
        return Mark(label, "point", (_number(shape["cx"]), _number(shape["cy"])))
    if shape["name"] == "rect":
        x, y, width, height = (_number(shape[key]) for key in ("x", "y", "width", "height"))
        return Mark(label, "box", (x + width / 2, y + height / 2))
    return Mark(label, _text(shape["name"]), (0, 0))


def _is_label_studio(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in content)
        and all(isinstance(task.get("annotations", task.get("completions")), list) for task in content)
    )


def _read_label_studio(content: Any) -> ToolFile:
    found = ToolFile("Label Studio")
    for task in content:
        (address,) = (v for v in task["data"].values() if isinstance(v, str) and v.lower().endswith(IMAGE_ENDINGS))
        name = re.split(r"[/\\]|%2F|\?d=", address)[-1]
        done = [a for a in task.get("annotations", task.get("completions")) if not a.get("was_cancelled")]
        if len(done) > 1:
            raise ValueError(
                f"{cut(name)} has {len(done)} annotations, of several annotators; export one of each image"
            )
        if name in found.images:
            raise ValueError(f"{cut(name)} comes twice")
        found.images[name] = [
            _studio_mark(r) for a in done for r in a["result"] if r.get("type", "").endswith(("labels", "keypoint"))
        ]
    return found


def _studio_mark(result: Mapping[str, Any]) -> Mark:
    """A result; its positions are percent of the image."""
    value, kind = result["value"], result["type"]
    labels = value.get(kind, [])
    label = _text(labels[0]) if labels else ""
    if kind not in ("keypointlabels", "keypoint", "rectanglelabels"):
        return Mark(label, kind.removesuffix("labels"), (0, 0))
    if result.get("image_rotation"):
        raise ValueError(f"an image is turned by {result['image_rotation']} degrees; turn the image file instead")
    x, y = _number(value["x"]), _number(value["y"])
    if kind == "rectanglelabels":
        x, y = x + _number(value["width"]) / 2, y + _number(value["height"]) / 2
    position = (x / 100 * _number(result["original_width"]), y / 100 * _number(result["original_height"]))
    return Mark(label, "box" if kind == "rectanglelabels" else "point", position)


_NAMES = {
    "labelme": "LabelMe",
    "supervisely": "Supervisely",
    "coco": "COCO",
    "via": "VIA",
    "label_studio": "Label Studio",
}
_JSON_TOOLS: tuple[tuple[Callable[[Any], bool], Callable[[Any], ToolFile]], ...] = (
    (_is_labelme, _read_labelme),
    (_is_supervisely, _read_supervisely),
    (_is_coco, _read_coco),
    (_is_via, _read_via),
    (_is_label_studio, _read_label_studio),
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
            if image.attrib["name"] in found.images:
                raise ValueError(f"{cut(image.attrib['name'])} comes twice")
            found.images[image.attrib["name"]] = [mark for shape in image for mark in _cvat_marks(shape)]
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        message = f"{path} is not a readable XML file of CVAT: {one_line(error)}"
        raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
    return found


def _cvat_marks(shape: ElementTree.Element) -> Iterator[Mark]:
    label = shape.attrib.get("label", "")
    if shape.tag == "points":
        for pair in shape.attrib["points"].split(";"):
            x, y = map(_number, pair.split(","))
            yield Mark(label, "point", (x, y))
    elif shape.tag == "box":
        left, top, right, bottom = (_number(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        yield Mark(label, "box", ((left + right) / 2, (top + bottom) / 2))
    elif shape.tag != "tag":  # a tag is about the whole image
        yield Mark(label, shape.tag, (0, 0))


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


def _read_table(
    path: Path, tool: str, rows: Sequence[Sequence[str]], read: Callable[[Sequence[str]], tuple[str, Mark | None]]
) -> ToolFile:
    found = ToolFile(tool)
    for row in rows:
        try:
            image, mark = read(row)
        except (LookupError, TypeError, ValueError) as error:
            message = f"{path}, a file of {tool}: {','.join(row)[:80]!r} cannot be read: {one_line(error)}"
            raise DataError(printable(message), kind=DataErrorKind.annotation, file=path) from error
        found.images.setdefault(image, []).extend([mark] if mark else [])
    return found


def _via_row(row: Mapping[str, str]) -> tuple[str, Mark | None]:
    """A line of VIA; an image without regions has an empty shape."""
    shape = json.loads(row[_VIA_COLUMN] or "{}")
    attributes = json.loads(row.get("region_attributes") or "{}")
    return row["filename"], _via_mark(shape, attributes) if shape else None


def _is_makesense(row: Sequence[str]) -> bool:
    numbers = [row[k] for k in (1, 2, 4, 5)] if len(row) == _MAKESENSE_COLUMNS else []
    return bool(numbers) and all(map(is_number, numbers)) and row[3].lower().endswith(IMAGE_ENDINGS)


def _makesense_row(row: Sequence[str]) -> tuple[str, Mark | None]:
    return row[3], Mark(row[0], "point", (_number(row[1]), _number(row[2])))


# -------------------------------------------------------------------------------------------- values


def _number(value: Any) -> float:
    """A number, which may be written as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{str(value)[:40]!r} is not a number")
    if isinstance(value, str) and not is_number(value.strip()):
        raise ValueError(f"{value[:40]!r} is not a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, (str, int)):
        raise ValueError(f"{str(value)[:40]!r} is not a name")
    return str(value)
