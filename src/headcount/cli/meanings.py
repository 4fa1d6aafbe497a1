"""The meaning of a setting, from the docstring of its field, and the values that it takes."""

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from enum import Enum
from functools import cache
from itertools import pairwise
from typing import Any

from omegaconf import MISSING

from headcount.cli.choices import all_choices, schemas
from headcount.config import SCHEMAS, EvalCommandConfig, TrainConfig

COMMANDS: dict[str, type] = {"train": TrainConfig, "eval": EvalCommandConfig}
"""Command -> the schema of its settings outside the groups."""


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What is known about a setting."""

    text: str
    """The docstring of its field, or of the schema of a choice."""
    allowed: str
    """The values that it takes, in words."""
    default: str
    """Its value unless another is typed; empty for a choice that is required."""
    having: tuple[str, ...]
    """The choices of its group that have it; empty outside the groups."""

    @property
    def words(self) -> list[str]:
        """The values, if it takes one of a few words."""
        if self.allowed == "true or false":
            return ["true", "false"]
        named = self.allowed.removesuffix(", or null").split(", ")
        return named if all(word.isidentifier() for word in named) and self.allowed != "text" else []


def meanings(group: str, setting: str, command: str | None = None) -> list[Meaning]:
    """What a setting means; several entries where the choices of its group give it another meaning or range.

    Args:
        group: path of a group, such as ``model/head``; empty for a setting outside the groups.
        setting: a field of the group's schemas.
        command: outside the groups only the meaning for ``train`` or ``eval``; None finds both.
    """
    holders = _holders(group, command)
    found: dict[tuple[str, str, str], list[str]] = {}
    for choice, schema in holders.items():
        for field in dataclasses.fields(schema):
            if field.name == setting:
                key = (field_docs(schema).get(setting, ""), allowed_values(schema, field), default_value(field))
                found.setdefault(key, []).append(choice)
    return [Meaning(*key, having=tuple(having) if group else ()) for key, having in found.items()]


def settings_of(group: str, command: str | None = None) -> list[str]:
    """The names of the settings of a group without those of groups within it.

    Args:
        group: path of a group; empty for the settings outside the groups.
        command: of these only those of ``train`` or ``eval``; None lists both.
    """
    holders = _holders(group, command)
    names = [field.name for schema in holders.values() for field in dataclasses.fields(schema)]
    groups = set(all_choices())
    return [name for name in dict.fromkeys(names) if f"{group}/{name}".removeprefix("/") not in groups]


def _holders(group: str, command: str | None) -> dict[str, type]:
    """The schemas that may have a setting, by the choice or the command that they belong to."""
    return schemas(group) if group else {name: s for name, s in COMMANDS.items() if command in (None, name)}


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Field -> the text written below it, in one line, for a dataclass and those it is derived from."""
    found = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # typed into an interpreter
            continue
        (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
        for declared, text in pairwise(body):
            if (
                isinstance(declared, ast.AnnAssign)
                and isinstance(declared.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[declared.target.id] = plain_text(text.value.value)
    return found


def plain_text(doc: str | None) -> str:
    """A docstring as one line without markup, and with the value null as it is typed."""
    return re.sub(r"\bNone\b", "null", " ".join((doc or "").replace("``", "").split()))


def choice_text(group: str, choice: str) -> str:
    """The meaning of a choice: the first paragraph of its schema's docstring; empty without a schema."""
    schema = schemas(group).get(choice) if group in SCHEMAS else None
    doc = (inspect.getdoc(schema) or "") if schema else ""
    return "" if doc.startswith(f"{getattr(schema, '__name__', '')}(") else plain_text(doc.split("\n\n")[0])


def allowed_values(schema: type, field: "dataclasses.Field[Any]") -> str:
    """The values that a field takes, in words: type, limits, names."""
    declared = typing.get_type_hints(schema)[field.name]
    optional = ""
    if isinstance(declared, types.UnionType) or typing.get_origin(declared) is typing.Union:
        (declared,) = (part for part in typing.get_args(declared) if part is not type(None))
        optional = ", or null"
    return _type_words(declared) + _limits(field.metadata.get("range")) + optional


def _type_words(declared: Any) -> str:
    if isinstance(declared, type) and issubclass(declared, Enum):
        return ", ".join(declared.__members__)
    if dataclasses.is_dataclass(declared):
        return "settings of its own: " + ", ".join(field.name for field in dataclasses.fields(declared))
    if typing.get_origin(declared) is list:
        (element,) = typing.get_args(declared)
        if isinstance(element, type) and issubclass(element, Enum):
            return "one or more of " + ", ".join(element.__members__)
        return "a list of " + {int: "whole numbers", float: "numbers"}.get(element, "values")
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        Any: "text, or a list of texts",
    }
    return words.get(declared, "several settings")


def _limits(limits: tuple[float, float] | None) -> str:
    if limits is None:
        return ""
    low, high = (str(limit) if isinstance(limit, int) else f"{limit:g}" for limit in limits)
    return f", at least {low}" if limits[1] == math.inf else f", from {low} to {high}"


def default_value(field: "dataclasses.Field[Any]") -> str:
    """The default of a field as it is typed; empty if it has none."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value in (dataclasses.MISSING, MISSING) or dataclasses.is_dataclass(value):
        return ""
    return typed_value(value)


def typed_value(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(typed_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
