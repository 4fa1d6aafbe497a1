"""A training with the zero-inflated Poisson head resumes bit for bit, and its counters count in every way."""

import dataclasses
from pathlib import Path

import pytest
import torch

from headcount.cli.compose import checked_config
from headcount.config import TrainConfig
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate_checkpoint
from headcount.engine.load import load
from headcount.engine.train import train

pytestmark = pytest.mark.slow

ZIP = ["model.head=zip", "loss=zip"]
MIXED = [
    "dataset=mixed",
    "dataset.parts=[{name: synthetic, width: 96, height: 96, max_people: 60, train_images: 5},"
    "{name: synthetic, as: other, seed: 4, width: 128, height: 96, max_people: 90, test_images: 2}]",
]


def config_of(folder: Path, *overrides: str) -> TrainConfig:
    small = ["scale=smoke", "model.width=8", "runtime=cpu", "runtime.workers=0", f"output_dir={folder}", "run_name=run"]
    config: TrainConfig = checked_config([*ZIP, *small, *overrides], config_name="train")
    return config


@pytest.mark.parametrize(
    "choices", [["dataset.max_people=200"], [*MIXED, "bins=auto", "bins.block_size=16"]], ids=["one", "mixed"]
)
def test_a_run_resumes_and_is_evaluated(choices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(config_of(tmp_path / "whole", *choices))
    assert whole is not None
    last = whole.metrics[-1]
    assert {"train/nll", "train/cross_entropy", "train/multiscale_mae", "train/count", "train/log_factorial"} <= set(
        last
    )

    # The same run, stopped after its first epoch.
    cut = config_of(tmp_path / "cut", *choices)
    with monkeypatch.context() as patched:
        patched.setattr("headcount.engine.train._is_drawn", lambda config, epoch: 1 / (epoch - 2) and False)
        with pytest.raises(ZeroDivisionError):
            train(cut)
    resumed = train(dataclasses.replace(cut, resume=True))
    assert resumed is not None
    weights, expected = (checkpoint.read(run.folder / checkpoint.LAST)["model"] for run in (resumed, whole))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)

    best = resumed.folder / checkpoint.BEST
    for mode in ([], ["eval=sliding_window", "eval.window=64", "eval.stride=32"]):
        typed = [f"ckpt={best}", "runtime=cpu", "max_images=2", f"output_dir={tmp_path / 'report'}", *mode]
        evaluated = evaluate_checkpoint(checked_config(typed, config_name="eval"))
        assert evaluated is not None
        assert evaluated.reliability is not None
        assert len(evaluated.evaluation.images) >= 2
        assert all(image.numbers["variance"] > 0 for image in evaluated.evaluation.images)

    counter = load(best)
    photo = counter.predict(torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8))
    assert photo.block_counts is not None
    assert photo.probabilities is not None
    assert photo.count == pytest.approx(float(photo.block_counts.sum()), rel=1e-5)
    torch.testing.assert_close(photo.probabilities.sum(0), torch.ones_like(photo.block_counts))
    assert photo.interval is not None
    assert photo.interval.low <= photo.count <= photo.interval.high
