"""Settings that format 1 wrote are read as what they meant; the dictionaries are what its code returned."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from headcount.config import (
    OLD_SPELLINGS,
    AdaptiveKernelConfig,
    BlockErrorKind,
    BlocksConfig,
    BlockwiseConfig,
    ConfigError,
    CrossEntropyConfig,
    CustomConfig,
    DaceBlockErrorConfig,
    DaceConfig,
    DmConfig,
    EbcHeadConfig,
    FixedKernelConfig,
    MseConfig,
    RegressionHeadConfig,
    ReleasedTransportConfig,
    StableTransportConfig,
    SupervisedConfig,
    TinyConfig,
    TrainConfig,
    from_plain,
    kinds,
    to_plain,
    upgrade_config,
)
from headcount.config.upgrade import CHANGES
from headcount.runs import differences, recipe

KINDS = {
    "dataset": "synthetic",
    "model": "tiny",
    "bins": "bins",
    "augment": "ebc",
    "loss": "dace",
    "optim": "optim",
    "eval": "auto",
    "runtime": "runtime",
}
TRANSPORT = {
    "ot_weight": 0.8,
    "ot_reduction": "mean",
    "tv_weight": 0.01,
    "count_weight": 1.0,
    "regularisation": 10.0,
    "iterations": 100,
    "solver": "released",
    "tolerance": None,
}
DEFAULT: dict[str, Any] = {
    "kinds": KINDS,
    "dataset": {
        "name": "synthetic",
        "holdout": 0.0,
        "outside": "clamp",
        "one_head_per_pixel": False,
        "train_fraction": 1.0,
        "max_train_images": None,
        "max_eval_images": None,
        "train_images": 160,
        "val_images": 24,
        "test_images": 48,
        "width": 384,
        "height": 288,
        "max_people": 150,
        "seed": 0,
    },
    "model": {"name": "tiny", "head": "ebc", "mean": None, "std": None, "prior_bias": True, "width": 32},
    "bins": {
        "block_size": 8,
        "strategy": "fine",
        "min_head_px": 4,
        "max_count": None,
        "last": "open",
        "representatives": "mean",
        "counted": "blocks",
        "label_correction": True,
        "representative_counts": None,
    },
    "augment": {
        "crop_size": 224,
        "min_scale": 0.7,
        "max_scale": 1.4,
        "flip": 0.5,
        "jitter": 0.1,
        "jitter_probability": 0.2,
        "blur_size": 5,
        "blur_probability": 0.2,
        "salt_pepper": 0.001,
        "salt_pepper_probability": 0.5,
    },
    "loss": {"name": "dace", "weight": 1.0, "count_loss": "dm", "transport": TRANSPORT},
    "optim": {
        "algorithm": "adamw",
        "lr": 0.001,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "step": "step",
        "warmup_epochs": 2.0,
        "warmup_lr": 1e-06,
        "min_lr": 0.0,
        "restart_epochs": 5,
        "restart_factor": 2,
        "max_grad_norm": 1.0,
        "ema_decay": 0.99,
    },
    "eval": {"pictures": 6},
    "runtime": {
        "accelerator": "auto",
        "devices": 1,
        "precision": "float32",
        "workers": 1,
        "channels_last": True,
        "compile": False,
    },
    "scale": "small",
    "epochs": 40,
    "batch_size": 8,
    "eval_every_epochs": 5,
    "seed": 1,
    "data_root": None,
    "output_dir": "checkpoints",
    "run_name": "auto",
    "resume": False,
    "dry_run": False,
    "expected": None,
}
REGRESSION = {
    "model": {"name": "tiny", "head": "regression", "mean": None, "std": None, "prior_bias": True, "width": 32},
    "bins": {"block_size": 8},
}
REGRESSES = {"model": TinyConfig(head=RegressionHeadConfig()), "bins": BlocksConfig()}


def dace(**changes: Any) -> dict[str, Any]:
    return {"loss": {"name": "dace", "weight": 1.0, "count_loss": "dm", "transport": {**TRANSPORT, **changes}}}


def dm(**changes: Any) -> dict[str, Any]:
    return {"kinds": {**KINDS, "loss": "dm"}, "loss": {"name": "dm", "transport": {**TRANSPORT, **changes}}}


def mse(**changes: Any) -> dict[str, Any]:
    loss = {"name": "mse", "kernel": "fixed", "sigma": 15.0, "neighbours": 3, "beta": 0.3, "scale": 1.0, **changes}
    return {"kinds": {**KINDS, "bins": "none", "loss": "mse"}, **REGRESSION, "loss": loss}


def block_error(error: str, **changes: Any) -> dict[str, Any]:
    return {"loss": {"name": "dace", "weight": 1.0, "count_loss": error, "transport": TRANSPORT, **changes}}


# What was typed -> what format 1 wrote where it differs from the default, and what it is now.
WRITTEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "": ({}, {}),
    "loss=dace_mae": (block_error("mae"), {"loss": DaceBlockErrorConfig()}),
    "loss=dace_mse loss.weight=0.5": (
        block_error("mse", weight=0.5),
        {"loss": DaceBlockErrorConfig(weight=0.5, error=BlockErrorKind.mse)},
    ),
    "loss=cross_entropy": (
        {"kinds": {**KINDS, "loss": "cross_entropy"}, "loss": {"name": "cross_entropy"}},
        {"loss": CrossEntropyConfig()},
    ),
    "loss=dm loss.transport.regularisation=5": (
        dm(regularisation=5.0),
        {"loss": DmConfig(transport=ReleasedTransportConfig(regularization=5.0))},
    ),
    "loss.transport.iterations=50 loss.transport.solver=stable": (
        dace(iterations=50, solver="stable"),
        {"loss": DaceConfig(transport=StableTransportConfig(iterations=50))},
    ),
    "loss=dm loss.transport.solver=stable loss.transport.tolerance=1e-3": (
        dm(solver="stable", tolerance=0.001),
        {"loss": DmConfig(transport=StableTransportConfig(tolerance=0.001))},
    ),
    "bins=blockwise": (
        {
            "kinds": {**KINDS, "bins": "blockwise"},
            "bins": {"block_size": 8, "sigma": 4.0, "edges": None, "step": 0.05},
        },
        {"bins": BlockwiseConfig()},
    ),
    "model.head=regression bins=none loss=mse loss.sigma=9": (
        mse(sigma=9.0),
        {**REGRESSES, "loss": MseConfig(kernel=FixedKernelConfig(sigma=9.0))},
    ),
    "model.head=regression bins=none loss=mse loss.kernel=adaptive loss.neighbours=5 loss.beta=0.5": (
        mse(kernel="adaptive", neighbours=5, beta=0.5),
        {**REGRESSES, "loss": MseConfig(kernel=AdaptiveKernelConfig(neighbors=5, beta=0.5))},
    ),
}


@pytest.mark.parametrize("typed", WRITTEN)
def test_what_format_1_wrote_means_what_it_meant(typed: str, compose: Callable[..., TrainConfig]) -> None:
    changed, now = WRITTEN[typed]
    written = {**DEFAULT, **changed}
    expected = dataclasses.replace(compose(), **now)
    before = copy.deepcopy(written)
    found = from_plain(written)
    assert found == expected
    assert differences(recipe(found), recipe(expected)) == {}
    assert written == before, "the argument must not change"
    assert from_plain(to_plain(found)) == found
    assert "method" in kinds(found)


def test_no_setting_is_dropped_on_the_way() -> None:
    """Everything outside the changed keys is copied, values included."""
    changed = copy.deepcopy(DEFAULT)
    changed["dataset"]["seed"], changed["optim"]["lr"], changed["epochs"] = 7, 0.5, 3
    upgraded = upgrade_config(changed)
    same = DEFAULT.keys() - {"kinds", "model", "loss"}
    assert {key: upgraded[key] for key in same} == {key: changed[key] for key in same}
    assert upgraded["kinds"] == {**KINDS, "method": "supervised", "model/head": "ebc", "loss/transport": "released"}


def test_what_this_version_writes_is_left_alone(compose: Callable[..., TrainConfig]) -> None:
    for settings in ([], ["loss=mse", "loss/kernel=adaptive"], ["loss=dace_mse"], ["loss/transport=stable"]):
        plain = to_plain(compose(*settings))
        assert upgrade_config(plain) == plain


def test_a_config_from_before_the_spelling_changed_and_one_after_both_load() -> None:
    written = copy.deepcopy(DEFAULT)
    written["loss"]["transport"]["regularization"] = written["loss"]["transport"].pop("regularisation") * 2
    assert isinstance(from_plain(written).loss, DaceConfig)
    assert from_plain(written).loss == DaceConfig(transport=ReleasedTransportConfig(regularization=20.0))


@pytest.mark.parametrize("damage", [{"kinds": None}, {"loss": None}, {"model": 3}, {"optim": {"momentum": 0.9}}])
def test_a_damaged_config_is_refused_and_not_guessed(damage: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, TypeError, AttributeError)):
        from_plain({**DEFAULT, **damage})


def test_each_change_says_what_becomes_of_its_key() -> None:
    assert all(change.becomes and change.since == 2 for change in CHANGES)
    names = [change.old for change in CHANGES]
    assert len(set(names)) == len(names)


def test_images_of_older_runs_are_read_as_they_were() -> None:
    older: dict[str, Any] = copy.deepcopy(DEFAULT)
    older["kinds"]["dataset"] = "custom"
    older["dataset"] = {"name": "custom", "root": "mine"}
    dataset = from_plain(older).dataset
    assert isinstance(dataset, CustomConfig)
    assert not dataset.exif_orientation
    assert CustomConfig().exif_orientation


def test_a_config_without_a_method_is_supervised() -> None:
    config = from_plain(DEFAULT)
    assert config.method == SupervisedConfig()
    assert config.model.head == EbcHeadConfig()


def test_an_old_spelling_with_a_value_goes_before_its_key() -> None:
    seen: set[str] = set()
    for spelling, sentence in OLD_SPELLINGS.items():
        key = spelling.partition("=")[0]
        assert spelling == key or key not in seen, spelling
        assert sentence.startswith("is now ")
        seen.add(spelling)


def test_runs_of_several_processes_normalized_each_process_by_itself() -> None:
    for devices, synchronized in ((1, True), (2, False)):
        plain = copy.deepcopy(DEFAULT)
        plain["runtime"]["devices"] = devices
        assert "sync_batchnorm" not in plain["runtime"]
        runtime = from_plain(plain).runtime
        assert (runtime.sync_batchnorm, runtime.num_nodes, runtime.deterministic) == (synchronized, 1, False)
    written = to_plain(from_plain(plain))
    written["runtime"]["sync_batchnorm"] = True
    assert from_plain(written).runtime.sync_batchnorm
