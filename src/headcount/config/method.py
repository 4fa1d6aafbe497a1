"""How training uses the images: what a batch contains and what is compared."""

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class MethodConfig:
    """Fields that every training method has."""

    name: str = MISSING
    """Name of the method."""


@dataclass
class SupervisedConfig(MethodConfig):
    """Crops of annotated images."""

    name: str = "supervised"
