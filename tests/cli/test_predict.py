"""Pictures of all kinds counted from the command line; one bad one never stops the rest."""

import csv
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

import headcount
import headcount.engine.predict as engine
from engine.test_checkpoint import write_checkpoint
from engine.test_stored import stored_pair
from headcount import published
from headcount.cli import predict as command
from headcount.cli.compose import compose, to_config
from headcount.config import to_plain
from headcount.data.picture_files import find_pictures
from headcount.engine import checkpoint
from headcount.files import file_identity
from headcount.intervals import Features
from headcount.report.predictions import earlier_results
from test_intervals import calibration

Run = Callable[..., subprocess.CompletedProcess[str]]
Predict = Callable[..., tuple[int, str, str]]


def noise(width: int = 90, height: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed=seed)).save(path)
    return path


def bomb(path: Path) -> None:
    """A PNG whose header says 70,000 x 70,000 pixels."""
    header = struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(9))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def records(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["file"]: row for row in json.loads((folder / "counts.json").read_text())["pictures"]}


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "model.width=8"))


@pytest.fixture
def predict(best: str, counting: Callable[..., Predict]) -> Predict:
    return counting(command.main, "predict.py", best)


def test_pictures_of_all_kinds(predict: Predict, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    (folder / "deeper").mkdir(parents=True)
    rgb = Image.fromarray(noise())
    rgb.save(folder / "a [1], b=c.jpg")
    rgb.save(folder / "deeper" / "a [1], b=c.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png", transparency=0)
    rgb.convert("1").save(folder / "bits.png")
    Image.fromarray(noise(channels=4)).save(folder / "rgba.png")
    Image.fromarray(noise(channels=1).astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(noise(channels=1).astype(np.uint16) * 16).save(folder / "dark.png")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(noise(seed=1))], duration=9)
    exif = rgb.getexif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    rgb.save(folder / "turned.tif", exif=exif)
    (folder / "notes.txt").write_text("not asked for")
    (folder / "short.jpg").write_bytes((folder / "a [1], b=c.jpg").read_bytes()[:500])
    (folder / "empty.png").touch()
    (folder / "phone.heic").write_bytes(b"no format that Pillow knows")
    bomb(folder / "bomb.png")

    status, out, err = predict("my pictures", "gone.jpg", "--output", "out", "--no-pictures")
    assert status == 1
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out" / "counts.csv").read_text().splitlines())}
    good = {name for name, row in rows.items() if row["count"]}
    bad = {Path(name).name for name, row in rows.items() if row["error"]}
    assert bad == {"short.jpg", "empty.png", "bomb.png", "gone.jpg", "phone.heic"}
    assert {Path(name).name for name in good} == {
        *("a [1], b=c.jpg", "a [1], b=c.png", "cmyk.jpg", "palette.png", "bits.png", "rgba.png", "deep.png"),
        *("dark.png", "moving.gif", "turned.jpg", "turned.tif"),
    }
    assert "failed: 5 of 16" in err
    failed = err.split("failed:")[1]
    for name in bad:
        assert name in failed
    for words in ("empty, 0 bytes", "4900000000 pixels", "raise --max-megapixels", "no such file", "save it as JPEG"):
        assert words in failed
    told = records(tmp_path / "out")
    assert told["my pictures/moving.gif"]["note"] == "first of 2 frames"
    assert told["my pictures/dark.png"]["note"].startswith("nearly black: 16 bits without a value above 4095")
    assert told["my pictures/deep.png"]["note"] == ""
    for name in ("my pictures/turned.jpg", "my pictures/turned.tif"):
        assert (told[name]["width"], told[name]["height"]) == (60, 90)
    # Two files of one stem keep a map each, and a map sums to the count.
    assert len({told[name]["density"] for name in good}) == len(good)
    for name in good:
        record = told[name]
        assert np.load(tmp_path / "out" / record["density"]).sum() == pytest.approx(record["count"], rel=1e-5)
        assert record["picture"] is None
        assert float(rows[name]["count"]) == pytest.approx(record["count"], abs=1e-3)
    lines = out.splitlines()
    shown = next(line for line in lines if line.startswith("my pictures/cmyk.jpg"))
    assert float(shown.split()[2]) == pytest.approx(told["my pictures/cmyk.jpg"]["count"], abs=0.06)
    total = sum(told[name]["count"] for name in good)
    assert next(line for line in lines if line.startswith("total")).split()[1] == f"{total:.1f}"


@pytest.mark.slow
def test_as_typed(run_command: Run, tmp_path: Path, best: str) -> None:
    for name in ("a.png", "f/a.png"):
        picture(tmp_path / name)
    (tmp_path / "f" / "b.png").touch()
    done = run_command("scripts/predict.py", "a.png", "f", f"ckpt={best}")
    assert done.returncode == 1
    assert "failed: 1 of 3\n  f/b.png: empty, 0 bytes\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert "img/s" in done.stderr or "s/img" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        *("a.png", "f/a.png", "f/b.png", "total", "predictions/counts.csv")
    ]
    for file in ("density/a.npy", "density/a_2.npy", "pictures/a.png", "pictures/a_2.png"):
        assert (tmp_path / "predictions" / file).stat().st_size > 100


def test_patterns_windows_and_less_output(predict: Predict, tmp_path: Path) -> None:
    for k in range(3):
        picture(tmp_path / f"p{k}.png", seed=k)
    typed = ["p2.png", "p*.png", "--no-pictures", "--no-density"]
    status, out, _ = predict(*typed, "--window", "32", "--stride", "16")
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == ["counts.csv", "counts.json"]
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["p2.png", "p0.png", "p1.png"]
    assert out.count("in windows of 32 px") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "30"], "--window=30: must be a multiple of 8"),
        (["--window", "0"], "0: must be a whole number, at least 1"),
        (["--stride", "16"], "--stride needs --window: this counter counts whole pictures"),
        (["--window-batch", "2"], "--window-batch needs --window"),
        (["--window", "32", "--stride", "64"], "--stride=64: must be a multiple of"),
        (["--device", "gpu"], "gpu: must be cpu, cuda, cuda:N or auto"),
        (["--output", "p.png"], "p.png"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(
    arguments: list[str], message: str, predict: Predict, tmp_path: Path
) -> None:
    picture(tmp_path / "p.png")
    status, _, err = predict("p.png", *arguments)
    assert status == 2
    assert message in err
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_a_missing_checkpoint_is_refused_before_torch_is_loaded(run_process: Run, tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    done = run_process("scripts/predict.py", "p.png", "ckpt=gone.pt", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 2
    assert "gone.pt: no such file" in done.stderr
    assert "| torch" not in done.stderr


def run_without_checkpoint(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["predict.py", "--device", "cpu", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    return int(end.value.code or 0)


def test_without_a_checkpoint_the_default_counter_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    picture(tmp_path / "p.png")
    monkeypatch.setattr(published, "published_folder", lambda: tmp_path / "box")
    assert run_without_checkpoint(monkeypatch, "p.png") == 2
    told = capsys.readouterr().err
    assert "no counter is named, and the default one, sha_efficientnet_lite0, does not come with this" in told
    assert "name a file with ckpt=best_mae.pt, or train a counter: python train.py" in told
    assert not (tmp_path / "predictions").exists()

    (tmp_path / "box").mkdir()
    weights = stored_pair(tmp_path / "box", "model.width=8", name=published.DEFAULT, license="research use only")
    assert run_without_checkpoint(monkeypatch, "p.png", "--no-pictures") == 0
    (announced, *_) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("counting with")]
    assert announced == f"counting with {published.DEFAULT}: no errors were measured; license: research use only"
    counted = records(tmp_path / "predictions")["p.png"]["count"]
    for named in (published.DEFAULT, str(weights), str(weights.with_suffix(".json"))):
        assert run_without_checkpoint(monkeypatch, "p.png", "--no-pictures", f"ckpt={named}") == 0
        assert "counting with" not in capsys.readouterr().err
        assert records(tmp_path / "predictions")["p.png"]["count"] == counted
    for forgotten in ("other.safetensors", "my.pt", "checkpoint=my.pt"):
        assert run_without_checkpoint(monkeypatch, "p.png", forgotten) == 2
        file = forgotten.removeprefix("checkpoint=")
        assert capsys.readouterr().err == f"predict.py: ckpt is not set: type ckpt={file}\n"
    assert run_without_checkpoint(monkeypatch, "p.png", "ckpt=") == 2
    assert capsys.readouterr().err == "predict.py: ckpt=: names no checkpoint; type ckpt=best_mae.pt\n"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert run_without_checkpoint(monkeypatch, "p.png", "ckpt=hf-hub:owner/name") == 2
    assert f"counters that come with headcount: {published.DEFAULT}" in capsys.readouterr().err


def test_a_video_is_sent_to_the_command_for_videos(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "crowd.MP4").write_bytes(b"\0\0\0\x18ftypmp42")
    status, _, err = predict("crowd.MP4")
    assert status == 1
    assert "crowd.MP4 cannot be read as an image" in err
    assert "; videos are counted by scripts/video.py\n" in err


def test_what_exists_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a[1].png", "a1.png", "a2.png", "~b.png", "d[1]/x, y=z.jpg", "d1/no.jpg"):
        picture(tmp_path / name)

    def found(*typed: str) -> list[str]:
        return [str(p) for p in find_pictures(list(typed), leave_out=set()).files]

    assert found("a[1].png") == ["a[1].png"]
    assert found("a[12].png") == ["a1.png", "a2.png"]
    assert found("~b.png", "~nobody here.png") == ["~b.png", "~nobody here.png"]
    assert found("d[1]") == ["d[1]/x, y=z.jpg"]
    assert found("d1/../a1.png", "a1.png", "a?.png") == ["d1/../a1.png", "a2.png"]
    assert found("d?", "**/no.jpg") == ["d1/no.jpg"]
    assert found("**/a*.png") == ["a1.png", "a2.png", "a[1].png"]
    assert found("d*/**") == ["d1/no.jpg", "d[1]/x, y=z.jpg"]


def test_a_file_is_counted_once_whatever_its_paths_and_nothing_below_a_folder_is_left_out_unsaid(
    predict: Predict, tmp_path: Path
) -> None:
    for k, name in enumerate(("p/b.png", "p/day1/c.png", "else/d.png", "else/deep/e.png", "p/.hidden/f.png", "g.png")):
        picture(tmp_path / name, seed=k)
    (tmp_path / "p" / "notes.txt").touch()
    links = {"a.png": "b.png", "day0": "day1", "day2": tmp_path / "else", "up": "..", "me": ".", "loop": "loop"}
    links |= {"loop.png": "loop.png", "gone.png": "nowhere", "else.png": "../else/d.png"}
    for name, target in links.items():
        (tmp_path / "p" / name).symlink_to(target)
    (tmp_path / "p" / "hard.png").hardlink_to(tmp_path / "else" / "deep" / "e.png")
    status, _, err = predict("p", "p/day0", "**/e.png", "./p/b.png")
    assert status == 1
    rows = records(tmp_path / "predictions")
    counted = [name for name, row in rows.items() if row["count"] is not None]
    there = [tmp_path / name for name in ("p/b.png", "p/day1/c.png", "else/d.png", "p/hard.png", "g.png")]
    assert sorted(map(file_identity, counted)) == sorted(map(file_identity, there))
    assert {"p/b.png", "p/day1/c.png", "p/day2/d.png"} < set(counted)  # by their own paths, not by a link beside them
    failed = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert set(failed) == {"p/loop.png", "p/gone.png"}
    assert "a link to loop.png, which cannot be read (Too many" in failed["p/loop.png"]
    assert "a link to nowhere, which cannot be read (No such file" in failed["p/gone.png"]
    assert "left out of p: 1 hidden: p/.hidden\n" in err
    assert "without the ending of a picture: p/loop, p/notes.txt" in err
    assert "links to folders that are searched already: " in err
    for words in ("p/a.png is p/b.png", "p/else.png is p/day2/d.png", "p/day0/c.png is p/day1/c.png"):
        assert words in err


def test_pictures_far_outside_the_training_are_noted(predict: Predict, tmp_path: Path) -> None:
    """On the terminal, in counts.csv and in counts.json, of a checkpoint that knows only its crops of 224 px."""
    picture(tmp_path / "a.png")
    for name, size in (("dot.png", (1, 1)), ("long.png", (5000, 40))):
        Image.new("RGB", size).save(tmp_path / name)
    status, out, _ = predict("a.png", "dot.png", "long.png", "--no-pictures")
    assert status == 0
    rows = list(csv.DictReader((tmp_path / "predictions" / "counts.csv").read_text().splitlines()))
    assert [row["note"] for row in rows] == [
        "",
        "far outside the training images: shorter side 1 px, trained on crops of 224 px",
        "far outside the training images: longer side 5000 px, trained on crops of 224 px",
    ]
    assert [record["note"] for record in records(tmp_path / "predictions").values()] == [row["note"] for row in rows]
    assert all(row["note"] in out for row in rows)


def test_a_file_that_cannot_be_opened_is_reported_before_the_first_count(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "one.png")
    (tmp_path / "empty.jpg").touch()
    rows: list[dict[str, Any]] = []

    def stop(self: engine.PhotoCounter, photo: Path) -> engine.PhotoCount:
        rows.extend(csv.DictReader((tmp_path / "predictions" / "counts.csv").read_text().splitlines()))
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.PhotoCounter, "predict", stop)
    status, _, err = predict("one.png", "empty.jpg")
    assert status == 130
    assert [row["error"] for row in rows] == ["not counted yet", "empty.jpg: empty, 0 bytes"]
    assert err.splitlines()[0].endswith("cannot be counted: empty.jpg: empty, 0 bytes")


def test_two_links_to_a_folder_in_itself_are_searched_in_no_time(tmp_path: Path) -> None:
    """Each folder is visited once: their paths are without number."""
    picture(tmp_path / "f" / "a.png")
    for name in ("x", "y", "z"):
        (tmp_path / "f" / name).symlink_to(".")
    for typed in (tmp_path / "f", tmp_path / "**" / "a.png", tmp_path / "f" / "**" / "**" / "*.png"):
        found = find_pictures([str(typed)], leave_out=set())
        assert [path.name for path in found.files] == ["a.png"]


def test_a_subfolder_that_cannot_be_read_is_a_row(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("f/a.png", "f/closed/b.png"):
        picture(tmp_path / name)
    scan = os.scandir

    def denied(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    status, _, err = predict("f", "**/b.png")
    assert status == 1
    assert "failed: 1 of 3\n  f/closed: cannot be read (Permission denied)\n" in err  # not a row for each pattern
    assert records(tmp_path / "predictions")["f/a.png"]["count"] is not None


@pytest.mark.parametrize("typed", ["nope.jpg", "empty.png", "text.png", "loop.png", "folder", "no*.jpg"])
def test_where_nothing_can_be_counted_the_earlier_results_stay(typed: str, predict: Predict, tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    assert predict("p.png", "--output", "out")[0] == 0
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    assert len(files) == 4
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "folder").mkdir()
    status, out, err = predict(typed, "--output", "out")
    assert status in (1, 2)  # 1 if only decoding tells
    assert typed in err
    assert ("nothing was counted; out still holds the results of an earlier run" in err) == (status == 1)
    assert "counts.csv" not in out
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == files
    assert predict(typed, "p.png", "--output", "out")[0] == 1  # a row of its own, beside one that is counted
    assert [row["count"] is None for row in records(tmp_path / "out").values()] == [True, False]


def test_of_a_folder_all_pictures_but_hidden_ones_and_our_own(predict: Predict, tmp_path: Path) -> None:
    for name in ("f/b.png", "f/a.JPG", "f/deep/er/a.png", "f/._a.jpg", "f/.cache/x.png"):
        picture(tmp_path / name)
    (tmp_path / "f" / "read me.txt").touch()
    for _ in range(2):  # the second time its own drawings lie there
        status, _, _ = predict("f", "--output", "f/out")
        assert status == 0
        assert list(records(tmp_path / "f" / "out")) == ["f/a.JPG", "f/b.png", "f/deep/er/a.png"]
    drawn = sorted(p.name for p in (tmp_path / "f" / "out" / "pictures").iterdir())
    assert drawn == ["a.png", "a_2.png", "b.png"]


def test_an_empty_folder_and_a_bad_file_fail_alone(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nothing").mkdir()
    picture(tmp_path / "a.png")
    picture(tmp_path / "huge.png")
    count = engine.PhotoCounter.predict

    def predict_one(self: engine.PhotoCounter, photo: Path) -> engine.PhotoCount:
        if photo.name == "huge.png":
            raise MemoryError  # as Pillow raises it: without a word
        return count(self, photo)

    monkeypatch.setattr(engine.PhotoCounter, "predict", predict_one)
    status, _, err = predict("nothing", "huge.png", "a.png")
    assert status == 1
    assert "failed: 2 of 3" in err
    assert "huge.png: MemoryError" in err
    assert "nothing: no file below this folder" in err
    assert records(tmp_path / "predictions")["a.png"]["count"] is not None


def test_names_that_are_no_text(predict: Predict, tmp_path: Path) -> None:
    try:
        picture(tmp_path / "x.png").rename(tmp_path / os.fsdecode(b"\xff\n\x1b.png"))
    except OSError:
        pytest.skip("this file system wants text")
    picture(tmp_path / ("n" * 240 + ".png"))
    status, out, err = predict(".")
    assert status == 0, err
    assert r"\udcff\n\x1b.png " in out
    (tmp_path / "predictions" / "counts.csv").read_text(encoding="utf-8")
    assert len(records(tmp_path / "predictions")) == 2


def test_an_earlier_run_is_replaced_and_nothing_else(predict: Predict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for k in range(2):
        picture(tmp_path / f"p{k}.png", seed=k)
    assert predict("p0.png", "p1.png", "--output", "out")[0] == 0
    (out / "pictures" / "mine.png").write_text("kept")
    assert predict("p1.png", "--output", "out")[0] == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        *("counts.csv", "counts.json", "density/p1.npy", "pictures/mine.png", "pictures/p1.png")
    ]

    picture(tmp_path / "mine.png")
    status, _, err = predict("mine.png", "--output", "out")
    assert status == 2
    assert "pictures/mine.png exists and is not a result of an earlier run" in err
    status, _, err = predict("out/pictures/p1.png", "--output", "out")
    assert status == 2
    assert "out/pictures/p1.png is a result of an earlier run in out" in err
    assert (out / "pictures" / "mine.png").read_text() == "kept"
    assert list(records(out)) == ["p1.png"]


@pytest.mark.parametrize("content", ["{}", "no json", "[]", '{"pictures": [{"density": "../p.png"}]}'])
def test_a_counts_json_of_somebody_else_is_kept(content: str, predict: Predict, tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    (tmp_path / "counts.json").write_text(content)
    status, _, err = predict("p.png", "--output", ".")
    assert status == 2
    assert "counts.json is not a result of an earlier run" in err
    assert (tmp_path / "counts.json").read_text() == content


def test_a_record_cannot_name_files_elsewhere_for_removal(tmp_path: Path) -> None:
    names = ["../p.png", "density/../../p.npy", "/p.png", "pictures/../p.png", "counts.txt", "pictures/a.png"]
    rows = [{"density": name, "picture": None} for name in names]
    (tmp_path / "counts.json").write_text(json.dumps({"pictures": rows}))
    found = {p.relative_to(tmp_path).as_posix() for p in earlier_results(tmp_path)}
    assert found == {"counts.json", "counts.csv", "pictures/a.png"}


def test_what_was_counted_before_an_interruption_is_kept(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        picture(tmp_path / f"p{k}.png", seed=k)
    count = engine.PhotoCounter.predict

    def predict_one(self: engine.PhotoCounter, photo: Path) -> engine.PhotoCount:
        if photo.name == "p1.png":
            raise KeyboardInterrupt
        return count(self, photo)

    monkeypatch.setattr(engine.PhotoCounter, "predict", predict_one)
    status, _, err = predict("p*.png")
    assert status == 130
    told = records(tmp_path / "predictions")
    assert [row["count"] is None for row in told.values()] == [False, True, True]
    assert [row["error"] for row in told.values()] == ["", *["not counted: interrupted"] * 2]
    assert "p2.png: not counted: interrupted" in err


def test_a_count_is_kept_where_it_cannot_be_drawn(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    picture(tmp_path / "p.png")
    monkeypatch.setattr("headcount.report.overlay.overlay_picture", full)
    status, out, err = predict("p.png")
    row = records(tmp_path / "predictions")["p.png"]
    assert status == 1
    assert "No space left on device" in err
    assert f"{row['count']:.1f}" in out
    assert (row["density"], row["picture"]) == ("density/p.npy", None)


def test_larger_pictures_than_allowed_are_refused(predict: Predict, tmp_path: Path) -> None:
    Image.new("L", (1100, 1000)).save(tmp_path / "large.png")
    refused, _, err = predict("large.png", "--max-megapixels", "1", "--no-pictures")
    assert refused == 1
    assert "large.png" in err
    assert "raise --max-megapixels" in err
    assert predict("large.png", "--max-megapixels", "2", "--no-pictures")[0] == 0


def test_blocks_can_be_laid_on_the_photo(predict: Predict, tmp_path: Path) -> None:
    """A counter of a dataset's images sees the photo at another size."""
    folder = write_checkpoint(tmp_path, "model.width=8", "dataset=sha", "dataset.min_side=96")
    picture(tmp_path / "p.png")
    assert predict("p.png", ckpt=str(folder))[0] == 0
    row = records(tmp_path / "predictions")["p.png"]
    assert (row["width"], row["height"]) == (90, 60)
    assert (row["resized_width"], row["resized_height"]) == (128, 96)  # half a multiple of 32 goes to the even one
    rows, cols = np.load(tmp_path / "predictions" / row["density"]).shape
    assert rows == math.ceil(row["resized_height"] / row["block_size"])
    assert cols == math.ceil(row["resized_width"] / row["block_size"])


@pytest.mark.parametrize(
    ("part", "note"),
    [
        ("qnrf", "photos are resized by the rule of sha (min_side=448, max_side=4096); this counter's images of qnrf"),
        ("shb", ""),
    ],
)
def test_a_mixed_counter_says_whose_rule_resizes_photos(predict: Predict, tmp_path: Path, part: str, note: str) -> None:
    content = checkpoint.read(write_checkpoint(tmp_path, "model.width=8"))
    typed = ["dataset=mixed", "model.width=8", f"dataset.parts=[sha,{part}]"]
    content["config"] = to_plain(to_config(compose(typed, config_name="train")))
    checkpoint.save(content, tmp_path / "mixed.pt")
    Image.fromarray(noise()).resize((448, 448)).save(tmp_path / "p.png")
    status, _, err = predict("p.png", "--no-pictures", ckpt="mixed.pt")
    assert status == 0
    assert ("photos are resized" in err) == bool(note)
    assert note in err


@pytest.mark.slow
def test_the_checkpoint_may_be_typed_as_before(run_command: Run, tmp_path: Path, best: str) -> None:
    picture(tmp_path / "p.png")
    done = run_command("scripts/predict.py", "p.png", "--ckpt", best, "--no-pictures", "--no-density")
    assert done.returncode == 0, done.stderr
    assert f"predict.py: --ckpt is now typed ckpt={best}\n" in done.stderr


def test_settings_that_it_does_not_have_are_pictures(predict: Predict) -> None:
    status, _, err = predict("runtime=cpu")
    assert status == 2
    assert "runtime=cpu: no such file" in err


def test_nothing_to_count_is_refused_before_the_network_is_loaded_and_removes_nothing(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "p.png")
    assert predict("p.png")[0] == 0
    before = (tmp_path / "predictions" / "counts.csv").read_text()
    monkeypatch.setattr("headcount.engine.load.load", None)  # cannot be called
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    status, _, err = predict("nope.jpg", "empty.png", "folder", *(f"gone{k}.png" for k in range(20)))
    assert status == 2
    assert err.startswith("predict.py: there is nothing to count: nope.jpg: no such file")
    assert err.splitlines()[-1].strip() == "and 13 more"
    assert (tmp_path / "predictions" / "counts.csv").read_text() == before


def test_windows_have_an_upper_limit(predict: Predict, tmp_path: Path) -> None:
    picture(tmp_path / "p.png")
    status, _, err = predict("p.png", "--window", "1000000000000")
    assert status == 2
    assert "--window=1000000000000: must be from 1 to 8192" in err


# ------------------------------------------------------------------------------------------ intervals


@pytest.fixture(scope="module")
def calibrated(best: str) -> str:
    """A checkpoint whose calibration was on ten images of 0 to 0.02 megapixels."""
    content = checkpoint.read(best)
    wide = {"least": Features(0.0, 0.0), "most": Features(1e9, 0.02)}
    content["calibration"] = calibration(*(0.5 * k for k in range(1, 11)), **wide).to_plain()
    path = Path(best).with_name("calibrated.pt")
    checkpoint.save(content, path)
    return str(path)


def test_an_uncalibrated_interval_is_printed_as_such(predict: Predict, best: str, tmp_path: Path) -> None:
    picture(tmp_path / "photo.png")
    status, out, err = predict("photo.png", "--level", "0.5")
    assert status == 0, err
    found = headcount.load(best, level=0.5).predict(tmp_path / "photo.png")
    interval = found.interval
    assert interval is not None
    assert f"{found.count:.1f}  [{interval.low:.0f}, {interval.high:.0f}] 50 %, uncalibrated" in out
    (row,) = csv.DictReader((tmp_path / "predictions" / "counts.csv").read_text().splitlines())
    assert (row["level"], row["calibrated"]) == ("0.5", "no")
    assert (float(row["low"]), float(row["high"])) == (interval.low, interval.high)
    stored = records(tmp_path / "predictions")["photo.png"]["interval"]
    assert stored == {
        **{"low": interval.low, "high": interval.high, "level": 0.5},
        **{"calibrated": False, "outside_calibration": ""},
    }


def test_a_calibrated_interval_is_printed_and_a_picture_unlike_the_others_marked(
    predict: Predict, calibrated: str, tmp_path: Path
) -> None:
    picture(tmp_path / "small.png")
    Image.fromarray(noise(width=300, height=200)).save(tmp_path / "large.png")
    status, out, err = predict("small.png", "large.png", "--level", "0.8", ckpt=calibrated)
    assert status == 0, err
    assert "uncalibrated" not in out
    small, large, *_ = sorted(out.splitlines()[1:3], reverse=True)
    counter = headcount.load(calibrated, level=0.8)
    interval = counter.predict(tmp_path / "small.png").interval
    assert interval is not None
    assert f"[{math.floor(interval.low)}, {math.ceil(interval.high)}] 80 %" in small
    unlike = "unlike the calibration images: 0.06 megapixels, in calibration 0 to 0.02"
    assert unlike in large
    assert unlike not in small
    rows = list(csv.DictReader((tmp_path / "predictions" / "counts.csv").read_text().splitlines()))
    assert [row["calibrated"] for row in rows] == ["yes", "yes"]
    assert [unlike in row["note"] for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("level", "words"),
    [
        ("90", "--level: 90: must be above 0 and below 1, such as 0.9; for 90 %, type 0.9"),
        ("1", "--level: 1: must be above 0 and below 1, such as 0.9"),
        ("0", "--level: 0: must be above 0 and below 1"),
        ("nan", "--level: nan: must be above 0 and below 1"),
        ("high", "--level: high: must be a number above 0 and below 1, such as 0.9"),
        ("0.95", "--level=0.95: needs a calibration on at least 19 images, and this one has 10; choose at most 0.909"),
    ],
)
def test_a_wrong_level_is_refused_before_anything_is_counted(
    level: str, words: str, predict: Predict, calibrated: str, tmp_path: Path
) -> None:
    picture(tmp_path / "photo.png")
    status, _, err = predict("photo.png", "--level", level, ckpt=calibrated)
    assert status == 2
    assert words in err
    assert not (tmp_path / "predictions").exists()
