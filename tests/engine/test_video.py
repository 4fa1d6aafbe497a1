"""A frame of a video has the count of the same frame saved as a picture, in any batch, and so do its regions."""

import threading
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from engine.test_checkpoint import write_checkpoint
from engine.videos import gray, level, make_video, turn
from headcount.config import ConfigError
from headcount.data.regions import as_regions
from headcount.engine import video as engine
from headcount.engine.frames import Frame, Selection, open_source
from headcount.engine.load import load
from headcount.engine.predict import PhotoCounter
from headcount.engine.video import FrameCount, count_frames, write_video
from headcount.errors import OutputError

REGIONS = {"left": "0%,0%,50%,100%", "right": "50%,0%,100%,100%", "corner": "0,0,20,0,0,20"}


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> PhotoCounter:
    return load(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "model.width=8"))


def noise(k: int, height: int = 72, width: int = 100) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (height, width, 3), dtype=np.uint8)


def counted(counter: PhotoCounter, file: Path, *, batch: int = 1, every: int = 1) -> list[FrameCount]:
    with closing(open_source(str(file))) as source:
        frames = source.frames(Selection(every_frames=every), threading.Event())
        return list(count_frames(counter, frames, regions=as_regions(REGIONS), batch=batch))


@pytest.mark.parametrize(
    ("codec", "name", "batch"), [("libx264", "a.mp4", 5), ("mpeg4", "a.avi", 1), ("libvpx-vp9", "a.webm", 2)]
)
def test_frames_are_counted_as_their_pictures(
    codec: str, name: str, batch: int, counter: PhotoCounter, tmp_path: Path
) -> None:
    file = make_video(tmp_path / name, codec=codec, picture=noise)
    found = counted(counter, file, batch=batch, every=2)
    with av.open(str(file)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)][::2]
    assert len(found) == len(pictures) == 6
    counts = []
    for frame, picture in zip(found, pictures, strict=True):
        picture.save(tmp_path / "frame.png")
        expected = counter.predict(tmp_path / "frame.png")
        assert frame.prediction is not None
        assert frame.prediction.count == pytest.approx(expected.count, abs=1e-4)
        assert frame.regions == pytest.approx(expected.count_regions(REGIONS), abs=1e-4)
        assert frame.regions["left"] + frame.regions["right"] == pytest.approx(expected.count, abs=1e-4)
        counts.append(expected.count)
    assert len(set(counts)) == 6  # the frames differ


def test_a_turned_frame_is_counted_as_its_turned_picture(counter: PhotoCounter, tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", picture=noise, times=(0, 0.1))
    turn(file, 0, 1, -1, 0)
    with av.open(str(file)) as container:
        picture = next(container.decode(video=0)).to_image()
    (first, _) = counted(counter, file)
    assert first.prediction is not None
    assert first.prediction.photo_size == (72, 100)
    assert first.prediction.count == pytest.approx(counter.count(picture.rotate(-90, expand=True)), abs=1e-4)


def test_a_batch_of_pictures_of_different_sizes_and_too_many_pixels(
    counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [noise(0), noise(1), noise(2, 50, 70), noise(3), noise(4), noise(5)]
    expected = [counter.count(picture) for picture in pictures]
    sizes = []
    batch = type(counter.network).count_batch

    def recorded(self: object, images: list[torch.Tensor], *args: object, **settings: bool) -> object:
        sizes.append(len(images))
        return batch(self, images, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(type(counter.network), "count_batch", recorded)
    assert [p.count for p in counter.predict_batch(pictures)] == pytest.approx(expected, abs=1e-4)
    assert sizes == [2, 3]
    monkeypatch.setattr("headcount.engine.predict._MAX_WHOLE_PIXELS", 2 * 100 * 72)
    assert [p.count for p in counter.predict_batch(pictures)] == pytest.approx(expected, abs=1e-4)
    assert sizes[2:] == [2, 2]
    assert counter.predict_batch([]) == []


def test_a_batch_that_does_not_fit_into_memory_is_counted_one_by_one(
    counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(counter.network), "count_batch", full)
    assert [p.count for p in counter.predict_batch([noise(0), noise(1)])] == [counter.count(noise(k)) for k in (0, 1)]


def test_a_frame_that_cannot_be_counted_does_not_stop_the_others(
    counter: PhotoCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = PhotoCounter.predict

    def fails(self: PhotoCounter, photo: np.ndarray) -> object:
        if photo[0, 0, 0] == noise(1)[0, 0, 0]:
            raise MemoryError("a frame of 100 x 72 pixels does not fit into memory")
        return predict(self, photo)

    def batch(self: PhotoCounter, photos: list[np.ndarray]) -> list[object]:
        return [fails(self, photo) for photo in photos]

    monkeypatch.setattr(PhotoCounter, "predict", fails)
    monkeypatch.setattr(PhotoCounter, "predict_batch", batch)
    frames = [Frame(k, k / 10, noise(k)) for k in range(3)]
    frames.insert(1, Frame(None, 0.05, None, "broken"))
    found = list(count_frames(counter, frames, batch=8))
    assert [frame.prediction is None for frame in found] == [False, True, True, False]
    assert found[1].error == "broken"
    assert "the frame at 0.100 s cannot be counted: a frame of 100 x 72 pixels does not fit" in found[2].error


def test_regions_that_do_not_fit(counter: PhotoCounter) -> None:
    """The first frame refuses them; later ones of another size are named, and the others are counted."""
    regions = as_regions({"a": "0,0,100,72"})
    with pytest.raises(ConfigError, match="region a: reaches 30 pixels beyond the right border"):
        list(count_frames(counter, [Frame(0, 0, noise(0, 50, 70))], regions=regions))
    frames = [Frame(0, 0, noise(0)), Frame(1, 1, noise(1, 50, 70)), Frame(2, 2, noise(2))]
    found = list(count_frames(counter, frames, regions=regions, batch=2))
    assert [bool(frame.prediction) for frame in found] == [True, False, True]
    assert "the frame at 1.000 s cannot be counted: region a: reaches 30 pixels" in found[1].error
    assert found[2].regions["a"] == pytest.approx(counter.count(noise(2)), abs=1e-4)


def test_only_a_batch_of_frames_is_held(counter: PhotoCounter) -> None:
    taken = []

    def frames() -> object:
        for k in range(9):
            taken.append(k)
            yield Frame(k, k, noise(k))

    results = count_frames(counter, frames(), batch=3)  # type: ignore[arg-type]
    next(results)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_written_video_shows_each_frame_at_its_time(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "encoder", lambda: codec)
    times = [3.0, 3.04, 4.0, 4.0, 7.5]  # one that does not advance follows at once
    with write_video(tmp_path / "a.mp4") as writer:
        for k, seconds in enumerate(times):
            writer.write(gray(k), seconds)
        assert [path.name for path in tmp_path.glob("*.mp4")] == []
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == {"libx264": "h264"}.get(codec, codec)
        frames = [(float(f.time), level(f.to_ndarray(format="rgb24"))) for f in container.decode(video=0)]
    assert [k for _, k in frames] == [0, 1, 2, 3, 4]
    assert [t for t, _ in frames] == pytest.approx([0, 0.04, 1.0, 1.0, 4.5], abs=2e-4)
    assert frames[3][0] > frames[2][0]


def test_without_an_encoder_of_h264_mpeg4_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "libx264"})
    assert engine.encoder() == "libx264"
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert engine.encoder() == "mpeg4"


def test_an_error_leaves_no_video_and_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("old")

    def fail() -> None:
        with write_video(tmp_path / "a.mp4") as writer:
            writer.write(gray(0), 0)
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"
    with pytest.raises(OutputError, match=r"a\.mp4 cannot be written"), write_video(tmp_path / "gone" / "a.mp4"):
        pass


def test_a_frame_that_cannot_be_encoded_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    def odd() -> None:
        with write_video(tmp_path / "a.mp4") as writer:
            writer.write(gray(0, width=65, height=33), 0)

    with pytest.raises(OutputError, match=r"a\.mp4 cannot be encoded by libx264: "):
        odd()
    assert not list(tmp_path.iterdir())


def test_a_long_video_is_written_in_little_memory(tmp_path: Path) -> None:
    """The encoder's frames are not collected: the file grows before its end."""
    with write_video(tmp_path / "a.mp4") as writer:
        for k in range(150):
            writer.write(noise(k % 7, 128, 128), k / 25)
        (part,) = tmp_path.glob(".a.mp4*.part")
        assert part.stat().st_size > 500_000
