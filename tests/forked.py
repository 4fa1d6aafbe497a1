"""Commands in processes that are forked from one that has imported torch: each starts in milliseconds, not seconds."""

import multiprocessing
import os
import random
import runpy
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

PRELOADED = ["headcount.engine.train", "headcount.engine.evaluate", "headcount.cli.compose"]
PRELOADED += ["headcount.models.torchvision_networks", "tensorboard.summary", "matplotlib.figure"]


def free_port() -> str:
    """A port below those that the system gives to outgoing connections, one of which could take it at once."""
    for number in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", number))
            return str(number)
    raise OSError("none of 100 ports is free")


class Forked:
    """A command in a forked process; as ``subprocess.Popen([sys.executable, script, *arguments])``.

    Args:
        env: read by what the command itself does; torch has been imported before.
        streams: files for what the command writes to its standard output and error.
        first: statements to run before it.
    """

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: dict[str, str],
        streams: tuple[Path, Path],
        first: str = "",
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.args = [str(script), *arguments]
        self._process = context.Process(target=_run, args=(self.args, cwd, env, streams, first))
        self._process.start()

    def wait(self, timeout: float) -> int:
        """The exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: if it still runs after so many seconds; it is killed.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._process.exitcode


def run_forked(
    script: Path,
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: dict[str, str],
    output: Path,
    timeout: float,
    first: str = "",
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run``: see ``Forked``.

    Args:
        output: folder for what the command writes to its standard output and error.
    """
    streams = (output / "out", output / "err")
    process = Forked(script, arguments, cwd=cwd, env=env, streams=streams, first=first)
    status = process.wait(timeout)
    out, err = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(process.args, status, out, err)


def _run(command: list[str], cwd: Path, env: dict[str, str], streams: tuple[Path, Path], first: str) -> None:
    for number, stream in enumerate(streams, start=1):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    multiprocessing.set_start_method(None, force=True)  # that of a command
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    exec(first, {})
    runpy.run_path(command[0], run_name="__main__")
