"""Complete commands, settings and their values in a shell.

  bash: eval "$(headcount completion bash)"       in ~/.bashrc
  zsh:  eval "$(headcount completion zsh)"        in ~/.zshrc, after compinit
  fish: headcount completion fish | source        in ~/.config/fish/config.fish

Names of files are completed by the shell itself.
"""

import importlib
import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress

from headcount.cli.arguments import script_parser
from headcount.cli.status import exit_on_error
from headcount.commands import COMMANDS

COMPLETE = "--complete"
"""The first argument with which a shell asks for candidates; the line typed so far follows."""

# Commands that compose the settings of another one, and those that take only a few.
_SETTINGS_OF = {
    **dict.fromkeys(("train", "audit", "convert", "table", "explain"), "train"),
    **dict.fromkeys(("eval", "calibrate", "figure", "cross-evaluate", "nwpu-submit"), "eval"),
}
_FEW_SETTINGS = {
    **dict.fromkeys(("predict", "video", "demo", "export", "publish"), ("ckpt=",)),
    "nwpu-score": ("data_root=", "split="),
}
_FILES_FIRST = {"convert": 2}
"""How many files a command takes before its settings."""

# bash splits words at "=", so the part before it must not be in the candidates. The bash of macOS has no compopt.
_BASH = """
_headcount() {
    local line=${COMP_LINE:0:COMP_POINT} word IFS=$'\\n'
    word=${line##*[[:space:]]}
    COMPREPLY=($(headcount --complete "$line" 2>/dev/null))
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}"); fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _headcount headcount
"""
# What ends in "=" or "." goes on; a file may follow the "=" of a setting.
_ZSH = """
_headcount() {
    local -a found
    found=(${(f)"$(headcount --complete "${LBUFFER}" 2>/dev/null)"})
    if (( ${#found} )); then
        compadd -Q -S '' -- ${(M)found:#*[=.]}
        compadd -Q -- ${found:#*[=.]}
    else
        compset -P '*='
        _files
    fi
}
compdef _headcount headcount
"""
_FISH = "complete -c headcount -a '(headcount --complete (commandline -cp) 2>/dev/null)'\n"
_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def main() -> None:
    """Print the script of a shell."""
    parser = script_parser(__doc__)
    parser.add_argument("shell", choices=list(_SCRIPTS), help="the shell that reads the script")
    with exit_on_error(parser.prog):
        print(_SCRIPTS[parser.parse_args().shell].lstrip("\n"), end="")


def print_candidates(arguments: Sequence[str]) -> None:
    """Print what the last word of a line can become, one candidate per line."""
    line = arguments[0] if arguments else ""
    words = line.split()
    word = "" if not words or line[-1].isspace() else words[-1]
    before = words[1 : len(words) - bool(word)]
    print("\n".join(candidates(before, word)))


def candidates(before: Sequence[str], word: str) -> list[str]:
    """What a word of a command line can become.

    Args:
        before: the words after ``headcount`` and before this one.
        word: the beginning of the word.
    """
    if not before:
        return [command for command in COMMANDS if command.startswith(word)]
    command = before[0]
    if word.startswith("-"):
        return [flag for flag in _flags(command) if flag.startswith(word)]
    if command == "completion":
        return [shell for shell in _SCRIPTS if shell.startswith(word)]
    if command not in _SETTINGS_OF:
        return [name for name in _FEW_SETTINGS.get(command, ()) if name.startswith(word)]
    files = [text for text in before[1:] if "=" not in text and not text.startswith("-")]
    if "=" not in word and len(files) < _FILES_FIRST.get(command, 0):
        return []  # the shell completes files
    found = _settings(_SETTINGS_OF[command], word)
    return _with_table(found, word) if command == "table" else found


def _flags(command: str) -> list[str]:
    """The flags of a command, from its help page."""
    if command not in COMMANDS:
        return []
    sys.argv = ["headcount", "--help"]
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(page), suppress(SystemExit):
        importlib.import_module(f"headcount.cli.{COMMANDS[command].module}").main()
    page.seek(0)
    return sorted({"--help", *re.findall(r"(?<![\w-])--[a-z][\w-]*", page.read())})


def _with_table(found: list[str], word: str) -> list[str]:
    """The settings that begin with a word without those that a table sets, and with ``table=`` or its values."""
    from headcount.cli.reproduce_table import TABLES, sets_table

    own = [f"table={name}" for name in TABLES] if "=" in word else ["table="]
    return [name for name in own if name.startswith(word)] + [name for name in found if not sets_table(name)]


def _settings(command: str, word: str) -> list[str]:
    """The settings of ``train`` or ``eval`` that begin with a word, or their values."""
    from headcount.cli.choices import command_choices, dotted, schemas
    from headcount.cli.meanings import settings_of
    from headcount.config import register_schemas

    register_schemas()
    groups = {dotted(group): group for group in command_choices(command)}
    key, equals, typed = word.partition("=")
    if equals:
        values = command_choices(command)[groups[key]] if key in groups else _values(key, groups)
        return [f"{key}={value}" for value in values if value.startswith(typed)]
    parent, dot, _ = word.rpartition(".")
    if dot:
        group = groups.get(parent)
        names = [f"{parent}.{name}=" for name in settings_of(group)] if group and schemas(group) else []
        names += [f"{name}=" for name in groups if name.startswith(f"{parent}.")]
    else:
        top = [name for name in settings_of("", command) if name not in groups]
        names = [f"{name}=" for name in (*groups, *top) if "." not in name]
        names += [f"{name}." for name in groups if "." not in name and name.startswith(word) and word]
    return [name for name in names if name.startswith(word)]


def _values(key: str, groups: dict[str, str]) -> list[str]:
    """The values of a setting that takes one of a few words; empty for others."""
    from headcount.cli.meanings import meanings

    parent, _, setting = key.rpartition(".")
    if parent and parent not in groups:
        return []
    words = {value for found in meanings(groups.get(parent, ""), setting) for value in found.words}
    return sorted(words)
