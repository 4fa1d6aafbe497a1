"""Choose the bins of a dataset that nobody has published bins for: the least quantization error, exactly.

A block that holds c heads is counted as its bin's mean count, even if it is classified perfectly. The sum of the
squared differences is the quantization error. For a given number of bins, dynamic programming over the block counts
finds the least one; the same problem is known as Jenks' natural breaks and as one-dimensional k-means.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

Edges = list[tuple[float, float]]


def least_error_bins(histogram: Mapping[int, int], *, max_bins: int, min_share: float) -> Edges:
    """The bins of integers {0}, [1, a], [a + 1, b], ..., [m, inf) with the least quantization error.

    Every bin but {0} holds at least ``min_share`` of the blocks with heads. If it allows fewer bins than
    ``max_bins``, as many as possible are made. Among equally good choices, the bins that begin earliest are taken.

    Args:
        histogram: block count -> number of training blocks.
        max_bins: number of bins, {0} included; at least 2.
        min_share: from 0 to 1.

    Returns:
        First and last integer of each bin; a count that no block has belongs to the bin below it.

    Raises:
        ValueError: if no block holds a head.

    Source: Fisher, "On grouping for maximum homogeneity", JASA 1958.
    """
    counts = sorted(count for count, blocks in histogram.items() if count > 0 and blocks > 0)
    if not counts:
        raise ValueError("no block of the training images holds a head: there is nothing to choose bins from")
    values = np.array(counts, dtype=np.float64)
    blocks = np.array([histogram[count] for count in counts], dtype=np.float64)
    # Cumulated from 0, so that the bin of values[i:j] has totals[j] - totals[i] blocks.
    totals, sums, squares = (np.concatenate([[0.0], np.cumsum(blocks * values**power)]) for power in (0, 1, 2))
    needed = math.ceil(min_share * totals[-1] * (1 - 1e-12))  # a share of 0.1 of 30 blocks is 3, not 3.0000000000000004

    def errors(end: int) -> np.ndarray:
        """Errors of the bins values[start:end] for all starts; infinite for one with too few blocks."""
        inside, sum_, square = (cumulated[end] - cumulated[:end] for cumulated in (totals, sums, squares))
        error = np.maximum(square - sum_**2 / inside, 0.0)
        return np.where(inside >= needed, error, np.inf)

    n = len(counts)
    columns = [errors(end) for end in range(1, n + 1)]
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    starts: list[np.ndarray] = []
    for _ in range(min(max_bins - 1, n)):
        chosen = np.zeros(n + 1, dtype=np.int64)
        following = np.full(n + 1, np.inf)
        for end in range(1, n + 1):
            error = best[:end] + columns[end - 1]
            chosen[end] = int(error.argmin())
            following[end] = error[chosen[end]]
        if not np.isfinite(following[n]):
            break
        best = following
        starts.append(chosen)
    return _edges(counts, starts)


def _edges(counts: Sequence[int], starts: Sequence[np.ndarray]) -> Edges:
    """Follow the best starts backward from the last count; one array of starts per bin."""
    firsts, end = [], len(counts)
    for chosen in reversed(starts):
        end = int(chosen[end])
        firsts.append(1 if end == 0 else counts[end])
    firsts.reverse()
    ends = [*(first - 1 for first in firsts[1:]), math.inf]
    return [(0.0, 0.0), *((float(first), float(last)) for first, last in zip(firsts, ends, strict=True))]


def quantization_error(histogram: Mapping[int, int], edges: Sequence[tuple[float, float]]) -> float:
    """Root mean squared difference between the count of a block and the mean of its bin, over the blocks with heads.

    Args:
        histogram: block count -> number of training blocks.
        edges: first and last integer of each bin.

    Returns:
        In heads per block; 0 without heads.
    """
    total, blocks = 0.0, 0
    for low, high in edges:
        inside = {count: n for count, n in histogram.items() if low <= count <= high and count > 0}
        n = sum(inside.values())
        mean = sum(count * n for count, n in inside.items()) / max(n, 1)
        total += sum(n * (count - mean) ** 2 for count, n in inside.items())
        blocks += n
    return math.sqrt(total / blocks) if blocks else 0.0
