"""calibrate.py as typed: what it prints and refuses, and eval.py on what it wrote."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.test_checkpoint import write_checkpoint
from headcount.cli.calibrate import check_output, default_output
from headcount.config import ConfigError
from headcount.engine.load import load

Script = Callable[..., tuple[int, str, str]]
SMALL = ["dataset.train_images=40", "dataset.test_images=9", "dataset.width=64", "dataset.height=64", "model.width=8"]
USUAL = ["runtime=cpu", "runtime.workers=0"]
SCRIPT = "scripts/calibrate.py"


@pytest.fixture
def ckpt(tmp_path: Path) -> str:
    """A checkpoint of a run that held 20 of 40 images out."""
    return str(write_checkpoint(tmp_path, *SMALL, "dataset.holdout=0.5"))


def test_the_calibrated_checkpoint_is_beside_the_other(tmp_path: Path) -> None:
    for stem in ("best_mae", "best_mae_calibrated"):
        file = tmp_path / f"{stem}.pt"
        file.touch()
        assert default_output(str(file)) == tmp_path / f"{stem}_calibrated.pt"


def test_that_of_a_named_counter_is_in_the_working_folder() -> None:
    assert default_output("sha_efficientnet_lite0") == Path("sha_efficientnet_lite0_calibrated.pt")
    assert default_output("hf-hub:a/b") == default_output("hf-hub:a/b@v1.0") == Path("b_calibrated.pt")


@pytest.mark.parametrize("name", ["counter.onnx", "counter", "counter.PT"])
def test_a_file_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: must end in \.pt, \.safetensors or \.json"):
        check_output(tmp_path / name)


def test_no_file_of_a_pair_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "counter.json").touch()
    with pytest.raises(ConfigError, match=r"counter\.json: exists"):
        check_output(tmp_path / "counter.safetensors")


@pytest.mark.slow
def test_calibrate_and_evaluate(script: Script, ckpt: str, tmp_path: Path) -> None:
    status, out, err = script(SCRIPT, f"ckpt={ckpt}", *USUAL)
    assert status == 0, err
    made = tmp_path / "best_mae_calibrated.pt"
    assert f"{made}: calibrated on 20 images of synthetic holdout, whole image" in out
    assert "deviation of the counter's own distribution" in out
    assert [line.split()[0] for line in out.splitlines() if "count +-" in line] == ["50", "80", "90", "95"]
    assert f"next: python eval.py ckpt={made}" in out

    status, out, err = script("eval.py", f"ckpt={made}", *USUAL)
    assert status == 0, err
    assert "intervals by the counter's own probabilities, uncalibrated (9 images" in out
    assert "intervals calibrated on 20 images of synthetic holdout (9 images" in out
    folder = tmp_path / "eval" / "synthetic_test_best_mae_calibrated"
    assert (folder / "coverage.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((folder / "metrics.json").read_text())["intervals"]
    assert found["calibration"] == {
        **{"images": 20, "dataset": "synthetic", "split": "holdout", "mode": "whole image", "overlapping": 0}
    }
    assert [of["level"] for of in found["calibrated"]["levels"]] == [0.5, 0.8, 0.9, 0.95]
    assert found["own"]["images"] == found["calibrated"]["images"] == 9
    rows = list(csv.DictReader((folder / "counts.csv").read_text().splitlines()))
    counter = load(made)
    assert counter.calibration is not None
    for row in rows:
        assert (row["level"], row["calibrated"]) == ("0.9", "yes")
        assert float(row["low"]) <= float(row["predicted"]) <= float(row["high"])

    status, out, err = script("eval.py", f"ckpt={made}", "split=holdout", "eval.pictures=0", *USUAL)
    assert status == 0, err
    assert "20 images not judged, being among those of the calibration (20 images of synthetic holdout)" in out
    assert "intervals calibrated on" not in out


@pytest.mark.slow
def test_another_file_and_another_split(script: Script, ckpt: str, tmp_path: Path) -> None:
    typed = [f"ckpt={ckpt}", "split=test", "--output", "made/counter.pt", *USUAL]
    status, out, err = script(SCRIPT, *typed)
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines() if "count +-" in line] == ["50", "80", "90"]
    assert (tmp_path / "made" / "counter.pt").is_file()
    status, _, err = script(SCRIPT, *typed)
    assert status == 2
    assert "made/counter.pt: exists; remove it, or name another file with --output" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["ckpt=gone.pt"], "ckpt=gone.pt: no such file"),
        ([], "ckpt is not set: type ckpt=..."),
        (
            ["ckpt={ckpt}", "split=train"],
            "split=train: the counter was trained on these images; choose split=val, or another",
        ),
        (["ckpt={ckpt}", "max_images=5"], "split=holdout: has 5 images; a calibration needs at least 9"),
        (["ckpt={ckpt}", "output_dir=out"], "output_dir=out: cannot be set here; type --output FILE"),
        (["ckpt={ckpt}", "--output", "."], ".: is a folder; name a file with --output"),
        (["ckpt={ckpt}", "max_images=5", "--output", "new/counter.pt"], "split=holdout: has 5 images"),
        (["ckpt={ckpt}", "runtime.devices=2"], "a calibration takes 1"),
        (["ckpt={ckpt}", "level=0.9"], "level"),
        (["ckpt={ckpt}", "--level", "0.9"], "--level"),
    ],
)
def test_what_cannot_work_is_refused(typed: list[str], words: str, script: Script, ckpt: str, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    status, _, err = script(SCRIPT, *(text.format(ckpt=ckpt) for text in typed), *USUAL)
    assert status == 2
    assert words in err
    assert set(tmp_path.iterdir()) == before
