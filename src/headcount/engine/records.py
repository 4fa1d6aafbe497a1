"""Measurements of a training run: epoch means, metrics.jsonl and TensorBoard.

metrics.jsonl has one line per epoch. A resumed run truncates both to its checkpoint, so that they
look as if it had never stopped.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from headcount.engine.runtime import Runtime
from headcount.errors import CheckpointError
from headcount.files import write_text
from headcount.metrics import EMPTY_BELOW
from headcount.runs import METRICS_FILE, read_metrics
from headcount.types import Batch, LossTerms, Prediction


class Records:
    """Writes metrics.jsonl and TensorBoard events, on rank 0."""

    def __init__(self, folder: Path, *, start_epoch: int) -> None:
        """Open the records of ``folder``, without epochs after the first ``start_epoch``.

        Raises:
            CheckpointError: if one of the first ``start_epoch`` epochs is missing.
        """
        self.file = folder / METRICS_FILE
        kept = [r for r in read_metrics(folder) if r["epoch"] <= start_epoch]
        if [r["epoch"] for r in kept] != list(range(1, start_epoch + 1)):
            raise CheckpointError(
                f"{self.file} does not contain epochs 1 to {start_epoch}, which the checkpoint has trained: restore "
                "the whole file, or start another run with run_name=NAME"
            )
        write_text(self.file, "".join(json.dumps(record) + "\n" for record in kept))
        self.writer = SummaryWriter(str(folder), purge_step=start_epoch + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Append the numbers of one epoch; ``record["epoch"]`` counts from 1."""
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "epoch":
                self.writer.add_scalar(key, value, record["epoch"])
        self.writer.flush()

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Add images (3, height, width) in bytes, by name."""
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, epoch)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


class NoRecords:
    """Used on all ranks but the first: writes nothing."""

    def write(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Meter:
    """Sums over one epoch, kept on the device until they are read."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        self.started = time.perf_counter()
        self.sums: dict[str, Tensor] = {}
        self.counts: list[Tensor] = []
        self.unchecked: list[tuple[Tensor, list[str]]] = []

    def add(self, loss: LossTerms, prediction: Prediction, batch: Batch) -> None:
        """Add one step; no device sync."""
        total = loss.total.detach()
        values = {"total": total, **loss.parts, **loss.logged}
        if prediction.blocks is not None:
            values["empty_blocks"] = (prediction.blocks.detach() < EMPTY_BELOW).float().mean()
        for key, value in values.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.counts.append(prediction.count.detach())
        self.unchecked.append((total, batch.names))
        self.steps += 1
        self.images += len(batch.names)

    def check(self) -> str:
        """The mean of each term so far, as text; device sync.

        Raises:
            FloatingPointError: if a loss since the last check is not finite; names the files of the batch.
        """
        finite = torch.stack([total for total, _ in self.unchecked]).isfinite().tolist() if self.unchecked else []
        if not all(finite):
            total, names = self.unchecked[finite.index(False)]
            raise FloatingPointError(
                f"the loss became {float(total)} on the batch of {', '.join(names)}; the saved checkpoints are from "
                "before. A lower optim.lr, or optim.max_grad_norm=1, usually helps"
            )
        self.unchecked.clear()
        return " ".join(f"{key} {float(value) / self.steps:.4g}" for key, value in self.sums.items())

    def close(self, runtime: Runtime) -> dict[str, float]:
        """The epoch's means over all processes, and its speed."""
        self.check()
        keys = list(self.sums)
        counts = torch.cat(self.counts).double()
        local = [float(self.sums[k]) for k in keys]
        *sums, steps, images, first, second = runtime.sum(
            [*local, self.steps, self.images, float(counts.sum()), float(counts.square().sum())]
        )
        seconds = time.perf_counter() - self.started
        mean = first / images
        return {
            **{f"train/{key}": value / steps for key, value in zip(keys, sums, strict=True)},
            "train/predicted_mean": mean,
            "train/predicted_std": max(second / images - mean**2, 0.0) ** 0.5,
            "train/images_per_second": images / seconds,
            "train/seconds": seconds,
        }
