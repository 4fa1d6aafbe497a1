"""Count uploaded files for the page: pictures with the counter's ``predict``, videos as evenly spread frames.

One picture goes through the network at a time, however many people use the page.
"""

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headcount.config import SyntheticConfig
from headcount.counting import predict_one
from headcount.data.images import read_image
from headcount.data.kinds import DataErrorKind
from headcount.data.picture_files import find_pictures
from headcount.data.synthetic import draw_scene
from headcount.engine.frames import Selection, Source, VideoSource, open_source
from headcount.engine.predict import PhotoCount, PhotoCounter
from headcount.engine.video import FrameCount, count_frames
from headcount.errors import DataError, HeadcountError
from headcount.page.limits import Limits, is_video
from headcount.page.session import Session, View
from headcount.report.frames import CountCurve, clock
from headcount.report.overlay import heat_map, resized_photo
from headcount.report.predictions import PictureResult
from headcount.wording import many, one_line, printable

_MIN_SIDE, _MAX_SIDE = 800, 1200  # longer side of a picture on the page, pixels: text in it must be readable
_JPEG_QUALITY = 90
_GENERATED = (12, 23, 35, 2, 28, 7)
"""Generated crowds of the test split that are offered as examples: sparse and dense, seen from low and high."""
_MAX_EXAMPLES = 12
_THUMBNAIL = 320  # pixels

Report = Callable[[float, str], object]
"""Progress callback: called with the fraction done, 0 to 1, and the name of the current file or frame."""


@dataclass
class Outcome:
    """The result of counting the files of one upload."""

    session: Session | None
    """None if no file could be counted."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each file that could not be counted, or not as a whole."""


@dataclass
class Example:
    """A picture that can be counted without an upload."""

    name: str
    thumbnail: Image.Image
    file: Path


@dataclass
class PageCounter:
    """Counts what is uploaded."""

    counter: PhotoCounter
    limits: Limits
    _network: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, files: Sequence[Path], report: Report = lambda share, what: None) -> Outcome:
        """Count pictures, and at most one video among them.

        Args:
            files: named as the user named them; only the names are shown.
            report: called before each picture or frame.
        """
        views: list[View] = []
        curve: bytes | None = None
        problems: list[str] = []
        if len(files) > self.limits.pictures:
            problems.append(f"Only the first {self.limits.pictures} of {len(files)} files were counted.")
        for k, file in enumerate(files[: self.limits.pictures]):
            report(k / len(files), file.name)
            try:
                self.limits.check_size(file)
                if not is_video(file):
                    self.limits.check_picture(file)
                    views.append(self._picture(file))
                elif curve is not None:
                    problems.append(f"{printable(file.name)}: one video is counted at a time.")
                else:
                    frames, failed = self._video(file, report)
                    views += frames
                    problems += failed
                    curve = draw_curve(frames, title=file.name)
            except Exception as error:  # one bad file never stops the others
                problems.append(sentence(file, error))
        return Outcome(Session(views, curve) if views else None, problems)

    def _picture(self, file: Path) -> View:
        result = PictureResult(file.name)
        with self._network:
            prediction = predict_one(self.counter, file, result)
        if prediction is None:
            raise DataError(result.error, kind=DataErrorKind.image)
        return make_view(prediction, result)

    def _video(self, file: Path, report: Report) -> tuple[list[View], list[str]]:
        """The counted frames of a video, and a sentence for each that could not be counted."""
        views: list[View] = []
        problems: list[str] = []
        limit = self.limits.frames
        with closing(open_source(str(file))) as source:
            selection = self._selection(file, source)
            with closing(source.frames(selection, threading.Event())) as frames:
                counted = count_frames(self.counter, frames)
                for frame in self._one_at_a_time(counted):
                    if frame.prediction is None:
                        problems.append(sentence(file, DataError(frame.error, kind=DataErrorKind.image)))
                        continue
                    report(len(views) / limit, f"{file.name} at {clock(frame.seconds)}")
                    prediction = frame.prediction
                    result = PictureResult(f"{file.name} at {clock(frame.seconds)}", count=prediction.count)
                    result.width, result.height = prediction.photo_size
                    result.note, result.interval = prediction.note, prediction.interval
                    views.append(make_view(prediction, result, seconds=frame.seconds))
                    if len(views) == limit:
                        break
        if not views and not problems:
            problems.append(f"{printable(file.name)} has no frames.")
        return views, problems[:3]

    def _selection(self, file: Path, source: Source) -> Selection:
        """Frames spread evenly over a video.

        Raises:
            DataError: if it is too long, or its frames are too large.
        """
        if isinstance(source, VideoSource):
            codec = source.stream.codec_context
            self.limits.check_pixels(file, codec.width, codec.height)
        if source.duration is None:
            return Selection(every_seconds=1.0)
        if source.duration > self.limits.minutes * 60:
            allowed = many(self.limits.minutes, "minute")
            raise DataError(
                f"{file} has {source.duration / 60:.1f} minutes, and at most {allowed} are accepted.",
                kind=DataErrorKind.image,
            )
        return Selection(every_seconds=max(source.duration, 0.001) / self.limits.frames)

    def _one_at_a_time(self, results: Iterator[FrameCount]) -> Iterator[FrameCount]:
        """Count each frame when it is requested, so that pictures of other users are counted in between."""
        while True:
            with self._network:
                frame = next(results, None)
            if frame is None:
                return
            yield frame


def make_view(prediction: PhotoCount, result: PictureResult, *, seconds: float | None = None) -> View:
    """What the page keeps of a counted picture; takes much less memory than its pixels and probabilities."""
    height, width = prediction.image.shape[1:]
    side = max(height, width)
    ratio = min(max(side, _MIN_SIDE), _MAX_SIDE) / side
    panel = max(1, round(height * ratio)), max(1, round(width * ratio))
    blocks = None if prediction.block_counts is None else prediction.block_counts.numpy()
    exact = None if blocks is None else blocks.astype(np.float64)
    heat, scale = heat_map(prediction.image, exact, panel=panel, block_size=prediction.block_size)
    bins = prediction.probabilities
    return View(
        result,
        prediction.photo_size,
        (width, height),
        prediction.block_size,
        blocks,
        None if bins is None else bins.argmax(0).numpy().astype(np.uint8),
        jpeg(resized_photo(prediction.image, panel)),
        jpeg(Image.fromarray(heat)),
        scale,
        seconds=seconds,
    )


def jpeg(picture: Image.Image) -> bytes:
    """A picture as the content of a JPEG file."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=_JPEG_QUALITY)
    return content.getvalue()


def pixels(content: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The RGB bytes of a picture that :func:`jpeg` packed."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def sentence(file: Path, error: Exception) -> str:
    """The error message for an uploaded file; it names the file, but not its folder on the server."""
    words = str(error) if isinstance(error, HeadcountError) else f"it cannot be counted: {one_line(error)}"
    words = words if str(file) in words else f"{file}: {words}"
    for folder in (file.resolve().parent, file.parent):
        words = words.replace(f"{folder}{os.sep}", "")
    words = printable(words)
    return words if words.endswith(".") else f"{words}."


def draw_curve(frames: Sequence[View], *, title: str) -> bytes | None:
    """The counts of a video over time as a PNG file; None without frames."""
    if not frames:
        return None
    curve = CountCurve(["people"])
    for frame in frames:
        curve.add(frame.seconds or 0.0, [frame.count])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "counts.png")
        curve.draw(path, title=title)
        return path.read_bytes()


def find_examples(folder: Path | None, limits: Limits, storage: Path) -> list[Example]:
    """The example pictures of the page.

    Args:
        folder: pictures of it, in the order of their names; None draws crowds.
        storage: a folder for drawn crowds.

    Raises:
        DataError: if the folder has no usable picture.
    """
    if folder is None:
        return [_generated(index, storage) for index in _GENERATED]
    found: list[Example] = []
    for file in find_pictures([str(folder)], leave_out=set()).files:
        if len(found) == _MAX_EXAMPLES:
            break
        try:
            limits.check_size(file)
            limits.check_picture(file)
            picture = Image.fromarray(read_image(file, upright=True).permute(1, 2, 0).numpy())
        except (HeadcountError, OSError, MemoryError):
            continue
        found.append(_example(file.stem, picture, file))
    if not found:
        raise DataError(f"--examples {folder}: no picture there can be read", kind=DataErrorKind.empty)
    return found


def _generated(index: int, storage: Path) -> Example:
    scene = draw_scene(index, config=SyntheticConfig(), split="test")
    picture = Image.fromarray(scene.image.transpose(1, 2, 0))
    people = many(len(scene.people), "head")
    file = storage / f"generated crowd of {people}.png"
    picture.save(file)
    return _example(people, picture, file)


def _example(name: str, picture: Image.Image, file: Path) -> Example:
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return Example(printable(name), picture, file)
