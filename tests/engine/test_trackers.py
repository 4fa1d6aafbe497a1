"""Where epochs are logged: each tracker, several at once, resumed, failing, and closed however a run ends."""

import csv
import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcount.cli.compose import checked_config
from headcount.config import Tracker
from headcount.engine import trackers
from headcount.engine import train as loop
from headcount.engine.records import Events, open_logs
from headcount.engine.trackers import CSV_FILE, RunIdentity, open_trackers, require_trackers
from headcount.engine.train import train
from headcount.errors import ConfigError
from headcount.runs import read_metrics
from interrupted import config_of, folder_of

FAST = ["optim.schedule=constant", "draw_every_evaluations=0"]


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No server, and nothing of the machine's user."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))


# ---------------------------------------------------------------------------------------- settings


def test_the_logger_is_one_or_several_names() -> None:
    def chosen(typed: str) -> list[str]:
        return [tracker.name for tracker in checked_config([typed], config_name="train").logger]

    assert [tracker.name for tracker in checked_config([], config_name="train").logger] == ["tensorboard"]
    assert chosen("logger=csv") == ["csv"]
    assert chosen("logger=none") == ["none"]
    assert chosen("logger=[tensorboard,csv]") == chosen("logger=tensorboard,csv") == ["tensorboard", "csv"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("logger=comet", "logger takes one or more of tensorboard, wandb, mlflow, csv, none"),
        ("logger=[none,csv]", "name one or more of tensorboard, csv, wandb, mlflow, or none alone"),
        ("logger=[]", "or none alone"),
        ("logger=[csv,csv]", "names one of them twice"),
    ],
)
def test_other_names_are_refused(typed: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_config([typed], config_name="train")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_library_is_an_error_before_any_work(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = trackers.importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda of: None if of == name else find(of))
    with pytest.raises(
        ConfigError, match=rf"logger={name}: {name} is not installed: pip install 'headcount\[{name}\]'"
    ):
        train(config_of(tmp_path, f"logger={name}"))
    assert not any(tmp_path.iterdir())
    require_trackers([Tracker.csv, Tracker.tensorboard, Tracker.none])


# --------------------------------------------------------------------------------------- csv, none


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / CSV_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_csv_holds_the_numbers_of_metrics_jsonl(tmp_path: Path) -> None:
    run = train(config_of(tmp_path, *FAST, "logger=csv", "eval_every_epochs=2"))
    assert run is not None
    assert [row["epoch"] for row in rows(run.folder)] == ["1", "2"]
    for row, record in zip(rows(run.folder), read_metrics(run.folder), strict=True):
        found = {key: value for key, value in row.items() if value}
        assert found.keys() == record.keys()
        assert all(float(found[key]) == value for key, value in record.items() if key != "eval/split")
    assert not list(run.folder.glob("events*"))
    resumed = train(
        config_of(tmp_path, *FAST, "logger=[csv,tensorboard]", "eval_every_epochs=2", "epochs=3", "resume=true")
    )
    assert resumed is not None
    assert [row["epoch"] for row in rows(run.folder)] == ["1", "2", "3"]
    assert list(run.folder.glob("events*"))


@pytest.mark.slow
def test_none_leaves_metrics_jsonl_alone(tmp_path: Path) -> None:
    run = train(config_of(tmp_path, *FAST, "logger=none"))
    assert run is not None
    assert len(run.metrics) == 2
    assert {file.name for file in run.folder.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "run.json",
        "last.pt",
        "best_mae.pt",
    }


# ------------------------------------------------------------------------------------------- mlflow


def mlflow_runs(output: Path) -> list[Any]:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(output / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("headcount")
    found: list[Any] = list(client.search_runs([experiment.experiment_id]))
    for run in found:
        run.history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        run.artifacts = [file.path for file in client.list_artifacts(run.info.run_id)]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_continues_its_run_without_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*FAST, "logger=mlflow"]
    step, done = loop.train_step, 0

    def stepping(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 6:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stepping)
        with pytest.raises(SystemExit):
            train(config_of(tmp_path, *settings))
    (first,) = mlflow_runs(tmp_path)
    assert first.info.status == "KILLED"
    assert [metric.step for metric in first.history["train/total"]] == [1]
    run = train(config_of(tmp_path, *settings, "resume=true"))
    assert run is not None
    (whole,) = mlflow_runs(tmp_path)
    assert (
        whole.info.run_id == first.info.run_id == json.loads((run.folder / "run.json").read_text())["logger"]["mlflow"]
    )
    assert whole.info.status == "FINISHED"
    for key, history in whole.history.items():
        assert [metric.step for metric in history] == [1, 2], key
        if key != "train/peak_memory_mib":
            assert [metric.value for metric in history] == [record[key] for record in run.metrics], key
    assert whole.data.params["optim.lr"] == "0.001"
    assert whole.info.run_name == "synthetic run seed1"
    assert train(config_of(tmp_path, *settings, "resume=true")) is not None  # nothing left: no other run
    assert len(mlflow_runs(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_resumes_an_epoch_that_was_logged_in_part(tmp_path: Path) -> None:
    config = config_of(tmp_path, *FAST, "logger=mlflow")
    records = [{"epoch": 1, "lr": 0.5, "train/total": 2.0}, {"epoch": 2, "lr": 0.25, "train/total": 1.0}]
    identity = RunIdentity(tmp_path, config, {})
    (log,) = open_trackers(identity, logged=0)
    log.write(records[:1], shown={"train/peak_memory_mib": 7.0})
    log._log({"lr": 0.25}, {}, 2)  # type: ignore[attr-defined]
    (again,) = open_trackers(identity, logged=1)
    again.add_pictures({"eval/a": np.zeros((3, 8, 8), dtype=np.uint8)}, 2)
    again.write(records, shown={"undefined": float("nan")})
    again.close(ValueError("broken"))
    (run,) = mlflow_runs(tmp_path)
    steps = {key: [metric.step for metric in history] for key, history in run.history.items()}
    assert steps == {"lr": [1, 2], "train/total": [1, 2], "train/peak_memory_mib": [1]}
    assert run.info.status == "FAILED"
    assert run.artifacts == ["eval"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_address_that_mlflow_cannot_use_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(ConfigError, match=r"logger=mlflow: gopher://nowhere cannot be used: .*MLFLOW_TRACKING_URI"):
        train(config_of(tmp_path, *FAST, "logger=mlflow"))


class Failing(trackers._RemoteLog):
    name = "remote"

    def __init__(self) -> None:
        super().__init__(logged=1)
        self.logged: list[int] = []
        self.fails = True

    def _log(self, numbers: Any, pictures: Any, epoch: int) -> None:
        if self.fails:
            raise ConnectionError("no\nanswer")
        self.logged.append(epoch)

    def _finish(self, error: BaseException | None) -> None:
        raise ConnectionError("no answer")


def test_a_tracker_that_fails_ends_no_training_and_catches_up(capsys: pytest.CaptureFixture[str]) -> None:
    log = Failing()
    records = [{"epoch": epoch, "lr": 0.1} for epoch in (1, 2, 3)]
    log.write(records[:2], shown={})
    assert "logger=remote: epoch 2 could not be logged (no answer); it is in metrics.jsonl" in capsys.readouterr().err
    log.fails = False
    log.write(records, shown={})
    assert log.logged == [2, 3]
    log.close(None)
    assert "logger=remote: could not be closed (no answer)" in capsys.readouterr().err


def test_trackers_are_closed_however_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[type | None] = []

    class Log(trackers.CsvLog):
        def close(self, error: BaseException | None) -> None:
            ends.append(None if error is None else type(error))

    def failing(*_: Any) -> Any:
        raise ValueError("broken")

    def stopping(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(trackers, "CsvLog", Log)
    step = loop.train_step
    for train_step, error in ((step, None), (failing, ValueError), (stopping, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", train_step)
            config = config_of(tmp_path / getattr(error, "__name__", "none"), *FAST, "epochs=1", "logger=csv")
            if error is None:
                train(config)
            else:
                with pytest.raises(error):
                    train(config)
    assert ends == [None, ValueError, KeyboardInterrupt]


def test_one_that_cannot_be_opened_closes_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigError("no answer")

    monkeypatch.setattr(trackers.CsvLog, "close", lambda self, error: closed.append(error))
    monkeypatch.setattr(trackers, "MlflowLog", refuse)
    identity = RunIdentity(tmp_path, config_of(tmp_path, "logger=[csv,mlflow,tensorboard]"), {})
    with pytest.raises(ConfigError, match="no answer"):
        open_trackers(identity, logged=0)
    assert [type(error) for error in closed] == [ConfigError]
    (only,) = open_logs(identity, 1_000_000)  # a finished run
    assert isinstance(only, Events)


# -------------------------------------------------------------------------------------------- wandb


def wandb_records(folder: Path) -> Iterator[tuple[str, Any]]:
    """(folder of the file, record) of every offline run below a folder.

    The files are LevelDB logs: after a header of 7 bytes, blocks of 32 KiB that hold parts of records, each with a
    checksum, a length and a kind (whole, first, middle, last).
    """
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.rglob("*.wandb")):
        content, position, data = file.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if 2**15 - position % 2**15 < 7:
                position += 2**15 - position % 2**15
                continue
            _, length, kind = struct.unpack("<IHB", content[position : position + 7])
            data += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                data = b""
                yield file.parent.name, record


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_continues_its_run_without_duplicates(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    settings = ["optim.schedule=constant", "logger=[wandb,csv]"]
    assert train(config_of(tmp_path, *settings), draw=lambda *_: np.zeros((3, 8, 24), dtype=np.uint8)) is not None
    assert list(folder_of(tmp_path).rglob("*.png"))
    run = train(config_of(tmp_path, *settings, "epochs=3", "resume=true"))
    assert run is not None
    found = list(wandb_records(run.folder / "wandb"))
    ids = {record.run.run_id for _, record in found if record.WhichOneof("record_type") == "run"}
    assert ids == {json.loads((run.folder / "run.json").read_text())["logger"]["wandb"]}
    assert len({file for file, _ in found}) == 2
    logged = []
    for _, record in found:
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            logged.append((values["_step"], values["train/total"]))
    assert logged == [(record["epoch"], record["train/total"]) for record in run.metrics]
    exits = [record.exit.exit_code for _, record in found if record.WhichOneof("record_type") == "exit"]
    assert exits == [0, 0]
