"""Composing a config as train.py does, without the command's own checks and messages."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from headcount.config import TrainConfig, register_schemas

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def compose() -> Callable[..., TrainConfig]:
    """Compose configs/train.yaml with overrides in Hydra's own spelling (``model/head=regression``)."""

    def composed(*overrides: str) -> TrainConfig:
        register_schemas()
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config: TrainConfig = OmegaConf.to_object(hydra.compose("train", list(overrides)))
            return config

    return composed
