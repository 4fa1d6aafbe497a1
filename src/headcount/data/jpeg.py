"""Decode JPEG files of 1 or 3 channels by simplejpeg into the pixels of Pillow, in half of its time.

The pixels are the same if both contain libjpeg-turbo, as their wheels do; with another library they may differ by
rounding. What simplejpeg refuses is left to Pillow.
"""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

try:
    import simplejpeg
except ImportError:  # A platform without its wheel; Pillow decodes JPEG too.
    simplejpeg = None

_SEQUENTIAL = (0xC0, 0xC1)
"""Frame markers of files that store their rows from top to bottom."""
_SCAN, _END = 0xDA, b"\xff\xd9"
_TAIL = 64
"""Bytes among which the end marker of a file is searched; some cameras write a few after it."""

_MARGIN = 16
"""Further rows that are decoded: colors are interpolated between rows, and the last ones lack a neighbor."""


def decode_jpeg(path: Path, *, rows: int | None = None) -> UInt8[Tensor, "3 height width"] | None:
    """Decode a JPEG file; None if simplejpeg is missing or refuses the file.

    Args:
        rows: decode the first rows only; None decodes all. Damage below them is then not noticed.
    """
    if simplejpeg is None:
        return None
    data = path.read_bytes()
    top = None if rows is None else _first_rows(data, rows)
    try:
        # Without the options that trade accuracy for time. Recoverable damage is an error too: Pillow judges that.
        pixels = simplejpeg.decode_jpeg(
            data if top is None else top, colorspace="RGB", fastdct=False, fastupsample=False, strict=top is None
        )
    except ValueError:
        return None
    return torch.from_numpy(pixels[:rows]).permute(2, 0, 1)


def _first_rows(data: bytes, rows: int) -> bytes | None:
    """Change the height in a file's header, so that decoders stop after ``rows`` and a few more.

    Returns:
        None if the file has hardly more rows, does not store them from top to bottom in one scan, or is truncated.
    """
    if _END not in data[-_TAIL:]:
        return None
    place, frame = 2, None
    while place + 10 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _SEQUENTIAL:
            frame = place
        if marker == _SCAN:
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    else:
        return None
    # A frame is its marker and length (4 bytes), bits (1), height (2), width (2) and channels (1); a scan is its marker
    # and length (4 bytes) and channels (1).
    if frame is None or data[place + 4] != data[frame + 9]:
        return None
    height = int.from_bytes(data[frame + 5 : frame + 7], "big")
    if rows + _MARGIN >= height:
        return None
    return data[: frame + 5] + (rows + _MARGIN).to_bytes(2, "big") + data[frame + 7 :]
