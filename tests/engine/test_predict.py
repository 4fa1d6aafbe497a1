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
    SlidingWindowConfig,
    Strategy,
    SyntheticConfig,
    TinyConfig,
    TrainConfig,
    WholeImageConfig,
)
from headcount.data.prepare import prepare_images
from headcount.data.readers import read_image
from headcount.engine.predict import PhotoCounter, load
from headcount.engine.tiling import BlockMaps, predict_blocks
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


def test_a_huge_picture_is_counted_in_windows(counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    whole = counter.predict(pixels)
    assert isinstance(whole.mode, WholeImageConfig)
    monkeypatch.setattr("headcount.engine.predict._MOST_PIXELS", 255 * 256)
    monkeypatch.setattr("headcount.engine.predict._WINDOW", 100)
    windows = counter.predict(pixels)
    assert windows.mode == SlidingWindowConfig(window=96, stride=80, window_batch=1)
    assert windows.count == pytest.approx(whole.count, rel=0.05)
    assert windows.count != whole.count
    counter.mode = WholeImageConfig()  # whoever chooses gets it
    assert counter.predict(pixels).count == whole.count


def test_where_memory_does_not_suffice_windows_are_taken(
    counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*args: object, **settings: object) -> BlockMaps:
        if isinstance(args[2], WholeImageConfig):
            raise MemoryError("no memory")
        return predict_blocks(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("headcount.engine.predict.predict_blocks", predict)
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    assert isinstance(counter.predict(pixels).mode, SlidingWindowConfig)
    counter.mode = WholeImageConfig()
    with pytest.raises(MemoryError):
        counter.predict(pixels)


def test_a_prediction_says_how_sure_it_is(counter: PhotoCounter, photo: Path) -> None:
    prediction = counter.predict(photo)
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (len(BINS), *prediction.block_counts.shape)
    torch.testing.assert_close(prediction.probabilities.sum(0), torch.ones_like(prediction.block_counts))
    assert float(prediction.block_counts.sum()) == pytest.approx(prediction.count, rel=1e-5)
    assert prediction.image.shape == (3, 96, prediction.image.shape[2])


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no GPU; take cpu or auto"):
        load(tmp_path / "x.pt", device="cuda")
