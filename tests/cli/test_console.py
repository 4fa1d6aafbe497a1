"""The command ``headcount``: its commands, what it explains and completes, and the names that messages use."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headcount import commands
from headcount.cli import completion, console
from headcount.cli.choices import all_choices, config_dir, find_file
from headcount.cli.compose import compose
from headcount.cli.explain_setting import explain
from headcount.cli.meanings import field_docs, meanings, settings_of
from headcount.config import SCHEMAS, ConfigError, EvalCommandConfig, TrainConfig, register_schemas
from headcount.extensions import load_extensions

ROOT = Path(__file__).resolve().parents[2]
Ran = tuple[int, str, str]


@pytest.fixture
def headcount(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run ``headcount ...`` in this process: exit status, output, errors."""
    monkeypatch.setenv("HEADCOUNT_COMMAND", "")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/headcount", *arguments])
        status = 0
        try:
            console.main()
        except SystemExit as left:
            status = int(left.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_every_command_is_listed_and_has_a_help_page(headcount: Callable[..., Ran]) -> None:
    status, out, _ = headcount()
    assert status == 0
    for command in commands.COMMANDS:
        assert f"\n  {command} " in out
        status, page, err = headcount(command, "--help")
        assert (status, err) == (0, ""), command
        assert f"headcount {command}" in page
        assert ".py" not in page, f"{command}: names a file that only a checkout has"


def test_every_script_is_a_command() -> None:
    files = {f"scripts/{file.name}" for file in (ROOT / "scripts").glob("*.py")} | {"train.py", "eval.py"}
    # These are of use only in a checkout.
    in_a_checkout = ("quickstart", "draw_banner", "benchmark", "results_table")
    assert files - set(commands.SCRIPTS) == {f"scripts/{name}.py" for name in in_a_checkout}
    for script, command in commands.SCRIPTS.items():
        assert f'run("{commands.COMMANDS[command].module}")' in (ROOT / script).read_text()


def test_an_unknown_command_and_a_version(headcount: Callable[..., Ran]) -> None:
    status, _, err = headcount("predcit", "photo.jpg")
    assert status == 2
    assert "did you mean predict?" in err
    status, out, _ = headcount("--version")
    assert (status, out.split()[0]) == (0, "headcount")


def test_errors_and_hints_name_the_command_that_was_typed(
    headcount: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = headcount("train", "optim.lr=fast")
    assert status == 2
    assert err.startswith("headcount train: optim.lr=fast: optim.lr takes a number")
    assert commands.as_typed("type python train.py, scripts/predict.py or my/train.py") == (
        "type headcount train, headcount predict or my/train.py"
    )
    assert commands.to_start("eval.py", ROOT)[1:] == ["-m", "headcount", "eval"]
    monkeypatch.setenv("HEADCOUNT_COMMAND", "")
    assert commands.as_typed("python train.py") == "python train.py"
    assert commands.to_start("eval.py", ROOT)[1:] == [str(ROOT / "eval.py")]


@pytest.mark.slow
def test_a_run_on_two_processes(tmp_path: Path) -> None:
    """A launcher repeats the arguments without the command's name."""
    small = ["scale=smoke", "dataset.width=96", "dataset.height=96", "model.width=8", "epochs=1"]
    done = subprocess.run(
        [sys.executable, "-m", "headcount", "train", *small, "runtime=ddp", "runtime.devices=2", "run_name=two"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "next: headcount eval ckpt=checkpoints/synthetic/two/seed1/best_mae.pt" in done.stderr


# ------------------------------------------------------------------------------------------ explain


def test_every_setting_has_a_meaning() -> None:
    """Each field of each schema says what it means, and ``explain`` finds it."""
    register_schemas()
    for group in ("", *SCHEMAS):
        for name in settings_of(group):
            found = meanings(group, name)
            assert found, f"{group}.{name}"
            for meaning in found:
                fixed = name == "name" and group  # the choice itself
                assert fixed or meaning.text.endswith((".", ";")), f"{group}.{name}: {meaning.text!r}"
                assert meaning.allowed


def test_an_explanation_says_meaning_values_default_and_where(headcount: Callable[..., Ran]) -> None:
    status, out, _ = headcount("explain", "dataset.outside", "optim.lr")
    assert status == 0
    words = " ".join(out.split())
    assert "Training annotations outside the image are moved onto its border (clamp) or dropped" in words
    assert "allowed: clamp, drop default: clamp with dataset=custom, jhu" in words
    assert "optim.lr Peak learning rate. allowed: a number, from 1e-12 to 1e+30" in words
    text = explain("model=clip_vit_b16")
    assert "model.prompt_tokens=32" in text
    assert "model.frozen=true" in text
    assert "default: word" in explain("model.prompts.style")
    assert "sha_mobilenet_v2" in explain("experiment")
    assert "override /dataset: sha" in explain("experiment=sha_mobilenet_v2")
    for wrong, expected in {
        "optim.lrr": "did you mean optim.lr?",
        "batchsize": "did you mean batch_size?",
        "model=vgg20": "did you mean vgg19?",
    }.items():
        with pytest.raises(ConfigError, match=expected.replace("?", r"\?").replace(".", r"\.")):
            explain(wrong)


def test_the_help_page_says_what_each_setting_means(headcount: Callable[..., Ran]) -> None:
    for command, schema in (("train", TrainConfig), ("eval", EvalCommandConfig)):
        page = " ".join(headcount(command, "--help")[1].split())
        groups = {group.split("/")[0] for group in all_choices()}
        for field in dataclasses.fields(schema):
            if field.name not in groups:
                text = field_docs(schema)[field.name]
                assert text in page or field.name == "scale"


def test_the_environment_names_the_packages_of_extras(
    headcount: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcount.cli import environment

    def installed(package: str) -> str:
        if package == "gradio":
            raise environment.PackageNotFoundError
        return "1.2"

    monkeypatch.setattr(environment, "version", installed)
    status, out, _ = headcount("env")
    assert status == 0
    assert re.search(r"^onnxruntime +1\.2$", out, re.M)
    assert re.search(r"^gradio +not installed$", out, re.M)


# --------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("before", "word", "expected"),
    [
        ([], "ex", ["export", "explain"]),
        (["train"], "dataset=sh", ["dataset=sha", "dataset=shb"]),
        (["train"], "runtime.precision=f", ["runtime.precision=float32", "runtime.precision=fp16"]),
        (["train"], "resume=", ["resume=false", "resume=true"]),
        (["train", "dataset=sha"], "eval_e", ["eval_every_epochs="]),
        (["train"], "optim.warm", ["optim.warmup_epochs=", "optim.warmup=", "optim.warmup_lr="]),
        (["train"], "loss.tr", ["loss.transport="]),
        (["eval"], "max", ["max_images="]),
        (["train"], "ckpt", []),
        (["predict"], "--out", ["--output"]),
        (["eval"], "--h", ["--help"]),
        (["predict"], "", ["ckpt="]),
        (["nwpu-score"], "s", ["split="]),
        (["table"], "ta", ["table="]),
        (["table"], "table=c", ["table=count_loss"]),
        (["table"], "dataset=sh", ["dataset=sha", "dataset=shb"]),
        (["table"], "see", []),
        (["table"], "exp", []),
        (["convert"], "b", []),
        (["convert", "best.pth", "model=csrnet"], "b", []),
        (["convert"], "dataset=sh", ["dataset=sha", "dataset=shb"]),
        (["convert", "best.pth", "out.pt"], "batch_s", ["batch_size="]),
        (["calibrate"], "split=v", []),
        (["completion"], "z", ["zsh"]),
        (["env"], "", []),
        (["gone"], "--", []),
        (["train"], "seed=", []),
    ],
)
def test_completion(before: list[str], word: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["headcount", "--complete"])
    assert completion.candidates(before, word) == expected


def test_bash_completes(tmp_path: Path, headcount: Callable[..., Ran]) -> None:
    (tmp_path / "headcount").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m headcount "$@"\n')
    (tmp_path / "headcount").chmod(0o755)
    (tmp_path / "script").write_text(headcount("completion", "bash")[1])
    line = "headcount train dataset=sh"
    asked = f"""
        PATH={tmp_path}:$PATH; source {tmp_path}/script
        COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDBREAKS=$' \\t\\n=' ; _headcount; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert done.stdout.split() == ["sha", "shb"], done.stderr


# ------------------------------------------------------------------------------- choices of one's own


def test_choices_in_the_working_folder_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs"
    (own / "experiment").mkdir(parents=True)
    (own / "optim").mkdir()
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\n# Mine.\nepochs: 7\n")
    text = (config_dir() / "optim" / "adamw_cosine.yaml").read_text()
    (own / "optim" / "adamw_cosine.yaml").write_text(re.sub("weight_decay: .*", "weight_decay: 0.25", text))
    cfg = compose(["experiment=mine"], config_name="train")
    assert cfg.epochs == 7
    assert cfg.optim.weight_decay == 0.25
    assert "mine" in all_choices()["experiment"]
    assert find_file("optim/adamw_cosine.yaml") == own / "optim" / "adamw_cosine.yaml"
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nepochs: 7\nepochs: 8\n")
    with pytest.raises(
        ConfigError, match=r"experiment=mine: .*duplicate key epochs in .*configs/experiment/mine\.yaml"
    ):
        compose(["experiment=mine"], config_name="train")
    (own / "experiment" / "mine.yaml").write_text("epochs: 7\n")
    with pytest.raises(ConfigError, match=r"experiment=mine: the first line of .* must be '# @package _global_'"):
        compose(["experiment=mine"], config_name="train")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ConfigError, match="experiment=mine: no such choice"):
        compose(["experiment=mine"], config_name="train")


def test_strange_files_in_the_folder_of_choices_are_passed_over_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headcount: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "configs" / "model"
    models.mkdir(parents=True)
    (models / "._tiny.yaml").write_bytes(b"\x00\x05\x16\x07\xff")  # macOS
    (models / ".#mine.yaml").symlink_to("nobody@nowhere.1")  # Emacs
    assert compose([], config_name="train").model.name == "tiny"
    (models / "tiny.yaml").write_text("defaults: [/schema/model/tiny@_here_, _self_]\nnosuch: 3\n")
    with pytest.raises(ConfigError, match=r"^\S*/configs/model/tiny\.yaml: In 'model/tiny'.*nosuch"):
        compose([], config_name="train")
    (models / "tiny.yaml").unlink()
    (models / "vgg16.yaml").write_bytes(b"# \xff\n")
    status, _, err = headcount("train", "model=vgg16")
    assert status == 2
    assert "configs/model/vgg16.yaml: cannot be read" in err


def test_configs_of_another_program_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headcount: Callable[..., Ran]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.yaml").write_text("defaults: [model: gpt]\n")
    with pytest.raises(ConfigError, match=r"configs/train\.yaml: belongs to another program"):
        compose([], config_name="train")
    status, _, err = headcount("train", "--help")
    assert (status, err.split(": ")[0]) == (2, "headcount train")


def test_a_broken_extension_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[headcount.test]\nbroken = no_such_module_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no_such_module_at_all, which broken 1\.0 adds .* uninstall it"):
        load_extensions("headcount.test")
