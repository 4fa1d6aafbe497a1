"""Count one picture for a table of results, as the command and the page do; what is odd about it becomes a note."""

from pathlib import Path
from typing import TYPE_CHECKING

from headcount.commands import as_typed
from headcount.data.picture_files import ENDINGS, check_file, first_frame
from headcount.errors import HeadcountError
from headcount.report.predictions import PictureResult

if TYPE_CHECKING:
    from headcount.engine.ensemble import PhotoEnsemble
    from headcount.engine.predict import PhotoCount, PhotoCounter


_VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".3gp")


def predict_one(counter: "PhotoCounter | PhotoEnsemble", file: Path, result: PictureResult) -> "PhotoCount | None":
    """Count one picture; an error is recorded in the result, and None is returned."""
    try:
        check_file(file)
        prediction = counter.predict(file)
        result.count, result.interval = prediction.count, prediction.interval
        result.width, result.height = prediction.photo_size
        result.resized_height, result.resized_width = prediction.image.shape[1:]
        result.block_size = prediction.block_size
        unlike = "" if prediction.interval is None else prediction.interval.note
        notes = [first_frame(file), _windows(prediction), prediction.note, unlike]
        result.note = "; ".join(filter(None, notes))
        if prediction.block_counts is None:
            result.density = result.picture = None
            result.note = "; ".join(filter(None, [result.note, "this counter predicts one number per image"]))
        return prediction
    except Exception as error:  # one bad file never stops the others
        result.error = failure_message(file, error)
        result.density = result.picture = None
        return None


def _windows(prediction: "PhotoCount") -> str:
    """The windows that a picture was counted in; empty if it was counted whole."""
    window = getattr(prediction.mode, "window", None)
    reason = f" ({prediction.reason})" if prediction.reason else ""
    return (f"in windows of {window} px" if window else "") + reason


def failure_message(file: Path, error: Exception) -> str:
    """What went wrong with a file, with its name and what to do."""
    from PIL import Image

    words = str(error) if isinstance(error, HeadcountError) and str(error) else f"{type(error).__name__}: {error}"
    words = words if str(file) in words else f"{file}: {words}"
    if isinstance(error.__cause__, Image.DecompressionBombError):
        words += "; if it really is that large, raise --max-megapixels"
    elif isinstance(error.__cause__, Image.UnidentifiedImageError) and file.suffix.lower() in ENDINGS[-3:]:
        words += "; save it as JPEG"
    elif isinstance(error.__cause__, Image.UnidentifiedImageError) and file.suffix.lower() in _VIDEOS:
        words += f"; videos are counted by {as_typed('scripts/video.py')}"
    return words
