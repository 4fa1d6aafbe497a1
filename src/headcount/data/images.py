"""Decode image files into RGB bytes: color modes, bit depth, EXIF orientation, and damaged files.

Datasets, their cache, the audit and predictions all decode with :func:`read_picture`, so that a file means the same
pixels, or the same error, everywhere.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, TiffImagePlugin
from torch import Tensor

from headcount.data.jpeg import decode_jpeg
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
_OPPOSITE = {6: 8, 8: 6}
"""The orientations that undo each other; every other one undoes itself."""
# What a PNG with an orientation contains, in any of its chunks.
_PNG_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_REFUSED_PIXELS = {"F": "floating-point numbers", "I": "32-bit integers"}

_filters = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A decoded image."""

    pixels: UInt8[Tensor, "3 height width"]
    """Values 0 to 255; channels first in shape and last in memory, as decoders write and as resizing is fastest on."""
    mode: str
    """Pillow's color mode of the file: RGB, L for grayscale, ..."""
    orientation: int
    """Its EXIF orientation, 1 to 8; 1 is upright."""
    dark: bool
    """Whether it has 16 bits and no value above 4095, like a 12-bit image that was not scaled: nearly black."""


def read_picture(path: Path, *, upright: bool) -> Picture:
    """Decode an image file into RGB bytes; of an animation, the first frame.

    Grayscale is repeated over the channels; palettes, CMYK and 16 bits are converted; transparency is dropped.

    Args:
        upright: turn the image by its EXIF orientation; False keeps the pixels as stored.

    Raises:
        DataError: if the file is missing, damaged or not an image, or its pixels are 32-bit numbers, whose range is
            unknown.
        MemoryError: if the image does not fit into memory.
    """
    with open_pillow(path) as image:
        return _decode(image, upright=upright, path=path)


def read_image(path: Path, *, upright: bool = False, rows: int | None = None) -> UInt8[Tensor, "3 height width"]:
    """Return the pixels of :func:`read_picture`.

    Args:
        rows: return the first rows only, which takes less time; damage below them may then not be noticed. None
            returns all.
    """
    with open_pillow(path) as image:
        return _decode(image, upright=upright, path=path, rows=rows).pixels[:, :rows]


def upright_picture(image: Image.Image) -> Picture:
    """Convert a Pillow image of any mode, turned by its EXIF orientation, by the rules of :func:`read_picture`.

    Raises:
        ValueError: if its pixels are 32-bit numbers, whose range is unknown.
    """
    return _decode(image, upright=True)


def image_size(path: Path, *, upright: bool) -> tuple[int, int]:
    """Return the (width, height) that :func:`read_picture` decodes a file to, from its header.

    Raises:
        DataError: if the file is missing or not an image.
    """
    with open_pillow(path) as image:
        size = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow gives the upright size.
            size = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        if not upright:
            return size
        # The orientation of a PNG may follow its pixels: Pillow decodes them to find it.
        plain = image.format == "PNG" and not any(mark in path.read_bytes() for mark in _PNG_MARKS)
        return size if plain or _orientation(image) < 5 else (size[1], size[0])


@contextmanager
def open_pillow(path: Path) -> Iterator[Image.Image]:
    """Open an image file in Pillow, which reads the header only; errors while it is open name the file.

    Raises:
        DataError: if the file is missing, damaged or not an image.
        MemoryError: if the image does not fit into memory.
    """
    try:
        # Images of 90 million pixels are accepted with a warning; Pillow refuses twice as many.
        with _no_warnings():
            image = Image.open(path)
        with image:
            yield image
    except DataError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{path} does not fit into memory") from error
    except Exception as error:  # Pillow's decoders raise a dozen types of errors on damaged files.
        kind = DataErrorKind.image if path.is_file() else DataErrorKind.missing_image
        reason = str(error) or type(error).__name__
        if "MAX_TEXT_CHUNK" in reason:
            reason = "it contains a text of more than a megabyte; save it without metadata"
        raise DataError(f"{path} cannot be read as an image: {reason}", kind=kind, file=path) from error


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppress warnings of damaged EXIF; one thread at a time, because the filters belong to the whole process."""
    with _filters, warnings.catch_warnings(action="ignore"):
        yield


def _decode(image: Image.Image, *, upright: bool, path: Path | None = None, rows: int | None = None) -> Picture:
    """Decode an open image.

    Args:
        path: its file, if it has one.
        rows: rows that are needed; None needs all.
    """
    mode, layout = image.mode, str(getattr(image, "tile", [])[:1])  # Before loading, which empties the layout.
    bits = 12 if "I;12" in layout else 16
    orientation = _orientation(image)
    turn = orientation if upright else 1
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow turns it when loading.
        if image.tile:
            image.filename = ""  # Otherwise Pillow maps the file of some modes into memory, in the wrong shape.
        turn = 1 if upright else _OPPOSITE.get(orientation, orientation)
    pixels = None
    if path is not None and turn == 1 and image.format in ("JPEG", "MPO") and mode in ("RGB", "L"):
        pixels = decode_jpeg(path, rows=rows)
    if pixels is None:  # Another format, CMYK, a damaged JPEG, or an image to be turned.
        rgb = _as_rgb(image, bits=bits)
        pixels = torch.from_numpy(np.array(rgb.transpose(_TURNS[turn]) if turn in _TURNS else rgb)).permute(2, 0, 1)
    deep = bits == 16 and (mode.startswith("I") or ";16" in layout)
    return Picture(pixels, mode, orientation, dark=deep and int(pixels.max()) < 4096 >> 8)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation; 1 (upright) if there is none, its value is none of EXIF's, or its data are damaged."""
    if image.format == "PNG":
        image.load()  # Its EXIF data may follow the pixels. A damaged one fails here, and only the first time.
    try:
        with _no_warnings():
            value = image.getexif().get(ExifTags.Base.Orientation)
        return int(value) if value in _TURNS else 1
    except Exception:  # Damaged EXIF raises all types of errors, and the pixels are still usable.
        return 1


def _as_rgb(image: Image.Image, *, bits: int) -> Image.Image:
    """Convert to RGB.

    Args:
        bits: depth of an image of mode I;16.

    Raises:
        ValueError: if the range of the pixels is unknown.
    """
    image.load()
    # Pillow scales the values of a PGM to 16 bits.
    if image.mode in _REFUSED_PIXELS and not (image.mode == "I" and image.format in ("PPM", "PNG")):
        pixels = _REFUSED_PIXELS[image.mode]
        raise ValueError(f"its pixels are {pixels}, whose range is unknown; save it with 8 or 16 bits")
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(ExifTags.Base.PlanarConfiguration) == 2 and max(tags.get(ExifTags.Base.BitsPerSample, (8,))) > 8:
        # Pillow reads the bytes of such a channel as pixels.
        raise ValueError("its channels are stored apart, with more than 8 bits; save it with interleaved channels")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255.
        values = np.asarray(image) >> bits - 8
        if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
            values = 255 - values  # Zero is white, which Pillow respects in 8 bits only.
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    # Pillow warns if a palette with transparency is converted to RGB directly.
    image = image.convert("RGBA") if "transparency" in image.info else image
    return image if image.mode == "RGB" else image.convert("RGB")  # No copy: it may have 100 million pixels.
