"""Count people in pictures with a trained counter, in three lines of Python."""

import math
import os
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
from headcount.data.images import as_rgb, read_pillow
from headcount.data.prepare import ResizeRule
from headcount.engine import checkpoint
from headcount.engine.tiling import predict_blocks
from headcount.models.counter import Counter

# Above so many pixels a whole image would take several GB.
_MOST_PIXELS = 8_000_000
_WINDOW = 1024
# A strip of a few pixels would be enlarged to thousands of megapixels.
_MOST_ENLARGED = 100_000_000

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
    photo_size: tuple[int, int]
    """(width, height) of the upright picture before it was resized, pixels."""
    mode: WholeImageConfig | SlidingWindowConfig
    """How it was counted: in one piece, or in windows."""
    reason: str = ""
    """Why in windows, where the counter usually counts in one piece; else empty."""


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
        Block (row, col) covers the pixels from ``col * block_size`` and ``row * block_size`` of the resized
        picture; times ``photo_size`` over that picture's size, those of the photo.

        Args:
            photo: a file, or a Pillow image (the EXIF orientation of both is respected), or bytes: a NumPy
                array (height, width, 3) or a tensor (3, height, width), RGB, or (height, width), gray.

        Raises:
            ValueError: if an array is not of that shape and type.
            ConfigError: if the file is missing or no picture, or the picture too narrow to be enlarged.
            MemoryError: if the picture does not fit into memory.
            FloatingPointError: if the count is not finite.
        """
        image = _as_image(photo)
        photo_size = (image.shape[2], image.shape[1])
        image = self._resized(image)
        trained = self.config
        usual = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=self.mode)
        may_change = self.mode is None and isinstance(usual, WholeImageConfig)
        mode, reason, maps = usual, "", None
        if may_change and image.shape[1] * image.shape[2] > _MOST_PIXELS:
            mode, reason = self._windows(), f"more than {_MOST_PIXELS / 1e6:g} million pixels"
        try:
            maps = predict_blocks(self.counter, image, mode, probabilities=True)
        except MemoryError:
            if not may_change or mode is not usual:
                raise
        if maps is None:  # not within the except: there the traceback still holds what filled the memory
            mode, reason = self._windows(), "memory did not suffice for one piece"
            maps = predict_blocks(self.counter, image, mode, probabilities=True)
        count = float(maps.counts.sum(dtype=torch.float64))
        if not math.isfinite(count):
            raise FloatingPointError(f"the predicted count is {count}; the counter's weights are of no use")
        return Prediction(
            count=count,
            block_counts=maps.counts,
            probabilities=maps.probabilities,
            block_size=self.counter.block_size,
            image=image,
            photo_size=photo_size,
            mode=mode,
            reason=reason,
        )

    def count(self, photo: Photo) -> float:
        """The expected number of people in a picture; see :meth:`predict`."""
        return self.predict(photo).count

    def _resized(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """The picture at the size at which the counter knows heads."""
        dataset = self.config.dataset
        height, width = image.shape[1:]
        if not isinstance(dataset, FolderDatasetConfig):
            return image
        size = ResizeRule.from_config(dataset).size(width, height)
        if size == (width, height):
            return image
        if size[0] * size[1] > max(_MOST_ENLARGED, height * width):
            raise ConfigError(
                f"the picture is too narrow: its {width} x {height} pixels would become {size[0]} x {size[1]}, because "
                f"the counter's images have a short side of at least {dataset.min_side}; cut it"
            )
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        return _as_tensor(np.array(resized))

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
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device={device}: must be cpu, cuda, cuda:N or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no GPU; take cpu or auto")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0")
    loaded = checkpoint.load(path)
    return PhotoCounter(loaded.counter.to(device), loaded.config, loaded.bins)


def _as_image(photo: Photo) -> UInt8[Tensor, "3 height width"]:
    """A picture of any kind as RGB bytes, upright."""
    if isinstance(photo, str | Path):
        photo = read_pillow(Path(os.path.expanduser(photo)), upright=True)
    elif isinstance(photo, Image.Image):
        photo = as_rgb(photo, upright=True)
    if isinstance(photo, Image.Image):
        return _as_tensor(np.array(photo))
    gray_or_rgb = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[0 if isinstance(photo, Tensor) else 2] == 3)
    if not gray_or_rgb or photo.dtype not in (np.uint8, torch.uint8):
        kind, shape = (
            ("a tensor", "(3, height, width)") if isinstance(photo, Tensor) else ("an array", "(height, width, 3)")
        )
        floats = photo.is_floating_point() if isinstance(photo, Tensor) else photo.dtype.kind == "f"
        hint = "; values of 0 to 1 become bytes times 255, rounded" if floats else ""
        raise ValueError(
            f"a picture as {kind} is {shape} bytes, not {tuple(photo.shape)} {photo.dtype}; "
            f"(height, width) bytes are gray{hint}"
        )
    if 0 in photo.shape:
        raise ValueError(f"a picture has pixels; this is {tuple(photo.shape)}")
    if isinstance(photo, Tensor):
        photo = photo.cpu()
        return photo if photo.ndim == 3 else photo.expand(3, -1, -1).contiguous()
    return _as_tensor(photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2))


def _as_tensor(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 height width"]:
    """Channels first in shape, last in memory; what nobody may write to, or runs backwards, is copied."""
    pixels = np.ascontiguousarray(pixels)
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
