"""A table as typed: what is there, what misses, and running it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from headcount.cli import reproduce_table
from headcount.report.tables import paper
from test_runs import write_run

Run = Callable[..., subprocess.CompletedProcess[str]]
TYPED = ["table=3", "dataset=synthetic", "model=tiny", "model.width=8", "recipe=short", "scale=smoke"]
TYPED += ["dataset.width=96", "dataset.height=96"]


@pytest.mark.slow
def test_what_misses_is_run_and_then_there(
    run_command: Run, script: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    others = ["blockwise", "enhanced_bins", "label_correction", "lambda_001", "lambda_01", "lambda_2"]
    for name in others:
        folder = write_run(
            *(tmp_path / "checkpoints" / "synthetic" / name / "seed1", f"experiment=table3/{name}", *TYPED[1:]),
            maes={1: 30.0, 2: 20.0},
            epochs=2,
        )
        counts = folder / "eval" / "synthetic_val" / "counts.csv"
        counts.parent.mkdir(parents=True)
        counts.write_text("image,error\na,20\n")
    status, looked, told = script("scripts/reproduce_table.py", *TYPED)
    assert status == 0, told
    assert "Missing: 1 runs" in looked
    _, _, told = script("scripts/reproduce_table.py", *TYPED, "output_dir=nowhere", "--output", "none")
    assert "output_dir=nowhere: no such folder yet" in told
    command = next(line for line in looked.splitlines() if line.startswith("python train.py"))
    assert "experiment=table3/lambda_1 dataset=synthetic" in command
    done = run_command("scripts/reproduce_table.py", *TYPED, "--run", "--output", "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "table3.md").read_text()
    assert "Missing" not in page
    assert "no number below reproduces" in page
    assert (tmp_path / "out" / "table3.tex").is_file()
    assert (tmp_path / "out" / "table3.png").is_file()
    made = [f for f in tmp_path.rglob("best_mae.pt") if "table3-lambda_1" in str(f)]
    assert len(made) == 1
    (counts,) = (made[0].parent / "eval").glob("synthetic_val_max_images-3_*/counts.csv")  # as scale=smoke selects
    # An evaluation of another checkpoint is made again.
    right = counts.read_text()
    counts.write_text("image,error\na,20000\n")
    status, _, told = script("scripts/reproduce_table.py", *TYPED, "run=true", "output=out")
    assert status == 0, told
    assert counts.read_text() == right


@pytest.mark.slow
def test_wrong_settings_are_refused(script: Callable[..., tuple[int, str, str]]) -> None:
    for typed, words in (
        (["table=9"], "table=9: no such table"),
        ([], "table is not set: type table=1, or 2, 3, 4, tokens"),
        (["optim.lr=1"], "table is not set: type table=1"),
        (["table=3", "seed=1"], "a table takes --seeds 1,2,3"),
        (["table=3", "--seeds=-1"], "--seeds -1: must be at least 0"),
        (["table=3", "experiment=table3/lambda_2"], "experiment=table3/lambda_2: is set by the table"),
        (["table=3", "--seeds", "one"], "--seeds one: must be whole numbers"),
        (["table=3", "run=maybe"], "run=maybe: must be true or false"),
        (["table=3", "scale=tiny"], "scale=tiny: no such choice"),
        (["table=3", f"output_dir={__file__}"], "is a file; name the folder of the runs"),
    ):
        status, _, said = script("scripts/reproduce_table.py", *typed)
        assert status == 2
        assert words in said


@pytest.mark.slow
def test_earlier_spellings_still_work(script: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, err = script("scripts/reproduce_table.py", *TYPED, "run=false", "seeds=1,2", "output=out")
    assert status == 0, err
    assert "Missing: 14 runs" in out
    assert (tmp_path / "out" / "table3.md").is_file()
    assert "reproduce_table.py: seeds=1,2, output=out are now typed --seeds 1,2 --output out" in err


@pytest.mark.slow
def test_weights_that_lie_elsewhere_do_not_keep_a_table_from_being_looked_at(
    script: Callable[..., tuple[int, str, str]],
) -> None:
    typed = ["table=3", "dataset=sha", "model=mobilenet_v2", "model.weights=gone.pth", "--output", "out"]
    status, out, err = script("scripts/reproduce_table.py", *typed)
    assert status == 0, err
    assert "Missing: 7 runs" in out
    status, _, err = script("scripts/reproduce_table.py", *typed, "--run")
    assert status == 2
    assert "model.weights=gone.pth: no such file" in err


def test_the_names_of_the_tables_are_those_of_the_tables() -> None:
    assert set(paper.TABLES) == set(reproduce_table.TABLES)
