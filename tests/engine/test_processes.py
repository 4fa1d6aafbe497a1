"""Several processes train as one does, however they are started; when one dies, so do the others, and say why."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from forked import Forked, free_port
from headcount.engine import checkpoint
from two_processes import CASES, SMALL, everything

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "train.py")]
LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "RANK", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


def start(command: Sequence[str], folder: Path, name: str = "log", **environment: str) -> subprocess.Popen[bytes]:
    """Start a command; what it prints goes to files, as a pipe would stay open for the processes it starts."""
    clean = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    with (folder / f"{name}.out").open("wb") as out, (folder / f"{name}.err").open("wb") as err:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**clean, "OMP_NUM_THREADS": "1", **environment},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def start_forked(
    typed: Sequence[str], folder: Path, name: str, *, script: Path = ROOT / "train.py", **environment: str
) -> Forked:
    """As ``start``, of a script that runs in a copy of a process that has imported torch."""
    clean = {key: value for key, value in os.environ.items() if key not in LAUNCHED}
    streams = (folder / f"{name}.out", folder / f"{name}.err")
    return Forked(script, typed, cwd=folder, env={**clean, "OMP_NUM_THREADS": "1", **environment}, streams=streams)


def finish(processes: Sequence[subprocess.Popen[bytes] | Forked], folder: Path, *, status: int = 0) -> str:
    """Wait for processes; return what they printed as errors."""
    found = [process.wait(timeout=300) for process in processes]
    text = "\n".join(file.read_text() for file in sorted(folder.glob("*.err")))
    assert found == [status] * len(processes), text
    return text


# ------------------------------------------------------------------------------------------ the same step


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return everything(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("two")
    script = str(ROOT / "tests" / "two_processes.py")
    finish([start([sys.executable, script, "2", str(folder / "found.pt")], folder)], folder)
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=True)
    assert found["world"] == 2
    return found


def worst(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """The largest relative error of a tensor, by its norm."""
    assert one.keys() == two.keys()
    pairs = [(one[name].double(), two[name].double()) for name in one]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs if a.norm() > 0)


@pytest.mark.parametrize("case", [case for case in CASES if case != "alone"])
def test_a_step_on_two_processes_is_that_of_one(case: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    assert worst(one[case]["gradients"], two[case]["gradients"]) < 1e-5
    # Adam divides by the gradient, so that the rounding of a gradient near zero becomes a whole step of the weight.
    whole = [torch.cat([value.double().flatten() for value in found[case]["state"].values()]) for found in (one, two)]
    assert float((whole[0] - whole[1]).norm() / whole[0].norm()) < 1e-5
    assert two[case]["loss"] == pytest.approx(one[case]["loss"], rel=1e-5)


def test_without_synchronized_statistics_the_step_is_another(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert worst(one["alone"]["gradients"], two["alone"]["gradients"]) > 0.1
    assert worst(one["alone"]["gradients"], one["synchronized"]["gradients"]) == 0  # no effect on one process


def test_an_evaluation_on_two_processes_counts_each_image_once(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["evaluated"]["images"] == 3  # an odd number
    assert two["evaluated"] == one["evaluated"]


# ------------------------------------------------------------------------------- however they are started


def run_twice(folder: Path, settings: Sequence[str], variables: Callable[[int], dict[str, str]]) -> None:
    """Start the same command with the variables of each rank, as a launcher does."""
    folder.mkdir()
    finish([start_forked([*SMALL, *settings], folder, f"rank{rank}", **variables(rank)) for rank in (0, 1)], folder)


def test_every_way_to_start_two_processes_is_the_same_run(tmp_path: Path) -> None:
    epochs = ["epochs=2", "runtime.devices=2"]
    (tmp_path / "ours").mkdir()
    told = finish([start([*TRAIN, *SMALL, *epochs], tmp_path / "ours")], tmp_path / "ours")
    assert "processes: 2; crops of each per step: 2" in told
    assert "BatchNorm: synchronized, over all 4 crops of a step" in told

    (tmp_path / "torchrun").mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    finish([start([*launcher, str(ROOT / "train.py"), *SMALL, *epochs], tmp_path / "torchrun")], tmp_path / "torchrun")

    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", **at}
    run_twice(tmp_path / "srun", epochs, lambda rank: {**slurm, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
    at["MASTER_PORT"] = free_port()
    nodes = ["epochs=2", "runtime.num_nodes=2", "output_dir=../nodes/checkpoints"]
    run_twice(tmp_path / "nodes", nodes, lambda rank: {"NODE_RANK": str(rank), **at})

    runs = {name: next((tmp_path / name).rglob("last.pt")) for name in ("ours", "torchrun", "srun", "nodes")}
    weights = {name: checkpoint.read(file)["model"] for name, file in runs.items()}
    for name in ("torchrun", "srun", "nodes"):
        for key, value in weights["ours"].items():
            assert torch.equal(value, weights[name][key]), (name, key)
    records = json.loads((runs["nodes"].parent / "run.json").read_text())
    assert records["processes"] == 2


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", int(free_port())))
        used.listen()
        number = str(used.getsockname()[1])
        launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": number, "WORLD_SIZE": "2", "NODE_RANK": "0"}
        process = start_forked([*SMALL, "runtime.devices=2"], tmp_path, "log", LOCAL_RANK="0", **launched)
        told = finish([process], tmp_path, status=2)
    assert f"train.py: MASTER_ADDR=127.0.0.1 MASTER_PORT={number}: the processes of this run cannot connect" in told
    assert "Traceback" not in told


# -------------------------------------------------------------------------------------------- deaths


def rank_of(process: int) -> str:
    """The local rank of a process, from its environment."""
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return next((v.decode().partition("=")[2] for v in variables if v.startswith(b"LOCAL_RANK=")), "0")


def wait_until(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} after {seconds} s")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_with_the_cause(tmp_path: Path, victim: int) -> None:
    process = start([*TRAIN, *SMALL, "epochs=100000", "eval_every_epochs=100000", "runtime.devices=2"], tmp_path)
    try:
        wait_until(lambda: list(tmp_path.rglob("last.pt")), seconds=240, what="epoch")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        other = next(int(child) for child in children if rank_of(int(child)) == "1")
        killed, survivor = (process.pid, other) if victim == 0 else (other, process.pid)
        os.kill(killed, signal.SIGKILL)
        if victim == 0:
            process.wait(timeout=10)
            wait_until(lambda: not Path(f"/proc/{survivor}/environ").exists(), seconds=60, what="end of process 1")
        else:
            assert process.wait(timeout=60) == 2
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = (tmp_path / "log.err").read_text().strip().splitlines()
    cause = {0: "ended without an error message", 1: r"was killed by signal 9 \(SIGKILL\)"}[victim]
    assert re.match(rf"train\.py: process {victim} of 2 {cause}", lines[-1]), lines[-3:]
    assert "resume=true" in lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)


def child_of(process: int) -> int | None:
    """Process 1, once it was started and runs the command."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return next((int(child) for child in children if rank_of(int(child)) == "1"), None)


def is_running(process: int) -> bool:
    """Whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize(
    ("number", "status", "words"),
    [
        (
            signal.SIGKILL,
            -signal.SIGKILL,
            "process 0, which started this one, ended before all processes were connected",
        ),
        (
            signal.SIGTERM,
            -signal.SIGTERM,
            "process 0, which started this one, ended before all processes were connected",
        ),
        (signal.SIGINT, 130, "interrupted"),  # of both, as Ctrl-C in a terminal does
    ],
)
def test_while_processes_start_the_end_of_process_0_ends_the_other_in_one_line(
    tmp_path: Path, number: int, status: int, words: str
) -> None:
    process = start([*TRAIN, *SMALL, "epochs=100000", "runtime.devices=2"], tmp_path)
    try:
        child = wait_until(lambda: child_of(process.pid), seconds=120, what="process 1")
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        assert process.wait(timeout=60) == status
        wait_until(lambda: not is_running(child), seconds=60, what="end of process 1")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    lines = [line for line in (tmp_path / "log.err").read_text().splitlines() if line]
    assert [line.partition(";")[0] for line in lines if "distributed" not in line] == [f"train.py: {words}"]
