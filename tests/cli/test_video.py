"""Videos from the command line: the files of a run, interruptions, damaged sources and what is refused."""

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import headcount
import headcount.engine.predict as engine
from engine.test_checkpoint import write_checkpoint
from engine.test_stored import stored_pair
from engine.videos import make_video
from headcount import published
from headcount.cli import video as command
from headcount.engine import frames as reading

Count = Callable[..., tuple[int, str, str]]
INTERVAL = ["low", "high", "level", "calibrated"]
LEFT = ["--region", "left=0%,0%,50%,100%"]


def noise(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (72, 100, 3), dtype=np.uint8)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "counts.csv").read_text(encoding="utf-8").splitlines()))


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "video.json").read_text())


def shown(folder: Path) -> list[float]:
    """Times of the frames of the annotated video."""
    with av.open(str(folder / "annotated.mp4")) as container:
        return [round(float(frame.time), 3) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "model.width=8"))


@pytest.fixture
def count(best: str, counting: Callable[..., Count]) -> Count:
    return counting(command.main, "video.py", best)


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    return make_video(tmp_path / "crowd.mp4", picture=noise)


def test_without_a_checkpoint_the_default_counter_counts(
    crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "published_folder", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["video.py", "crowd.mp4", "--device", "cpu", "--every", "9", "--no-video"])
    for status in (2, 0):
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == status
        told = capfd.readouterr().err
        assert ("no counter is named" in told) == (status == 2)
        if status == 2:
            stored_pair(tmp_path, "model.width=8", name=published.DEFAULT, license="research")
    assert f"counting with {published.DEFAULT}: no errors were measured; license: research\n" in told
    assert len(rows(tmp_path / "video_counts")) == 2


def test_a_video_with_regions(count: Count, crowd: Path, best: str, tmp_path: Path) -> None:
    typed = [*LEFT, "--region", "right=50%,0%,100%,100%", "--every", "0.3s", "--start", "0.2"]
    status, out, err = count("crowd.mp4", *typed, "--output", "out")
    assert status == 0, err
    found = rows(tmp_path / "out")
    assert list(found[0]) == ["frame", "seconds", "count", "region left", "region right", *INTERVAL, "note", "error"]
    assert [(row["frame"], row["seconds"]) for row in found] == [
        *(("0", "0.200"), ("3", "0.500"), ("6", "0.800"), ("9", "1.100"))
    ]
    with av.open(str(crowd)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    counter = headcount.load(best)
    for row, k in zip(found, (2, 5, 8, 11), strict=True):
        assert float(row["count"]) == pytest.approx(counter.count(pictures[k]), abs=1e-4)
        assert float(row["region left"]) + float(row["region right"]) == pytest.approx(float(row["count"]), abs=2e-4)
    assert shown(tmp_path / "out") == pytest.approx([0, 0.3, 0.6, 0.9])
    said = record(tmp_path / "out")
    assert (said["source"], said["frames"], said["failed"], said["complete"]) == ("crowd.mp4", 4, 0, True)
    mean = sum(float(row["count"]) for row in found) / 4
    assert said["people"]["mean"] == pytest.approx(mean, abs=1e-3)  # type: ignore[index]
    lines = [line.split() for line in out.splitlines()]
    most = max(found, key=lambda row: float(row["count"]))
    assert lines[0] == ["4", "frames", "mean", "min", "max", "at"]
    assert lines[1][:2] == ["people", f"{mean:.1f}"]
    assert lines[1][-1] == f"0:{float(most['seconds']):04.1f}"
    assert [line[0] for line in lines[2:4]] == ["left", "right"]
    assert (tmp_path / "out" / "counts.png").stat().st_size > 5000
    assert "4/4" in err
    assert "frame/s" in err


def test_images_are_counted_like_a_video_and_nothing_is_drawn(count: Count, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for k in range(3):
        Image.fromarray(noise(k)).save(tmp_path / "frames" / f"frame_{k:04d}.png")
    (tmp_path / "frames" / "frame_0001.png").write_bytes(b"broken")
    status, _, err = count("frames/frame_%04d.png", "--rate", "2", "--no-video")
    assert status == 1
    assert "failed: 1\n" in err
    assert "frame_0001.png cannot be read as an image" in err
    found = rows(tmp_path / "video_counts")
    assert [row["seconds"] for row in found] == ["0.000", "0.500", "1.000"]
    assert [bool(row["count"]) for row in found] == [True, False, True]
    assert "frame_0001.png cannot be read" in found[1]["error"]
    assert sorted(path.name for path in (tmp_path / "video_counts").iterdir()) == [
        "counts.csv",
        "counts.png",
        "video.json",
    ]


def signaled_in_the_third_batch(monkeypatch: pytest.MonkeyPatch, *numbers: signal.Signals) -> list[int]:
    """Raise signals while the third batch is counted; the sizes of the batches so far."""
    predict = engine.PhotoCounter.predict_batch
    calls: list[int] = []

    def interrupted(self: engine.PhotoCounter, photos: list[np.ndarray]) -> list[engine.PhotoCount]:
        calls.append(len(photos))
        if len(calls) == 3:
            for number in numbers:
                signal.raise_signal(number)
        return predict(self, photos)

    monkeypatch.setattr(engine.PhotoCounter, "predict_batch", interrupted)
    return calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_what_was_counted(
    number: signal.Signals, count: Count, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = signaled_in_the_third_batch(monkeypatch, number)
    before = signal.getsignal(number)
    status, out, err = count("crowd.mp4", "--batch", "2")
    assert status == 130
    assert calls == [2, 2, 2]
    assert signal.getsignal(number) is before
    assert "press Ctrl-C again" in err
    assert [row["frame"] for row in rows(tmp_path / "video_counts")] == [str(k) for k in range(6)]
    assert len(shown(tmp_path / "video_counts")) == 6
    assert record(tmp_path / "video_counts")["interrupted"] is True
    assert out.startswith("6 frames")


@pytest.mark.slow
def test_a_second_ctrl_c_and_a_kill_keep_the_counts(
    count: Count, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signaled_in_the_third_batch(monkeypatch, signal.SIGINT, signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["video.py", "crowd.mp4", "--batch", "2"])
    status, _, err = count("crowd.mp4", "--batch", "2")
    assert status == 130
    assert err.endswith("video.py: interrupted\n")
    assert [row["frame"] for row in rows(tmp_path / "video_counts")] == ["0", "1", "2", "3"]
    assert record(tmp_path / "video_counts")["complete"] is False
    assert sorted(os.listdir(tmp_path / "video_counts")) == ["counts.csv", "video.json"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert count("crowd.mp4", "--every", "6")[0] == 0  # the folder is a run's and can be used again
    assert len(rows(tmp_path / "video_counts")) == 2


@pytest.mark.slow
def test_a_camera_is_counted_until_the_end_or_ctrl_c(
    count: Count, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_CAMERAS", {sys.platform: ("lavfi", "testsrc=size=100x72:rate=50")})
    status, _, err = count("camera:0", "--end", "1", "--output", "out", "--every", "10")
    assert status == 0, err
    found = rows(tmp_path / "out")
    assert found
    assert all(int(row["frame"]) % 10 == 0 and float(row["seconds"]) < 1 for row in found)
    assert len(shown(tmp_path / "out")) == len(found)

    predict = engine.PhotoCounter.predict_batch

    def interrupted(self: engine.PhotoCounter, photos: list[np.ndarray]) -> list[engine.PhotoCount]:
        signal.raise_signal(signal.SIGINT)
        return predict(self, photos)

    monkeypatch.setattr(engine.PhotoCounter, "predict_batch", interrupted)
    status, _, _ = count("camera:0", "--output", "out")
    assert status == 0  # that is how a camera ends
    assert len(rows(tmp_path / "out")) == 1
    assert record(tmp_path / "out")["dropped"] >= 0  # type: ignore[operator]


@pytest.mark.slow
def test_a_counter_without_blocks_gives_a_count_and_a_gray_video_and_notes_are_printed(
    count: Count, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = engine.PhotoCounter.predict_batch

    def one_number(self: engine.PhotoCounter, photos: list[np.ndarray]) -> list[engine.PhotoCount]:
        return [replace(found, block_counts=None, note="far outside") for found in predict(self, photos)]

    monkeypatch.setattr(engine.PhotoCounter, "predict_batch", one_number)
    status, out, _ = count("crowd.mp4", "--every", "4")
    assert status == 0
    assert "\nnote on 3 of 3 frames: far outside\n" in out
    assert {row["note"] for row in rows(tmp_path / "video_counts")} == {"far outside"}
    assert all(float(row["count"]) > 0 for row in rows(tmp_path / "video_counts"))
    with av.open(str(tmp_path / "video_counts" / "annotated.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert np.ptp(frame, axis=2).max() < 12
    status, _, err = count("crowd.mp4", *LEFT)
    assert status == 2
    assert "this counter predicts one number per picture and no blocks" in err


@pytest.mark.slow
def test_a_truncated_video_is_counted_as_far_as_it_goes(count: Count, tmp_path: Path) -> None:
    file = make_video(tmp_path / "a.mp4", picture=noise, container_options={"movflags": "faststart"})
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    status, out, err = count("a.mp4")
    assert status == 1
    assert "a.mp4 ends at" in err
    assert "it is truncated" in err
    counted = [row for row in rows(tmp_path / "video_counts") if row["count"]]
    assert 3 <= len(counted) < 12
    assert out.startswith(f"{len(counted)} frames")
    assert len(shown(tmp_path / "video_counts")) == len(counted)


@pytest.mark.slow
def test_an_earlier_run_is_replaced_and_nothing_else(count: Count, crowd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert count("crowd.mp4", "--output", "out", "--every", "4")[0] == 0
    (out / "mine.txt").write_text("kept")
    assert count("crowd.mp4", "--output", "out", "--every", "6", "--no-video", *LEFT)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["counts.csv", "counts.png", "mine.txt", "video.json"]
    assert len(rows(out)) == 2
    files = {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "a.mp4").write_text("no video")
    for typed in (["a.mp4"], ["crowd.mp4", "--region", "a=0,0,900,9"], ["crowd.mp4", "--start", "99"]):
        assert count(*typed, "--output", "out")[0] == 2
        assert {path: path.read_bytes() for path in out.iterdir()} == files
    (out / "video.json").unlink()
    status, _, err = count("crowd.mp4", "--output", "out")
    assert status == 2
    assert "counts.csv exists and is not a result of an earlier run" in err
    (tmp_path / "video_counts").mkdir()
    (tmp_path / "video_counts" / "video.json").write_text('{"mine": 1}')
    status, _, err = count("crowd.mp4")
    assert status == 2
    assert "video.json is not a result of an earlier run" in err


@pytest.mark.slow
def test_the_annotated_video_of_an_earlier_run_is_no_source(count: Count, crowd: Path, tmp_path: Path) -> None:
    assert count("crowd.mp4", "--every", "4")[0] == 0
    status, _, err = count("video_counts/annotated.mp4")
    assert status == 2
    assert "video_counts/annotated.mp4 is a result of an earlier run in video_counts" in err
    assert count("video_counts/annotated.mp4", "--output", "again")[0] == 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["gone.mp4"], "gone.mp4: no such file, folder or images"),
        (["crowd.mp4", "b.mp4"], "one source is counted at a time, and 2 are given: crowd.mp4, b.mp4"),
        ([], "0 are given: none"),
        (["crowd.mp4", "--every", "0"], "0: must be a number of frames such as 5, or of seconds such as 0.5s"),
        (["crowd.mp4", "--every", "0s"], "0s: must be a number of frames"),
        (["crowd.mp4", "--every", "2 s"], "2 s: must be a number of frames"),
        (["crowd.mp4", "--every", "0.5"], "0.5: must be a number of frames"),
        (["crowd.mp4", "--start", "x"], "x: must be a number of seconds, at least 0"),
        (["crowd.mp4", "--rate", "0"], "0: must be a number above 0"),
        (["crowd.mp4", "--rate", "5"], "--rate 5: crowd.mp4 has times of its own"),
        (["crowd.mp4", "--start", "5", "--end", "5"], "--end 5 is not after --start 5: no frame would be used"),
        (["crowd.mp4", "--region", "a=1,2,3"], "region a: has 3 numbers"),
        (["crowd.mp4", *LEFT, *LEFT], "region left: is given 2 times"),
        (["crowd.mp4", "--regions", "gone.json"], "gone.json: cannot be read as regions: No such file"),
        (["crowd.mp4", "--region", "a=0,0,101,20"], "region a: reaches 1 pixels beyond the right border"),
        (["crowd.mp4", "--window", "30"], "--window=30: must be a multiple of 8"),
        (["crowd.mp4", "--output", "crowd.mp4"], "crowd.mp4"),
        (["crowd.mp4", "--start", "9"], "crowd.mp4: no frame from 9 s on"),
    ],
)
def test_what_cannot_be_done_is_refused(typed: list[str], message: str, count: Count, crowd: Path) -> None:
    status, out, err = count(*typed)
    assert status == 2
    assert message in err
    assert not out
    assert "Traceback" not in err


def test_without_pyav_what_to_install_is_named(count: Count, crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = count("crowd.mp4")
    assert status == 2
    assert err.endswith("an annotated video needs PyAV, which is not installed: pip install 'headcount[video]'\n")


def test_a_missing_checkpoint_is_named(count: Count, crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = count("crowd.mp4", ckpt="gone.pt")
    assert status == 2
    assert "gone.pt: no such file" in err


@pytest.mark.slow
def test_as_typed(
    run_command: Callable[..., object],
    script: Callable[..., tuple[int, str, str]],
    crowd: Path,
    best: str,
    tmp_path: Path,
) -> None:
    done = run_command("scripts/video.py", "crowd.mp4", f"ckpt={best}", "--every", "6")
    assert done.returncode == 0, done.stderr  # type: ignore[attr-defined]
    assert len(shown(tmp_path / "video_counts")) == 2
    assert "left=0%,0%,50%,100%" in script("scripts/video.py", "--help")[1]


def test_frames_have_intervals(count: Count, crowd: Path, best: str, tmp_path: Path) -> None:
    status, _, err = count("crowd.mp4", "--every", "0.5s", "--level", "0.8", "--no-video", "--output", "out")
    assert status == 0, err
    for row in rows(tmp_path / "out"):
        assert float(row["low"]) <= float(row["count"]) <= float(row["high"])
        assert (row["level"], row["calibrated"]) == ("0.8", "no")
    status, _, err = count("crowd.mp4", "--level", "2", "--output", "out2")
    assert status == 2
    assert "--level: 2: must be above 0 and below 1" in err
