"""The overlay shows the density where it is, on light and on dark photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcount.report.overlay import _per_block, overlay_picture


def drawn(path: Path, brightness: int, blocks: torch.Tensor) -> np.ndarray:
    image = torch.full((3, 320, 480), brightness, dtype=torch.uint8)
    overlay_picture(image, blocks, path, block_size=16, title="a $photo_1$.jpg")
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("brightness", [0, 255])
def test_people_are_colored_and_the_rest_is_gray(tmp_path: Path, brightness: int) -> None:
    blocks = torch.zeros(20, 30)
    empty = drawn(tmp_path / "empty.png", brightness, blocks)
    blocks[3:6, 3:6] = 1.0
    crowd = drawn(tmp_path / "crowd.png", brightness, blocks)
    assert empty.shape == crowd.shape
    color = crowd[:, :400].max(2) - crowd[:, :400].min(2)  # left of the scale
    rows, cols = np.nonzero(color > 60)
    # A crowd of 3 x 3 blocks in the upper left corner, and nothing elsewhere.
    assert 300 < len(rows) < 160 * 160
    assert cols.max() < 200
    assert rows.max() < 250
    # It stands out from the photo, be that black or white.
    assert np.abs(crowd - empty)[rows, cols].max(1).mean() > 60


def test_a_picture_of_one_row_and_a_long_name(tmp_path: Path) -> None:
    image = torch.zeros(3, 3, 900, dtype=torch.uint8)
    overlay_picture(image, torch.ones(1, 113), tmp_path / "strip.png", block_size=8, title="x" * 300)
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize("title", ["\u4eba\u7fa4.jpg", "$x_1$ {y} \\frac.jpg", "x" * 300])
def test_any_name_is_a_title(title: str, tmp_path: Path) -> None:
    """Warnings are errors here: letters that the font lacks must not fill the terminal."""
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    overlay_picture(image, torch.ones(2, 2), tmp_path / "a.png", block_size=8, title=title)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("panel", [(20, 30), (10, 15), (7, 3)])
def test_the_scale_is_heads_per_whole_block(panel: tuple[int, int]) -> None:
    """Also in blocks that reach over the image, and where a photo is drawn shrunk: even density stays even."""
    shown = _per_block(np.full((3, 4), 0.5), image=(20, 30), panel=panel, block_size=8)
    assert shown.shape == panel
    np.testing.assert_allclose(shown, 0.5)


def test_a_large_photo_is_drawn_shrunk(tmp_path: Path) -> None:
    blocks = torch.zeros(400, 500)
    blocks[300:320, 400:420] = 2.0
    image = torch.full((3, 3200, 4000), 128, dtype=torch.uint8)
    overlay_picture(image, blocks, tmp_path / "a.png", block_size=8, title="a")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert pixels.shape[1] < 1600
    color = pixels[:, :1380].max(2) - pixels[:, :1380].min(2)
    rows, cols = np.nonzero(color > 60)
    # The crowd lies at 78 % of the height and 82 % of the width.
    assert 0.70 < rows.mean() / pixels.shape[0] < 0.85
    assert 0.68 < cols.mean() / pixels.shape[1] < 0.82
