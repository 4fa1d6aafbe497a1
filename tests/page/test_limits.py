"""What the page refuses, and the sentences that say so."""

from pathlib import Path

import pytest
from PIL import Image

from headcount.errors import DataError
from headcount.page.limits import Limits, is_video

LIMITS = Limits(megabytes=1, megapixels=1)


def check(file: Path) -> None:
    LIMITS.check_size(file)
    LIMITS.check_picture(file)


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as error:
        check(file)
    return str(error.value)


def test_accepted_pictures(tmp_path: Path) -> None:
    for ending in ("jpg", "png", "webp", "bmp", "gif", "tiff", "jp2", "ppm"):
        file = tmp_path / f"a.{ending}"
        Image.new("RGB", (40, 30)).save(file)
        check(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty, 0 bytes."),
        (b"x" * (2**20 + 1), "has 1.0 MB, and at most 1 MB are accepted."),
        (b"hello", "is not a picture or video of an accepted kind, or is damaged."),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a picture or video of an accepted kind"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture or video of an accepted kind"),
    ],
)
def test_refused_files(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    assert words in refusal(file)


def test_a_program_is_no_picture(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on PostScript, whatever the file is called."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert "is a picture in the format EPS, which is not accepted: save it as JPEG." in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("pillow_refuses", [False, True])
def test_too_many_pixels(pillow_refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (1001, 1000)).save(tmp_path / "a.png")
    if pillow_refuses:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    assert "has too many pixels" in refusal(tmp_path / "a.png")
    assert "at most 1 megapixels are accepted" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("start", "video"),
    [
        (b"\0\0\0\x20ftypisom", True),
        (b"\0\0\0\x14ftypqt  ", True),
        (b"\0\0\0\x20ftypavif", False),
        (b"\x1a\x45\xdf\xa3", True),
        (b"RIFF\0\0\0\0AVI LIST", True),
        (b"RIFF\0\0\0\0WEBPVP8 ", False),
        (b"\xff\xd8\xff\xe0", False),
        (b"#EXTM3U\n", False),
        (b"ffconcat version 1.0\n", False),
        (b"", False),
    ],
)
def test_videos_are_known_by_their_content(start: bytes, video: bool, tmp_path: Path) -> None:
    """A playlist, which may name other files of the server, is not one."""
    file = tmp_path / "a.mp4"
    file.write_bytes(start)
    assert is_video(file) is video


def test_the_limits_are_stated() -> None:
    words = Limits(megabytes=7, megapixels=8, pictures=9, frames=11, minutes=1).sentence()
    for number in ("9 files", "7 MB", "8 megapixels", "1 minute,", "11 frames"):
        assert number in words
