"""Count the frames of a video and its regions, in batches, and write an annotated video."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from headcount.config import ConfigError
from headcount.data.regions import Region, RegionGrid
from headcount.engine.ensemble import PhotoEnsemble
from headcount.engine.frames import Frame, Pixels, import_av
from headcount.engine.predict import PhotoCount, PhotoCounter
from headcount.errors import OutputError
from headcount.files import atomic_write
from headcount.wording import one_line

# Exact for 24, 25, 30, 50, 60 and 29.97 frames per second, and below the 65,535 that MPEG-4 allows.
_TIME_BASE = Fraction(1, 30_000)
_BITS_PER_PIXEL = 4  # per second, of MPEG-4 whose encoder has no constant quality


@dataclass
class FrameCount:
    """The people in a frame."""

    number: int | None
    """See :class:`headcount.engine.frames.Frame`."""
    seconds: float
    """Time from the start of the source."""
    prediction: PhotoCount | None
    """None if the frame could not be decoded or counted."""
    regions: dict[str, float] = field(default_factory=dict)
    """Expected people in each region, by name."""
    grid: RegionGrid | None = None
    """The regions on the frame; None if none were requested."""
    error: str = ""
    """Why there is no prediction."""


def count_frames(
    counter: PhotoCounter | PhotoEnsemble, frames: Iterable[Frame], *, regions: Sequence[Region] = (), batch: int = 1
) -> Iterator[FrameCount]:
    """Count frames and their regions, one result per frame, in order.

    Args:
        frames: not more than ``batch`` of them are held at once.
        regions: with different names.
        batch: frames that are counted together, if they have the same size.

    Raises:
        ConfigError: if the regions do not fit the first frame that is counted.
    """
    grids: dict[tuple[int, int], RegionGrid] = {}
    remaining = iter(frames)
    while group := list(itertools.islice(remaining, batch)):
        readable = [frame.pixels for frame in group if frame.pixels is not None]
        results = iter(_predict(counter, readable))
        for frame in group:
            found = FrameCount(frame.number, frame.seconds, None, error=frame.error)
            if frame.pixels is not None:
                result = next(results)
                if isinstance(result, PhotoCount):
                    _count_regions(found, result, regions, grids)
                else:
                    found.error = f"the frame at {frame.seconds:.3f} s cannot be counted: {result}"
            yield found


def _predict(counter: PhotoCounter | PhotoEnsemble, frames: list[Pixels]) -> list[PhotoCount | str]:
    """Count frames together, or one by one if that fails; a frame that cannot be counted becomes the reason."""
    try:
        return [*counter.predict_batch(frames)]
    except Exception:  # one frame never stops the others
        return [_predict_one(counter, frame) for frame in frames]


def _predict_one(counter: PhotoCounter | PhotoEnsemble, frame: Pixels) -> PhotoCount | str:
    try:
        return counter.predict(frame)
    except Exception as error:
        return one_line(error) or type(error).__name__


def _count_regions(
    found: FrameCount,
    prediction: PhotoCount,
    regions: Sequence[Region],
    grids: dict[tuple[int, int], RegionGrid],
) -> None:
    """Fill in the prediction and the regions of a frame.

    Args:
        grids: the regions on the last frame, by the frame's size; kept up to date.

    Raises:
        ConfigError: if the regions do not fit the first frame.
    """
    if regions:
        if prediction.photo_size not in grids:
            try:
                grid = prediction.region_grid(regions)
            except ConfigError as error:
                if not grids:
                    raise
                found.error = f"the frame at {found.seconds:.3f} s cannot be counted: {error}"
                return
            grids.clear()
            grids[prediction.photo_size] = grid
        found.grid = grids[prediction.photo_size]
        assert prediction.block_counts is not None, "region_grid refuses it"
        found.regions = found.grid.count(prediction.block_counts.double().numpy())
    found.prediction = prediction


class VideoWriter:
    """Frames of one size in an MP4 file, each shown from its own time on; made by :func:`write_video`."""

    def __init__(self, container: Any, codec: str) -> None:
        self.codec = codec
        """FFmpeg's name of the encoder."""
        self._container = container
        self._stream: Any = None
        self._first = 0.0
        self._last = -1

    def write(self, pixels: Pixels, seconds: float) -> None:
        """Add a frame.

        Args:
            pixels: RGB; width and height are even and those of the first frame.
            seconds: its time in the source; the first frame is shown at the start of the video. One that is not
                later than the last is shown right after it.
        """
        av = import_av("writing a video")
        if self._stream is None:
            self._stream = self._new_stream(av, pixels)
            self._first = seconds
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._last = max(self._last + 1, round((seconds - self._first) / _TIME_BASE))
        frame.pts, frame.time_base = self._last, _TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the frames that the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))

    def _new_stream(self, av: Any, pixels: Pixels) -> Any:
        quality = {"crf": "21", "preset": "veryfast"} if self.codec == "libx264" else {}
        stream = self._container.add_stream(self.codec, rate=30, options=quality)
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = _TIME_BASE
        if not quality:
            stream.codec_context.bit_rate = max(1_000_000, _BITS_PER_PIXEL * pixels.shape[0] * pixels.shape[1])
        return stream


def encoder() -> str:
    """FFmpeg's name of the encoder that is used: H.264 if PyAV has it, else MPEG-4."""
    available = import_av("writing a video").codecs_available
    return "libx264" if "libx264" in available else "mpeg4"


@contextmanager
def write_video(path: Path) -> Iterator[VideoWriter]:
    """Write a video; it is there, and complete, at the end of the ``with`` block.

    Raises:
        ConfigError: if PyAV is missing.
        OutputError: if the file cannot be written, or a frame cannot be encoded.
    """
    av = import_av("writing a video")
    with atomic_write(path) as part, av.open(str(part), "w", format="mp4") as container:
        writer = VideoWriter(container, encoder())
        try:
            yield writer
            writer.finish()
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # a disk without room, which atomic_write explains
                raise
            raise OutputError(f"{path} cannot be encoded by {writer.codec}: {one_line(error)}") from error
