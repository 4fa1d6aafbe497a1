"""The names of the commands, and how the user of this process types them.

An installed package has ``headcount predict``, a checkout also ``python scripts/predict.py``: the same code. Texts are
written with the names of the files; :func:`as_typed` converts them for a user of the installed command.
"""

import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """A command of headcount."""

    module: str
    """The module of ``headcount.cli`` whose ``main`` runs it."""
    script: str | None
    """The file of a checkout that runs it, too; None if there is none."""
    summary: str


COMMANDS = {
    "train": Command("train", "train.py", "train a counter"),
    "eval": Command("evaluate", "eval.py", "evaluate a checkpoint: errors, a table, pictures"),
    "predict": Command("predict", "scripts/predict.py", "count the people in pictures"),
    "video": Command("video", "scripts/video.py", "count the people in a video, a camera or a stream"),
    "calibrate": Command(
        "calibrate", "scripts/calibrate.py", "give the counts of a checkpoint intervals, from held-out images"
    ),
    "demo": Command("demo", "scripts/demo.py", "show a page on which pictures can be dropped and counted"),
    "export": Command("export", "scripts/export.py", "export a checkpoint to ONNX or .pt2, which need no headcount"),
    "audit": Command(
        "check_dataset",
        "scripts/check_dataset.py",
        "report what a dataset contains, and what is broken or odd about it",
    ),
    "compare": Command("compare_runs", "scripts/compare_runs.py", "put runs side by side: settings, errors, curves"),
    "cross-evaluate": Command(
        "cross_evaluate", "scripts/cross_evaluate.py", "evaluate checkpoints on several datasets"
    ),
    "figure": Command("draw_figure", "scripts/draw_figure.py", "draw images with their true and predicted density"),
    "table": Command("reproduce_table", "scripts/reproduce_table.py", "make a table of the paper from your runs"),
    "nwpu-submit": Command("nwpu_submit", "scripts/nwpu_submit.py", "write the file for NWPU-Crowd's benchmark"),
    "nwpu-score": Command("nwpu_score", "scripts/nwpu_score.py", "score such a file on the validation images"),
    "convert": Command(
        "convert_checkpoint", "scripts/convert_checkpoint.py", "import a checkpoint of the paper's released code"
    ),
    "publish": Command(
        "publish_counter", "scripts/publish_counter.py", "store a counter for other people, with its model card"
    ),
    "explain": Command("explain_setting", None, "explain a setting: meaning, allowed values, default"),
    "env": Command("environment", None, "print versions, devices and data folders, for a bug report"),
    "completion": Command("completion", None, "print the completion script of a shell"),
}
"""Name -> command, in the order of the help page."""

SCRIPTS = {command.script: name for name, command in COMMANDS.items() if command.script is not None}
"""File of a checkout -> the name of the command that it runs."""

# Inherited by the processes that a launcher starts with the same arguments, but without the command's name.
_VARIABLE = "HEADCOUNT_COMMAND"
_COMMAND_OF_FILE = {script.rpartition("/")[2]: command for script, command in SCRIPTS.items()}
_FILE_NAME = re.compile(
    r"(?<![\w/.-])(?:python )?(?:scripts/)?(" + "|".join(map(re.escape, _COMMAND_OF_FILE)) + r")(?![\w/])"
)


def enter(command: str) -> None:
    """Record that this process, and those that it starts, run ``headcount <command>``."""
    os.environ[_VARIABLE] = command


def entered() -> str | None:
    """The command of ``headcount`` that runs, in this process or in the one that started it; None in a script."""
    command = os.environ.get(_VARIABLE)
    return command if command in COMMANDS else None


def program(script: str) -> str:
    """The name before an error message: ``train.py``, or ``headcount train``."""
    command = entered()
    return f"headcount {command}" if command else script


def command_line() -> str:
    """The command that this process runs, as it was typed, for a shell."""
    command = entered()
    words = [sys.argv[0]] if command is None else ["headcount", command]
    return shlex.join([*words, *sys.argv[1:]])


def as_typed(text: str) -> str:
    """A text with ``python train.py`` and ``train.py`` as ``headcount train``, if the user typed ``headcount``."""
    if entered() is None:
        return text
    return _FILE_NAME.sub(lambda found: f"headcount {_COMMAND_OF_FILE[found[1]]}", text)


def to_start(script: str, root: Path) -> list[str]:
    """The first words of the process that runs a command.

    Args:
        script: a file of a checkout, one of :data:`SCRIPTS`.
        root: the folder of the checkout.
    """
    if entered() is None:
        return [sys.executable, str(root / script)]
    return [sys.executable, "-m", "headcount", SCRIPTS[script]]
