"""The training loop never waits for the GPU between two checks of the loss, whatever the precision.

On a GPU, torch refuses every operation that waits. Without one, a step is made on the CPU as a GPU would make it, and
torch's record of its operations must have none whose result is read by the host, or that copies a list from it. The
stable transport, which decides by the values what to compute next, waits; so does fp16's scaling of the loss.
"""

import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from engine.test_train import config_of
from headcount.engine.records import Meter
from headcount.engine.runtime import Runtime
from headcount.engine.setup import build_job
from headcount.engine.train import train_step
from headcount.losses import sinkhorn, transport
from headcount.progress import progress_bar

# The defaults of train.py, and a loss that needs no more than numbers per block.
RECIPES = {
    "default": [],
    "blockwise": ["bins=blockwise", "loss=cross_entropy"],
    "regression": ["model.head=regression", "bins=none", "loss=mse", "optim.ema_decay=null"],
}

READING = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
"""Operations of aten whose result, or the size of it, the host reads from the device."""

FROM_HOST = "lift_fresh"
"""What torch.tensor, Tensor.new_tensor and the like call for values of Python."""


COPYING = {"__array__", "cpu", "numpy", "tolist"}
"""Methods that read a tensor, on a CPU without an operation of aten."""


class Waits(TorchDispatchMode):
    """Records the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if name in READING or name == FROM_HOST:
            self.found.append(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            self.found += [f"{name} by a mask"] * len(masks)
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.found.append("repeat_interleave without a size")
        return operation(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Records the methods that would wait for a GPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ in COPYING:
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


@contextmanager
def recording() -> Iterator[list[str]]:
    """The operations and methods inside that would wait for a GPU."""
    with Waits() as waits, Copies(waits.found):
        yield waits.found


def from_host(values: list[int], device: torch.device) -> torch.Tensor:
    """As the losses' own, which copies without waiting; not recorded."""
    with _disable_current_modes():
        return torch.tensor(values, device=device)


@pytest.mark.parametrize(
    ("waiting", "name"),
    [
        (lambda x: float(x[0]), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: np.asarray(x), "__array__"),
        (lambda x: x[0].item(), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index by a mask"),
        (lambda x: x.index_put_((x > 0,), torch.zeros_like(x[0])), "index_put_ by a mask"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.unique(), "_unique2"),
        (lambda x: x.unique_consecutive(), "unique_consecutive"),
        (lambda x: x.masked_select(x > 0), "masked_select"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.long().bincount(), "bincount"),
        (lambda x: torch.repeat_interleave(x, x.long()), "repeat_interleave without a size"),
        (lambda x: x.new_tensor([1.0, 2.0]), FROM_HOST),
        (lambda x: torch.tensor([1, 2], device=x.device), FROM_HOST),
    ],
)
def test_each_way_of_waiting_would_be_found(waiting: Any, name: str) -> None:
    numbers = torch.arange(3.0)
    with recording() as found:
        waiting(numbers)
    assert name in found


@pytest.mark.parametrize(("recipe", "precision"), [*((recipe, "float32") for recipe in RECIPES), ("default", "bf16")])
def test_no_operation_of_a_step_reads_from_the_device(
    recipe: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, *RECIPES[recipe], "runtime.accelerator=cpu", f"runtime.precision={precision}")
    runtime = Runtime(config.runtime)
    job = build_job(config, runtime, pretrained=False)
    job.model.train()
    batch = next(iter(job.loader.epoch(0)))
    if recipe != "regression":  # the second step, because the first one copies the weights
        job.average.update()
    assert (config.optim.ema_decay is None) == (recipe == "regression")
    monkeypatch.setitem(sinkhorn.READS_SIZES, "cpu", sinkhorn.READS_SIZES["cuda"])
    monkeypatch.setitem(sinkhorn.POINTS_AT_ONCE, "cpu", sinkhorn.POINTS_AT_ONCE["cuda"])
    for module in (sinkhorn, transport):
        monkeypatch.setattr(module, "from_host", from_host)
    meter = Meter(1)
    with recording() as found:
        loss, prediction = train_step(runtime, job, batch)
        meter.add(loss, prediction, batch)
    assert found == []
    assert "total" in meter.check()


@pytest.fixture
def refusing_to_wait() -> Iterator[None]:
    """Every operation that waits for the GPU raises RuntimeError."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("max_grad_norm", ["1.0", "null"])
def test_a_step_its_sums_and_its_progress_do_not_wait(
    recipe: str, precision: str, max_grad_norm: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = [*RECIPES[recipe], "runtime.accelerator=cuda"]
    settings += [f"runtime.precision={precision}", f"optim.max_grad_norm={max_grad_norm}"]
    config = config_of(tmp_path, *settings)
    runtime = Runtime(config.runtime)
    job = build_job(config, runtime, pretrained=False)
    job.model.train()
    epochs = (job.loader.epoch(epoch) for epoch in itertools.count())
    batches = list(itertools.islice(itertools.chain.from_iterable(epochs), 6))
    train_step(runtime, job, batches[0])  # libraries choose kernels, the optimizer creates its state
    meter = Meter(1)
    with progress_bar(label="training", total=len(batches)) as progress:
        request.getfixturevalue("refusing_to_wait")
        with pytest.raises(RuntimeError, match="synchroniz"):  # so a wait would be seen
            torch.ones(2, device=runtime.device).sum().item()
        for batch in batches:
            loss, prediction = train_step(runtime, job, batch)
            meter.add(loss, prediction, batch)
            progress.update(len(batch.names))
        torch.cuda.set_sync_debug_mode("default")
    assert meter.steps == len(batches)
    assert "total" in meter.check()
