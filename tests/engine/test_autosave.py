"""A run that is stopped within an epoch continues there, bit for bit, and its last good state is never replaced."""

import dataclasses
import math
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcount.config import RuntimeConfig
from headcount.data.crowd import CrowdDataset
from headcount.engine import autosave, checkpoint
from headcount.engine import train as loop
from headcount.engine.autosave import ASK_EVERY, Autosave
from headcount.engine.runtime import Runtime
from headcount.engine.signals import StopSignals
from headcount.engine.train import FinishedRun, train
from headcount.errors import CheckpointError, DivergedError
from headcount.losses.dace import DaceLoss
from headcount.models.counter import Counter
from headcount.types import LossTerms
from interrupted import STEPS, assert_same_run, config_of, folder_of

LAST, BEST, MIDDLE = checkpoint.LAST, checkpoint.BEST, checkpoint.MID_EPOCH


def finish(output: Path, *overrides: str) -> FinishedRun:
    run = train(config_of(output, *overrides))
    assert run is not None
    return run


def make_noisy(patch: pytest.MonkeyPatch) -> None:
    """Let the loss depend on the random generators, as with dropout; Python's own is used by the type checker, too."""
    call = DaceLoss.__call__

    def noisy(self: DaceLoss, *arguments: Any) -> LossTerms:
        terms = call(self, *arguments)
        factor = 1 + 0.1 * (float(torch.rand(())) + float(np.random.rand()))  # noqa: NPY002
        return dataclasses.replace(terms, total=terms.total * factor)

    patch.setattr(DaceLoss, "__call__", noisy)


def signal_at(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Send a signal to this process in the middle of a step, counted over all epochs; returns the steps so far."""
    train_step, steps = loop.train_step, 0

    def stepping(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), number)
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", stepping)
    return lambda: steps


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An uninterrupted run, with randomness in its steps."""
    with monkeypatch.context() as patch:
        make_noisy(patch)
        yield finish(tmp_path / "whole").folder


# ------------------------------------------------------------------------------------------- stop and resume


@pytest.mark.parametrize(
    ("step", "workers", "number"),
    [
        (STEPS + 2, 0, "SIGTERM"),
        pytest.param(2, 2, "SIGUSR1", marks=pytest.mark.slow),
        pytest.param(STEPS, 2, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(STEPS + 3, 2, "SIGINT", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(
    tmp_path: Path, whole: Path, step: int, workers: int, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"runtime.workers={workers}", "save_every_minutes=null"]
    with monkeypatch.context() as patch:
        signal_at(step, getattr(signal, number), patch)
        with pytest.raises(KeyboardInterrupt if number == "SIGINT" else SystemExit) as stopped:
            train(config_of(tmp_path, *settings))
    assert number == "SIGINT" or stopped.value.code == 143
    content = checkpoint.read(folder_of(tmp_path) / MIDDLE)
    assert (content["epoch"], content["step"]) == ((step - 1) // STEPS, (step - 1) % STEPS + 1)
    assert checkpoint.load(folder_of(tmp_path) / MIDDLE).counter.grid.block_size == 8
    with monkeypatch.context() as patch:
        steps = signal_at(0, 0, patch)
        loaded: list[tuple[int, int]] = []
        load = CrowdDataset.__getitem__
        patch.setattr(CrowdDataset, "__getitem__", lambda self, key: (loaded.append(key), load(self, key))[1])
        resumed = finish(tmp_path, *settings, "resume=true")
        assert steps() == 2 * STEPS - step
        if workers == 0:  # what was trained is not loaded again
            assert len([key for key in loaded if isinstance(key, tuple)]) == 2 * (2 * STEPS - step)
    assert_same_run(whole, resumed.folder)


def test_a_signal_during_the_evaluation_stops_it_and_loses_no_step(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, counted = Counter.count, 0

    def counting(self: Counter, *arguments: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        if counted == 3:  # the first of two images in the second evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return count(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Counter, "count", counting)
        with pytest.raises(SystemExit):
            train(config_of(tmp_path))
    assert counted == 3
    content = checkpoint.read(folder_of(tmp_path) / MIDDLE)
    assert (content["epoch"], content["step"]) == (1, STEPS)
    with monkeypatch.context() as patch:
        steps = signal_at(0, 0, patch)
        resumed = finish(tmp_path, "resume=true")
        assert steps() == 0
    assert_same_run(whole, resumed.folder)


def test_a_kill_costs_what_was_trained_since_the_last_interval(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every step takes a minute."""
    minutes = 0.0

    class Killed(BaseException): ...

    def clock() -> float:
        return 60 * minutes

    train_step = loop.train_step

    def stepping(*arguments: Any) -> Any:
        nonlocal minutes
        minutes += 1
        if minutes == STEPS + 4:
            raise Killed
        return train_step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(autosave, "monotonic", clock)
        patch.setattr(loop, "train_step", stepping)
        with pytest.raises(Killed):
            train(config_of(tmp_path, "save_every_minutes=2"))
    content = checkpoint.read(folder_of(tmp_path) / MIDDLE)
    assert (content["epoch"], content["step"]) == (1, 2)  # two minutes after the end of the first epoch
    assert_same_run(whole, finish(tmp_path, "resume=true").folder)


def test_without_an_interval_nothing_is_saved_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda content, path: (saved.append(path.name), save(content, path))[1])
    finish(tmp_path / "off", "save_every_minutes=0", "eval_every_epochs=2")
    assert saved == [LAST, LAST, BEST]
    saved.clear()
    finish(tmp_path / "on", "save_every_minutes=1e-9", "eval_every_epochs=2")
    assert saved == [*[MIDDLE] * STEPS, LAST, *[MIDDLE] * STEPS, LAST, BEST]


# --------------------------------------------------------------------------------------- what must not be used


@pytest.mark.slow
def test_a_state_of_an_epoch_that_was_finished_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill may come between the checkpoint of the epoch and the removal of this file."""
    whole = finish(tmp_path / "whole").folder
    unlink = Path.unlink

    class Killed(BaseException): ...

    def kill(self: Path, **options: Any) -> None:
        if self.name == MIDDLE:
            raise Killed
        unlink(self, **options)

    with monkeypatch.context() as patch:
        signal_at(3, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            train(config_of(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", kill)
        with pytest.raises(Killed):
            train(config_of(tmp_path, "resume=true"))
    assert checkpoint.read(folder_of(tmp_path) / LAST)["epoch"] == 1
    assert checkpoint.read(folder_of(tmp_path) / MIDDLE)["epoch"] == 0
    assert_same_run(whole, finish(tmp_path, "resume=true").folder)


@pytest.mark.parametrize("broken", ["weights", "loss"])
def test_a_diverged_state_never_replaces_a_good_one(
    tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after every step, of which the third breaks the weights, or its loss only."""
    step, steps = loop.train_step, 0

    def breaking(runtime: Any, job: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        loss, prediction = step(runtime, job, batch)
        if steps == 3 and broken == "weights":
            next(job.counter.parameters()).data[0] = math.nan
        elif steps == 3:
            loss = dataclasses.replace(loss, total=loss.total * math.nan)
        return loss, prediction

    monkeypatch.setattr(loop, "train_step", breaking)
    words = "the weights are no longer finite" if broken == "weights" else "the loss became nan"
    with pytest.raises(DivergedError, match=f"^epoch 1, step 3: {words}") as caught:
        train(config_of(tmp_path, "save_every_minutes=1e-9"))
    assert f"safe in {folder_of(tmp_path)}: mid_epoch.pt of epoch 1, step 2;" in str(caught.value)
    content = checkpoint.read(folder_of(tmp_path) / MIDDLE)
    assert content["step"] == 2
    assert not checkpoint.not_finite(content["model"])
    assert not checkpoint.not_finite(content["processes"][0]["meter"]["sums"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(step=3), "'meter' is that of step 2, not 3"),
        (lambda content: content.update(step=0), "it is step 0 of 1 processes"),
        (lambda content: content.update(processes=content["processes"] * 2), "it is step 2 of 2 processes"),
        (lambda content: content.pop("processes"), "processes"),
        (lambda content: content["processes"][0]["random"].update(torch=torch.zeros(3)), "RNG state"),
        (lambda content: content["processes"][0]["meter"].pop("sums"), "sums"),
        (lambda content: content.pop("optimizer"), "optimizer"),
    ],
)
def test_a_damaged_state_is_refused_by_name_and_the_way_out_told(
    tmp_path: Path, stopped: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    file = stopped / MIDDLE
    before = file.read_bytes()
    content = checkpoint.read(file)
    change(content)
    checkpoint.save(content, file)
    try:
        with pytest.raises(CheckpointError) as caught:
            train(config_of(stopped.parents[2], "resume=true"))
    finally:
        file.write_bytes(before)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)
    assert "remove this file to continue after the last finished epoch" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK", "{file}: not a checkpoint of headcount, or it holds code, which is never run; remove this file"),
        (None, "{file}: is a folder, not a checkpoint; remove this folder to continue after the last finished epoch"),
    ],
)
def test_a_file_that_is_no_state_is_named_alone(
    tmp_path: Path, stopped: Path, content: bytes | None, words: str
) -> None:
    folder = folder_of(tmp_path)
    shutil.copytree(stopped, folder)
    (folder / MIDDLE).unlink()
    if content is None:
        (folder / MIDDLE).mkdir()
    else:
        (folder / MIDDLE).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        train(config_of(tmp_path, "resume=true"))
    assert str(caught.value).startswith(words.format(file=folder / MIDDLE))


def test_a_state_within_an_epoch_is_not_read_as_that_of_its_end(tmp_path: Path, stopped: Path) -> None:
    folder = folder_of(tmp_path)
    shutil.copytree(stopped, folder)
    (folder / MIDDLE).rename(folder / LAST)
    with pytest.raises(CheckpointError) as caught:
        train(config_of(tmp_path, "resume=true"))
    assert str(caught.value) == (
        f"{folder / LAST}: is the state after step 2 of an unfinished epoch, which is read as mid_epoch.pt only: "
        "rename it to mid_epoch.pt, or put the run's own file back, or start another run with run_name=NAME"
    )
    (folder / LAST).rename(folder / MIDDLE)
    assert finish(tmp_path, "resume=true").best is not None


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run stopped after two steps."""
    output = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        signal_at(2, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            train(config_of(output))
    return folder_of(output)


# ------------------------------------------------------------------------------------------ several processes


class Several(Runtime):
    """Stands for a runtime of two processes, of which the other one answers to each question as given."""

    def __init__(self, *, other: tuple[bool, int, int], is_main: bool = True) -> None:
        self.world, self.is_main, self.asked, self._other = 2, is_main, 0, other

    def gather(self, items: Any) -> Any:
        self.asked += 1
        return [*items, self._other] if self.is_main else [self._other, *items]


def test_the_clock_of_rank_0_and_a_signal_to_any_process_decide() -> None:
    late, early, signaled = (True, 0, 3), (False, 0, 3), (False, signal.SIGTERM, 3)

    def decision(**answers: Any) -> tuple[bool, int]:
        saver = Autosave(Several(**answers), StopSignals(), minutes=None)
        saver.start_epoch(0)
        decided = saver.decide(1, is_last=False)
        return decided.save, decided.signal

    assert decision(other=early) == (False, 0)
    assert decision(other=late) == (False, 0)
    assert decision(other=late, is_main=False) == (True, 0)
    assert decision(other=signaled) == (True, signal.SIGTERM)
    assert decision(other=signaled, is_main=False) == (True, signal.SIGTERM)


@pytest.mark.parametrize(
    ("seconds", "asked"),
    [(0.001, [1, 11, 21, 24]), (0.5, [1, 5, 9, 13, 17, 21, 24]), (3.0, list(range(1, 25)))],
)
def test_processes_ask_each_other_rarely_but_within_seconds(
    seconds: float, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(autosave, "monotonic", lambda: now)
    several = Several(other=(False, 0, 1))
    saver = Autosave(several, StopSignals(), minutes=10)
    saver.start_epoch(0)
    steps = []
    for step in range(1, 25):
        now += seconds
        before = several.asked
        saver.decide(step, is_last=step == 24)
        steps += [step] if several.asked > before else []
    assert steps == asked
    assert ASK_EVERY == 10


def test_random_states_are_those_of_all_generators() -> None:
    runtime = Runtime(RuntimeConfig(accelerator=config_of(Path()).runtime.accelerator))
    runtime.seed(7)
    state = runtime.random_state()

    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))  # noqa: NPY002

    first = draw()
    assert draw() != first
    runtime.load_random_state(state)
    assert draw() == first
