"""A run of an earlier version, as its users have it, loads, resumes and is evaluated in this one."""

import copy
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headcount.config import (
    EvalCommandConfig,
    RuntimeConfig,
    SyntheticConfig,
    TrainConfig,
    WholeImageConfig,
    from_plain,
    to_plain,
)
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate_checkpoint
from headcount.engine.train import train
from headcount.errors import CheckpointError
from headcount.runs import flatten, read_metrics, read_run

STORED = Path(__file__).parent / "stored"
RUNS = sorted(path for path in STORED.iterdir() if path.is_dir() and path.name.startswith("format_"))


def stored_config(folder: Path, *changes: str) -> TrainConfig:
    spec = importlib.util.spec_from_file_location("make_run", STORED / "make_run.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[..., TrainConfig] = module.stored_config
    return made(folder, *changes)


def copy_run(run: Path, folder: Path) -> Path:
    """The run where training looks for it."""
    return Path(shutil.copytree(run, folder / "synthetic" / "stored" / "seed1"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
@pytest.mark.parametrize("file", ["best_mae.pt", "last.pt"])
def test_its_evaluation_is_the_recorded_one(run: Path, file: str, tmp_path: Path) -> None:
    copied = copy_run(run, tmp_path)
    config = EvalCommandConfig(
        ckpt=str(copied / file), split="val", eval=WholeImageConfig(), runtime=RuntimeConfig(workers=0)
    )
    result = evaluate_checkpoint(config)
    assert result is not None
    recorded = read_run(copied).metrics[0]
    if file == "best_mae.pt":  # last.pt holds the weights before averaging
        assert result.evaluation.errors.mae == pytest.approx(recorded["eval/mae"], rel=1e-4)
        assert result.evaluation.errors.rmse == pytest.approx(recorded["eval/rmse"], rel=1e-4)
    assert (result.facts.epoch, result.facts.selected_on) == (1, "val")
    assert result.facts.commit == checkpoint.read(copied / file)["commit"]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
@pytest.mark.parametrize("without", [None, "dataset.outside", "method"])
def test_it_resumes_also_without_a_key_that_was_added_later(run: Path, without: str | None, tmp_path: Path) -> None:
    copied = copy_run(run, tmp_path)
    default = flatten(to_plain(stored_config(tmp_path)))
    if without is not None:
        content = torch.load(copied / "last.pt", weights_only=True)
        remove(content["config"], without)
        torch.save(content, copied / "last.pt")
        assert flatten(to_plain(from_plain(content["config"]))).keys() == default.keys()
    first = read_metrics(copied)
    finished = train(stored_config(tmp_path, "resume=true"))
    assert finished is not None
    assert finished.metrics[:1] == first
    assert [record["epoch"] for record in finished.metrics] == [1, 2]


def test_a_file_to_resume_from_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "topsecret")
    copied = copy_run(RUNS[-1], tmp_path)
    last, whole = copied / "last.pt", (copied / "last.pt").read_bytes()
    content = torch.load(last, weights_only=True)
    content["config"]["scale"] = "${oc.env:SECRET}"
    torch.save(content, last)
    with pytest.raises(CheckpointError, match="interpolation") as caught:
        train(stored_config(tmp_path, "resume=true"))
    assert "topsecret" not in str(caught.value)
    last.write_bytes(whole.replace(content["commit"].encode(), b"changed".ljust(len(content["commit"])), 1))
    with pytest.raises(CheckpointError, match=r"last\.pt: the file is damaged: the checksum of its record"):
        train(stored_config(tmp_path, "resume=true"))
    assert read_metrics(copied) == read_metrics(RUNS[-1])


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_key_of_its_settings_may_be_missing(run: Path) -> None:
    """As in a run of a version that did not have the key."""
    plain = checkpoint.read(run / "last.pt")["config"]
    before, defaults = flatten(to_plain(from_plain(plain))), flatten(to_plain(from_plain({"kinds": plain["kinds"]})))
    assert before | flatten(plain) == before
    keys = [key for key in flatten(plain) if not key.startswith("kinds.")]
    for start in range(4):
        removed = keys[start::4]
        older = copy.deepcopy(plain)
        for key in removed:
            remove(older, key)
        found = flatten(to_plain(from_plain(older)))
        assert found == before | {key: defaults[key] for key in removed}


def test_it_is_small_and_of_generated_crowds() -> None:
    assert RUNS
    for run in RUNS:
        assert sum(file.stat().st_size for file in run.iterdir()) < 200_000
        assert isinstance(read_run(run).config.dataset, SyntheticConfig)


def remove(plain: dict[str, Any], key: str) -> None:
    """Remove a setting, or a group with its kind."""
    *parents, last = key.split(".")
    node = plain
    for name in parents:
        node = node[name]
    del node[last]
    plain["kinds"].pop(key, None)
