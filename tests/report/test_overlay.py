"""The overlay shows the density where it is, on light and on dark photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcount.report.overlay import overlay_picture


def drawn(path: Path, brightness: int, blocks: torch.Tensor) -> np.ndarray:
    image = torch.full((3, 320, 480), brightness, dtype=torch.uint8)
    overlay_picture(image, blocks, path, block_size=16, title="a $photo_1$.jpg")
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("brightness", [0, 255])
def test_people_are_coloured_and_the_rest_is_grey(tmp_path: Path, brightness: int) -> None:
    blocks = torch.zeros(20, 30)
    empty = drawn(tmp_path / "empty.png", brightness, blocks)
    blocks[3:6, 3:6] = 1.0
    crowd = drawn(tmp_path / "crowd.png", brightness, blocks)
    assert empty.shape == crowd.shape
    colour = crowd[:, :400].max(2) - crowd[:, :400].min(2)  # left of the scale
    rows, cols = np.nonzero(colour > 60)
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
