"""Count people in pictures with a trained counter, in three lines of Python."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    FolderDatasetConfig,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
)
from headcount.data.prepare import prepared_size
from headcount.data.readers import read_pillow
from headcount.engine import checkpoint
from headcount.engine.tiling import predict_blocks
from headcount.models.counter import Counter

# Above so many pixels a whole image would take several GB.
_MOST_PIXELS = 8_000_000
_WINDOW = 1024

Photo = str | Path | Image.Image | np.ndarray | Tensor


@dataclass
class Prediction:
    """What a counter says of one picture."""

    count: float
    """Expected people."""
    block_counts: Float[Tensor, "rows cols"]
    """Expected people in each block; sums to ``count``."""
    probabilities: Float[Tensor, "bins rows cols"] | None
    """Probability of each bin in each block; None for a counter that regresses."""
    block_size: int
    """Side of a block, pixels of ``image``."""
    image: UInt8[Tensor, "3 height width"]
    """The picture as it was resized for the counter."""
    mode: WholeImageConfig | SlidingWindowConfig
    """How it was counted: in one piece, or in windows."""


@dataclass
class PhotoCounter:
    """A counter and the settings it was trained with; build with :func:`load`."""

    counter: Counter
    config: TrainConfig
    bins: CountBins | None
    """None for a counter that regresses."""
    mode: WholeImageConfig | SlidingWindowConfig | None = None
    """Windows or whole images; None counts as the counter was evaluated in training, but a picture of more than
    8 million pixels, or for which memory does not suffice, in windows of about 1024 px."""

    def predict(self, photo: Photo) -> Prediction:
        """Count the people in a picture of any size.

        It is resized as the images of the counter's dataset were, so that an evaluation says the same.

        Args:
            photo: a file (its EXIF orientation is respected), a Pillow image, or bytes: a NumPy
                array (height, width, 3) or a tensor (3, height, width), RGB.

        Raises:
            ValueError: if an array is not of that shape and type.
            ConfigError: if the file is missing or no picture.
            MemoryError: if the picture does not fit into memory.
        """
        image = _as_image(photo)
        dataset = self.config.dataset
        if isinstance(dataset, FolderDatasetConfig):  # the counter knows heads of images of this size
            height, width = image.shape[1:]
            size = prepared_size(
                width, height, min_side=dataset.min_side, max_side=dataset.max_side, multiple=dataset.side_multiple
            )
            if size != (width, height):
                resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
                image = _as_image(resized)
        mode = counting_mode(self.config, self.mode)
        too_large = image.shape[1] * image.shape[2] > _MOST_PIXELS
        if self.mode is None and isinstance(mode, WholeImageConfig) and too_large:
            mode = self._windows()
        try:
            maps = predict_blocks(self.counter, image, mode, probabilities=True)
        except MemoryError:
            if self.mode is not None or isinstance(mode, SlidingWindowConfig):
                raise
            mode = self._windows()
            maps = predict_blocks(self.counter, image, mode, probabilities=True)
        return Prediction(
            count=float(maps.counts.sum(dtype=torch.float64)),
            block_counts=maps.counts,
            probabilities=maps.probabilities,
            block_size=self.counter.block_size,
            image=image,
            mode=mode,
        )

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see :meth:`predict`."""
        return self.predict(photo).count

    def _windows(self) -> SlidingWindowConfig:
        """Windows for pictures that are too large for one piece; they overlap, so that no head is cut twice."""
        multiple = math.lcm(self.counter.stride, self.counter.block_size)
        window = max(_WINDOW // multiple, 1) * multiple
        stride = max(window * 7 // 8 // multiple, 1) * multiple
        return SlidingWindowConfig(window=window, stride=stride, window_batch=1)


def load(path: str | Path, *, device: str = "cpu") -> PhotoCounter:
    """The counter of a checkpoint, from that file alone.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: a GPU where there is one.

    Raises:
        ConfigError: if the file is missing, truncated or no checkpoint of headcount, or the device is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no GPU; take cpu or auto")
    loaded = checkpoint.load(path)
    return PhotoCounter(loaded.counter.to(device), loaded.config, loaded.bins)


def _as_image(photo: Photo) -> UInt8[Tensor, "3 height width"]:
    if isinstance(photo, str | Path):
        photo = read_pillow(Path(photo).expanduser(), upright=True)
    if isinstance(photo, Image.Image):
        photo = np.array(photo.convert("RGB"))
    if isinstance(photo, np.ndarray):
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise ValueError(f"a picture as an array is (height, width, 3) bytes, not {photo.shape} {photo.dtype}")
        photo = torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)
    if photo.ndim != 3 or photo.shape[0] != 3 or photo.dtype != torch.uint8:
        raise ValueError(f"a picture as a tensor is (3, height, width) bytes, not {tuple(photo.shape)} {photo.dtype}")
    return photo
