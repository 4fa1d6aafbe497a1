"""Annotated frames have one size and one growing scale; the curve of any number of frames has bounded memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shapely.geometry import MultiPolygon, Polygon, box

from headcount.data.regions import RegionGrid, as_regions
from headcount.report.frames import CountCurve, FrameAnnotator, clock
from headcount.report.overlay import overlay_picture
from headcount.report.regions import DrawnRegion, draw_regions, drawn_regions


def flat(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def draw(annotator: FrameAnnotator, height: int, width: int, heads: float = 0.0) -> np.ndarray:
    blocks = torch.zeros(-(-height // 8), -(-width // 8))
    blocks[-1, -1] = heads
    return annotator.draw(flat(height, width), blocks, block_size=8, caption=["7.0 people", "0:01.0"])


@pytest.mark.parametrize(
    ("size", "expected"),
    [((33, 65), (324, 640)), ((720, 1280), (720, 1280)), ((2160, 3841), (1080, 1920)), ((3000, 31), (1920, 20))],
)
def test_sides_are_even_and_of_a_readable_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert draw(FrameAnnotator(), *size).shape == (*expected, 3)


def test_frames_of_another_size_fit_into_the_first(tmp_path: Path) -> None:
    annotator = FrameAnnotator()
    first = draw(annotator, 320, 640)
    wide, tall = draw(annotator, 100, 640), draw(annotator, 640, 100)
    assert first.shape == wide.shape == tall.shape
    assert wide[:98, 300:].min() > 50  # gray photo
    assert wide[104:].max() == 0  # and black below it
    assert tall[:, 300:].max() == 0


def test_the_color_of_a_density_stays_when_it_falls_again() -> None:
    annotator = FrameAnnotator()
    before, much, after = (draw(annotator, 320, 640, heads)[-2, -2].astype(int) for heads in (1.0, 4.0, 1.0))
    assert np.abs(before - much).max() <= 2  # the most so far has the last color
    assert np.abs(after - much).max() > 60


def test_a_counter_without_blocks_has_frames_with_a_count() -> None:
    drawn = FrameAnnotator().draw(flat(320, 640), None, block_size=8, caption=["7.0 people"])
    assert np.ptp(drawn[200:], axis=2).max() == 0
    assert drawn[:40, :150].max() == 255  # the caption


def outline(pixels: np.ndarray) -> np.ndarray:
    return (pixels == 255).all(axis=2)


def test_regions_are_outlined_where_they_are() -> None:
    pixels = np.full((400, 800, 3), 60, dtype=np.uint8)
    half = DrawnRegion("half", 12.3, box(0.5, 0.25, 1.0, 0.75))
    ring = DrawnRegion("ring", 4, Polygon(box(0.1, 0.1, 0.4, 0.9).exterior, [box(0.2, 0.3, 0.3, 0.6).exterior]))
    two = DrawnRegion("two", 4, MultiPolygon([box(0.42, 0.8, 0.48, 0.9), box(0.42, 0.05, 0.48, 0.2)]))
    white = outline(draw_regions(pixels, [half, ring, two]))
    assert pixels.max() == 60  # the picture itself is left as it is
    for x, y in ((0.5, 0.3), (0.7, 0.25), (0.1, 0.2), (0.2, 0.5), (0.48, 0.85), (0.48, 0.1)):
        assert white[round(400 * y) - 2 : round(400 * y) + 3, round(800 * x) - 2 : round(800 * x) + 3].any(), (x, y)
    for x, y in ((0.75, 0.9), (0.15, 0.2), (0.05, 0.5), (0.6, 0.1), (0.45, 0.5)):
        assert not white[round(400 * y) - 6 : round(400 * y) + 7, round(800 * x) - 6 : round(800 * x) + 7].any(), (x, y)
    # Its name and count lie inside it.
    assert white[180:220, 560:640].sum() > 50


def test_any_name_is_drawn_in_pictures_and_curves(tmp_path: Path) -> None:
    """Warnings are errors here."""
    names = ["人群", "$x_1$", "a" * 300, "_hidden"]
    regions = as_regions(dict.fromkeys(names, "0%,0%,10%,10%"))
    grid = RegionGrid.build(regions, photo_size=(64, 32), image_size=(64, 32), block_size=8)
    drawn = drawn_regions(grid, dict.fromkeys(names, 1.0), photo_size=(64, 32))
    overlay_picture(flat(32, 64), torch.ones(4, 8), tmp_path / "a.png", block_size=8, title="a", regions=drawn)
    curve = CountCurve(["people", *names])
    curve.add(0.0, [1.0] * 5)
    curve.draw(tmp_path / "b.png", title="人群$_$.mp4")
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_the_overlay_shows_regions(tmp_path: Path) -> None:
    blocks = torch.zeros(40, 60)
    drawn = []
    for name, regions in (("plain", []), ("outlined", [DrawnRegion("a", 1.0, box(0.25, 0.25, 0.75, 0.75))])):
        overlay_picture(flat(320, 480), blocks, tmp_path / f"{name}.png", block_size=8, title="a", regions=regions)
        drawn.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int))
    changed = np.abs(drawn[0] - drawn[1]).max(axis=2) > 60
    rows, cols = np.nonzero(changed)
    assert len(rows) > 100
    # A centered box of half the sides of the photo.
    assert 0.4 < np.ptp(rows) / 320 < 0.6
    assert 0.4 < np.ptp(cols) / 480 < 0.6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00.0"), (7.46, "0:07.5"), (59.96, "1:00.0"), (720, "12:00.0"), (3723, "1:02:03.0")]
)
def test_times_as_they_are_read(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_short_curve_has_every_frame_and_a_long_one_means() -> None:
    curve = CountCurve(["people", "a"])
    for k in range(3):
        curve.add(k / 10, [k, 2 * k])
    np.testing.assert_allclose(curve.points(), [[0, 0, 0], [0.1, 1, 2], [0.2, 2, 4]])
    for k in range(3, 9_001):
        curve.add(k / 10, [k, 2 * k])
    points = curve.points()
    assert curve.frames_per_point == 4
    assert 2000 <= len(points) <= 4000
    np.testing.assert_allclose(points[0], [0.15, 1.5, 3])  # of the frames 0 to 3
    np.testing.assert_allclose(points[-1], [900, 9000, 18000])  # of the last frame alone
    assert len(CountCurve(["people"]).points()) == 0
