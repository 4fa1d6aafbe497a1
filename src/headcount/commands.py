"""The names of the commands, and how the user of this process types them.

An installed package has ``headcount predict``, a checkout also ``python scripts/predict.py``: the same code. Texts are
written with the names of the files; :func:`as_typed` converts them for a user of the installed command.
"""

import os
import re
import sys
from pathlib import Path

MODULES = {
    "train": "headcount.cli.train",
    "eval": "headcount.cli.evaluate",
    "predict": "headcount.cli.predict",
    "video": "headcount.cli.video",
    "audit": "headcount.cli.check_dataset",
    "compare": "headcount.cli.compare_runs",
    "cross-evaluate": "headcount.cli.cross_evaluate",
    "figure": "headcount.cli.draw_figure",
    "table": "headcount.cli.reproduce_table",
    "nwpu-submit": "headcount.cli.nwpu_submit",
    "nwpu-score": "headcount.cli.nwpu_score",
    "convert": "headcount.cli.convert_checkpoint",
    "explain": "headcount.cli.explain_setting",
    "env": "headcount.cli.environment",
    "completion": "headcount.cli.completion",
}
"""Command -> the module whose ``main`` runs it."""

SCRIPTS = {
    "train.py": "train",
    "eval.py": "eval",
    "scripts/predict.py": "predict",
    "scripts/video.py": "video",
    "scripts/check_dataset.py": "audit",
    "scripts/compare_runs.py": "compare",
    "scripts/cross_evaluate.py": "cross-evaluate",
    "scripts/draw_figure.py": "figure",
    "scripts/reproduce_table.py": "table",
    "scripts/nwpu_submit.py": "nwpu-submit",
    "scripts/nwpu_score.py": "nwpu-score",
    "scripts/convert_checkpoint.py": "convert",
}
"""File of a checkout -> the command that it runs."""

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
    return command if command in MODULES else None


def program(script: str) -> str:
    """The name before an error message: ``train.py``, or ``headcount train``."""
    command = entered()
    return f"headcount {command}" if command else script


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
