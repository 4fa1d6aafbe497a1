"""Regions of a picture, and the share of each of its blocks that lies in a region.

The people of a block count as spread evenly over the part of the block inside the picture. A block that a region's
border crosses therefore contributes the share of that area which lies in the region, computed exactly: the counts of
regions that tile a picture sum to its count.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import shapely
from jaxtyping import Float
from shapely.geometry import MultiPolygon, Polygon

from headcount.config import ConfigError
from headcount.files import name_text
from headcount.wording import many, printable

Shape: TypeAlias = Polygon | MultiPolygon

ROUNDING = 0.5
"""How far a corner may lie outside the picture, pixels: drawing tools round. Only what lies inside is counted."""
_EXAMPLES = (
    "NAME=x1,y1,x2,y2 (two opposite corners of a rectangle) or NAME=x1,y1,x2,y2,x3,y3,... (a polygon), in pixels, or "
    "with a percent sign after every number in percent of the picture's width and height: left=0%,0%,50%,100%"
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Region:
    """A named polygon, or several polygons that are counted together."""

    name: str
    shape: Shape
    """x right and y down from the picture's top left corner; may have holes."""
    in_percent: bool = False
    """Whether the coordinates are percentages of the picture's width and height instead of pixels."""
    drawn_on: tuple[int, int] | None = None
    """(width, height) in pixels of the picture on which it was drawn; None if unknown."""

    def placed(self, width: int, height: int) -> Shape:
        """The region in pixels of a picture of this size.

        Raises:
            ConfigError: if it was drawn on a picture of another size, or a corner lies outside this one.
        """
        if self.drawn_on not in (None, (width, height)):
            drawn = " x ".join(map(str, self.drawn_on or ()))
            raise ConfigError(
                f"region {self.name}: was drawn on a picture of {drawn} pixels, and this one has {width} x {height}; "
                "draw it on a picture of that size, or give it in percent"
            )
        shape = self.shape
        if self.in_percent:
            shape = shapely.transform(shape, lambda corners: corners / 100 * (width, height))
        left, top, right, bottom = shape.bounds
        beyond = max((-left, "left"), (-top, "upper"), (right - width, "right"), (bottom - height, "lower"))
        if beyond[0] > ROUNDING:
            raise ConfigError(
                f"region {self.name}: reaches {beyond[0]:.6g} pixels beyond the {beyond[1]} border of the picture of "
                f"{width} x {height} pixels; its corners must lie inside"
            )
        if not self.in_percent and max(right, bottom) <= 1 < max(width, height):
            raise ConfigError(
                f"region {self.name}: lies within the first pixel of the picture; coordinates without a percent sign "
                "are pixels: for shares of the picture, type 50% instead of 0.5"
            )
        return shape


@dataclass(frozen=True)
class RegionGrid:
    """Regions on the blocks of pictures of one size."""

    shapes: dict[str, Shape]
    """Each region in pixels of the picture, before it was resized for the counter."""
    shares: dict[str, Float[np.ndarray, "rows cols"]]
    """Share of each block that lies in the region, by name."""

    @classmethod
    def build(
        cls, regions: Sequence[Region], *, photo_size: tuple[int, int], image_size: tuple[int, int], block_size: int
    ) -> "RegionGrid":
        """Lay regions on the blocks of a picture.

        Args:
            regions: with different names.
            photo_size: (width, height) of the picture that the regions are given for, pixels.
            image_size: (width, height) that it was resized to, which the blocks cover from its top left corner.
            block_size: side of a block, in pixels of the resized picture; the last ones may extend beyond it.

        Raises:
            ConfigError: if a region does not fit the picture.
        """
        shapes = {region.name: region.placed(*photo_size) for region in regions}
        shares = {
            name: block_shares(shape, photo_size=photo_size, image_size=image_size, block_size=block_size)
            for name, shape in shapes.items()
        }
        for name, share in shares.items():
            if not share.any():
                raise ConfigError(f"region {name}: no part of it lies inside the picture")
        return cls(shapes, shares)

    def count(self, blocks: Float[np.ndarray, "rows cols"]) -> dict[str, float]:
        """The people in each region, by name, from those in each block."""
        return {name: float((share * blocks).sum(dtype=np.float64)) for name, share in self.shares.items()}


def block_shares(
    shape: Shape, *, photo_size: tuple[int, int], image_size: tuple[int, int], block_size: int
) -> Float[np.ndarray, "rows cols"]:
    """The share of each block's area inside the picture that lies in a polygon, 0 to 1; see :class:`RegionGrid`."""
    # In units of blocks. The division comes first, so that the border of the picture is met exactly.
    across, down = (side / block_size for side in image_size)
    scaled = shapely.transform(shape, lambda corners: corners / photo_size * (across, down))
    rows, cols = math.ceil(down), math.ceil(across)
    row, col = np.mgrid[:rows, :cols]
    shapely.prepare(scaled)
    shares = shapely.contains_xy(scaled, col + 0.5, row + 0.5).astype(np.float64)
    # A block that the outline crosses is that of one of these points, or one of its neighbors; all others lie entirely
    # inside or outside.
    points = np.floor(shapely.get_coordinates(shapely.segmentize(scaled, 0.5))).astype(int)
    crossed = np.zeros((rows + 2, cols + 2), dtype=bool)
    for below, beside in itertools.product(range(3), repeat=2):
        crossed[(points[:, 1] + below).clip(0, rows + 1), (points[:, 0] + beside).clip(0, cols + 1)] = True
    crossed = crossed[1:-1, 1:-1]
    left, top = col[crossed], row[crossed]
    boxes = shapely.box(left, top, np.minimum(left + 1, across), np.minimum(top + 1, down))
    shares[crossed] = shapely.area(shapely.intersection(scaled, boxes)) / shapely.area(boxes)
    return shares


def parse_region(text: str) -> Region:
    """The region that was typed as ``NAME=x1,y1,x2,y2,...``; a name may contain ``=``.

    Raises:
        ConfigError: if it is not of that form, or encloses no area.
    """
    name, equals, coordinates = text.rpartition("=")
    if not equals:
        raise ConfigError(f"region {text}: must be {_EXAMPLES}")
    return region_from_text(name, coordinates)


def region_from_text(name: str, text: str) -> Region:
    """A region from its coordinates as they are typed.

    Raises:
        ConfigError: if they cannot be read, or enclose no area.
    """
    name = region_name(name)
    words = [word.strip() for word in text.split(",")]
    percent = [word.endswith("%") for word in words]
    numbers = [word.removesuffix("%").strip() for word in words]
    wrong = [word for word, number in zip(words, numbers, strict=True) if not _NUMBER.fullmatch(number)]
    if wrong:
        raise ConfigError(f"region {name}: {printable(wrong[0])!r} is not a number; a region is {_EXAMPLES}")
    if any(percent) and not all(percent):
        raise ConfigError(
            f"region {name}: {sum(percent)} of {len(words)} numbers have a percent sign; give all or none in percent"
        )
    if len(words) % 2 or len(words) < 4:
        raise ConfigError(
            f"region {name}: has {many(len(words), 'number')}; it takes 4 for a rectangle, or 6, 8, 10, ... for a "
            "polygon: an x and a y for each corner"
        )
    values = [float(number) for number in numbers]
    return region_from_corners(name, list(zip(values[::2], values[1::2], strict=True)), in_percent=all(percent))


def region_from_corners(
    name: str,
    corners: Sequence[tuple[float, float]],
    *,
    in_percent: bool = False,
    drawn_on: tuple[int, int] | None = None,
) -> Region:
    """A region from the (x, y) of its corners in their order; two are opposite corners of a rectangle.

    Raises:
        ConfigError: if they enclose no area, or its outline crosses itself.
    """
    if not all(math.isfinite(value) for corner in corners for value in corner):
        raise ConfigError(f"region {name}: a coordinate is not finite")
    if len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    if len(set(corners)) < 3:
        raise ConfigError(f"region {name}: encloses no area: it has {many(len(set(corners)), 'different corner')}")
    return checked(Region(name, Polygon(corners), in_percent, drawn_on))


def checked(region: Region) -> Region:
    """The same region.

    Raises:
        ConfigError: if it encloses no area, or its outline crosses itself.
    """
    shape = region.shape
    if not shape.convex_hull.area:  # a bow tie's own area is 0
        raise ConfigError(f"region {region.name}: encloses no area")
    if not shape.is_valid:
        reason = shapely.is_valid_reason(shape)
        raise ConfigError(
            f"region {region.name}: its outline crosses or touches itself ({reason}); give its corners in the order "
            "in which they follow each other along the outline"
        )
    return region


def region_name(name: str) -> str:
    """A region's name as it is printed and written.

    Raises:
        ConfigError: if it is empty.
    """
    name = name_text(name.strip())
    if not name:
        raise ConfigError(f"a region has no name; it is {_EXAMPLES}")
    return name


def distinct(regions: Sequence[Region]) -> list[Region]:
    """The same regions.

    Raises:
        ConfigError: if two have the same name.
    """
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"region {name}: is given {names.count(name)} times; each region needs its own name")
    return list(regions)


def as_regions(given: object) -> list[Region]:
    """Regions as they are passed in Python.

    Args:
        given: regions as :func:`~headcount.data.region_files.read_regions` returns them, or a mapping from a name to
            text as on the command line, to pairs (x, y) in pixels, or to a shapely polygon in pixels.

    Raises:
        ConfigError: if it is something else, or a region is invalid.
    """
    if isinstance(given, Mapping):
        return distinct([_as_region(str(name), value) for name, value in given.items()])
    if isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(r, Region) for r in given):
        return distinct(given)
    raise ConfigError(
        f"regions are a dictionary such as {{'left': '0%,0%,50%,100%', 'door': [(10, 20), (90, 20), (90, 80)]}}, or "
        f"what headcount.read_regions returns, not {type(given)}"
    )


def _as_region(name: str, value: object) -> Region:
    if isinstance(value, str):
        return region_from_text(name, value)
    name = region_name(name)
    if isinstance(value, Shape):
        return checked(Region(name, value))
    try:
        corners = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        corners = np.empty(0)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 2:
        raise ConfigError(
            f"region {name}: is text such as '0%,0%,50%,100%', a list of corners (x, y) or a shapely polygon, not "
            f"{printable(repr(value))[:80]}"
        )
    return region_from_corners(name, [(float(x), float(y)) for x, y in corners])
