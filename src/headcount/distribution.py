"""The distribution of a count over the people that a counter considers possible, from those of the image's blocks.

Blocks are taken as independent. A bin says in which interval a block's count lies, not where: within a bin, the count
has the distribution of largest entropy whose mean is the bin's representative count. That is a uniform distribution for
a representative in the middle, a geometric one for the open bin, and certainty for a bin of one integer.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from headcount.bins import CountBins
from headcount.types import Counted, CountInterval

Ends = tuple[float, float]

_TAIL = 1e-12
"""Probability beyond which the open bin, and the counts of a convolution, are cut off."""
_MAX_CONVOLVED = 500_000
"""Blocks times counts of a block up to which distributions are convolved."""
_STEPS = 200
"""Halvings of an interval: below the resolution of float64."""


# ------------------------------------------------------------------------------------------ within a bin


def bin_moments(bins: CountBins) -> list[float]:
    """Mean square of a block's count in each bin; the mean is the representative count."""
    if bins.smoothed:
        return [
            mean**2 + _interval_variance(low, high, mean)
            for (low, high), mean in zip(bins.edges, bins.representatives, strict=True)
        ]
    return [_bin_square(*edges, mean) for edges, mean in zip(bins.edges, bins.representatives, strict=True)]


def _bin_square(low: float, high: float, mean: float) -> float:
    """Mean square of the integers of :func:`_bin_pmf`; of the open bin in closed form, because its tail may be long."""
    if high == math.inf:
        return mean**2 + (mean - low) * (1 + mean - low)
    pmf = _bin_pmf(low, high, mean)
    return float(pmf @ np.square(np.arange(len(pmf), dtype=np.float64)))


@functools.lru_cache(maxsize=4)
def bin_pmfs(bins: CountBins) -> Float[np.ndarray, "bins counts"]:
    """Probability of each integer, from 0, in each bin.

    Raises:
        ValueError: for bins of smoothed counts, which are no integers.
    """
    if bins.smoothed:
        raise ValueError("smoothed counts are no integers, so that no integer has a probability")
    rows = [_bin_pmf(*edges, mean) for edges, mean in zip(bins.edges, bins.representatives, strict=True)]
    pmfs = np.zeros((len(rows), max(map(len, rows))))
    for pmf, row in zip(pmfs, rows, strict=True):
        pmf[: len(row)] = row
    pmfs.flags.writeable = False  # it is shared
    return pmfs


def _bin_pmf(low: float, high: float, mean: float) -> Float[np.ndarray, " counts"]:
    """Probability of each integer from 0: ratio ** count in the bin, with the ratio that gives this mean."""
    if low in (high, mean):
        return _certain(low)
    if mean == high:
        return _certain(high)
    if high == math.inf:
        weights = _open_ratio(low, mean) ** np.arange(_open_length(low, mean))
    else:
        above = np.arange(int(high - low) + 1)
        slope = _root(lambda slope: float(np.average(above, weights=_tilted(above, slope))) - (mean - low))
        weights = _tilted(above, slope)
    return np.concatenate([np.zeros(int(low)), weights / weights.sum()])


def _open_ratio(low: float, mean: float) -> float:
    """Ratio of the probabilities of one integer and the one before it, in the open bin."""
    return (mean - low) / (1 + mean - low)


def _open_length(low: float, mean: float) -> int:
    """Number of integers of the open bin that are not cut off."""
    return 1 if low == mean else max(1, math.ceil(math.log(_TAIL) / math.log(_open_ratio(low, mean))))


def _support(bins: CountBins) -> int:
    """Number of integers in :func:`bin_pmfs`, from 0."""
    (low, _), mean = bins.edges[-1], bins.representatives[-1]
    return int(low) + _open_length(low, mean)


def _tilted(counts: Int[np.ndarray, " counts"], slope: float) -> Float[np.ndarray, " counts"]:
    """exp(slope * count), divided by the largest."""
    exponents = slope * counts
    return np.exp(exponents - exponents.max())


def _certain(count: float) -> Float[np.ndarray, " counts"]:
    return np.concatenate([np.zeros(int(count)), [1.0]])


def _interval_variance(low: float, high: float, mean: float) -> float:
    """Variance of the exponential distribution on an interval that has this mean."""
    if mean in (low, high):
        return 0.0
    if high == math.inf:
        return (mean - low) ** 2
    width, at = high - low, (mean - low) / (high - low)
    slope = _root(lambda slope: _unit_mean(slope) - at)
    if abs(slope) < 1e-3:  # cancellation
        return width**2 / 12
    return width**2 * (1 / slope**2 - 0.25 / math.sinh(slope / 2) ** 2)


def _unit_mean(slope: float) -> float:
    """Mean of the density exp(slope * x) on [0, 1]."""
    if abs(slope) < 1e-6:
        return 0.5 + slope / 12
    return 1 / -math.expm1(-slope) - 1 / slope


def _root(function: Callable[[float], float]) -> float:
    """Where an increasing function is 0, between -500 and 500."""
    low, high = -500.0, 500.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2


# ------------------------------------------------------------------------------------------ of an image


@dataclass(frozen=True)
class ExactDistribution:
    """The distribution of a sum of independent integers."""

    pmf: Float[np.ndarray, " counts"]
    """Probability of each count from 0."""

    def ends(self, level: float) -> Ends:
        """The ends of the central interval that holds the count with at least this probability."""
        below = np.cumsum(self.pmf)
        tail = (1 - level) / 2
        low, high = np.searchsorted(below, [tail, 1 - tail - _TAIL])
        return float(low), float(min(high, len(below) - 1))

    def crps(self, true: float) -> float:
        """Continuous ranked probability score, in heads: the area between the cumulative distribution and the step at
        the true count, which is an integer; 0 is perfect."""
        counts = max(len(self.pmf), math.ceil(true) + 1)
        below = np.cumsum(np.pad(self.pmf, (0, counts - len(self.pmf))))
        return float(np.square(below - (np.arange(counts) >= true)).sum())


@dataclass(frozen=True)
class NormalDistribution:
    """The normal distribution, which a sum over many blocks is close to."""

    mean: float
    deviation: float
    """Standard deviation."""

    def ends(self, level: float) -> Ends:
        """The ends of the central interval that holds the count with this probability; the lower one is at least 0."""
        from scipy.special import ndtri  # slow to import

        reach = float(ndtri((1 + level) / 2)) * self.deviation
        return max(0.0, self.mean - reach), max(0.0, self.mean + reach)

    def crps(self, true: float) -> float:
        """As :meth:`ExactDistribution.crps`.

        Source: Gneiting and Raftery, "Strictly proper scoring rules", 2007, equation 21.
        """
        if not self.deviation:
            return abs(true - self.mean)
        from scipy.special import ndtr

        z = (true - self.mean) / self.deviation
        density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
        return float(self.deviation * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)))


Distribution = ExactDistribution | NormalDistribution


def own_distribution(
    count: float,
    variance: float | None,
    *,
    probabilities: Float[Tensor, "bins rows cols"] | None = None,
    bins: CountBins | None = None,
    zip_blocks: tuple[Float[Tensor, "rows cols"], Float[Tensor, "rows cols"]] | None = None,
) -> Distribution | None:
    """The distribution of an image's count under the counter's own probabilities.

    Args:
        count: expected heads.
        variance: of the count; None for a counter without one.
        probabilities: of each bin in each block; with ``bins`` of integers, they are convolved exactly unless there
            are too many blocks. None uses the normal distribution.
        bins: of the counter.
        zip_blocks: mean and variance of each block, of a counter whose blocks have zero-inflated Poisson distributions;
            these are convolved instead.

    Returns:
        None for a counter without a variance.
    """
    if variance is None:
        return None
    if zip_blocks is not None:
        pmfs = zip_pmfs(*(values.flatten().double().numpy() for values in zip_blocks))
        return NormalDistribution(count, math.sqrt(variance)) if pmfs is None else ExactDistribution(convolve(pmfs))
    if probabilities is not None and bins is not None and not bins.smoothed:
        of_blocks = probabilities.flatten(1).double().numpy()
        if of_blocks.shape[1] * _support(bins) <= _MAX_CONVOLVED:
            return ExactDistribution(convolve(of_blocks.T @ bin_pmfs(bins)))
    return NormalDistribution(count, math.sqrt(variance))


def counted_distribution(counted: Counted, bins: CountBins | None, *, zero_inflated: bool) -> Distribution | None:
    """:func:`own_distribution` of a counted image.

    Args:
        bins: of the counter; None uses the normal distribution.
        zero_inflated: whether the counter's blocks have zero-inflated Poisson distributions.
    """
    variance = counted.total_variance()
    if zero_inflated:
        return own_distribution(counted.count, variance, zip_blocks=counted.zip_blocks())
    # Inside a mask, blocks count by their share: then the sum of variances is used.
    probabilities = counted.probabilities if counted.shares is None else None
    return own_distribution(counted.count, variance, probabilities=probabilities, bins=bins)


def zip_pmfs(
    means: Float[np.ndarray, " blocks"], variances: Float[np.ndarray, " blocks"]
) -> Float[np.ndarray, "blocks counts"] | None:
    """Probability of each integer from 0 for zero-inflated Poisson distributions with these means and variances.

    Two moments determine such a distribution. Its rate is at least 1, as that of ``model.head=zip``.

    Returns:
        None if there are too many to convolve.
    """
    from scipy.special import gammaln, xlogy  # slow to import

    occupied = means > _TAIL
    # mean = (1 - pi) rate and variance = mean (1 + pi rate), where pi is the probability of being empty.
    ratios = np.divide(variances, means, out=np.ones_like(means), where=occupied)
    rates = np.maximum(means + ratios - 1, 1.0)
    largest = rates.max(initial=1.0)
    counts = np.arange(math.ceil(largest + 8 * math.sqrt(largest)) + 12)
    if len(means) * len(counts) > _MAX_CONVOLVED:
        return None
    poisson = np.exp(xlogy(counts, rates[:, None]) - rates[:, None] - gammaln(counts + 1))
    pmfs: np.ndarray = (means / rates)[:, None] * poisson
    pmfs[:, 0] += 1 - means / rates
    return pmfs


def own_interval(distribution: Distribution | None, level: float) -> CountInterval | None:
    """The interval of the counter's own distribution at a level; None without one."""
    if distribution is None:
        return None
    return CountInterval(*distribution.ends(level), level=level, calibrated=False)


def convolve(pmfs: Float[np.ndarray, "blocks counts"]) -> Float[np.ndarray, " total_counts"]:
    """The distribution of the sum of independent integers.

    Counts less probable than 1e-12 in all partial sums are cut off.

    Args:
        pmfs: of each summand, the probability of each integer from 0.

    Returns:
        Probability of each sum from 0; 1 at 0 without summands.
    """
    if not len(pmfs):
        return np.ones(1)
    while len(pmfs) > 1:
        pmfs = _cut(pmfs)
        if len(pmfs) % 2:
            pmfs = np.concatenate([pmfs, np.eye(1, pmfs.shape[1])])
        counts = 2 * pmfs.shape[1] - 1
        size = 1 << (counts - 1).bit_length()
        spectra = np.fft.rfft(pmfs, size)
        pmfs = np.fft.irfft(spectra[::2] * spectra[1::2], size)[:, :counts].clip(min=0)
    total = _cut(pmfs)[0]
    return total / total.sum()


def _cut(pmfs: Float[np.ndarray, "blocks counts"]) -> Float[np.ndarray, "blocks fewer_counts"]:
    """Without the last counts, which are improbable in all rows."""
    probable = np.flatnonzero(pmfs.max(axis=0) > _TAIL * 1e-3)
    return pmfs[:, : probable[-1] + 1]
