"""The commands as a user types them: train, evaluate, sweep, two processes, kill and resume."""

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import headcount

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
Script = Callable[..., tuple[int, str, str]]
SMALL = ["scale=smoke", "dataset.width=96", "dataset.height=96", "model.width=8", "runtime.accelerator=cpu"]
FOLDER = "checkpoints/synthetic/tiny_fine_scale-smoke_dataset.height-96_dataset.width-96_model.width-8/seed1"


def test_train_evaluate_look_and_load(script: Script, tmp_path: Path) -> None:
    status, _, told = script("train.py", *SMALL)
    assert status == 0, told
    run = tmp_path / FOLDER
    assert f"next: python eval.py ckpt={FOLDER}/best_mae.pt" in told
    assert (run / "curves.png").stat().st_size > 1000

    status, out, told = script("eval.py", f"ckpt={FOLDER}/best_mae.pt", "max_images=3", "runtime=cpu")
    assert status == 0, told
    (report,) = (run / "eval").glob("synthetic_test_max_images-3_*")
    errors = json.loads((report / "metrics.json").read_text())
    rows = list(csv.DictReader((report / "counts.csv").read_text().splitlines()))
    assert len(rows) == errors["images"] == 3
    by_hand = sum(abs(float(r["predicted"]) - float(r["true"])) for r in rows) / 3
    assert errors["mae"] == pytest.approx(by_hand, abs=1e-3)
    assert errors["selected_on"] == "val"
    assert re.search(rf"MAE +{errors['mae']:.2f}\b", out)
    assert (report / "worst.png").stat().st_size > 10_000

    # The paths it printed are there, and the checkpoint counts a picture in three lines of Python.
    assert all((tmp_path / line.strip()).exists() for line in out.splitlines() if line.startswith("  check"))
    counter = headcount.load(run / "best_mae.pt")
    prediction = counter.predict(report / "worst.png")
    assert prediction.count == pytest.approx(float(prediction.block_counts.sum()), rel=1e-5)
    for file in ("best_mae.pt", "last.pt"):
        seen = headcount.load(run / file).seen
        assert (seen.shortest_side, seen.longest_side) == (96, 96)
        assert 0 < seen.most_heads <= 150
    assert "longer side" in prediction.note
    assert "far outside the training images: longer side" in repr(prediction)

    status, _, told = script("train.py", *SMALL)
    assert status == 2
    assert "already contains a run" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(run_command: Run, script: Script, tmp_path: Path) -> None:
    """The same checkpoint gives the same errors on one process and on two."""
    two = ["runtime=ddp", "runtime.devices=2"]
    trained = run_command("train.py", *SMALL, *two)
    assert trained.returncode == 0, trained.stderr
    records = [json.loads(line) for line in (tmp_path / FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]  # one process writes, not two
    # What two processes measured while training is what one measures of the checkpoint they wrote.
    best = min(r["eval/mae"] for r in records)
    status, _, told = script(
        "eval.py", f"ckpt={FOLDER}/best_mae.pt", "split=val", "max_images=3", "runtime=cpu", "output_dir=v"
    )
    assert status == 0, told
    assert json.loads((tmp_path / "v" / "metrics.json").read_text())["mae"] == pytest.approx(best, abs=1e-6)
    errors = []
    for processes in ([], two):
        # Five images on two processes: neither one left out nor one counted twice.
        done = run_command(
            "eval.py",
            f"ckpt={FOLDER}/last.pt",
            "max_images=5",
            "runtime.accelerator=cpu",
            f"output_dir=out{len(processes)}",
            *processes,
        )
        assert done.returncode == 0, done.stderr
        errors.append(json.loads((tmp_path / f"out{len(processes)}" / "metrics.json").read_text()))
    assert errors[0]["images"] == errors[1]["images"] == 5
    assert errors[0]["mae"] == pytest.approx(errors[1]["mae"], abs=1e-6)
    assert errors[0]["rmse"] == pytest.approx(errors[1]["rmse"], abs=1e-6)


@pytest.mark.slow
def test_a_sweep_keeps_its_runs_apart(script: Script, tmp_path: Path) -> None:
    status, out, told = script(
        "train.py", "-m", *SMALL, "bins=fine,coarse", "optim.lr=1e-3,2e-3", "epochs=1", "resume=true"
    )
    assert status == 0, told
    folders = sorted(
        str(f.parent.relative_to(tmp_path / "checkpoints" / "synthetic")) for f in tmp_path.rglob("last.pt")
    )
    assert len(folders) == 4
    assert ["optim.lr-0.002" in f for f in folders] == [False, True, False, True]
    assert folders[0].startswith("tiny_coarse")
    assert folders[2].startswith("tiny_fine")
    lines = [line.split() for line in out.splitlines() if line.startswith("bins=")]
    assert [line[:2] for line in lines] == [
        [f"bins={b}", f"optim.lr={lr}"] for b in ("fine", "coarse") for lr in ("0.001", "0.002")
    ]
    record = json.loads((tmp_path / "checkpoints" / "synthetic" / folders[2] / "metrics.jsonl").read_text())
    assert float(lines[0][2]) == pytest.approx(record["eval/mae"], abs=0.01)


@pytest.mark.slow
def test_a_failed_job_of_a_sweep_is_listed_and_the_others_go_on(script: Script, tmp_path: Path) -> None:
    assert script("train.py", *SMALL, "epochs=1")[0] == 0
    status, _, told = script("train.py", "-m", *SMALL, "epochs=1", "seed=1,2")
    assert status == 2
    assert "failed:\n" in told
    assert "seed=1" in told.split("failed:")[1]
    assert len(list(tmp_path.rglob("last.pt"))) == 2


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_are_listed_too(run_command: Run, tmp_path: Path) -> None:
    """As on a cluster: submitit's local executor stands for SLURM's."""
    typed = ["train.py", "-m", "hydra/launcher=submitit_local", *SMALL, "epochs=1", "optim.max_grad_norm=null"]
    done = run_command(*typed, "optim.lr=1e30,1e-3,2e-3", "resume=true")
    assert done.returncode == 2
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("optim.lr=")]
    assert lines == ["optim.lr=0.001", "optim.lr=0.002"]
    assert "optim.lr=1e+30" in done.stderr.split("failed:")[1]
    assert len(list(tmp_path.rglob("best_mae.pt"))) == 2
    again = run_command(*typed, "optim.lr=1e-3,2e-3", "resume=true")  # goes on where it was: nothing is left to do
    assert again.returncode == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if line.startswith("optim.lr=")] == [
        line for line in done.stdout.splitlines() if line.startswith("optim.lr=")
    ]


@pytest.mark.slow
def test_any_fault_of_a_job_leaves_the_rest_of_a_sweep_running(script: Script, tmp_path: Path) -> None:
    """Not only settings: a loss that explodes, too."""
    status, _, told = script("train.py", "-m", *SMALL, "epochs=1", "optim.lr=1e30,1e-3", "optim.max_grad_norm=null")
    assert status == 2
    assert "train.py: epoch 1, step 2: the loss became" in told
    assert "Traceback" not in told
    assert "optim.lr=1e+30" in told.split("failed:")[1]
    assert "optim.lr=0.001" not in told.split("failed:")[1]
    assert len(list(tmp_path.rglob("best_mae.pt"))) == 1


@pytest.mark.slow
def test_a_dry_run_of_a_dataset_that_is_not_there_says_where_to_get_it(script: Script, tmp_path: Path) -> None:
    status, _, told = script("train.py", "dataset=sha", "dry_run=true", f"data_root={tmp_path}")
    assert status == 2
    assert "Traceback" not in told
    for words in ("ShanghaiTech", str(tmp_path), "http"):
        assert words in told


def test_a_missing_checkpoint_is_refused(script: Script) -> None:
    status, _, told = script("eval.py", "ckpt=nowhere.pt")
    assert status == 2
    assert told.strip() == "eval.py: ckpt=nowhere.pt: no such file"
