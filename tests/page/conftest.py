"""An untrained counter, and pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headcount
from engine.test_checkpoint import write_checkpoint
from headcount.engine.predict import PhotoCounter
from headcount.page.counting import PageCounter
from headcount.page.limits import Limits


def save_noise(path: Path, *, seed: int = 0, width: int = 100, height: int = 72) -> Path:
    """A picture of random pixels."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "model.width=8")


@pytest.fixture(scope="module")
def counter(checkpoint: Path) -> PhotoCounter:
    return headcount.load(checkpoint)


@pytest.fixture
def page_counter(counter: PhotoCounter) -> PageCounter:
    return PageCounter(counter, Limits(megabytes=1, megapixels=1, pictures=3, frames=5, minutes=1))
