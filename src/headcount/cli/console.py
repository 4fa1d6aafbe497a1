"""The command ``headcount``: ``headcount train dataset=sha`` is ``python train.py dataset=sha``, from any folder."""

import importlib
import sys

import headcount
from headcount.cli.choices import nearest
from headcount.cli.completion import COMPLETE, print_candidates
from headcount.cli.status import REFUSED, print_any_name
from headcount.commands import MODULES, enter, entered

_SUMMARIES = {
    "train": "train a counter",
    "eval": "evaluate a checkpoint: errors, a table, pictures",
    "predict": "count the people in pictures",
    "video": "count the people in a video, a camera or a stream",
    "audit": "report what a dataset contains, and what is broken or odd about it",
    "compare": "put runs side by side: settings, errors, curves",
    "cross-evaluate": "evaluate checkpoints on several datasets",
    "figure": "draw images with their true and predicted density",
    "table": "make a table of the paper from your runs",
    "nwpu-submit": "write the file for NWPU-Crowd's benchmark",
    "nwpu-score": "score such a file on the validation images",
    "convert": "import a checkpoint of the paper's released code",
    "explain": "explain a setting: meaning, allowed values, default",
    "env": "print versions, devices and data folders, for a bug report",
    "completion": "print the completion script of a shell",
}


def main() -> None:
    """Run the command whose name is the first argument."""
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name == COMPLETE:
        print_candidates(rest)
        return
    if name not in MODULES and (started := entered()):
        name, rest = started, sys.argv[1:]  # a process that a launcher started repeats only the arguments
    print_any_name()
    if name in ("--help", "-h", "help"):
        print(_help_page())
    elif name in ("--version", "-V"):
        print(f"headcount {headcount.__version__}")
    elif name in MODULES:
        enter(name)
        sys.argv = [sys.argv[0], *rest]
        importlib.import_module(MODULES[name]).main()
    else:
        hint = nearest(name, list(MODULES))
        print(f"headcount: there is no command {name}{hint}; allowed are {', '.join(MODULES)}", file=sys.stderr)
        sys.exit(REFUSED)


def _help_page() -> str:
    return "\n".join(
        [
            "Crowd counting by enhanced blockwise classification.",
            "",
            "  headcount COMMAND [key=value ...] [--flags]",
            "",
            *(f"  {name:<15} {summary}" for name, summary in _SUMMARIES.items()),
            "",
            "headcount COMMAND --help explains a command. Choices of your own are read from ./configs.",
        ]
    )
