"""Read the frames of a video file, a sequence of images, a camera or a stream, one at a time.

Frames are upright RGB bytes, turned as the file says, and have the time that the file says: no frame rate is assumed
where there are time stamps. What cannot be decoded becomes a frame with an error.
"""

import glob
import math
import queue
import re
import struct
import sys
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headcount.commands import as_typed
from headcount.config import ConfigError
from headcount.data.images import read_image
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import IMAGE_ENDINGS, natural_key
from headcount.errors import DataError
from headcount.wording import one_line, printable

Pixels = UInt8[np.ndarray, "_ _ 3"]
"""RGB of a frame of any size."""

DEFAULT_RATE = 25.0
_PROTOCOLS = ("rtsp", "rtsps", "http", "https", "rtmp", "rtmps", "udp", "tcp", "srt", "rtp")
_NUMBERED = re.compile(r"%(?:0(\d+))?d")
# Seconds to wait for a stream: for its start, and for the next packet.
_TIMEOUTS = (20.0, 10.0)
# FFmpeg's name of the cameras of a system, and how its cameras are called.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
_CAMERA_REMEDY = (
    "the wheels of PyAV have no cameras on this system: build it against the system's FFmpeg (pip install --no-binary "
    "av av), or let ffmpeg send the camera to this computer (ffmpeg -f v4l2 -i /dev/video0 -f mpegts "
    "udp://127.0.0.1:5000) and count udp://127.0.0.1:5000"
)


@dataclass
class Frame:
    """A frame of a source."""

    number: int | None
    """Position among the decoded frames, from 0 at the first one from ``Selection.start`` on; None if what was read
    did not become a frame."""
    seconds: float
    """Time from the start of the source."""
    pixels: Pixels | None
    """Upright RGB; None if it cannot be decoded."""
    error: str = ""
    """Why it cannot be decoded."""


@dataclass
class Selection:
    """Which frames are used."""

    start: float = 0.0
    """Seconds; earlier frames are skipped."""
    end: float | None = None
    """Seconds; frames from then on are skipped. None is the end of the source."""
    every_frames: int = 1
    """Use one of this many frames, beginning with the first."""
    every_seconds: float | None = None
    """Use the first frame of each interval of this length instead; None uses ``every_frames``."""
    _interval: int = field(default=-1, repr=False)

    def takes(self, frame_number: int, seconds: float) -> bool:
        """Whether the next frame is used; to be asked for every frame in their order."""
        if self.every_seconds is None:
            return frame_number % self.every_frames == 0
        interval = math.floor((seconds - self.start) / self.every_seconds + 1e-6)
        if interval <= self._interval:
            return False
        self._interval = interval
        return True

    def is_over(self, seconds: float) -> bool:
        """Whether this time is at or after the end."""
        return self.end is not None and seconds >= self.end - 1e-9

    def expected(self, duration: float | None, rate: float | None) -> int | None:
        """About how many frames of a source are used; None if that is unknown.

        Args:
            duration: of the source, seconds; None if unknown.
            rate: frames per second; None if unknown.
        """
        if duration is None or rate is None:
            return None
        end = duration if self.end is None else min(duration, self.end)
        if self.every_seconds is not None:
            return max(0, math.ceil(round((end - self.start) / self.every_seconds, 6)))
        frames = math.ceil(round(end * rate, 6)) - math.ceil(round(self.start * rate, 6))
        return max(0, math.ceil(frames / self.every_frames))


class ImageSequence:
    """Images that are counted as the frames of a video; their files are read as those of photos are."""

    live = False

    def __init__(self, name: str, files: list[Path], *, rate: float) -> None:
        self.name, self.files, self.rate = name, files, rate
        self.duration = len(files) / rate

    def frames(self, selection: Selection, stop: threading.Event) -> Generator[Frame, None, None]:
        """The selected images; one that cannot be read has an error. Ends early if ``stop`` is set."""
        number = -1
        for k, file in enumerate(self.files):
            seconds = k / self.rate
            if stop.is_set() or selection.is_over(seconds):
                return
            if seconds < selection.start - 1e-9:
                continue
            number += 1
            if selection.takes(number, seconds):
                try:
                    pixels = np.ascontiguousarray(read_image(file, upright=True).permute(1, 2, 0).numpy())
                    yield Frame(number, seconds, pixels)
                except (DataError, MemoryError) as error:
                    yield Frame(number, seconds, None, str(error))

    def close(self) -> None:
        """Nothing is open between two images."""


class VideoSource:
    """A video file, camera or stream that FFmpeg reads."""

    def __init__(self, name: str, target: str, *, camera: str | None = None, stream: bool = False) -> None:
        """Open it.

        Args:
            name: printed; without the password of an address.
            target: what FFmpeg opens.
            camera: FFmpeg's format of a camera; None for files and streams.
            stream: whether ``target`` is an address.
        """
        av = import_av("counting the frames of a video")
        self.name = name
        options = {"rtsp_transport": "tcp"} if target.startswith("rtsp") else {}
        try:
            self.container = av.open(target, format=camera, options=options, timeout=_TIMEOUTS if stream else None)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _no_video(f"{name}: {_reason(error, stream=stream or camera is not None)}") from error
        try:
            self.stream = self._video_stream()
        except DataError:
            self.container.close()
            raise
        self.rate = float(self.stream.average_rate) if self.stream.average_rate else None
        self.duration = self._duration()
        # A file that is read from a server has a duration; a broadcast has none.
        self.live = camera is not None or (stream and self.container.duration is None)
        self._first: float | None = None
        self.left_out = 0
        """Frames of a live source that were not used because counting was slower."""

    def _video_stream(self) -> Any:
        """The video among the streams of the file.

        Raises:
            DataError: if there is none.
        """
        streams = self.container.streams
        form = self.container.format.name
        if form.endswith("_pipe") or form == "image2":
            one = as_typed("scripts/predict.py")
            raise _no_video(f"{self.name}: is a picture; count it with {one}, or give a folder of frames")
        if form == "tty" or not streams.video:
            kinds = sorted({stream.type for stream in streams} - {"video"})
            held = "text" if form == "tty" else ", ".join(kinds) or "nothing that FFmpeg knows"
            raise _no_video(f"{self.name}: holds no video, only {held}")
        stream = streams.best("video") or streams.video[0]
        if stream.codec_context is None:
            raise _no_video(f"{self.name}: its video has a codec that FFmpeg does not know")
        return stream

    def _duration(self) -> float | None:
        """Length in seconds; None if unknown."""
        if self.stream.duration:
            return float(self.stream.duration * self.stream.time_base)
        alone = self.container.duration and len(self.container.streams) == 1
        return self.container.duration / 1e6 if alone else None

    def frames(self, selection: Selection, stop: threading.Event) -> Generator[Frame, None, None]:
        """The selected frames, and what cannot be decoded. Ends early if ``stop`` is set.

        Frames of a live source that come while others are counted are dropped, except the last.
        """
        return self._latest(selection, stop) if self.live else self._frames(selection, stop)

    def close(self) -> None:
        """Close the file or connection."""
        self.container.close()

    def _frames(self, selection: Selection, stop: threading.Event) -> Generator[Frame, None, None]:
        """See :meth:`frames`; none is dropped."""
        number, last = -1, None
        for found in self._decoded(selection):
            if stop.is_set():
                return
            if isinstance(found, Frame):
                if found.seconds >= selection.start and not selection.is_over(found.seconds):
                    yield found
                continue
            last = self._seconds(found, last)
            if selection.is_over(last):
                return
            if last < selection.start - 1e-6:
                continue
            if found.is_corrupt and number < 0 and self.live:
                continue  # joined between two complete frames
            number += 1
            if found.is_corrupt:
                yield Frame(number, last, None, f"the frame at {last:.3f} s is damaged: parts of it are missing")
            elif selection.takes(number, last):
                yield Frame(number, last, upright(found))

    def _decoded(self, selection: Selection) -> Iterator[Any]:
        """Decoded frames of FFmpeg in their order, and a :class:`Frame` for what cannot be decoded."""
        av = import_av("counting the frames of a video")
        self._seek(av, selection.start)
        packets = self.container.demux(self.stream)
        usual = 1 / (self.rate or DEFAULT_RATE)
        ends, decoded_at, longest = 0.0, math.inf, usual
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                what = f"{self.name} cannot be read any further after {ends:.3f} s: {_words(error)}"
                yield Frame(None, ends, None, what)
                return
            if packet is None:
                break
            seconds = ends
            if packet.pts is not None:
                seconds = self._from_start(packet.pts * packet.time_base)
                length = packet.duration * packet.time_base if packet.duration else usual
                ends = max(ends, seconds + float(length))
            if packet.dts is not None:
                longest = max(longest, float(packet.dts * packet.time_base) - decoded_at)
                decoded_at = float(packet.dts * packet.time_base)
            try:
                yield from packet.decode()
            except (av.FFmpegError, ValueError) as error:
                what = f"the frame at {seconds:.3f} s cannot be decoded: {_words(error)}"
                yield Frame(None, seconds, None, what)
        # The last frame may be shown as long as any other, where the file does not say how long.
        if self.duration is not None and not self.live and ends < self.duration - 1.5 * longest:
            what = f"{self.name} ends at {ends:.3f} s, but says that it has {self.duration:.3f} s: it is truncated"
            yield Frame(None, ends, None, what)

    def _seek(self, av: Any, start: float) -> None:
        """Go to the last complete frame before a time, so that the frames before it need not be decoded."""
        if start <= 0 or self.live:
            return
        offset = int((start + self._begin()) / self.stream.time_base)
        try:
            self.container.seek(offset, stream=self.stream)
        except (av.FFmpegError, OSError):
            return  # it is read from its start

    def _begin(self) -> float:
        """The time stamp of the start, seconds."""
        return float((self.stream.start_time or 0) * self.stream.time_base)

    def _from_start(self, stamp: Any) -> float:
        """A time stamp in seconds as the time since the start of the source."""
        if self._first is None:
            # A camera's time may be that since the start of its computer.
            self._first = float(stamp) if self.live else self._begin()
        return float(stamp) - self._first

    def _seconds(self, frame: Any, last: float | None) -> float:
        """Time of a decoded frame; after the last one by the frame rate if it has no time stamp."""
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is not None:
            return self._from_start(stamp * frame.time_base)
        return 0.0 if last is None else last + 1 / (self.rate or DEFAULT_RATE)

    def _latest(self, selection: Selection, stop: threading.Event) -> Generator[Frame, None, None]:
        """The frames of a live source, which a thread reads as fast as they come."""
        waiting: queue.Queue[Frame | BaseException | None] = queue.Queue(maxsize=2)
        leave = threading.Event()

        def put(item: Frame | BaseException | None) -> None:
            while True:
                try:
                    return waiting.put_nowait(item)
                except queue.Full:
                    try:
                        waiting.get_nowait()
                        self.left_out += 1
                    except queue.Empty:
                        pass

        def read() -> None:
            try:
                for frame in self._frames(selection, leave):
                    put(frame)
                put(None)
            except BaseException as error:  # raised where the frames are used
                put(error)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        try:
            while not stop.is_set():
                try:
                    item = waiting.get(timeout=0.2)
                except queue.Empty:
                    continue
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            leave.set()
            thread.join(_TIMEOUTS[1] + 2)  # FFmpeg must not be closed while it reads


Source = ImageSequence | VideoSource


def open_source(text: str, *, rate: float = DEFAULT_RATE) -> Source:
    """Open what was typed as a source of frames.

    Args:
        text: a video file; a folder, pattern (``*``) or numbered name (``frame_%04d.png``) of images; ``camera:0``,
            ``/dev/video0``; or an address such as ``rtsp://...``.
        rate: frames per second of a sequence of images, which have no times.

    Raises:
        DataError: if it is missing, or holds no video.
        ConfigError: if PyAV is missing, or cameras cannot be read.
    """
    path = Path(text).expanduser()
    camera = re.fullmatch(r"camera:(.+)|/dev/video(\d+)", text)
    if camera:
        return _camera(text, camera[1] or camera[2])
    protocol = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if protocol and not path.exists():
        if protocol[1].lower() not in _PROTOCOLS:
            raise ConfigError(f"{without_password(text)}: must begin with {', '.join(_PROTOCOLS)}, followed by ://")
        return VideoSource(without_password(text), text, stream=True)
    if path.is_file():
        if not path.stat().st_size:
            raise _no_video(f"{text}: empty, 0 bytes")
        # Without "file:", a colon in the name would end a protocol.
        return VideoSource(printable(text), f"file:{path.resolve()}")
    if path.exists() and not path.is_dir():
        raise _no_video(f"{text}: not a file, a folder or a camera")
    files = _images(path, text)
    if not files:
        what = (
            f"no image below it ends in {', '.join(IMAGE_ENDINGS)}"
            if path.is_dir()
            else "no such file, folder or images"
        )
        raise _no_video(f"{text}: {what}")
    return ImageSequence(printable(text), files, rate=rate)


def _images(path: Path, text: str) -> list[Path]:
    """The images of a folder, a numbered name or a pattern, ordered by the numbers in their names."""
    numbered = _NUMBERED.search(path.name)
    if path.is_dir():
        files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith(".")]
    elif numbered:
        digits = rf"\d{{{numbered[1]},}}" if numbered[1] else r"\d+"
        name = re.compile(re.escape(path.name[: numbered.start()]) + digits + re.escape(path.name[numbered.end() :]))
        files = [p for p in path.parent.glob("*") if name.fullmatch(p.name)]
    else:
        files = [Path(name) for name in glob.glob(str(path))]
    return sorted((p for p in files if p.is_file()), key=lambda p: natural_key(str(p)))


def _camera(text: str, name: str) -> VideoSource:
    av = import_av("counting the frames of a camera")
    form, target = _CAMERAS.get(sys.platform, ("v4l2", "/dev/video{}"))
    if form not in av.formats_available:
        raise ConfigError(f"{text}: {_CAMERA_REMEDY}")
    return VideoSource(text, target.format(name), camera=form)


def import_av(purpose: str) -> Any:
    """PyAV, which is installed only where videos are counted.

    Args:
        purpose: what needs it; named in the error.

    Raises:
        ConfigError: if it is missing.
    """
    try:
        import av
    except ImportError as error:
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({one_line(error)})"
        raise ConfigError(f"{purpose} needs PyAV, which {what}: pip install 'headcount[video]'") from error
    return av


def upright(frame: Any) -> Pixels:
    """The RGB bytes of a decoded frame, turned and mirrored as its file says, if by multiples of 90 degrees."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A column of pixels (x, y) is shown at (a x + c y, b x + d y); 16 bits are the fraction.
    a, b, _, c, d, *_ = (value / 65536 for value in struct.unpack("=9i", bytes(matrix)[:36]))
    a, b, c, d = (round(value) for value in (a, b, c, d))
    if (abs(a), abs(d), b, c) == (1, 1, 0, 0):
        pixels = pixels[::d, ::a]
    elif (a, d, abs(b), abs(c)) == (0, 0, 1, 1):
        pixels = pixels.transpose(1, 0, 2)[::b, ::c]
    return np.ascontiguousarray(pixels)


def without_password(address: str) -> str:
    """An address as it may be printed."""
    return printable(re.sub(r"://[^/@]*@", "://***@", address))


def _reason(error: BaseException, *, stream: bool) -> str:
    """Why a source cannot be opened."""
    if stream:
        return f"cannot be opened: {_words(error)}; check the address, and that the camera or server is running"
    return f"is not a video that FFmpeg can read, or it is damaged or truncated ({_words(error)})"


def _words(error: BaseException) -> str:
    """What FFmpeg says, without the address, which may hold a password."""
    words = one_line(getattr(error, "strerror", None) or type(error).__name__)
    timed_out = words == "Immediate exit requested" or isinstance(error, TimeoutError)
    return "no answer in time" if timed_out else words


def _no_video(message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.image)
