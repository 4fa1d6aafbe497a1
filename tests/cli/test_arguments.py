"""One rule for the command lines of all scripts; earlier spellings work and name the new ones."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headcount.cli.arguments import Arguments, read_arguments, script_parser, to_path, whole_number
from headcount.config import ConfigError

Read = Callable[..., Arguments]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Read:
    """Read a command line of a script with files, names and settings."""
    monkeypatch.chdir(tmp_path)

    def run(*typed: str, **options: Any) -> Arguments:
        monkeypatch.setattr(sys, "argv", ["scripts/draw.py", *typed])
        parser = script_parser("A script.")
        parser.add_argument("files", nargs="*")
        parser.add_argument("--names", nargs="+")
        parser.add_argument("--output")
        parser.add_argument("--run", action="store_true")
        parser.add_argument("--seeds", default="1")
        options = {"mixed": ("files", "names"), "old_flags": ("ckpt", "data_root"), **options}
        return read_arguments(parser, **options)

    return run


def test_settings_stand_anywhere(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["a.png", "ckpt=x.pt", "--names", "IMG_1", "IMG_2", "dataset=sha", "--output", "o", "b.png", "eval=auto"]
    found = read(*typed)
    assert found.settings == ["ckpt=x.pt", "eval=auto", "dataset=sha"]
    assert found.options.files == ["a.png", "b.png"]
    assert found.options.names == ["IMG_1", "IMG_2"]
    assert found.options.output == "o"
    assert capsys.readouterr().err == ""


def test_a_file_of_that_name_is_a_file(read: Read, tmp_path: Path) -> None:
    (tmp_path / "run=1.pt").touch()
    assert read("run=1.pt", "run=2.pt").options.files == ["run=1.pt"]
    assert read("lr=1.png", "ckpt=x", only=("ckpt",)).options.files == ["lr=1.png"]


def test_old_flags_become_settings_in_one_line(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    found = read("--data-root", "my data", "--ckpt=a=b.pt", "ckpt=c.pt")
    assert found.settings == ["ckpt='a=b.pt'", "data_root='my data'", "ckpt=c.pt"]
    assert not hasattr(found.options, "old_ckpt")
    err = capsys.readouterr().err
    assert err == "draw.py: --ckpt, --data-root are now typed ckpt='a=b.pt' data_root='my data'\n"


def test_old_settings_become_flags(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"run": False, "seeds": True, "output": True}
    found = read("run=true", "seeds=1,2", "output=x", old_settings=old)
    assert (found.options.run, found.options.seeds, found.options.output) == (True, "1,2", "x")
    assert found.settings == []
    err = capsys.readouterr().err
    assert err == "draw.py: run=true, seeds=1,2, output=x are now typed --run --seeds 1,2 --output x\n"
    assert read("run=false", old_settings=old).options.run is False
    with pytest.raises(ConfigError, match="run=maybe: must be true or false; true is now typed --run"):
        read("run=maybe", old_settings=old)


def test_values_are_read_as_hydra_reads_them(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "é=1.pt").touch()
    for typed, value in (
        ("ckpt='a b.pt'", "a b.pt"),
        ("ckpt=~/x.pt", "/home/me/x.pt"),
        ("ckpt=é=1.pt", "é=1.pt"),
        ("ckpt=ü=gone.pt", "ü=gone.pt"),
        ("ckpt=12", "12"),
        ("ckpt=null", None),
    ):
        assert read(typed).values("ckpt") == {"ckpt": value}
    with pytest.raises(ConfigError, match="dataset=sha: there is no setting dataset; allowed are ckpt"):
        read("dataset=sha").values("ckpt")


def test_settings_alone_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "dataset=sha", "typo", "--output", "a=b"])
    parser = script_parser(None)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--output")
    found = read_arguments(parser)
    assert found.settings == ["dataset=sha", "typo"]  # composing refuses it by name
    assert found.options.output == "a=b"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--dataset", "sha"], "--dataset: there is no option --dataset; settings are typed as key=value: dataset=..."),
        (["-o", "x"], "-o: there is no option -o; did you mean --output?"),
        (["--outptu", "x"], "--outptu: there is no option --outptu; did you mean --output?"),
        (["--output"], "--output: expected one argument; --help lists what can be typed"),
        (["--output", ""], "--output: must not be empty; --help lists what can be typed"),
    ],
)
def test_wrong_options_are_messages_of_one_line(
    typed: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *typed])
    parser = script_parser(None)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--output", type=to_path)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        read_arguments(parser)


def test_files_that_begin_with_a_dash(read: Read) -> None:
    assert read("--output", "o", "--", "-x.png").options.files == ["-x.png"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_whole_numbers(text: str) -> None:
    assert whole_number("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="must be a whole number, at least 1"):
        whole_number(text)
