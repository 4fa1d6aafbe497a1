"""A folder belongs to one process; what a dead one left is taken over, what another machine holds is not."""

import json
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from headcount import processes
from headcount.engine.lock import LOCK_FILE, FolderLock
from headcount.errors import ConfigError, OutputError
from headcount.processes import Process, this_process


def acquire(folder: Path) -> FolderLock:
    lock = FolderLock(folder)
    lock.acquire(setting="output_dir", instead="start another")
    return lock


def locked_by(folder: Path, owner: Process | str) -> Path:
    folder.mkdir(exist_ok=True)
    text = owner if isinstance(owner, str) else json.dumps(asdict(owner))
    (folder / LOCK_FILE).write_text(text)
    return folder


def ended() -> Process:
    """A process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return replace(this_process(), number=process.pid, birth="")


def test_a_folder_in_use_is_refused_until_it_is_released(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run"
    lock = acquire(folder)
    held = json.loads((folder / LOCK_FILE).read_text())
    assert held["number"] == os.getpid()
    with pytest.raises(ConfigError, match=rf"run is in use by process {os.getpid()}, started \d.*or start another"):
        acquire(folder)
    assert json.loads((folder / LOCK_FILE).read_text()) == held
    lock.release()
    assert not (tmp_path / "a").exists()  # nothing was written there
    acquire(folder).release()


@pytest.mark.parametrize(
    "owner",
    [ended, lambda: replace(this_process(), number=1, birth="another boot 7"), lambda: replace(ended(), number=2**40)],
    ids=["killed", "the number belongs to another process now", "a number that no process can have"],
)
def test_the_lock_of_a_process_that_has_ended_is_taken_over(tmp_path: Path, owner: Callable[[], Process]) -> None:
    lock = acquire(locked_by(tmp_path / "run", owner()))
    assert json.loads(lock.file.read_text())["number"] == os.getpid()
    assert [file.name for file in lock.file.parent.iterdir()] == [LOCK_FILE]
    lock.release()


@pytest.mark.parametrize(
    ("before", "now", "ended"),
    [
        (("1234", None), ("1234", "1"), True),  # requeued, because a machine failed
        (("1234", "1"), ("1234", "2"), True),
        (("1234", None), ("1234", None), False),  # another step of the same job
        (("1234", None), ("12", "1"), False),
        (("1234", None), (None, None), False),
        ((None, None), ("1234", None), False),
    ],
)
def test_a_job_of_a_cluster_that_was_started_again_takes_its_own_lock_over(
    tmp_path: Path,
    before: tuple[str | None, str | None],
    now: tuple[str | None, str | None],
    ended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(job: tuple[str | None, str | None]) -> Process:
        for variable, value in zip(("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), job, strict=True):
            monkeypatch.delenv(variable, raising=False)
            if value is not None:
                monkeypatch.setenv(variable, value)
        processes._describe.cache_clear()
        return this_process()

    try:
        folder = locked_by(tmp_path / "run", replace(start(before), host="node7 pid:[1]"))
        start(now)
        if ended:
            acquire(folder).release()
        else:
            with pytest.raises(ConfigError, match=r"on another machine .*node7"):
                acquire(folder)
    finally:
        start((None, None))


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (replace(ended(), host="node7 pid:[1]"), "on another machine or in another container (node7"),
        ("", "does not name the process"),
        ('{"host": "a", "number": 1, "birth": "", "started": "", "job": 1}', "does not name the process"),
        ('{"host": "a"}', "does not name the process"),
        ('{"host": 1, "number": "x", "birth": "", "started": ""}', "does not name the process"),
    ],
)
def test_a_lock_that_may_be_held_is_refused_and_the_way_out_named(
    tmp_path: Path, owner: Process | str, words: str
) -> None:
    file = locked_by(tmp_path / "run", owner) / LOCK_FILE
    before = file.read_text()
    with pytest.raises(ConfigError) as caught:
        acquire(tmp_path / "run")
    assert words in str(caught.value)
    assert f"remove {file}" in str(caught.value)
    assert file.read_text() == before


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
def test_of_many_at_once_one_gets_the_folder(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    folder = locked_by(tmp_path / "run", ended())
    together = threading.Barrier(6)

    def race(_: int) -> bool:
        together.wait()
        try:
            acquire(folder)
        except ConfigError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(race, range(6))) == 1


def test_a_folder_that_another_process_took_meanwhile_is_not_written_to(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "run")
    lock.verify()
    lock.file.unlink()
    lock.verify()  # a missing folder is reported by the writing itself
    owner = replace(this_process(), number=7)
    locked_by(tmp_path / "run", owner)
    with pytest.raises(OutputError, match=rf"run now belongs to process 7, started {owner.started[:10]}.*moved"):
        lock.verify()


def test_a_forked_process_does_not_release_the_lock_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = acquire(tmp_path / "run")
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: 1)
        lock.release()
    assert lock.file.exists()
    lock.release()
    assert not lock.file.exists()
