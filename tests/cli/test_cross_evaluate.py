"""Counters evaluated on other data than they were trained on, as typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import Heads, make_shanghaitech, write_image, write_nwpu_json
from engine.test_checkpoint import write_checkpoint
from headcount.data.images import read_image
from headcount.engine import evaluate

ROOT = Path(__file__).resolve().parents[2]
CROSS = "scripts/cross_evaluate.py"
Script = Callable[..., tuple[int, str, str]]
PART_A: dict[str, Heads] = {"IMG_1": [(9.0, 9.0)] * 4, "IMG_2": []}
PART_B: dict[str, Heads] = {"IMG_1": [(3.0, 4.0)], "IMG_2": [(5.0, 5.0)] * 2, "IMG_3": []}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    make_shanghaitech(root / "part_A", {"train": PART_A, "test": PART_A})
    make_shanghaitech(root / "part_B", {"train": PART_B, "test": PART_B})
    return root


def untrained(tmp_path: Path, name: str, *overrides: str) -> str:
    """An untrained counter's checkpoint, its path from ``tmp_path``."""
    (tmp_path / name).mkdir()
    write_checkpoint(tmp_path / name, "model.width=8", *overrides)
    return f"{name}/best_mae.pt"


@pytest.mark.slow
def test_eval_counts_another_dataset_by_that_ones_own_rule(script: Script, data: Path, tmp_path: Path) -> None:
    """The counter's images had short sides of 64 px; those of part B get the 448 of dataset=shb."""
    ckpt = untrained(tmp_path, "run", "dataset=sha", "dataset.min_side=64")
    typed = [f"ckpt={ckpt}", "dataset=shb", "runtime=cpu", "runtime.workers=0", "dataset.cache_dir=cache"]
    status, out, err = script("eval.py", *typed, "eval.pictures=0", "data_root=data")
    assert status == 0, err
    assert "The counter was trained on sha, not on shb." in out
    metrics = json.loads((tmp_path / "run" / "eval" / "shb_test" / "metrics.json").read_text())
    assert (metrics["trained_on"], metrics["dataset"], metrics["split"]) == ("sha", "shb", "test")
    assert metrics["images"] == 3
    assert [tuple(read_image(p).shape) for p in (tmp_path / "cache").rglob("*.jpg")] == [(3, 448, 448)] * 3


@pytest.mark.slow
def test_eval_finds_another_dataset_where_it_is_said_to_be(script: Script, data: Path, tmp_path: Path) -> None:
    ckpt = untrained(tmp_path, "run", "dataset=sha", "dataset.min_side=64")
    data.rename(tmp_path / "elsewhere")
    typed = [f"ckpt={ckpt}", "dataset=shb", "dataset.min_side=64", "runtime=cpu", "runtime.workers=0"]
    assert script("eval.py", *typed, "eval.pictures=0", "dataset.root=elsewhere/part_B")[0] == 0
    status, _, err = script("eval.py", *typed, "data_root=data")
    assert status == 2
    assert "found no folder" in err
    status, _, err = script("eval.py", *typed, "data_root=elsewhere", "split=val")
    assert status == 2
    assert "split=val: shb has train, test" in err


@pytest.mark.slow
def test_other_images_of_ones_own_are_told_from_those_trained_on(script: Script, tmp_path: Path) -> None:
    """Both are dataset=custom; no word of a split that selected the checkpoint, which was one of other images."""
    for name in ("mine", "yours"):
        for k in range(4):
            write_image(tmp_path / name / f"{k}.png", seed=k)
            write_nwpu_json(tmp_path / name / f"{k}.json", [(9.0, 9.0)] * k)
    ckpt = untrained(tmp_path, "run", "dataset=custom", "dataset.root=mine", "dataset.min_side=64")
    typed = ["dataset=custom", "split=val", "dataset.min_side=64", "dataset.val_fraction=0.5", "runtime=cpu"]
    said = []
    for root in ("mine", "./mine", "yours"):
        status, out, err = script("eval.py", f"ckpt={ckpt}", *typed, f"dataset.root={root}", "eval.pictures=0")
        assert status == 0, err
        said.append(("trained on custom (mine), not on custom" in out, "This split selected" in out))
    assert said == [(False, True), (False, True), (True, False)]


@pytest.mark.slow
def test_every_counter_on_every_dataset(script: Script, data: Path, tmp_path: Path) -> None:
    first = untrained(tmp_path, "a", "dataset=sha", "dataset.min_side=64")
    second = untrained(tmp_path, "b", "dataset=shb", "dataset.min_side=64")
    status, out, err = script(
        *(CROSS, first, second, "--datasets", "sha", "shb", "data_root=data", "--output", "out"),
        *("runtime=cpu", "runtime.workers=0", "dataset.cache_dir=cache"),
    )
    assert status == 0, err
    assert "[4/4] shb tiny on shb test: MAE" in out
    plain = json.loads((tmp_path / "out" / "cross.json").read_text())
    cells = {
        (row["trained_on"], column["dataset"]): cell
        for row in plain["rows"]
        for column, cell in zip(plain["columns"], row["cells"], strict=True)
    }
    assert {at: (cell["own"], cell["images"]) for at, cell in cells.items()} == {
        ("sha", "sha"): (True, 2),
        ("sha", "shb"): (False, 3),
        ("shb", "sha"): (False, 2),
        ("shb", "shb"): (True, 3),
    }
    # A counter's own images are prepared as in its checkpoint (64 px), those of another dataset by its rule (448 px):
    # of equal weights, which count by area, the one sees far more people.
    assert cells["sha", "shb"]["mae"] > 10 * cells["shb", "shb"]["mae"]
    for (trained, dataset), cell in cells.items():
        folder = tmp_path / "out" / f"{1 if trained == 'sha' else 2}_{trained}_tiny" / f"{dataset}_test"
        assert json.loads((folder / "metrics.json").read_text())["mae"] == cell["mae"]
        assert f"{cell['mae']:.2f} / {cell['rmse']:.2f}" in out
    assert (tmp_path / "out" / "cross.png").stat().st_size > 5000
    assert not (tmp_path / "a" / "eval").exists()


@pytest.mark.parametrize("typed", [True, False], ids=["data_root=", "HEADCOUNT_DATA"])
def test_data_that_moved_since_training_are_found(
    typed: bool, script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ckpt = untrained(tmp_path, "a", "dataset=sha", "dataset.min_side=64", f"dataset.root={tmp_path / 'gone'}")
    where = ["data_root=data"] if typed else []
    if not typed:
        monkeypatch.setenv("HEADCOUNT_DATA", "data")
    status, _, err = script(CROSS, ckpt, "--datasets", "sha", *where, "runtime=cpu", "runtime.workers=0")
    assert status == 0, err


@pytest.mark.slow
def test_what_fails_is_listed_and_the_rest_goes_on(
    script: Script, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that are lost, a checkpoint that is none, and a fault nobody expected."""
    good = untrained(tmp_path, "a", "dataset=sha", "dataset.min_side=64")
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    (data / "part_A" / "test_data" / "images" / "IMG_2.jpg").unlink()
    settings = ["max_images=2", "runtime=cpu", "runtime.workers=0", "dataset.cache_dir=cache", "dataset.min_side=64"]
    status, out, err = script(CROSS, good, "bad.pt", "--datasets", "sha", "shb", *settings, "data_root=data")
    assert status == 1
    assert "[1/4] sha tiny on sha test: failed" in out
    assert "[2/4] sha tiny on shb test: MAE" in out
    failures = err[err.index("failed:") :]
    assert "IMG_2.jpg" in failures
    assert "bad.pt on sha test; bad.pt on shb test: ckpt=bad.pt: not a checkpoint of headcount" in failures
    page = (tmp_path / "cross" / "cross.md").read_text()
    assert page.count("failed") == 3  # in the table
    assert "Images: shb test 2." in page

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(evaluate, "evaluate", broken)
    status, _, err = script(CROSS, good, "--datasets", "shb", *settings, "data_root=data")
    assert status == 1
    assert "sha tiny on shb test: RuntimeError: out of luck" in err


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["gone.pt", "--datasets", "sha"], "ckpt=gone.pt: no such file"),
        (["x.pt", "--datasets", "shc"], "dataset=shc: no such choice; allowed are"),
        (["x.pt", "--datasets", "sha", "max_images=0"], "max_images=0: must be from 1 to "),
        (["x.pt", "--datasets", "sha", "dataset=shb"], "dataset=shb: cannot be set here; type --datasets"),
        (["x.pt", "--datasets", "sha", "sha:test"], "--datasets sha sha:test: one is named twice"),
        (["x.pt", "./x.pt", "--datasets", "sha"], "a checkpoint is named twice"),
        (["x.pt", "--datasets", "sha:val"], "sha has train, test; type sha:test"),
        (["x.pt", "--datasets", "sha", "nwpu"], "are not public; nwpu has train, val; type nwpu:val"),
        (["x.pt", "--datasets", "sha", "runtime.devices=2"], "runtime.devices=2: one evaluation after the other"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_evaluated(
    typed: list[str], said: str, script: Script, tmp_path: Path
) -> None:
    (tmp_path / "x.pt").write_bytes(b"")
    status, _, err = script(CROSS, *typed)
    assert status == 2
    assert said in err
    assert not (tmp_path / "cross").exists()
