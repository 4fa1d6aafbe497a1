"""Images that nothing can decode, or that cannot be resized, are bad images like others: in training and the audit."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from data.folders import write_image
from headcount.config import Cache, CustomConfig
from headcount.data.audit import Fault, audit_dataset
from headcount.data.open import open_images, open_split
from headcount.data.prepare import ResizeRule
from headcount.errors import DataError


def one_bit(path: Path) -> None:
    """A JPEG whose header is read, but names a quantization table that does not exist."""
    write_image(path.with_suffix(".jpg"))
    data = bytearray(path.with_suffix(".jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 12] ^= 2
    path.with_suffix(".jpg").write_bytes(data)


def one_bit_resized(path: Path) -> None:
    write_image(path.with_suffix(".jpg"), width=50, height=70)
    data = bytearray(path.with_suffix(".jpg").read_bytes())
    data[data.index(b"\xff\xc0") + 12] ^= 2
    path.with_suffix(".jpg").write_bytes(data)


def damaged_pixels(path: Path) -> None:
    write_image(path.with_suffix(".png"))
    data = bytearray(path.with_suffix(".png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.with_suffix(".png").write_bytes(data)


def cut_short(path: Path) -> None:
    write_image(path.with_suffix(".jpg"), width=200)
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])


def long_text(path: Path) -> None:
    """Two megabytes of text in a few kilobytes."""
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 2_000_000, zip=True)
    Image.new("RGB", (64, 64)).save(path.with_suffix(".png"), pnginfo=text)


def long_text_after_the_pixels(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path.with_suffix(".png"))
    data = path.with_suffix(".png").read_bytes()
    text = b"zTXt" + b"comment\0\0" + zlib.compress(bytes(2_000_000))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    path.with_suffix(".png").write_bytes(data[:-12] + chunk + data[-12:])


def strip(path: Path) -> None:
    """It would become 74656 x 448 pixels."""
    Image.new("RGB", (15_000, 90)).save(path.with_suffix(".png"))


def tall_strip(path: Path) -> None:
    Image.new("L", (3, 501)).save(path.with_suffix(".png"))


def floats(path: Path) -> None:
    Image.new("F", (64, 64)).save(path.with_suffix(".tif"))


def integers(path: Path) -> None:
    Image.new("I", (64, 64), 70).save(path.with_suffix(".tif"))


BAD = {
    one_bit: "cannot be read as an image",
    one_bit_resized: "cannot be read as an image",
    damaged_pixels: "cannot be read as an image",
    cut_short: "cannot be read as an image",
    long_text: "cannot be read as an image: it contains a text of more than a megabyte",
    long_text_after_the_pixels: "cannot be read as an image: it contains a text of more than a megabyte",
    strip: r"too narrow: its 15000 x 90 pixels would become 74656 x 448, .* more than 65500; crop it",
    tall_strip: r"too narrow: its 3 x 501 pixels would become 448 x 74816, .* more than 65500; crop it",
    floats: "pixels are floating-point numbers",
    integers: "pixels are 32-bit integers",
}


@pytest.fixture(params=BAD, ids=lambda make: make.__name__)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[CustomConfig, str]:
    """A folder of two good images and a bad one, and what is said of that."""
    folder = tmp_path / "set"
    for name in ("a", "c"):
        write_image(folder / f"{name}.jpg")
    request.param(folder / "bad")
    for name in ("a", "bad", "c"):
        (folder / f"{name}.csv").write_text("1,1\n2,2\n")
    side = 448 if request.param in (strip, tall_strip) else 64
    config = CustomConfig(root=str(folder), val_fraction=0, test_fraction=0, min_side=side)
    config.cache_dir = str(tmp_path / "cache")
    return config, BAD[request.param]


@pytest.mark.parametrize("cache", Cache)
def test_training_names_it_or_leaves_it_out(settings: tuple[CustomConfig, str], cache: Cache) -> None:
    config, message = settings
    config.cache = cache
    with pytest.raises(DataError, match=rf"1 of 3 images of train cannot be used.*\n.*bad\.\w+ .*{message}"):
        open_split(config, "train")
    with pytest.raises(DataError, match=rf"1 of 3 train images cannot be read.*\n.*bad\.\w+ .*{message}"):
        open_images(config, "train")
    config.skip_bad = True
    for _ in range(2):  # The second time, the others are in the cache.
        dataset = open_split(config, "train")
        assert (dataset.names, dataset.left_out) == (["a", "c"], ["bad"])
        assert [dataset[k].image.shape[1:] for k in range(2)] == 2 * [(config.min_side, config.min_side)]


def test_the_audit_reports_it(settings: tuple[CustomConfig, str]) -> None:
    config, _ = settings
    with pytest.raises(DataError) as stopped:
        open_split(config, "train")
    audit = audit_dataset(config)
    assert str(stopped.value) in audit.errors
    assert audit.splits[0].faults == {Fault.image: 1}
    config.skip_bad = True
    audit = audit_dataset(config)
    assert str(stopped.value) not in audit.errors
    assert any("1 of 3 images are left out" in warning for warning in audit.warnings)


def test_the_longest_side_that_a_jpeg_holds_is_resized(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a.png", width=6550, height=3)
    (tmp_path / "set" / "a.csv").write_text("1,1\n")
    config = CustomConfig(root=str(tmp_path / "set"), val_fraction=0, test_fraction=0, min_side=30, side_multiple=10)
    config.cache_dir = str(tmp_path / "cache")
    assert ResizeRule.from_config(config).size(6550, 3) == (65500, 30)
    assert open_split(config, "train")[0].image.shape == (3, 30, 65500)
    assert not audit_dataset(config).splits[0].faults


def test_a_cached_image_that_was_damaged_is_resized_again(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a.jpg", width=120, height=90)
    (tmp_path / "set" / "a.csv").write_text("5,5\n")
    config = CustomConfig(root=str(tmp_path / "set"), val_fraction=0, test_fraction=0, min_side=64, max_side=64)
    config.cache_dir = str(tmp_path / "cache")
    dataset = open_split(config, "train")
    whole = dataset[0].image
    (cached,) = (tmp_path / "cache").rglob("a.jpg")
    cached.write_bytes(cached.read_bytes()[:100])
    assert (dataset[0].image == whole).all()
