"""Measurements of a training run: epoch means, metrics.jsonl and TensorBoard; ``trackers`` has other places.

metrics.jsonl has one line per epoch. A resumed run truncates both to its checkpoint, so that they
look as if it had never stopped.
"""

import math
import os
import socket
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from headcount.config import Tracker
from headcount.engine.runtime import Runtime
from headcount.engine.trackers import EpochLog, RunIdentity, open_trackers
from headcount.errors import CheckpointError
from headcount.files import append_bytes, json_line, read_text, write_text
from headcount.metrics import EMPTY_BELOW
from headcount.runs import CONFIG_FILE, METRICS_FILE, read_metrics
from headcount.types import Batch, LossTerms, Prediction

_EVENTS = "events.out.tfevents"
# The name of the gradient's L2 norm among the logged values.
_GRADIENT = "gradient_norm"


class Records:
    """Writes metrics.jsonl and logs its lines elsewhere, on rank 0."""

    def __init__(
        self,
        folder: Path,
        *,
        start_epoch: int,
        last: dict[str, Any] | None = None,
        open_logs: Callable[[int], Sequence[EpochLog]] | None = None,
    ) -> None:
        """Open the records of ``folder``, without epochs after the first ``start_epoch``.

        Args:
            last: the record of epoch ``start_epoch``; added if a kill came before it was written. None if unknown.
            open_logs: opens the other places, given the number of epochs that are logged there; None opens TensorBoard.

        Raises:
            CheckpointError: if one of the first ``start_epoch`` epochs is missing.
            ConfigError: if a tracker cannot be opened.
        """
        self.file = folder / METRICS_FILE
        self._records = [r for r in read_metrics(folder) if r["epoch"] <= start_epoch]
        unwritten = [last] if last is not None and len(self._records) == start_epoch - 1 else []
        self._records += unwritten
        if [r["epoch"] for r in self._records] != list(range(1, start_epoch + 1)):
            raise CheckpointError(
                f"{self.file} does not contain epochs 1 to {start_epoch}, which the checkpoint has trained: restore "
                "the whole file, or start another run with run_name=NAME"
            )
        self._folder = folder
        self._start_epoch = start_epoch
        logged = start_epoch - len(unwritten)
        self._logs = [Events(folder, purge_step=logged + 1)] if open_logs is None else open_logs(logged)
        if unwritten:
            self._log({})
        self._write()

    def write(self, record: dict[str, Any], *, shown: Mapping[str, float] | None = None) -> None:
        """Append the numbers of one epoch; ``record["epoch"]`` counts from 1.

        Args:
            record: what metrics.jsonl and all logs get.
            shown: what only logs get, because it depends on the machine and on earlier epochs of the process.

        Raises:
            OutputError: if a file cannot be written.
        """
        settings = self._folder / CONFIG_FILE
        if record["epoch"] == self._start_epoch + 1 and settings.is_file():
            for log in self._logs:
                log.add_settings(read_text(settings), self._start_epoch)
        self._records.append(record)
        self._log(shown or {})
        self._write()

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Add images (3, height, width) in bytes, by name; they are written with the numbers of the epoch."""
        for log in self._logs:
            log.add_pictures(pictures, epoch)

    def close(self, error: BaseException | None) -> None:
        """Finish the logs.

        Args:
            error: what ended the run; None if it ended as planned.
        """
        for log in self._logs:
            log.close(error)

    def _log(self, shown: Mapping[str, float]) -> None:
        for log in self._logs:
            log.write(self._records, shown=shown)

    def _write(self) -> None:
        """Write all lines anew: half a line must never be seen."""
        write_text(self.file, "".join(map(json_line, self._records)))


def open_logs(run: RunIdentity, logged: int) -> list[EpochLog]:
    """Open the places where a run is logged; of one that is logged completely, none that would start a run of its own.

    Args:
        logged: number of epochs that are logged already.

    Raises:
        ConfigError: if one cannot be reached.
    """
    board: list[EpochLog] = (
        [Events(run.folder, purge_step=logged + 1)] if Tracker.tensorboard in run.config.logger else []
    )
    return board if logged >= run.config.epochs else [*board, *open_trackers(run, logged=logged)]


class Events:
    """A new TensorBoard file in a folder, whose name sorts after those of the earlier ones.

    TensorBoard reads the files of a folder in the order of their names, which begin with the time: after the clock
    was set back, the time of the last file counts on. Unlike torch's ``SummaryWriter``, which writes in a thread, an
    epoch is written completely or not at all, and an error of writing is raised where it can be reported.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Name the file; it is created by the first :meth:`write`.

        Args:
            purge_step: steps of earlier files that are hidden, from this one on.
        """
        names = [file.name.split(".") for file in folder.glob(f"{_EVENTS}.*")]
        times = [int(name[3]) + 1 for name in names if len(name) > 3 and name[3].isdigit()]
        started = max([int(time.time()), *times])
        self.file = folder / f"{_EVENTS}.{started:010d}.{socket.gethostname()}.{os.getpid()}.0"
        self._unwritten = BytesIO()
        self._append(Event(step=purge_step, file_version="brain.Event:2"))
        self._append(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_settings(self, text: str, epoch: int) -> None:
        """Add the settings as text."""
        self._add(summary.text("settings", textwrap.indent(text, "    ")), epoch)  # a code block in Markdown

    def add_pictures(self, pictures: Mapping[str, np.ndarray], epoch: int) -> None:
        """Add pictures (3, height, width) in bytes by name."""
        for name, picture in pictures.items():
            self._add(summary.image(name, picture, dataformats="CHW"), epoch)

    def write(self, records: Sequence[Mapping[str, Any]], *, shown: Mapping[str, float]) -> None:
        """Write the numbers of the last record, and what was added since the one before.

        Raises:
            OutputError: if the file cannot be written; nothing of it then is.
        """
        epoch = records[-1]["epoch"]
        for key, value in {**records[-1], **shown}.items():
            if isinstance(value, (int, float)) and key != "epoch":
                self._add(summary.scalar(key, value), epoch)
        append_bytes(self.file, self._unwritten.getvalue())
        self._unwritten = BytesIO()

    def close(self, error: BaseException | None) -> None:
        """Do nothing: every record is written completely."""

    def _add(self, what: Summary, step: int) -> None:
        self._append(Event(step=step, summary=what))

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        RecordWriter(self._unwritten).write(event.SerializeToString())


class NoRecords:
    """Used on all ranks but the first: writes nothing."""

    def write(self, record: dict[str, Any], *, shown: Mapping[str, float] | None = None) -> None:
        """Do nothing."""

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Do nothing."""

    def close(self, error: BaseException | None) -> None:
        """Do nothing."""


@dataclass
class _Step:
    """A step whose loss has not been checked yet."""

    values: dict[str, Tensor]
    """The loss, its terms, and the norm of the gradient, on the device."""
    names: list[str]
    """Files of the batch."""

    def describe(self, *, gradient: bool) -> str:
        """Say what is not finite: the loss, or only the ``gradient``; and which terms. Device sync."""
        numbers = {name: float(value) for name, value in self.values.items()}
        total, norm = numbers.pop("total"), numbers.pop(_GRADIENT, math.nan)
        wrong = [f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value)]
        terms = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if math.isfinite(value))
        files = f"on the batch of {', '.join(self.names)}"
        if gradient:
            return f"the norm of the gradient became {norm} {files}, though the loss is {total:.4g} ({terms})"
        finite = f"; finite are {terms}" if terms else ""
        return (
            f"the loss became {total} {files} (not finite: {', '.join(wrong) or 'only the sum of its terms'}{finite})"
        )


class Meter:
    """Sums over one epoch, kept on the device until they are read."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch
        """Number of the epoch, from 1."""
        self.steps = 0
        self.images = 0
        self.lr = math.nan
        """Learning rate of the last step."""
        self.started = time.perf_counter()
        self.sums: dict[str, Tensor] = {}
        self.counts: list[Tensor] = []
        self.unchecked: list[_Step] = []

    def add(self, loss: LossTerms, prediction: Prediction, batch: Batch) -> None:
        """Add one step; no device sync."""
        total = loss.total.detach()
        values = {"total": total, **loss.parts, **loss.logged}
        count = prediction.count.detach()
        if prediction.blocks is not None:
            empty = (prediction.blocks.detach() < EMPTY_BELOW).float()
            if "mask" in batch.targets:
                seen = (batch.target("mask") > 0).float()
                count = batch.within_mask(prediction.blocks.detach().float()).sum((1, 2, 3))
                values["empty_blocks"] = (empty * seen).sum() / seen.sum().clamp(min=1)
            else:
                values["empty_blocks"] = empty.mean()
        for key, value in values.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.counts.append(count)
        norm = {_GRADIENT: loss.logged[_GRADIENT]} if _GRADIENT in loss.logged else {}
        self.unchecked.append(_Step({"total": total, **loss.parts, **norm}, batch.names))
        self.steps += 1
        self.images += len(batch.names)

    def check(self, runtime: Runtime | None = None) -> str:
        """The mean of each term so far, as text; device sync.

        Args:
            runtime: all processes check together, so that all stop with the same message; None checks this one alone.

        Raises:
            FloatingPointError: if a loss, or the gradient, of a step since the last check is not finite; names the
                files of the batch and the terms of the loss.
        """
        # With fp16, gradients that overflow are skipped and the scale of the loss is lowered: an error only at the end.
        scaled = runtime is not None and runtime.loss_scale() > 1
        found = self._first_not_finite(gradients=not scaled)
        errors = [] if found is None else [found]
        if runtime is not None:
            errors = runtime.gather(errors)
        if errors:
            # The process whose loss became NaN says more than those that received its gradient.
            step, _, text = min(errors)
            raise FloatingPointError(f"epoch {self.epoch}, step {step}: {text}")
        self.unchecked.clear()
        return " ".join(f"{key} {float(value) / self.steps:.4g}" for key, value in self.sums.items())

    def _first_not_finite(self, *, gradients: bool) -> tuple[int, bool, str] | None:
        """The first step whose loss, or else gradient, is not finite: its number, whether only the gradient, and text.

        None if there is none.
        """
        names = ("total", _GRADIENT) if gradients else ("total",)
        watched = [[step.values[name] for name in names if name in step.values] for step in self.unchecked]
        finite = torch.stack([torch.stack(values).float() for values in watched]).isfinite().tolist() if watched else []
        for k, (step, values) in enumerate(zip(self.unchecked, finite, strict=True)):
            if not all(values):
                return self.steps - len(self.unchecked) + k + 1, values[0], step.describe(gradient=values[0])
        return None

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint in the middle of the epoch; device sync."""
        return {
            "steps": self.steps,
            "images": self.images,
            "lr": self.lr,
            "seconds": time.perf_counter() - self.started,
            "sums": {key: value.cpu() for key, value in self.sums.items()},
            "counts": torch.cat(self.counts).cpu(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` returned, as if its steps were done here."""
        self.steps, self.images, self.lr = state["steps"], state["images"], state["lr"]
        self.started = time.perf_counter() - state["seconds"]
        self.sums = {key: value.to(device) for key, value in state["sums"].items()}
        self.counts = [state["counts"].to(device)]

    def close(self, runtime: Runtime) -> dict[str, float]:
        """The epoch's means over all processes, and its speed."""
        self.check(runtime)
        keys = list(self.sums)
        counts = torch.cat(self.counts).double()
        local = [float(self.sums[k]) for k in keys]
        # A method may make several crops of an image, and so several counts.
        *sums, steps, images, number, first, second = runtime.sum(
            [*local, self.steps, self.images, len(counts), float(counts.sum()), float(counts.square().sum())]
        )
        seconds = time.perf_counter() - self.started
        mean = first / number
        return {
            **{f"train/{key}": value / steps for key, value in zip(keys, sums, strict=True)},
            "train/predicted_mean": mean,
            "train/predicted_std": max(second / number - mean**2, 0.0) ** 0.5,
            "train/images_per_second": images / seconds,
            "train/seconds": seconds,
        }
