"""Read the command line of a script by one rule.

* A setting is typed ``key=value``: everything that train.py or eval.py takes (``ckpt=``, ``data_root=``, ``split=``,
  ``dataset=``, ``runtime=``, ``eval=``, ...) and a script's own subject, such as ``table=``.
* A ``--flag`` is an option of the script alone: where its results go (``--output``), which images (``--names``), ...
* Input files and folders are positional arguments.

Settings may appear in any position. train.py and eval.py take only settings (and Hydra's own flags), so that a sweep
or a table can set everything; the folder of their results is ``output_dir=``.

Earlier versions had flags for some settings and settings for some flags. These spellings still work, and one line on
stderr names the new ones.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException

from headcount.cli import hydra_private
from headcount.cli.overrides import unknown_flag, written_out
from headcount.cli.status import print_any_name
from headcount.commands import as_typed, program
from headcount.config import ConfigError, check_level
from headcount.files import quoted

_SETTING = re.compile(r"[~+]*[A-Za-z_][\w./]*=")


@dataclass
class Arguments:
    """The parsed command line of a script."""

    options: argparse.Namespace
    """The script's own flags and positional arguments."""
    settings: list[str]
    """Settings as ``key=value``, in the order typed, after those given in an earlier spelling."""

    def values(self, *allowed: str) -> dict[str, str | None]:
        """Key -> value of the settings, for a script that does not compose a config; None for ``null``.

        Raises:
            ConfigError: if a key is not allowed.
        """
        found: dict[str, str | None] = {}
        for text in self.settings:
            key, _, value = written_out(text).partition("=")
            if key not in allowed:
                raise ConfigError(f"{text}: there is no setting {key}; allowed are {', '.join(allowed)}")
            try:
                read = hydra_private.parse(f"{key}={value}").value()
            except HydraException:  # not Hydra's grammar, and nothing here needs it
                read = value
            found[key] = read if read is None or isinstance(read, str) else value
        return found

    def checkpoints(self) -> list[str]:
        """The checkpoints of ``ckpt=a.pt`` or ``ckpt=[a.pt,b.pt]``, for a script whose only setting that is.

        Raises:
            ConfigError: if another setting was typed.
        """
        typed = self.values("ckpt").get("ckpt")
        if typed is not None and typed.startswith("[") and not os.path.exists(typed):
            with suppress(HydraException):
                several: Any = hydra_private.parse(f"ckpt={typed}").value()
                if not several:
                    raise ConfigError("ckpt=[]: names no checkpoint; type ckpt=...")
                return list(map(str, several))
        return [] if typed is None else [typed]


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are messages of one line; argparse's own print the usage first."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message and unknown.startswith("-"):
            raise ConfigError(unknown_flag(unknown.split(" "), re.findall(r"--[\w-]+", self.format_help())))
        raise ConfigError(f"{message.removeprefix('argument ')}; --help lists what can be typed")

    def format_help(self) -> str:
        return as_typed(super().format_help())


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with a module's docstring as its help page, for a script that may print any name."""
    print_any_name()
    return _Parser(
        prog=program(Path(sys.argv[0]).name),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def read_arguments(
    parser: argparse.ArgumentParser,
    *,
    mixed: Sequence[str] = (),
    only: Sequence[str] = (),
    old_flags: Sequence[str] = (),
    old_settings: Mapping[str, bool] | None = None,
) -> Arguments:
    """Read ``sys.argv``.

    Args:
        parser: has the script's own flags and positional arguments; one named ``settings`` takes settings alone.
        mixed: names of other list arguments that may contain settings. The name of an existing file is never read
            as a setting.
        only: the keys that are read as settings there; empty for all keys.
        old_flags: settings that used to be flags: ``data_root`` for ``--data-root``.
        old_settings: flags that used to be settings, without their dashes -> whether they take a value.

    Raises:
        ConfigError: if an argument is missing, unknown, or has a wrong value.
    """
    for key in old_flags:
        parser.add_argument(_flag(key), dest=f"old_{key}", help=argparse.SUPPRESS)
    typed, renamed = _as_flags(sys.argv[1:], old_settings or {})
    # argparse drops "--", which precedes names that begin with a dash, when it parses intermixed arguments.
    options = parser.parse_args(typed) if "--" in typed else parser.parse_intermixed_args(typed)
    settings = []
    for key in old_flags:
        value = vars(options).pop(f"old_{key}")
        if value is not None:
            settings.append(f"{key}={quoted(value)}")
            renamed[_flag(key)] = settings[-1]
    settings += map(_with_quotes, vars(options).pop("settings", []))
    for name in mixed:
        texts = getattr(options, name) or []
        found = [text for text in texts if _is_setting(text, only)]
        settings += map(_with_quotes, found)
        if found:
            setattr(options, name, [text for text in texts if text not in found])
    if renamed:
        verb = "is" if len(renamed) == 1 else "are"
        print(f"{parser.prog}: {', '.join(renamed)} {verb} now typed {' '.join(renamed.values())}", file=sys.stderr)
    return Arguments(options, settings)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _is_setting(text: str, only: Sequence[str]) -> bool:
    """Whether the text has the form ``key=value`` and is not the name of a file."""
    key = text.partition("=")[0]
    return bool(_SETTING.match(text)) and (not only or key in only) and not Path(text).expanduser().is_file()


def _with_quotes(text: str) -> str:
    """``key=path`` with the quotes that Hydra needs, where the path exists as it was typed."""
    key, _, value = text.partition("=")
    path = os.path.expanduser(value)
    return f"{key}={quoted(path)}" if value and os.path.exists(path) else text


def _as_flags(typed: Sequence[str], old_settings: Mapping[str, bool]) -> tuple[list[str], dict[str, str]]:
    """The arguments with ``run=true`` as ``--run`` and ``seeds=1,2`` as ``--seeds=1,2``; old -> new spelling."""
    arguments: list[str] = []
    renamed: dict[str, str] = {}
    for text in typed:
        key, equals, value = text.partition("=")
        if not equals or key not in old_settings:
            arguments.append(text)
        elif old_settings[key]:
            arguments.append(f"{_flag(key)}={value}")
            renamed[text] = f"{_flag(key)} {value}"
        elif value == "true":
            arguments.append(_flag(key))
            renamed[text] = _flag(key)
        elif value != "false":
            raise ConfigError(f"{text}: must be true or false; true is now typed {_flag(key)}")
    return arguments, renamed


def to_path(text: str) -> Path:
    """The type of an argument that names a file or folder."""
    if not text.strip():  # would be the working folder
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def whole_number(text: str) -> int:
    """The type of a flag that takes a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
    return int(text)


def interval_level(text: str) -> float:
    """The type of a flag that takes the level of an interval, between 0 and 1."""
    try:
        return check_level(float(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("level=")) from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0 and below 1, such as 0.9") from error


def refuse_set(overrides: Sequence[str], hints: Mapping[str, str]) -> None:
    """Refuse settings that this command determines itself.

    Args:
        overrides: as typed, ``key=value``.
        hints: key -> what to do instead.

    Raises:
        ConfigError: if one is among ``overrides``.
    """
    for override in overrides:
        if hint := hints.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: cannot be set here; {hint}")


def single_process_errors(config: Any, why: str) -> list[str]:
    """The error if several processes are requested of a script that uses one; ``why`` ends in "takes"."""
    runtime = config.runtime
    return [f"{runtime.typed_processes}: {why} 1"] if runtime.processes > 1 else []
