"""Composing a config as train.py does, without the command's own checks and messages."""

from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from headcount.cli.composed import composed
from headcount.config import TrainConfig


@pytest.fixture
def compose() -> Callable[..., TrainConfig]:
    """Compose configs/train.yaml with overrides in Hydra's own spelling (``model/head=regression``)."""

    def config_of(*overrides: str) -> TrainConfig:
        config: TrainConfig = OmegaConf.to_object(composed("train", overrides))
        return config

    return config_of
