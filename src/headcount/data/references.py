"""A baseline counter without learning: threshold an image and count the connected regions.

Its settings are searched on the training images, so that it is the best counter of its kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from scipy import ndimage
from torch import Tensor

from headcount.types import Sample

FEATURES = ("brightness", "saturation", "contrast")
SMOOTHING = (0.0, 1.0, 2.0)
"""Candidates for the standard deviation of the Gaussian blur, pixels."""
LEVELS = (0.03, 0.08, 0.15, 0.85, 0.92, 0.97)
"""Candidates for the threshold, as quantiles of the feature over the training images."""
AREAS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
"""Candidates for the smallest and the largest area of a blob, pixels."""


@dataclass(frozen=True)
class BlobCounter:
    """Counts connected regions where a smoothed feature is beyond a threshold."""

    feature: str
    """``brightness``, ``saturation``, or ``contrast`` (brightness minus that of the surroundings); range 0 to 255."""
    smoothing: float
    """Standard deviation of the Gaussian blur, pixels."""
    threshold: float
    """Threshold in units of the feature."""
    above: bool
    """Whether blobs are above the threshold; otherwise they are below it."""
    min_area: int
    """Smallest blob that counts, pixels."""
    max_area: int
    """Blobs of this many pixels or more do not count."""

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "BlobCounter":
        """Find the settings with the smallest mean absolute error on ``samples``.

        Raises:
            ValueError: if there are no samples.
        """
        if not samples:
            raise ValueError("no samples to fit the blob counter on")
        true = np.array([len(sample.points) for sample in samples])
        areas = np.array(AREAS)
        best, best_mae = None, np.inf
        for feature in FEATURES:
            for smoothing in SMOOTHING:
                maps = [_feature(sample.image.numpy(), feature, smoothing) for sample in samples]
                pixels = np.concatenate([m.ravel()[::16] for m in maps])
                for level, threshold in zip(LEVELS, np.quantile(pixels, LEVELS).tolist(), strict=True):
                    above = level > 0.5
                    # smaller[i, k]: blobs of image i with an area below areas[k]
                    found = [np.sort(_blob_areas((m > threshold) == above)) for m in maps]
                    smaller = np.array([np.searchsorted(f, areas) for f in found])
                    counts = smaller[:, None, :] - smaller[:, :, None]
                    mae = np.abs(counts - true[:, None, None]).mean(0)
                    mae[np.tril_indices(len(areas))] = np.inf  # the largest area must exceed the smallest
                    low, high = np.unravel_index(mae.argmin(), mae.shape)
                    if mae[low, high] < best_mae:
                        best_mae = mae[low, high]
                        best = cls(feature, smoothing, threshold, above, int(areas[low]), int(areas[high]))
        assert best is not None
        return best

    def count(self, image: UInt8[Tensor, "3 height width"]) -> float:
        """Count the blobs in an image (RGB, 0 to 255)."""
        beyond = (_feature(image.numpy(), self.feature, self.smoothing) > self.threshold) == self.above
        areas = _blob_areas(beyond)
        return float(((areas >= self.min_area) & (areas < self.max_area)).sum())


def _feature(
    image: UInt8[np.ndarray, "3 height width"], name: str, smoothing: float
) -> Float[np.ndarray, "height width"]:
    brightness = image.mean(0, dtype=np.float32)
    match name:
        case "brightness":
            value = brightness
        case "saturation":
            value = (image.max(0) - image.min(0)).astype(np.float32)
        case _:
            value = brightness - ndimage.gaussian_filter(brightness, 12.0, truncate=2)
    return ndimage.gaussian_filter(value, smoothing) if smoothing else value


def _blob_areas(beyond: Bool[np.ndarray, "height width"]) -> Shaped[np.ndarray, "blobs"]:
    labels, _ = ndimage.label(beyond)
    return np.bincount(labels.ravel())[1:]
