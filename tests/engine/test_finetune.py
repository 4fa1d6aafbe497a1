"""Trainings that start from a counter: what is loaded, what not, what is frozen, how fast the backbone learns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.test_checkpoint import write_checkpoint
from headcount.bins import build_bins
from headcount.cli.compose import checked_config, compose, to_config
from headcount.config import (
    Algorithm,
    BinsConfig,
    ClipViTConfig,
    Freeze,
    OptimConfig,
    RegressionHeadConfig,
    Schedule,
    TimmConfig,
    TinyConfig,
    TrainConfig,
    check,
)
from headcount.engine import checkpoint
from headcount.engine.finetune import read_start
from headcount.engine.optim import build_optimizer, build_schedule
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job, build_job
from headcount.engine.summary import summarize
from headcount.engine.train import train
from headcount.errors import CheckpointError, ConfigError
from headcount.models.build import build_model, follow_weights
from headcount.types import BlockGrid
from interrupted import config_of, folder_of

BEST = checkpoint.BEST


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of one epoch."""
    output = tmp_path_factory.mktemp("trained")
    assert train(config_of(output, "epochs=1")) is not None
    return folder_of(output) / BEST


def job_from(file: Path, *overrides: str) -> Job:
    config = config_of(file.parent / "new", f"init_from={file}", "epochs=1", *overrides)
    config = dataclasses.replace(config, model=follow_weights(config.model))
    return build_job(config, Runtime(config.runtime), pretrained=True)


def state_of(file: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = checkpoint.read(file)["model"]
    return weights


# ---------------------------------------------------------------------------------- what is loaded


def test_the_same_bins_load_everything(trained: Path) -> None:
    job = job_from(trained)
    weights = state_of(trained)
    state = job.counter.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in state.items())
    assert f"starts from {trained} (tiny of synthetic, epoch 1): backbone, head" in summarize(job)
    assert "starts afresh" not in summarize(job)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["bins=coarse"], "its bins differ: "),
        (["bins.block_size=16"], "its blocks are 16 px, not 8 px"),
        (["model.head=regression", "bins=none", "loss=dm"], "its kind is regression, not ebc"),
    ],
)
def test_a_head_of_other_bins_starts_afresh_and_says_so(trained: Path, overrides: list[str], reason: str) -> None:
    job = job_from(trained, *overrides)
    weights = state_of(trained)
    for name, value in job.counter.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, weights[name]), name
    assert f"starts afresh: head, because {reason}" in summarize(job)


def test_the_same_bins_of_other_images_keep_the_head_and_their_own_counts(trained: Path) -> None:
    job = job_from(trained, "bins.representative_counts=[0,1,2,3,5.5]")
    before = checkpoint.load(trained).counter.head
    assert not torch.equal(job.counter.head.representatives, before.representatives)  # type: ignore[arg-type]
    assert torch.equal(job.counter.head.to_logits.weight, before.to_logits.weight)  # type: ignore[union-attr, arg-type]


def test_the_input_is_normalized_as_in_the_training_of_the_weights(tmp_path: Path, trained: Path) -> None:
    content = checkpoint.read(trained)
    content["model"]["mean"] = torch.full((3, 1, 1), 0.25)
    checkpoint.save(content, tmp_path / "other.pt")
    assert job_from(tmp_path / "other.pt").counter.mean.unique().item() == 0.25
    own = job_from(tmp_path / "other.pt", "model.mean=[0.5,0.5,0.5]")
    assert own.counter.mean.unique().item() == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("file", ["last.pt", "epoch_0001.pt"])
def test_every_checkpoint_of_a_run_is_read(trained: Path, tmp_path: Path, file: str) -> None:
    output = tmp_path / "all"
    if not (source := folder_of(output) / file).exists():
        assert train(config_of(output, "epochs=1", "keep=all", "optim.ema_decay=null")) is not None
    state = job_from(source).counter.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in state_of(source).items())


@pytest.mark.slow
def test_a_new_head_of_clip_reads_its_texts_with_the_published_weights(tmp_path: Path) -> None:
    settings = ["model=clip_rn50", "model.weights=none", "model.layers=[1,1,1,1]", "model.embed_dim=32", "epochs=1"]
    settings += ["model.text_width=16", "model.text_heads=2", "model.text_layers=1"]
    assert train(config_of(tmp_path, *settings)) is not None
    source = folder_of(tmp_path) / BEST
    kept = job_from(source, *settings).counter.state_dict()
    assert torch.equal(kept["head.text_features"], state_of(source)["head.text_features"])
    fresh = job_from(source, *settings, "bins=coarse")
    assert bool((fresh.counter.state_dict()["head.text_features"] != 0).any())
    assert "starts afresh: head, because its bins differ" in summarize(fresh)


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.width=16"], r"its network differs: model\.width=16 \(was 8\); set what it was trained with"),
        (["~", "model=mobilenet_v2", "model.weights=none"], "holds a tiny, and this training builds a mobilenet_v2"),
    ],
)
def test_another_network_is_refused(trained: Path, overrides: list[str], words: str) -> None:
    config = config_of(trained.parent / "new", f"init_from={trained}", "epochs=1")
    if overrides[0] == "~":
        config.model = checked_config(overrides[1:], config_name="train").model
    else:
        config = config_of(trained.parent / "new", f"init_from={trained}", "epochs=1", *overrides)
    with pytest.raises(ConfigError, match=f"init_from={trained}: {words}"):
        build_job(config, Runtime(config.runtime), pretrained=True)


def test_weights_of_another_shape_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a backbone that was registered from outside, and has changed since."""
    loaded = checkpoint.load(trained)
    first = loaded.counter.backbone.features[0][0]  # type: ignore[index, union-attr]
    first.weight = nn.Parameter(torch.zeros(9, 3, 3, 3))
    monkeypatch.setattr(checkpoint, "load", lambda path: loaded)
    with pytest.raises(ConfigError, match=r"do not fit: backbone\.features\.0\.0\.weight is \(9, 3, 3, 3\), not"):
        job_from(trained)


def test_a_file_that_is_missing_or_no_checkpoint_is_refused_by_the_setting(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(ConfigError, match=r"init_from=nowhere\.pt: no such file"):
        checked_config(["init_from=nowhere.pt"], config_name="train")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"^init_from=.*text\.pt: "):
        job_from(tmp_path / "text.pt")


@pytest.mark.slow
def test_a_resumed_run_continues_with_its_own_weights(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"init_from={trained}", "optim.backbone_lr_factor=0.1", "optim.schedule=constant"]
    run = train(config_of(tmp_path, *settings, "epochs=1"))
    assert run is not None
    assert f"starts from {trained}" in capsys.readouterr().err
    made = json.loads((run.folder / "run.json").read_text())["init_from"]
    assert (made["file"], made["dataset"], made["epoch"], made["new_head"]) == (str(trained), "synthetic", 1, None)
    assert run.metrics[0]["backbone_lr"] == pytest.approx(0.1 * run.metrics[0]["lr"])
    moved = [f"init_from={tmp_path / 'moved.pt'}", *settings[1:]]
    resumed = train(config_of(tmp_path, *moved, "epochs=2", "resume=true"))
    assert resumed is not None
    assert "resuming: init_from is not read, the run continues with its own weights" in capsys.readouterr().err
    assert json.loads((run.folder / "run.json").read_text())["init_from"] == made
    assert checkpoint.read(run.folder / checkpoint.LAST)["config"]["init_from"] == str(trained)


# ---------------------------------------------------------------------------------- rates of the backbone


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_the_backbone_learns_at_its_own_rate_at_every_step(algorithm: Algorithm) -> None:
    counter = build_model(TinyConfig(width=8), BlockGrid(8), build_bins(BinsConfig(), {0: 1}))
    config = OptimConfig(
        algorithm=algorithm,
        lr=1e-2,
        backbone_lr_factor=0.1,
        schedule=Schedule.cosine,
        warmup_epochs=2,
        warmup_lr=1e-3,
        min_lr=0,
    )
    optimizer = build_optimizer(config, counter)
    names = {id(p): name for name, p in counter.named_parameters()}
    schedule = build_schedule(config, optimizer, epochs=10, steps_per_epoch=1)
    for expected in (1e-3, 5.5e-3, 1e-2):  # in warm-up, and at its end
        for group in optimizer.param_groups:
            of_backbone = {names[id(p)].startswith("backbone.") for p in group["params"]}
            assert len(of_backbone) == 1
            assert group["lr"] == pytest.approx(expected * (0.1 if of_backbone == {True} else 1))
        optimizer.step()
        schedule.step()
    assert not names[id(optimizer.param_groups[0]["params"][0])].startswith("backbone.")  # the rate that is recorded
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(names)
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert decays == ({config.weight_decay, 0.0} if algorithm is Algorithm.adamw else {config.weight_decay})
    assert len(build_optimizer(OptimConfig(algorithm=algorithm), counter).param_groups) == len(decays)


# ---------------------------------------------------------------------------------- what is frozen


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.mark.parametrize("freeze", ["backbone", pytest.param("batch_norm", marks=pytest.mark.slow)])
def test_what_is_frozen_does_not_change_in_an_epoch(tmp_path: Path, trained: Path, freeze: str) -> None:
    settings = [f"init_from={trained}", "epochs=1", f"model.freeze={freeze}", "optim.weight_decay=0.5", "optim.lr=1e-2"]
    run = train(config_of(tmp_path, *settings))
    assert run is not None
    state = checkpoint.read(run.folder / checkpoint.LAST)
    moved = changed(state_of(trained), state["model"])
    of_head = {name for name in state["model"] if name.startswith("head.")}
    modules = checkpoint.load(trained).counter.named_modules()
    norms = tuple(f"{name}." for name, part in modules if isinstance(part, nn.BatchNorm2d))
    of_norm = {name for name in state["model"] if name.startswith(norms)}
    assert of_norm
    assert of_head <= moved
    if freeze == "backbone":
        assert moved == of_head
        assert len(state["optimizer"]["state"]) == 2
    else:
        assert not moved & of_norm
        assert any(name.startswith("backbone.") for name in moved)


def test_frozen_parts_stay_in_evaluation_mode_and_get_no_gradient() -> None:
    config = TinyConfig(width=8, freeze=Freeze.backbone)
    counter = build_model(config, BlockGrid(8), build_bins(BinsConfig(), {0: 1}))
    assert counter.train().training
    assert not any(part.training for part in counter.backbone.features.modules())
    assert counter.head.training
    counter(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).count.sum().backward()
    assert all(p.grad is None for p in counter.backbone.parameters())
    assert all(p.grad is not None for p in counter.head.parameters())
    assert not counter.eval().head.training
    names = TimmConfig(name="resnet18", weights="none", freeze=Freeze.batch_norm)
    timm = build_model(names, BlockGrid(16), build_bins(BinsConfig(block_size=16), {0: 1})).train()
    norms = [part for part in timm.backbone.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(part.training or p.requires_grad for part in norms for p in part.parameters())
    assert any(part.training for part in timm.backbone.modules())


@pytest.mark.slow
def test_a_decoder_is_frozen_with_its_backbone_on_request() -> None:
    config: Any = checked_config(["model=csrnet", "model.weights=none"], config_name="train")
    for freeze in (Freeze.backbone, Freeze.all_but_head):
        config.model.freeze = freeze
        counter = build_model(config.model, BlockGrid(8), build_bins(BinsConfig(), {0: 1})).train()
        assert counter.decoder is not None
        assert counter.decoder.training is (freeze is Freeze.backbone)
        assert any(p.requires_grad for p in counter.decoder.parameters()) is (freeze is Freeze.backbone)


def test_batchnorm_of_a_backbone_without_it_cannot_be_frozen() -> None:
    config: Any = checked_config(["model=vgg16", "model.weights=none", "model.freeze=batch_norm"], config_name="train")
    with pytest.raises(ConfigError, match=r"model\.freeze=batch_norm: the backbone has no BatchNorm"):
        build_model(config.model, BlockGrid(8), build_bins(BinsConfig(), {0: 1}))


def test_settings_that_freeze_what_was_never_trained_are_refused() -> None:
    def errors(*typed: str) -> str:
        with pytest.raises(ConfigError) as caught:
            checked_config(typed, config_name="train")
        return str(caught.value)

    random = "the backbone would keep its random weights; add init_from=CKPT"
    assert random in errors("model.freeze=backbone")
    assert random in errors("model=mobilenet_v2", "model.weights=none", "model.freeze=all_but_head")
    rate = errors("model=mobilenet_v2", "model.freeze=backbone", "optim.backbone_lr_factor=0.1")
    assert rate.startswith("optim.backbone_lr_factor=0.1: model.freeze=backbone leaves no backbone to train")
    vit: TrainConfig = checked_config(["model=clip_vit_b16", "augment.crop_size=224"], config_name="train")
    assert isinstance(vit.model, ClipViTConfig)
    vit.model.freeze = Freeze.backbone
    assert "the prompt tokens would stay random; model.frozen=true alone" in check(vit)[0]
    vit.model.prompt_tokens = 0
    assert check(vit) == []


# ----------------------------------------------------------------------------------- prompts of a new head


def written_with(file: Path, **model: Any) -> Path:
    """The checkpoint, as if its model had been trained with other settings."""
    content = checkpoint.read(file)
    content["config"]["model"] |= model
    checkpoint.save(content, file)
    return file


def test_prompts_of_a_new_head_are_not_encoded_at_random(tmp_path: Path) -> None:
    clip = "model=clip_rn50 model.weights=none model.width=16 model.layers=[1,1,1,1] model.embed_dim=16"
    clip += " model.text_width=16 model.text_heads=2 model.text_layers=1"
    file = written_with(write_checkpoint(tmp_path, *clip.split()), weights="openai")
    config: Any = to_config(compose([*clip.split(), f"init_from={file}", "bins=coarse"], config_name="train"))
    config.model = follow_weights(config.model)
    bins = build_bins(config.bins, {0: 90, 1: 5, 4: 1})
    with pytest.raises(ConfigError, match=r"^model\.weights=none: the head starts afresh, because its bins differ"):
        read_start(config, bins)
    config.model.head = RegressionHeadConfig()  # has no prompts
    assert read_start(config, None) is not None


def test_filters_cannot_be_added_without_the_untuned_clip(tmp_path: Path) -> None:
    small = "method=ranking model.weights=none model.encoder=rn50 model.width=8 model.layers=[1,1,1,1]"
    small += " model.input_size=32 model.head.scenes=[] model.head.parts=[]"
    file = write_checkpoint(tmp_path, *small.split())
    config: Any = to_config(compose([*small.split(), f"init_from={file}"], config_name="train"))
    config.model = follow_weights(config.model)
    config.model.head.numbers = [1, 2, 3, 4, 5, 6]
    start = read_start(config, None)
    assert start is not None
    assert start.new_head == "its settings differ"
    config.model.head.scenes = ["crowd", "tree"]
    with pytest.raises(ConfigError, match=r"was trained without filters and crowd sizes, and holds no untuned CLIP"):
        read_start(config, None)
