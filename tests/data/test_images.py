"""Image files as they are found in the wild."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from data.oriented import ENDINGS, TURNED, oriented, stored_pixels
from headcount.data.images import image_size, read_image, read_picture, upright_picture
from headcount.errors import DataError


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([6 * x, 8 * y, 255 - 6 * x], axis=2).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_mode_become_the_rgb_that_pillow_gives(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    gradient().convert(mode).save(path, quality=95)
    image = read_image(path)
    assert image.shape == (3, 30, 40)
    with Image.open(path) as file:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_pngs_of_every_mode_become_rgb(mode: str, tmp_path: Path) -> None:
    source = gradient().convert(mode)
    source.save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png").permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.asarray(source.convert("RGB")))


def test_a_palette_with_transparency_is_read(tmp_path: Path) -> None:
    source = gradient().convert("P")
    source.save(tmp_path / "image.png", transparency=bytes([0, 128, 255]))
    image = read_image(tmp_path / "image.png").permute(1, 2, 0).numpy()
    assert np.array_equal(image, np.asarray(source.convert("RGB")))


def test_sixteen_bits_are_scaled_not_cut(tmp_path: Path) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png")[:, 0].tolist() == 3 * [[0, 1, 128, 255]]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_image_is_turned_or_not_alike_in_every_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    stored = stored_pixels(path, gradient(40, 30))
    for orientation in (*range(1, 9), 0, 9, 65535):
        oriented(path, gradient(40, 30), orientation)
        upright = TURNED.get(orientation, np.asarray)(stored)
        for turn, expected in ((True, upright), (False, stored)):
            picture = read_picture(path, upright=turn)
            assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), expected), (orientation, turn)
            assert image_size(path, upright=turn) == (expected.shape[1], expected.shape[0])
            assert picture.orientation == (orientation if orientation in range(1, 9) else 1)
        with Image.open(path) as image:
            assert np.array_equal(upright_picture(image).pixels.permute(1, 2, 0).numpy(), upright), orientation
            assert np.array_equal(upright_picture(image).pixels.permute(1, 2, 0).numpy(), upright), "loaded before"


@pytest.mark.parametrize("mode", ["I;16", "1", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_every_mode_is_turned(mode: str, ending: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(0, 48000, 40, dtype=np.uint16).reshape(30, 40))
    image = image if mode == "I;16" else gradient(40, 30).convert(mode)
    if mode == "CMYK" and ending == "png":
        ending = "jpg"
    path = tmp_path / f"image.{ending}"
    oriented(path, image, 6)
    turned, stored = (read_image(path, upright=upright) for upright in (True, False))
    assert np.array_equal(turned.permute(1, 2, 0), np.rot90(stored.permute(1, 2, 0), -1))
    assert float(stored.float().std()) > 10


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"", b"II*\0\xff\xff\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\xff\xff" + bytes(9)])
def test_damaged_exif_is_no_reason_to_lose_an_image(ending: str, exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    gradient().save(path, exif=b"Exif\0\0" + exif)
    assert image_size(path, upright=True) == (40, 30)
    assert read_image(path, upright=True).shape == (3, 30, 40)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_orientation_of_another_type_is_upright(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    for kind, value in (
        (2, b"6\0\0\0"),
        (7, b"\6\0\0\0"),
        (11, struct.pack("<f", 6.5)),
        (99, b"\6\0\0\0"),
        (5, bytes(4)),
    ):
        oriented(path, gradient(40, 30), struct.pack("<HHI", 0x112, kind, 1) + value)
        for upright in (True, False):
            assert image_size(path, upright=upright) == (40, 30), kind
            assert read_image(path, upright=upright).shape == (3, 30, 40), kind


@pytest.mark.parametrize("ending", ["gif", "webp", "tif", "png"])
def test_of_an_animation_the_first_frame_is_read(ending: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 30), "white"), Image.new("RGB", (40, 30), "black")
    first.save(tmp_path / f"image.{ending}", save_all=True, append_images=[second])
    assert read_image(tmp_path / f"image.{ending}").min() > 250


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_transparency_is_dropped_not_blended(mode: str, tmp_path: Path) -> None:
    source = gradient().convert("RGBA")
    source.putalpha(0)
    (source.convert(mode) if mode != "PA" else source.convert("P").convert("PA")).save(tmp_path / "image.tif")
    assert np.ptp(read_image(tmp_path / "image.tif").numpy()) > 100


def test_sixteen_bits_of_every_kind_keep_their_order(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    image = Image.fromarray(values)
    image.save(tmp_path / "little.tif")
    image.save(tmp_path / "packed.tif", compression="tiff_lzw")
    image.save(tmp_path / "gray.png")
    Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    (tmp_path / "map.pgm").write_bytes(b"P5 64 64 65535\n" + values.astype(">u2").tobytes())
    for name in ("little.tif", "packed.tif", "big.tif", "gray.png", "map.pgm"):
        picture = read_picture(tmp_path / name, upright=True)
        assert np.array_equal(picture.pixels, np.stack([values >> 8] * 3)), name
        assert not picture.dark
        with Image.open(tmp_path / name) as file:
            assert np.array_equal(upright_picture(file).pixels, picture.pixels)


@pytest.mark.parametrize(("zero", "expected"), [(1, 16), (0, 255 - 16)])
def test_sixteen_bits_may_begin_at_white(zero: int, expected: int, tmp_path: Path) -> None:
    """TIFF's PhotometricInterpretation 0 means that 0 is white."""
    Image.fromarray(np.full((8, 8), 16 << 8, dtype=np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: zero})
    assert read_image(tmp_path / "a.tif").unique().tolist() == [expected]


def png_of_sixteen_bits(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel, which Pillow writes for grayscale only."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [12, 13, 16])
def test_twelve_bits_in_sixteen_are_noted(channels: int, bits: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30, channels))
    values[0, 0], values[..., 3:] = 2**bits - 1, 65535
    (tmp_path / "a.png").write_bytes(png_of_sixteen_bits(values))
    picture = read_picture(tmp_path / "a.png", upright=True)
    colors = [0, 0, 0] if channels < 3 else [0, 1, 2]
    assert np.array_equal(picture.pixels.permute(1, 2, 0), values[..., colors] >> 8)
    assert picture.dark == (bits == 12)


def tiff_of_sixteen_bits(values: np.ndarray, order: str, *, planar: bool) -> bytes:
    """An RGB TIFF of 16 bits per channel, with one strip or one for each channel."""
    height, width, _ = values.shape
    strips = [values[..., k] for k in range(3)] if planar else [values]
    data = [strip.astype(f"{order}u2").tobytes() for strip in strips]
    n, size, lists = len(data), len(data[0]), 8 + 2 + 12 * 10 + 4  # The entries are followed by three lists.
    first = lists + 6 + 8 * n
    offsets, lengths = [first + k * size for k in range(n)], [size] * n
    places = [(lists + 6, lists + 6 + 4 * n), (first, size)][n == 1]
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, lists), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, n, places[0]), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, n, places[1])]
    entries += [(284, 3, 1, 2 if planar else 1)]
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        head += struct.pack(f"{order}HHI", tag, kind, count)
        head += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    ends = struct.pack(f"{order}I3H{2 * n}I", 0, 16, 16, 16, *offsets, *lengths)
    return head + ends + b"".join(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_sixteen_bits_per_color_is_scaled_or_refused(order: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (20, 30, 3))
    (tmp_path / "a.tif").write_bytes(tiff_of_sixteen_bits(values, order, planar=False))
    assert np.array_equal(read_image(tmp_path / "a.tif").permute(1, 2, 0), values >> 8)
    (tmp_path / "b.tif").write_bytes(tiff_of_sixteen_bits(values, order, planar=True))
    with pytest.raises(DataError, match=r"b\.tif .*its channels are stored apart, with more than 8 bits"):
        read_image(tmp_path / "b.tif")


def test_eight_bits_are_never_taken_for_twelve(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    assert not read_picture(tmp_path / "black.png", upright=True).dark


@pytest.mark.parametrize(("dtype", "message"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit integers")])
@pytest.mark.parametrize("top", [1, 255, 65535, 2**31 - 1])
def test_pixels_of_unknown_range_are_refused_by_name(dtype: type, message: str, top: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 1200).astype(dtype).reshape(30, 40)
    Image.fromarray(values).save(tmp_path / "image.tif")
    expected = rf"image\.tif cannot be read as an image: its pixels are {message}, .*save it with 8 or 16 bits"
    with pytest.raises(DataError, match=expected):
        read_image(tmp_path / "image.tif")
    with pytest.raises(ValueError, match=f"its pixels are {message}"):
        upright_picture(Image.fromarray(values))


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient().save(tmp_path / "image.png")
    for error in (KeyError(7), IndexError(), struct.error("short"), EOFError()):

        def fail(image: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(DataError, match=r"image\.png cannot be read as an image: \w"):
            read_image(tmp_path / "image.png")

    def full(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError, match=r"image\.png does not fit into memory"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("length", [40, 400])
def test_a_damaged_image_names_itself(ending: str, length: int, tmp_path: Path) -> None:
    path = tmp_path / f"broken.{ending}"
    gradient(200, 200).save(path)
    path.write_bytes(path.read_bytes()[:length] if length > 40 else b"\xff\xd8\xff\xe0" + bytes(36))
    with pytest.raises(DataError, match=rf"broken\.{ending}"):
        read_image(path)


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp", "tif"])
def test_an_image_is_whole_or_not(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{ending}"
    gradient(200, 200).save(path)
    read_image(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"<html>log in to download</html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"image\.{ending} cannot be read as an image"):
            read_image(path)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        read_image(path)


def test_a_jpeg_with_something_after_its_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    gradient(200, 200).save(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    read_image(path)


def test_damage_amid_a_png_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    gradient(200, 200).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png cannot be read"):
        read_image(path)


def test_an_image_too_large_for_memory_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient(200, 200).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match=r"image\.png cannot be read as an image: .*40000 pixels"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_a_turned_tiff_is_the_same_compressed_or_not(mode: str, tmp_path: Path) -> None:
    """Pillow maps uncompressed files of some modes into memory, in the wrong shape."""
    values = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    deep = Image.fromarray(values[..., 0].astype(np.uint16) * 200)
    stored = deep if mode == "I;16" else Image.fromarray(values).convert(mode)
    for orientation in (1, 3, 5, 6, 7, 8):
        files = [tmp_path / "raw.tif", tmp_path / "lzw.tif"]
        for file, compression in zip(files, (None, "tiff_lzw"), strict=True):
            stored.save(file, tiffinfo={ExifTags.Base.Orientation: orientation}, compression=compression)
        for upright in (True, False):
            raw, packed = (read_image(file, upright=upright) for file in files)
            assert torch.equal(raw, packed)
            assert image_size(files[0], upright=upright) == (raw.shape[2], raw.shape[1])
