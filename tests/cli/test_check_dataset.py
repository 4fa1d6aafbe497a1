"""The audit as typed: report, numbers, pictures, exit status."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from data.folders import make_shanghaitech

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_dataset_is_reported_and_its_faults_set_the_status(run_command: Run, tmp_path: Path) -> None:
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
    broken = run_command("scripts/check_dataset.py", *typed, "--output", "elsewhere")
    assert broken.returncode == 1
    assert "1 of 4 images of train cannot be used" in broken.stdout
    assert json.loads((tmp_path / "elsewhere" / "report.json").read_text())["splits"]["train"]["usable"] == 3
    refused = run_command("train.py", *typed, "scale=smoke")
    assert refused.returncode == 2
    reason = next(line for line in broken.stdout.splitlines() if "IMG_3.jpg" in line)
    assert reason.strip() in refused.stderr


def test_what_cannot_be_audited_is_refused(run_command: Run, tmp_path: Path) -> None:
    nowhere = run_command("scripts/check_dataset.py", "dataset=sha", "data_root=nowhere")
    assert nowhere.returncode == 2
    assert "found no folder with" in nowhere.stderr
    misspelt = run_command("scripts/check_dataset.py", "dataset=shaa")
    assert misspelt.returncode == 2
    assert "did you mean sha?" in misspelt.stderr
    assert not (tmp_path / "audit" / "shaa").exists()
