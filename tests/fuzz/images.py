"""Image files of every format: the pixels that Pillow decodes, or refused by name."""

import io
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from data.oriented import TURNED
from fuzz.mutate import mutated, pick
from fuzz.verdict import opened, refused
from headcount.config import CustomConfig
from headcount.data.images import image_size, read_picture
from headcount.errors import DataError

MODES = {
    "JPEG": (".jpg", ("RGB", "L", "CMYK")),
    "PNG": (".png", ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")),
    "TIFF": (".tif", ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16")),
    "BMP": (".bmp", ("RGB", "L", "P", "1")),
    "WEBP": (".webp", ("RGB", "RGBA")),
}
MAX_DIFFERENCE = 2
"""Largest mean difference of a JPEG's or WebP's pixels from Pillow's: decoders may round differently."""


def check(rng: np.random.Generator, folder: Path) -> str:
    """Decode a file of a random format, sound or damaged."""
    name = pick(rng, list(MODES))
    ending, modes = MODES[name]
    sound = _image_bytes(rng, name, pick(rng, modes))
    other = _image_bytes(rng, name, pick(rng, modes))
    is_sound = rng.random() < 0.15
    path = folder / f"bad{ending if rng.random() < 0.9 else pick(rng, ['.png', '.jpg', '.tif'])}"
    path.write_bytes(sound if is_sound else _damaged(rng, name, sound, other))
    outcomes = {_check_decoding(path, upright=upright, is_sound=is_sound) for upright in (True, False)}
    assert len(outcomes) == 1, "it is read or refused by its orientation"
    (outcome,) = outcomes
    if rng.random() < 0.1:
        _check_dataset(folder, path, outcome)
    return f"{name} {outcome}"


def _check_decoding(path: Path, *, upright: bool, is_sound: bool) -> str:
    try:
        picture = read_picture(path, upright=upright)
    except DataError as error:
        assert not is_sound, f"a sound image is refused: {error}"
        try:
            image_size(path, upright=upright)
        except DataError as also:
            refused(also, path)
        return refused(error, path)
    found = picture.pixels.permute(1, 2, 0).numpy()
    assert found.dtype == np.uint8
    assert image_size(path, upright=upright) == (found.shape[1], found.shape[0])
    if upright:
        kind, expected = _pillow(path)
        assert found.shape == expected.shape, f"{found.shape} instead of {expected.shape}"
        difference = np.abs(found.astype(np.int16) - expected).mean()
        allowed = MAX_DIFFERENCE if kind in ("JPEG", "MPO", "WEBP") else 0
        # libtiff leaves what a damaged strip does not contain as it was in memory.
        is_random = kind == "TIFF" and not np.array_equal(expected, _pillow(path)[1])
        assert difference <= allowed or is_random, f"the pixels of a {kind} differ by {difference:g} on average"
    return "read"


def _pillow(path: Path) -> tuple[str, np.ndarray]:
    """Format and pixels as Pillow alone decodes them, from memory: a file of some modes it turns wrongly."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(path.read_bytes())) as image:
        kind = str(image.format)
        image.load()
        orientation = 1
        with suppress(Exception):  # damaged EXIF
            orientation = image.getexif().get(274, 1)
        turn = TURNED.get(orientation, np.asarray) if isinstance(orientation, int) else np.asarray
        if image.mode.startswith("I"):
            values = turn(np.asarray(image)).astype(np.int64)
            shift = 4 if "I;12" in str(image.info) else 8
            if kind == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
                values = 2 ** (shift + 8) - 1 - values
            gray = (values >> shift).clip(0, 255).astype(np.int16)
            return kind, np.repeat(gray[..., None], 3, axis=2)
        rgb = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
        return kind, turn(np.asarray(rgb)).astype(np.int16)


def _check_dataset(folder: Path, path: Path, outcome: str) -> None:
    """A dataset with the file is opened without it, or with it if it can be read; the audit says the same."""
    mine = folder / "mine"
    mine.mkdir()
    Image.new("RGB", (40, 30), (90, 120, 60)).save(mine / "good.png")
    (mine / path.name).write_bytes(path.read_bytes())
    for name in ("good", "bad"):
        (mine / f"{name}.csv").write_text("1,2\n3,4\n")
    config = CustomConfig(root=str(mine), val_fraction=0, test_fraction=0, min_side=64, skip_bad=True)
    config.cache_dir = str(folder / "cache")
    dataset = opened(config, outcome)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert (sample.image.shape[2], sample.image.shape[1]) == dataset.sizes[index]
        assert len(sample.points) == 2


# ---------------------------------------------------------------------------------------- sound images


def _image_bytes(rng: np.random.Generator, name: str, mode: str) -> bytes:
    """A small image with random options of its format."""
    width, height = (int(side) for side in rng.integers(1, 70, 2))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        cells = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = cells.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    options: dict[str, Any] = {}
    if rng.random() < 0.3 and name != "BMP":
        options["exif"] = _exif(int(rng.integers(0, 10)))
    match name:
        case "JPEG":
            options |= {"quality": int(rng.integers(1, 100)), "progressive": rng.random() < 0.3}
            options |= {"subsampling": int(rng.integers(3)), "restart_marker_blocks": int(rng.choice([0, 1, 5]))}
        case "PNG":
            info = PngImagePlugin.PngInfo()
            info.add_text("comment", "a" * int(rng.integers(100)), zip=rng.random() < 0.5)
            options |= {"pnginfo": info, "compress_level": int(rng.integers(10))}
            if mode in ("P", "L") and rng.random() < 0.3:
                options["transparency"] = int(rng.integers(256))
        case "TIFF":
            lossless = ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]
            options["compression"] = "group4" if mode == "1" and rng.random() < 0.5 else pick(rng, lossless)
            if "exif" in options:  # Pillow cannot write it with the others
                options["compression"] = "raw"
        case "WEBP":
            options |= {"lossless": rng.random() < 0.5, "quality": int(rng.integers(1, 100))}
            if rng.random() < 0.2:
                options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]}
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    exif[270] = "made at random"
    return exif.tobytes()


def _damaged(rng: np.random.Generator, name: str, data: bytes, other: bytes) -> bytes:
    data = mutated(rng, data, other=other)
    return _with_checksums(data) if name == "PNG" and rng.random() < 0.7 else data


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that a decoder looks at what they hold."""
    parts, position = [data[:8]], 8
    while position + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        chunk = data[position + 4 : position + 8 + size]
        if len(chunk) < 4 + size:
            break
        parts.append(struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        position += 12 + size
    return b"".join(parts) + data[position:]
