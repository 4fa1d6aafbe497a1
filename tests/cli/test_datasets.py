"""Training and evaluation as typed, on folders in the layout of published datasets and on one's own."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import make_qnrf, make_ucf_cc_50, write_image, write_nwpu_json

Script = Callable[..., tuple[int, str, str]]
CLIP = [
    *("model=clip_rn50", "model.weights=none", "model.width=16", "model.layers=[1,1,1,1]", "model.embed_dim=32"),
    *("model.text_width=32", "model.text_heads=2", "model.text_layers=1"),
]
SMALL = ["scale=smoke", "runtime=cpu", "run_name=run", "dataset.cache_dir=cache", "dataset.min_side=256"]


@pytest.mark.slow
def test_qnrf_is_trained_on_and_evaluated(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {
        split: {f"img_{k:04d}": [(10.5 * j, 7.25 * j) for j in range(1, 2 + 3 * k)] for k in range(1, n + 1)}
        for split, n in (("Train", 4), ("Test", 3))
    }
    make_qnrf(tmp_path / "data" / "UCF-QNRF_ECCV18", images, size=300)
    (tmp_path / "data" / "UCF-QNRF_ECCV18" / "Train" / "img_0004_ann.mat").unlink()
    typed = ["dataset=qnrf", *CLIP, *SMALL, "data_root=data"]
    status, _, told = script("train.py", *typed)
    assert status == 2
    assert "img_0004.jpg has no annotation" in told
    status, _, told = script("train.py", *typed, "dataset.skip_bad=true")
    assert status == 0, told
    assert "1 of 4 images are left out" in told

    run = tmp_path / "checkpoints" / "qnrf" / "run" / "seed1"
    monkeypatch.setenv("HEADCOUNT_DATA", str(tmp_path / "data"))
    status, out, told = script("eval.py", f"ckpt={run}/best_mae.pt", "runtime=cpu")
    assert status == 0, told
    assert "This split selected the checkpoint" in out
    folder = run / "eval" / "qnrf_test"
    rows = list(csv.DictReader((folder / "counts.csv").read_text().splitlines()))
    assert {row["image"]: int(row["true"]) for row in rows} == {n: len(p) for n, p in images["Test"].items()}
    assert json.loads((folder / "metrics.json").read_text())["images"] == 3


@pytest.mark.slow
def test_ones_own_images_are_found_again_when_evaluated(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever published datasets lie; and after a move, if its new place is typed."""
    for k in range(6):
        write_image(tmp_path / "mine" / "images" / f"photo {k}.png", width=300, height=260, seed=k)
        write_nwpu_json(tmp_path / "mine" / "points" / f"photo {k}.json", [(20.0 * j, 9.0) for j in range(k)])
    monkeypatch.setenv("HEADCOUNT_DATA", str(tmp_path))
    status, _, told = script("train.py", "dataset=custom", "dataset.root=mine", "model.width=8", *SMALL)
    assert status == 0, told
    ckpt = "ckpt=checkpoints/custom/run/seed1/best_mae.pt"
    status, evaluated, told = script("eval.py", ckpt, "runtime=cpu")
    assert status == 0, told
    (tmp_path / "mine").rename(tmp_path / "moved")
    status, _, told = script("eval.py", ckpt, "runtime=cpu")
    assert status == 2
    assert "there is no folder mine" in told
    status, found, told = script("eval.py", ckpt, "runtime=cpu", "data_root=moved")
    assert status == 0, told
    texts = [[line for line in out.splitlines() if "/eval/" not in line] for out in (found, evaluated)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_one_command_trains_all_folds_and_gives_their_mean(script: Script, tmp_path: Path) -> None:
    make_ucf_cc_50(tmp_path / "data" / "UCF_CC_50")
    settings = [s for s in SMALL if not s.startswith("run_name")]
    folds = ["dataset=ucf_cc_50", "dataset.fold=1,2,3,4,5", "data_root=data", "dataset.min_side=64", "epochs=1"]
    status, out, told = script("train.py", "-m", "model.width=8", *settings, *folds)
    assert status == 0, told
    *each, mean = [line.split() for line in out.splitlines()[1:] if not line.startswith("  ")]
    assert [row[0] for row in each] == [f"dataset.fold={k}" for k in range(1, 6)]
    assert mean[:3] == ["mean", "of", "5"]
    assert float(mean[3]) == pytest.approx(sum(float(row[1]) for row in each) / 5, abs=0.01)
