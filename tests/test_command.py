"""Wrong settings are refused in words, before torch; runs get names that do not collide."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from headcount import command
from headcount.config import ConfigError, TrainConfig, check, from_plain, to_plain

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def compose(*overrides: str, name: str = "train") -> TrainConfig:
    return OmegaConf.to_object(command.compose(overrides, config_name=name, config_dir=CONFIGS))


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
        ("model.weights=none", ["model has no weights", "weights is a setting of model=cannet, clip_rn101", "vgg19"]),
        ("lr=1", ["there is no setting lr", "did you mean optim.lr?"]),
        ("loss=3", ["loss=3: no such choice", "dace"]),
        ("resume=maybe", ["true or false"]),
        ("model.mean=gray", ["a list such as"]),
        ("optim=adam_cosine optim.lr=[1", ["cannot be read"]),
        ("+speed=1", ["nothing can be added or removed"]),
        ("~loss", ["nothing can be added or removed"]),
        ("optim={lr:1}", ["optim={'lr': 1}: no such choice"]),
        ("loss.transport=3", ["settings of its own: loss.transport.ot_weight"]),
        ("dataset.name=sha", ["dataset.name=sha: is always synthetic; choose another with dataset=..."]),
        ("dataset=sha dataset.name=shb", ["dataset.name=shb: is always sha"]),
        ("model=vgg19 model.name=resnet101", ["model.name=resnet101: is always vgg19"]),
        ("experiment=table1/csrnet_ebc_sha model.name=cannet", ["model.name=cannet: is always csrnet"]),
        ("loss=dace_mae loss.name=dm", ["loss.name=dm: is always dace"]),
        ("data_root=~somebody/data", ["data_root=~somebody/data: cannot be read", "'~'", "data_root=\"'...'\""]),
    ],
)
def test_what_cannot_be_composed_is_explained(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(*override.split())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("bins.block_size=0", "bins.block_size=0: must be at least 1"),
        ("optim.lr=-1", "optim.lr=-1.0: must be at least"),
        ("dataset.holdout=2", "dataset.holdout=2.0: must be from 0 to 0.9"),
        ("loss.transport.iterations=0", "loss.transport.iterations=0: must be at least 1"),
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
        ("loss.transport=stable loss.transport.tolerance=0", "loss.transport.tolerance=0.0: must be at least 1e-06"),
        ("model=mobilenet_v2 model.stage=5", "must be 160 or 320"),
        ("model=mobilenet_v2 model.weights=nowhere.pth", "no such file"),
        ("optim.warmup_epochs=40", "must be below epochs=40"),
        ("optim.lr=inf", "optim.lr=inf: must be at least 1e-12, and finite"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("augment.blur_size=301", "must be at most augment.crop_size=224"),
        ("model.head=regression", "model.head=regression: predicts counts without bins; add bins=none loss=dm"),
        ("model.head=regression loss=cross_entropy", "without bins; add bins=none loss=dm"),
        ("bins=none loss=dm", "bins=none: leaves model.head=ebc nothing to classify; add model.head=regression"),
        ("model.head=regression bins=none", "loss=dace: classifies blocks into bins"),
        ("model.head=regression bins=none loss=dace_mae", "loss=dace_mae: classifies blocks into bins"),
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
    ],
)
def test_what_cannot_work_is_named(overrides: str, words: str) -> None:
    assert any(words in error for error in check(compose(*shlex.split(overrides))))


def test_a_head_without_bins_is_told_of_a_loss_only_where_its_own_needs_them() -> None:
    for loss in ("dm", "mse"):
        errors = check(compose("model.head=regression", f"loss={loss}"))
        assert errors == ["model.head=regression: predicts counts without bins; add bins=none"]


def test_a_width_of_whole_heads_needs_no_number_of_them() -> None:
    for settings in (["model.width=128"], ["model.width=32", "model.heads=2"]):
        assert check(compose("model=clip_vit_b16", *settings)) == []


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
    (error,) = check(compose(*overrides.split()))
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
    assert check(compose(*overrides.split())) == []


def test_a_name_that_a_kind_does_not_have_is_refused_wherever_it_was_written() -> None:
    config = compose("model=csrnet", "model.weights=none")
    config.model.name = "clip_rn50"
    assert any("model.name=clip_rn50: must be vgg16, vgg19, dmcount" in error for error in check(config))


def test_a_free_name_is_taken() -> None:
    assert compose("model=timm", "model.name=resnet18").model.name == "resnet18"
    assert compose("dataset=sha", "dataset.name=sha").dataset.name == "sha"


@pytest.mark.parametrize(
    ("typed", "root"),
    [("~/data", "/home/me/data"), ("~", "/home/me"), ("~/my data", "/home/me/my data"), ("'~/data'", "~/data")],
)
def test_a_tilde_that_the_shell_left_is_the_home_folder(typed: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert compose(f"data_root={typed}").data_root == root
    assert name(f"data_root={typed}") == "tiny_fine"


def test_every_tilde_of_a_sweep_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    jobs = list(command._jobs(["data_root=~/a,~/b"], True, "train", CONFIGS))
    assert jobs == [["data_root=/home/me/a"], ["data_root=/home/me/b"]]


def test_hydra_itself_gets_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "data_root=~/data", f"output_dir={tmp_path}"])
    command.command(lambda config: seen.append(config.data_root), str(ROOT / "train.py"))
    assert seen == [f"{tmp_path}/data"]


def test_every_error_is_told_at_once() -> None:
    assert len(check(compose("batch_size=0", "epochs=0", "optim.lr=0"))) == 3


def test_refusals_come_before_torch_and_leave_status_2(tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['train.py', '-m', 'bins=fine,coarse', 'optim.lr=1e-3,fast']\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try: runpy.run_path(sys.path[0] + '/train.py', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.strip() == "2 False"
    assert "optim.lr=fast: optim.lr takes a number" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def name(*overrides: str) -> str:
    return command.run_name(overrides, config_name="train", config_dir=CONFIGS)


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
        (["optim=adam_cosine", "optim.lr=3e-4"], "tiny_fine_optim-adam_cosine_optim.lr-0.0003"),
    ],
)
def test_run_names(overrides: list[str], expected: str) -> None:
    assert name(*overrides) == expected


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


def test_long_run_names_are_cut_and_stay_apart() -> None:
    long = [f"augment.{key}=0.123456" for key in ("flip", "jitter", "min_scale", "blur_probability", "salt_pepper")]
    names = {name(*long, f"optim.weight_decay={value}") for value in (0.5, 0.25)}
    assert len(names) == 2
    assert max(map(len, names)) <= 120


def test_a_sweep_is_the_product_of_its_choices() -> None:
    jobs = command._jobs(["bins=fine,coarse", "seed=range(1,3)", "optim.lr=1e-3"], True, "train", CONFIGS)
    assert list(jobs) == [
        [f"bins={bins}", f"seed={seed}", "optim.lr=1e-3"] for bins in ("fine", "coarse") for seed in (1, 2)
    ]


def test_several_values_without_m_are_refused() -> None:
    with pytest.raises(ConfigError, match="add -m"):
        list(command._jobs(["seed=1,2"], False, "train", CONFIGS))


def test_several_processes_in_a_sweep_are_refused_and_the_way_out_named() -> None:
    with pytest.raises(ConfigError, match="submitit_slurm"):
        command._refuse_early(["seed=1,2", "runtime=ddp"], True, "train", CONFIGS)


def test_several_processes_of_a_cluster_job_are_not() -> None:
    command._refuse_early(["seed=1,2", "runtime=ddp", "hydra/launcher=basic"], True, "train", CONFIGS)


def test_a_job_that_comes_twice_is_refused() -> None:
    """Its figures would pass for those of two runs."""
    with pytest.raises(ConfigError, match=r"seed=1: comes twice in this sweep"):
        command._refuse_early(["seed=1,1"], True, "train", CONFIGS)


def test_values_that_cannot_be_enumerated_are_refused() -> None:
    with pytest.raises(ConfigError, match="name the values"):
        list(command._jobs(["optim.lr=interval(0,1)"], True, "train", CONFIGS))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["ckpt=nowhere.pt", "dataset.root=x"], "dataset.root=x: no dataset is chosen; add dataset=..., which root is"),
        (["ckpt=nowhere.pt", "model=tiny"], "model=tiny: there is no setting model; allowed are ckpt, "),
        (["ckpt=nowhere.pt", "experiment=table3/lambda_1"], "there is no setting experiment"),
        (["ckpt=nowhere.pt"], "ckpt=nowhere.pt: no such file"),
        (["ckpt=nowhere.pt", "eval.pictures=-1"], "eval.pictures=-1: must be at least 0"),
        (["ckpt=nowhere.pt", "runtime.devices=0"], "runtime.devices=0: must be at least 1"),
    ],
)
def test_evaluation_settings_are_checked(typed: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        command._refuse_early(typed, False, "eval", CONFIGS)


def test_a_setting_that_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="ckpt is not set: type ckpt="):
        command._refuse_early([], False, "eval", CONFIGS)


@pytest.mark.parametrize("page", ["train", "eval"])
def test_help_names_every_choice(page: str) -> None:
    text = command.help_page(page, config_dir=CONFIGS)
    groups = ("dataset", "model", "bins", "loss", "optim") if page == "train" else ("eval", "runtime")
    for group in groups:
        for file in (CONFIGS / group).glob("*.yaml"):
            assert file.stem in text
    assert text.count(f"python {page}.py") >= 5
    assert "schema" not in text


def test_config_to_plain_values_and_back() -> None:
    config = compose("dataset=sha", "model=mobilenet_v2", "bins.last=clipped", "optim.max_grad_norm=null")
    plain = to_plain(config)
    assert plain["kinds"]["dataset"] == "folder"
    assert plain["bins"]["last"] == "clipped"
    assert from_plain(plain) == config


def test_a_config_of_another_version_is_refused() -> None:
    plain = to_plain(compose())
    plain["optim"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="another version of headcount"):
        from_plain(plain)


def test_jobs_that_differ_in_seed_or_fold_alone_are_averaged() -> None:
    jobs = [
        (["dataset=sha", f"loss={loss}", f"seed={seed}"], {"MAE": mae, "RMSE": 2 * mae})
        for loss, seed, mae in (("dace", 1, 10.0), ("dace", 2, 13.0), ("dm", 1, 20.0))
    ]
    lines = command.sweep_table(jobs, common={"dataset=sha"}).splitlines()
    assert [line.split() for line in lines] == [
        ["MAE", "RMSE"],
        ["loss=dace", "seed=1", "10.00", "20.00"],
        ["loss=dace", "seed=2", "13.00", "26.00"],
        ["loss=dace", "mean", "of", "2", "11.50", "+-", "2.12", "23.00", "+-", "4.24"],
        ["loss=dm", "seed=1", "20.00", "40.00"],
    ]
    folds = [(["dataset=ucf_cc_50", f"dataset.fold={k}"], {"MAE": float(k)}) for k in range(1, 6)]
    last = command.sweep_table(folds, common={"dataset=ucf_cc_50"}).splitlines()[-1]
    assert last.split() == ["mean", "of", "5", "3.00", "+-", "1.58"]


def test_what_is_left_of_a_sweep_is_told_apart_as_the_whole_was() -> None:
    left = [(["optim.lr=1", "seed=1"], {"MAE": 1.0}), (["optim.lr=1", "seed=2"], {"MAE": 3.0})]
    lines = [line.split() for line in command.sweep_table(left, common=set()).splitlines()]
    assert lines[1] == ["optim.lr=1", "seed=1", "1.00"]
    assert lines[3] == ["optim.lr=1", "mean", "of", "2", "2.00", "+-", "1.41"]


def test_several_values_where_one_is_needed_are_told_as_typed() -> None:
    with pytest.raises(ConfigError, match=r"^optim\.lr=1e-3,1e-4: several values; one is needed here$"):
        compose("optim.lr=1e-3,1e-4")


def test_an_interrupted_sweep_tells_what_it_has_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: TrainConfig) -> dict[str, float]:
        if config.seed == 2:
            raise KeyboardInterrupt
        return {"MAE": float(config.seed)}

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2,3", f"output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        command.command(task, str(ROOT / "train.py"))
    out, err = capsys.readouterr()
    assert stop.value.code == 130
    assert "seed=1  1.00" in out
    assert "seed=3" in err
    assert "resume=true goes on" in err
    assert not list(tmp_path.rglob("*.jsonl"))
