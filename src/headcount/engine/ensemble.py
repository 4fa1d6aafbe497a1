"""Several counters that count a picture together, and test-time averaging as the Python API takes it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headcount.config import ConfigError, EvalConfig, Tta, counting_errors, range_errors
from headcount.engine.photos import Photo, read_photo
from headcount.engine.predict import PhotoCount, PhotoCounter
from headcount.models.averaging import GridPlace, average
from headcount.types import Counted


@dataclass(repr=False)
class PhotoEnsemble:
    """Several counters that count a picture together: the mean of their counts; build with ``load``.

    Each resizes the picture by its own rule. People per block are averaged on the blocks of the first counter; a block
    of another is divided among these by area. A counter without blocks leaves the ensemble without any.
    """

    members: list[PhotoCounter]
    names: list[str]
    """The checkpoint of each."""
    same_bins: bool
    """Whether all have the same bins; only then their probabilities are averaged."""

    @property
    def predicts(self) -> frozenset[str]:
        """Of ``blocks`` and ``count``, what it predicts for a picture: what all members do."""
        return frozenset.intersection(*(member.predicts for member in self.members))

    def __repr__(self) -> str:
        return f"PhotoEnsemble({', '.join(map(repr, self.members))})"

    def predict(self, photo: Photo) -> PhotoCount:
        """Count the people in a picture of any size; see :meth:`PhotoCounter.predict`."""
        return self.predict_batch([photo])[0]

    def predict_batch(self, photos: Sequence[Photo]) -> list[PhotoCount]:
        """Count the people in several pictures; see :meth:`PhotoCounter.predict_batch`."""
        read: list[Any] = [read_photo(photo) for photo in photos]
        of_members = []
        for name, member in zip(self.names, self.members, strict=True):
            try:
                of_members.append(member.predict_batch(read))
            except FloatingPointError as error:
                raise FloatingPointError(f"{name}: {error}") from error
        return [self._average(counts) for counts in zip(*of_members, strict=True)]

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see ``predict``."""
        return self.predict(photo).count

    def _average(self, counts: Sequence[PhotoCount]) -> PhotoCount:
        counted = [
            Counted(one.count, one.block_counts, one.probabilities if self.same_bins else None, one.mode, one.reason)
            for one in counts
        ]
        grids = [GridPlace.of(one.image, one.block_size) for one in counts]
        mean = average(counted, grids, onto=grids[0], mode=counts[0].mode)
        return dataclasses.replace(
            counts[0],
            count=mean.count,
            block_counts=mean.blocks,
            probabilities=mean.probabilities,
            reason=mean.reason,
            interval=None,  # those of one counter are not the ensemble's
            note="; ".join(dict.fromkeys(filter(None, (one.note for one in counts)))),
        )


def as_averaging(tta: str | None, scales: Sequence[float] | None) -> EvalConfig:
    """Test-time averaging as settings.

    Raises:
        ConfigError: if a value is not allowed.
    """
    if tta is not None and tta not in Tta.__members__:
        raise ConfigError(f"tta={tta}: must be {' or '.join(Tta.__members__)}")
    config = EvalConfig(tta=None if tta is None else Tta[tta], scales=None if scales is None else list(scales))
    if wrong := range_errors(config) or counting_errors(config):
        raise ConfigError(wrong[0].removeprefix("eval."))
    return config
