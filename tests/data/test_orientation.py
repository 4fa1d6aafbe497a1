"""One rule of EXIF orientation: custom datasets are read upright, published ones as distributed, everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.folders import make_shanghaitech
from data.oriented import ENDINGS, TURNED, oriented, stored_pixels
from headcount.config import Cache, CustomConfig, FolderDatasetConfig
from headcount.data.audit import audit_dataset
from headcount.data.open import open_images, open_split

ORIENTATIONS = range(1, 9)


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([255 * x // width, 255 * y // height, 128 * x // width], axis=2).astype(np.uint8))


def own(folder: Path, ending: str, size: tuple[int, int], **settings: object) -> CustomConfig:
    """A custom dataset of all orientations, one head in the lower right corner of the upright image."""
    folder.mkdir()
    for k in ORIENTATIONS:
        oriented(folder / f"i{k}.{ending}", picture(*size), k)
        width, height = size if k < 5 else size[::-1]
        (folder / f"i{k}.{ending}").with_suffix(".csv").write_text(f"{width - 0.5},{height - 0.5}\n")
    config = CustomConfig(root=str(folder), val_fraction=0, test_fraction=0, min_side=64)
    config.cache_dir = str(folder.parent / "cache")
    for key, value in settings.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_custom_dataset_is_read_upright_or_as_stored(ending: str, tmp_path: Path) -> None:
    config = own(tmp_path / "set", ending, (96, 64))
    stored = stored_pixels(tmp_path / f"stored.{ending}", picture(96, 64))
    for exif_orientation in (True, False, True):  # Nothing of one reading is left to the other.
        config.exif_orientation = exif_orientation
        turns = TURNED if exif_orientation else {}
        upright = [turns.get(k, np.asarray)(stored) for k in ORIENTATIONS]
        dataset = open_split(config, "train")
        for k, expected in enumerate(upright):
            assert np.array_equal(dataset[k].image.permute(1, 2, 0), expected), k + 1
            assert dataset.sizes[k] == (expected.shape[1], expected.shape[0])
        images = open_images(config, "train")
        assert all(torch.equal(images[k].image, dataset[k].image) for k in range(8))
        assert dataset.heads_outside == (0 if exif_orientation else 4)  # A stored image is 64 pixels high.
        for k, image in enumerate(audit_dataset(config).splits[0].images):
            assert np.array_equal(image.pixels().permute(1, 2, 0), upright[k])
            assert (image.width, image.height) == dataset.sizes[k]
            assert (image.orientation, image.outside) == (k + 1, int(k > 3 and not exif_orientation))


@pytest.mark.parametrize("cache", Cache)
@pytest.mark.parametrize("ending", ["jpg", "late.png", "tif"])
def test_images_are_turned_before_they_are_resized(ending: str, cache: Cache, tmp_path: Path) -> None:
    config = own(tmp_path / "set", ending, (60, 40), cache=cache)
    for exif_orientation in (True, False, True):
        config.exif_orientation = exif_orientation
        dataset = open_split(config, "train")
        for k in ORIENTATIONS:
            array = np.asarray(picture(96, 64))
            array = TURNED.get(k, np.asarray)(array) if exif_orientation else array
            sample = dataset[k - 1]
            assert sample.image.shape[1:] == array.shape[:2]
            difference = sample.image.permute(1, 2, 0).numpy().astype(int) - array
            assert abs(difference).mean() < 4, k
            if exif_orientation:
                head = torch.tensor([[array.shape[1] - 0.8, array.shape[0] - 0.8]])
                torch.testing.assert_close(sample.points, head, atol=0.05, rtol=0)


def test_a_published_dataset_is_read_as_distributed(tmp_path: Path) -> None:
    root = tmp_path / "part_A"
    make_shanghaitech(root, {"train": {"IMG_1": [(1.0, 1.0)], "IMG_2": [(95.0, 1.0)]}, "test": {"IMG_1": []}})
    for name, orientation in (("IMG_1", 1), ("IMG_2", 6)):
        oriented(root / "train_data" / "images" / f"{name}.jpg", picture(96, 64), orientation)
    config = FolderDatasetConfig(name="sha", root=str(root), min_side=64, cache_dir=str(tmp_path / "cache"))
    assert open_split(config, "train").sizes == [(96, 64), (96, 64)]
    (warning,) = (line for line in audit_dataset(config).warnings if "orientation" in line)
    assert warning == (
        "train: 1 image with an EXIF orientation, read as stored (dataset.exif_orientation=false): IMG_2"
    )


def test_the_audit_names_images_with_an_orientation(tmp_path: Path) -> None:
    audit = audit_dataset(own(tmp_path / "set", "jpg", (96, 64)))
    (warning,) = (line for line in audit.warnings if "orientation" in line)
    assert warning == (
        "train: 7 images with an EXIF orientation, turned upright (dataset.exif_orientation=true): "
        "i2, i3, i4, i5, i6, ..."
    )


def test_an_orientation_that_is_changed_later_is_prepared_again(tmp_path: Path) -> None:
    config = own(tmp_path / "set", "jpg", (60, 40))
    assert open_split(config, "train").sizes[5] == (64, 96)
    oriented(tmp_path / "set" / "i6.jpg", picture(60, 40), 7)
    changed = open_split(config, "train")[5].image.permute(1, 2, 0).numpy().astype(int)
    expected = TURNED[7](np.asarray(picture(96, 64))).astype(int)
    assert abs(changed - expected).mean() < 4
