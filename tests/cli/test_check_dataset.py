"""The audit as typed: report, numbers, pictures, exit status."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data.folders import make_shanghaitech, write_image
from headcount.cli import check_dataset

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_a_dataset_is_reported_and_its_faults_set_the_status(
    run_command: Run, script: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    train = {f"IMG_{k}": [(3.0 * j, 5.0 * j) for j in range(k)] for k in range(1, 5)}
    root = tmp_path / "data" / "part_A"
    make_shanghaitech(root, {"train": train, "test": {"IMG_9": [(2.0, 2.0)] * 20}})
    typed = ["dataset=sha", "data_root=data", "dataset.min_side=64", "bins.block_size=16", "bins=coarse"]
    sound = run_command("scripts/check_dataset.py", *typed)
    assert sound.returncode == 0, sound.stderr
    folder = tmp_path / "audit" / "sha"
    assert (folder / "report.md").read_text() in sound.stdout
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["splits"]["train"]["heads"] == 10
    assert numbers["splits"]["test"]["duplicates"] == 19
    assert sum(numbers["blocks"]["16"].values()) == 4 * (64 // 16) ** 2
    assert numbers["bins"]["m"] == 16
    assert sum(numbers["bins"]["shares"]) == 1
    assert "Blocks of 16 px" in sound.stdout
    for name in ("histograms.png", "blocks.png", "contact_sheet.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 300

    (root / "train_data" / "images" / "IMG_3.jpg").write_bytes(b"no picture")
    status, broken, _ = script("scripts/check_dataset.py", *typed, "--output", "elsewhere")
    assert status == 1
    assert "1 of 4 images of train cannot be used" in broken
    assert json.loads((tmp_path / "elsewhere" / "report.json").read_text())["splits"]["train"]["usable"] == 3
    status, _, refused = script("train.py", *typed, "scale=smoke")
    assert status == 2
    reason = next(line for line in broken.splitlines() if "IMG_3.jpg" in line)
    assert reason.strip() in refused


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script in this process, from a folder of its own; gives the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADCOUNT_DATA", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            check_dataset.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.mark.slow
def test_faults_set_the_status_and_those_left_out_do_not(
    check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data" / "part_A"
    heads = [(2.0, 2.0), (2.0, 2.0), (70.0, 2.0)]
    make_shanghaitech(root, {"train": {"IMG_1": heads, "IMG_2": []}, "test": {"IMG_9": heads}})
    typed = ["dataset=sha", "data_root=data", "dataset.min_side=64"]
    assert check(*typed) == 0
    assert "audit/sha/report.json" in capsys.readouterr().out
    (root / "train_data" / "images" / "IMG_2.jpg").unlink()
    assert check(*typed) == 1
    assert "annotation" in (said := capsys.readouterr().out)
    assert "has no image" in said
    numbers = json.loads((tmp_path / "audit" / "sha" / "report.json").read_text())
    assert numbers["splits"]["train"]["faults"]["no_image"] == 1
    assert numbers["splits"]["train"]["outside"] == 1
    assert check(*typed, "dataset.skip_bad=true") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "bins", [["bins=none", "model.head=regression", "loss=dm"], ["bins=blockwise"], ["bins=dynamic"]]
)
def test_drawn_crowds_have_every_picture_whatever_the_bins(
    check: Callable[..., int], tmp_path: Path, bins: list[str]
) -> None:
    few = [f"dataset.{split}_images=2" for split in ("train", "val", "test")]
    assert check("dataset=synthetic", *few, *bins, "--output", "found") == 0
    assert {p.name for p in (tmp_path / "found").iterdir()} == {
        *("report.md", "report.json", "histograms.png", "blocks.png", "contact_sheet.png")
    }
    numbers = json.loads((tmp_path / "found" / "report.json").read_text())
    assert (numbers["bins"] is None) == (bins[0] == "bins=none")


def test_what_cannot_be_audited_is_refused(
    check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("dataset=sha", "data_root=nowhere") == 2
    assert "found no folder with" in capsys.readouterr().err
    assert check("dataset=shaa") == 2
    assert "did you mean sha?" in capsys.readouterr().err
    assert not (tmp_path / "audit" / "shaa").exists()


@pytest.mark.slow
def test_reports_of_two_folders_are_two(check: Callable[..., int], tmp_path: Path) -> None:
    for root in ("one/crowd", "two/crowd"):
        for name in ("a", "b", "c"):
            write_image(tmp_path / root / f"{name}.png")
            (tmp_path / root / f"{name}.csv").write_text("5,5\n")
        check("dataset=custom", "dataset.min_side=32", f"dataset.root={root}")
    assert len(list((tmp_path / "audit").glob("custom_crowd_*/report.md"))) == 2
