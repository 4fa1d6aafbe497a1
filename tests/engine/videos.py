"""Videos with known pixels and times."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def gray(k: int, *, width: int = 96, height: int = 64) -> np.ndarray:
    """Frame ``k`` of a video whose frames are told apart by their brightness, with a brighter left half."""
    pixels = np.full((height, width, 3), 20 + 15 * k, dtype=np.uint8)
    pixels[:, : width // 2] += 40
    return pixels


def level(pixels: np.ndarray) -> int:
    """The number of a frame that :func:`gray` made."""
    return round((float(pixels[:, -8:].mean()) - 20) / 15)


def make_video(
    path: Path,
    *,
    codec: str = "libx264",
    times: Sequence[float] = tuple(k / 10 for k in range(12)),
    picture: Callable[[int], np.ndarray] = gray,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose frames are shown at ``times``, seconds."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = picture(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for k, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24")
            frame.pts, frame.time_base = round(seconds * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the matrix of an MP4 file's track header: a pixel (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
