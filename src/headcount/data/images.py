"""Decode image files into RGB bytes: color modes, bit depth, EXIF orientation, and checks for damaged files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to undo each EXIF orientation."""


def read_image(path: Path) -> UInt8[Tensor, "3 height width"]:
    """Decode an image file into RGB bytes.

    Grayscale is repeated over the channels; palettes, CMYK and 16 bits are converted; transparency is dropped. EXIF
    orientation is ignored, because annotations are given in pixels of the stored image.

    Returns:
        Values 0 to 255; channels first in shape and last in memory, as decoders write and as resizing is fastest on.

    Raises:
        DataError: if the file is missing or is not a readable image.
        MemoryError: if the image does not fit into memory.
    """
    data = np.fromfile(path, dtype=np.uint8) if path.is_file() else np.zeros(0, dtype=np.uint8)
    image = _decode_jpeg(torch.from_numpy(data)) if data[:2].tolist() == [0xFF, 0xD8] else None
    if image is not None and len(image) == 3:
        return image
    if image is not None and len(image) == 1:
        return image[0].unsqueeze(-1).repeat(1, 1, 3).permute(2, 0, 1)
    # Another format, a damaged JPEG, or CMYK, which Pillow converts better.
    return torch.from_numpy(np.array(read_pillow(path))).permute(2, 0, 1)


def _decode_jpeg(data: UInt8[Tensor, " bytes"]) -> UInt8[Tensor, "channels height width"] | None:
    """Decode a JPEG into the same pixels as Pillow in three quarters of the time; None if that is not possible."""
    with warnings.catch_warnings():
        # torchvision announces the removal of its decoders; once they are gone, Pillow takes over.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            from torchvision.io import decode_jpeg

            return decode_jpeg(data)
        except (ImportError, RuntimeError):
            return None


def read_pillow(path: Path, *, upright: bool = False) -> Image.Image:
    """Decode an image file into a Pillow image in RGB; of an animation, the first frame.

    Args:
        upright: apply the EXIF orientation.

    Raises:
        DataError: if the file is missing, damaged or not an image.
        MemoryError: if the image does not fit into memory.
    """
    try:
        with open_pillow(path) as file:
            return as_rgb(file, upright=upright)
    except DataError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory") from error
    except Exception as error:  # Pillow's decoders raise a dozen types of errors on damaged files.
        raise _unreadable(path, str(error) or type(error).__name__) from error


def as_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """Convert a Pillow image of any mode to RGB, by the rules of :func:`read_image`.

    Args:
        upright: apply the EXIF orientation.

    Raises:
        ValueError: if the pixels are floating-point numbers, whose range is unknown.
    """
    image.load()  # Before asking for the orientation: Pillow turns a TIFF itself, and a PNG may store EXIF at its end.
    turn = _TURNS.get(_orientation(image)) if upright else None
    if turn is not None:
        image = image.transpose(turn)
        for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # The image is upright now.
            image.info.pop(key, None)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    # Pillow warns if a palette with transparency is converted to RGB directly.
    image = image.convert("RGBA") if "transparency" in image.info else image
    return image if image.mode == "RGB" else image.convert("RGB")  # No copy: it may have 100 million pixels.


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation of a loaded image; 1 (as stored) if its EXIF data is damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Damaged EXIF raises all types of errors, and the pixels are still usable.
        return 1


@contextmanager
def open_pillow(path: Path) -> Iterator[Image.Image]:
    """Open an image file in Pillow, which reads the header only; errors while it is open name the file.

    Raises:
        DataError: if the file is missing, damaged or not an image.
    """
    try:
        with warnings.catch_warnings():
            # Images of 90 million pixels are accepted; Pillow refuses twice as many.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # Damaged EXIF.
            image = Image.open(path)
        with image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # A damaged PNG raises SyntaxError.
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, reason: str) -> DataError:
    kind = DataErrorKind.image if path.is_file() else DataErrorKind.missing_image
    return DataError(f"{path} cannot be read as an image: {reason}", kind=kind, file=path)


def check_image(path: Path) -> None:
    """Check that an image file exists and is complete, without decoding it if the format allows.

    Damage in the middle of a JPEG is not found; it does not prevent decoding either.

    Raises:
        DataError: if the file is missing, truncated or not an image.
    """
    with open_pillow(path) as image:
        if image.format == "PNG":
            image.verify()  # Its checksums.
        elif image.format != "JPEG" or not _ends_as_jpeg(path):
            image.load()


def _ends_as_jpeg(path: Path) -> bool:
    """Check for the end marker of a JPEG; a complete file may have other bytes after it."""
    with path.open("rb") as file:
        file.seek(-2, 2)
        return file.read() == b"\xff\xd9"
