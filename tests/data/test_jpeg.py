"""JPEG files mean the same pixels, or are refused, whether simplejpeg or Pillow decodes them."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from headcount.data import images, jpeg
from headcount.data.images import read_image, read_picture
from headcount.errors import DataError

SUBSAMPLINGS = ("444", "422", "420", "440", "411")
SIZES = ((1, 1), (7, 5), (16, 16), (33, 47), (130, 71))


def noise(width: int, height: int) -> np.ndarray:
    """Colored noise on a gradient: every approximation of decoding changes some of its bytes."""
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([2 * x, 3 * y, 200 - x], axis=2) % 256
    return ((gradient + np.random.default_rng(0).integers(0, 64, (height, width, 3))) % 256).astype(np.uint8)


def encoded(pixels: np.ndarray, *, mode: str = "RGB", **options: object) -> bytes:
    """The JPEG that Pillow writes."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def without_segment(data: bytes, marker: int) -> bytes:
    """Remove the first segment of a marker."""
    start = data.index(bytes([0xFF, marker]))
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def with_adobe(data: bytes, transform: int) -> bytes:
    """Replace the JFIF segment by Adobe's, which says whether channels are transformed."""
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + without_segment(data, 0xE0)[2:]


def with_separate_scans(pixels: np.ndarray) -> bytes:
    """A sequential JPEG that stores its channels one after the other: the scans of three grayscale files."""
    files = [encoded(pixels[..., channel], mode="L") for channel in range(3)]
    frame, scan = files[0].index(b"\xff\xc0"), files[0].index(b"\xff\xda")
    colors = b"\xff\xc0\0\x11" + files[0][frame + 4 : frame + 9] + b"\3" + b"\1\x11\0\2\x11\0\3\x11\0"
    head = files[0][:frame] + colors + files[0][frame + 13 : scan]
    scans = [with_byte(file[scan:-2], 5, channel) for channel, file in enumerate(files, 1)]
    return head + b"".join(scans) + files[0][-2:]


def with_byte(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([value]) + data[place + 1 :]


def pillow_pixels(file: Path | io.BytesIO) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def forbid_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail if Pillow decodes."""
    monkeypatch.setattr(images, "_as_rgb", lambda image, *, bits: pytest.fail("Pillow decodes"))


def three_channels() -> dict[str, bytes]:
    """One file of every kind of color, scan and marker."""
    pixels = noise(61, 45)
    plain = encoded(pixels)
    return {
        "gray": encoded(pixels, mode="L"),
        "progressive": encoded(pixels, progressive=True),
        "progressive gray": encoded(pixels, mode="L", progressive=True),
        "optimized": encoded(pixels, optimize=True, quality=30),
        "restart markers": encoded(pixels, restart_marker_blocks=2),
        "RGB": encoded(pixels, keep_rgb=True),
        "RGB without a marker": without_segment(encoded(pixels, keep_rgb=True), 0xEE),
        "YCbCr without a marker": without_segment(plain, 0xE0),
        "Adobe YCbCr": with_adobe(plain, 1),
        "Adobe RGB": with_adobe(plain, 0),
        "separate scans": with_separate_scans(pixels),
        "bytes after the end": plain + bytes(100),
    }


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_subsampling_has_pillows_pixels(
    subsampling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.jpg"
    forbid_pillow(monkeypatch)
    for width, height in SIZES:
        for quality in (30, 95):
            pixels = noise(width, height)
            path.write_bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=subsampling))
            assert np.array_equal(read_image(path).permute(1, 2, 0), pillow_pixels(path)), (width, height, quality)


@pytest.mark.parametrize("kind", three_channels())
def test_every_kind_has_pillows_pixels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(three_channels()[kind])
    with monkeypatch.context() as patch:
        forbid_pillow(patch)
        fast = read_picture(path, upright=True)
    assert np.array_equal(fast.pixels.permute(1, 2, 0), pillow_pixels(path))
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    slow = read_picture(path, upright=True)
    assert np.array_equal(fast.pixels, slow.pixels)
    assert (fast.mode, fast.orientation, fast.pixels.stride()) == (slow.mode, slow.orientation, slow.pixels.stride())


@pytest.mark.parametrize("transform", [None, 0, 2])
def test_four_channels_are_left_to_pillow(transform: int | None, tmp_path: Path) -> None:
    """simplejpeg converts CMYK by another formula; Adobe's transform 2 is YCCK, and None is a file without a marker."""
    path = tmp_path / "image.jpg"
    data = encoded(noise(61, 45), mode="CMYK")
    last = data.index(b"Adobe") + 11
    path.write_bytes(without_segment(data, 0xEE) if transform is None else with_byte(data, last, transform))
    expected = pillow_pixels(path)
    assert np.array_equal(read_image(path).permute(1, 2, 0), expected)
    assert np.ptp(expected) > 100


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_first_rows_are_those_of_the_whole_image(subsampling: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(simplejpeg.encode_jpeg(noise(130, 71), quality=90, colorsubsampling=subsampling))
    whole = read_image(path)
    for rows in range(1, 75):
        assert np.array_equal(read_image(path, rows=rows), whole[:, :rows]), rows


@pytest.mark.parametrize("kind", three_channels())
def test_of_every_kind_the_first_rows_are_those_of_the_whole_image(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(three_channels()[kind])
    whole = read_image(path)
    for rows in (1, 20, 40):
        assert np.array_equal(read_image(path, rows=rows), whole[:, :rows]), rows


def test_rows_are_counted_in_the_image_as_it_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[274] = 6
    path.write_bytes(encoded(noise(61, 45), exif=exif))
    whole = read_image(path, upright=True)
    assert whole.shape == (3, 61, 45)
    assert np.array_equal(read_image(path, upright=True, rows=50), whole[:, :50])


def test_the_first_rows_are_decoded_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.jpg"
    decoded = []
    decode = simplejpeg.decode_jpeg

    def remember(*inputs: object, **options: object) -> np.ndarray:
        decoded.append(decode(*inputs, **options))
        return decoded[-1]

    monkeypatch.setattr(simplejpeg, "decode_jpeg", remember)
    pixels = noise(61, 200)
    for data, rows in (
        (encoded(pixels), 46),
        (encoded(pixels, restart_marker_blocks=2), 46),
        (encoded(pixels, progressive=True), 200),
        (with_separate_scans(pixels), 200),
    ):
        path.write_bytes(data)
        read_image(path, rows=30)
        assert len(decoded.pop()) == rows


def test_a_truncated_file_is_noticed_in_any_rows(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    data = encoded(noise(61, 200))
    path.write_bytes(data[: len(data) // 2])
    for rows in (None, 10, 150):
        with pytest.raises(DataError, match="truncated"):
            read_image(path, rows=rows)


def test_harmless_damage_is_left_to_pillow(tmp_path: Path) -> None:
    """Bytes between two segments: simplejpeg refuses the file, Pillow skips them."""
    path = tmp_path / "image.jpg"
    data = encoded(noise(61, 45))
    scan = data.index(b"\xff\xda")
    path.write_bytes(data[:scan] + b"\0\0\0" + data[scan:])
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(path.read_bytes())
    assert np.array_equal(read_image(path).permute(1, 2, 0), pillow_pixels(path))


@pytest.mark.parametrize(("offset", "value"), [(1, 0xC9), (4, 12)], ids=["arithmetic coding", "12 bits"])
def test_rare_formats_mean_what_pillow_says(offset: int, value: int, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    data = encoded(noise(61, 45))
    path.write_bytes(with_byte(data, data.index(b"\xff\xc0") + offset, value))
    assert_as_pillow(path)


def assert_as_pillow(path: Path) -> bool:
    """Whether Pillow can decode a file; if so, so can we, into the same pixels, and otherwise we refuse it."""
    try:
        expected = pillow_pixels(path)
    except Exception:  # Its decoders raise a dozen types of errors.
        with pytest.raises(DataError, match=rf"{path.name} cannot be read as an image"):
            read_image(path)
        return False
    assert np.array_equal(read_image(path).permute(1, 2, 0), expected)
    return True


@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata.
def test_damaged_bytes_are_read_or_refused_as_by_pillow(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "image.jpg"
    pixels = noise(61, 45)
    files = [*three_channels().values(), encoded(pixels, mode="CMYK")]
    files += [simplejpeg.encode_jpeg(pixels, colorsubsampling=subsampling) for subsampling in SUBSAMPLINGS]
    readable = 0
    for k in range(300):
        data = bytearray(files[k % len(files)])
        # Every other time in the first segments: tables, sizes and markers.
        for place in rng.integers(2, min(650, len(data)) if k % 2 else len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: int(rng.integers(20, len(data)))] if k % 10 == 0 else data)
        if assert_as_pillow(path):
            readable += 1
            _, height, width = read_image(path).shape
            assert read_image(path, rows=20).shape == (3, min(20, height), width)
    assert 100 < readable < 250


@pytest.mark.data
def test_real_photographs_have_pillows_pixels(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(data_dir.rglob("*.jpg"))[::10]
    assert len(files) > 50
    forbid_pillow(monkeypatch)
    for file in files:
        expected = pillow_pixels(file)
        assert np.array_equal(read_image(file).permute(1, 2, 0), expected), file
        rows = len(expected) * 2 // 3
        assert np.array_equal(read_image(file, rows=rows).permute(1, 2, 0), expected[:rows]), file
