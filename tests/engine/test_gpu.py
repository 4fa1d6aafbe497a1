"""Training, resuming and evaluation on a GPU; what needs none of it is tested on the CPU by the same lines."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.test_train import config_of
from headcount.config import Precision, SlidingWindowConfig, WholeImageConfig
from headcount.engine import checkpoint
from headcount.engine import train as training
from headcount.engine.evaluate import evaluate
from headcount.engine.evaluators import Game
from headcount.engine.run import RunFolder
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job, build_job
from headcount.engine.train import train, train_step
from headcount.runs import read_metrics
from headcount.types import Batch


def on_gpu(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.gpu)


class StopError(Exception): ...


def start(folder: Path, device: str, *settings: str) -> tuple[Runtime, Job, Batch]:
    """A job and its first batch."""
    config = config_of(folder, f"runtime.accelerator={device}", *settings)
    runtime = Runtime(config.runtime)
    job = build_job(config, runtime, pretrained=False)
    job.model.train()
    return runtime, job, next(iter(job.loader.epoch(0)))


def same(found: Any, expected: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit on any device."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found.cpu(), expected.cpu())
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "bf16"), *(on_gpu("cuda", precision.name) for precision in Precision)]
)
def test_a_resumed_run_has_the_whole_state_on_its_device(
    tmp_path: Path, device: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"runtime.accelerator={device}", f"runtime.precision={precision}", "optim.ema_decay=0.9"]
    save = RunFolder.save

    def save_and_stop(self: RunFolder, *arguments: Any, **options: Any) -> None:
        save(self, *arguments, **options)
        raise StopError

    monkeypatch.setattr(RunFolder, "save", save_and_stop)
    with pytest.raises(StopError):
        train(config_of(tmp_path, *settings))
    monkeypatch.setattr(RunFolder, "save", save)
    folder = tmp_path / "synthetic" / "run" / "seed1"
    before, records = checkpoint.read(folder / checkpoint.LAST), read_metrics(folder)

    fit, resumed = training.fit, []

    def check_and_fit(runtime: Runtime, job: Job, run: RunFolder, *others: Any, **options: Any) -> None:
        resumed.append(job.epoch)
        for name in ("model", "optimizer", "schedule", "average"):
            part = job.counter if name == "model" else getattr(job, name)
            assert same(part.state_dict(), before[name]), name
        assert same(runtime.scaler_state(), before["scaler"])
        assert bool(before["scaler"]) is (precision == "fp16")
        averages = job.average.state_dict()
        assert averages.pop("n_averaged").device.type == "cpu"  # counting there would make each step wait
        tensors = [*job.counter.state_dict().values(), *averages.values()]
        tensors += [t for state in job.optimizer.state.values() for name, t in state.items() if name != "step"]
        assert {tensor.device.type for tensor in tensors} == {device}
        fit(runtime, job, run, *others, **options)

    monkeypatch.setattr(training, "fit", check_and_fit)
    finished = train(config_of(tmp_path, *settings, "resume=true"))
    assert finished is not None
    assert resumed == [1]
    assert finished.metrics[:1] == records
    first, second = finished.metrics
    assert second["epoch"] == 2
    assert 0 < second["train/total"] < 10 * first["train/total"]
    after = checkpoint.read(folder / checkpoint.LAST)
    assert all(torch.isfinite(value).all() for value in after["model"].values())
    assert not same(after["model"], before["model"])


@pytest.mark.parametrize("max_grad_norm", ["null", "1e-3"])
def test_scaling_the_loss_changes_no_step_and_an_overflow_skips_it(tmp_path: Path, max_grad_norm: str) -> None:
    """fp16 needs a GPU, but its scaler does not: a scale that is a power of two cancels exactly."""
    results = []
    for scale in (None, 2.0**10, 2.0**127):
        runtime, job, batch = start(tmp_path, "cpu", "runtime.precision=bf16", f"optim.max_grad_norm={max_grad_norm}")
        before = {name: value.clone() for name, value in job.counter.named_parameters()}
        if scale is not None:
            runtime.fabric.strategy.precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        terms, _ = train_step(runtime, job, batch)
        changed = {name: value.detach() - before[name] for name, value in job.counter.named_parameters()}
        results.append((float(terms.logged["gradient_norm"]), changed, runtime.scaler_state()))
    (norm, updates, none), (same_norm, same_updates, state), (infinite, no_updates, lowered) = results
    assert norm > 1e-3
    assert same_norm == pytest.approx(norm, rel=1e-6)
    assert any(update.any() for update in updates.values())
    for name, update in updates.items():
        torch.testing.assert_close(same_updates[name], update, rtol=1e-5, atol=1e-8)
    assert none == {}
    assert state["scale"] == 2.0**10
    assert not infinite < float("inf")
    assert not any(update.any() for update in no_updates.values())
    assert lowered["scale"] == 2.0**126


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["dace", "dace_mae", "dace_mse", "cross_entropy"])
def test_a_step_on_a_gpu_is_the_step_of_the_cpu(tmp_path: Path, loss: str) -> None:
    terms = []
    for device in ("cpu", "cuda"):
        runtime, job, batch = start(tmp_path, device, f"loss={loss}")
        terms.append(train_step(runtime, job, batch)[0])
        assert terms[-1].total.device.type == device
    here, there = terms
    assert float(there.total.detach()) == pytest.approx(float(here.total.detach()), rel=1e-4)
    assert there.parts.keys() == here.parts.keys()
    norms = [float(one.logged["gradient_norm"]) for one in terms]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)


@pytest.mark.gpu
def test_lower_precision_on_a_gpu_is_near_float32(tmp_path: Path) -> None:
    """Bf16 keeps 8 bits and fp16 11; a few layers add some of their roundings, and the loss sums over blocks."""
    totals = {}
    for precision in Precision:
        runtime, job, batch = start(tmp_path, "cuda", f"runtime.precision={precision.name}")
        terms, _ = train_step(runtime, job, batch)
        assert terms.total.dtype is torch.float32
        totals[precision] = float(terms.total)
    assert totals[Precision.bf16] == pytest.approx(totals[Precision.float32], rel=3e-2)
    assert totals[Precision.fp16] == pytest.approx(totals[Precision.float32], rel=1e-2)


@pytest.mark.parametrize("mode", [WholeImageConfig(), SlidingWindowConfig(window=64, stride=32, window_batch=3)])
def test_counts_of_a_device_are_those_of_the_cpu(tmp_path: Path, device: str, mode: Any) -> None:
    runtime, job, _ = start(tmp_path, "cpu")
    counter = job.counter.eval()
    image = job.data.selection[0].image[:, :90, :]  # padded to the stride
    expected = counter.count(image, mode, probabilities=True)
    other = Runtime(config_of(tmp_path, f"runtime.accelerator={device}").runtime)
    evaluations = [evaluate(runtime, counter, job.data.selection, mode, evaluators=[Game(counter.grid)])]
    moved = other.move_to_device(counter)
    assert moved.mean.device.type == device
    found = moved.count(image.to(device), mode, probabilities=True)
    assert found.blocks is not None
    assert found.probabilities is not None
    assert {found.blocks.device.type, found.probabilities.device.type} == {"cpu"}
    torch.testing.assert_close(found.blocks, expected.blocks, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
    assert found.count == pytest.approx(expected.count, rel=1e-5)
    evaluations.append(evaluate(other, moved, job.data.selection, mode, evaluators=[Game(counter.grid)]))
    here, there = evaluations
    assert there.errors.mae == pytest.approx(here.errors.mae, rel=1e-4)
    assert [image.name for image in there.images] == [image.name for image in here.images]
    for found_image, expected_image in zip(there.images, here.images, strict=True):
        assert found_image.numbers == pytest.approx(expected_image.numbers, rel=1e-3)


@pytest.mark.gpu
def test_a_window_that_does_not_fit_is_counted_with_fewer_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An out-of-memory error of CUDA halves the number of windows, as one of the CPU does."""
    _, job, _ = start(tmp_path, "cuda")
    counter, image = job.counter.eval(), job.data.selection[0].image
    mode = SlidingWindowConfig(window=64, stride=32, window_batch=4)
    expected = counter.count(image, mode)
    predict = counter.predict_normalized

    def limited(pixels: torch.Tensor) -> Any:
        if len(pixels) > 1:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")  # a million GiB
        return predict(pixels)

    monkeypatch.setattr(counter, "predict_normalized", limited)
    assert counter.count(image, mode).count == pytest.approx(expected.count, rel=1e-5)


@pytest.mark.gpu
def test_a_compiled_network_trains_on_a_gpu_as_it_does_uncompiled(tmp_path: Path, run_command: Any) -> None:
    # In processes of their own: the shape checks of the tests cannot be traced.
    runs = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        settings = ["scale=smoke", "dataset.width=96", "dataset.height=96", "dataset.max_people=12", "model.width=8"]
        settings += ["runtime.accelerator=cuda", f"runtime.compile={compiled}", "epochs=1", f"output_dir={folder}"]
        done = run_command("train.py", *settings, "run_name=run", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"))
        assert done.returncode == 0, done.stderr
        folder = folder / "synthetic" / "run" / "seed1"
        runs.append((read_metrics(folder)[0], checkpoint.read(folder / checkpoint.LAST)["model"]))
    (plain, weights), (metrics, compiled_weights) = runs
    assert any((tmp_path / "inductor").iterdir())  # something was compiled
    assert list(compiled_weights) == list(weights)
    for key in ("train/total", "train/cross_entropy", "train/count", "train/predicted_mean"):
        assert metrics[key] == pytest.approx(plain[key], rel=1e-2), key  # convolutions in TF32
