"""Runs compared from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from headcount.cli.compose import compose, to_config
from headcount.config import to_plain

ROOT = Path(__file__).resolve().parents[2]
Script = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of one run."""
    config = to_config(compose([], config_name="train"))
    for seed in (1, 2):
        folder = tmp_path / "runs" / f"seed{seed}"
        folder.mkdir(parents=True)
        config.seed = seed
        OmegaConf.save(OmegaConf.create(to_plain(config)), folder / "config.yaml")
        record = {"epoch": 1, "train/total": 5.0, "eval/split": "val", "eval/mae": 4.0 + seed, "eval/rmse": 9.0}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return tmp_path / "runs"


def test_runs_are_compared_and_the_files_are_where_it_says(script: Script, runs: Path, tmp_path: Path) -> None:
    status, out, err = script("scripts/compare_runs.py", "runs")
    assert (status, err) == (0, "")
    assert "no settings differ but the seed" in out
    assert "5.00 / 9.00" in out
    assert "6.00 / 9.00" in out
    files = [tmp_path / line.strip() for line in out.splitlines()[-2:]]
    assert files == [tmp_path / "comparison" / "runs.md", tmp_path / "comparison" / "runs.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_a_broken_run_is_named_and_the_others_are_compared(script: Script, runs: Path, tmp_path: Path) -> None:
    (runs / "seed1" / "metrics.jsonl").write_text("")
    status, out, err = script("scripts/compare_runs.py", "runs", "gone", "--output", "out")
    assert status == 1
    assert "6.00 / 9.00" in out
    assert "5.00 / 9.00" not in out
    assert err.splitlines()[0] == "not compared:"
    assert "runs/seed1/metrics.jsonl: no epoch is recorded yet" in err
    assert "gone: no such folder" in err
    assert "gone: no such folder" in (tmp_path / "out" / "runs.md").read_text()


def test_nothing_to_compare_is_an_error(script: Script, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, _, err = script("scripts/compare_runs.py", "empty")
    assert status == 2
    assert "there is no run to compare" in err
    assert "empty: neither it nor a folder below it holds config.yaml" in err
    assert not (tmp_path / "comparison").exists()


def test_an_output_that_is_a_file_is_refused(script: Script, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    status, _, err = script("scripts/compare_runs.py", "runs", "--output", "file")
    assert status == 2
    assert "--output file: cannot be written" in err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_a_run_that_somebody_sent_acts_on_nothing(script: Script, runs: Path, tmp_path: Path) -> None:
    evil = "a\x1b]0;owned\x07\nb <b>|** `c`"
    for seed, run_name in ((1, evil), (2, "mine")):
        file = runs / f"seed{seed}" / "config.yaml"
        config = OmegaConf.load(file)
        config.run_name, config.optim.lr = run_name, 0.001 * seed
        OmegaConf.save(config, file)
    bomb = tmp_path / "runs" / "bomb"
    bomb.mkdir()
    lines = ["a0: &a0 [x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 40))]
    (bomb / "config.yaml").write_text("\n".join(lines))
    (bomb / "metrics.jsonl").write_text((runs / "seed1" / "metrics.jsonl").read_text())
    status, out, err = script("scripts/compare_runs.py", "runs")
    assert status == 1
    assert err.count("\n") == 2
    assert "runs/bomb/config.yaml cannot be read: line 2 refers to another setting" in err
    assert "6.00 / 9.00" in out
    assert r"a\x1b]0;owned\x07\nb <b>|** `c`" in out
    page = (tmp_path / "comparison" / "runs.md").read_text()
    for text in (out, page):
        assert not set(text) & set("\x1b\x07")
    assert r"| a\x1b]0;owned\x07\nb &lt;b&gt;\|\*\* \`c\` |" in page
    assert "<b>" not in page
