"""Runs that are extended, that stop early, and the checkpoints that stay on the disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headcount.cli.compose import checked_config
from headcount.config import OptimConfig, Schedule
from headcount.engine import checkpoint
from headcount.engine import train as loop
from headcount.engine.continuation import describe_extension, find_shorter, refuse_fewer_epochs
from headcount.engine.optim import learning_rate_factor
from headcount.engine.run import RunFolder
from headcount.engine.setup import Job
from headcount.engine.train import train
from headcount.errors import ConfigError
from headcount.metrics import CountErrors
from headcount.runs import read_metrics, read_run, stops_early
from headcount.types import Best
from interrupted import assert_same_run, config_of, folder_of

LAST, BEST = checkpoint.LAST, checkpoint.BEST
CONSTANT = ["optim.schedule=constant"]


def errors_of(monkeypatch: pytest.MonkeyPatch, maes: list[float]) -> None:
    """Let the evaluations have these mean absolute errors, one after the other."""
    waiting, measure = iter(maes), CountErrors.from_counts

    def errors(*counts: Any) -> CountErrors:
        found = measure(*counts)
        return CountErrors(mae=next(waiting), rmse=found.rmse, nae=found.nae, images=found.images)

    monkeypatch.setattr(CountErrors, "from_counts", errors)


def epochs_of(folder: Path) -> list[int]:
    return [record["epoch"] for record in read_metrics(folder)]


def kept(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.pt")}


# ------------------------------------------------------------------------------------------- more epochs


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of two epochs at a constant learning rate."""
    output = tmp_path_factory.mktemp("constant")
    assert train(config_of(output, *CONSTANT)) is not None
    return output


@pytest.mark.slow
def test_a_finished_run_that_is_extended_is_the_longer_run_bit_for_bit(
    constant: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(constant, tmp_path / "extended")
    capsys.readouterr()
    extended = train(config_of(tmp_path / "extended", *CONSTANT, "epochs=3", "resume=true"))
    assert extended is not None
    said = capsys.readouterr().err
    assert "extending from 2 to 3 epochs: the schedule (constant learning rate) does not depend on their number" in said
    whole = train(config_of(tmp_path / "whole", *CONSTANT, "epochs=3"))
    assert whole is not None
    assert_same_run(whole.folder, extended.folder)
    made = json.loads((extended.folder / "run.json").read_text())
    assert made["extended"] == [{"from": 2, "to": 3, "after_epoch": 2}]
    assert read_run(extended.folder).config.epochs == 3
    assert train(config_of(tmp_path / "extended", *CONSTANT, "epochs=3", "resume=true")) is not None
    assert json.loads((extended.folder / "run.json").read_text())["extended"] == made["extended"]


def test_fewer_epochs_are_refused_and_nothing_changes(constant: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder_of(constant).iterdir()}
    with pytest.raises(ConfigError) as caught:
        train(config_of(constant, *CONSTANT, "epochs=1", "resume=true"))
    assert str(caught.value) == (
        "resume=true with epochs=1: the run was planned for epochs=2 (2 are trained), and can only be extended; resume "
        "with epochs=2 or more, or start another run with run_name=NAME"
    )
    assert {file.name: file.read_bytes() for file in folder_of(constant).iterdir()} == before
    refuse_fewer_epochs(2, 2, trained=1)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["step", "epoch"])
def test_a_stretched_cosine_continues_where_the_longer_one_is(
    tmp_path: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["optim.schedule=cosine", f"optim.step={step}", "optim.lr=1e-3", "optim.min_lr=0"]
    assert train(config_of(tmp_path, *settings)) is not None
    capsys.readouterr()
    run = train(config_of(tmp_path, *settings, "epochs=4", "resume=true"))
    assert run is not None
    said = capsys.readouterr().err
    assert (
        "the cosine is stretched and ends at epoch 4; at epoch 2 the learning rate becomes 0.0005 (planned: 0)" in said
    )
    config = OptimConfig(lr=1e-3, schedule=Schedule.cosine, min_lr=0.0)
    last = 3 + 3 / 4 if step == "step" else 3  # of four steps
    expected = 1e-3 * learning_rate_factor(config, last, epochs=4)
    assert run.metrics[-1]["lr"] == pytest.approx(expected, rel=1e-12)
    third = 1e-3 * learning_rate_factor(config, 2 + 3 / 4 if step == "step" else 2, epochs=4)
    assert run.metrics[2]["lr"] == pytest.approx(third, rel=1e-12)


def test_what_an_extension_does_is_said_for_each_schedule() -> None:
    def said(schedule: Schedule) -> str:
        return describe_extension(OptimConfig(lr=2.0, schedule=schedule, min_lr=0.0), before=5, now=10, epoch=5)

    assert "becomes 1 (planned: 0)" in said(Schedule.cosine)
    assert "restarts of the cosine" in said(Schedule.cosine_restarts)
    assert "constant learning rate" in said(Schedule.constant)


def test_a_run_that_could_be_extended_is_named(constant: Path) -> None:
    """The number of epochs is part of a run's own name, so that more epochs have another folder."""
    longer = config_of(constant, *CONSTANT, "epochs=3", "run_name=longer", "resume=true")
    folder = constant / "synthetic" / "longer" / "seed1"
    assert find_shorter(longer, folder) == "run"
    other = config_of(constant, *CONSTANT, "epochs=3", "run_name=longer", "optim.lr=0.5")
    assert find_shorter(other, folder) == ""
    assert find_shorter(config_of(constant, *CONSTANT, "epochs=2"), folder) == ""


# -------------------------------------------------------------------------------------------- early stop


@pytest.mark.parametrize(
    ("every", "patience", "epoch", "best", "stops"),
    [(1, 2, 4, 3, False), (1, 2, 5, 3, True), (5, 1, 14, 5, True), (5, 2, 14, 5, False), (5, 2, 15, 5, True)],
)
def test_evaluations_without_improvement_by_hand(every: int, patience: int, epoch: int, best: int, stops: bool) -> None:
    typed = [f"eval_every_epochs={every}", f"early_stopping={patience}"]
    config = checked_config(typed, config_name="train")
    assert stops_early(config, epoch=epoch, best_epoch=best) is stops
    config.early_stopping = None
    assert not stops_early(config, epoch=epoch, best_epoch=best)


@pytest.mark.slow
def test_a_run_that_stops_early_says_so_and_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*CONSTANT, "epochs=6", "early_stopping=2"]
    errors_of(monkeypatch, [3.0, 1.0, 2.0, 1.0, 0.5, 4.0])
    run = train(config_of(tmp_path, *settings))
    assert run is not None
    assert epochs_of(run.folder) == [1, 2, 3, 4]
    assert (run.best.epoch, checkpoint.read(run.folder / BEST)["epoch"]) == (2, 2)
    said = capsys.readouterr().err
    assert "stopped early after epoch 4 of 6: no lower MAE in early_stopping=2 evaluations" in said
    made = json.loads((run.folder / "run.json").read_text())
    assert made["stopped_early"] == {"epoch": 4, "best_epoch": 2, "early_stopping": 2}
    assert read_run(run.folder).finished
    before = (run.folder / LAST).read_bytes()
    assert train(config_of(tmp_path, *settings, "resume=true")) is not None  # as a job that is queued again
    assert "stopped early after epoch 4" in capsys.readouterr().err
    assert (run.folder / LAST).read_bytes() == before
    assert "stopped_early" in json.loads((run.folder / "run.json").read_text())
    resumed = train(config_of(tmp_path, *CONSTANT, "epochs=6", "early_stopping=null", "resume=true"))
    assert resumed is not None
    assert epochs_of(run.folder) == [1, 2, 3, 4, 5, 6]
    assert resumed.best.epoch == 5
    assert "stopped_early" not in json.loads((run.folder / "run.json").read_text())


# ------------------------------------------------------------------------------- checkpoints that are kept


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "files"),
    [
        ("best", {LAST, BEST}),
        ("last", {LAST}),
        ("all", {LAST, BEST, "epoch_0001.pt", "epoch_0002.pt", "epoch_0003.pt", "epoch_0004.pt"}),
        ("2", {LAST, BEST, "epoch_0003.pt", "epoch_0004.pt"}),
    ],
)
def test_the_checkpoints_that_the_settings_name_stay(
    tmp_path: Path, keep: str, files: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors_of(monkeypatch, [3.0, 1.0, 2.0, 4.0])
    run = train(config_of(tmp_path, *CONSTANT, "epochs=4", f"keep={keep}"))
    assert run is not None
    assert kept(run.folder) == files
    said = capsys.readouterr().err
    assert f"ckpt={run.folder / (LAST if keep == 'last' else BEST)}" in said
    if BEST in files:
        assert checkpoint.read(run.folder / BEST)["epoch"] == 2
    if keep == "all":
        second = checkpoint.load(run.folder / "epoch_0002.pt")
        for name, value in checkpoint.load(run.folder / BEST).counter.state_dict().items():
            assert torch.equal(value, second.counter.state_dict()[name]), name


@pytest.mark.slow
def test_the_best_checkpoint_of_an_earlier_keep_stays_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors_of(monkeypatch, [3.0, 2.0, 4.0, 1.0])
    assert train(config_of(tmp_path, *CONSTANT, "epochs=2", "keep=2")) is not None
    run = train(config_of(tmp_path, *CONSTANT, "epochs=4", "keep=last", "resume=true"))
    assert run is not None
    assert checkpoint.read(run.folder / BEST)["epoch"] == run.best.epoch == 4
    assert f"ckpt={run.folder / BEST}" in capsys.readouterr().err
    assert kept(run.folder) == {LAST, BEST, "epoch_0001.pt", "epoch_0002.pt"}


@pytest.mark.slow
@pytest.mark.parametrize("before", ["epoch_0001.pt", "metrics.jsonl"])
def test_a_kill_costs_no_kept_checkpoint(tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*CONSTANT, "keep=all"]
    save, write = checkpoint.save, RunFolder._save_evaluated
    assert train(config_of(tmp_path / "whole", *settings)) is not None

    class Killed(BaseException): ...

    def killing(content: dict[str, Any], path: Path) -> None:
        if path.name == before:
            raise Killed
        save(content, path)

    def killing_after(self: RunFolder, job: Any) -> None:
        write(self, job)
        raise Killed

    with monkeypatch.context() as patch:
        if before.endswith(".pt"):
            patch.setattr(checkpoint, "save", killing)
        else:
            patch.setattr(RunFolder, "_save_evaluated", killing_after)
        with pytest.raises(Killed):
            train(config_of(tmp_path, *settings))
    assert train(config_of(tmp_path, *settings, "resume=true")) is not None
    assert_same_run(folder_of(tmp_path / "whole"), folder_of(tmp_path))
    assert kept(folder_of(tmp_path)) == {LAST, BEST, "epoch_0001.pt", "epoch_0002.pt"}
    for name in ("epoch_0001.pt", "epoch_0002.pt"):
        one, other = (checkpoint.read(folder_of(output) / name) for output in (tmp_path / "whole", tmp_path))
        assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())


def test_only_evaluations_are_removed_and_never_the_only_one_of_the_best(tmp_path: Path) -> None:
    config = config_of(tmp_path, "keep=1")
    run = RunFolder(loop.Runtime(config.runtime), config)
    run.path.mkdir(parents=True)
    for name in ("epoch_0002.pt", "epoch_0010.pt", "epoch_0100.pt", "epoch_best.pt", "epoch_7.pt.old", LAST):
        (run.path / name).touch()

    job = Job.__new__(Job)
    job.config, job.best = config, Best(epoch=10, mae=1.0, rmse=1.0, nae=1.0, images=1)
    run._remove_old(job)
    left = {"epoch_0010.pt", "epoch_0100.pt", "epoch_best.pt", "epoch_7.pt.old", LAST}
    assert {file.name for file in run.path.iterdir()} == left
    (run.path / BEST).touch()
    run._remove_old(job)
    assert "epoch_0010.pt" not in kept(run.path)


@pytest.mark.parametrize("keep", ["none", "0", "-1", "1.5", "best2"])
def test_other_words_and_numbers_are_refused(keep: str) -> None:
    with pytest.raises(ConfigError, match=r"must be best, last, all, or a number of evaluations|keep="):
        checked_config([f"keep={keep}"], config_name="train")
