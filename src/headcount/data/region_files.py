"""Read regions from a file that LabelMe saved, or from GeoJSON; the content tells which it is, not the file's name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapely.errors
from shapely.geometry import MultiPolygon, Polygon, shape

from headcount.config import ConfigError
from headcount.data.kinds import DataErrorKind
from headcount.data.regions import Region, checked, distinct, region_from_corners, region_name
from headcount.errors import DataError
from headcount.files import read_text
from headcount.wording import first_names, one_line, printable, url_hint

_TAKEN = "the files of LabelMe (polygons and rectangles) and GeoJSON (Polygon and MultiPolygon, in pixels) are read"
_MAX = 1e9  # pixels
# Keys of other tools' files -> what they are called.
_OTHERS = (
    ({"images", "annotations"}, "COCO annotations"),
    ({"_via_img_metadata"}, "a project of VIA"),
    ({"version", "flags", "imagePath"}, "a file of LabelMe without shapes"),
)


def read_regions(path: Path | str) -> list[Region]:
    """Read the regions of a LabelMe or GeoJSON file.

    LabelMe names a region by its label; GeoJSON by ``name`` or ``label`` in its properties, or the ``id``. Coordinates
    are pixels, x right and y down from the top left corner of the upright picture. LabelMe records the size of the
    picture on which they were drawn: the regions apply to pictures of that size only.

    Raises:
        DataError: if the file is missing, is of another format, or one of its regions is invalid.
    """
    path = Path(path).expanduser()
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = "it is not text" if isinstance(error, UnicodeDecodeError) else str(error)
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)) + (url_hint(str(path)) if not path.exists() else "")
        raise _refused(path, f"cannot be read as regions: {reason}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        start = one_line(text, 40)
        seen = f"it begins with {printable(start)!r}, which is not JSON ({one_line(error)})" if start else "it is empty"
        raise _refused(path, f"is not a file of regions: {seen}; {_TAKEN}") from error
    try:
        return distinct(list(_regions(content)))
    except ConfigError as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, why: str) -> DataError:
    missing = not path.exists()
    kind = DataErrorKind.missing_annotation if missing else DataErrorKind.other_format
    return DataError(f"{path}: {why}", kind=kind, file=path)


def _regions(content: Any) -> Iterator[Region]:
    """The regions of a file's content."""
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        found = _labelme(content)
    elif isinstance(content, dict) and content.get("type") in ("FeatureCollection", "Feature"):
        found = _geojson(content)
    else:
        raise ConfigError(f"is not a file of regions: it holds {_seen(content)}; {_TAKEN}")
    regions = list(found)
    if not regions:
        raise ConfigError("holds no regions")
    yield from regions


def _seen(content: Any) -> str:
    """What a JSON file holds, in a few words."""
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a text", type(None): "null"}.get(type(content), "a number")
        return f"{kind} of {len(content)} items" if isinstance(content, list) else kind
    for keys, words in _OTHERS:
        if keys <= content.keys():
            return words
    if isinstance(content.get("type"), str):
        return f"an object of type {printable(content['type'][:40])}"
    return f"an object with the keys {first_names(list(content)) or '(none)'}"


def _labelme(content: dict[str, Any]) -> Iterator[Region]:
    """The shapes of a LabelMe file."""
    size = (content.get("imageWidth"), content.get("imageHeight"))
    drawn_on = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else None
    for number, drawn in enumerate(content["shapes"], start=1):
        if not isinstance(drawn, dict):
            raise ConfigError(f"shape {number} is not an object")
        if not isinstance(drawn.get("label"), str):
            raise ConfigError(f"shape {number} has no label")
        name = region_name(drawn["label"])
        kind = drawn.get("shape_type", "polygon")
        if kind not in ("polygon", "rectangle"):
            raise ConfigError(f"region {name}: is a {printable(str(kind))[:40]}; only polygons and rectangles are read")
        points = drawn.get("points")
        if not isinstance(points, list) or not all(map(_is_position, points)):
            raise ConfigError(f"region {name}: its points are not pairs of numbers")
        if kind == "polygon" and len(points) < 3:
            raise ConfigError(f"region {name}: encloses no area: its polygon has {len(points)} corners")
        yield region_from_corners(name, [(float(x), float(y)) for x, y in points], drawn_on=drawn_on)


def _geojson(content: dict[str, Any]) -> Iterator[Region]:
    """The features of a GeoJSON file."""
    features = content.get("features") if content["type"] == "FeatureCollection" else [content]
    if not isinstance(features, list):
        raise ConfigError("its features are not a list")
    for number, feature in enumerate(features, start=1):
        if not isinstance(feature, dict):
            raise ConfigError(f"feature {number} is not an object")
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        names = [properties.get("name"), properties.get("label"), feature.get("id")]
        known = [str(name) for name in names if isinstance(name, str | int) and str(name).strip()]
        if not known:
            raise ConfigError(f'feature {number} has no name; add "name" to its properties')
        name = region_name(known[0])
        geometry = feature.get("geometry")
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if kind not in ("Polygon", "MultiPolygon"):
            raise ConfigError(
                f"region {name}: is a {printable(str(kind))[:40]}; only Polygon and MultiPolygon are read"
            )
        yield checked(Region(name, _polygons(name, geometry)))


def _polygons(name: str, geometry: Any) -> Polygon | MultiPolygon:
    """The polygons of a GeoJSON geometry; a third coordinate (height) is ignored."""
    try:
        rings = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        flat = [[[(float(x), float(y)) for x, y, *_ in ring] for ring in polygon] for polygon in rings]
        if not all(abs(value) < _MAX for polygon in flat for ring in polygon for corner in ring for value in corner):
            raise ValueError(f"a coordinate is not finite, or above {_MAX:g}")
        made = shape({"type": "MultiPolygon", "coordinates": flat})
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, shapely.errors.ShapelyError) as error:
        raise ConfigError(f"region {name}: its coordinates are not rings of [x, y] ({one_line(error)})") from error
    return made.geoms[0] if len(made.geoms) == 1 else made


def _is_position(point: Any) -> bool:
    numbers = isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)
    return numbers and all(-_MAX < value < _MAX for value in point)
