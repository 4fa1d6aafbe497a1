"""The command ``headcount``: ``headcount train dataset=sha`` is ``python train.py dataset=sha``, from any folder."""

import os
import sys

import headcount
from headcount.cli.start import deferred_interrupt, ends_at_interrupt, run

_PIPE_CLOSED = 141
"""128 plus the number of SIGPIPE, as shells report it."""


def main() -> None:
    """Run the command whose name is the first argument; end quietly if nobody reads its output any more."""
    try:
        with ends_at_interrupt():
            _run()
            sys.stdout.flush()
    except BrokenPipeError:  # as in `headcount env | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        sys.exit(_PIPE_CLOSED)


def _run() -> None:
    with deferred_interrupt():
        from headcount.cli.completion import COMPLETE, print_candidates
        from headcount.cli.status import REFUSED, print_any_name
        from headcount.commands import COMMANDS, enter, entered

    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name == COMPLETE:
        print_candidates(rest)
        return
    if name not in COMMANDS and (started := entered()):
        name, rest = started, sys.argv[1:]  # a process that a launcher started repeats only the arguments
    print_any_name()
    if name in ("--help", "-h", "help"):
        print(_help_page({name: command.summary for name, command in COMMANDS.items()}))
    elif name in ("--version", "-V"):
        print(f"headcount {headcount.__version__}")
    elif name in COMMANDS:
        enter(name)
        sys.argv = [sys.argv[0], *rest]
        run(COMMANDS[name].module)
    else:
        from headcount.cli.choices import nearest

        hint = nearest(name, list(COMMANDS))
        print(f"headcount: there is no command {name}{hint}; allowed are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(REFUSED)


def _help_page(summaries: dict[str, str]) -> str:
    return "\n".join(
        [
            "Crowd counting by enhanced blockwise classification.",
            "",
            "  headcount COMMAND [key=value ...] [--flags]",
            "",
            *(f"  {name:<15} {summary}" for name, summary in summaries.items()),
            "",
            "headcount COMMAND --help explains a command. Choices of your own are read from ./configs.",
        ]
    )
