"""Draw the outlines, names and counts of regions into a picture."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import UInt8
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from shapely.geometry import Polygon

from headcount.data.regions import RegionGrid, Shape
from headcount.report.pictures import shorten

_MAX_NAME_LENGTH = 24
_MIN_FONT = 12  # pixels
_FONT_SHARE = 1 / 45  # height of the letters in a large picture
_LABEL = (0, 0, 0, 170)
_WHITE, _BLACK = (255, 255, 255, 255), (0, 0, 0, 255)


@dataclass
class DrawnRegion:
    """A region as it is drawn."""

    name: str
    count: float
    """Expected people."""
    shape: Shape
    """In shares of the picture's width and height, 0 to 1."""


def drawn_regions(grid: RegionGrid, counts: dict[str, float], *, photo_size: tuple[int, int]) -> list[DrawnRegion]:
    """The regions of a picture with their counts.

    Args:
        grid: the regions on the picture.
        counts: people by the region's name.
        photo_size: (width, height) of the picture that the grid's shapes are given for, pixels.
    """
    return [
        DrawnRegion(name, counts[name], shapely.transform(shape, lambda corners: corners / photo_size))
        for name, shape in grid.shapes.items()
    ]


def draw_regions(
    pixels: UInt8[np.ndarray, "height width 3"], regions: Sequence[DrawnRegion]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture with the outline of each region, and its name and count inside it."""
    if not regions:
        return pixels
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture, "RGBA")
    size = np.asarray(picture.size)
    thickness = max(2, round(max(size) / 500))
    shapes = [shapely.transform(region.shape, lambda corners: corners * size) for region in regions]
    for shape in shapes:
        for ring in _rings(shape):
            line = [(x, y) for x, y in ring]
            draw.line(line, fill=_BLACK, width=thickness + 2, joint="curve")
            draw.line(line, fill=_WHITE, width=thickness, joint="curve")
    for region, shape in zip(regions, shapes, strict=True):  # above all lines
        place = shape.representative_point()
        text = f"{shorten(region.name, _MAX_NAME_LENGTH)} {region.count:.1f}"
        draw_label(draw, text, (place.x, place.y), picture_size=picture.size)
    return np.asarray(picture)


def draw_corners(
    pixels: UInt8[np.ndarray, "height width 3"], corners: Sequence[tuple[float, float]]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture with the corners of an unfinished region, in shares of width and height, and lines between."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(4, round(max(picture.size) / 150))
    points = [(x * picture.width, y * picture.height) for x, y in corners]
    for color, thickness in ((_BLACK, radius // 2 + 2), (_WHITE, radius // 2)):
        draw.line(points, fill=color, width=thickness, joint="curve")
    for point in points:
        draw.circle(point, radius, fill=_WHITE, outline=_BLACK, width=2)
    return np.asarray(picture)


def draw_label(
    draw: ImageDraw.ImageDraw, text: str, center: tuple[float, float], *, picture_size: tuple[int, int]
) -> None:
    """Write text in white on a dark box, moved so that it lies inside the picture.

    Args:
        draw: draws into an RGB picture in mode ``RGBA``.
        text: one or more lines.
        center: (x, y) of the middle of the box, pixels.
        picture_size: (width, height), pixels.
    """
    letters = font(max(_MIN_FONT, round(max(picture_size) * _FONT_SHARE)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=letters)
    margin = letters.size // 4
    corner = []
    for middle, extent, side in zip(center, (right - left, bottom - top), picture_size, strict=True):
        width = extent + 2 * margin
        corner.append(max(0, min(middle - width / 2, side - width)))
    x, y = corner
    draw.rectangle((x, y, x + right - left + 2 * margin, y + bottom - top + 2 * margin), fill=_LABEL)
    draw.multiline_text((x + margin - left, y + margin - top), text, font=letters, fill=_WHITE)


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font, which is installed everywhere.

    Args:
        size: of the letters, pixels.
    """
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _rings(shape: Shape) -> list[list[tuple[float, float]]]:
    """The outlines of a shape, those of its holes included."""
    parts = [shape] if isinstance(shape, Polygon) else list(shape.geoms)
    return [list(ring.coords) for part in parts for ring in (part.exterior, *part.interiors)]
