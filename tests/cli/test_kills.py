"""Training that is killed at any moment and started again ends as if it had never been interrupted."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headcount.engine import checkpoint
from headcount.engine.checkpoint import LAST, MID_EPOCH
from interrupted import SETTINGS, Attempt, CrashPoint, assert_same_run, config_of, folder_of

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

EPOCHS = ["epochs=16"]
KILLS = 20
POINTS = [
    *(CrashPoint(place, name) for name in (LAST, MID_EPOCH) for place in ("half", "before", "after")),
    *(CrashPoint(place, "metrics.jsonl") for place in ("half", "after")),
    *(CrashPoint("append"), CrashPoint("appended"), CrashPoint("unlink", MID_EPOCH)),
]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_at_twenty_moments_it_ends_as_if_never_interrupted(tmp_path: Path, devices: int) -> None:
    log = tmp_path / "log"
    several = [f"runtime.devices={devices}", *(["runtime=ddp"] if devices > 1 else []), *EPOCHS]
    Attempt(config_of(tmp_path / "none", *several, "dry_run=true"), log).end()  # the first imports everything
    started = time.monotonic()
    whole = Attempt(config_of(tmp_path / "whole", *several), log)
    assert whole.wait_for_step(1), log.read_text()
    startup = time.monotonic() - started
    assert whole.end() == [0] * devices, log.read_text()

    draw = random.Random(20)
    points: list[CrashPoint | None] = [*POINTS, *[None] * (KILLS - len(POINTS))]
    draw.shuffle(points)
    killed = []
    for point in points:
        # A BEST is not written in each epoch: a moment that does not come within an epoch is another's.
        every = 1e-9 if point is not None and point.file == MID_EPOCH else draw.choice([1e-9, 1e-4, None])
        where = [
            f"save_every_minutes={'null' if every is None else every}",
            f"runtime.workers={draw.choice([0, 0, 2])}",
        ]
        attempt = Attempt(config_of(tmp_path / "killed", *several, *where, "resume=true"), log, point=point)
        steps = draw.choice([0, 1, 2])
        if point is not None:
            attempt.processes[0].join(120)
        elif steps == 0:
            attempt.steps.poll(draw.uniform(0, startup))  # at a moment before the first step
        else:
            assert attempt.wait_for_step(steps), log.read_text()
            time.sleep(draw.uniform(0, 0.05))
        order = draw.choice(list(itertools.permutations(range(devices))))
        codes = attempt.kill(list(order), draw.uniform(0, 0.2))
        killed.append(-signal.SIGKILL in codes)
        assert point is None or codes[0] == -signal.SIGKILL, (point, codes, log.read_text())
    assert killed == [True] * KILLS

    last = Attempt(config_of(tmp_path / "killed", *several, "resume=true"), log)
    assert last.end() == [0] * devices, log.read_text()
    assert_same_run(folder_of(tmp_path / "whole"), folder_of(tmp_path / "killed"))
    left = [file.name for file in folder_of(tmp_path / "killed").iterdir() if file.name.endswith((".part", ".lock"))]
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "workers", "to"), [(1, 2, "group"), (2, 0, "main"), (2, 0, "other")], ids=["one", "main", "other"]
)
def test_sigterm_saves_within_the_epoch_and_ends_with_143(
    run_command: Run, tmp_path: Path, devices: int, workers: int, to: str
) -> None:
    """As a cluster sends it: to every process of a job, data-loading ones included; or to any one of them."""
    several = [f"runtime.devices={devices}", *(["runtime=ddp"] if devices > 1 else []), f"runtime.workers={workers}"]
    settings = [*SETTINGS, *several, "epochs=400", "eval_every_epochs=400", "save_every_minutes=null"]
    command = [sys.executable, str(ROOT / "train.py"), *settings, "output_dir=stopped", "resume=true"]
    folder = tmp_path / "stopped" / "synthetic" / "run" / "seed1"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=log, start_new_session=True
        )
        while not (folder / LAST).exists():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        if to == "group":
            os.killpg(process.pid, signal.SIGTERM)
        else:
            os.kill(process.pid if to == "main" else _child(process.pid), signal.SIGTERM)
        status = process.wait(timeout=120)
    told = (tmp_path / "log").read_text()
    assert status == 143, told
    assert "Traceback" not in told
    content = checkpoint.read(folder / MID_EPOCH)
    assert f"mid_epoch.pt of epoch {content['epoch'] + 1}, step {content['step']}" in told
    assert "train.py: interrupted; add resume=true to the same command to resume" in told
    assert not (folder / "run.lock").exists()
    again = run_command("train.py", *settings, "output_dir=stopped", "resume=true", "dry_run=true")
    assert again.returncode == 0, again.stderr


def _child(parent: int) -> int:
    """The process that Fabric started for rank 1."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in map(int, children):
        if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise AssertionError(f"{parent} has only {children}")
