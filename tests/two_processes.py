"""Steps and an evaluation on as many processes as are given, for test_processes.py: two_processes.py DEVICES OUTPUT."""

import dataclasses
import sys
from typing import Any

import torch
from omegaconf import OmegaConf

from headcount.cli.compose import compose
from headcount.config import TrainConfig
from headcount.data.open import open_split
from headcount.engine.evaluate import evaluate
from headcount.engine.runtime import Runtime
from headcount.engine.setup import build_job
from headcount.engine.train import train_step

SMALL = [
    *("scale=smoke", "dataset.width=96", "dataset.height=96", "dataset.max_people=12", "dataset.train_images=8"),
    *("dataset.test_images=5", "batch_size=4", "model.width=8", "runtime=cpu", "runtime.workers=0", "run_name=run"),
    *("optim.max_grad_norm=null", "optim.ema_decay=null", "optim.lr=1e-4"),
]
CASES = {
    "synchronized": [],
    "alone": ["runtime.sync_batchnorm=false"],
    "without": ["~model.width", "model=vgg16", "model.weights=none", "augment.crop_size=64"],
    "summed": ["loss.transport.ot_reduction=sum"],
    "parts": ["accumulate=2", "model.freeze=batch_norm", "loss.transport.ot_reduction=sum"],
}


def config_of(*overrides: str) -> TrainConfig:
    typed = [text for text in SMALL if f"~{text.split('=')[0]}" not in overrides]
    return OmegaConf.to_object(compose([*typed, *(o for o in overrides if o[0] != "~")], config_name="train"))


def first_step(runtime: Runtime, config: TrainConfig) -> dict[str, Any]:
    """The gradients of the first step, and the weights and statistics after it."""
    runtime.sync_batchnorm = config.runtime.sync_batchnorm
    job = build_job(config, runtime, pretrained=False)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update({name: p.grad.clone() for name, p in job.counter.named_parameters() if p.grad is not None})

    job.optimizer.optimizer.register_step_pre_hook(keep)
    runtime.seed(config.seed, 0)
    job.model.train()
    loss, _ = train_step(runtime, job, next(iter(job.loader.epoch(0))))
    return {
        "gradients": gradients,
        "state": {name: value.clone() for name, value in job.counter.state_dict().items()},
        "loss": runtime.sum([float(loss.total.detach())])[0] / runtime.world,
    }


def evaluated(runtime: Runtime) -> dict[str, Any]:
    """The errors and counts of five images."""
    config = config_of()
    job = build_job(config, runtime, pretrained=False)
    result = evaluate(runtime, job.counter, open_split(config.dataset, "test"), job.mode)
    return {**dataclasses.asdict(result.errors), "counts": [(i.name, i.true, i.predicted) for i in result.images]}


def everything(devices: int) -> dict[str, Any]:
    runtime = Runtime(config_of(f"runtime.devices={devices}").runtime)
    found: dict[str, Any] = {}
    with runtime.guard():
        for name, overrides in CASES.items():
            config = config_of(*overrides, f"runtime.devices={devices}")
            found[name] = first_step(runtime, config)
        found["evaluated"] = evaluated(runtime)
    return found | {"rank": runtime.rank, "world": runtime.world}


if __name__ == "__main__":
    found = everything(int(sys.argv[1]))
    if found["rank"] == 0:
        torch.save(found, sys.argv[2])
