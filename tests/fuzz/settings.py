"""Command lines: the values that were typed, or refused with the name of the setting and nothing but a message."""

import dataclasses
import io
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from fuzz.mutate import TOKENS, pick
from fuzz.verdict import shown
from headcount.cli import check_dataset, compare_runs, convert_checkpoint, draw_figure, nwpu_score, predict
from headcount.cli.choices import command_choices, dotted
from headcount.cli.command import run_command
from headcount.cli.compose import compose
from headcount.wording import printable

MAX_MESSAGE = 5000
_BASES = (
    *("", "dataset=custom", "dataset=qnrf", "bins=blockwise", "model=clip_vit_b16", "model=timm model.name=resnet18"),
    *("loss=dm", "loss=dace_mse", "eval=sliding_window", "model=mobilenet_v2 augment=zoom", "scale=smoke"),
)
_VALUES = (
    *("0", "1", "-1", "3", "1e-3", "0.5", "1e999", "-1e999", "nan", "inf", "1e400", "9" * 30, "0x10", "1_000", "1e3"),
    *("true", "false", "null", "none", "None", "???", "", " ", "''", '""', "auto", "cpu", "fine", "[1,2]", "[]", "{}"),
    *("{a:1}", "[1,[2,3]]", "{a:{b:[1]}}", "[1,2", "{a", "(1,2)", "1,2", "a,b", "'a,b'", "a b", "a=b", "a:b", "a\\=b"),
    *("${epochs}", "${nope}", "${oc.env:HOME}", "${oc.env:NOPE}", "${hydra:runtime.cwd}", "${", "${.}", "${..seed}"),
    *("${oc.decode:1}", "${epochs}${seed}", "$HOME", "%s", "{0}", "range(1,3)", "range(0,1000000000)", "glob(*)"),
    *(
        "choice(1,2)",
        "interval(0,1)",
        "shuffle(1,2)",
        "sort(2,1)",
        "tag(a,1)",
        "int(3)",
        "float(1)",
        "str(1)",
        "bool(1)",
    ),
    *("json_str('[1]')", "extend_list(1)", "~", "~/x", "a/b", "../a", "!x", "@x", "*", "?", "a;b", "a|b", "a&b", "`a`"),
    *(
        "\\",
        "\\\\",
        "'",
        '"',
        "'a",
        "é",
        "日本",
        "👩",
        "\u202etxt",
        "\x1b[2J",
        "a\nb",
        "\t",
        "\udce9",
        "a\x00b",
        "=1+1",
    ),
    *("A" * 5000, "<b>", "-", "--", "-x", "+", "0o17", "1.", ".5", "+1", "1e-400", "٣"),
)
_KEYS = ("epoch", "Epochs", "optim", "optim.", ".lr", "optim..lr", "optim.lr.x", "a.b.c", "é", "", "hydra", "hydra.run")
_SCRIPTS: dict[str, Callable[[], None]] = {
    "predict.py": predict.main,
    "check_dataset.py": check_dataset.main,
    "compare_runs.py": compare_runs.main,
    "convert_checkpoint.py": convert_checkpoint.main,
    "draw_figure.py": draw_figure.main,
    "nwpu_score.py": nwpu_score.main,
}
_FLAGS = ("-m", "--multirun", "--help", "--cfg", "job", "--info", "--output", "-x", "--nope=1", "--run", "--ckpt", "-o")


def check(rng: np.random.Generator, folder: Path) -> str:
    """Run a command in ``folder`` with settings that are right, wrong or strange."""
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    os.environ.pop("HEADCOUNT_DATA", None)
    if rng.random() < 0.1:
        return _check_script(rng, folder)
    name = "eval" if rng.random() < 0.15 else "train"
    base = pick(rng, _BASES).split() if name == "train" else ["ckpt=best.pt"]
    (folder / "best.pt").write_bytes(b"found")
    changed = [_setting(rng, name, tuple(base)) for _ in range(int(rng.choice([1, 1, 1, 2, 3])))]
    if rng.random() < 0.1:
        changed.append(pick(rng, _FLAGS))
    words = [*base, *changed]
    _write_down(folder, f"{name}.py", words)
    seen: list[Any] = []
    status, out, err = _run(lambda: run_command(seen.append, name), f"{name}.py", words)
    if status == 0:
        if len(seen) == 1:
            for word in words:
                _as_typed(word, seen[0])
        else:
            assert out or len(seen) > 1, "nothing was run, and nothing said"
        return f"{name}.py accepted"
    _explained(status, err, f"{name}.py", changed)
    assert not seen
    return f"{name}.py refused"


def _check_script(rng: np.random.Generator, folder: Path) -> str:
    """The other commands: their options are read by argparse."""
    name = pick(rng, list(_SCRIPTS))
    words = [_setting(rng, "train", ()) for _ in range(int(rng.integers(3)))]
    words += [pick(rng, (*_FLAGS, *_VALUES)) for _ in range(int(rng.integers(3)))]
    words = [word for word in words if "\0" not in word]
    rng.shuffle(words)
    if name == "check_dataset.py":  # the default dataset would be drawn and audited
        words += ["dataset=custom", "dataset.root=missing"]
    _write_down(folder, name, words)
    status, _, err = _run(_SCRIPTS[name], name, words)
    if status:
        _explained(status, err, name, None)
    return f"scripts {'refused' if status else 'accepted'}"


def _write_down(folder: Path, name: str, words: list[str]) -> None:
    (folder / "command.txt").write_text(ascii([name, *words]))


def _run(command: Callable[[], None], name: str, words: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors of a command."""
    sys.argv = [name, *words]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            command()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return status, texts[0], texts[1]


def _explained(status: int, err: str, program: str, changed: list[str] | None) -> None:
    """Check that a refusal says which setting is at fault."""
    assert status in (1, 2), f"status {status}: {err}"
    assert "Traceback" not in err, err
    shown(err)
    assert err.strip(), "no word of explanation"
    assert len(err) <= MAX_MESSAGE + max(map(len, changed or [""])) * 3, f"{len(err)} characters: {err[:500]}"
    if changed is None:
        return
    assert err.startswith(f"{program}: "), err[:500]
    # Escaped, and cut at the end if it is long.
    words = [printable(dotted(word.split("=")[0]).lstrip("+~-").split("@")[0])[:100] for word in changed]
    if ": no folder given; set dataset.root" in err:  # of the dataset of the base, or of a recipe or experiment
        return
    assert any(word in dotted(err) for word in words), f"none of {words} is named: {err[:1000]}"


def _as_typed(word: str, config: Any) -> None:
    """Check that a plain value that was accepted is that of the config, and in the range of its field."""
    key, equals, text = word.partition("=")
    parts = key.split(".")
    node: Any = config
    for part in parts[:-1]:
        node = getattr(node, part, None)
    if not equals or not dataclasses.is_dataclass(node) or not hasattr(node, parts[-1]):
        return
    (item,) = (item for item in dataclasses.fields(node) if item.name == parts[-1])
    value = getattr(node, parts[-1])
    if dataclasses.is_dataclass(value) or key in command_choices("train"):
        return
    if "range" in item.metadata and value is not None:
        low, high = item.metadata["range"]
        for one in value if isinstance(value, list) else [value]:
            assert low <= one <= high, f"{key}={value} is out of its range"
            assert math.isfinite(one)
    text = text.strip().strip("'\"")
    if not re.fullmatch(r"[\w.+-]+", text, re.ASCII) or (key == "run_name" and text == "auto"):
        return
    match value:
        case bool():
            assert value == (text.lower() in ("true", "yes", "on", "y", "1")), f"{word} became {value}"
        case int():
            assert value == int(text, 0 if text[:2] in ("0x", "0o") else 10), f"{word} became {value}"
        case float():
            assert value == float(text), f"{word} became {value}"
        case Enum():
            assert value.name == text, f"{word} became {value}"
        case None:
            assert text.lower() == "null", f"{word} became None"
        case str():
            assert value == text, f"{word} became {value!r}"


def _setting(rng: np.random.Generator, name: str, base: tuple[str, ...]) -> str:
    """One ``key=value``, right, wrong or strange."""
    leaves, choices = _leaves(name, base), command_choices(name)
    draw = rng.random()
    if draw < 0.25:  # a group
        key = pick(rng, list(choices))
        value = pick(rng, choices[key]) if rng.random() < 0.6 else pick(rng, _VALUES)
        return f"{dotted(key) if rng.random() < 0.8 else key}={value}"
    key = pick(rng, list(leaves))
    if draw < 0.45:  # the default value, slightly changed or not at all
        text = str(leaves[key])
        if rng.random() < 0.7 and text:
            place = int(rng.integers(len(text) + 1))
            text = text[:place] + pick(rng, (*TOKENS, "0", "9", "e", "-")) + text[place + int(rng.integers(2)) :]
        return _typable(f"{key}={text}")
    if draw < 0.6:  # another key
        key = pick(rng, _KEYS) if rng.random() < 0.5 else _misspelled(rng, key)
    prefix = "" if rng.random() < 0.95 else pick(rng, ["+", "++", "~", "--", "@", " "])
    joint = "=" if rng.random() < 0.95 else pick(rng, ["", " =", "= ", "==", "@a=", ":"])
    return _typable(f"{prefix}{key}{joint}{pick(rng, _VALUES)}")


def _typable(text: str) -> str:
    """No shell can pass a NUL byte."""
    return text.replace("\0", "")


def _misspelled(rng: np.random.Generator, key: str) -> str:
    place = int(rng.integers(len(key)))
    return key[:place] + pick(rng, ["", "x", "_", ".", "é", "/", key[place] * 2, key[place].upper()]) + key[place + 1 :]


@cache
def _leaves(name: str, base: tuple[str, ...]) -> dict[str, Any]:
    """Every setting of a command with its value as it is typed."""
    found: dict[str, Any] = {}

    def visit(node: DictConfig, path: str) -> None:
        for key in map(str, node):
            if OmegaConf.is_missing(node, key):
                found[f"{path}{key}"] = "???"
                continue
            value = node[key]
            if isinstance(value, DictConfig):
                visit(value, f"{path}{key}.")
            else:
                texts = {True: "true", False: "false", None: "null"}
                plain = value.name if isinstance(value, Enum) else value
                found[f"{path}{key}"] = texts.get(plain, plain) if isinstance(plain, bool | None) else plain

    visit(compose(base, config_name=name), "")
    return found
