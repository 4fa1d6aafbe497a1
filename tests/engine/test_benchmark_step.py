"""The benchmark of a step measures what it says, and checks its textbook head against ours."""

import re
from collections.abc import Callable
from typing import Any

SMALL = ["model.width=16", "model.layers=[1,1,1,1]", "model.embed_dim=16"]
SMALL += ["model.text_width=16", "model.text_heads=2", "model.text_layers=1"]


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
