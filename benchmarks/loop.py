"""Measure what the training loop adds to its bare calls: ``python benchmarks/loop.py model=mobilenet_v2``.

Runs train.py's own loop, with its loader, sums and progress bar, and after each of its steps the bare calls on the same
batch: forward, loss, backward and optimizer step of a copy of the network, without Fabric. Columns, medians of the
steps in milliseconds:

* ``bare``: the four calls.
* ``step``: train_step, which adds the transfer to the device, clipping or the norm of the gradients, the learning rate
  and the average of the weights.
* ``rest``: the rest of the loop's body: sums, checks of the loss, progress bar.
* ``wait``: for the next batch. While the bare calls run, loading continues, so that it is less than in a training.
* ``added``: median of (step + rest) / bare - 1, without the first steps.

With one thread on a CPU, times are those of the processor, which other programs do not lengthen; the wait is always
that of the clock. optim.ema_decay=null and optim.max_grad_norm=null leave out what is a choice of the recipe. Weights
are random unless model.weights names some. OMP_NUM_THREADS sets the number of CPU threads.
"""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError, Precision, PretrainedConfig, check
from headcount.data.loading import TrainLoader
from headcount.engine import train as training
from headcount.engine.optim import build_optimizer
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job
from headcount.types import Batch
from timing import device_name, format_table, median_ms, synchronize
from workload import parse_config

MAX_ADDED = 0.02
"""Goal: the loop adds at most this fraction to the bare calls."""

MAX_EPOCHS = 100_000
"""More than any measurement needs."""

WARM_UP = 5
"""Number of first steps that are not counted: libraries choose kernels, the optimizer creates its state."""


class EnoughStepsError(Exception):
    """Ends the training once enough steps are measured."""


def main() -> None:
    """Read the command line, and measure."""
    parser = script_parser(__doc__)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of train.py, such as model=tiny")
    parser.add_argument("--steps", type=whole_number, default=100, help="optimizer steps that are counted")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        times = measure(arguments.settings, steps=arguments.options.steps)
    print_times(times)


@dataclass
class Times:
    """Seconds of each counted step."""

    device: str = "cpu"
    bare: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    """From the end of train_step until the next batch is asked for."""
    wait: list[float] = field(default_factory=list)

    def complete(self) -> int:
        """Number of steps of which every part is known."""
        return min(map(len, (self.bare, self.step, self.rest, self.wait)))


class Recorder:
    """Takes the place of train_step and of the loader's iterator, and times what happens between them."""

    def __init__(self, steps: int) -> None:
        self.times = Times()
        self._needed = steps + WARM_UP
        self._train_step = training.train_step
        self._epoch = TrainLoader.epoch
        self._clock = time.perf_counter
        self._bare: BareTraining | None = None
        self._ended: float | None = None
        """When the last train_step and the bare calls after it ended."""

    def batches(self, loader: TrainLoader, *arguments: Any, **options: Any) -> Iterator[Batch]:
        """The batches of an epoch; times the wait for each."""
        batches = iter(self._epoch(loader, *arguments, **options))
        while True:
            if self._ended is not None:
                self.times.rest.append(self._clock() - self._ended)
                self._ended = None
            if self.times.complete() >= self._needed:
                raise EnoughStepsError
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.times.wait.append(time.perf_counter() - asked)
            yield batch

    def train_step(self, runtime: Runtime, job: Job, batch: Batch) -> Any:
        """The training's own step, and then the bare calls on the same batch."""
        if self._bare is None:
            self._bare = BareTraining(job)
            self.times.device = runtime.device.type
            if self.times.device == "cpu" and torch.get_num_threads() == 1:
                self._clock = time.process_time
        start = self._clock()
        result = self._train_step(runtime, job, batch)
        synchronize(self.times.device)
        between = self._clock()
        self._bare.step(runtime, batch)
        synchronize(self.times.device)
        self._ended = self._clock()
        self.times.step.append(between - start)
        self.times.bare.append(self._ended - between)
        return result


class BareTraining:
    """A copy of a training's network that is trained by the bare calls."""

    def __init__(self, job: Job) -> None:
        self.network = copy.deepcopy(job.counter)
        self.loss = job.loss
        self.optimizer = build_optimizer(job.config.optim, self.network)

    def step(self, runtime: Runtime, batch: Batch) -> None:
        """Forward, loss, backward and optimizer step."""
        batch = runtime.to_device(batch)
        prediction = self.network(batch.images)
        with runtime.single_thread():
            loss = self.loss(prediction, batch)
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(settings: Sequence[str], *, steps: int) -> Times:
    """Train with these settings until enough steps are measured.

    Raises:
        HeadcountError: as train.py.
    """
    settings = list(settings)
    typed = parse_config(settings)
    if typed.runtime.precision is not Precision.float32:
        raise ConfigError(f"runtime.precision={typed.runtime.precision.name}: the bare calls are in float32")
    if isinstance(typed.model, PretrainedConfig) and not any(s.startswith("model.weights=") for s in settings):
        settings.append("model.weights=none")
    recorder = Recorder(steps)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(training, "train_step", recorder.train_step),
        patch.object(TrainLoader, "epoch", lambda loader, *args, **options: recorder.batches(loader, *args, **options)),
        suppress(EnoughStepsError),
    ):
        endless = [f"epochs={MAX_EPOCHS}", f"eval_every_epochs={MAX_EPOCHS}"]
        config = parse_config([*settings, *endless, f"output_dir={folder}", "run_name=loop"])
        if errors := check(config):
            raise ConfigError("\n  ".join(errors))
        training.train(config)
    return recorder.times


def print_times(times: Times) -> None:
    """Print the table."""
    counted = slice(WARM_UP, times.complete())
    bare, step, rest, wait = (np.array(getattr(times, key)[counted]) for key in ("bare", "step", "rest", "wait"))
    added = float(np.median((step + rest) / bare)) - 1
    parts = {"bare": bare, "step": step, "rest": rest, "wait": wait}
    row = {"steps": str(len(bare))} | {f"{key} ms": f"{median_ms(part):.2f}" for key, part in parts.items()}
    goal = {"added": f"{added:.1%}", f"added<={MAX_ADDED:.0%}": "yes" if added <= MAX_ADDED else "no"}
    print(f"{device_name(times.device)}\n\n{format_table([row | goal])}")


if __name__ == "__main__":
    main()
