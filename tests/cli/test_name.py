"""Runs get names that do not collide."""

import re

import pytest

from headcount.cli.name import run_name


def name(*overrides: str) -> str:
    return run_name(overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "tiny_fine"),
        (["model=tiny", "bins=fine", "seed=3", "runtime.workers=4", "optim.lr=0.001"], "tiny_fine"),
        (["dataset=sha", "model=mobilenet_v2"], "mobilenet_v2_fine"),
        (["runtime.precision=bf16", "runtime=ddp"], "tiny_fine_runtime.precision-bf16"),
        (["experiment=sha_mobilenet_v2_released", "bins=coarse"], "sha_mobilenet_v2_released_bins-coarse"),
        (["bins=coarse", "bins.block_size=16", "scale=smoke"], "tiny_coarse_scale-smoke_bins.block_size-16"),
        (["bins.last=clipped", "model.mean=[0.5,0.5,0.5]"], "tiny_fine_bins.last-clipped_model.mean-0.5-0.5-0.5"),
        (["model.head=regression", "bins=none", "loss=dm"], "tiny_none_loss-dm_model.head-regression"),
        (["model/head=regression", "bins=none", "loss=dm"], "tiny_none_loss-dm_model.head-regression"),
        (["model.head=ebc", "loss.transport=released"], "tiny_fine"),
        (["experiment=table1/csrnet_sha", "model.head=regression", "loss.kernel=fixed"], "table1-csrnet_sha"),
        (
            ["loss.transport=stable", "loss.transport.tolerance=1e-3", "loss.transport.iterations=null"],
            "tiny_fine_loss.transport-stable_loss.transport.tolerance-0.001",
        ),
        (["optim=adam_cosine", "optim.lr=3e-4"], "tiny_fine_optim-adam_cosine_optim.lr-0.0003"),
    ],
)
def test_run_names(overrides: list[str], expected: str) -> None:
    assert name(*overrides) == expected


@pytest.mark.slow
def test_sizes_that_follow_from_a_file_of_weights_are_not_in_the_name() -> None:
    sizes = ["model.embed_dim=32", "model.width=64", "model.layers=[1]", "model.text_width=32", "model.text_layers=1"]
    heads = ["model.heads=2", "model.text_heads=2"]  # the file does not tell them
    assert name("model=clip_vit_b16", "model.weights=small.pt", *sizes, *heads) == (
        "clip_vit_b16_fine_model.heads-2_model.text_heads-2_model.weights-small.pt"
    )
    assert "model.width-64" in name("model=clip_vit_b16", "model.weights=none", "model.width=64")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["model=vgg19", "model.weights=/a/net.pth"], ["model=vgg19", "model.weights=/b/net.pth"]),
        (["model.mean=[0.1,0.2,0.3]"], ["model.mean=[-0.1,0.2,0.3]"]),
        (["runtime.precision=bf16"], ["runtime.precision=fp16"]),
    ],
)
def test_run_names_tell_settings_apart(one: list[str], other: list[str]) -> None:
    names = {name(*one), name(*other)}
    assert len(names) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]+", n) for n in names)


@pytest.mark.slow
def test_long_run_names_are_cut_and_stay_apart() -> None:
    long = [f"augment.{key}=0.123456" for key in ("flip", "jitter", "min_scale", "blur_probability", "salt_pepper")]
    names = {name(*long, f"optim.weight_decay={value}") for value in (0.5, 0.25)}
    assert len(names) == 2
    assert max(map(len, names)) <= 120
