"""The histogram of block counts: the blocks and heads that training counts."""

import pytest
import torch

from headcount.config import ZERO_BELOW, CountedIn, Outside
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram, smoothed_histogram
from headcount.data.points import Smoothing


def test_the_histogram_counts_the_blocks_of_all_training_images() -> None:
    """Two images of 20 x 16: at block size 8 the last four columns belong to no block."""
    points = [torch.tensor([(1.0, 1.0), (7.9, 7.9), (8.0, 0.0), (17.0, 3.0)]), torch.zeros(0, 2)]
    images = [torch.zeros(3, 16, 20, dtype=torch.uint8)] * 2
    sizes = [(20, 16)] * 2
    dataset = CrowdDataset(["a", "b"], images.__getitem__, points, source_sizes=sizes, sizes=sizes)
    assert block_histogram(dataset, 8) == {0: 6, 1: 1, 2: 1}
    assert block_histogram(dataset, 4) == {0: 36, 1: 4}
    assert block_histogram(dataset, 32) == {}


@pytest.mark.parametrize(
    ("rule", "blocks", "windows"),
    [(Outside.clamp, {0: 3, 1: 1}, {0: 75, 1: 6}), (Outside.drop, {0: 4}, {0: 81})],
)
def test_the_histogram_has_heads_outside_where_training_has_them(
    rule: Outside, blocks: dict[int, int], windows: dict[int, int]
) -> None:
    """One head left of an image of 16 x 16, in its sixth row: on the border it is in 6 windows."""
    points, images = [torch.tensor([(-358.0, 5.0)])], [torch.zeros(3, 16, 16, dtype=torch.uint8)]
    sizes = [(16, 16)]
    dataset = CrowdDataset(["a"], images.__getitem__, points, source_sizes=sizes, sizes=sizes, outside=rule)
    assert block_histogram(dataset, 8) == blocks
    assert block_histogram(dataset, 8, counted=CountedIn.windows) == windows


def test_smoothed_counts_sum_to_the_heads() -> None:
    points, images = [torch.tensor([(4.0, 4.0), (12.0, 4.0)])], [torch.zeros(3, 16, 20, dtype=torch.uint8)]
    sizes = [(20, 16)]
    dataset = CrowdDataset(["a"], images.__getitem__, points, source_sizes=sizes, sizes=sizes)
    histogram = smoothed_histogram(dataset, 8, Smoothing(0.5))
    assert histogram == {ZERO_BELOW: 2, 1.0: 2}  # rounded up
    assert sum(smoothed_histogram(dataset, 8, Smoothing(4.0)).values()) == 4
