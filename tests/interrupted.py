"""Tiny runs to interrupt, the processes that are killed in them, and a comparison with an uninterrupted run."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from forked import free_port
from headcount.cli.compose import compose, to_config
from headcount.config import TrainConfig
from headcount.engine import checkpoint, records
from headcount.engine import train as loop
from headcount.engine.train import train
from headcount.runs import read_metrics

SETTINGS = ["scale=smoke", "model.width=8", "runtime=cpu", "augment.crop_size=64", "run_name=run", "batch_size=2"]
SETTINGS += ["dataset.width=64", "dataset.height=64", "dataset.max_people=9", "optim.ema_decay=0.9"]
SETTINGS += ["dataset.train_images=8", "dataset.max_train_images=8", "dataset.val_images=2"]
STEPS = 4
"""Steps per epoch of these settings."""
_CLOCK = ("train/seconds", "train/images_per_second", "train/peak_memory_mib")


def config_of(output: Path, *overrides: str) -> TrainConfig:
    """The config of a tiny run below ``output``."""
    typed = [*SETTINGS, "epochs=2", "eval_every_epochs=1", "runtime.workers=0", f"output_dir={output}", *overrides]
    return to_config(compose(typed, config_name="train"))


def folder_of(output: Path) -> Path:
    """The folder of that run."""
    return output / "synthetic" / "run" / "seed1"


# ------------------------------------------------------------------------------------------- what must be equal


def assert_same_run(one: Path, other: Path) -> None:
    """Compare weights, records and curves of two finished runs, bit for bit, except for speed and memory."""
    for name in (checkpoint.LAST, checkpoint.BEST):
        first, second = (checkpoint.read(folder / name) for folder in (one, other))
        assert (first["epoch"], first["best"]) == (second["epoch"], second["best"])
        for part in ("model", "average"):
            for key, value in first.get(part, {}).items():
                assert torch.equal(value, second[part][key]), (name, part, key)
    assert _records(one) == _records(other)
    assert _scalars(one) == _scalars(other)
    assert not (other / checkpoint.MID_EPOCH).exists()


def _records(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in _CLOCK} for record in read_metrics(folder)]


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag not in _CLOCK]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


# ---------------------------------------------------------------------------------- processes that are killed


@dataclass(frozen=True)
class CrashPoint:
    """A place in the writing of a file where a process kills itself."""

    place: str
    """``half``: half of a file's bytes are written; ``before``, ``after``: it gets its name; ``unlink``: it is removed;
    ``append``: half of the events of an epoch are added; ``appended``: all are."""
    file: str = ""
    """Name of the file."""

    def install(self) -> None:
        """Let this process kill itself there."""
        if self.place == "half" and self.file.endswith(".pt"):
            torch.save = _half_of_a_checkpoint(torch.save, self.file)  # type: ignore[assignment]
        elif self.place == "half":
            Path.write_text = _half_of_a_text(Path.write_text, self.file)  # type: ignore[method-assign]
        elif self.place in ("before", "after"):
            os.replace = _renaming(os.replace, self.file, first=self.place == "after")
        elif self.place == "unlink":
            Path.unlink = _removing(Path.unlink, self.file)  # type: ignore[method-assign]
        else:
            records.append_bytes = _adding(records.append_bytes, share=0.5 if self.place == "append" else 1)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _half_of_a_checkpoint(save: Callable[..., None], name: str) -> Callable[..., None]:
    def saving(content: Any, file: Any, **options: Any) -> None:
        if not Path(getattr(file, "name", "")).name.startswith(f".{name}."):
            return save(content, file, **options)
        whole = BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        return _die()

    return saving


def _half_of_a_text(write: Callable[..., int], name: str) -> Callable[..., int]:
    def writing(self: Path, text: str, **options: Any) -> int:
        # The first writing at the start of a process repeats what is there.
        if not self.name.startswith(f".{name}.") or text == _read(self.with_name(name)):
            return write(self, text, **options)
        write(self, text[: len(text) // 2], **options)
        _die()
        return 0

    return writing


def _read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def _renaming(replace: Callable[..., None], name: str, *, first: bool) -> Callable[..., None]:
    def renaming(source: Any, target: Any) -> None:
        dies = Path(target).name == name and Path(source).read_bytes() != (
            Path(target).read_bytes() if Path(target).exists() else b""
        )
        if first or not dies:
            replace(source, target)
        if dies:
            _die()

    return renaming


def _removing(unlink: Callable[..., None], name: str) -> Callable[..., None]:
    def removing(self: Path, missing_ok: bool = False) -> None:
        if self.name == name and self.exists():
            _die()
        unlink(self, missing_ok=missing_ok)

    return removing


def _adding(append: Callable[..., None], *, share: float) -> Callable[..., None]:
    def adding(path: Path, data: bytes) -> None:
        append(path, data[: int(share * len(data))])
        _die()

    return adding


def _work(
    config: TrainConfig, environment: dict[str, str], point: CrashPoint | None, steps: Connection, log: Path
) -> None:
    """Train, in a process of its own, and send a byte after each step."""
    os.environ.update(environment)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py"]
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the loading of data, as in a command
    if point is not None:
        point.install()
    train_step = loop.train_step

    def stepping(*arguments: Any) -> Any:
        result = train_step(*arguments)
        steps.send_bytes(b"1")
        return result

    loop.train_step = stepping
    train(config)


class Attempt:
    """A training in one or two processes, forked from one that has imported everything."""

    def __init__(self, config: TrainConfig, log: Path, *, point: CrashPoint | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["headcount.engine.train", "headcount.cli.compose", "tensorboard.summary"])
        self.steps, sender = context.Pipe(duplex=False)
        self.processes = []
        devices = config.runtime.devices
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(devices)}
        for rank in range(devices):
            environment = {**common, "NODE_RANK": "0", "LOCAL_RANK": str(rank)} if devices > 1 else {}
            arguments = (config, environment, None if rank else point, sender, log)
            self.processes.append(context.Process(target=_work, args=arguments))
            self.processes[-1].start()
        sender.close()

    def wait_for_step(self, count: int, timeout: float = 120) -> bool:
        """Wait until rank 0 or another has done so many steps; False if all ended before."""
        try:
            for _ in range(count * len(self.processes)):
                if not self.steps.poll(timeout):
                    raise TimeoutError(f"no step in {timeout} s")
                self.steps.recv_bytes()
        except EOFError:
            return False
        return True

    def end(self, timeout: float = 120) -> list[int | None]:
        """Wait for the end; the exit codes by rank, negative for signals."""
        for process in self.processes:
            process.join(timeout)
        return [process.exitcode for process in self.processes]

    def kill(self, ranks: list[int], pause: float) -> list[int | None]:
        """Send SIGKILL to the processes in this order, with a pause in seconds between them."""
        for k, rank in enumerate(ranks):
            if k:
                self.processes[rank].join(pause)
            self.processes[rank].kill()
        return self.end()
