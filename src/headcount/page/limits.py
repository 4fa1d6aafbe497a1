"""What the page accepts: limits of size, and the kinds of files. Whatever is refused gets a sentence.

Only formats that are read entirely from the file itself are accepted: a playlist could name other files of the server,
and PostScript is a program.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from headcount.data.images import open_pillow
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.wording import many

_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "PPM")
# Offset and bytes that begin a video of each kind.
_VIDEOS = (
    *((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"free"), (4, b"wide")),  # MP4 and QuickTime
    *((0, b"\x1a\x45\xdf\xa3"), (0, b"OggS"), (0, b"\x00\x00\x01\xba"), (8, b"AVI ")),  # WebM and Matroska, ...
)
_STILL = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")  # brands of pictures in MP4's format
_READ = 16  # bytes that tell the kind


@dataclass(frozen=True)
class Limits:
    """The largest files that are counted."""

    megabytes: int = 100
    """Of a file, each of 1,048,576 bytes."""
    megapixels: int = 50
    """Of a picture, or of a frame of a video."""
    pictures: int = 20
    """Files that are counted together."""
    frames: int = 40
    """Frames of a video that are counted, spread evenly over it."""
    minutes: int = 10
    """Length of a video."""

    @property
    def file_bytes(self) -> int:
        """Size of the largest file."""
        return self.megabytes * 2**20

    def sentence(self) -> str:
        """What is accepted, for the page."""
        return (
            f"Up to {many(self.pictures, 'file')} at a time, each of at most {self.megabytes} MB. Pictures: JPEG, PNG, "
            f"WebP, TIFF, GIF, BMP, JPEG 2000; at most {self.megapixels} megapixels. Videos: MP4, MOV, WebM, MKV, AVI, "
            f"MPEG; at most {many(self.minutes, 'minute')}, of which up to {self.frames} frames are counted."
        )

    def check_size(self, file: Path) -> None:
        """Refuse a file that is gone, empty or too large.

        Raises:
            DataError: says what it is.
        """
        if not file.is_file():
            raise _refused(f"{file} was deleted before it was counted. Upload it again.")
        size = file.stat().st_size
        if not size:
            raise _refused(f"{file} is empty, 0 bytes.")
        if size > self.file_bytes:
            raise _refused(f"{file} has {size / 2**20:.1f} MB, and at most {self.megabytes} MB are accepted.")

    def check_picture(self, file: Path) -> None:
        """Refuse what is not a picture of an accepted format and size; only its header is read.

        Raises:
            DataError: says what it is.
        """
        try:
            with open_pillow(file) as image:
                format_, (width, height) = image.format, image.size
        except DataError as error:
            reason = error.__cause__
            if isinstance(reason, Image.DecompressionBombError):
                raise self._too_many_pixels(file, "") from error
            if isinstance(reason, Image.UnidentifiedImageError):
                raise _refused(f"{file} is not a picture or video of an accepted kind, or is damaged.") from error
            raise
        if format_ not in _FORMATS:
            raise _refused(f"{file} is a picture in the format {format_}, which is not accepted: save it as JPEG.")
        self.check_pixels(file, width, height)

    def check_pixels(self, file: Path, width: int, height: int) -> None:
        """Refuse a picture, or a video's frame, that is too large to be decoded for a guest.

        Raises:
            DataError: says how large it is.
        """
        if width * height > self.megapixels * 1_000_000:
            raise self._too_many_pixels(file, f", {width} x {height}")

    def _too_many_pixels(self, file: Path, size: str) -> DataError:
        return _refused(f"{file} has too many pixels{size}: at most {self.megapixels} megapixels are accepted.")


def is_video(file: Path) -> bool:
    """Whether a file is a video of an accepted kind, by its first bytes."""
    with file.open("rb") as opened:
        start = opened.read(_READ)
    if start[4:8] == b"ftyp" and start[8:12] in _STILL:
        return False
    mpeg = start[:1] == b"\x47" and file.suffix.lower() in (".ts", ".m2ts", ".mts")
    return mpeg or any(start[at : at + len(magic)] == magic for at, magic in _VIDEOS)


def _refused(message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.image)
