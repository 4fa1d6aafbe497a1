"""Parse settings typed as ``key=value``: Hydra's grammar, with our own additions and refusals."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydra.errors import HydraException

from headcount.cli import hydra_private
from headcount.cli.choices import dotted, nested_groups
from headcount.config import OLD_SPELLINGS, ConfigError


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
    written = written_out(text)
    try:
        setting = Setting(written, hydra_private.parse(written))
    except HydraException as error:
        raise ConfigError(
            f"{written}: cannot be read; type key=value, and put quotes around values that hold spaces, "
            f"'=', ',', '~', brackets or letters with accents: {written.partition('=')[0]}=\"'...'\""
        ) from error
    override = setting.override
    if (override.is_add() or override.is_force_add() or override.is_delete()) and not setting.key.startswith("hydra"):
        raise ConfigError(f"{text}: settings can only be set, not added or removed; type key=value without {text[0]!r}")
    key = dotted(setting.key)
    for old in (f"{key}={setting.value}", key):  # for some settings, the new spelling depends on the value
        if old in OLD_SPELLINGS:
            raise ConfigError(f"{text}: {OLD_SPELLINGS[old]}")
    return setting


def written_out(text: str) -> str:
    """Convert a typed setting to Hydra's spelling.

    ``key=~/folder``, which a shell may leave as it is, gets the home folder's path; ``model.head=regression`` becomes
    ``model/head=regression``, Hydra's spelling for a choice in a group within another.
    """
    key, equals, value = text.partition("=")
    group = key.replace(".", "/")
    if equals and group in nested_groups():
        key = group
    return key + equals + re.sub(r"(?<![^,])~(?=[/,]|$)", lambda tilde: os.path.expanduser("~"), value)


def as_typed(text: str) -> str:
    """The reverse of :func:`written_out` for a nested group, to show to the user."""
    key, equals, value = text.partition("=")
    return (dotted(key) if key in nested_groups() else key) + equals + value
