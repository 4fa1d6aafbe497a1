"""Images decoded once: the same pixels, read where they are used, made anew when their source changes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcount.config import ConfigError
from headcount.data import decoded
from headcount.data.decoded import decode_images, open_decoded
from headcount.data.images import read_image
from headcount.data.prepare import PreparedImage, ResizeRule, plan_image, prepare_images
from headcount.errors import DataError


def image_in(folder: Path, name: str, seed: int = 0, size: tuple[int, int] = (40, 30)) -> PreparedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, quality=95)
    return PreparedImage(folder / name, folder / name, size, size)


def test_the_same_pixels(tmp_path: Path) -> None:
    images = [image_in(tmp_path, "a.jpg"), image_in(tmp_path, "b.png", seed=1), image_in(tmp_path, "a-b.jpg", seed=2)]
    for image, file in zip(images, decode_images(images, tmp_path / "cache", label="x"), strict=True):
        assert torch.equal(open_decoded(file), read_image(image.path))


def test_what_is_there_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image_in(tmp_path, "a.jpg")]
    files = decode_images(images, tmp_path / "cache", label="x")
    monkeypatch.setattr(decoded, "read_image", lambda path: pytest.fail("reads the image"))
    assert decode_images(images, tmp_path / "cache", label="x") == files


def test_a_changed_source_is_decoded_anew_and_a_run_that_reads_the_old_one_continues(tmp_path: Path) -> None:
    before = decode_images([image_in(tmp_path, "a.jpg")], tmp_path / "cache", label="x")
    changed = image_in(tmp_path, "a.jpg", seed=3, size=(50, 20))
    after = decode_images([changed], tmp_path / "cache", label="x")
    assert after != before
    assert open_decoded(before[0]).shape == (3, 30, 40)
    assert torch.equal(open_decoded(after[0]), read_image(changed.path))


def test_a_second_run_on_the_same_folder_takes_nothing_from_the_first(tmp_path: Path) -> None:
    """Both find the cache empty and fill it; the slower one writes everything again, the resized copies too."""
    source, cache = image_in(tmp_path, "a.jpg").path, tmp_path / "cache"
    images = [plan_image(source, cache, rule=ResizeRule(64, None, 32))]
    prepare_images(images, label="x")
    of_first = decode_images(images, cache / "decoded", label="x")
    (cache / "a.jpg").unlink()
    prepare_images(images, label="x")
    decoded._decode(images[0], decode_images(images, cache / "decoded", label="x")[0])
    assert torch.equal(open_decoded(of_first[0]), read_image(images[0].path))


def test_what_another_run_has_written_meanwhile_is_left_alone(tmp_path: Path) -> None:
    image = image_in(tmp_path, "a.jpg")
    (file,) = decode_images([image], tmp_path / "cache", label="x")
    before = file.stat()
    decoded._decode(image, file)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_file_cut_short_is_made_again(tmp_path: Path, kept: int) -> None:
    image = image_in(tmp_path, "a.jpg")
    (file,) = decode_images([image], tmp_path / "cache", label="x")
    os.truncate(file, kept % file.stat().st_size)
    assert decode_images([image], tmp_path / "cache", label="x") == [file]
    assert torch.equal(open_decoded(file), read_image(image.path))


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"choose another with dataset\.cache_dir=") as told:
        decode_images([image_in(tmp_path, "a.jpg")], tmp_path / "file" / "cache", label="x")
    assert str(tmp_path / "file" / "cache") in str(told.value)


def test_copies_of_a_dataset_share_a_cache(tmp_path: Path) -> None:
    """Machines with the dataset on their own disks and the cache on a common one."""
    image = image_in(tmp_path, "a.jpg")
    files = decode_images([image], tmp_path / "cache", label="x")
    os.utime(image.path, (1, 1))
    assert decode_images([image], tmp_path / "cache", label="x") == files


def test_a_pixel_changed_within_a_file_of_the_same_length_is_seen(tmp_path: Path) -> None:
    image = image_in(tmp_path, "a.bmp", size=(200, 200))
    before = decode_images([image], tmp_path / "cache", label="x")
    content = bytearray(image.path.read_bytes())
    content[len(content) // 2] ^= 1
    image.path.write_bytes(content)
    assert decode_images([image], tmp_path / "cache", label="x") != before


def test_a_full_disk_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [image_in(tmp_path, "a.jpg")]
    usage = decoded.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ConfigError, match=r"1 images take 0\.0 GB.*dataset\.cache_dir"):
        decode_images(images, tmp_path / "cache", label="x")
    assert not list((tmp_path / "cache").iterdir())


def test_a_broken_image_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "a.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg"):
        decode_images([PreparedImage(broken, broken, (4, 4), (4, 4))], tmp_path / "cache", label="x")
    assert not list((tmp_path / "cache").iterdir())


def test_a_window_reads_no_more_than_itself(tmp_path: Path) -> None:
    """Writing to the tensor leaves the file alone, and a window is a view of the mapping."""
    (file,) = decode_images([image_in(tmp_path, "a.png")], tmp_path / "cache", label="x")
    image = open_decoded(file)
    window = image[:, 5:10, 5:10]
    assert window.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()
    image.zero_()
    assert int(open_decoded(file).max()) > 0
