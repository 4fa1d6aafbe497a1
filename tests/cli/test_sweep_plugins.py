"""Sweepers and launchers that are packages of their own: Optuna chooses values, joblib runs jobs at the same time."""

import csv
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from headcount.cli.sweep import check_jobs
from headcount.config import ConfigError

TINY = [
    *("dataset.train_images=4", "dataset.val_images=2", "dataset.width=64", "dataset.height=64", "model.width=8"),
    *("epochs=1", "batch_size=2", "augment.crop_size=32", "optim.warmup_epochs=0", "draw_every_evaluations=0"),
    *("runtime=cpu", "runtime.workers=0", "logger=none", "run_name=auto"),
]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    (table,) = (folder / "checkpoints/.sweeps").glob("sweep_*.csv")
    return list(csv.DictReader(table.read_text().splitlines()))


@pytest.mark.slow
def test_optuna_minimizes_the_selected_mae(run_command: Run, tmp_path: Path) -> None:
    sweep = [
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=3",
        "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.sampler.seed=1",
    ]
    run = run_command("train.py", "-m", *TINY, *sweep, "optim.lr=tag(log,interval(1e-4,1e-2))", "bins=fine,coarse")
    assert run.returncode == 0, run.stderr
    rows = rows_of(tmp_path)
    assert len(rows) == 3
    assert all(row["problem"] == "" and "optim.lr=" in row["settings"] and "bins=" in row["settings"] for row in rows)
    best = min(rows, key=lambda row: float(row["MAE"]))
    found = (tmp_path / "checkpoints/.sweeps/optimization_results.yaml").read_text()
    (value,) = (line.split()[1] for line in found.splitlines() if line.startswith("best_value"))
    assert f"{float(value):.2f}" == best["MAE"]
    assert f"lowest MAE {best['MAE']}: {best['settings']}" in run.stdout


@pytest.mark.slow
def test_a_trial_that_fails_is_listed(run_command: Run, tmp_path: Path) -> None:
    sweep = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "run_name=one"]
    run = run_command("train.py", "-m", *TINY, *sweep, "optim.lr=interval(1e-4,1e-3)")
    assert run.returncode == 2
    first, second = rows_of(tmp_path)
    assert (first["problem"], second["problem"].startswith("failed: ")) == ("", True)


@pytest.mark.slow
def test_joblib_runs_the_jobs_of_a_sweep(run_process: Run, tmp_path: Path) -> None:
    run = run_process("train.py", "-m", *TINY, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2")
    assert run.returncode == 0, run.stderr
    assert [row["settings"] for row in rows_of(tmp_path)] == ["seed=1", "seed=2", "mean of 2"]


def test_what_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "hydra_plugins" in name else found(name))
    for typed, extra in (
        ("hydra/sweeper=optuna", "optuna"),
        ("hydra/launcher=joblib", "joblib"),
        ("hydra/launcher=submitit_slurm", "slurm"),
    ):
        with pytest.raises(ConfigError, match=rf"{typed}: is not installed: pip install 'headcount\[{extra}\]'"):
            check_jobs(["seed=1", typed], multirun=True, config_name="train")


def test_a_sweeper_needs_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"hydra/sweeper=optuna: chooses the values of a sweep; add -m"):
        check_jobs(["hydra/sweeper=optuna"], multirun=False, config_name="train")


@pytest.mark.parametrize(
    ("typed", "said"),
    [("optim.rate=interval(0,1)", "optim has no rate"), ("optim.lr=interval(-1,1)", r"optim\.lr=-1\.0: must be")],
)
def test_settings_of_a_sweeper_are_checked_before_it_starts(typed: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_jobs(["hydra/sweeper=optuna", typed], multirun=True, config_name="train")


def test_several_processes_are_refused_for_jobs_on_this_machine() -> None:
    with pytest.raises(ConfigError, match="submitit_slurm"):
        check_jobs(["seed=1,2", "runtime=ddp", "hydra/launcher=joblib"], multirun=True, config_name="train")
