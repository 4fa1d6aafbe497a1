"""Pictures of all kinds counted from the command line; one bad one never stops the rest."""

import csv
import json
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]


def noise(width: int = 90, height: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bomb(path: Path) -> None:
    """A PNG whose header says 70,000 x 70,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 70_000, 70_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(data)


def test_pictures_of_all_kinds(run_command: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    make_checkpoint(tmp_path / "best.pt")
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
    rgb.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(noise(seed=1))], duration=9)
    exif = rgb.getexif()
    exif[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("not asked for")
    (folder / "short.jpg").write_bytes((folder / "a [1], b=c.jpg").read_bytes()[:500])
    (folder / "empty.png").touch()
    bomb(folder / "bomb.png")

    done = run_command("scripts/predict.py", "my pictures", "gone.jpg", "--ckpt", "best.pt", "--output", "out")
    assert done.returncode == 1
    rows = {row["file"]: row for row in csv.DictReader((tmp_path / "out" / "counts.csv").read_text().splitlines())}
    good = {name for name, row in rows.items() if row["count"]}
    bad = {Path(name).name for name, row in rows.items() if row["error"]}
    assert bad == {"short.jpg", "empty.png", "bomb.png", "gone.jpg"}
    assert {Path(name).name for name in good} == {
        *("a [1], b=c.jpg", "a [1], b=c.png", "cmyk.jpg", "palette.png", "bits.png", "rgba.png", "deep.png"),
        *("moving.gif", "turned.jpg"),
    }
    for name in bad:
        assert name in done.stderr
    assert "failed: 4 of 13" in done.stderr
    assert "the first of 2 frames" in done.stdout
    records = {row["file"]: row for row in json.loads((tmp_path / "out" / "counts.json").read_text())}
    turned = records["my pictures/turned.jpg"]
    assert (turned["width"], turned["height"]) == (60, 90)
    # Two files of one stem keep a map and a picture each, and a map sums to the count.
    densities = [records[name]["density"] for name in good]
    assert len(set(densities)) == len(good)
    for name in good:
        record = records[name]
        assert np.load(tmp_path / "out" / record["density"]).sum() == pytest.approx(record["count"], rel=1e-5)
        assert (tmp_path / "out" / record["picture"]).stat().st_size > 1000
        assert float(rows[name]["count"]) == pytest.approx(record["count"], abs=1e-3)
    shown = next(line for line in done.stdout.splitlines() if line.startswith("my pictures/cmyk.jpg"))
    assert float(shown.split()[-1]) == pytest.approx(records["my pictures/cmyk.jpg"]["count"], abs=0.06)


def test_patterns_windows_and_less_output(
    run_command: Run, tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    make_checkpoint(tmp_path / "best.pt")
    for k in range(3):
        Image.fromarray(noise(seed=k)).save(tmp_path / f"p{k}.png")
    typed = ["scripts/predict.py", "p*.png", "--ckpt", "best.pt", "--no-pictures", "--no-density"]
    done = run_command(*typed, "--window", "32", "--stride", "16")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "predictions").iterdir()) == ["counts.csv", "counts.json"]
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["p0.png", "p1.png", "p2.png"]
    assert "in windows of 32 px" in done.stdout
    wrong = run_command(*typed, "--window", "30")
    assert wrong.returncode == 2
    assert "--window=30: must be a multiple of 8" in wrong.stderr


def test_what_cannot_be_done_is_refused_at_once(run_command: Run, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "p.png")
    done = run_command("scripts/predict.py", "p.png", "--ckpt", "gone.pt")
    assert done.returncode == 2
    assert "gone.pt: no such file" in done.stderr
