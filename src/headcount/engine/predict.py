"""Count people in pictures with a trained counter, in three lines of Python."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import ConfigError, TrainConfig
from headcount.engine import checkpoint
from headcount.engine.evaluate import count_blocks
from headcount.models.counter import Counter

Photo = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Prediction:
    """What a counter says of one picture."""

    count: float
    """Expected people."""
    block_counts: Float[Tensor, "rows cols"]
    """Expected people in each block; sums to ``count``."""
    block_size: int
    """Side of a block, pixels of the picture."""


@dataclass
class PhotoCounter:
    """A counter and the settings it was trained with; build with :func:`load`."""

    counter: Counter
    config: TrainConfig
    bins: CountBins

    def predict(self, photo: Photo) -> Prediction:
        """Count the people in a picture of any size.

        Args:
            photo: a file (its EXIF orientation is respected), a Pillow image, or bytes: a NumPy
                array (height, width, 3) or a tensor (3, height, width), RGB.

        Raises:
            ValueError: if an array is not of that shape and type.
            ConfigError: if the file is missing or no picture.
        """
        blocks = count_blocks(self.counter, _as_image(photo))
        return Prediction(float(blocks.sum(dtype=torch.float64)), blocks, self.bins.block_size)

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see :meth:`predict`."""
        return self.predict(photo).count


def load(path: str | Path, *, device: str = "cpu") -> PhotoCounter:
    """The counter of a checkpoint, from that file alone.

    Raises:
        ConfigError: if the file is missing, truncated or no checkpoint of headcount.
    """
    loaded = checkpoint.load(path)
    return PhotoCounter(loaded.counter.to(device), loaded.config, loaded.bins)


def _as_image(photo: Photo) -> UInt8[Tensor, "3 height width"]:
    if isinstance(photo, str | Path):
        try:
            with Image.open(Path(photo).expanduser()) as file:
                photo = ImageOps.exif_transpose(file).convert("RGB")
        except OSError as error:  # missing, truncated, or of a kind Pillow does not know
            raise ConfigError(f"{photo}: not a picture that can be read: {error}") from error
    if isinstance(photo, Image.Image):
        photo = np.array(photo.convert("RGB"))
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(f"a picture as an array is (height, width, 3) bytes, not {photo.shape} {photo.dtype}")
        photo = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))
    if photo.ndim != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8:
        raise ValueError(f"a picture as a tensor is (3, height, width) bytes, not {tuple(photo.shape)} {photo.dtype}")
    return photo
