"""A table whose runs are judged on images that selected none of their checkpoints."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from headcount.cli import reproduce_table
from headcount.report.tables import Selection, judge_run, table_picture
from headcount.runs import read_run
from report.test_diagnostics import assert_legible
from report.test_tables import fill, latex, markdown
from test_runs import write_run

HEADS = {"ebc": "EBC", "zip": "ZIP", "blockwise": "Blockwise", "dm": "DM regression"}
# The held-out images select epoch 4, the test images would select epoch 8.
HELD_OUT = {4: 50.0, 8: 60.0, 10: 55.0}


def write_evaluation(
    run: Path, epoch: int, errors: Sequence[float], *, calibrated: bool = False, seed: int = 1
) -> Path:
    """The evaluation on the test images of a checkpoint with these errors, as far as a table reads it."""
    folder = run / "eval" / f"sha_test_epoch_{epoch:04d}{'_calibrated' if calibrated else ''}"
    folder.mkdir(parents=True)
    with (folder / "counts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "error"])
        writer.writerows([f"IMG_{k}", error] for k, error in enumerate(errors))
    levels = [
        {"level": level, "coverage": {"share": share}, "width": 100 * level, "relative_width": level, "score": 300.0}
        for level, share in ((0.5, 0.4), (0.9, 0.8))
    ]
    own = {"crps": 20.0, "outside": 0, "levels": levels}
    intervals = {"own": own, "calibrated": {**own, "outside": 3} if calibrated else None}
    facts = {"epoch": epoch, "seed": seed, "intervals": intervals}
    (folder / "metrics.json").write_text(json.dumps(facts))
    return folder


def run_of(root: Path, head: str, seed: int = 1) -> Path:
    folder = root / "sha" / f"heads-{head}" / f"seed{seed}"
    return write_run(folder, f"experiment=heads/{head}", f"seed={seed}", maes=HELD_OUT, epochs=10)


def judged_run(root: Path, head: str, error: float, seed: int = 1) -> Path:
    """A run whose last checkpoint errs by this on each image, that of epoch 8 by 2 less, that of epoch 4 by 6 more."""
    folder = run_of(root, head, seed)
    write_evaluation(folder, 4, [error + 6, -error - 6, error + 6], seed=seed)
    write_evaluation(folder, 8, [error - 2, -error + 2, error - 2], seed=seed)
    write_evaluation(folder, 10, [error, -error, error], calibrated=True, seed=seed)
    return folder


def row(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {start} |"))


@pytest.mark.slow
def test_errors_by_selection_differences_and_intervals(tmp_path: Path, figures: list[Figure]) -> None:
    for seed in (1, 2, 3):
        judged_run(tmp_path, "ebc", 20 + seed, seed)  # 21, 22, 23
        judged_run(tmp_path, "zip", 15 + seed, seed)
    judged_run(tmp_path, "dm", 30)
    filled = fill("heads", [], tmp_path, seeds=(1, 2, 3))
    page = markdown(filled)
    heading = "| | the last epoch | selected on held-out images | best on the test images |"
    assert heading in page
    assert (
        row(page, "EBC")
        == "| EBC | 22.0 +- 1.0 / 22.0 +- 1.0 | 28.0 +- 1.0 / 28.0 +- 1.0 | 20.0 +- 1.0 / 20.0 +- 1.0 |"
    )
    assert "| **17.0 +- 1.0** / 17.0 +- 1.0 | **23.0 +- 1.0**" in row(page, "ZIP")
    assert row(page, "Blockwise") == "| Blockwise | missing | missing | missing |"
    assert row(page, "EBC over ZIP").count("+5.0 [+5.0, +5.0], worse") == 3
    assert row(page, "ZIP over DM regression").count("-13.0 [-13.0, -13.0], undecided (one seed)") == 3
    assert "Blockwise over" not in page
    assert row(page, "EBC | calibrated") == (
        "| EBC | calibrated | 3 | 40.0 +- 0.0 | 80.0 +- 0.0 | 90.0 +- 0.0 | 0.90 +- 0.00 | 300.0 +- 0.0 | 20.0 +- 0.0 "
        "| 3.0 +- 0.0 |"
    )
    assert "Missing: 5 runs" in page
    assert "Not evaluated" not in page
    assert "Published" not in page
    written = latex(filled)
    assert r"EBC & 22.0 $\pm$ 1.0 / 22.0 $\pm$ 1.0 &" in written
    assert r"\textbf{17.0 $\pm$ 1.0}" in written
    assert r"\label{tab:heads}" in written
    table_picture(filled, tmp_path / "t.png")
    assert_legible(figures[-1])
    (axis,) = figures[-1].axes
    heights = [bar.get_height() for bar in axis.patches]
    assert heights == pytest.approx([22, 17, 30, 28, 23, 36, 20, 15, 28])


def test_root_mean_squared_error_and_selections(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "ebc")
    write_evaluation(folder, 4, [3.0, -4.0])
    write_evaluation(folder, 10, [6.0, -8.0])
    judged = judge_run(read_run(folder), "test")
    last = judged.chosen(Selection.last)
    assert last is not None
    assert (last.mae, last.rmse) == (7.0, pytest.approx(50**0.5))
    assert judged.chosen(Selection.held_out) == judged.checkpoints[4]
    # The best on the test images is not known before all are evaluated.
    assert judged.chosen(Selection.judging) is None
    assert list(judged.missing) == [8]
    assert "epoch_0008.pt split=test writes it" in judged.missing[8]
    page = markdown(fill("heads", [], tmp_path))
    assert row(page, "EBC") == "| EBC | 7.0 / 7.1 | 3.5 / 3.5 | not evaluated |"
    assert "## Not evaluated on the test images" in page


def test_evaluations_of_other_checkpoints_or_damaged_ones_do_not_count(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "ebc")
    write_evaluation(folder, 4, [1.0], seed=2)
    (write_evaluation(folder, 8, [1.0]) / "metrics.json").write_text("{")
    write_evaluation(folder, 10, [])
    missing = judge_run(read_run(folder), "test").missing
    assert "is of another checkpoint: epoch and seed are [4, 2], not [4, 1]" in missing[4]
    assert "cannot be read" in missing[8]
    assert "holds no images" in missing[10]


def test_what_is_missing_is_calibrated_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_of(tmp_path, "ebc")
    write_evaluation(folder, 8, [1.0])
    started: list[tuple[str, ...]] = []

    def start(*typed: str) -> bool:
        started.append(typed)
        if typed[0].endswith("calibrate.py"):
            (folder / "epoch_0010_calibrated.pt").touch()
        return "epoch_0004" not in typed[1]

    monkeypatch.setattr(reproduce_table, "run_python", start)
    filled = fill("heads", ["dataset.root=D"], tmp_path)
    failed = reproduce_table.evaluate_runs(filled)
    last, copy = folder / "epoch_0010.pt", folder / "epoch_0010_calibrated.pt"
    assert started == [
        ("eval.py", f"ckpt={folder / 'epoch_0004.pt'}", "split=test", "eval.pictures=0", "dataset.root=D"),
        ("scripts/calibrate.py", f"ckpt={last}", "--output", str(copy), "dataset.root=D"),
        ("eval.py", f"ckpt={copy}", "split=test", "eval.pictures=0", "dataset.root=D"),
    ]
    assert failed == [f"the evaluation of {folder / 'epoch_0004.pt'}"]


@pytest.mark.slow
def test_the_heads_differ_in_nothing_else(tmp_path: Path) -> None:
    cells = fill("heads", [], tmp_path).cells
    assert [label for label, _ in cells] == list(HEADS.values())
    settings = [cell.settings for cell in cells.values()]
    ours = ("model.head.", "kinds.", "bins.", "loss.")
    shared = [{k: v for k, v in one.items() if not k.startswith(ours)} for one in settings]
    assert all(one == shared[0] for one in shared)
    assert {one["bins.block_size"] for one in settings} == {8}
