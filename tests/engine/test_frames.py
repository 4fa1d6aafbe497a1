"""Frames of any source have their own times and are upright; what cannot be decoded is named."""

import functools
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine.videos import gray, level, make_video, turn
from headcount.config import ConfigError
from headcount.engine import frames as engine
from headcount.engine.frames import Frame, Selection, open_source, without_password
from headcount.errors import DataError


def read(source: Path | str, **chosen: float) -> list[Frame]:
    with closing(open_source(str(source))) as opened:
        return list(opened.frames(Selection(**chosen), threading.Event()))  # type: ignore[arg-type]


def seen(frames: list[Frame]) -> list[tuple[int | None, float, int]]:
    """Number, time and brightness of each frame."""
    return [(f.number, round(f.seconds, 3), level(f.pixels)) for f in frames if f.pixels is not None]


TWELVE = [(k, k / 10, k) for k in range(12)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.mp4", "mpeg4"), ("a.webm", "libvpx-vp9")],
)
def test_files_of_any_codec(name: str, codec: str, tmp_path: Path) -> None:
    times = tuple(k / 10 for k in range(12))
    frames = read(make_video(tmp_path / name, codec=codec, times=times))
    assert seen(frames) == TWELVE
    assert all(frame.pixels.shape == (64, 96, 3) and not frame.error for frame in frames)


def test_a_name_with_a_colon_a_percent_sign_and_letters_of_any_kind(tmp_path: Path) -> None:
    assert len(read(make_video(tmp_path / "concat:é 100% %04d.mp4"))) == 12


def test_times_are_those_of_the_time_stamps(tmp_path: Path) -> None:
    times = (0.0, 0.04, 0.5, 0.52, 2.0, 2.001)
    assert seen(read(make_video(tmp_path / "a.mp4", times=times))) == [(k, t, k) for k, t in enumerate(times)]


def test_a_transport_stream_that_does_not_begin_at_zero_begins_at_zero(tmp_path: Path) -> None:
    make_video(tmp_path / "a.ts")
    with av.open(str(tmp_path / "a.ts")) as container:
        assert container.streams.video[0].start_time > 0
    assert seen(read(tmp_path / "a.ts")) == TWELVE


@pytest.mark.parametrize(
    "matrix",
    [
        (1, 0, 0, 1),
        (0, 1, -1, 0),
        (-1, 0, 0, -1),
        (0, -1, 1, 0),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, -1, 0),
    ],
)
def test_frames_are_turned_and_mirrored_as_the_file_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    def quarters(_: int) -> np.ndarray:
        pixels = np.full((64, 96, 3), 40, dtype=np.uint8)
        pixels[:32, 48:], pixels[32:, :48], pixels[32:, 48:] = 100, 160, 220
        return pixels

    file = make_video(tmp_path / "a.mp4", times=(0, 0.1), picture=quarters)
    turn(file, *matrix)
    a, b, c, d = matrix
    middles = {(24, 16): 40, (72, 16): 100, (24, 48): 160, (72, 48): 220}  # (x, y)
    frame = read(file)[0].pixels
    assert frame is not None
    assert frame.shape == ((64, 96, 3) if a else (96, 64, 3))
    height, width = frame.shape[:2]
    for (x, y), brightness in middles.items():
        there = (b * x + d * y) % height, (a * x + c * y) % width  # negative coordinates are moved into the picture
        assert frame[there].mean() == pytest.approx(brightness, abs=6), matrix


def test_a_phone_held_upright(tmp_path: Path) -> None:
    """The matrix (0, 1, -1, 0) is a quarter turn clockwise, as FFmpeg's rotation of -90 degrees."""
    file = make_video(tmp_path / "a.mp4", times=(0, 0.1))
    turn(file, 0, 1, -1, 0)
    frame = read(file)[0].pixels
    assert frame is not None
    np.testing.assert_allclose(frame.astype(int), np.rot90(gray(0), -1), atol=6)
    with av.open(str(file)) as container:
        assert next(container.decode(video=0)).rotation == -90


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, range(12)),
        ({"every_frames": 5}, [0, 5, 10]),
        ({"every_seconds": 0.3}, [0, 3, 6, 9]),
        ({"every_seconds": 0.25}, [0, 3, 5, 8, 10]),
        ({"start": 0.5}, range(5, 12)),
        ({"start": 0.45, "end": 0.8}, [5, 6, 7]),
        ({"start": 0.5, "every_frames": 3}, [5, 8, 11]),
        ({"start": 0.5, "every_seconds": 0.2, "end": 1.0}, [5, 7, 9]),
        ({"start": 5.0}, []),
    ],
)
@pytest.mark.parametrize("kind", ["a.mp4", "images"])
def test_which_frames_are_used(
    kind: str, chosen: dict[str, float], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DEFAULT_RATE", 10.0)
    if kind == "images":
        (tmp_path / kind).mkdir()
        for k in range(12):
            Image.fromarray(gray(k)).save(tmp_path / kind / f"{k}.png")
    else:
        make_video(tmp_path / kind, options={"g": "4"})  # a complete frame every 0.4 s, so that it seeks
    with closing(open_source(str(tmp_path / kind), rate=10)) as source:
        frames = list(source.frames(Selection(**chosen), threading.Event()))  # type: ignore[arg-type]
        about = Selection(**chosen).expected(source.duration, source.rate)  # type: ignore[arg-type]
    assert [k for _, _, k in seen(frames)] == list(expected)
    assert [f.seconds for f in frames] == pytest.approx([k / 10 for k in expected])
    assert about == len(expected)


def test_images_are_ordered_by_their_numbers_and_a_broken_one_is_named(tmp_path: Path) -> None:
    for k in (10, 2, 1, 30):
        Image.fromarray(gray(k // 10 + k % 10)).save(tmp_path / f"f{k}.png")
    (tmp_path / "f5.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".f3.png").touch()
    for typed in (tmp_path, tmp_path / "f%d.png", tmp_path / "f*.png"):
        frames = read(typed)
        assert [(f.number, f.seconds) for f in frames] == [(k, k / 25) for k in range(5)]
        assert [k for _, _, k in seen(frames)] == [1, 2, 1, 3]
        assert "f5.png cannot be read as an image" in frames[2].error
        assert frames[2].pixels is None
    assert len(read(tmp_path / "f%02d.png")) == 2


def test_a_file_whose_end_is_missing(tmp_path: Path) -> None:
    # Every frame complete in itself, so that the others can be decoded without it.
    options = {"g": "1"}
    whole = make_video(tmp_path / "a.mp4", options=options, container_options={"movflags": "faststart"})
    with av.open(str(whole)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    whole.write_bytes(whole.read_bytes()[: packets[7][0] + packets[7][1] // 2])
    frames = read(whole)
    assert seen(frames)[:7] == TWELVE[:7]
    assert len(seen(frames)) <= 8  # of the eighth, half is there
    assert "a.mp4 ends at" in frames[-1].error
    assert "but says that it has 1.200 s: it is truncated" in frames[-1].error
    # Without the table of its frames, which other files have at their end, there is nothing to read.
    other = make_video(tmp_path / "b.mp4")
    other.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"b\.mp4: is not a video that FFmpeg can read, or it is damaged or truncated"):
        read(other)


@pytest.mark.parametrize(
    ("name", "codec", "damage"),
    [
        *(("a.avi", "mpeg4", "all"), ("a.mp4", "libx264", "all"), ("a.webm", "libvpx-vp9", "all")),
        *(("a.avi", "mpeg4", "half"), ("a.mp4", "libx264", "half")),
    ],
)
def test_a_broken_frame_is_named_and_the_others_are_read(name: str, codec: str, damage: str, tmp_path: Path) -> None:
    def grainy(k: int) -> np.ndarray:
        pixels = gray(k)
        pixels[:, :80] = np.random.default_rng(k).integers(0, 256, (64, 80, 3))  # no two packets are equal
        return pixels

    options = {"g": "1"}  # every frame complete in itself
    file = make_video(tmp_path / name, codec=codec, options=options, picture=grainy)
    with av.open(str(file)) as container:
        old = bytes([packet for packet in container.demux(video=0) if packet.size][5])
    content = file.read_bytes()
    assert content.count(old) == 1
    kept = 5 if damage == "all" else len(old) // 2
    file.write_bytes(content.replace(old, old[:kept] + bytes(byte ^ 0x55 for byte in old[kept:])))
    frames = read(file)
    assert [k for _, _, k in seen(frames)] == [*range(5), *range(6, 12)]
    assert [seconds for _, seconds, _ in seen(frames)] == [k / 10 for k in (*range(5), *range(6, 12))]
    (broken,) = [frame for frame in frames if frame.pixels is None]
    assert broken.error.startswith("the frame at 0.500 s ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"", "a.mp4: empty, 0 bytes"),
        ("a.mp4", b"no video, but some text\n" * 50, "a.mp4: is not a video that FFmpeg can read"),
        ("a.txt", b"no video, but some text\n" * 50, "a.txt: "),
        ("a.mp4", bytes(range(256)) * 40, "a.mp4: is not a video that FFmpeg can read"),
    ],
)
def test_what_is_no_video_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_a_picture_a_sound_and_what_is_missing_are_refused(tmp_path: Path) -> None:
    Image.fromarray(gray(0)).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("a.png", "a.png: is a picture; count it with scripts/predict.py"),
        ("a.wav", "a.wav: holds no video, only audio"),
        ("empty", "empty: no image below it ends in .jpg"),
        ("gone.mp4", "gone.mp4: no such file, folder or images"),
        ("gone_%04d.png", "no such file, folder or images"),
    ):
        with pytest.raises(DataError, match=message):
            read(tmp_path / name)
    with pytest.raises(ConfigError, match=r"^ftp://host/a.mp4: must begin with rtsp, rtsps, http"):
        read("ftp://host/a.mp4")


def test_without_pyav_images_are_read_and_videos_name_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "a.mp4")
    Image.fromarray(gray(3)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(read(tmp_path / "a*.png")) == 1
    for source in (str(tmp_path / "a.mp4"), "camera:0", "rtsp://host/1"):
        with pytest.raises(ConfigError, match=r"needs PyAV, which is not installed: pip install 'headcount\[video\]'"):
            read(source)


def test_a_camera_that_this_pyav_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_CAMERAS", {sys.platform: ("no such format", "{}")})
    for camera in ("camera:0", "/dev/video0"):
        with pytest.raises(
            ConfigError, match=f"^{camera}: the wheels of PyAV have no cameras on this system: build it"
        ):
            read(camera)


def test_a_camera_gives_its_newest_frames_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's test picture, as fast as it can be drawn, stands for a camera."""
    monkeypatch.setattr(engine, "_CAMERAS", {sys.platform: ("lavfi", "testsrc=size=64x48:rate=200")})
    stop = threading.Event()
    with closing(open_source("camera:0")) as source:
        assert source.live
        taken: list[Frame] = []
        for frame in source.frames(Selection(), stop):
            taken.append(frame)
            time.sleep(0.05)  # counting is slower than the camera
            if len(taken) == 5:
                stop.set()
        assert source.left_out > 0  # type: ignore[union-attr]
    assert len(taken) == 5
    numbers = [frame.number for frame in taken]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    assert numbers[-1] > 5  # type: ignore[operator]
    assert [f.seconds for f in taken] == pytest.approx([n / 200 for n in numbers])  # type: ignore[operator]


def test_a_camera_ends_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_CAMERAS", {sys.platform: ("lavfi", "testsrc=size=64x48:rate=10")})
    frames = read("camera:0", end=0.5)
    assert frames[-1].seconds < 0.5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_file_on_a_server_is_read_like_a_file(server: str, tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4")
    with closing(open_source(f"{server}/a.mp4")) as source:
        assert not source.live
        assert seen(list(source.frames(Selection(), threading.Event()))) == TWELVE
    with pytest.raises(DataError, match=r"gone.mp4: cannot be opened: .*check the address"):
        read(f"{server}/gone.mp4")


def test_passwords_are_not_printed() -> None:
    address = "rtsp://me:secret@127.0.0.1:1/stream"
    assert without_password(address) == "rtsp://***@127.0.0.1:1/stream"
    with pytest.raises(DataError, match="rtsp://") as error:
        read(address)
    assert "secret" not in str(error.value)
