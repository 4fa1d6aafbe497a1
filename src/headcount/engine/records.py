"""What a run measures and writes while it trains: epoch means, metrics.jsonl and TensorBoard.

One line an epoch in metrics.jsonl; a resumed run cuts both back to its checkpoint, so that they
read as if it had never stopped.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from headcount.config import ConfigError
from headcount.engine.runtime import Runtime
from headcount.runs import METRICS_FILE, read_metrics
from headcount.types import Batch, BlockPrediction, LossTerms


class Records:
    """Writes the records of the main process."""

    def __init__(self, folder: Path, *, start_epoch: int) -> None:
        """Open the records of ``folder``; forget epochs from ``start_epoch`` (0-based) on.

        Raises:
            ConfigError: if an epoch before is missing.
        """
        self.file = folder / METRICS_FILE
        kept = [r for r in read_metrics(folder) if r["epoch"] <= start_epoch]
        if [r["epoch"] for r in kept] != list(range(1, start_epoch + 1)):
            raise ConfigError(
                f"{self.file} does not hold epochs 1 to {start_epoch}, which the checkpoint has trained: put the whole "
                "file back, or start another run with run_name=NAME"
            )
        self.file.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self.writer = SummaryWriter(str(folder), purge_step=start_epoch + 1)

    def write(self, record: dict[str, Any]) -> None:
        """One epoch's numbers; ``record["epoch"]`` counts from 1."""
        with self.file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "epoch":
                self.writer.add_scalar(key, value, record["epoch"])
        self.writer.flush()

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Pictures (3, height, width) in bytes, by name."""
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, epoch)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()


class NoRecords:
    """Stands where another process writes."""

    def write(self, record: dict[str, Any]) -> None:
        """Nothing to do."""

    def pictures(self, pictures: dict[str, np.ndarray], epoch: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Meter:
    """Sums of one epoch, kept on the device until somebody looks."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        self.started = time.perf_counter()
        self.sums: dict[str, Tensor] = {}
        self.counts: list[Tensor] = []
        self.unseen: list[tuple[Tensor, list[str]]] = []

    def add(self, loss: LossTerms, prediction: BlockPrediction, batch: Batch) -> None:
        """Take in one step; waits for nothing."""
        blocks = prediction.block_counts.detach()
        total = loss.total.detach()
        values = {"total": total, **loss.parts, "empty_blocks": (blocks < 0.5).float().mean()}
        for key, value in values.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.counts.append(blocks.sum((1, 2, 3)))
        self.unseen.append((total, batch.names))
        self.steps += 1
        self.images += len(batch.names)

    def look(self) -> str:
        """The mean of each term so far; waits for the device.

        Raises:
            FloatingPointError: if a loss since the last look is not finite.
        """
        finite = torch.stack([total for total, _ in self.unseen]).isfinite().tolist() if self.unseen else []
        if not all(finite):
            total, names = self.unseen[finite.index(False)]
            raise FloatingPointError(
                f"the loss became {float(total)} on the batch of {', '.join(names)}; what was saved is from "
                "before. A lower optim.lr, or optim.max_grad_norm=1, usually helps"
            )
        self.unseen.clear()
        return " ".join(f"{key} {float(value) / self.steps:.4g}" for key, value in self.sums.items())

    def close(self, runtime: Runtime) -> dict[str, float]:
        """The epoch's means over all processes, and its speed."""
        self.look()
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
            "train/predicted_spread": max(second / images - mean**2, 0.0) ** 0.5,
            "train/images_per_second": images / seconds,
            "train/seconds": seconds,
        }
