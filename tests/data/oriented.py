"""Images with an EXIF orientation in every format that has one, for tests of any room."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image

ENDINGS = ("jpg", "png", "late.png", "webp", "tif", "lzw.tif", "mpo.jpg")
"""Kinds of files: a PNG may have its orientation after the pixels, a TIFF may be read by libtiff."""
TURNED = {
    2: np.fliplr,
    3: lambda pixels: pixels[::-1, ::-1],
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""What each EXIF orientation asks for, of an array with rows and columns."""
ORIENTATION = struct.pack("<HHIHH", 0x112, 3, 1, 1, 0)
"""The orientation 1 as stored in TIFF and EXIF: tag, type (16-bit integers), their number, the value."""


def oriented(path: Path, image: Image.Image, orientation: bytes | int) -> None:
    """Write an image with an orientation, as a number or as its stored entry; ``late.png`` has it after the pixels."""
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0) if isinstance(orientation, int) else orientation
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0" + entry + bytes(4)
    if path.suffix == ".tif":
        options = {"compression": "tiff_lzw"} if path.name.endswith("lzw.tif") else {}
        image.save(path, tiffinfo={0x112: 1}, **options)
        data = path.read_bytes()
        assert data.count(ORIENTATION) == 1
        path.write_bytes(data.replace(ORIENTATION, entry))
    elif path.name.endswith("mpo.jpg"):
        image.save(path, "MPO", exif=exif, save_all=True, append_images=[image])
    else:
        image.save(path, exif=exif, lossless=True)
    if path.name.endswith("late.png"):
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(data[start : start + 4])
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])


def stored_pixels(path: Path, image: Image.Image) -> np.ndarray:
    """The pixels of an image without an orientation, compressed as in ``path``."""
    plain = path.with_name(f"plain{path.suffix}")
    image.save(plain, lossless=True)
    with Image.open(plain) as file:
        return np.asarray(file.convert("RGB"))
