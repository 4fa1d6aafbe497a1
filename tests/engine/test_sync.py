"""The training loop itself never waits for the GPU between two checks of the loss.

What a loss waits for is marked ``device sync`` where it does: the check of the bins' labels, the number of pairs of the
transport. The average of the weights waits once, for the counter of torch's ``AveragedModel``.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.test_train import config_of
from headcount.engine.records import Meter
from headcount.engine.runtime import Runtime
from headcount.engine.setup import build_job
from headcount.engine.train import train_step
from headcount.progress import progress_bar

# A loss that waits for nothing, and no average.
SETTINGS = ["model.head=regression", "bins=none", "loss=mse", "optim.ema_decay=null", "runtime.accelerator=cuda"]


@pytest.fixture
def refusing_to_wait() -> Iterator[None]:
    """Every operation that waits for the GPU raises RuntimeError."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("max_grad_norm", ["1.0", "null"])
def test_a_step_its_sums_and_its_progress_do_not_wait(
    precision: str, max_grad_norm: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = [*SETTINGS, f"runtime.precision={precision}", f"optim.max_grad_norm={max_grad_norm}"]
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
