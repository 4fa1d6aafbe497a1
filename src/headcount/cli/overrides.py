"""Parse settings typed as ``key=value``: Hydra's grammar, with our own additions and refusals."""

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from hydra.errors import HydraException

from headcount.cli import hydra_private
from headcount.cli.choices import all_choices, dotted, nested_groups
from headcount.config import OLD_SPELLINGS, ConfigError
from headcount.wording import cut


@dataclass(frozen=True)
class Setting:
    """One ``key=value``."""

    text: str
    """The text that Hydra reads, with ``~`` and nested groups expanded."""
    override: hydra_private.Override

    @cached_property
    def key(self) -> str:
        """A setting such as ``optim.lr``, or a group such as ``optim`` or ``model/head``."""
        return str(self.override.key_or_group)

    @property
    def typed(self) -> str:
        """The setting as it was typed, with dots for a nested group."""
        return as_typed(self.text)

    @cached_property
    def value(self) -> Any:
        """The value by Hydra's grammar."""
        return self.override.value()

    @cached_property
    def is_sweep(self) -> bool:
        """Whether it holds several values."""
        return bool(self.override.is_sweep_override())


def parse(overrides: Sequence[str]) -> list[Setting]:
    """Read what was typed.

    Raises:
        ConfigError: names the text that cannot be read, adds or removes something, or uses an old spelling.
    """
    return [_parse(text) for text in overrides]


def _parse(text: str) -> Setting:
    if "=" not in text and not text.startswith("~"):
        raise ConfigError(f"{text}: settings are typed as key=value{_key_hint(text)}")
    if re.search(r"[\d_]{1000}", text):  # Python refuses to print a number of more than 4300 digits
        raise ConfigError(f"{cut(text)}: holds a number of a thousand digits or more; shorten it")
    written = written_out(text)
    try:
        setting = Setting(written, hydra_private.parse(written))
    except HydraException as error:
        raise ConfigError(
            f"{written}: cannot be read; type key=value, and put quotes around values that hold spaces, "
            f"'=', ',', '~', brackets or letters with accents: {written.partition('=')[0]}=\"'...'\""
        ) from error
    override = setting.override
    if override.package is not None:
        raise ConfigError(f"{text}: a group is always in its own place; type {setting.key}=... without '@'")
    if (override.is_add() or override.is_force_add() or override.is_delete()) and not setting.key.startswith("hydra"):
        raise ConfigError(f"{text}: settings can only be set, not added or removed; type key=value without {text[0]!r}")
    key = dotted(setting.key)
    for old in (f"{key}={setting.value}", key):  # for some settings, the new spelling depends on the value
        if old in OLD_SPELLINGS:
            raise ConfigError(f"{text}: {OLD_SPELLINGS[old]}")
    return setting


def _key_hint(text: str) -> str:
    """The setting that a word without a key may stand for."""
    if text.endswith((".pt", ".pth", ".ckpt")):
        return f"; did you mean ckpt={text}?"
    groups = [group for group, choices in all_choices().items() if text in choices]
    return f"; did you mean {' or '.join(f'{dotted(group)}={text}' for group in groups)}?" if groups else ""


def unknown_flag(arguments: Sequence[str], known: Sequence[str]) -> str:
    """The message for an option that a command does not have; settings are typed without dashes.

    Args:
        arguments: the option and what follows it.
        known: the options of the command.
    """
    flag, equals, value = arguments[0].partition("=")
    if not equals and len(arguments) > 1 and not arguments[1].startswith("-") and "=" not in arguments[1]:
        value = arguments[1]
    key = flag.lstrip("-").replace("-", "_")
    is_letter = len(flag) == 2 and flag != "--"
    near = [option for option in known if is_letter and option.startswith(f"-{flag}")]  # -o for --output
    near = near or difflib.get_close_matches(flag, known, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}?" if near else f"settings are typed as key=value: {key}={value or '...'}"
    return f"{arguments[0] if equals or not value else f'{flag} {value}'}: there is no option {flag}; {hint}"


def show_typed(errors: Sequence[str], settings: Sequence[Setting], config: Any) -> list[str]:
    """Errors of a config with each value as it was typed: ``run=true`` instead of ``run=True``.

    Args:
        errors: messages that name settings as ``key=value``.
        settings: what was typed.
        config: the config that was made of it.
    """
    shown = list(errors)
    for setting in settings:
        key, _, typed = setting.typed.partition("=")
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        texts = {str(value), f"{value:g}" if isinstance(value, float) else str(value)}
        texts |= {value.name} if isinstance(value, Enum) else set()
        pattern = rf"(?<![\w.]){re.escape(key)}=(?:{'|'.join(map(re.escape, texts))})(?=[:,;\s]|$)"
        text = f"{key}={typed}".replace("\\", r"\\")
        shown = [re.sub(pattern, text, error) for error in shown]
    return shown


def written_out(text: str) -> str:
    """Convert a typed setting to Hydra's spelling.

    ``key=~/folder``, which a shell may leave as it is, gets the home folder's path; ``model.head=regression`` becomes
    ``model/head=regression``, Hydra's spelling for a choice in a group within another; ``logger=csv`` becomes a list.
    """
    key, equals, value = text.partition("=")
    group = key.replace(".", "/")
    if equals and group in nested_groups():
        key = group
    if key == "logger" and value and not value.startswith(("[", "${")):
        value = f"[{value}]"
    return key + equals + re.sub(r"(?<![^,])~(?=[/,]|$)", lambda tilde: os.path.expanduser("~"), value)


def as_typed(text: str) -> str:
    """The reverse of :func:`written_out` for a nested group, to show to the user."""
    key, equals, value = text.partition("=")
    return (dotted(key) if key in nested_groups() else key) + equals + value
