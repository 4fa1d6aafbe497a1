"""Training and evaluation as typed, on folders in the layout of published datasets and on one's own."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import make_qnrf, make_ucf_cc_50, write_image, write_nwpu_json

Run = Callable[..., subprocess.CompletedProcess[str]]
CLIP = [
    *("model=clip_rn50", "model.weights=none", "model.width=16", "model.layers=[1,1,1,1]", "model.embed_dim=32"),
    *("model.text_width=32", "model.text_heads=2", "model.text_layers=1"),
]
SMALL = ["scale=smoke", "runtime=cpu", "run_name=run", "dataset.cache_dir=cache", "dataset.min_side=256"]


@pytest.mark.slow
def test_qnrf_is_trained_on_and_evaluated(run_command: Run, tmp_path: Path) -> None:
    images = {
        split: {f"img_{k:04d}": [(10.5 * j, 7.25 * j) for j in range(1, 2 + 3 * k)] for k in range(1, n + 1)}
        for split, n in (("Train", 4), ("Test", 3))
    }
    make_qnrf(tmp_path / "data" / "UCF-QNRF_ECCV18", images, size=300)
    (tmp_path / "data" / "UCF-QNRF_ECCV18" / "Train" / "img_0004_ann.mat").unlink()
    typed = ["dataset=qnrf", *CLIP, *SMALL, "data_root=data"]
    refused = run_command("train.py", *typed)
    assert refused.returncode == 2
    assert "img_0004.jpg has no annotation" in refused.stderr
    trained = run_command("train.py", *typed, "dataset.skip_bad=true")
    assert trained.returncode == 0, trained.stderr
    assert "1 of 4 images are left out" in trained.stderr

    run = tmp_path / "checkpoints" / "qnrf" / "run" / "seed1"
    evaluated = run_command("eval.py", f"ckpt={run}/best_mae.pt", "runtime=cpu", HEADCOUNT_DATA=str(tmp_path / "data"))
    assert evaluated.returncode == 0, evaluated.stderr
    assert "This split selected the checkpoint" in evaluated.stdout
    folder = run / "eval" / "qnrf_test"
    rows = list(csv.DictReader((folder / "counts.csv").read_text().splitlines()))
    assert {row["image"]: int(row["true"]) for row in rows} == {n: len(p) for n, p in images["Test"].items()}
    assert json.loads((folder / "metrics.json").read_text())["images"] == 3


@pytest.mark.slow
def test_ones_own_images_are_found_again_when_evaluated(run_command: Run, tmp_path: Path) -> None:
    """Wherever published datasets lie; and after a move, if its new place is typed."""
    for k in range(6):
        write_image(tmp_path / "mine" / "images" / f"photo {k}.png", width=300, height=260, seed=k)
        write_nwpu_json(tmp_path / "mine" / "points" / f"photo {k}.json", [(20.0 * j, 9.0) for j in range(k)])
    published = {"HEADCOUNT_DATA": str(tmp_path)}
    trained = run_command("train.py", "dataset=custom", "dataset.root=mine", "model.width=8", *SMALL, **published)
    assert trained.returncode == 0, trained.stderr
    ckpt = "ckpt=checkpoints/custom/run/seed1/best_mae.pt"
    evaluated = run_command("eval.py", ckpt, "runtime=cpu", **published)
    assert evaluated.returncode == 0, evaluated.stderr
    (tmp_path / "mine").rename(tmp_path / "moved")
    lost = run_command("eval.py", ckpt, "runtime=cpu", **published)
    assert lost.returncode == 2
    assert "there is no folder mine" in lost.stderr
    found = run_command("eval.py", ckpt, "runtime=cpu", "data_root=moved", **published)
    assert found.returncode == 0, found.stderr
    texts = [[line for line in run.stdout.splitlines() if "/eval/" not in line] for run in (found, evaluated)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_one_command_trains_all_folds_and_gives_their_mean(run_command: Run, tmp_path: Path) -> None:
    make_ucf_cc_50(tmp_path / "data" / "UCF_CC_50")
    settings = [s for s in SMALL if not s.startswith("run_name")]
    folds = ["dataset=ucf_cc_50", "dataset.fold=1,2,3,4,5", "data_root=data", "dataset.min_side=64", "epochs=1"]
    done = run_command("train.py", "-m", "model.width=8", *settings, *folds)
    assert done.returncode == 0, done.stderr
    *each, mean = [line.split() for line in done.stdout.splitlines()[1:] if not line.startswith("  ")]
    assert [row[0] for row in each] == [f"dataset.fold={k}" for k in range(1, 6)]
    assert mean[:3] == ["mean", "of", "5"]
    assert float(mean[3]) == pytest.approx(sum(float(row[1]) for row in each) / 5, abs=0.01)
