"""Settings become a config, or are refused with an explanation."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from headcount.cli import hydra_private
from headcount.cli.choices import all_choices, command_choices, config_dir, schemas
from headcount.cli.compose import compose
from headcount.cli.composed import composed as kept_config
from headcount.cli.name import run_name
from headcount.cli.sweep import check_jobs
from headcount.config import (
    SCHEMAS,
    ConfigError,
    DaceConfig,
    HeadConfig,
    StableTransportConfig,
    TimmConfig,
    TinyConfig,
    TrainConfig,
    register,
)


def composed(*overrides: str, name: str = "train") -> TrainConfig:
    return OmegaConf.to_object(compose(overrides, config_name=name))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", ["optim has no lrr", "allowed are", "weight_decay", "did you mean lr?"]),
        ("optim.lr=fast", ["optim.lr=fast", "takes a number"]),
        ("bins.block_size=eight", ["bins.block_size=eight", "a whole number"]),
        ("bins.last=closed", ["one of open, clipped"]),
        (
            "model=mobilnet",
            ["no such choice", "mobilenet_v2, resnet101, timm, tiny, vgg16", "did you mean mobilenet_v2?"],
        ),
        (
            "model.weights=none",
            ["model has no weights", "weights is a setting of model=cannet, clip, clip_ranking, clip_rn101", "vgg19"],
        ),
        ("lr=1", ["there is no setting lr", "did you mean optim.lr?"]),
        ("loss=3", ["loss=3: no such choice", "dace"]),
        ("resume=maybe", ["true or false"]),
        ("model.mean=gray", ["a list such as"]),
        ("optim=adam_cosine optim.lr=[1", ["cannot be read"]),
        ("+speed=1", ["settings can only be set, not added or removed"]),
        ("~loss", ["settings can only be set, not added or removed"]),
        ("optim={lr:1}", ["optim={lr:1}: no such choice"]),
        ("model.prompts=3", ["model has no prompts", "prompts is a setting of model=clip, clip_rn101, clip_rn50"]),
        ("model=clip_rn50 model.prompts=3", ["settings of its own: model.prompts.style"]),
        ("loss.transport=3", ["loss.transport=3: no such choice; allowed are released, stable"]),
        ("loss.transport=stabl", ["loss.transport=stabl: no such choice", "did you mean stable?"]),
        ("model.head={name:ebc}", ["model.head={name:ebc}: no such choice; allowed are ebc, ranking, regression"]),
        ("model/head=3", ["model.head=3: no such choice; allowed are ebc, ranking, regression"]),
        ("model.haed=ebc", ["model has no haed", "did you mean head?"]),
        ("loss=mse loss.transport=stable", ["loss has no transport", "transport is a setting of loss=dace, dm"]),
        ("loss=dace_mae loss.transport.ot_weight=0.1", ["loss has no transport", "is a setting of loss=dace, dm"]),
        ("loss=mse loss.kernel.beta=0.5", ["loss.kernel has no beta", "beta is a setting of loss.kernel=adaptive"]),
        ("loss.transport.tolerance=1e-3", ["tolerance is a setting of loss.transport=stable"]),
        ("model.head=ebc,regression", ["model.head=ebc,regression: several values; one is needed here"]),
        ("loss.transport.regularisation=3", ["regularisation=3: is now loss.transport.regularization"]),
        ("loss.transport.solver=released", ["loss.transport.solver=released: is now loss.transport=released"]),
        ("loss.transport.solver=other", ["is now loss.transport=released or loss.transport=stable"]),
        ("dataset.name=sha", ["dataset.name=sha: is always synthetic; choose another with dataset=..."]),
        ("dataset=sha dataset.name=shb", ["dataset.name=shb: is always sha"]),
        ("model=vgg19 model.name=resnet101", ["model.name=resnet101: is always vgg19"]),
        ("experiment=table1/csrnet_ebc_sha model.name=cannet", ["model.name=cannet: is always csrnet"]),
        ("loss=dace_mae loss.name=dm", ["loss.name=dm: is always dace"]),
        ("loss=dace_mae loss.error=mse", ["loss.error=mse: is always mae; choose another with loss=..."]),
        ("model.head.name=x", ["model.head.name=x: is always ebc; choose another with model.head=..."]),
        ("method.name=x", ["method.name=x: is always supervised; choose another with method=..."]),
        ("optim.lr=null", ["optim.lr=null: optim.lr takes a number"]),
        ("epochs=1e-3", ["epochs=1e-3: epochs takes a whole number"]),
        ("bins.nope=1", ["bins has no nope; allowed are block_size, counted,"]),
        ("loss=dace_mae loss.nope=1", ["loss has no nope; allowed are weight"]),  # name and error are fixed
        ("resume=5", ["resume=5: resume takes true or false"]),
        ("runtime.compile=0.5", ["runtime.compile=0.5: runtime.compile takes true or false"]),
        ("bins.last=2", ["bins.last=2: bins.last takes one of open, clipped"]),
        ("epochs=" + "9" * 5001, ["epochs=9999", "...: holds a number of a thousand digits or more"]),
        ("model.head=" + "A" * 5000, ["model.head=AAAA", "no such choice; allowed are ebc, ranking, regression"]),
        # Texts that Hydra takes for numbers of another spelling.
        ("run_name=1e3", ["run_name=1e3: would become 1000.0; put quotes around a text: run_name=\"'1e3'\""]),
        ("output_dir=1_000", ["output_dir=1_000: would become 1000; put quotes"]),
        ("data_root=true", ["data_root=true: would become True; put quotes"]),
        ("epochs=${nope}", ["epochs=${nope}: Interpolation key 'nope' not found; type the value itself"]),
        ("output_dir=${oc.env:NOT_SET_ANYWHERE}", ["output_dir=${oc.env:NOT_SET_ANYWHERE}: ", "not found"]),
        ("epochs=${epochs}", ["epochs=${epochs}: Recursive interpolation"]),
        ("epochs=${nope:1}", ["epochs=${nope:1}: Unsupported interpolation type nope"]),
        ("model.mean=${seed}", ["model.mean=${seed}: model.mean takes a list", "not 1"]),
        ("model.mean=[${nope},0,0]", ["model.mean=[${nope},0,0]: Interpolation key 'nope' not found"]),
        ("bins@foo=fine", ["bins@foo=fine: a group is always in its own place"]),
        ("hydra/launcher=nope", ["hydra/launcher=nope: ", "Could not find"]),
        ("hydra.run.dir=${nope}", ["hydra.run.dir=${nope}: Interpolation key 'nope' not found"]),
        ("best.pt", ["best.pt: settings are typed as key=value; did you mean ckpt=best.pt?"]),
        ("sha", ["sha: settings are typed as key=value; did you mean dataset=sha?"]),
        ("data_root=~somebody/data", ["data_root=~somebody/data: cannot be read", "'~'", "data_root=\"'...'\""]),
    ],
)
def test_what_cannot_be_composed_is_explained(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*override.split())
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "name"), [("run_name='1e3'", "1e3"), ("run_name=2024", "2024"), ("run_name=1.5", "1.5")]
)
def test_a_text_of_digits_stays_as_it_was_typed(typed: str, name: str) -> None:
    assert composed(typed).run_name == name


@pytest.mark.parametrize(
    "texts",
    [
        ["epochs=2", "optim.lr=1e-3", "epochs=3", "epochs=2"],
        ["model.mean=[0.1,0.2,0.3]", "dataset.max_train_images=null", "run_name='a b'", "bins.last=clipped"],
        ["loss=mse", "loss/kernel=adaptive", "loss.kernel.beta=0.5", "model/head=regression", "bins=none"],
        ["output_dir=${run_name}", "epochs=${seed}", "data_root=a/${oc.env:HOME}"],
        ["experiment=table1/csrnet_ebc_sha", "scale=smoke", "augment.crop_size=64"],
        ["epochs=1", "++epochs=2"],
        ["runtime.workers=3", "runtime={workers:0}"],
    ],
)
def test_values_are_set_as_hydra_sets_them(texts: list[str]) -> None:
    found = kept_config("train", texts)
    hydra_private.reset()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        expected = hydra.compose("train", texts)
    assert OmegaConf.to_container(found, resolve=False) == OmegaConf.to_container(expected, resolve=False)
    assert OmegaConf.to_object(found) == OmegaConf.to_object(expected)
    assert OmegaConf.is_struct(found)


def test_files_that_are_written_or_changed_later_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "configs" / "model" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    assert "mine" not in all_choices()["model"]
    mine.write_text("defaults: [/schema/model/tiny@_here_, head: ebc, _self_]\n")
    assert "mine" in all_choices()["model"]
    assert schemas("model")["mine"] is TinyConfig
    mine.write_text("defaults: [/schema/model/timm@_here_, head: ebc, _self_]\nname: resnet18\n")
    os.utime(mine, ns=(1, 1))
    assert schemas("model")["mine"] is TimmConfig
    assert isinstance(composed("model=mine").model, TimmConfig)


def test_a_config_that_is_changed_does_not_change_the_next() -> None:
    typed = ["optim.lr=0.5"]
    first = compose(typed, config_name="train")
    first.optim.lr = 0.25
    assert compose(typed, config_name="train").optim.lr == 0.5


@pytest.mark.parametrize("typed", ["epochs=???", "optim.lr=???", "model.mean=[???,0,0]"])
def test_a_value_that_is_left_open_is_asked_for(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"is not set: type .*=\.\.\.$"):
        check_jobs([typed], multirun=False, config_name="train")


def test_errors_show_values_as_typed() -> None:
    typed = ["optim.lr=-1e-3", "batch_size=0", "optim.max_grad_norm=1e-9", "output_dir=''"]
    with pytest.raises(ConfigError) as caught:
        check_jobs(typed, multirun=False, config_name="train")
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()] == [
        *("optim.lr=-1e-3", "optim.max_grad_norm=1e-9", "batch_size=0", "output_dir=''"),
    ]


def test_an_interpolation_that_has_a_value_is_read() -> None:
    assert composed("epochs=${seed}", "seed=7", "model.mean=[${seed},0,0]").epochs == 7


def test_a_free_name_is_taken() -> None:
    assert composed("model=timm", "model.name=resnet18").model.name == "resnet18"
    assert composed("dataset=sha", "dataset.name=sha").dataset.name == "sha"


@pytest.mark.parametrize(
    ("typed", "root"),
    [("~/data", "/home/me/data"), ("~", "/home/me"), ("~/my data", "/home/me/my data"), ("'~/data'", "~/data")],
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(typed: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert composed(f"data_root={typed}").data_root == root
    assert run_name([f"data_root={typed}"]) == "tiny_fine"


def test_several_values_where_one_is_needed_are_told_as_typed() -> None:
    with pytest.raises(ConfigError, match=r"^optim\.lr=1e-3,1e-4: several values; one is needed here$"):
        composed("optim.lr=1e-3,1e-4")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (
            ["ckpt=nowhere.pt", "dataset.min_side=64"],
            "dataset has no min_side; allowed are cache, ",
        ),
        (["ckpt=nowhere.pt", "model=tiny"], "model=tiny: there is no setting model; allowed are ckpt, "),
        (["ckpt=nowhere.pt", "experiment=table3/lambda_1"], "there is no setting experiment"),
        (["ckpt=nowhere.pt"], "ckpt=nowhere.pt: no such file"),
        (["ckpt=nowhere.pt", "eval.pictures=-1"], "eval.pictures=-1: must be from 0 to 10000"),
        (["ckpt=nowhere.pt", "runtime.devices=0"], "runtime.devices=0: must be from 1 to 64"),
    ],
)
def test_evaluation_settings_are_checked(typed: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_jobs(typed, multirun=False, config_name="eval")


def test_a_setting_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="ckpt is not set: type ckpt="):
        check_jobs([], multirun=False, config_name="eval")


@pytest.mark.parametrize("key", ["loss.transport", "loss/transport"])
def test_a_choice_within_a_group_is_typed_like_a_setting(key: str) -> None:
    config = composed(f"{key}=stable", "loss.transport.tolerance=1e-3")
    assert isinstance(config.loss, DaceConfig)
    assert config.loss.transport == StableTransportConfig(tolerance=1e-3)


def test_nested_groups_and_registered_choices_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class TwoMapsConfig(HeadConfig):
        name: str = "two_maps"

    before = command_choices("train")
    assert before["model/head"] == ["ebc", "ranking", "regression", "zip"]
    assert not any("head" in choice for choice in before["model"])
    assert "imagenet" not in before["model"]  # a kind that files choose
    assert "table3/lambda_1" in before["experiment"]
    assert set(command_choices("eval")) == {"dataset", "eval", "runtime"}
    monkeypatch.setitem(SCHEMAS, "model/head", dict(SCHEMAS["model/head"]))
    register("model/head", "two_maps", TwoMapsConfig)
    assert command_choices("train")["model/head"] == ["ebc", "ranking", "regression", "zip", "two_maps"]
    assert isinstance(composed("model.head=two_maps").model.head, TwoMapsConfig)
    assert run_name(["model.head=two_maps"]) == "tiny_fine_model.head-two_maps"
    with pytest.raises(ConfigError, match=r"did you mean two_maps\?"):
        composed("model.head=two_map")
