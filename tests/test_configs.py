"""Every YAML file composes, passes the checks and builds."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from headcount.bins import build_bins
from headcount.cli.compose import compose, to_config
from headcount.config import SCHEMAS, RankingHeadConfig, TrainConfig, check
from headcount.data.augment import build_augment
from headcount.data.catalogue import selection_split, split_names
from headcount.engine.optim import build_average, build_optimizer
from headcount.losses.build import build_loss
from headcount.models.build import build_model
from headcount.types import BlockGrid

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CHOICES = sorted(f.relative_to(CONFIGS) for f in CONFIGS.rglob("*.yaml") if f.parent != CONFIGS)
# eval.py reads these two groups as well.
SHARED = {"eval", "runtime"}
HISTOGRAM = {0: 90, 1: 5, 2: 3, 4: 1, 70: 1}


# What a choice does not go without.
WITH = {
    ("model", "timm"): ["model.name=resnet18"],
    ("model", "clip"): ["model.name=convnext_tiny"],
    ("model/head", "zip"): ["loss=zip"],
    ("loss", "zip"): ["model.head=zip"],
    ("bins", "given"): ["bins.first_counts=[1,2,4]"],
    ("bins", "none"): ["model.head=regression", "loss=dm"],
    ("model/head", "regression"): ["bins=none", "loss=dm"],
    ("dataset", "mixed"): ["dataset.parts=[sha,nwpu]"],
    ("loss/kernel", "fixed"): ["loss=mse"],
    ("loss/kernel", "adaptive"): ["loss=mse"],
    ("model", "clip_ranking"): ["method=ranking"],
    ("model/head", "ranking"): ["method=ranking"],
    ("loss", "mmr"): ["method=ranking"],
    ("loss", "clip"): ["method=ranking"],
}


def group_and_choice(file: Path) -> tuple[str, str]:
    """A folder below a group is a group of its own (model/head), or part of the choice's name (experiment)."""
    group = file.parent.as_posix() if file.parent.as_posix() in SCHEMAS else file.parts[0]
    return group, file.relative_to(group).with_suffix("").as_posix()


def config_of(group: str, choice: str) -> TrainConfig:
    overrides = [f"{group}={choice}", *WITH.get((group, choice), [])]
    config: TrainConfig = to_config(compose(overrides, config_name="train"))
    if hasattr(config.model, "weights"):
        config.model.weights = "none"  # published weights cannot be had without a network
    if isinstance(config.model.head, RankingHeadConfig):  # asks the published weights
        config.model.head.scenes, config.model.head.parts, config.model.head.crowd_sizes = [], [], []
    return config


def test_there_are_choices() -> None:
    assert len(CHOICES) > 15


@pytest.mark.slow
@pytest.mark.parametrize("file", CHOICES, ids=str)
def test_choice_composes_and_builds(file: Path) -> None:
    group, choice = group_and_choice(file)
    config = config_of(group, choice)
    assert check(config) == []
    if group == "dataset":
        assert config.dataset.name == choice
        assert selection_split(config.dataset) in split_names(config.dataset)
    bins = build_bins(config.bins, HISTOGRAM)
    grid = BlockGrid(config.bins.block_size)
    # Without memory: the largest have hundreds of millions of parameters.
    with torch.device("meta" if config.model.name != "resnet18" else "cpu"):  # timm's probe computes
        counter = build_model(config.model, grid, bins, histogram=HISTOGRAM, pretrained=False)
    build_loss(config.loss, grid, bins)
    build_augment(config.augment)
    build_optimizer(config.optim, counter)
    build_average(config.optim, counter)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(f.stem for f in CHOICES if f.parent.as_posix() == "model"))
def test_model_counts_at_full_size(name: str) -> None:
    """Text encoder and all, without published weights."""
    config = config_of("model", name)
    grid, bins = BlockGrid(config.bins.block_size), build_bins(config.bins, HISTOGRAM)
    counter = build_model(config.model, grid, bins, histogram=HISTOGRAM).eval()
    if not counter.counts_in_one_pass:
        assert counter.count(torch.zeros(3, 112, 224, dtype=torch.uint8)).count > 0
        return
    with torch.inference_mode():
        prediction = counter(torch.zeros(1, 3, 112, 224, dtype=torch.uint8))
    assert prediction.blocks.shape == (1, 1, 112 // counter.stride * counter.stride // 8, 28)
    assert prediction.blocks.isfinite().all()


@pytest.mark.parametrize("file", [f for f in CHOICES if f.parts[0] in SHARED], ids=str)
def test_choice_composes_for_evaluation(file: Path) -> None:
    cfg = compose(["ckpt=x.pt", f"{file.parts[0]}={file.stem}"], config_name="eval")
    assert OmegaConf.to_object(cfg).ckpt == "x.pt"


@pytest.mark.parametrize("file", CHOICES, ids=str)
def test_choice_says_what_it_is(file: Path) -> None:
    lines = (CONFIGS / file).read_text().splitlines()
    comments = [line for line in lines if line.startswith("# ") and "@package" not in line]
    assert comments, "a config is a document: begin it with a comment"
