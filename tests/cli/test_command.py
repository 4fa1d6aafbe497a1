"""One command line: what Hydra gets, exit statuses, interruptions."""

import subprocess
import sys
from pathlib import Path

import pytest

from headcount.cli.command import run_command
from headcount.config import RegressionHeadConfig, TrainConfig
from headcount.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_hydra_itself_gets_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["train.py", "data_root=~/data", f"output_dir={tmp_path}"])
    run_command(lambda config: seen.append(config.data_root), "train")
    assert seen == [f"{tmp_path}/data"]


@pytest.mark.slow
def test_hydra_itself_gets_a_nested_group_in_its_own_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    typed = ["train.py", "model.head=regression", "bins=none", "loss=dm", "loss.transport=stable"]
    monkeypatch.setattr(sys, "argv", [*typed, f"output_dir={tmp_path}"])
    run_command(seen.append, "train")
    (config,) = seen
    assert isinstance(config.model.head, RegressionHeadConfig)
    assert config.run_name == "tiny_none_loss-dm_loss.transport-stable_model.head-regression"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["-m", "bins=fine,coarse", "optim.lr=1e-3,fast"], "optim.lr=fast: optim.lr takes a number"),
        (["dataset=sha", "data_root=nowhere"], "dataset=sha: found no folder with train_data or test_data in it"),
        (["dataset=custom", "dataset.train=.", "dataset.val=nowhere"], "dataset.val=nowhere: there is no folder"),
    ],
    ids=["setting", "data_root", "custom"],
)
def test_refusals_come_before_torch_and_leave_status_2(typed: list[str], message: str, tmp_path: Path) -> None:
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['train.py', *{typed!r}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "try: runpy.run_path(sys.path[0] + '/train.py', run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.strip() == "2 False"
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("typed", [["seed=2"], ["-m", "seed=2"]], ids=["job", "sweep"])
def test_a_name_in_an_error_does_not_reach_the_terminal(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: TrainConfig) -> None:
        raise DataError("a\nb.csv is empty:\n  \x1b[2J\u202e\udce9", file=Path("a\nb.csv"))

    monkeypatch.setattr(sys, "argv", ["train.py", *typed, f"output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        run_command(task, "train")
    assert stop.value.code == 2
    assert "train.py: a\\nb.csv is empty:\n  \\x1b[2J\\u202e\\udce9\n" in capsys.readouterr().err


def test_a_setting_may_refer_to_another_by_its_relative_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "train.py",
            "seed=7",
            "augment.crop_size=64",
            "bins.sigma=${..seed}",
            "bins=blockwise",
            f"output_dir={tmp_path}",
        ],
    )
    run_command(seen.append, "train")
    assert seen[0].bins.sigma == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--ckpt", "X"], "train.py: --ckpt X: there is no option --ckpt; settings are typed as key=value: ckpt=X\n"),
        (
            ["--epochs=3"],
            "train.py: --epochs=3: there is no option --epochs; settings are typed as key=value: epochs=3\n",
        ),
        (["--cfg", "nope"], "train.py: argument --cfg/-c: invalid choice: 'nope' "),
        (["-m", "--cfg", "job"], "train.py: --multirun --cfg: exclude each other"),
        (["--cfg", "job", "epochs=${nope}"], "train.py: epochs=${nope}: Interpolation key 'nope' not found"),
    ],
)
def test_options_that_do_not_exist_are_explained_in_one_line(
    typed: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *typed])
    with pytest.raises(SystemExit) as stop:
        run_command(lambda config: None, "train")
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert err.startswith(message)
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.slow
def test_settings_may_stand_on_both_sides_of_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "argv", ["train.py", f"output_dir={tmp_path}", "-m", "seed=1,2"])
    run_command(lambda config: seen.append((config.output_dir, config.seed)), "train")
    assert seen == [(str(tmp_path), 1), (str(tmp_path), 2)]


@pytest.mark.slow
def test_an_interrupted_sweep_tells_what_it_has_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(config: TrainConfig) -> dict[str, float]:
        if config.seed == 2:
            raise KeyboardInterrupt
        return {"MAE": float(config.seed)}

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2,3", f"output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        run_command(task, "train")
    out, err = capsys.readouterr()
    assert stop.value.code == 130
    assert ["seed=1", "1.00"] in [line.split() for line in out.splitlines()]
    assert "seed=3" in err
    assert "add resume=true to the same command" in err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.slow
def test_imports_are_not_searched_for_garbage_and_what_follows_is() -> None:
    code = (
        "import gc\n"
        "from headcount.cli.command import importing\n"
        "for k in range(2):\n"
        "    with importing():\n"
        "        import torch\n"
        "        print(gc.isenabled())\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 100_000)\n"
        "    gc.unfreeze()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    # In a later job of a sweep, torch is there already, and garbage must not be kept.
    assert done.stdout.splitlines() == ["False", "True True", "True", "True False"], done.stderr
