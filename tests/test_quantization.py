"""Chosen bins against brute force over all choices, and what ``bins=auto`` refuses and prints."""

import itertools
import math
import random
from fractions import Fraction

import pytest

from headcount.bins import CountBins, build_bins, describe_choice
from headcount.config import AutoBinsConfig, ConfigError
from headcount.quantization import least_error_bins, quantization_error
from headcount.types import BlockGrid

INF = math.inf


def exact_error(histogram: dict[int, int], firsts: tuple[int, ...]) -> Fraction:
    """The sum of squared distances from the bins' means, in whole numbers."""
    total = Fraction(0)
    for first, following in itertools.pairwise([*firsts, max(histogram) + 1]):
        inside = [count for count, blocks in histogram.items() if first <= count < following for _ in range(blocks)]
        mean = Fraction(sum(inside), max(len(inside), 1))
        total += sum((count - mean) ** 2 for count in inside)
    return total


def smallest_bin(histogram: dict[int, int], firsts: tuple[int, ...]) -> int:
    return min(
        sum(blocks for count, blocks in histogram.items() if first <= count < following)
        for first, following in itertools.pairwise([*firsts, max(histogram) + 1])
    )


@pytest.mark.parametrize("seed", range(40))
def test_no_other_bins_have_a_smaller_error(seed: int) -> None:
    generator = random.Random(seed)
    histogram = {count: generator.choice([0, 1, 2, 5, 40]) for count in range(generator.randint(1, 9))}
    histogram |= {0: 50, generator.randint(9, 30): 1 + seed % 3}
    max_bins, min_share = generator.randint(2, 6), generator.choice([0.0, 0.05, 0.3, 0.5])
    counts = [count for count, blocks in histogram.items() if count > 0 and blocks > 0]
    with_heads = sum(histogram[count] for count in counts)
    allowed: dict[int, list[Fraction]] = {}
    for later in itertools.chain.from_iterable(itertools.combinations(range(2, max(counts) + 1), k) for k in range(6)):
        firsts = (1, *later)
        if len(firsts) < max_bins and smallest_bin(histogram, firsts) >= max(min_share * with_heads, 1):
            allowed.setdefault(len(firsts), []).append(exact_error(histogram, firsts))
    edges = least_error_bins(histogram, max_bins=max_bins, min_share=min_share)
    chosen = tuple(int(low) for low, _ in edges[1:])
    assert len(chosen) == max(allowed)
    assert exact_error(histogram, chosen) == min(allowed[len(chosen)])
    assert smallest_bin(histogram, chosen) >= min_share * with_heads
    rms = math.sqrt(exact_error(histogram, chosen) / with_heads)
    assert quantization_error(histogram, edges) == pytest.approx(rms, rel=1e-9, abs=1e-9)


def test_the_bins_cover_every_count_once() -> None:
    edges = least_error_bins({0: 90, 2: 5, 3: 5, 9: 1, 40: 1}, max_bins=4, min_share=0.0)
    assert edges == [(0, 0), (1, 8), (9, 39), (40, INF)]
    bins = CountBins.of_least_error({0: 90, 2: 5, 3: 5, 9: 1, 40: 1}, grid=BlockGrid(8), max_bins=4, min_share=0.0)
    assert bins.representatives == (0.0, 2.5, 9.0, 40.0)


def test_a_share_that_one_bin_alone_reaches_gives_two_bins() -> None:
    assert least_error_bins({0: 5, 1: 4, 2: 4}, max_bins=5, min_share=0.6) == [(0, 0), (1, INF)]


def test_a_share_reached_exactly_counts() -> None:
    histogram = {1: 3, 2: 27}
    assert least_error_bins(histogram, max_bins=3, min_share=0.1) == [(0, 0), (1, 1), (2, INF)]
    assert least_error_bins(histogram, max_bins=3, min_share=0.11) == [(0, 0), (1, INF)]


def test_images_without_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^bins=auto: no block of the training images holds a head.*bins=fine"):
        build_bins(AutoBinsConfig(), {0: 100})


@pytest.mark.parametrize(("block_size", "bins"), [(8, 5), (16, 17), (4, 2), (2, 2)])
def test_the_default_number_is_that_of_fine_bins(block_size: int, bins: int) -> None:
    assert AutoBinsConfig(block_size=block_size).number_of_bins == bins


def test_the_choice_is_compared_with_the_strategies() -> None:
    histogram = {0: 900, 1: 60, 2: 20, 3: 10, 4: 6, 12: 4}
    bins = build_bins(AutoBinsConfig(), histogram)
    assert bins is not None
    lines = [line.split() for line in describe_choice(bins, histogram).splitlines()]
    assert lines[0] == ["heads", "blocks", "share", "bin"]
    assert lines[6] == ["12", "4", "0.4000%", "[12,", "inf)"]
    errors = {line[0]: float(line[-1]) for line in lines if line[0].startswith("bins=")}
    # fine: 6 blocks of 4 and 4 of 12 are counted as 7.2; 6 * 3.2^2 + 4 * 4.8^2 = 153.6, of 100 blocks with heads.
    assert errors["bins=fine"] == pytest.approx(math.sqrt(1.536), abs=5e-5)
    assert errors["bins=auto"] == min(errors.values())
