"""A photo is counted as the evaluation counts it."""

import io
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import headcount
from data.oriented import ENDINGS, oriented
from engine.test_checkpoint import write_checkpoint
from headcount.bins import CountBins
from headcount.config import (
    AugmentConfig,
    ConfigError,
    CustomConfig,
    FolderDatasetConfig,
    SlidingWindowConfig,
    Strategy,
    SyntheticConfig,
    TinyConfig,
    TrainConfig,
    WholeImageConfig,
)
from headcount.data.images import read_image
from headcount.data.open import open_split
from headcount.data.prepare import ResizeRule, plan_image, prepare_images
from headcount.engine.load import load
from headcount.engine.predict import PhotoCounter
from headcount.errors import CheckpointError, DataError
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.types import BlockGrid, Counted

BINS = CountBins.from_histogram({0: 9, 1: 3, 4: 1}, grid=BlockGrid(8), strategy=Strategy.fine, m=4)
LIMITS = {"min_side": 96, "max_side": 256, "multiple": 32}


@pytest.fixture
def counter() -> PhotoCounter:
    torch.manual_seed(0)
    dataset = FolderDatasetConfig(name="sha", min_side=96, max_side=256)
    model = TinyConfig(width=8)
    config = TrainConfig(dataset=dataset, model=model, augment=AugmentConfig(), eval=WholeImageConfig())
    return PhotoCounter(build_model(model, BINS.grid, BINS).eval(), config, BINS)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((90, 60)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_prediction_and_evaluation_agree_on_an_image_that_is_resized(
    counter: PhotoCounter, photo: Path, tmp_path: Path
) -> None:
    prepared = plan_image(photo, tmp_path / "cache", rule=ResizeRule(**LIMITS))
    assert not prepare_images([prepared], label="test")
    assert prepared.size == (144 // 32 * 32 + 32 * (144 % 32 > 16), 96)
    evaluated = counter.network.count(read_image(prepared.path)).blocks
    assert evaluated is not None
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


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_evaluation_and_a_prediction_of_a_file_agree_in_every_orientation(
    ending: str, counter: PhotoCounter, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    (tmp_path / "set").mkdir()
    for orientation in range(1, 9):
        file = tmp_path / "set" / f"i{orientation}.{ending}"
        oriented(file, Image.fromarray(noise), orientation)
        file.with_suffix(".csv").write_text("1,1\n")
    dataset = CustomConfig(root=str(tmp_path / "set"), val_fraction=0, test_fraction=0, min_side=96)
    dataset.cache_dir = str(tmp_path / "cache")
    counter.config.dataset = dataset
    samples = open_split(dataset, "train")
    counts = []
    for k in range(8):
        evaluated = counter.network.count(samples[k].image).count
        file = tmp_path / "set" / f"i{k + 1}.{ending}"
        prediction = counter.predict(file)
        assert torch.equal(prediction.image, samples[k].image)
        assert prediction.photo_size == samples.sizes[k] == ((128, 96) if k < 4 else (96, 128))
        with Image.open(file) as image:
            assert prediction.count == counter.count(image) == evaluated
        counts.append(evaluated)
    assert len(set(counts)) == 8


def test_exif_orientation_is_respected(counter: PhotoCounter, photo: Path, tmp_path: Path) -> None:
    image = Image.open(photo)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert counter.count(tmp_path / "turned.png") == counter.count(image.rotate(-90, expand=True))


def test_what_is_no_picture_is_refused(counter: PhotoCounter, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for file in (tmp_path / "notes.txt", tmp_path / "nothing.jpg"):
        with pytest.raises(DataError, match=file.name):
            counter.count(file)
    with pytest.raises(ValueError, match=r"\(height, width, 3\) bytes, not \(4, 4\) float64"):
        counter.count(np.zeros((4, 4)))


def test_a_huge_picture_is_counted_in_windows(counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    whole = counter.predict(pixels)
    assert isinstance(whole.mode, WholeImageConfig)
    monkeypatch.setattr("headcount.engine.predict._MAX_WHOLE_PIXELS", 255 * 256)
    monkeypatch.setattr("headcount.engine.predict._WINDOW", 100)
    windows = counter.predict(pixels)
    assert windows.mode == SlidingWindowConfig(window=96, stride=80, window_batch=1)
    assert windows.count == pytest.approx(whole.count, rel=0.05)
    assert windows.count != whole.count
    assert windows.reason == "more than 0.06528 million pixels"
    assert whole.reason == ""
    counter.mode = WholeImageConfig()  # whoever chooses gets it
    assert counter.predict(pixels).count == whole.count


def test_where_memory_does_not_suffice_windows_are_taken(
    counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Counter.count

    def little_memory(self: Counter, image: torch.Tensor, mode: Any, **settings: bool) -> Counted:
        if isinstance(mode, WholeImageConfig):
            raise MemoryError("no memory")
        assert sys.exc_info() == (None, None, None), "what filled the memory is still held"
        return count(self, image, mode, **settings)

    monkeypatch.setattr(Counter, "count", little_memory)
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    prediction = counter.predict(pixels)
    assert isinstance(prediction.mode, SlidingWindowConfig)
    assert prediction.reason == "not enough memory to count it as a whole"
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
    assert prediction.photo_size == (90, 60)


def test_grey_arrays_and_tensors_are_counted_as_three_equal_channels(counter: PhotoCounter) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (96, 128), dtype=np.uint8)
    expected = counter.count(np.stack([gray] * 3, axis=2))
    assert counter.count(gray) == counter.count(torch.from_numpy(gray)) == expected
    assert counter.count(Image.fromarray(gray)) == expected
    assert counter.count(gray.T) != expected


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"\(height, width, 3\) bytes, not \(4, 5, 3\) float32.*multiply by 255"),
        (torch.zeros(3, 4, 5), r"\(3, height, width\) bytes, not \(3, 4, 5\) torch.float32.*multiply by 255"),
        (np.zeros((4, 5, 4), np.uint8), r"not \(4, 5, 4\) uint8; \(height, width\) bytes are gray$"),
        (np.zeros((3, 4, 5), np.uint8), r"not \(3, 4, 5\) uint8"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"not \(4, 5, 3\) torch.uint8"),
        (np.zeros((4, 5), np.uint16), r"not \(4, 5\) uint16"),
        (np.zeros(5, np.uint8), r"not \(5,\) uint8"),
        (np.zeros((0, 5), np.uint8), r"a picture must not be empty; its shape is \(0, 5\)"),
    ],
)
def test_other_arrays_are_refused_with_what_is_expected(
    counter: PhotoCounter, photo: np.ndarray | torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        counter.count(photo)


@pytest.mark.parametrize(
    ("photo", "message"),
    [
        ([[1]], r"a picture is a path, a file opened with 'rb', .*, not <class 'list'>; count the pictures of a list"),
        (["a.jpg", "b.jpg"], "not <class 'list'>; count the pictures of a list one by one"),
        (("a.jpg",), "not <class 'tuple'>; count the pictures one by one"),
        (None, "not <class 'NoneType'>$"),
        (7, "not <class 'int'>$"),
        (b"\xff\xd8", "not <class 'bytes'>; wrap the content of a file in io.BytesIO"),
        (np.uint8(3), "not <class 'numpy.uint8'>"),
        (io.BytesIO(b"x"), "cannot be read as an image: cannot identify"),
        (io.BytesIO(), "cannot be read as an image"),
        (io.StringIO("x"), "was opened as text; open it with mode 'rb'"),
        (np.zeros((1, 4, 5, 3), np.uint8), "count the pictures of a batch one by one"),
        (np.zeros((3, 4, 5), np.uint8), r"to move the channels, call transpose\(1, 2, 0\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"to move the channels, call permute\(2, 0, 1\)"),
        (torch.zeros(3, 4, 5, dtype=torch.uint8).to_sparse(), "must be dense, not torch.sparse_coo"),
        (np.zeros((4, 5), bool), r"not \(4, 5\) bool"),
        ("https://example.org/a.jpg", r"^https://example.org/a.jpg: no such file; this is a URL: download"),
        (Path("https://example.org/a.jpg"), "this is a URL: download"),
        (Image.new("F", (4, 4)), "cannot be read as an image: its pixels are floating-point numbers"),
    ],
)
def test_what_is_no_picture_of_any_kind_is_refused_with_what_is_taken(
    counter: PhotoCounter, photo: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        counter.count(photo)


def test_files_of_any_kind_are_counted_alike(counter: PhotoCounter, photo: Path, tmp_path: Path) -> None:
    class OwnPath:
        def __fspath__(self) -> str:
            return str(photo)

    expected = counter.count(photo)
    with photo.open("rb") as file, Image.open(photo) as image:
        assert counter.count(file) == expected
        assert counter.count(file) == expected  # it is read from its start again
        for other in (OwnPath(), io.BytesIO(photo.read_bytes()), image):
            assert counter.count(other) == expected
        assert not file.closed
    with pytest.raises(DataError, match="closed file"):
        counter.count(file)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).save(tmp_path / "turned.png", exif=exif)
    turned = io.BytesIO((tmp_path / "turned.png").read_bytes())
    assert counter.count(turned) == counter.count(tmp_path / "turned.png")


@pytest.mark.parametrize("path", [3, {}, io.BytesIO(b"x"), b"x.pt"])
def test_a_checkpoint_is_loaded_from_a_path_alone(path: Any) -> None:
    with pytest.raises(ConfigError, match=f"load takes the path of a checkpoint, not {type(path)}"):
        load(path)


def test_a_checkpoint_and_a_device_of_any_kind(tmp_path: Path) -> None:
    class OwnPath:
        def __fspath__(self) -> str:
            return str(write_checkpoint(tmp_path))

    assert load(OwnPath(), device=torch.device("cpu")).network.mean.device == torch.device("cpu")
    for device in (torch.device("meta"), None, 7.5):
        with pytest.raises(ConfigError, match=f"device={device}: must be cpu, cuda, cuda:N or auto"):
            load(tmp_path / "x.pt", device=device)
    with pytest.raises(CheckpointError, match="no such file; this is a URL: download the file"):
        load("https://example.org/x.pt")


def test_what_a_notebook_shows_is_short(counter: PhotoCounter, photo: Path) -> None:
    assert repr(counter) == "PhotoCounter(tiny, 5 bins, blocks of 8 px, trained on sha, on cpu)"
    prediction = counter.predict(photo)
    shape = " x ".join(map(str, prediction.block_counts.shape))
    interval = f"[{math.floor(prediction.interval.low)}, {math.ceil(prediction.interval.high)}] 90 %, uncalibrated"
    expected = f"PhotoCount(count={prediction.count:.2f} in {interval}, picture of 90 x 60 px, {shape} blocks of 8 px)"
    assert repr(prediction) == f"{prediction}" == expected
    assert {"load", "PhotoCounter", "PhotoCount", "convert_released"} <= set(dir(headcount))
    assert all(getattr(headcount, name) is not None for name in dir(headcount))


def test_views_that_torch_does_not_take_are_copied(counter: PhotoCounter) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    fixed = np.asarray(Image.fromarray(pixels))
    assert not fixed.flags.writeable
    with warnings.catch_warnings(action="error"):
        assert counter.count(fixed) == counter.count(pixels)
        assert counter.count(pixels[:, ::-1]) == counter.count(pixels[:, ::-1].copy())


def test_a_pillow_image_is_counted_as_its_file(counter: PhotoCounter, photo: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, deep = tmp_path / "turned.png", tmp_path / "deep.png"
    Image.open(photo).save(turned, exif=exif)
    Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)).save(deep)
    for file in (turned, deep):
        with Image.open(file) as image:
            assert counter.count(image) == counter.count(file)
    assert counter.predict(turned).photo_size == (60, 90)


def test_pixels_of_unknown_depth_are_refused_and_dark_ones_noted(
    counter: PhotoCounter, photo: Path, tmp_path: Path
) -> None:
    gray = np.asarray(Image.open(photo).convert("L"))
    for dtype in (np.int32, np.float32):
        image = Image.fromarray(gray.astype(dtype))
        image.save(tmp_path / "deep.tif")
        for given in (image, tmp_path / "deep.tif"):
            with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
                counter.count(given)
    for bits, note in (
        (16, ""),
        (12, "nearly black: 16 bits without a value above 4095; multiply 12-bit values by 16"),
    ):
        image = Image.fromarray(gray.astype(np.uint16) << (bits - 8))
        image.save(tmp_path / "deep.png")
        assert counter.predict(image).note == counter.predict(tmp_path / "deep.png").note == note
    assert counter.predict(photo).note == ""


def test_a_strip_that_would_be_enlarged_beyond_measure_is_refused(counter: PhotoCounter) -> None:
    with pytest.raises(DataError, match="its 20000 x 1 pixels would become 1920000 x 96"):
        counter.count(np.zeros((1, 20_000, 3), dtype=np.uint8))


def test_a_count_that_is_no_number_is_an_error(counter: PhotoCounter, photo: Path) -> None:
    with torch.no_grad():
        next(counter.network.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the predicted count is nan"):
        counter.count(photo)


def test_auto_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = load(write_checkpoint(tmp_path), device="auto")
    assert loaded.network.mean.device.type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", ""])
def test_a_device_that_does_not_exist_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="must be cpu, cuda, cuda:N or auto"):
        load(tmp_path / "x.pt", device=device)


def test_a_gpu_beyond_the_last_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="finds 2 GPUs, counted from 0"):
        load(tmp_path / "x.pt", device="cuda:2")


@pytest.mark.gpu
def test_a_gpu_counts_as_the_cpu_does(tmp_path: Path, photo: Path) -> None:
    path = write_checkpoint(tmp_path)
    cpu, gpu = load(path).predict(photo), load(path, device="cuda").predict(photo)
    assert gpu.block_counts.device.type == "cpu"
    torch.testing.assert_close(gpu.block_counts, cpu.block_counts, rtol=1e-4, atol=1e-5)
    assert gpu.count == pytest.approx(cpu.count, rel=1e-4)


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no GPU; use cpu or auto"):
        load(tmp_path / "x.pt", device="cuda")


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (15000, 90, "too narrow: its 15000 x 90 pixels would become 74656 x 448"),
        (5000, 40, "too narrow: its 5000 x 40 pixels would become 56000 x 448"),
    ],
)
def test_a_strip_that_would_become_huge_is_not_counted(tmp_path: Path, width: int, height: int, message: str) -> None:
    counter = load(write_checkpoint(tmp_path, "dataset=sha"))
    with pytest.raises(DataError, match=message):
        counter.count(torch.zeros(3, height, width, dtype=torch.uint8))


def test_a_panorama_that_is_enlarged_a_little_is_counted(tmp_path: Path) -> None:
    counter = load(write_checkpoint(tmp_path, "dataset=sha"))
    image = counter.prepare(torch.zeros(3, 400, 18000, dtype=torch.uint8))  # of more than 8 million pixels then
    assert image.shape == (3, 448, 20160)
