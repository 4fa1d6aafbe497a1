"""Processes that a launcher started are all of the run, or the command is refused."""

import os

import pytest
import torch

from headcount.config import Accelerator, RuntimeConfig
from headcount.engine.runtime import Runtime
from headcount.errors import ConfigError

LAUNCHER = (
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE"),
    *("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)
SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*LAUNCHER, *SLURM):
        monkeypatch.delenv(variable, raising=False)


def start(devices: int, environment: str, monkeypatch: pytest.MonkeyPatch, *, num_nodes: int = 1) -> Runtime:
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("=", 1))
    return Runtime(RuntimeConfig(accelerator=Accelerator.cpu, devices=devices, num_nodes=num_nodes))


@pytest.mark.parametrize(
    ("devices", "environment", "words"),
    [
        (1, "WORLD_SIZE=2 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x", "type runtime.devices=2, or start 1 (torchrun"),
        (1, "WORLD_SIZE=4", "WORLD_SIZE=4 means that a launcher started 4 processes"),
        (3, "WORLD_SIZE=2 LOCAL_RANK=1 TORCHELASTIC_RUN_ID=x", "--nproc-per-node=3"),
        (2, "WORLD_SIZE=1 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x", "type runtime.devices=1"),
        (1, "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2", "SLURM_NTASKS=2 means"),
        (2, "SLURM_NTASKS=1", "srun --nodes=1 --ntasks-per-node=2"),
        (2, "SLURM_NTASKS=2", "all 2 processes must be on one machine"),
        (2, "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1", "all 2 processes must be on one machine"),
        (1, "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_SIZE=2"),
    ],
)
def test_another_number_of_processes_is_refused(
    devices: int, environment: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"^runtime.devices={devices}: ") as caught:
        start(devices, environment, monkeypatch)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "words"),
    [
        # Two machines, which nothing tells apart.
        (1, 2, "", "NODE_RANK, MASTER_ADDR, MASTER_PORT is not set; start every machine with torchrun or srun"),
        (1, 2, "NODE_RANK=1 MASTER_PORT=1234", "MASTER_ADDR is not set"),
        (1, 2, "NODE_RANK=2 MASTER_ADDR=a MASTER_PORT=1234", "NODE_RANK=2 is not from 0 to 1"),
        (1, 2, "NODE_RANK=1 MASTER_ADDR=a MASTER_PORT=abc", "MASTER_PORT=abc is no port"),
        (2, 1, "MASTER_PORT=99999", "MASTER_PORT=99999 is no port; choose a number from 1 to 65535"),
        # Launchers that distribute the processes otherwise.
        (
            *(2, 1, "WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x"),
            "all 2 processes must be on one machine, but LOCAL_WORLD_SIZE=1",
        ),
        (
            *(1, 2, "WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x"),
            "torchrun --nnodes=2 --nproc-per-node=1",
        ),
        (
            *(1, 1, "WORLD_SIZE=8 LOCAL_WORLD_SIZE=4 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x"),
            "type runtime.devices=4 runtime.num_nodes=2",
        ),
        (2, 2, "WORLD_SIZE=2 LOCAL_RANK=0 TORCHELASTIC_RUN_ID=x", "started 2 processes"),
        (1, 2, "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2", "1 processes must be on each of 2 machines"),
        (1, 2, "SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=1", "srun --nodes=2 --ntasks-per-node=1"),
    ],
)
def test_processes_on_other_machines_are_refused(
    devices: int, nodes: int, environment: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"^runtime.devices={devices}") as caught:
        start(devices, environment, monkeypatch, num_nodes=nodes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "environment", ["", "WORLD_SIZE=1", "WORLD_SIZE=", "SLURM_NTASKS=1", "SLURM_NTASKS=4 SLURM_JOB_NAME=interactive"]
)
def test_one_process_is_one_process(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(1, environment, monkeypatch).world == 1


def failing(kind: str) -> None:
    if kind == "nondeterministic":
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    raise RuntimeError("another fault")


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_deterministic_operations_are_used_inside_the_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    assert before == (False, False, True)
    for deterministic, within in ((True, (True, True, False)), (False, before)):
        runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu, deterministic=deterministic))
        with runtime.guard():
            assert flags() == within
        assert flags() == before
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # set by the first, and harmless to the second


@pytest.mark.parametrize("kind", ["nondeterministic", "other"])
def test_an_operation_that_is_not_deterministic_is_named(kind: str) -> None:
    before = flags()
    runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu, deterministic=True))
    with pytest.raises((ConfigError, RuntimeError)) as caught, runtime.guard():
        failing(kind)
    assert flags() == before
    if kind == "other":
        assert type(caught.value) is RuntimeError
        assert str(caught.value) == "another fault"
    else:
        assert isinstance(caught.value, ConfigError)
        assert str(caught.value).startswith("runtime.deterministic=true: put_ does not have a deterministic")
        assert str(caught.value).endswith("or set runtime.deterministic=false")


def test_without_the_setting_the_operation_is_allowed() -> None:
    with Runtime(RuntimeConfig(accelerator=Accelerator.cpu)).guard(), pytest.raises(RuntimeError, match="another"):
        failing("nondeterministic")


@pytest.mark.parametrize(("command", "recorded"), [("train", "headcount train"), ("", "train.py")])
def test_the_command_is_recorded_as_it_was_typed(command: str, recorded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_COMMAND", command)  # what `headcount train` leaves, with these arguments
    monkeypatch.setattr("sys.argv", ["train.py", "resume=true", "run_name=a b"])
    described = Runtime(RuntimeConfig(accelerator=Accelerator.cpu)).describe()
    assert described["command"] == f"{recorded} resume=true 'run_name=a b'"
