"""Sweeps: their jobs, what is refused before the first starts, and the table of results."""

import csv
import os
from pathlib import Path

import pytest

from headcount.cli.sweep import SweepLog, check_jobs, list_jobs, plain_table, sweep_rows
from headcount.config import ConfigError


def test_a_sweep_is_the_product_of_its_choices() -> None:
    jobs = list_jobs(["bins=fine,coarse", "seed=range(1,3)", "optim.lr=1e-3"], multirun=True)
    assert list(jobs) == [
        [f"bins={bins}", f"seed={seed}", "optim.lr=1e-3"] for bins in ("fine", "coarse") for seed in (1, 2)
    ]


def test_a_sweep_over_a_nested_group_is_shown_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = list_jobs(["loss.transport=released,stable", "seed=1"], multirun=True)
    assert jobs == [[f"loss/transport={choice}", "seed=1"] for choice in ("released", "stable")]
    log = SweepLog(tmp_path / "log.jsonl", jobs)
    log.write(0, status=0, results={"MAE": 2.0})
    assert log.close() == 1  # the second never reported
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["loss.transport=released", "2.00"]
    assert [line.strip() for line in out.splitlines()[2:]] == sorted(map(str, tmp_path.glob("sweep_*")))
    assert err == "not finished:\n  loss.transport=stable seed=1\n"


def test_the_log_of_a_killed_sweep_is_removed_by_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [[f"output_dir={tmp_path}", f"seed={seed}"] for seed in (1, 2)]
    killed, running = SweepLog.open(jobs, "train"), SweepLog.open(jobs, "train")
    for log in (killed, running):
        log.write(0, status=0, results={"MAE": 2.0})
    killed.file.rename(killed.file.with_name(killed.file.name.replace(f"-{os.getpid()}-", f"-{2**31}-")))
    log = SweepLog.open(jobs, "train")
    assert list((tmp_path / ".sweeps").iterdir()) == [running.file]
    log.write(0, status=0, results={"MAE": 2.0})
    with log.file.open("a") as file:
        file.write('{"job": 1, "sta')  # a job was killed; the next outcome follows in its line
    log.write(1, status=0, results={"MAE": 3.0})
    assert log.close() == 1
    assert capsys.readouterr().err == "not finished:\n" + f"  output_dir={tmp_path} seed=2\n"


def test_the_table_of_a_sweep_is_written_with_the_reasons_of_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = list_jobs(["seed=1,2,3,4", "epochs=2"], multirun=True)
    for other in (False, True):  # another sweep keeps the table of this one
        log = SweepLog(tmp_path / "log.jsonl", [[*job, "bins=coarse"] for job in jobs] if other else jobs)
        log.write(0, status=0, results={"MAE": 2.0, "NAE": float("nan")})
        log.write(1, status=0, results={"MAE": 4.0, "NAE": 0.5})
        log.write(2, status=2, results=None, reason="the disk | is full")
        assert log.close() == 1
    _, err = capsys.readouterr()
    assert "failed:\n  seed=3 epochs=2: the disk | is full\nnot finished:\n  seed=4 epochs=2\n" in err
    tables = sorted(tmp_path.glob("sweep_*.csv"), key=lambda file: file.stat().st_mtime_ns)
    assert len(tables) == len(list(tmp_path.glob("sweep_*.md"))) == 2
    assert list(csv.reader(tables[0].read_text().splitlines())) == [
        ["settings", "MAE", "NAE", "problem"],
        ["seed=1", "2.00", "-", ""],
        ["seed=2", "4.00", "0.50", ""],
        ["mean of 2", "3.00 +- 1.41", "-", ""],
        ["seed=3", "", "", "failed: the disk | is full"],
        ["seed=4", "", "", "not finished"],
    ]
    page = tables[0].with_suffix(".md").read_text()
    assert page.startswith("All jobs: `epochs=2`\n")
    assert "| failed: the disk \\| is full |" in page


def test_several_values_without_m_are_refused() -> None:
    with pytest.raises(ConfigError, match="add -m"):
        list_jobs(["seed=1,2"], multirun=False)


def test_several_processes_in_a_sweep_are_refused_and_the_way_out_named() -> None:
    with pytest.raises(ConfigError, match="submitit_slurm"):
        check_jobs(["seed=1,2", "runtime=ddp"], multirun=True, config_name="train")


def test_several_processes_of_a_cluster_job_are_not() -> None:
    check_jobs(["seed=1,2", "runtime=ddp", "hydra/launcher=basic"], multirun=True, config_name="train")


def test_a_job_that_comes_twice_is_refused() -> None:
    """Its figures would pass for those of two runs."""
    with pytest.raises(ConfigError, match=r"seed=1: occurs twice in this sweep"):
        check_jobs(["seed=1,1"], multirun=True, config_name="train")


def test_values_that_cannot_be_enumerated_are_refused() -> None:
    with pytest.raises(ConfigError, match="name the values"):
        list_jobs(["optim.lr=interval(0,1)"], multirun=True)


def test_every_tilde_of_a_sweep_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    jobs = list_jobs(["data_root=~/a,~/b"], multirun=True)
    assert jobs == [["data_root=/home/me/a"], ["data_root=/home/me/b"]]


def test_jobs_that_differ_in_seed_or_fold_alone_are_averaged() -> None:
    jobs = [
        (["dataset=sha", f"loss={loss}", f"seed={seed}"], {"MAE": mae, "RMSE": 2 * mae})
        for loss, seed, mae in (("dace", 1, 10.0), ("dace", 2, 13.0), ("dm", 1, 20.0))
    ]
    lines = plain_table(sweep_rows(jobs, common={"dataset=sha"})).splitlines()
    assert [line.split() for line in lines] == [
        ["MAE", "RMSE"],
        ["loss=dace", "seed=1", "10.00", "20.00"],
        ["loss=dace", "seed=2", "13.00", "26.00"],
        ["loss=dace", "mean", "of", "2", "11.50", "+-", "2.12", "23.00", "+-", "4.24"],
        ["loss=dm", "seed=1", "20.00", "40.00"],
    ]
    folds = [(["dataset=ucf_cc_50", f"dataset.fold={k}"], {"MAE": float(k)}) for k in range(1, 6)]
    last = plain_table(sweep_rows(folds, common={"dataset=ucf_cc_50"})).splitlines()[-1]
    assert last.split() == ["mean", "of", "5", "3.00", "+-", "1.58"]


def test_what_is_left_of_a_sweep_is_told_apart_as_the_whole_was() -> None:
    left = [(["optim.lr=1", "seed=1"], {"MAE": 1.0}), (["optim.lr=1", "seed=2"], {"MAE": 3.0})]
    lines = [line.split() for line in plain_table(sweep_rows(left, common=set())).splitlines()]
    assert lines[1] == ["optim.lr=1", "seed=1", "1.00"]
    assert lines[3] == ["optim.lr=1", "mean", "of", "2", "2.00", "+-", "1.41"]
