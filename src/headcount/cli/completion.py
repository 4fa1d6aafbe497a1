"""Complete commands, settings and their values in a shell.

  bash: eval "$(headcount completion bash)"       in ~/.bashrc
  zsh:  eval "$(headcount completion zsh)"        in ~/.zshrc, after compinit
  fish: headcount completion fish | source        in ~/.config/fish/config.fish

Names of files are completed by the shell itself.
"""

from collections.abc import Sequence

from headcount.cli.arguments import script_parser
from headcount.cli.status import exit_on_error
from headcount.commands import COMMANDS

COMPLETE = "--complete"
"""The first argument with which a shell asks for candidates; the line typed so far follows."""

# bash splits words at "=", so the part before it must not be in the candidates.
_BASH = """
_headcount() {
    local line=${COMP_LINE:0:COMP_POINT} word IFS=$'\\n'
    word=${line##*[[:space:]]}
    COMPREPLY=($(headcount --complete "$line" 2>/dev/null))
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}"); fi
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi
}
complete -o default -F _headcount headcount
"""
_SCRIPTS = {
    "bash": _BASH,
    "zsh": """
_headcount() {
    local -a found
    found=(${(f)"$(headcount --complete "${LBUFFER}" 2>/dev/null)"})
    compadd -Q -S '' -- $found || _files
}
compdef _headcount headcount
""",
    "fish": "complete -c headcount -a '(headcount --complete (commandline -cp) 2>/dev/null)'\n",
}


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
    if word.startswith("-"):
        return []
    from headcount.cli.choices import command_choices, dotted, schemas
    from headcount.cli.meanings import settings_of
    from headcount.config import register_schemas

    register_schemas()
    command = (
        "eval" if before[0] in ("eval", "predict", "video", "figure", "cross-evaluate", "nwpu-submit") else "train"
    )
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
