"""Intervals of counts that held-out images support.

Split conformal prediction: on images that the counter was not trained on, each error is divided by the scale on which
the counter is uncertain about that image. If a new image is exchangeable with these, its score is as likely to have any
rank among theirs, whatever the counter: the interval of the right rank holds its true count with the promised
probability.

Source: Vovk et al., "Algorithmic Learning in a Random World", 2005; Angelopoulos and Bates, arXiv:2107.07511.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from headcount.config import ConfigError, check_level
from headcount.types import CountInterval

PROMISES = (0.5, 0.8, 0.9, 0.95)
"""The levels at which intervals are evaluated."""
MIN_CALIBRATION_IMAGES = 9
"""Fewest images of a calibration: the default level needs them."""
MAX_SCORE = 1e9
"""Highest score of a calibration: more is a damaged file, or a counter that counts nothing."""
# (n + 1) * level may exceed an integer by rounding.
_ROUNDING = 1e-9


def conformal_rank(images: int, level: float) -> int:
    """Which of the sorted scores of calibration images bounds that of a new image with probability ``level``.

    Returns:
        The rank from 1; above ``images`` if no score does.
    """
    return math.ceil((images + 1) * level - _ROUNDING)


def images_needed(level: float) -> int:
    """Fewest calibration images for a level."""
    return math.ceil(level / (1 - level) - _ROUNDING)


def scale(count: float, variance: float | None) -> float:
    """The scale on which a counter is uncertain about an image, in heads.

    The standard deviation of the counter's own distribution. Without one, that of a Poisson distribution. One head is
    added to the variance: an image that the counter holds for certainly empty has an error, too.

    Args:
        count: expected heads.
        variance: of the count; None for a counter without one.
    """
    return math.sqrt(max(count if variance is None else variance, 0.0) + 1)


@dataclass(frozen=True)
class Features:
    """What decides whether an image is like the calibration images."""

    density: float
    """Counted heads per million pixels of the prepared image."""
    megapixels: float
    """Million pixels of the prepared image."""

    @classmethod
    def of(cls, count: float, size: tuple[int, int]) -> "Features":
        """The features of an image that was counted.

        Args:
            count: expected heads.
            size: (width, height) of the prepared image, in pixels.
        """
        megapixels = size[0] * size[1] / 1e6
        return cls(max(count, 0.0) / megapixels, megapixels)


@dataclass(frozen=True)
class Calibration:
    """The errors of a counter on images it was not trained on; stored in its checkpoint."""

    scores: tuple[float, ...]
    """Error of each image over :func:`scale`, in increasing order."""
    dataset: str
    split: str
    names: tuple[str, ...]
    """Of the images, in no order of the scores."""
    digests: tuple[str, ...]
    """SHA-256 of the content of each image, in the order of ``names``."""
    least: Features
    """The lowest value of each feature among the images."""
    most: Features
    """The highest one."""
    mode: str
    """How the images were counted, in words."""

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.names) == len(self.digests) >= 1:
            raise ValueError("a calibration needs one score, name and digest for each image")
        if list(self.scores) != sorted(self.scores) or not all(0 <= score <= MAX_SCORE for score in self.scores):
            raise ValueError(f"the scores of a calibration are 0 to {MAX_SCORE:g}, and in increasing order")
        for name, least in asdict(self.least).items():
            if not 0 <= least <= getattr(self.most, name) < math.inf:
                raise ValueError(f"the limits of the {name} of a calibration are finite, at least 0, and in order")

    def __len__(self) -> int:
        return len(self.scores)

    def check_level(self, level: float, *, setting: str = "level") -> float:
        """A level that these images can support.

        Args:
            setting: named in the error.

        Raises:
            ConfigError: if they are too few for it, or it is not between 0 and 1.
        """
        check_level(level, setting=setting)
        if conformal_rank(len(self), level) > len(self):
            most = math.floor(1000 * len(self) / (len(self) + 1)) / 1000
            raise ConfigError(
                f"{setting}={level:g}: needs a calibration on at least {images_needed(level)} images, and this one has "
                f"{len(self)}; choose at most {most:g}, or calibrate on more images"
            )
        return level

    def interval(
        self, count: float, variance: float | None, level: float, *, size: tuple[int, int], mode: str | None = None
    ) -> CountInterval:
        """The interval of an image at a level.

        Args:
            count: expected heads.
            variance: of the count; None for a counter without one.
            size: (width, height) of the prepared image, in pixels.
            mode: how it was counted, in words; None as the calibration images were.

        Raises:
            ConfigError: if the level is not supported.
        """
        rank = conformal_rank(len(self), self.check_level(level))
        reach = self.scores[rank - 1] * scale(count, variance)
        outside = self._outside(Features.of(count, size))
        if mode not in (None, self.mode):
            outside.append(f"counted in another way ({mode}, calibration {self.mode})")
        return CountInterval(
            max(0.0, count - reach),
            max(0.0, count + reach),
            level,
            calibrated=True,
            outside_calibration="; ".join(outside),
        )

    def crps(self, count: float, variance: float | None, true: float) -> float:
        """Continuous ranked probability score of the distribution whose central intervals these are, in heads.

        It has a point at both ends of the interval of each score; points below 0 are at 0.
        """
        reach = np.array(self.scores) * scale(count, variance)
        return crps_of_points(np.concatenate([count - reach, count + reach]).clip(min=0), true)

    def _outside(self, features: Features) -> list[str]:
        """In what an image is unlike all calibration images."""
        units = {"density": "people per megapixel", "megapixels": "megapixels"}
        found = []
        for name, unit in units.items():
            value, low, high = (getattr(of, name) for of in (features, self.least, self.most))
            # Ends are those of images in this range: rounding must not put them outside.
            if not low * (1 - 1e-6) <= value <= high * (1 + 1e-6):
                found.append(f"{value:.3g} {unit}, in calibration {low:.3g} to {high:.3g}")
        return found

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        plain = asdict(self)
        return plain | {key: list(plain[key]) for key in ("scores", "names", "digests")}

    @classmethod
    def from_plain(cls, plain: Any) -> "Calibration | None":
        """What :meth:`to_plain` wrote; None for None.

        Raises:
            ValueError: if the record is damaged.
        """
        if plain is None:
            return None
        try:
            lists = {key: tuple(map(kind, plain[key])) for key, kind in _LISTS.items()}
            texts = {key: str(plain[key]) for key in ("dataset", "split", "mode")}
            limits = {key: Features(**{k: float(v) for k, v in plain[key].items()}) for key in ("least", "most")}
            return cls(**lists, **texts, **limits)  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"its calibration is unreadable: {error!r}") from error


_LISTS: dict[str, type] = {"scores": float, "names": str, "digests": str}


def crps_of_points(points: Float[np.ndarray, " n"], true: float) -> float:
    """Continuous ranked probability score of equally probable points, in heads: E|X - y| - E|X - X'| / 2.

    Source: Gneiting and Raftery, "Strictly proper scoring rules", 2007, equation 20.
    """
    n = len(points)
    ranks = 2 * np.arange(1, n + 1) - n - 1
    between = 2 * float(np.sort(points) @ ranks) / n**2
    return float(np.abs(points - true).mean()) - between / 2


def supported_promises(images: int) -> list[float]:
    """The levels of :data:`PROMISES` that a calibration on this many images supports."""
    return [level for level in PROMISES if conformal_rank(images, level) <= images]
