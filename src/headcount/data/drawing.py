"""Draw images of the synthetic dataset on all processor cores."""

import math
import mmap
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import SyntheticConfig
from headcount.data.synthetic import draw_crowd
from headcount.progress import progress_bar
from headcount.types import Sample

Heads = Float[Tensor, "_ 2"]

_MAX_PROCESSES = 8
# Another process pays from about this many pixels on: a dozen images of the usual size.
_PIXELS_PER_PROCESS = 12 * 384 * 288


def draw_crowds(indices: Sequence[int], *, config: SyntheticConfig, split: str, label: str) -> list[Sample]:
    """Draw images like :func:`headcount.data.synthetic.draw_crowd`, in memory that forked processes share.

    Args:
        indices: of the images, in the split.
        label: of the progress bar, which only many images have.
    """
    n = len(indices)
    if not n:
        return []
    shape = (n, 3, config.height, config.width)
    # Not torch's shared memory, which is a small file system in most containers.
    images = torch.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=torch.uint8).view(shape)

    def draw(k: int) -> Heads:
        sample = draw_crowd(indices[k], config=config, split=split)
        images[k] = sample.image
        return sample.points

    processes = _processes(n * config.height * config.width)
    helpers = [_Helper(draw, range(k, n, processes)) for k in range(1, processes)]
    try:
        heads = {}
        with progress_bar(label=label, total=n, disable=n <= 100) as progress:
            for k in range(0, n, processes):
                heads[k] = draw(k)
                progress.update(min(processes, n - k))
        for helper in helpers:
            heads |= helper.heads()
    finally:
        for helper in helpers:
            helper.end()
    return [Sample(images[k], heads[k], f"{split}_{index:04d}") for k, index in enumerate(indices)]


def _processes(pixels: int) -> int:
    """The number of processes that draw this many pixels."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1  # elsewhere, a forked process is unsafe or impossible; and a daemon may not start any
    return max(1, min(_MAX_PROCESSES, len(os.sched_getaffinity(0)), pixels // _PIXELS_PER_PROCESS))


class _Helper:
    """A forked process that draws some of the images.

    Args:
        draw: draws the image at a position, and returns its heads.
        share: the positions.
    """

    def __init__(self, draw: Callable[[int], Heads], share: range) -> None:
        self._draw, self._share = draw, share
        self._results, results = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_help, args=(draw, share, results, os.getpid()), daemon=True)
        self._process.start()
        results.close()

    def heads(self) -> dict[int, Heads]:
        """The heads of its images, by position; if it was killed, the images are drawn here."""
        try:
            found = [torch.from_numpy(heads) for heads in self._results.recv()]
        except EOFError:
            found = [self._draw(k) for k in self._share]
        return dict(zip(self._share, found, strict=True))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._results.close()


def _help(draw: Callable[[int], Heads], share: range, results: Connection, parent: int) -> None:
    # A forked process has none of the threads of the first, which an operation on several threads would wait for.
    torch.set_num_threads(1)
    # Signals are left to the process that asked.
    for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    found = []
    for k in share:
        if os.getppid() != parent:  # it was killed
            return
        found.append(draw(k).numpy())
    results.send(found)
