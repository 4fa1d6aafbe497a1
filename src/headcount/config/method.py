"""How training uses the images: what a batch contains and what is compared."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from headcount.config.fields import number


class CropLayout(Enum):
    """Where the nested crops of an image lie: around its center, or in its top left corner."""

    concentric = 1
    top_left = 2


@dataclass
class MethodConfig:
    """Fields that every training method has."""

    reads_annotations: ClassVar[bool] = True
    """Whether training crops annotated images; if not, it uses whole images and never opens their annotations."""

    name: str = MISSING
    """Name of the method."""


@dataclass
class SupervisedConfig(MethodConfig):
    """Crops of annotated images."""

    name: str = "supervised"


@dataclass
class RankingConfig(MethodConfig):
    """Nested crops of whole images without annotations: a larger crop cannot show fewer people (arXiv:2304.04231)."""

    reads_annotations: ClassVar[bool] = False

    name: str = "ranking"
    crops: int = number(6, 2, 100)
    """Number of nested crops per image, and of ``model.head.numbers``. Crop i of n has i/n of the image's width and
    height; the last one is the whole image."""
    layout: CropLayout = CropLayout.concentric
    """Where the crops lie: ``concentric``, around the center of the image, or ``top_left``, in its corner."""
