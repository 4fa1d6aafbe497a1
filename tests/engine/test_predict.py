"""A photo is counted as the evaluation counts it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    FolderDatasetConfig,
    Strategy,
    SyntheticConfig,
    TinyConfig,
    TrainConfig,
    WholeImageConfig,
)
from headcount.data.prepare import prepare_images
from headcount.data.readers import read_image
from headcount.engine.predict import PhotoCounter
from headcount.engine.tiling import predict_blocks
from headcount.models.build import build_model

BINS = CountBins.from_histogram({0: 9, 1: 3, 4: 1}, block_size=8, strategy=Strategy.fine, m=4)
LIMITS = {"min_side": 96, "max_side": 256, "multiple": 32}


@pytest.fixture
def counter() -> PhotoCounter:
    torch.manual_seed(0)
    dataset = FolderDatasetConfig(name="sha", min_side=96, max_side=256)
    return PhotoCounter(
        build_model(TinyConfig(width=8), BINS).eval(), TrainConfig(dataset=dataset, eval=WholeImageConfig()), BINS
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_prediction_and_evaluation_agree_on_an_image_that_is_resized(
    counter: PhotoCounter, photo: Path, tmp_path: Path
) -> None:
    (prepared,) = prepare_images([photo], tmp_path / "cache", **LIMITS, label="test")
    assert prepared.size == (144 // 32 * 32 + 32 * (144 % 32 > 16), 96)
    evaluated = predict_blocks(counter.counter, read_image(prepared.path)).counts
    prediction = counter.predict(photo)
    assert prediction.block_counts.shape == evaluated.shape
    assert prediction.count == pytest.approx(float(evaluated.sum()), rel=2e-2)  # the cache is a JPEG


def test_counters_of_drawn_crowds_take_photos_as_they_are(counter: PhotoCounter, photo: Path) -> None:
    counter.config.dataset = SyntheticConfig()
    assert counter.predict(photo).block_counts.shape == (8, 12)


def test_files_arrays_and_tensors_are_counted_alike(counter: PhotoCounter, photo: Path) -> None:
    array = np.array(Image.open(photo))
    counts = [counter.count(p) for p in (photo, str(photo), array, torch.from_numpy(array).permute(2, 0, 1))]
    assert len(set(counts)) == 1


def test_exif_orientation_is_respected(counter: PhotoCounter, photo: Path, tmp_path: Path) -> None:
    image = Image.open(photo)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert counter.count(tmp_path / "turned.png") == counter.count(image.rotate(-90, expand=True))


def test_what_is_no_picture_is_refused(counter: PhotoCounter, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for file in (tmp_path / "notes.txt", tmp_path / "nothing.jpg"):
        with pytest.raises(ConfigError, match=file.name):
            counter.count(file)
    with pytest.raises(ValueError, match=r"\(height, width, 3\) bytes, not \(4, 4\) float64"):
        counter.count(np.zeros((4, 4)))
