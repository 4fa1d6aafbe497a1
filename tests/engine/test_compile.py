"""A compiled network trains as the network does, and leaves the same names behind."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from headcount.cli.name import run_name
from headcount.config import RuntimeConfig
from headcount.engine import checkpoint
from headcount.engine.records import read_metrics
from headcount.engine.runtime import Runtime, unwrap

SMALL = ["scale=smoke", "dataset.width=96", "dataset.height=96", "dataset.max_people=12", "model.width=8", "epochs=1"]


@pytest.mark.slow
def test_the_network_inside_a_compiled_one_is_the_one_that_was_given() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    keys = list(network.state_dict())
    model, _ = Runtime(RuntimeConfig(compile=True)).setup(network, torch.optim.SGD(network.parameters()))
    assert isinstance(model._forward_module, torch._dynamo.OptimizedModule)
    assert unwrap(model) is network
    assert list(network.state_dict()) == list(model.state_dict()) == keys


@pytest.mark.slow
def test_compiling_is_no_part_of_a_run_s_name() -> None:
    names = [run_name(typed, config_name="train") for typed in ([], ["runtime.compile=true"])]
    assert names[0] == names[1]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="torch.compile needs a C++ compiler")
def test_two_steps_agree_and_checkpoints_have_the_same_keys(tmp_path: Path, run_process) -> None:
    # In processes of their own: the shape checks of the tests cannot be traced. Warnings are errors there too.
    environment = {"PYTHONWARNINGS": "error", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    runs = {}
    for compiled in (False, True):
        settings = [f"output_dir={tmp_path / str(compiled)}", "run_name=run", f"runtime.compile={compiled}"]
        done = run_process("train.py", *SMALL, "runtime=cpu", *settings, **environment)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / str(compiled) / "synthetic" / "run" / "seed1"
        runs[compiled] = (read_metrics(folder)[0], checkpoint.read(folder / checkpoint.LAST)["model"])
    assert any((tmp_path / "inductor").iterdir())  # something was compiled
    (plain, weights), (metrics, compiled_weights) = runs[False], runs[True]
    for key in ("train/total", "train/cross_entropy", "train/count", "train/predicted_mean", "eval/predicted_mean"):
        assert metrics[key] == pytest.approx(plain[key], rel=1e-4), key
    assert list(compiled_weights) == list(weights)
    for key, value in weights.items():
        torch.testing.assert_close(compiled_weights[key], value, rtol=1e-3, atol=1e-4)

    # A run may go on without it.
    done = run_process("train.py", *SMALL, "runtime=cpu", "resume=true", *settings[:2], **environment)
    assert done.returncode == 0, done.stderr
