"""Cross-validation: cv=N is a sweep over folds in which every training image is held out once."""

import csv
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from data.folders import make_shanghaitech
from headcount.cli.cross_validation import expand_folds
from headcount.cli.sweep import sweep_rows
from headcount.config import ConfigError, FolderDatasetConfig, SyntheticConfig, UcfCc50Config
from headcount.config.dataset import errors
from headcount.data.catalogue import selection_split
from headcount.data.open import list_split, open_split

Script = Callable[..., tuple[int, str, str]]
TINY = [
    *("dataset.train_images=7", "dataset.val_images=2", "dataset.width=64", "dataset.height=64", "model.width=8"),
    *("epochs=2", "eval_every_epochs=1", "batch_size=2", "augment.crop_size=32", "optim.warmup_epochs=0"),
    *("runtime=cpu", "runtime.workers=0", "logger=none", "draw_every_evaluations=0"),
]


def folds(config: SyntheticConfig, count: int, *, seed: int = 1) -> list[tuple[set[str], set[str]]]:
    """Names of the training and the held-out images of each fold."""
    found = []
    for fold in range(1, count + 1):
        config.cv_folds, config.cv_fold, config.cv_seed = count, fold, seed
        train, held = (open_split(config, split) for split in ("train", "holdout"))
        found.append((set(train.names), set(held.names)))
    return found


def test_every_training_image_is_held_out_once() -> None:
    config = SyntheticConfig(train_images=11, width=32, height=32, max_people=3)
    everything = {f"train_{k:04d}" for k in range(11)}
    parts = folds(config, 3)
    assert all(train | held == everything and not train & held for train, held in parts)
    assert sorted(name for _, held in parts for name in held) == sorted(everything)
    assert sorted(len(held) for _, held in parts) == [3, 4, 4]
    assert folds(config, 3) == parts
    assert folds(config, 3, seed=2) != parts
    assert selection_split(config) == "holdout"
    assert all(len(held) == 1 for _, held in folds(config, 11))  # leave one out


def test_folds_of_a_folder_are_those_of_its_training_images(tmp_path: Path) -> None:
    names = [f"IMG_{k}" for k in range(1, 6)]
    make_shanghaitech(tmp_path, {"train": {name: [(9.0, 9.0)] for name in names}, "test": {"IMG_1": []}})
    held = []
    for fold in (1, 2):
        config = FolderDatasetConfig(name="sha", root=str(tmp_path), cv_folds=2, cv_fold=fold)
        held += [item.name for item in list_split(config, "holdout", data_root=None)[1]]
    assert sorted(held) == names


def test_more_folds_than_images_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cv=5: dataset=synthetic has 4 training images, and every fold needs one"):
        folds(SyntheticConfig(train_images=4, width=32, height=32), 5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SyntheticConfig(holdout=0.1, cv_folds=5, cv_fold=1), r"dataset\.holdout=0\.1: a cross-validation \(cv=5\)"),
        (SyntheticConfig(cv_folds=5, cv_fold=6), r"dataset\.cv_fold=6: must be from 1 to dataset\.cv_folds=5"),
        (SyntheticConfig(cv_folds=5), r"dataset\.cv_fold=null: must be from 1"),
        (SyntheticConfig(cv_fold=2), r"dataset\.cv_fold=2: needs dataset\.cv_folds"),
    ],
)
def test_folds_that_contradict_each_other_are_refused(config: SyntheticConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        raise ConfigError("\n".join(errors(config)))


def test_the_benchmark_folds_of_ucf_cc_50_stay_as_they_are() -> None:
    assert not errors(UcfCc50Config(name="ucf_cc_50", fold=3))
    assert not errors(UcfCc50Config(name="ucf_cc_50", fold=3, cv_folds=4, cv_fold=2))  # of that fold's 40 images


def test_cv_stands_for_a_sweep() -> None:
    assert expand_folds(["dataset=sha", "epochs=2"]) is None
    assert expand_folds(["cv=null"]) is None
    assert expand_folds(["dataset=sha", "cv=5", "seed=1,2"]) == [
        *("dataset=sha", "seed=1,2", "dataset.cv_folds=5", "dataset.cv_fold=range(1,6)", "dataset.cv_seed=${seed}")
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["cv=1"], r"cv=1: must be one number of folds, from 2 to 1000"),
        (["cv=3,5"], r"cv=3,5: must be one number"),
        (["cv=5", "cv=5"], r"cv=5 cv=5: must be one number"),
        (["cv=five"], r"cv=five: must be one number"),
        (["cv=5", "hydra/sweeper=optuna"], r"cv=5: cannot be combined with hydra/sweeper=optuna"),
        (["cv=5", "dataset.cv_fold=2"], r"dataset\.cv_fold=2: cv=5 sets it"),
    ],
)
def test_wrong_cross_validations_are_refused(typed: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        expand_folds(typed)


def test_errors_of_folds_are_pooled_over_their_images() -> None:
    """Errors of 3, 4 and 5 in two images, 1 in one image: MAE 13 / 4, RMSE of the squares 9, 16, 25 and 1."""
    one = {"MAE": 4.0, "RMSE": (50 / 3) ** 0.5, "NAE": 0.5, "images": 3}
    other = {"MAE": 1.0, "RMSE": 1.0, "NAE": 0.1, "images": 1}
    rows = sweep_rows([(["dataset.cv_fold=1"], one), (["dataset.cv_fold=2"], other)], common=set())
    assert rows[0] == ["", "MAE", "RMSE", "NAE", "images"]
    assert rows[3] == ["mean of 2", "2.50 +- 2.12", f"{(4.0825 + 1) / 2:.2f} +- 2.18", "0.30 +- 0.28", ""]
    assert rows[4] == ["all 4 images", "3.25", f"{(51 / 4) ** 0.5:.2f}", "-", "4"]


@pytest.mark.slow
def test_a_cross_validation_trains_every_fold_once(script: Script, tmp_path: Path) -> None:
    status, out, err = script("train.py", *TINY, "cv=3", "seed=2")
    assert status == 0, err
    table = next((tmp_path / "checkpoints/.sweeps").glob("sweep_*.csv"))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["settings"] for row in rows] == [
        *(f"dataset.cv_fold={k}" for k in (1, 2, 3)),
        "mean of 3",
        "all 7 images",
    ]
    assert rows[3]["MAE"].split()[0] == f"{statistics.mean(float(row['MAE']) for row in rows[:3]):.2f}"
    runs = sorted((tmp_path / "checkpoints/synthetic").iterdir())
    assert len(runs) == 3
    assert all("dataset.cv_fold-" in run.name and "cv_seed" not in run.name for run in runs)
    finished = {run: (run / "seed2/last.pt").stat().st_mtime_ns for run in runs}
    assert {len((run / "seed2/metrics.jsonl").read_text().splitlines()) for run in runs} == {2}
    for run in runs:
        record = json.loads((run / "seed2/metrics.jsonl").read_text().splitlines()[-1])
        assert record["eval/split"] == "holdout"
    # Again: refused without resume=true; with it, finished runs are not repeated.
    status, _, err = script("train.py", *TINY, "cv=3", "seed=2")
    assert (status, "resume=true" in err) == (2, True)
    status, again, err = script("train.py", *TINY, "cv=3", "seed=2", "resume=true")
    assert status == 0, err
    assert {run: (run / "seed2/last.pt").stat().st_mtime_ns for run in runs} == finished
    assert [line for line in again.splitlines() if "+-" in line] == [line for line in out.splitlines() if "+-" in line]


@pytest.mark.slow
def test_a_sweep_of_cross_validations_averages_each_setting(script: Script, tmp_path: Path) -> None:
    status, out, err = script("train.py", "-m", *TINY, "epochs=1", "cv=2", "optim.lr=1e-3,1e-4")
    assert status == 0, err
    assert [line.split("  ")[0] for line in out.splitlines() if "mean of" in line] == [
        f"optim.lr={lr} mean of 2" for lr in ("0.001", "0.0001")
    ]
    assert out.count("all 7 images") == 2


@pytest.mark.slow
def test_errors_of_a_cross_validation_say_cv(script: Script, tmp_path: Path) -> None:
    for typed, said in (
        ("cv=1", "cv=1: must be one number of folds"),
        ("cv=8", "cv=8: dataset=synthetic has 7 training images"),
        ("dataset.holdout=0.2", "dataset.holdout=0.2: a cross-validation (cv=3) holds out"),
    ):
        more = [] if typed.startswith("cv") else ["cv=3"]
        status, _, err = script("train.py", *TINY, typed, *more)
        assert (status, said in err) == (2, True), err
