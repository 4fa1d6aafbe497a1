"""Regions hold the exact share of every block, and those that tile a picture sum to its count."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from headcount.config import ConfigError
from headcount.data.region_files import read_regions
from headcount.data.regions import RegionGrid, as_regions, block_shares, parse_region
from headcount.errors import DataError

SQUARE = {"photo_size": (40, 24), "image_size": (40, 24), "block_size": 8}


def shares(text: str, **sizes: Any) -> np.ndarray:
    sizes = {**SQUARE, **sizes}
    return block_shares(parse_region(f"a={text}").placed(*sizes["photo_size"]), **sizes)


def test_a_rectangle_by_hand() -> None:
    # Blocks of 8 px: x from 4 to 20 is half of column 0, all of column 1, half of column 2; y from 8 to 14 is 3/4 of
    # row 1.
    expected = np.zeros((3, 5))
    expected[1, :3] = [0.375, 0.75, 0.375]
    for text in ("4,8,20,14", "20,14,4,8", "4,14,20,8", "4,8,20,8,20,14,4,14"):
        np.testing.assert_allclose(shares(text), expected, atol=1e-15)
    assert shares("10%,33.333333333333336%,50%,58.333333333333336%") == pytest.approx(expected)


def test_a_triangle_and_a_concave_polygon_by_hand() -> None:
    # The diagonal of the 16 x 16 corner halves the blocks on it.
    np.testing.assert_allclose(shares("0,0,16,0,0,16")[:2, :2], [[1, 0.5], [0.5, 0]])
    # An L: two blocks down, and one to the right at the bottom.
    ell = shares("0,0,8,0,8,8,16,8,16,16,0,16")
    expected = np.zeros((3, 5))
    expected[0, 0] = expected[1, 0] = expected[1, 1] = 1
    np.testing.assert_allclose(ell, expected)
    # A U whose gap of 4 px runs through the middle block: 3/4 of a block less than a rectangle.
    np.testing.assert_allclose(shares("0,0,10,0,10,6,14,6,14,0,24,0,24,8,0,8")[0, :3], [1, 1 - 4 * 6 / 64, 1])


def test_blocks_that_extend_beyond_the_picture_count_inside_it_only() -> None:
    sizes = {"photo_size": (20, 10), "image_size": (20, 10), "block_size": 8}
    whole = shares("0,0,20,10", **sizes)
    np.testing.assert_array_equal(whole, np.ones((2, 3)))  # the last column is 4 px wide, the last row 2 px high
    half = shares("0,0,18,10", **sizes)
    np.testing.assert_allclose(half, [[1, 1, 0.5]] * 2)


def test_pictures_that_are_resized() -> None:
    """A photo of 100 x 50 px enlarged to 96 x 64: 25 px of it are 3 blocks of 8."""
    sizes = {"photo_size": (100, 50), "image_size": (96, 64), "block_size": 8}
    quarter = shares("0,0,25,50", **sizes)
    np.testing.assert_allclose(quarter[:, :3], 1)
    assert not quarter[:, 3:].any()
    np.testing.assert_allclose(shares("0,0,100,25", **sizes)[:4], 1)
    # 1 px of the photo is 0.12 blocks across and 0.16 down.
    assert shares("0,0,1.001,1", **sizes)[0, 0] == pytest.approx(1.001 * 0.96 / 8 * 64 / 50 / 8)


@pytest.mark.parametrize("photo", [(97, 53), (4000, 3000), (31, 1000)])
@pytest.mark.parametrize("image", [(104, 72), (101, 67)])
def test_regions_that_tile_the_picture_sum_to_its_count(photo: tuple[int, int], image: tuple[int, int]) -> None:
    """Random cells around random points, which have corners of any kind."""
    rng = np.random.default_rng(photo[0] + image[0])
    frame = box(0, 0, *photo)
    points = shapely.MultiPoint(rng.uniform(0, 1, (9, 2)) * photo)
    cells = shapely.voronoi_polygons(points, extend_to=frame)
    tiles = {f"t{k}": cell.intersection(frame) for k, cell in enumerate(cells.geoms)}
    assert len(tiles) == 9
    # Merging cells makes concave polygons, some with holes or several parts.
    tiles["t0"] = tiles["t0"].union(tiles.pop("t5")).union(tiles.pop("t7"))
    grid = RegionGrid.build(as_regions(tiles), photo_size=photo, image_size=image, block_size=8)
    blocks = rng.gamma(0.3, 9, next(iter(grid.shares.values())).shape)
    counts = grid.count(blocks)
    assert min(counts.values()) > 0
    assert math.fsum(counts.values()) == pytest.approx(blocks.sum(), abs=1e-6)
    np.testing.assert_allclose(sum(grid.shares.values()), 1, atol=1e-9)


def test_strips_in_percent_tile_a_picture() -> None:
    edges = [0, 12.3456789, 100 / 3, 66.6, 99.999, 100]
    strips = {f"s{k}": f"{a}%,0%,{b}%,100%" for k, (a, b) in enumerate(itertools.pairwise(edges))}
    grid = RegionGrid.build(as_regions(strips), photo_size=(641, 479), image_size=(672, 512), block_size=16)
    blocks = np.random.default_rng(0).uniform(0, 5, (32, 42))
    assert sum(grid.count(blocks).values()) == pytest.approx(blocks.sum(), abs=1e-6)


def test_a_hole_and_several_parts() -> None:
    ring = Polygon([(0, 0), (24, 0), (24, 24), (0, 24)], [[(8, 8), (16, 8), (16, 16), (8, 16)]])
    parts = MultiPolygon([box(0, 0, 8, 8), box(16, 0, 24, 8)])
    grid = RegionGrid.build(as_regions({"ring": ring, "parts": parts}), **SQUARE)
    assert grid.count(np.ones((3, 5))) == pytest.approx({"ring": 8, "parts": 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10,10,20,20", "^region 10,10,20,20: must be NAME=x1,y1,x2,y2"),
        ("=1,2,3,4", "^a region has no name"),
        (" =1,2,3,4", "^a region has no name"),
        ("a=1,2,3", "^region a: has 3 numbers; it takes 4 for a rectangle, or 6, 8"),
        ("a=1,2", "has 2 numbers"),
        ("a=1,2,3,4,5", "has 5 numbers"),
        ("a=1,2,3,x", "^region a: 'x' is not a number"),
        ("a=1,2,,4", "^region a: '' is not a number"),
        ("a=1,2,nan,4", "'nan' is not a number"),
        ("a=1,2,1_0,4", "'1_0' is not a number"),
        ("a=1,2,1e999,4", "^region a: a coordinate is not finite"),
        ("a=1%,2%,3,4", "^region a: 2 of 4 numbers have a percent sign; give all or none"),
        ("a=1,2,1,9", "^region a: encloses no area: it has 2 different corners"),
        ("a=1,2,1,2", "it has 1 different corner$"),
        ("a=0,0,5,5,9,9", "^region a: encloses no area"),
        ("a=0,0,8,8,8,0,0,8", r"^region a: its outline crosses or touches itself \(Self-intersection\[4 4\]\)"),
        ("a=0,0,9,0,9,9,5,0,0,9", r"its outline crosses or touches itself"),
    ],
)
def test_what_is_no_region_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_region(text)


def test_a_name_may_hold_an_equals_sign_and_is_printable() -> None:
    assert parse_region("a=b=1,2,3,4").name == "a=b"
    assert parse_region("a\x1b[2J=1,2,3,4").name == r"a\x1b[2J"
    assert parse_region("e\u0301 = 1, 2, 3, 4").name == "\u00e9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30,2,41.25,4", "^region a: reaches 1.25 pixels beyond the right border of the picture of 40 x 24 pixels"),
        ("-3,2,8,9", "reaches 3 pixels beyond the left border"),
        ("0,-0.75,8,9", "reaches 0.75 pixels beyond the upper border"),
        ("0,0,8,30", "reaches 6 pixels beyond the lower border"),
        ("0%,0%,110%,50%", "reaches 4 pixels beyond the right border"),
        ("0.1,0.2,0.5,1", "lies within the first pixel of the picture; .* for shares of the picture, type 50% instead"),
    ],
)
def test_a_region_outside_the_picture_is_refused_with_how_far(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shares(text)


def test_rounding_at_the_border_is_accepted_and_adds_nothing() -> None:
    np.testing.assert_array_equal(shares("-0.5,-0.5,40.5,24.5"), np.ones((3, 5)))
    with pytest.raises(ConfigError, match=r"^region a: no part of it lies inside the picture"):
        RegionGrid.build(as_regions({"a": "40,0,40.4,24"}), **SQUARE)
    np.testing.assert_array_equal(
        shares("0,0,1,1", photo_size=(1, 1), image_size=(8, 8)),
        np.ones((1, 1)),  # the only pixel
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("left=0,0,9,9", "^regions are a dictionary .* not <class 'str'>"),
        (None, "not <class 'NoneType'>"),
        ([(0, 0), (9, 9)], "not <class 'list'>"),
        ({"a": [1, 2, 3]}, r"^region a: is text such as .* not \[1, 2, 3\]"),
        ({"a": [(1, 2, 3), (4, 5, 6)]}, "^region a: is text such as"),
        ({"a": [[(0, 0)], 3]}, "^region a: is text such as"),
        ({"a": 7}, "not 7$"),
        ({"a": [(0, 0), (9, 0), (math.nan, 9)]}, "^region a: a coordinate is not finite"),
        ({"a": Polygon([(0, 0), (8, 8), (8, 0), (0, 8)])}, "^region a: its outline crosses"),
        ({"a": Polygon()}, "^region a: encloses no area"),
        ({"é": "0,0,9,9", "e\u0301": "1,1,9,9"}, "^region é: is given 2 times"),
    ],
)
def test_regions_in_python_are_refused_with_what_is_taken(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_regions(given)


LABELME: dict[str, Any] = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {"label": "queue", "points": [[0, 0], [16, 0], [0, 16]], "group_id": None, "shape_type": "polygon"},
        {"label": "door", "points": [[24, 16], [8.0, 8.0]], "shape_type": "rectangle"},
    ],
    "imagePath": "a.jpg",
    "imageData": None,
    "imageHeight": 24,
    "imageWidth": 40,
}


def feature(geometry: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


RING = [[0, 0], [16, 0], [0, 16], [0, 0]]
GEOJSON: dict[str, Any] = {
    "type": "FeatureCollection",
    "features": [
        feature({"type": "Polygon", "coordinates": [RING]}, name="queue"),
        {
            **feature({"type": "MultiPolygon", "coordinates": [[[[8, 8, 1], [24, 8, 1], [24, 16, 1], [8, 16, 1]]]]}),
            "id": 7,
        },
    ],
}


@pytest.mark.parametrize(("content", "names"), [(LABELME, ["queue", "door"]), (GEOJSON, ["queue", "7"])])
def test_files_are_recognized_by_their_content(content: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    file = tmp_path / "regions.txt"
    file.write_text(json.dumps(content))
    regions = read_regions(file)
    assert [region.name for region in regions] == names
    grid = RegionGrid.build(regions, **SQUARE)
    np.testing.assert_allclose(grid.shares["queue"][:2, :2], [[1, 0.5], [0.5, 0]])
    expected = np.zeros((3, 5))
    expected[1, 1:3] = 1
    np.testing.assert_allclose(grid.shares[names[1]], expected)


def test_regions_that_were_drawn_on_a_picture_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(LABELME))
    with pytest.raises(ConfigError, match=r"^region queue: was drawn on a picture of 40 x 24 pixels, .* has 80 x 48"):
        read_regions(tmp_path / "a.json")[0].placed(80, 48)


def test_a_hole_in_geojson(tmp_path: Path) -> None:
    hole = [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]
    outer = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
    (tmp_path / "a.json").write_text(
        json.dumps(feature({"type": "Polygon", "coordinates": [outer, hole]}, label="ring"))
    )
    (region,) = read_regions(tmp_path / "a.json")
    assert block_shares(region.placed(40, 24), **SQUARE)[0, 0] == pytest.approx(0.75)


def _labelme(**shape: Any) -> str:
    return json.dumps({**LABELME, "shapes": [{**LABELME["shapes"][0], **shape}]})


def _geojson(geometry: Any, **properties: Any) -> str:
    return json.dumps(feature(geometry, **properties))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a file of regions: it is empty"),
        ("<annotations/>", "it begins with '<annotations/>', which is not JSON"),
        ("[1, 2]", "it holds a list of 2 items; the files of LabelMe"),
        ("3", "it holds a number"),
        ('{"images": [], "annotations": [], "categories": []}', "it holds COCO annotations"),
        ('{"a": 1, "b": 2}', "it holds an object with the keys a, b"),
        ('{"type": "Topology"}', "it holds an object of type Topology"),
        ("[" * 100_000, "is not a file of regions: it begins with"),
        ('{"shapes": []}', "holds no regions"),
        ('{"type": "FeatureCollection", "features": 3}', "its features are not a list"),
        ('{"shapes": [3]}', "shape 1 is not an object"),
        (_labelme(label=None), "shape 1 has no label"),
        (_labelme(label=" "), "a region has no name"),
        (_labelme(shape_type="circle"), "region queue: is a circle; only polygons and rectangles are read"),
        (_labelme(points=[[0, 0], [1, "x"], [3, 3]]), "region queue: its points are not pairs of numbers"),
        (_labelme(points=[[0, 0], [1, 10**400], [3, 3]]), "its points are not pairs of numbers"),
        (_labelme(points=[[0, 0], [1, math.inf], [3, 3]]), "its points are not pairs of numbers"),
        (_labelme(points=[[0, 0], [9, 9]]), "encloses no area: its polygon has 2 corners"),
        (_labelme(points=[[0, 0], [8, 8], [8, 0], [0, 8]]), "region queue: its outline crosses"),
        (json.dumps({"shapes": LABELME["shapes"][:1] * 2}), "region queue: is given 2 times"),
        (_geojson({"type": "Polygon", "coordinates": [RING]}), 'feature 1 has no name; add "name"'),
        (_geojson({"type": "Point", "coordinates": [1, 2]}, name="p"), "region p: is a Point; only Polygon and Multi"),
        (_geojson(None, name="p"), "region p: is a None; only Polygon"),
        (_geojson({"type": "Polygon"}, name="p"), "region p: its coordinates are not rings"),
        (_geojson({"type": "Polygon", "coordinates": [[[0, 0], [1]]]}, name="p"), "its coordinates are not rings"),
        (_geojson({"type": "Polygon", "coordinates": []}, name="p"), "region p:"),
        (_geojson({"type": "Polygon", "coordinates": [[[0, 0], [math.nan, 5], [5, 5]]]}, name="p"), "not finite"),
    ],
)
def test_other_files_are_refused_with_what_was_seen(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(content)
    with pytest.raises(DataError, match=f"^{file}: .*") as error:
        read_regions(file)
    assert message in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for path, reason in (
        (tmp_path / "gone.json", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "bytes.json", "it is not text"),
        ("https://example.org/r.json", "this is a URL: download"),
    ):
        with pytest.raises(DataError, match=reason):
            read_regions(path)
