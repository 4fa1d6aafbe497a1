"""The private interfaces of Hydra and OmegaConf that the commands need; no other module uses them.

Each may change in any release. ``tests/cli/test_hydra_private.py`` tries each of them and names the installed
version, so that a failure there says what to adapt here.
"""

import argparse
from dataclasses import dataclass
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from headcount.errors import ConfigError

__all__ = [
    "DeclaredType",
    "Override",
    "child",
    "command_line",
    "declared_type",
    "full_key",
    "is_null",
    "parse",
    "reset",
]


def command_line() -> argparse.Namespace:
    """``sys.argv`` as Hydra reads it: ``overrides``, ``multirun``, ``help``, Hydra's other flags.

    ``unknown`` holds the arguments that Hydra's parser does not know or does not expect where they are.

    Raises:
        ConfigError: if a flag of Hydra has no value or a wrong one; argparse would print its usage.
    """
    parser = get_args_parser()
    parser.allow_abbrev = False

    def refuse(message: str) -> NoReturn:
        raise ConfigError(message)

    parser.error = refuse  # type: ignore[method-assign]
    arguments: argparse.Namespace
    arguments, arguments.unknown = parser.parse_known_args()
    return arguments


def reset() -> None:
    """Let Hydra be initialized again in this process, which it otherwise refuses."""
    GlobalHydra.instance().clear()


def parse(text: str) -> Override:
    """One ``key=value`` by Hydra's grammar.

    Raises:
        hydra.errors.HydraException: if it does not follow the grammar.
    """
    return OverridesParser.create().parse_override(text)


@dataclass(frozen=True)
class DeclaredType:
    """The type that a schema declares for a value."""

    type: Any
    """A class, or a type such as ``list[float]``."""
    optional: bool
    """Whether the value may be null."""


def declared_type(node: Any) -> DeclaredType:
    """The type that the schema declares for a node of a config."""
    return DeclaredType(node._metadata.ref_type, node._metadata.optional)


def child(parent: DictConfig, key: str) -> Any:
    """The node of a key: missing and null values have one too, with a declared type."""
    return parent._get_node(key)


def is_null(node: DictConfig) -> bool:
    """Whether a node for a group of settings holds null instead."""
    return bool(node._is_none())


def full_key(parent: DictConfig, key: str) -> str:
    """The name of a key from the top of the config, such as ``loss.transport.ot_weight``."""
    return str(parent._get_full_key(key))
