"""Time functions in turns, measure the memory they allocate, and print tables.

Functions that are compared are called one after the other in every round, so that other load on the machine affects
all of them alike. A ratio is the median of the ratios of the rounds, not the ratio of two medians.
"""

import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Key = TypeVar("Key")

MIN_ROUNDS = 3


def time_in_turns(
    functions: Mapping[Key, Callable[[], object]],
    *,
    device: str,
    rounds: int = MIN_ROUNDS,
    seconds: float = 0.0,
) -> dict[Key, np.ndarray]:
    """Time every function once per round.

    Args:
        functions: called in their order in each round.
        device: type of the device they compute on; its queue is empty before and after each call.
        rounds: minimum number of rounds.
        seconds: further rounds are started until this time has passed.

    Returns:
        Seconds of each function in each round.
    """
    times: dict[Key, list[float]] = {key: [] for key in functions}
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        for key, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            times[key].append(time.perf_counter() - start)
        done += 1
    return {key: np.array(values) for key, values in times.items()}


def median_ms(seconds: np.ndarray) -> float:
    """Median of ``seconds`` in milliseconds."""
    return 1e3 * float(np.median(seconds))


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Median over the rounds of the ratio of two times that were measured in the same rounds."""
    return float(np.median(numerator / denominator))


def peak_bytes(function: Callable[[], object], *, device: str) -> int:
    """Peak size of the tensors that exist during a call, in bytes beyond those that existed before it.

    On CUDA as the allocator reports it; on the CPU the storages returned by torch operations.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        function()
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Tracks the storages that operations return until they are freed.

    Attributes:
        alive: size in bytes of each live storage, by its address.
        peak: maximum of their sum, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and record the storages it allocated."""
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if is_strided(t)}
        result = func(*args, **(kwargs or {}))
        for tensor in filter(is_strided, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.alive:
                self.alive[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def is_strided(value: object) -> bool:
    """Whether ``value`` is a tensor with its own storage (a sparse tensor consists of several that have one)."""
    return isinstance(value, Tensor) and value.layout is torch.strided


def synchronize(device: str) -> None:
    """Wait until ``device`` has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    """Name of the GPU, or the number of CPU threads that torch uses."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def run_quietly(command: Sequence[str], *, folder: str, expected_status: int = 0) -> str:
    """Run a Python command without showing its output.

    Args:
        command: arguments of the Python interpreter.
        folder: working directory.
        expected_status: exit status of a correct run.

    Returns:
        Its standard output.

    Raises:
        RuntimeError: with its standard error, if it exits with another status.
    """
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    if done.returncode != expected_status:
        raise RuntimeError(f"python {' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown table of formatted values; the keys of the rows are its header."""
    columns = list(rows[0])
    # Without numpy: the values are formatted already, and would otherwise be parsed and formatted again.
    cells = [[row[column] for column in columns] for row in rows]
    align = ["left"] + ["right"] * (len(columns) - 1)
    return tabulate(cells, headers=columns, tablefmt="pipe", disable_numparse=True, colalign=align)
