"""Image files as they are found in the wild."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from headcount.data.images import as_rgb, check_image, read_image, read_pillow
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


def test_pixels_stay_as_stored_whatever_exif_says(tmp_path: Path) -> None:
    """Annotations are given in stored pixels; turning the image would leave them behind."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees when showing.
    gradient(40, 30).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").shape == (3, 30, 40)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright_once(ending: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient(40, 30).save(tmp_path / f"image.{ending}", exif=exif)
    upright = read_pillow(tmp_path / f"image.{ending}", upright=True)
    with Image.open(tmp_path / f"image.{ending}") as file:
        expected = ImageOps.exif_transpose(file).convert("RGB")
    assert upright.size == ((40, 30) if orientation < 5 else (30, 40))
    assert np.array_equal(np.asarray(upright), np.asarray(expected))
    assert np.array_equal(np.asarray(as_rgb(upright, upright=True)), np.asarray(expected))


def test_damaged_exif_is_no_reason_to_lose_a_picture(tmp_path: Path) -> None:
    for k, exif in enumerate((b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense")):
        gradient().save(tmp_path / f"{k}.jpg", exif=exif)
        assert read_pillow(tmp_path / f"{k}.jpg", upright=True).size == (40, 30)


@pytest.mark.parametrize("ending", ["gif", "webp", "tif", "png"])
def test_of_an_animation_the_first_frame_is_read(ending: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (40, 30), "white"), Image.new("RGB", (40, 30), "black")
    first.save(tmp_path / f"image.{ending}", save_all=True, append_images=[second])
    assert np.asarray(read_pillow(tmp_path / f"image.{ending}")).min() > 250


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBA"])
def test_transparency_is_dropped_not_blended(mode: str, tmp_path: Path) -> None:
    source = gradient().convert("RGBA")
    source.putalpha(0)
    (source.convert(mode) if mode != "PA" else source.convert("P").convert("PA")).save(tmp_path / "image.tif")
    pixels = np.asarray(read_pillow(tmp_path / "image.tif"))
    assert np.ptp(pixels) > 100


@pytest.mark.parametrize("upright", [False, True])
def test_sixteen_bits_of_every_kind_keep_their_order(upright: bool, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / "little.tif")
    Image.frombytes("I;16B", (64, 64), values.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("little", "big", "wide"):
        pixels = np.asarray(read_pillow(tmp_path / f"{name}.tif", upright=upright))
        assert np.array_equal(pixels, np.stack([values >> 8] * 3, axis=2))


def test_floating_point_pixels_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((30, 40), dtype=np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(DataError, match=r"image\.tif cannot be read as an image: .*floating-point.*8 or 16 bits"):
        read_pillow(tmp_path / "image.tif")


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient().save(tmp_path / "image.png")
    for error in (KeyError(7), IndexError(), struct.error("short"), EOFError()):

        def fail(image: Image.Image, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(DataError, match=r"image\.png cannot be read as an image: \w"):
            read_pillow(tmp_path / "image.png")

    def full(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", full)
    with pytest.raises(MemoryError, match=r"image\.png does not fit into memory"):
        read_pillow(tmp_path / "image.png")


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
    check_image(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"<html>log in to download</html>"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"image\.{ending} cannot be read as an image"):
            check_image(path)
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        check_image(path)


def test_a_jpeg_with_something_after_its_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    gradient(200, 200).save(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    check_image(path)


def test_damage_amid_a_png_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    gradient(200, 200).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image\.png cannot be read"):
        check_image(path)
    with pytest.raises(DataError, match=r"image\.png cannot be read"):
        read_image(path)


def test_an_image_too_large_for_memory_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient(200, 200).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(DataError, match=r"image\.png cannot be read as an image: .*40000 pixels"):
        check_image(tmp_path / "image.png")
