"""Processes that a launcher started are all of the run, or the command is refused."""

import pytest

from headcount.config import Accelerator, RuntimeConfig
from headcount.engine.runtime import Runtime
from headcount.errors import ConfigError

LAUNCHER = ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE")
SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*LAUNCHER, *SLURM):
        monkeypatch.delenv(variable, raising=False)


def start(devices: int, environment: str, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    for setting in environment.split():
        monkeypatch.setenv(*setting.split("=", 1))
    return Runtime(RuntimeConfig(accelerator=Accelerator.cpu, devices=devices))


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
    "environment", ["", "WORLD_SIZE=1", "WORLD_SIZE=", "SLURM_NTASKS=1", "SLURM_NTASKS=4 SLURM_JOB_NAME=interactive"]
)
def test_one_process_is_one_process(environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start(1, environment, monkeypatch).world == 1
