"""Each block has the color of its most probable bin, at its place."""

import numpy as np
import pytest

from headcount.report.bin_map import bin_colors, bin_map


def test_blocks_have_the_colors_of_their_bins() -> None:
    photo = np.full((80, 120, 3), 100, dtype=np.uint8)
    bins = np.zeros((2, 3), dtype=np.uint8)
    bins[1, 2], bins[0, 0] = 2, 1
    # Blocks of 16 px on a picture of 44 x 30 px: the last ones extend beyond it.
    drawn = bin_map(photo, bins, number_of_bins=3, image_size=(44, 30), block_size=16)
    assert (drawn[20:38, 60:80] == 100).all()  # (0, 1), without people
    for place, number in ((drawn[10, 10], 1), (drawn[70, 110], 2)):
        gray = (place - 255 * bin_colors(3)[number] * 0.8) / 0.2
        assert gray == pytest.approx(100, abs=4)
    assert (drawn[43, 60:80] < 100).all()  # a line between blocks: 16 / 30 * 80 = 42.7


def test_small_blocks_have_no_lines() -> None:
    photo = np.full((20, 20, 3), 100, dtype=np.uint8)
    drawn = bin_map(photo, np.zeros((10, 10), np.uint8), number_of_bins=2, image_size=(80, 80), block_size=8)
    assert (drawn == 100).all()


@pytest.mark.parametrize("bins", [1, 2, 5, 40])
def test_there_is_a_color_for_each_bin(bins: int) -> None:
    colors = bin_colors(bins)
    assert colors.shape == (bins, 3)
    assert len(np.unique(colors, axis=0)) == bins
    assert 0 <= colors.min() <= colors.max() <= 1
