"""A run folder: kills, full disks and foreign files never cost what was trained before."""

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from headcount.cli.compose import compose, to_config
from headcount.config import RuntimeConfig, TrainConfig
from headcount.engine import checkpoint
from headcount.engine import train as loop
from headcount.engine.continuation import processes_note
from headcount.engine.lock import LOCK_FILE
from headcount.engine.records import Events, Records
from headcount.engine.run import RunFolder
from headcount.engine.setup import Job
from headcount.engine.train import FinishedRun, train
from headcount.errors import CheckpointError, ConfigError, DivergedError, OutputError
from headcount.files import temporary_name
from headcount.runs import read_metrics

TINY = ["scale=smoke", "model.width=8", "runtime=cpu", "runtime.workers=0", "augment.crop_size=64", "run_name=run"]
IMAGES = ["dataset.width=64", "dataset.height=64", "dataset.max_people=9", "dataset.train_images=4"]
LAST, BEST = checkpoint.LAST, checkpoint.BEST


def config_of(folder: Path, *overrides: str) -> TrainConfig:
    typed = [*TINY, *([] if "dataset=custom" in overrides else [*IMAGES, "dataset.val_images=2"])]
    return to_config(compose([*typed, f"output_dir={folder}", *overrides], config_name="train"))


def finish(folder: Path, *overrides: str) -> FinishedRun:
    run = train(config_of(folder, *overrides))
    assert run is not None
    return run


def folder_of(output: Path) -> Path:
    return output / "synthetic" / "run" / "seed1"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def without_clock(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("train/seconds", "train/images_per_second")} for r in records]


def same_results(one: Path, other: Path) -> None:
    for name in (LAST, BEST):
        first, second = (checkpoint.read(folder / name) for folder in (one, other))
        assert (first["epoch"], first["best"]) == (second["epoch"], second["best"])
        for key, value in first["model"].items():
            assert torch.equal(value, second["model"][key]), (name, key)
    assert without_clock(read_metrics(one)) == without_clock(read_metrics(other))


EVERY = ["epochs=2", "eval_every_epochs=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    return finish(tmp_path_factory.mktemp("whole"), *EVERY).folder


# -------------------------------------------------------------------- one process, and nothing to lose


@pytest.mark.parametrize("resume", [[], ["resume=true"]], ids=["new", "resume"])
def test_a_run_in_use_is_refused_before_any_work(
    tmp_path: Path, whole: Path, resume: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    shutil.copytree(whole, folder)
    held = RunFolder.open(loop.Runtime(config_of(tmp_path).runtime), config_of(tmp_path, "resume=true", *EVERY))
    before = contents(folder)
    assert LOCK_FILE in before
    monkeypatch.setattr(loop, "build_job", lambda *a, **k: pytest.fail("works on it"))
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}, .*run_name=NAME"):
        train(config_of(tmp_path, *EVERY, *resume))
    assert contents(folder) == before
    held.close()


def test_the_lock_is_released_at_the_end_and_on_errors(tmp_path: Path, whole: Path) -> None:
    assert LOCK_FILE not in contents(whole)
    with pytest.raises(ConfigError, match="already contains a run"):
        train(config_of(whole.parents[2], *EVERY))
    assert LOCK_FILE not in contents(whole)
    with pytest.raises(ConfigError):
        train(config_of(tmp_path / "new", "data_root=/nowhere", "dataset=sha"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kept", [[BEST, "metrics.jsonl"], [BEST], ["metrics.jsonl"], ["best_mae_epoch_2.pt"]])
def test_results_without_a_checkpoint_to_resume_from_are_kept(tmp_path: Path, whole: Path, kept: list[str]) -> None:
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    for name in kept:
        shutil.copy(whole / (name if name in contents(whole) else BEST), folder / name)
    before = contents(folder)
    with pytest.raises(ConfigError) as caught:
        train(config_of(tmp_path, *EVERY, "resume=true"))
    assert f"has results ({', '.join(sorted(kept))}) but no last.pt" in str(caught.value)
    assert "put last.pt back" in str(caught.value)
    assert contents(folder) == before


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.mkdir(parents=True)
    mine = temporary_name(folder / LAST)
    left = [mine.name.replace(f"-{os.getpid()}-", f"-{2**31}-"), ".last.pt.writing", f".last.pt.{'0' * 32}.part"]
    for name in (*left, mine.name, "notes.part"):
        (folder / name).write_text("half")
    finish(tmp_path, "epochs=1", "resume=true")
    assert {mine.name, "notes.part"} <= contents(folder).keys()
    assert not contents(folder).keys() & set(left)


# ---------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    ("before", "epoch"),
    [
        *((LAST, 1), ("metrics.jsonl", 1)),
        *(pytest.param(*kill, marks=pytest.mark.slow) for kill in ((BEST, 1), (BEST, 2), ("events", 2))),
        *(pytest.param(*kill, marks=pytest.mark.slow) for kill in (("metrics.jsonl", 2), ("the next", 1))),
    ],
)
def test_a_kill_between_any_two_files_of_an_epoch_changes_nothing(
    tmp_path: Path, whole: Path, before: str, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def kill(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    def at_epoch(function: Callable[..., Any], *, of: Callable[..., bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += of(*arguments)
            return kill() if of(*arguments) and calls == epoch else function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if before.endswith(".pt"):
            of = at_epoch(checkpoint.save, of=lambda content, path: path.name == before)
            patch.setattr(checkpoint, "save", of)
        elif before == "events":
            patch.setattr(Records, "write", at_epoch(Records.write, of=lambda *a: True))
        elif before == "metrics.jsonl":
            calls = -1  # the first is at the start
            patch.setattr(Records, "_write", at_epoch(Records._write, of=lambda *a: True))
        else:
            patch.setattr(RunFolder, "save", lambda self, *a, **k: (self._save(*a, **k), kill()))
        with pytest.raises(KeyboardInterrupt):
            train(config_of(tmp_path, *EVERY))
    resumed = finish(tmp_path, *EVERY, "resume=true")
    same_results(whole, resumed.folder)
    shown = EventAccumulator(str(resumed.folder)).Reload()
    assert [event.step for event in shown.Scalars("train/total")] == [1, 2]


# ------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((LOCK_FILE, errno.EROFS), ("metrics.jsonl", errno.EDQUOT), (LAST, errno.ENOSPC)),
        *(pytest.param(name, errno.ENOSPC, marks=pytest.mark.slow) for name in (BEST, "events.out.tfevents")),
        *(pytest.param(name, errno.ENOSPC, marks=pytest.mark.slow) for name in ("config.yaml", "run.json")),
    ],
)
def test_a_disk_that_takes_no_more_stops_in_words_and_costs_nothing(
    tmp_path: Path, whole: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the second epoch on, or for files of the start at the start of the second process."""
    folder = folder_of(tmp_path)
    started = name in (LOCK_FILE, "config.yaml", "run.json")
    finished = 0 if started else 1
    if started:
        finish(tmp_path, *EVERY)
    before: dict[str, bytes] = {}
    writes = {"metrics.jsonl": -1}.get(name, 0)  # metrics.jsonl is written at the start, too

    def full(target: Any) -> None:
        nonlocal writes
        if Path(target).name.startswith(name):
            writes += 1
            if writes > finished:
                before.update(contents(folder))
                raise OSError(number, os.strerror(number))

    replace, link, opening = os.replace, os.link, Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> IO[Any]:
        if mode in ("ab", "x"):
            full(self)
        return opening(self, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda source, target: (full(target), replace(source, target)))
        patch.setattr(os, "link", lambda source, target: (full(target), link(source, target)))
        patch.setattr(Path, "open", opened)
        with pytest.raises(OutputError) as caught:
            train(config_of(tmp_path, *EVERY, *(["resume=true"] if started else [])))
    message = str(caught.value)
    assert f"{folder}/{name}" in message
    assert os.strerror(number) in message
    if not started:
        assert f"safe in {folder}: last.pt of epoch {1 if name == LAST else 2}" in message
        assert "add resume=true" in message
    after = contents(folder)
    assert not [file for file in after if file.endswith((".part", LOCK_FILE))]
    assert after == {file: content for file, content in before.items() if file in after}
    same_results(whole, finish(tmp_path, *EVERY, "resume=true").folder)


# -------------------------------------------------------------------------------- diverged weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "average"), [(math.nan, []), (math.inf, ["optim.ema_decay=0.9"])], ids=["plain", "averaged"]
)
def test_weights_that_the_last_step_of_an_epoch_broke_never_replace_good_ones(
    tmp_path: Path, value: float, average: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = loop.train_step, 0

    def breaking(runtime: Any, job: Job, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        result = step(runtime, job, batch)
        if steps == 2 * len(job.loader):
            next(job.counter.parameters()).data[0] = value
        return result

    monkeypatch.setattr(loop, "train_step", breaking)
    with pytest.raises(DivergedError, match=r"^epoch 2, step \d: the weights are no longer finite \(") as caught:
        train(config_of(tmp_path, "epochs=4", "eval_every_epochs=4", *average))
    assert f"safe in {folder_of(tmp_path)}: last.pt of epoch 1;" in str(caught.value)
    saved = checkpoint.read(folder_of(tmp_path) / LAST)
    assert saved["epoch"] == 1
    assert all(bool(weights.isfinite().all()) for weights in saved["model"].values())
    monkeypatch.setattr(loop, "train_step", step)
    finish(tmp_path, "epochs=4", "eval_every_epochs=4", *average, "resume=true")


# ---------------------------------------------------------------------------- other images, other files


def own_images(root: Path, *, seed: int = 0, head: float = 9.0, val_seed: int = 0, val_head: float = 9.0) -> None:
    for split, images, first, position in (("train", 4, seed, head), ("val", 2, val_seed, val_head)):
        folder = root / split
        folder.mkdir(parents=True)
        for k in range(images):
            pixels = np.random.default_rng([first, k, images]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{k}.bmp")
            np.save(folder / f"{split}{k}.npy", np.full((3, 2), position))


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_images_and_points_only(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = ["dataset=custom", "dataset.min_side=64", f"dataset.cache_dir={tmp_path / 'cache'}", "epochs=1"]
    settings += [f"dataset.train={data / 'train'}", f"dataset.val={data / 'val'}", "resume=true"]
    config = config_of(tmp_path / "runs", *settings)
    variants: dict[str, dict[str, Any]] = {
        "here": {},
        "other training pixels": {"seed": 1},
        "other training points": {"head": 10.0},
        "other validation pixels": {"val_seed": 1},
        "other validation points": {"val_head": 10.0},
    }
    first = None
    for variant, changes in variants.items():
        shutil.rmtree(data, ignore_errors=True)
        own_images(data, **changes)
        if first is None:
            first = train(config)
            assert first is not None
            before = contents(first.folder)
            continue
        which = "training images" if "training" in variant else "images of 'val'"
        with pytest.raises(ConfigError, match=f"resume=true with {which} or annotations that differ"):
            train(config)
        assert contents(first.folder) == before
    assert first is not None
    last = checkpoint.read(first.folder / LAST)
    for key in ("training_data", "selection_data"):  # as versions that did not record them
        del last[key]
    checkpoint.save(last, first.folder / LAST)
    assert train(config) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda last, best: best, "cannot be resumed from, because it has no 'optimizer', 'schedule', 'average'"),
        *((lambda last, best, key=key: last.pop(key) and last, f"has no '{key}'") for key in ("optimizer", "epoch")),
        (lambda last, best: {**last, "epoch": "two"}, "its 'epoch' is 'two'"),
        (lambda last, best: {**last, "epoch": -1}, "its 'epoch' is -1"),
        (lambda last, best: {**last, "optimizer": [1]}, "its 'optimizer' is a list of another kind"),
        (lambda last, best: {**last, "record": {"epoch": 1}}, "'record' is that of another epoch"),
        (lambda last, best: {**last, "best": {**last["best"], "mae": "low"}}, "something else than numbers"),
        (lambda last, best: {**last, "schedule": {**last["schedule"], "last_epoch": "x"}}, "'last_epoch'"),
        (lambda last, best: {**last, "model": {k: v * math.nan for k, v in last["model"].items()}}, "not finite"),
        (lambda last, best: other_moments(last), "(99,) for a parameter of"),
    ],
)
def test_a_last_checkpoint_of_another_kind_is_refused_by_its_key(
    tmp_path: Path, whole: Path, change: Callable[..., dict[str, Any]], words: str
) -> None:
    folder = folder_of(tmp_path)
    shutil.copytree(whole, folder)
    checkpoint.save(change(checkpoint.read(folder / LAST), checkpoint.read(folder / BEST)), folder / LAST)
    before = contents(folder)
    with pytest.raises(CheckpointError) as caught:
        train(config_of(tmp_path, *EVERY, "resume=true"))
    assert words in str(caught.value)
    assert str(folder / LAST) in str(caught.value)
    assert "run_name=NAME" in str(caught.value)
    assert contents(folder) == before


def other_moments(last: dict[str, Any]) -> dict[str, Any]:
    last["optimizer"]["state"][0]["exp_avg"] = torch.zeros(99)
    return last


# -------------------------------------------------------------------------------------- TensorBoard


def test_a_clock_that_was_set_back_hides_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for session, clock in enumerate((now, now - 86_400, now - 86_400, now - 3 * 86_400)):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        events = Events(tmp_path, purge_step=2 * session + 1)
        for epoch in (2 * session + 1, 2 * session + 2):
            events.write([{"epoch": epoch, "train/total": float(epoch)}], shown={})
    shown = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("train/total")] == [(k, k) for k in range(1, 9)]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_run_that_has_finished_adds_no_file(whole: Path) -> None:
    before = sorted(contents(whole))
    finish(whole.parents[2], *EVERY, "resume=true")
    assert sorted(contents(whole)) == before
    assert json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == 2


def note_of(before: int, now: int, images: int, *, synchronized: bool = True, within_epoch: bool = False) -> str:
    old, new = (RuntimeConfig(devices=devices, sync_batchnorm=synchronized) for devices in (before, now))
    return processes_note(old, new, images=images, batch_size=8, batchnorm=True, within_epoch=within_epoch)


def test_a_run_goes_on_with_another_number_of_processes() -> None:
    assert note_of(1, 1, 7) == note_of(2, 2, 7) == note_of(2, 2, 7, within_epoch=True) == ""
    words = "resuming with runtime.devices=2 a run of runtime.devices={}: each step has the same 8 crops, so that"
    for before in (1, 4):
        note = note_of(before, 2, 100)
        assert note.startswith(words.format(before))
        assert "BatchNorm" not in note


def test_steps_of_another_number_of_crops_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime.devices=2: its steps have 7 crops.*resume with runtime.devices=1$"):
        note_of(1, 2, 7)


def test_within_an_epoch_the_number_of_processes_stays() -> None:
    with pytest.raises(ConfigError, match=r"stopped within an epoch.*resume with runtime.devices=1$"):
        note_of(1, 2, 8, within_epoch=True)


def test_statistics_over_other_crops_are_announced() -> None:
    note = note_of(1, 4, 8, synchronized=False)
    assert note.endswith("but BatchNorm, which is not synchronized, used 8 crops at a time and now uses 2")
