"""Read a picture of any kind that the Python API takes: a path, an open file, a Pillow image, an array, a tensor."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from headcount.data.images import Picture, read_picture, upright_picture
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.wording import url_hint

if TYPE_CHECKING:
    FilePath = str | os.PathLike[str]
    Photo = FilePath | IO[bytes] | Image.Image | np.ndarray | Tensor
else:  # anything may be passed; what is not taken is refused with an error of our own
    FilePath = Photo = Any


@dataclass
class ReadPicture:
    """A picture that was read, which an open file can be only once."""

    picture: Picture
    what: str
    """Its path for messages, followed by a colon; empty for others."""


def read_photo(photo: Photo) -> ReadPicture:
    """A picture of any kind, upright.

    Raises:
        DataError: if it cannot be read.
        MemoryError: if it does not fit into memory.
    """
    what = f"{os.fsdecode(photo)}: " if isinstance(photo, str | os.PathLike) else ""
    return ReadPicture(_as_picture(photo), what)


def _as_picture(photo: Photo) -> Picture:
    """A picture of any kind as RGB bytes, upright."""
    if isinstance(photo, np.ndarray | Tensor):
        return Picture(_from_array(photo), "RGB", orientation=1, dark=False)
    if isinstance(photo, str | os.PathLike):
        return read_picture(_path(photo), upright=True)
    if isinstance(photo, io.TextIOBase):
        raise _no_picture(f"{photo!r} was opened as text; open it with mode 'rb'")
    if not isinstance(photo, Image.Image) and not hasattr(photo, "read"):
        raise _no_picture(
            f"a picture is a path, a file opened with 'rb', a Pillow image, an array or a tensor, not {type(photo)}"
            + _KIND_HINTS.get(type(photo), "")
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of large images and damaged EXIF, as for a path
            opened = photo if isinstance(photo, Image.Image) else Image.open(photo)
            return upright_picture(opened)
    except MemoryError as error:
        raise MemoryError(f"{photo!r} does not fit into memory") from error
    except Exception as error:  # Pillow's decoders raise a dozen types of errors
        raise _no_picture(f"{photo!r} cannot be read as an image: {str(error) or type(error).__name__}") from error


_KIND_HINTS: dict[type, str] = {
    list: "; count the pictures of a list one by one, or convert its numbers with numpy.array(..., dtype=numpy.uint8)",
    tuple: "; count the pictures one by one",
    bytes: "; wrap the content of a file in io.BytesIO",
    bytearray: "; wrap the content of a file in io.BytesIO",
}


def _path(path: FilePath) -> Path:
    """A path that was typed.

    Raises:
        DataError: if it is a URL.
    """
    found = Path(os.path.expanduser(os.fsdecode(path)))
    hint = url_hint(os.fsdecode(path))
    if hint and not found.exists():
        raise _no_picture(f"{os.fsdecode(path)}: no such file{hint}")
    return found


def _no_picture(message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.image)


def _from_array(photo: np.ndarray | Tensor) -> UInt8[Tensor, "3 height width"]:
    """An array or tensor of bytes as RGB bytes.

    Raises:
        DataError: if it has another shape or type.
    """
    tensor = isinstance(photo, Tensor)
    channels, wrong = (0, 2) if tensor else (2, 0)
    gray_or_rgb = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[channels] == 3)
    if isinstance(photo, Tensor) and photo.layout != torch.strided:
        raise _no_picture(f"a picture as a tensor must be dense, not {photo.layout}; call to_dense()")
    if not gray_or_rgb or photo.dtype not in (np.uint8, torch.uint8):
        kind, shape = ("a tensor", "(3, height, width)") if tensor else ("an array", "(height, width, 3)")
        hint = ""
        if photo.ndim == 4:
            hint = "; count the pictures of a batch one by one"
        elif photo.ndim == 3 and not gray_or_rgb and photo.shape[wrong] == 3:
            order = "permute(2, 0, 1)" if tensor else "transpose(1, 2, 0)"
            hint = f"; to move the channels, call {order}"
        if photo.is_floating_point() if isinstance(photo, Tensor) else photo.dtype.kind == "f":
            hint += "; to convert values of 0 to 1 to bytes, multiply by 255 and round"
        raise _no_picture(
            f"a picture as {kind} is {shape} bytes, not {tuple(photo.shape)} {photo.dtype}; "
            f"(height, width) bytes are gray{hint}"
        )
    if 0 in photo.shape:
        raise _no_picture(f"a picture must not be empty; its shape is {tuple(photo.shape)}")
    if isinstance(photo, Tensor):
        photo = photo.cpu()
        return photo if photo.ndim == 3 else photo.expand(3, -1, -1).contiguous()
    return as_tensor(photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2))


def as_tensor(pixels: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 height width"]:
    """Channels first in shape, last in memory; read-only arrays and those with negative strides are copied."""
    pixels = np.ascontiguousarray(pixels)
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy()).permute(2, 0, 1)
