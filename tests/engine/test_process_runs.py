"""Runs of two processes: resumed on another number, in parts, stopped early."""

import json
from pathlib import Path

import pytest
import torch

from engine.test_processes import ROOT, finish, start_forked
from forked import free_port
from headcount.engine import checkpoint
from two_processes import SMALL

pytestmark = pytest.mark.slow

STOP = """
import sys
from headcount.engine import run

save = run.RunFolder.save

def stopping(self, job, record, *, is_best):
    save(self, job, record, is_best=is_best)
    if job.epoch == 2:
        raise KeyboardInterrupt

run.RunFolder.save = stopping
from headcount.cli.train import main
main()
"""


def run(folder: Path, *settings: str, script: Path = ROOT / "train.py", processes: int = 1, status: int = 0) -> str:
    """Train on a number of processes, started as by a launcher; what they printed as errors."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
    }
    typed = [*settings, f"runtime.devices={processes}"]
    started = []
    for rank in range(processes):
        launched = {**common, "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(start_forked(typed, folder, str(rank), script=script, **launched))
    return finish(started, folder, status=status)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_is_resumed_on_another_number_of_processes(tmp_path: Path, first: int, then: int) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    settings = [*SMALL, "epochs=4", "optim.warmup_epochs=1", "optim.lr=1e-4"]
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", *settings)
    halves = tmp_path / "halves"
    run(halves, *settings, script=tmp_path / "stop.py", processes=first, status=130)
    told = run(halves, *settings, "resume=true", processes=then)
    assert (
        f"resuming with runtime.devices={then} a run of runtime.devices={first}: each step has the same 4 crops" in told
    )
    one, other = (checkpoint.read(next((tmp_path / name).rglob("last.pt"))) for name in ("whole", "halves"))
    assert one["epoch"] == other["epoch"] == 4
    for key, value in one["model"].items():
        close = torch.allclose(value.double(), other["model"][key].double(), rtol=1e-3, atol=1e-4)
        assert close, key
    epochs = [json.loads(line) for line in next(halves.rglob("metrics.jsonl")).read_text().splitlines()]
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]
    if then == 2:  # both processes refuse other settings, and one prints it
        told = run(halves, *settings, "optim.lr=1e-3", "resume=true", processes=2, status=2)
        assert told.count("train.py: resume=true with settings that differ") == told.count("resume=true") == 1, told
    before = [json.loads(line) for line in next((tmp_path / "whole").rglob("metrics.jsonl")).read_text().splitlines()]
    for record, expected in zip(epochs, before, strict=True):
        # The same crops: their loss, and nothing else, is close.
        assert record["train/total"] == pytest.approx(expected["train/total"], rel=1e-3)


def test_two_processes_accumulate_stop_early_and_log_once(tmp_path: Path) -> None:
    """Nothing is learned, so that the second evaluation is no better than the first."""
    nothing = ["optim.schedule=constant", "optim.lr=1e-12", "optim.weight_decay=0", "model.freeze=batch_norm"]
    settings = [*nothing, "epochs=4", "eval_every_epochs=1", "early_stopping=1", "logger=csv", "keep=all"]
    small = [text for text in SMALL if not text.startswith("optim.lr")]
    typed = [*small, *settings, "accumulate=2"]
    told = run(tmp_path, *typed, processes=2)
    assert told.count("stopped early after epoch 2 of 4") == 1
    (folder,) = (file.parent for file in tmp_path.rglob("last.pt"))
    assert {file.name for file in folder.glob("*.pt")} == {"last.pt", "best_mae.pt", "epoch_0001.pt", "epoch_0002.pt"}
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    fewer = ["epochs=3" if text == "epochs=4" else text for text in typed]
    again = run(tmp_path, *fewer, "resume=true", processes=2, status=2)
    assert "planned for epochs=4 (2 are trained), and can only be extended" in again
    more = [text for text in typed if not text.startswith("early_stopping")]
    run(tmp_path, *more, "resume=true", processes=2)
    assert len((folder / "metrics.csv").read_text().splitlines()) == 5
