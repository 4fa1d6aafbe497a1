"""A table whose runs are judged on images that selected none of their checkpoints in training."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from headcount.cli import reproduce_table
from headcount.config import ConfigError
from headcount.report.tables import Selection, judge_run, table_picture
from headcount.report.tables.kept import why_not_judged
from headcount.runs import RunRecord, read_run
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
    mae = sum(map(abs, errors)) / len(errors) if errors else 0.0
    facts = {"epoch": epoch, "seed": seed, "intervals": intervals, "images": len(errors), "mae": mae}
    (folder / "metrics.json").write_text(json.dumps(facts))
    return folder


def run_of(root: Path, head: str, seed: int = 1, *settings: str, kept: bool = True) -> Path:
    folder = root / "sha" / f"heads-{head}" / f"seed{seed}"
    write_run(folder, f"experiment=heads/{head}", f"seed={seed}", *settings, maes=HELD_OUT, epochs=10)
    for epoch in HELD_OUT if kept else ():
        (folder / f"epoch_{epoch:04d}.pt").touch()
    return folder


def set_facts(evaluation: Path, **changed: object) -> None:
    file = evaluation / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


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
    # The images that chose the checkpoints decide nothing; and only the seeds that both have are compared.
    worse = "+5.0 [+5.0, +5.0], worse"
    assert row(page, "EBC over ZIP") == f"| EBC over ZIP | {worse} | {worse} | +5.0 |"
    one = "-14.0 [-14.0, -14.0], undecided (one seed), seed 1 only"
    assert row(page, "ZIP over DM regression") == (f"| ZIP over DM regression | {one} | {one} | -14.0, seed 1 only |")
    assert "Of the best on the test images, the difference only" in page
    assert "Blockwise over" not in page
    assert row(page, "EBC | calibrated") == (
        "| EBC | calibrated | 3 | 40.0 +- 0.0 | 80.0 +- 0.0 | 90.0 +- 0.0 | 0.90 +- 0.00 | 300.0 +- 0.0 | 20.0 +- 0.0 "
        "| 3.0 +- 0.0 |"
    )
    assert "mean of width / true count at 90 %" in page
    assert "images unlike the calibration |" in page
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
    assert judged.missing[8].count("python ") == 1
    page = markdown(fill("heads", [], tmp_path))
    assert row(page, "EBC") == "| EBC | 7.0 / 7.1 | 3.5 / 3.5 | not evaluated |"
    assert "## Not evaluated on the test images" in page


def test_evaluations_of_other_checkpoints_or_damaged_ones_do_not_count(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "ebc")
    write_evaluation(folder, 4, [1.0], seed=2)
    (write_evaluation(folder, 8, [1.0]) / "metrics.json").write_text("{")
    empty = write_evaluation(folder, 10, [])
    missing = judge_run(read_run(folder), "test").missing
    assert "is of another checkpoint: epoch and seed are [4, 2], not [4, 1]" in missing[4]
    assert "cannot be read" in missing[8]
    assert "holds no images" in missing[10]
    shutil.rmtree(empty.parent)
    (folder / "run.json").write_text(json.dumps({"commits": ["abc"]}))
    set_facts(write_evaluation(folder, 4, [1.0, 3.0]), images=3)
    set_facts(write_evaluation(folder, 8, [1.0, 3.0]), mae=2.1)
    set_facts(write_evaluation(folder, 10, [1.0, 3.0]), commit="def")
    missing = judge_run(read_run(folder), "test").missing
    assert "counts.csv holds 2 of the 3 images of metrics.json" in missing[4]
    assert "counts.csv has MAE 2.00, and metrics.json 2.10" in missing[8]
    assert "is of another checkpoint, trained at commit def" in missing[10]
    set_facts(folder / "eval" / "sha_test_epoch_0010", commit="abc", split="val")
    assert "is of the val images, not of the test images" in judge_run(read_run(folder), "test").missing[10]


def test_evaluations_of_other_images_or_of_the_same_weights_twice_do_not_count(tmp_path: Path) -> None:
    judged_run(tmp_path, "ebc", 20.0)
    folder = judged_run(tmp_path, "zip", 30.0) / "eval"
    page = markdown(fill("heads", [], tmp_path))
    assert "Not evaluated" not in page.split("## On the images that select")[0]
    shutil.rmtree(folder / "sha_test_epoch_0004")
    write_evaluation(folder.parent, 4, [1.0, 2.0])
    for epoch in (8, 10):
        set_facts(next(folder.glob(f"sha_test_epoch_{epoch:04d}*")), weights="same")
    page = markdown(fill("heads", [], tmp_path))
    assert row(page, "ZIP") == "| ZIP | not evaluated | not evaluated | not evaluated |"
    assert "sha_test_epoch_0004 is of other images than" in page
    assert "sha_test_epoch_0010_calibrated is of another checkpoint: it has the weights of" in page
    # As many images of the same names, with other true counts.
    for head, digest in (("ebc", "x"), ("zip", "y")):
        for evaluation in (tmp_path / "sha" / f"heads-{head}" / "seed1" / "eval").iterdir():
            set_facts(evaluation, images_digest=digest, weights=None)
    assert markdown(fill("heads", [], tmp_path)).count("is of other images than") == 3


def test_a_run_without_evaluations_has_no_checkpoint_of_any_selection(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "experiment=heads/ebc", epochs=1))
    judged = judge_run(run, "test")
    assert [judged.chosen(selection) for selection in Selection] == [None, None, None]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            "dataset.holdout=0",
            r"^heads/ebc: dataset\.holdout=0: the test images would select the checkpoints that",
        ),
        ("early_stopping=2", r"^heads/ebc: early_stopping=2: the images that select would decide which epoch is the"),
        ("keep=best", r"^heads/ebc: keep=best: the table judges every evaluated checkpoint; leave it out"),
    ],
)
def test_settings_that_let_other_images_choose_are_refused(typed: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        fill("heads", [typed], tmp_path)


def test_runs_that_cannot_be_judged_are_refused(tmp_path: Path) -> None:
    selected = run_of(tmp_path, "ebc")
    metrics = selected / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"val"', '"test"'))
    gone = run_of(tmp_path, "zip", 1, "keep=best", kept=False)
    write_evaluation(gone, 4, [1.0])
    filled = fill("heads", [], tmp_path)
    assert [cell.runs for cell in filled.cells.values()] == [{}] * 4
    (told,) = filled.cells["EBC", "SHA"].refused
    assert told == f"{selected}: was selected on the test images, which judge here"
    (told,) = filled.cells["ZIP", "SHA"].refused
    assert told == (
        f"{gone}: has no checkpoint of epochs 8, 10 left to evaluate (keep=best); train with keep=all, under another "
        "run_name= if this run stays"
    )


def test_a_run_that_stopped_early_has_no_last_epoch_of_its_own(tmp_path: Path) -> None:
    config = read_run(run_of(tmp_path, "ebc")).config
    config.epochs = 20
    metrics = [{"epoch": 4, "eval/mae": 1.0, "eval/split": "holdout"}, {"epoch": 10}]
    reason = why_not_judged(RunRecord(tmp_path, config, metrics), "test")
    assert reason == "stopped early, after epoch 10 of 20, as the images that select decided"


def test_changed_settings_of_a_table_without_published_numbers_are_said_as_such(tmp_path: Path) -> None:
    changed = fill("heads", ["optim.lr=0.1"], tmp_path)
    page = markdown(changed)
    assert "Changed settings: optim.lr 0.1 for " in page
    assert "paper" not in page
    assert "published" not in latex(changed)


def test_intervals_at_any_level_and_widths_of_zero_are_shown(tmp_path: Path) -> None:
    for seed, levels in ((1, (0.9,)), (2, (0.5, 0.9, 0.95))):
        evaluation = judged_run(tmp_path, "ebc", 20.0, seed) / "eval" / "sha_test_epoch_0010_calibrated"
        of = {"coverage": {"share": 0.5}, "width": 0.0, "relative_width": 0.0, "score": 1.0}
        own = {"crps": 20.0, "outside": 0, "levels": [{"level": level, **of} for level in levels]}
        set_facts(evaluation, intervals={"own": own, "calibrated": None})
    page = markdown(fill("heads", [], tmp_path, seeds=(1, 2)))
    assert "| covered at 50 % | covered at 90 % | covered at 95 % |" in page
    assert row(page, "EBC | own") == (
        "| EBC | own | 2 | 50.0 | 50.0 +- 0.0 | 50.0 | 0.0 +- 0.0 | 0.00 +- 0.00 | 1.0 +- 0.0 | 20.0 +- 0.0 | - |"
    )


def test_the_missing_calibrated_copy_is_made_before_it_is_evaluated(tmp_path: Path) -> None:
    folder = run_of(tmp_path, "ebc")
    last, copy = folder / "epoch_0010.pt", folder / "epoch_0010_calibrated.pt"
    evaluated = f"python eval.py ckpt={copy} split=test"
    told = judge_run(read_run(folder), "test").missing[10]
    assert f"is missing; python scripts/calibrate.py ckpt={last} --output {copy}, and then {evaluated}, write" in told
    copy.touch()
    assert judge_run(read_run(folder), "test").missing[10].endswith(f"is missing; {evaluated} writes it")


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
