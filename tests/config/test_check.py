"""Errors of a config that its types do not exclude; plain values and back."""

import shlex

import pytest
from omegaconf import OmegaConf

from headcount.cli.compose import compose
from headcount.config import ConfigError, TrainConfig, check, from_plain, to_plain


def composed(*overrides: str, name: str = "train") -> TrainConfig:
    return OmegaConf.to_object(compose(overrides, config_name=name))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("bins.block_size=0", "bins.block_size=0: must be from 1 to 1024"),
        ("optim.lr=-1", "optim.lr=-1.0: must be from 1e-12"),
        ("dataset.holdout=2", "dataset.holdout=2.0: must be from 0 to 0.9"),
        ("loss.transport.iterations=0", "loss.transport.iterations=0: must be from 1 to 10000"),
        ("model=vgg19 model.weights=none augment.crop_size=104", "must be a multiple of 16"),
        ("bins.block_size=32 augment.crop_size=80", "must be a multiple of 32"),
        ("bins.min_head_px=9", "must be at most bins.block_size=8"),
        ("augment.min_scale=3", "must not exceed augment.max_scale"),
        ("augment.blur_size=4", "must be odd"),
        ("runtime.devices=3", "must be a multiple of runtime.devices=3"),
        ("model.std=[1,1]", "must be three finite numbers"),
        ("model.std=[1,1,0]", "must be three finite numbers"),
        ("model.mean=[nan,0,0]", "model.mean=[nan, 0.0, 0.0]: must be three finite numbers"),
        ("model.std=[nan,1,1]", "model.std=[nan, 1.0, 1.0]: must be three finite numbers"),
        ("model.std=[1,1,inf]", "must be three finite numbers"),
        ("bins.max_count=100000000", "bins.max_count=100000000: must be from 1 to 10000"),
        ("loss.transport=stable loss.transport.tolerance=0", "loss.transport.tolerance=0.0: must be from 1e-06 to 2"),
        ("model=mobilenet_v2 model.stage=5", "must be 160 or 320"),
        ("model=mobilenet_v2 model.weights=nowhere.pth", "no such file"),
        ("optim.warmup_epochs=40", "must be below epochs=40"),
        ("optim.lr=inf", "optim.lr=inf: must be from 1e-12 to 1e+30"),
        ("seed=-1", "seed=-1: must be from 0 to 4294967295"),
        ("augment.blur_size=301", "must be at most augment.crop_size=224"),
        ("model.head=regression", "model.head=regression: predicts counts without bins; add bins=none loss=dm"),
        ("model.head=regression loss=cross_entropy", "without bins; add bins=none loss=dm"),
        ("bins=none loss=dm", "bins=none: leaves model.head=ebc nothing to classify; add model.head=regression"),
        ("model.head=regression bins=none", "loss=dace: classifies blocks into bins"),
        ("model.head=regression bins=none loss=dace_mae", "loss=dace_mae: classifies blocks into bins"),
        (
            "model.head=zip",
            "predicts blocks and count and mixture; choose loss=dm or loss=mse or loss=zip; or add model.",
        ),
        ("loss=zip", "loss=mse; or add model.head=zip"),
        ("model.head=zip loss=zip bins=none", "bins=none: leaves model.head=zip nothing to classify"),
        ("model.head=zip loss=zip bins=blockwise", "model.head=zip predicts whole numbers"),
        (
            "model.head=zip loss=zip loss.scales=[1,2]",
            "loss.scales=[1, 2] loss.scale_weights=[0.25, 0.5, 1.0]: need one",
        ),
        ("model.head=zip loss=zip loss.scales=[] loss.scale_weights=[]", "and at least one scale"),
        ("model.head=zip loss=zip loss.scales=[0,1,2]", "each number must be from 1 to 1024"),
        ("model.head=zip loss=zip loss.epsilon=1", "loss.epsilon=1.0: must be from 0 to 0.1"),
        ("bins=given", "bins.first_counts: is missing"),
        ("bins=given bins.first_counts=[2,3]", "bins.first_counts=[2, 3]: must begin at 1 and increase"),
        ("bins=given bins.first_counts=[1,3,3]", "bins.first_counts=[1, 3, 3]: must begin at 1 and increase"),
        (
            "bins=given bins.first_counts=[1,3] bins.representative_counts=[0,1,2]",
            "bins.representative_counts=[0.0, 1.0, 2.0]: do not fit the 3 bins: one finite number is needed "
            "inside each of {0}, [1, 2], [3, inf)",
        ),
        ("optim.warmup=log_linear optim.warmup_lr=0", "optim.warmup=log_linear needs a number above 0"),
        ("model=clip model.name=convnext_tiny model.width=32", "model.width=32: convnext_tiny has sizes of its own"),
        ("model=clip_rn50 model.head=zip loss=zip model.prior_bias=true", "the cosine head has no bias"),
        ("model=clip_vit_b16 model.width=32", "model.width=32: set model.heads, which must divide it"),
        ("model=clip_vit_b16 model.width=100", "model.width=100: set model.heads, which must divide it"),
        ("model=mobilenet_v2 model.weights=/", "model.weights=/: is a folder"),
        ("model=clip_rn50 bins.block_size=32 augment.crop_size=80", "must be a multiple of 32"),
        ("model=clip_vit_l14 scale=smoke", "clip_vit_l14 works at stride 14"),
        (
            "model=clip_vit_l14 model.input_size=256",
            "must be a multiple of the patches' 14 px; nearest below or at: 252",
        ),
        ("model=clip_vit_b16 model.layers=[3,4]", "model.layers=[3, 4]: must be 1 whole number above 0"),
        ("model=clip_rn50 model.layers=[3,4]", "model.layers=[3, 4]: must be 4 whole numbers above 0"),
        ("model=clip_rn50 model.decoder_channels=[]", "must be one or more numbers above 0"),
        ("model=clip_rn50 model.decoder=none model.decoder_channels=[8]", "has no decoder to size"),
        ("model=clip_rn50 model.prior_bias=true", "the cosine head has no bias"),
        ("model=clip_rn50 model.quick_gelu=false", "OpenAI's weights were trained with QuickGELU"),
        ("model=clip_rn50 model.weights=here/RN50.pt", "no such file; allowed are openai, a tag of open_clip, none"),
        ("model=clip_rn50 'model.prompts.many=People'", "must hold {count}, and may hold {noun}"),
        ("model=timm model.name=resnet18 model.weights=nowhere.pth", "allowed are pretrained, none"),
        ("dataset=sha dataset.min_side=450", "dataset.min_side=450: must be a multiple of dataset.side_multiple=32"),
        ("dataset=sha dataset.max_side=320", "dataset.max_side=320: must be at least dataset.min_side=448"),
        ("run_name=../away", "run_name=../away: may only hold"),
        ("run_name=..", "run_name=..: may only hold"),
        # Typing errors that would otherwise start processes, allocate memory, or write into the working folder.
        ("runtime.workers=1000000000000", "runtime.workers=1000000000000: must be from 0 to 128"),
        ("runtime.devices=1000", "runtime.devices=1000: must be from 1 to 64"),
        ("model.width=1000000000000", "must be from 4 to 1024"),
        ("dataset.width=1000000000000", "dataset.width=1000000000000: must be from 32 to 8192"),
        ("dataset.train_images=100000 dataset.width=8000 dataset.height=8000", "GiB of memory; at most 16 are allowed"),
        ("model=clip_rn50 model.layers=[1,1000000000000,1,1]", "each number must be from 1 to 100"),
        ("bins.block_size=1024 bins.min_head_px=1 augment.crop_size=1024", "make 1048576 bins, at most 10000"),
        ("model.mean=[1e30,0,0]", "from -1000 to 1000"),
        ("optim.min_lr=1e30", "optim.min_lr=1e+30: must be from 0 to 1"),
        ("optim.min_lr=0.5", "optim.min_lr=0.5: must be at most optim.lr=0.001"),
        ("output_dir=''", "output_dir=: must not be empty"),
        ("dataset=custom dataset.root='\" \"'", "dataset.root= : must not be empty"),
        (f"output_dir=runs/{'a' * 256}", f"output_dir=runs/{'a' * 75}...: is too long: a name in a path may have 255"),
        (f"dataset=custom dataset.root={'a' * 5000}", "...: is too long"),
        ("runtime=cpu runtime.precision=fp16", "runtime.precision=fp16: needs a GPU"),
        ("bins.block_size=14 augment.crop_size=64 model=clip_vit_b16", "must be a multiple of 112"),
        ("bins.block_size=14 augment.crop_size=64 model=clip_vit_b16", "; the smallest is 112"),
    ],
)
def test_what_cannot_work_is_named(overrides: str, words: str) -> None:
    assert any(words in error for error in check(composed(*shlex.split(overrides))))


def test_a_head_without_bins_is_told_of_a_loss_only_where_its_own_needs_them() -> None:
    for loss in ("dm", "mse"):
        errors = check(composed("model.head=regression", f"loss={loss}"))
        assert errors == ["model.head=regression: predicts counts without bins; add bins=none"]


def test_a_width_of_whole_heads_needs_no_number_of_them() -> None:
    for settings in (["model.width=128"], ["model.width=32", "model.heads=2"]):
        assert check(composed("model=clip_vit_b16", *settings)) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("bins.counted=windows bins.representatives=middle", "has no effect with bins.representatives=middle"),
        (
            "bins.counted=windows bins.representative_counts=[0,1,2,3,4]",
            "bins.counted=windows: has no effect with bins.representative_counts; leave it at blocks",
        ),
        ("bins.representatives=middle bins.representative_counts=[0,1,2,3,4]", "bins.representatives=middle: has no"),
        ("bins.min_head_px=2 bins.label_correction=false", "bins.min_head_px=2: has no effect with bins.label_correc"),
        ("bins.min_head_px=2 bins.max_count=4", "bins.min_head_px=2: has no effect with bins.max_count"),
        ("bins=blockwise bins.edges=[1,2] bins.step=0.1", "bins.step=0.1: has no effect with bins.edges"),
    ],
)
def test_settings_that_nothing_reads_are_refused(overrides: str, message: str) -> None:
    (error,) = check(composed(*overrides.split()))
    assert message in error


@pytest.mark.parametrize(
    "overrides",
    [
        "loss=dace_mae",
        "loss.transport.ot_weight=0.1 loss.transport.iterations=5",
        "bins=none model.head=regression loss=mse loss.kernel=adaptive loss.kernel.beta=0.5 loss.kernel.neighbors=5",
        "bins.counted=windows",
        "bins.min_head_px=2",
        "bins=blockwise bins.step=0.1",
    ],
)
def test_settings_that_something_reads_are_not(overrides: str) -> None:
    assert check(composed(*overrides.split())) == []


def test_a_name_that_a_kind_does_not_have_is_refused_wherever_it_was_written() -> None:
    config = composed("model=csrnet", "model.weights=none")
    config.model.name = "clip_rn50"
    assert any("model.name=clip_rn50: must be vgg16, vgg19, dmcount" in error for error in check(config))


def test_every_error_is_told_at_once() -> None:
    assert len(check(composed("batch_size=0", "epochs=0", "optim.lr=0"))) == 3


def test_config_to_plain_values_and_back() -> None:
    config = composed("dataset=sha", "model=mobilenet_v2", "bins.last=clipped", "optim.max_grad_norm=null")
    plain = to_plain(config)
    assert plain["kinds"]["dataset"] == "folder"
    assert plain["bins"]["last"] == "clipped"
    assert from_plain(plain) == config


def test_a_config_of_another_version_is_refused() -> None:
    plain = to_plain(composed())
    plain["optim"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="another version of headcount"):
        from_plain(plain)
