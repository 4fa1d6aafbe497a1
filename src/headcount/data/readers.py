"""Read files as they are distributed: one function for images, one for each annotation format.

Every annotation reader takes a path and returns (n, 2) float32 positions (x, y) in pixels of the
stored image. What a dataset's folder looks like is the business of ``data.datasets``.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import scipy.io
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from headcount.config import ConfigError


def read_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """An image file as RGB bytes.

    Grey images are repeated; palettes, CMYK and 16 bits are converted; transparency is dropped.
    An EXIF orientation is ignored: annotations are given in pixels as stored.

    Returns:
        Channels first in shape, last in memory: what decoding yields and resizing is fastest on.

    Raises:
        ConfigError: if the file is missing or no image.
    """
    data = np.fromfile(path, dtype=np.uint8) if path.is_file() else np.zeros(0, dtype=np.uint8)
    image = _decode_jpeg(torch.from_numpy(data)) if data[:2].tolist() == [0xFF, 0xD8] else None
    if image is not None and len(image) == 3:
        return image
    if image is not None and len(image) == 1:
        return image[0].unsqueeze(-1).repeat(1, 1, 3).permute(2, 0, 1)
    # Not a JPEG, a damaged one, or CMYK, which Pillow converts better.
    return torch.from_numpy(np.array(read_pillow(path))).permute(2, 0, 1)


def _decode_jpeg(data: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, "channels height width"] | None:
    """A JPEG's pixels, the same as Pillow's in three quarters of the time; None where this cannot be done."""
    with warnings.catch_warnings():
        # torchvision announces that its decoders will go; Pillow then takes their place.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from torchvision.io import decode_jpeg

            return decode_jpeg(data)
        except (ImportError, RuntimeError):
            return None


def read_pillow(path: Path, *, upright: bool = False) -> Image.Image:
    """An image file of any mode as a Pillow image in RGB; see :func:`read_image`.

    Args:
        upright: turn it as its EXIF orientation says.
    """
    with open_pillow(path) as file:
        image = ImageOps.exif_transpose(file) if upright else file
        if image.mode.startswith("I"):  # 16 bits; Pillow would cut them at 255.
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        # Pillow warns where a palette with transparency becomes RGB at once.
        return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


@contextmanager
def open_pillow(path: Path) -> Iterator[Image.Image]:
    """An image file, of which Pillow has read the header; every error of reading names it."""
    try:
        with Image.open(path) as image:
            yield image
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as an image: {error}") from error


def read_shanghaitech_mat(path: Path) -> Float[Tensor, "n 2"]:
    """Head positions of a ShanghaiTech ``GT_IMG_<k>.mat``.

    They are the field ``location`` (or the first element) of ``image_info``, under one to three
    layers of 1 x 1 cells. The count stored beside them is not read: some files hold it as uint8.

    Raises:
        ConfigError: if there are no positions, naming what the file holds.
    """
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # Its reader raises half a dozen kinds on damaged files.
        raise ConfigError(f"{path} is no readable .mat file: {error}") from error
    keys = sorted(key for key in content if not key.startswith("__"))
    node = content.get("image_info")
    while isinstance(node, np.ndarray | np.void) and (node.dtype.names or node.dtype == object):
        if node.dtype.names:
            node = node["location" if "location" in node.dtype.names else node.dtype.names[0]]
        elif node.size:
            node = node.flat[0]
        else:
            break
    return _as_points(node, path, f"it holds {keys or 'nothing'}, expected image_info with a field location")


def _as_points(values: object, path: Path, found: str) -> Float[Tensor, "n 2"]:
    """Positions as a tensor, or an error that says what the file held."""
    array = np.asarray(values)
    if array.size == 0 and isinstance(values, np.ndarray):
        return torch.zeros(0, 2)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iuf":
        raise ConfigError(f"{path} has no (n, 2) head positions: {found}")
    if not np.isfinite(array).all():
        raise ConfigError(f"{path} has head positions that are not finite; correct or remove them")
    return torch.from_numpy(array.astype(np.float32))
