"""Bins against the released sets, the paper's equation, and counts that lie in none."""

import math

import pytest
import torch

from headcount.bins import CountBins, integer_bins
from headcount.config import BinsConfig, Last, Representatives, Strategy

INF = math.inf
# The bins of the released implementation for blocks of 16 (m = 8) and 32 (m = 19) pixels.
RELEASED_8 = {
    Strategy.fine: [(k, k) for k in range(8)] + [(8, INF)],
    Strategy.dynamic: [(0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, INF)],
    Strategy.coarse: [(0, 0), (1, 2), (3, 4), (5, 6), (7, INF)],
}
RELEASED_19_LENGTHS = {Strategy.fine: 20, Strategy.dynamic: 15, Strategy.coarse: 11}


@pytest.mark.parametrize("strategy", list(Strategy))
def test_released_bins(strategy: Strategy) -> None:
    assert integer_bins(strategy, 8) == RELEASED_8[strategy]
    assert len(integer_bins(strategy, 19)) == RELEASED_19_LENGTHS[strategy]
    assert integer_bins(Strategy.dynamic, 19)[-3:] == [(14, 15), (16, 17), (18, INF)]


def test_paper_bins_for_blocks_of_8() -> None:
    assert BinsConfig().m == 4
    assert integer_bins(Strategy.fine, BinsConfig().m) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, INF)]


@pytest.mark.parametrize(("block", "head", "m"), [(8, 4, 4), (16, 4, 16), (32, 4, 64), (64, 8, 64), (20, 8, 4)])
def test_maximum_count(block: int, head: int, m: int) -> None:
    assert BinsConfig(block_size=block, min_head_px=head).m == m


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("m", range(1, 40))
def test_every_count_has_exactly_one_bin(strategy: Strategy, m: int) -> None:
    edges = integer_bins(strategy, m)
    for count in range(2 * m + 3):
        assert sum(low <= count <= high for low, high in edges) == 1
    assert m >= edges[-1][0]  # m itself lies in the open bin
    assert max((high - low for low, high in edges[:-1]), default=0) <= 1


# 10 blocks of nobody, 4 of one, 2 of two, 1 of three, 3 of five, 1 of nine.
HISTOGRAM = {0: 10, 1: 4, 2: 2, 3: 1, 5: 3, 9: 1}


def test_mean_representatives_by_hand() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, block_size=16, strategy=Strategy.coarse, m=5)
    assert bins.edges == ((0, 0), (1, 2), (3, 4), (5, INF))
    assert bins.representatives == pytest.approx((0, 8 / 6, 3, (3 * 5 + 9) / 4))
    assert bins.shares(HISTOGRAM) == pytest.approx([10 / 21, 6 / 21, 1 / 21, 4 / 21])


def test_middle_representatives() -> None:
    bins = CountBins.from_histogram(
        HISTOGRAM, block_size=16, strategy=Strategy.coarse, m=5, representatives=Representatives.middle
    )
    assert bins.representatives == (0, 1.5, 3.5, 5)


def test_a_bin_no_block_falls_into_takes_its_middle() -> None:
    bins = CountBins.from_histogram({0: 3}, block_size=16, strategy=Strategy.coarse, m=5)
    assert bins.representatives == (0, 1.5, 3.5, 5)


def test_clipped_caps_labels_and_the_last_representative() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, block_size=8, strategy=Strategy.fine, m=4, last=Last.clipped)
    assert bins.representatives[-1] == 4
    assert bins.label(torch.tensor([[[[0.0, 3.0, 4.0, 9.0]]]])).tolist() == [[[0, 3, 4, 4]]]


def test_labels_of_open_interval_bins() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, block_size=16, strategy=Strategy.dynamic, m=8)
    labels = bins.label(torch.tensor([[[[0.0, 3.0, 4.0], [5.0, 8.0, 300.0]]]]))
    assert labels.tolist() == [[[0, 3, 4], [4, 6, 6]]]


@pytest.mark.parametrize("count", [-1.0, 0.5, math.nan, math.inf])
def test_a_count_in_no_bin_is_refused_by_value(count: float) -> None:
    bins = CountBins.from_histogram(HISTOGRAM, block_size=8, strategy=Strategy.fine, m=4)
    with pytest.raises(ValueError, match=f"block count {count:g} lies in no bin"):
        bins.label(torch.tensor([[[[0.0, count]]]]))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (((0, 0), (2, INF)), "leave a gap at"),
        (((0, 1), (1, INF)), "overlap at"),
        (((0, 0), (1, 4)), "must end at inf"),
        (((1, INF),), "leave a gap at"),
    ],
)
def test_bins_that_overlap_or_leave_a_gap_are_refused(edges: tuple[tuple[float, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CountBins(8, edges, tuple(float(low) for low, _ in edges))


def test_plain_values_and_back() -> None:
    bins = CountBins.from_histogram(HISTOGRAM, block_size=8, strategy=Strategy.fine, m=4, last=Last.clipped)
    assert CountBins.from_dict(bins.to_dict()) == bins


def test_description_names_every_bin_and_its_share() -> None:
    text = CountBins.from_histogram(HISTOGRAM, block_size=16, strategy=Strategy.coarse, m=5).describe(HISTOGRAM)
    assert "[1, 2]" in text
    assert "[5, inf)" in text
    assert "47.6190%" in text
    assert "6.0000" in text
