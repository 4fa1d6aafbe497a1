"""A step in equal parts is the step of the whole batch, but for BatchNorm; also its records, and a resumed run."""

import dataclasses
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headcount.cli.compose import checked_config
from headcount.config import ConfigError, TrainConfig, check
from headcount.data.loading import EpochSampler
from headcount.engine import train as loop
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job, build_job
from headcount.engine.train import train, train_step
from headcount.types import Batch, BinPrediction, LossTerms, Prediction
from interrupted import assert_same_run, config_of, folder_of

WITHOUT_BATCHNORM = ["model.freeze=batch_norm", "batch_size=8"]


def typed(*overrides: str) -> list[str]:
    """Images of many heads, so that no term of the loss is zero."""
    own = ["scale=smoke", "model.width=8", "runtime=cpu", "runtime.workers=0", "augment.crop_size=64", "run_name=run"]
    own += ["dataset.width=96", "dataset.height=96", "dataset.max_people=12", "dataset.train_images=8"]
    own += ["dataset.max_train_images=8"]
    return [*own, "dataset.val_images=2", "optim.ema_decay=0.9", *overrides]


def steps(*overrides: str, number: int = 1) -> tuple[Job, list[LossTerms], Prediction, dict[str, Tensor]]:
    """The first steps of a training: the job after them, their losses, the last prediction, the first gradients."""
    config: TrainConfig = checked_config(typed(*overrides), config_name="train")
    runtime = Runtime(config.runtime)
    job = build_job(config, runtime, pretrained=False)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, p in job.counter.named_parameters():
            if p.grad is not None:
                gradients.setdefault(name, p.grad.clone())

    job.optimizer.optimizer.register_step_pre_hook(keep)
    runtime.seed(config.seed, 0)
    job.model.train()
    terms = []
    for epoch in range(number):
        for batch in job.loader.epoch(epoch):
            loss, prediction = train_step(runtime, job, batch)
            terms.append(loss)
    return job, terms, prediction, gradients


def relative(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The relative difference of all tensors together, by their norm."""
    assert one.keys() == other.keys()
    first, second = (torch.cat([tensors[name].double().flatten() for name in one]) for tensors in (one, other))
    return float((first - second).norm() / first.norm())


@pytest.mark.parametrize(
    ("parts", "loss"),
    [
        (4, ["loss.transport.ot_reduction=sum"]),
        pytest.param(8, ["loss=dace"], marks=pytest.mark.slow),
        pytest.param(4, ["loss=cross_entropy"], marks=pytest.mark.slow),
        pytest.param(4, ["loss=dace_mae"], marks=pytest.mark.slow),
        pytest.param(4, ["loss=dm", "bins=none", "model.head=regression"], marks=pytest.mark.slow),
        pytest.param(4, ["loss=mse", "bins=none", "model.head=regression"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_in_parts_is_that_of_the_whole_batch(parts: int, loss: list[str]) -> None:
    whole, terms, prediction, gradients = steps(*WITHOUT_BATCHNORM, *loss)
    split, terms_of_parts, prediction_of_parts, gradients_of_parts = steps(
        *WITHOUT_BATCHNORM, *loss, f"accumulate={parts}"
    )
    assert relative(gradients, gradients_of_parts) < 1e-6
    assert float(terms_of_parts[0].total) == pytest.approx(float(terms[0].total.detach()), rel=1e-6)
    for name, value in {**terms[0].parts, **terms[0].logged}.items():
        # The surrogate is zero up to rounding.
        of_parts = {**terms_of_parts[0].parts, **terms_of_parts[0].logged}[name]
        assert float(of_parts) == pytest.approx(float(value), rel=1e-6, abs=1e-3 if "surrogate" in name else 0), name
    assert torch.allclose(prediction.count, prediction_of_parts.count, rtol=1e-6)
    assert split.schedule.last_epoch == whole.schedule.last_epoch == 1
    assert split.average.updates == whole.average.updates == 1  # type: ignore[union-attr]


def test_batchnorm_normalizes_by_the_crops_of_a_part() -> None:
    whole, split = (steps("batch_size=8", f"accumulate={parts}")[3] for parts in (1, 4))
    assert relative(whole, split) > 0.01


@pytest.mark.slow
def test_epochs_in_parts_have_the_same_steps_rates_and_averages() -> None:
    """Ten images make two steps of four; the last two are left out, as ever."""
    ten = ["model.freeze=batch_norm", "dataset.train_images=10", "dataset.max_train_images=10", "batch_size=4"]
    ten += ["optim.algorithm=adam", "optim.lr=1e-4"]
    whole, terms, *_ = steps(*ten, number=2)
    split, terms_of_parts, *_ = steps(*ten, "accumulate=2", number=2)
    assert len(terms) == len(terms_of_parts) == 4
    assert whole.optimizer.param_groups[0]["lr"] == split.optimizer.param_groups[0]["lr"]
    assert whole.average.updates == split.average.updates == 4  # type: ignore[union-attr]
    assert relative(whole.counter.state_dict(), split.counter.state_dict()) < 1e-5


def test_a_small_dataset_is_shared_equally_by_the_parts() -> None:
    sampler = EpochSampler(7, batch_size=8, seed=0, parts=2)
    assert (sampler.step_images, len(sampler)) == (6, 1)
    with pytest.raises(ConfigError, match=r"accumulate=4: 7 training images cannot be split .* set at most 3"):
        EpochSampler(7, batch_size=8, seed=0, world=2, parts=4)


def test_a_batch_is_split_with_its_targets_or_refused() -> None:
    batch = Batch(
        torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 8, 8),
        ["a", "b", "c", "d"],
        {"points": [torch.full((k, 2), float(k)) for k in range(4)], "labels": torch.arange(4).view(4, 1, 1)},
    )
    assert batch.split(1) == [batch]
    first, second = batch.split(2)
    assert (first.names, second.names) == (["a", "b"], ["c", "d"])
    assert second.images[:, 0, 0, 0].tolist() == second.target("labels").flatten().tolist() == [2, 3]
    assert [len(points) for points in second.target("points")] == [2, 3]
    with pytest.raises(ConfigError, match="accumulate=3: a batch of 4 images has no 3 equal parts"):
        batch.split(3)
    with pytest.raises(ConfigError, match="a batch of 4 images made of 2, which belong together"):
        dataclasses.replace(batch, names=["a", "b"]).split(2)


def test_parts_of_a_prediction_without_blocks_are_joined() -> None:
    joined = Prediction.join([Prediction(torch.tensor([1.0]), None), Prediction(torch.tensor([2.0]), None)])
    assert (joined.count.tolist(), joined.blocks) == ([1.0, 2.0], None)
    blocks = torch.ones(1, 1, 1, 2)
    bins = BinPrediction(torch.tensor([2.0]), blocks, torch.zeros(1, 3, 1, 2))
    assert Prediction.join([bins]) is bins
    assert Prediction.join([bins, bins]).blocks is not None


def test_parts_that_do_not_divide_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="accumulate=3: must divide batch_size=8 into equal parts; allowed are 1, 2"):
        checked_config(["accumulate=3"], config_name="train")
    config: TrainConfig = checked_config(["runtime.devices=2", "accumulate=4"], config_name="train")
    config.accumulate = 8
    assert check(config) == [
        "accumulate=8: must divide batch_size=8 (4 of each process) into equal parts; allowed are 1, 2, 4"
    ]


@pytest.mark.slow
def test_a_run_in_parts_stopped_within_an_epoch_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config_of(tmp_path / "whole", "accumulate=2"))
    assert whole is not None
    step, done = loop.train_step, 0

    def stepping(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stepping)
        with pytest.raises(SystemExit):
            train(config_of(tmp_path, "accumulate=2"))
    assert (folder_of(tmp_path) / "mid_epoch.pt").exists()
    with pytest.raises(ConfigError, match=r"accumulate=1 \(was 2\)"):
        train(config_of(tmp_path, "resume=true"))
    assert train(config_of(tmp_path, "accumulate=2", "resume=true")) is not None
    assert_same_run(whole.folder, folder_of(tmp_path))
