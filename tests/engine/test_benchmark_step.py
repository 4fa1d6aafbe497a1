"""The benchmark of a step measures what it says, and checks its textbook head against ours."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.width=16", "model.layers=[1,1,1,1]", "model.embed_dim=16"]
SMALL += ["model.text_width=16", "model.text_heads=2", "model.text_layers=1"]


@pytest.mark.slow
def test_a_step_its_parts_and_an_image(run_command: Callable[..., Any]) -> None:
    settings = ["model=clip_rn50", "model.decoder=none", *SMALL, "--crop-size", "64", "--repeats", "1"]
    done = run_command("scripts/benchmark.py", "step", *settings, "--precision", "float32", "--points", "5")
    assert done.returncode == 0, done.stderr
    for words in ("step/(bare+loss)", "evaluation of one image, 1024 x 768 px", "cosine head, forward and backward"):
        assert words in done.stdout
    rows = re.findall(r"^ +float32 +(?:channels last|contiguous) +([0-9.]+) +([0-9.]+)", done.stdout, re.M)
    assert len(rows) >= 2
    assert all(float(step) > 0 and float(bare) > 0 for step, bare in rows)


def test_a_wrong_setting_is_told(run_command: Callable[..., Any]) -> None:
    done = run_command("scripts/benchmark.py", "step", "model=clip_rn51")
    assert done.returncode != 0
    assert "no such choice" in done.stderr
    assert "Traceback" not in done.stderr


def statements(file: str, function: str, inside: type[ast.AST]) -> list[str]:
    """The statements of the innermost ``inside`` of a function, without comments."""
    tree = ast.parse((ROOT / file).read_text())
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    last = [n for n in ast.walk(found) if isinstance(n, inside)][-1]
    return [ast.unparse(statement) for statement in last.body]


def test_the_measured_step_is_the_one_of_training() -> None:
    trained = statements("src/headcount/engine/train.py", "fit", ast.For)
    *measured, look = statements("scripts/benchmark.py", "whole", ast.FunctionDef)
    assert "optimizer.step()" in trained
    assert measured == [line for line in trained if "progress" not in line]
    assert "meter.look()" in look


@pytest.mark.slow
def test_the_columns_of_a_step_fit_together(run_command: Callable[..., Any]) -> None:
    settings = ["model=tiny", "model.width=8", "--batch", "1", "--crop-size", "64", "--points", "20", "--repeats", "1"]
    done = run_command("scripts/benchmark.py", "step", *settings, "--precision", "float32")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["float32"]]
    assert [row[1] for row in rows] == ["channels", "contiguous"]
    for row in rows:
        whole, bare, loss, ratio = (float(value) for value in row[-11:-7])
        assert ratio == pytest.approx(whole / (bare + loss), rel=0.05)
        assert float(row[-2]) >= float(row[-1]) > 0  # the whole step holds at least what its layers do
