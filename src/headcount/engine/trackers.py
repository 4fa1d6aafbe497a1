"""Log the metrics of each epoch to a CSV file, wandb or mlflow, in addition to metrics.jsonl and TensorBoard.

wandb and mlflow read their own environment variables, such as WANDB_PROJECT, WANDB_MODE and MLFLOW_TRACKING_URI.
"""

import importlib.util
import math
import os
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from headcount.config import ConfigError, Tracker, TrainConfig, to_plain
from headcount.files import write_csv
from headcount.runs import flatten
from headcount.wording import one_line

CSV_FILE = "metrics.csv"
PROJECT = "headcount"
"""Project of wandb and experiment of mlflow, unless their environment variables name another."""
_EXTRAS = (Tracker.wandb, Tracker.mlflow)
_IDS = "logger"
"""Key of run.json for the identifiers of this run in wandb and mlflow."""
_MAX_PARAM_LENGTH = 500  # of mlflow


@runtime_checkable
class EpochLog(Protocol):
    """A log of the metrics of each epoch."""

    def add_settings(self, text: str, epoch: int) -> None:
        """Add the settings as text (YAML); written with the next record."""

    def add_pictures(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Add pictures (3, height, width) in bytes by name; written with the record of the epoch."""

    def write(self, records: Sequence[Mapping[str, Any]], *, shown: Mapping[str, float]) -> None:
        """Write the last record.

        Args:
            records: of all epochs, from the first to this one.
            shown: numbers of this epoch that depend on the machine and the process.
        """

    def close(self, error: BaseException | None) -> None:
        """Finish.

        Args:
            error: what ended the run; None if it ended as planned.
        """


def require_trackers(chosen: Sequence[Tracker]) -> None:
    """Check that the libraries of these trackers are installed.

    Raises:
        ConfigError: names the first that is missing, and how to install it.
    """
    for tracker in chosen:
        if tracker in _EXTRAS and importlib.util.find_spec(tracker.name) is None:
            raise ConfigError(
                f"logger={tracker.name}: {tracker.name} is not installed: pip install 'headcount[{tracker.name}]'"
            )


@dataclass
class RunIdentity:
    """How trackers identify a run."""

    folder: Path
    config: TrainConfig
    ids: dict[str, str]
    """Name of a tracker -> its identifier of this run; filled when the run is first logged there."""

    @property
    def name(self) -> str:
        """The name that is shown."""
        return f"{self.config.dataset.name} {self.config.run_name} seed{self.config.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its full name."""
        return flatten(to_plain(self.config))


def identifiers(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The identifiers in the content of run.json; empty if there are none."""
    found = provenance.get(_IDS, {})
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def open_trackers(run: RunIdentity, *, logged: int) -> list[EpochLog]:
    """Open the trackers of a run, other than TensorBoard.

    Args:
        logged: number of epochs that are logged already.

    Raises:
        ConfigError: if one cannot be reached, or does not know who logs.
    """
    kinds: dict[Tracker, Callable[[], EpochLog]] = {
        Tracker.csv: lambda: CsvLog(run.folder),
        Tracker.wandb: lambda: WandbLog(run, logged=logged),
        Tracker.mlflow: lambda: MlflowLog(run),
    }
    opened: list[EpochLog] = []
    try:
        for tracker in run.config.logger:
            if tracker in kinds:
                opened.append(kinds[tracker]())
    except BaseException as error:
        for log in opened:
            log.close(error)
        raise
    return opened


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record, without the epoch."""
    return {
        key: float(value)
        for key, value in record.items()
        if key != "epoch" and isinstance(value, (int, float)) and math.isfinite(value)
    }


class CsvLog:
    """Writes metrics.csv: a row for each epoch, a column for each number; the numbers of metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / CSV_FILE

    def add_settings(self, text: str, epoch: int) -> None:
        """Do nothing."""

    def add_pictures(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Do nothing."""

    def write(self, records: Sequence[Mapping[str, Any]], *, shown: Mapping[str, float]) -> None:
        """Rewrite the whole file atomically, so that readers never see part of a row."""
        columns = list(dict.fromkeys(key for record in records for key in record))
        write_csv(self._file, [columns, *([record.get(key, "") for key in columns] for record in records)])

    def close(self, error: BaseException | None) -> None:
        """Do nothing."""


class _RemoteLog(ABC):
    """Base of the wandb and mlflow logs: epochs that could not be logged are logged with the next one."""

    name = ""

    def __init__(self, logged: int) -> None:
        self._logged = logged
        self._pictures: dict[str, np.ndarray] = {}

    def add_settings(self, text: str, epoch: int) -> None:  # noqa: B027 (not every log needs them)
        """Do nothing: they get every setting by its name."""

    def add_pictures(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Keep the pictures for the record of the epoch."""
        self._pictures.update(pictures)

    def write(self, records: Sequence[Mapping[str, Any]], *, shown: Mapping[str, float]) -> None:
        """Log the epochs that are not logged yet; a failure is reported and ends no training."""
        try:
            for record in records:
                if record["epoch"] <= self._logged:
                    continue
                is_last = record is records[-1]
                pictures = self._pictures if is_last else {}
                self._log(_numbers({**record, **(shown if is_last else {})}), pictures, record["epoch"])
                self._logged = record["epoch"]
        except Exception as error:  # those of a library and of its network
            print(
                f"logger={self.name}: epoch {records[-1]['epoch']} could not be logged ({one_line(error)}); it is in "
                "metrics.jsonl, and logging is tried again after the next epoch",
                file=sys.stderr,
            )
        self._pictures = {}

    def close(self, error: BaseException | None) -> None:
        """Finish; a failure is reported only."""
        try:
            self._finish(error)
        except Exception as failure:
            print(f"logger={self.name}: could not be closed ({one_line(failure)})", file=sys.stderr)

    @abstractmethod
    def _log(self, numbers: Mapping[str, float], pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Log one epoch; an error is reported by the caller."""

    @abstractmethod
    def _finish(self, error: BaseException | None) -> None:
        """End the run; an error is reported by the caller."""


class WandbLog(_RemoteLog):
    """Logs to Weights & Biases; offline, to the folder ``wandb`` of the run."""

    name = "wandb"

    def __init__(self, run: RunIdentity, *, logged: int) -> None:
        """Start the run, or continue the one that run.json names.

        Raises:
            ConfigError: if wandb cannot start it.
        """
        super().__init__(logged)
        import wandb

        self._wandb = wandb
        ids = run.ids
        ids.setdefault("wandb", uuid.uuid4().hex[:8])
        try:
            self._run = wandb.init(
                id=ids["wandb"],
                resume="allow",
                dir=str(run.folder),
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", run.name),
                config=run.settings,
                allow_val_change=True,
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:
            raise ConfigError(
                f"logger=wandb: {one_line(error)}; log in with `wandb login`, set WANDB_MODE=offline, or choose "
                "another logger"
            ) from error

    def _log(self, numbers: Mapping[str, float], pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        images = {name: self._wandb.Image(picture.transpose(1, 2, 0)) for name, picture in pictures.items()}
        self._run.log({**numbers, **images}, step=epoch)

    def _finish(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class MlflowLog(_RemoteLog):
    """Logs to mlflow: to the server or folder of MLFLOW_TRACKING_URI, otherwise to ``mlruns`` in ``output_dir``."""

    name = "mlflow"

    def __init__(self, run: RunIdentity) -> None:
        """Start the run, or continue the one that run.json names.

        Raises:
            ConfigError: if mlflow cannot be reached.
        """
        super().__init__(0)
        import mlflow
        from mlflow.entities import Metric, Param

        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (Path(run.config.output_dir).expanduser().absolute() / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs neither a server nor a database
        try:
            self._client = mlflow.MlflowClient(tracking_uri=uri)
            self._id = self._continued(run.ids.get("mlflow")) or self._created(run, Param)
            self._steps = self._last_steps()
        except Exception as error:
            raise ConfigError(
                f"logger=mlflow: {uri} cannot be used: {one_line(error)}; correct MLFLOW_TRACKING_URI, or choose "
                "another logger"
            ) from error
        run.ids["mlflow"] = self._id

    def _continued(self, identifier: str | None) -> str | None:
        """The earlier run, which is running again; None if there is none."""
        if identifier is None:
            return None
        try:
            self._client.update_run(identifier, status="RUNNING")
        except Exception as error:
            print(
                f"logger=mlflow: run {identifier} is not found ({one_line(error)}); a new one begins", file=sys.stderr
            )
            return None
        return identifier

    def _created(self, run: RunIdentity, param: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        identifier = str(self._client.create_run(number, run_name=run.name).info.run_id)
        # Of a name with a slash, a folder is made, where another name is a file.
        named = {key.replace("/", "."): str(value)[:_MAX_PARAM_LENGTH] for key, value in run.settings.items()}
        params = [param(key, value) for key, value in named.items()]
        for first in range(0, len(params), 100):  # no request takes more
            self._client.log_batch(identifier, params=params[first : first + 100])
        return identifier

    def _last_steps(self) -> dict[str, int]:
        """Name of each metric -> the last epoch logged for it, even if logging was killed between two metrics."""
        names = self._client.get_run(self._id).data.metrics
        histories = {name: self._client.get_metric_history(self._id, name) for name in names}
        return {name: max(metric.step for metric in history) for name, history in histories.items() if history}

    def _log(self, numbers: Mapping[str, float], pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        now = int(1000 * time.time())
        new = [(name, value) for name, value in numbers.items() if self._steps.get(name, 0) < epoch]
        self._client.log_batch(self._id, metrics=[self._metric(name, value, now, epoch) for name, value in new])
        self._steps.update({name: epoch for name, _ in new})
        for name, picture in pictures.items():
            file = f"{name}/epoch_{epoch:04d}.png"
            self._client.log_image(self._id, picture.transpose(1, 2, 0), artifact_file=file)

    def _finish(self, error: BaseException | None) -> None:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        self._client.set_terminated(self._id, status="FINISHED" if error is None else "KILLED" if stopped else "FAILED")
