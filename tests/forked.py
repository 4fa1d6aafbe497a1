"""Commands in processes that are forked from one that has imported torch: each starts in milliseconds, not seconds."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch

PRELOADED = ["headcount.engine.train", "headcount.engine.evaluate", "headcount.cli.compose"]
PRELOADED += ["headcount.models.torchvision_networks", "tensorboard.summary", "matplotlib.figure"]


def run_forked(
    script: Path,
    arguments: list[str],
    *,
    cwd: Path,
    env: dict[str, str],
    output: Path,
    timeout: float,
    first: str = "",
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, script, *arguments])``, but for how the process starts.

    Args:
        env: read by what the command itself does; torch has been imported before.
        output: folder for what the command writes to its standard output and error.
        first: statements to run before it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    streams = (output / "out", output / "err")
    process = context.Process(target=_run, args=(script, arguments, cwd, env, streams, first))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired([str(script), *arguments], timeout)
    out, err = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess([str(script), *arguments], process.exitcode, out, err)


def _run(
    script: Path, arguments: list[str], cwd: Path, env: dict[str, str], streams: tuple[Path, Path], first: str
) -> None:
    for number, stream in enumerate(streams, start=1):
        with stream.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    multiprocessing.set_start_method(None, force=True)  # that of a command
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    exec(first, {})
    runpy.run_path(str(script), run_name="__main__")
