"""The prediction head: what a network predicts of an image, block by block or as a whole."""

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from headcount.config.fields import number


class NoPatchLeft(Enum):
    """What is counted where the filters drop every patch of an image: nobody (``zero``), or ``all`` patches."""

    zero = 1
    all = 2


@dataclass
class HeadConfig:
    """Fields that every prediction head has."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count"})
    """What the head predicts, out of count, blocks, logits (over bins), mixture (zero-inflated Poisson) and
    similarities (with sentences)."""
    needs_bins: ClassVar[bool] = False
    """Whether the head classifies blocks into bins; if not, it requires ``bins=none``."""

    name: str = MISSING
    """Name of the prediction head."""


@dataclass
class EbcHeadConfig(HeadConfig):
    """Classify each block into bins; its count is the expectation over them (arXiv:2403.09281, equation 1)."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count", "blocks", "logits"})
    needs_bins: ClassVar[bool] = True

    name: str = "ebc"


@dataclass
class RegressionHeadConfig(HeadConfig):
    """Predict the count of each block without bins."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count", "blocks"})

    name: str = "regression"


@dataclass
class ZipHeadConfig(HeadConfig):
    """A zero-inflated Poisson distribution for each block: the probability that it is structurally empty, and the rate
    of a Poisson distribution otherwise, as the expectation over the bins above 0 (arXiv:2506.19955)."""

    predicts: ClassVar[frozenset[str]] = frozenset({"count", "blocks", "mixture"})
    needs_bins: ClassVar[bool] = True

    name: str = "zip"


@dataclass
class RankingHeadConfig(HeadConfig):
    """Compare an image with sentences about the number of people, and count its patches (arXiv:2304.04231).

    An image is divided into patches. CLIP as it was published drops those that do not show a crowd; each of the others
    counts as the number in the sentence that is most similar to it.
    """

    predicts: ClassVar[frozenset[str]] = frozenset({"count", "similarities"})

    name: str = "ranking"
    prompt: str = "There are {number} persons in the crowd"
    """Sentence about a number of people; must contain ``{number}``."""
    numbers: list[int] = number([20, 55, 90, 125, 160, 195], 0, 1_000_000)
    """Numbers of people in the sentences, ascending; sentence i belongs to the i-th crop of ``method=ranking``."""
    crowd_sizes: list[int] = number([], 1, 1_000_000)
    """Sizes of crowds, ascending, of which CLIP as published first chooses the one that the sentence about it suggests
    for the largest crop in training, and for each patch in counting; ``numbers`` are then multiplied so that the last
    is that size. Empty always uses ``numbers`` as they are."""
    patches: int = number(3, 1, 64)
    """Number of rows, and of columns, of patches into which an image is divided to be counted."""
    scenes: list[str] = field(default_factory=lambda: ["crowd", "tree", "car", "traffic light"])
    """Words in "The object is ..."; a patch is dropped unless the first is the most similar. Empty drops none."""
    parts: list[str] = field(default_factory=lambda: ["human heads", "hands", "legs", "road", "house", "shadow of man"])
    """Words in "The objects are ..."; a patch is dropped unless the first is among the ``parts_kept`` most similar.
    Empty drops none."""
    parts_kept: int = number(3, 1, 1000)
    """See ``parts``."""
    no_patch_left: NoPatchLeft = NoPatchLeft.zero
    """What is counted where no patch is left: ``zero`` people, or ``all`` patches (released code)."""

    @property
    def filters(self) -> bool:
        """Whether patches may be dropped."""
        return bool(self.scenes or self.parts)


def scaled_numbers(head: RankingHeadConfig) -> list[list[int]]:
    """The numbers of people in the sentences for each of the ``crowd_sizes``; as they are without any."""
    numbers = head.numbers
    return [[round(n * size / numbers[-1]) for n in numbers] for size in head.crowd_sizes] or [numbers]


HEADS: dict[str, type[HeadConfig]] = {
    "ebc": EbcHeadConfig,
    "regression": RegressionHeadConfig,
    "zip": ZipHeadConfig,
    "ranking": RankingHeadConfig,
}
"""Kind -> schema."""
