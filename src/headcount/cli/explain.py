"""Explain why Hydra could not compose what was typed: the key, the value, what is allowed, the nearest match."""

import dataclasses
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from yaml import YAMLError

from headcount.cli import hydra_private
from headcount.cli.choices import (
    command_choices,
    config_dirs,
    dotted,
    find_file,
    nearest,
    no_choice,
    owners,
    read_config_file,
)
from headcount.cli.composed import composed
from headcount.cli.overrides import Setting
from headcount.config import ConfigError
from headcount.wording import one_line

COMPOSING_ERRORS = (
    *(HydraException, OmegaConfBaseException, GrammarParseError),
    *(ValueError, TypeError, AttributeError, AssertionError, RecursionError),
    YAMLError,
    OSError,  # the name of a choice is longer than that of a file may be
)
"""What Hydra and OmegaConf raise for settings that cannot be composed."""
SPANNING = ("experiment", "recipe", "scale")
"""Groups whose choices set settings of other groups."""
GLOBAL_PACKAGE = "# @package _global_"
FIXED_NAMES = ("dataset.name", "method.name", "model.name", "model.head.name", "loss.name", "loss.error")
"""Settings that are fixed by the choice of their group."""


def explain_invalid_setting(settings: Sequence[Setting], error: Exception, config_name: str) -> str:
    """Find the setting that is invalid and say what is allowed.

    Args:
        settings: everything that was typed.
        error: what Hydra raised; its message is used only if no setting is found to be invalid.
    """
    try:
        problem = _find_problem(settings, config_name)
    except ConfigError as unreadable:  # a file of choices
        problem = str(unreadable)
    except COMPOSING_ERRORS:  # not even the choices can be composed
        problem = None
    if problem:
        return problem
    for setting in settings:
        try:
            composed(config_name, [setting.text])
        except COMPOSING_ERRORS as alone:
            return f"{_file_of(alone) or setting.typed}: {reason(alone)}"
    return f"{_file_of(error) or ' '.join(setting.typed for setting in settings)}: {reason(error)}"


def _file_of(error: Exception) -> Path | None:
    """The user's own file that Hydra could not compose; None if it was another one."""
    named = re.search(r"In '([^']+)'", str(error))
    file = find_file(f"{named[1]}.yaml") if named else None
    return file if file is not None and file.is_relative_to(config_dirs()[0]) and len(config_dirs()) > 1 else None


def reason(error: Exception) -> str:
    """What Hydra or OmegaConf says in one line, without its names for types and keys."""
    return one_line(str(error).split("\n    full_key:")[0])


def _find_problem(settings: Sequence[Setting], config_name: str) -> str | None:
    """The first setting that is invalid and what is allowed; None if none is found."""
    groups = command_choices(config_name)
    typed = [setting for setting in settings if not setting.key.startswith("hydra")]
    chosen = []
    for setting in typed:
        if setting.is_sweep:
            return f"{setting.typed}: several values; one is needed here"
        if setting.key in groups:
            if setting.value not in groups[setting.key]:
                return no_choice(setting.typed, groups[setting.key])
            if problem := _package_problem(setting):
                return problem
            chosen.append(setting)
    base = composed(config_name, [setting.text for setting in chosen if "/" not in setting.key])
    nested = [setting for setting in chosen if "/" in setting.key]
    for setting in nested:
        if problem := _problem(base, setting):
            return problem
    if nested:
        base = composed(config_name, [setting.text for setting in chosen])
    for setting in typed:
        if setting.key not in groups and (problem := _problem(base, setting)):
            return problem
    return None


def _package_problem(setting: Setting) -> str | None:
    """Why the file of a choice that sets settings of all groups, such as an experiment, cannot be composed."""
    file = find_file(f"{setting.key}/{setting.value}.yaml")
    if setting.key not in SPANNING or file is None or read_config_file(file).startswith(GLOBAL_PACKAGE):
        return None
    return f"{setting.typed}: the first line of {file} must be {GLOBAL_PACKAGE!r}, because it sets other groups"


def _problem(base: DictConfig, setting: Setting) -> str | None:
    """Why a setting is invalid in ``base``; None if it is not, or is a choice of a nested group that exists."""
    key = dotted(setting.key)
    node: Any = base
    path = ""
    for part in key.split("."):
        if isinstance(node, DictConfig) and hydra_private.is_null(node):
            return f"{setting.typed}: {part} is a setting of {path}, which is not chosen; add {path}=..."
        if not isinstance(node, DictConfig) or part not in map(str, node):  # missing values are keys as well
            allowed = _settable(node, path) if isinstance(node, DictConfig) else []
            where = f"{path} has no {part}" if path else f"there is no setting {part}"
            hint = _hint(base, path, part, allowed)
            return f"{setting.typed}: {where}; allowed are {', '.join(allowed) or 'none'}{hint}"
        path = f"{path}.{part}" if path else part
        parent, node = node, hydra_private.child(node, part)
    if "/" in setting.key:
        return None
    try:
        OmegaConf.update(parent, key.split(".")[-1], setting.value)
    except (OmegaConfBaseException, AttributeError):  # OmegaConf fails in its own way on a null dictionary
        return f"{setting.typed}: {path} takes {_type_words(node)}"
    return None


def value_problem(cfg: DictConfig, setting: Setting) -> str | None:
    """Why the value of a setting is invalid although it could be composed; None if it is valid.

    OmegaConf takes any number for true or false and for a word, and does not resolve ``${...}`` until it is read.
    """
    key, value = dotted(setting.key), setting.value
    path, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, path) if path else cfg
    node = hydra_private.child(parent, name)
    if "${" in str(value):
        try:
            value = OmegaConf.select(cfg, key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except COMPOSING_ERRORS as error:
            return (
                f"{setting.typed}: {reason(error)}; type the value itself, or in ${{...}} the full name of a setting "
                "that has one"
            )
        try:
            OmegaConf.update(parent, name, value)
        except COMPOSING_ERRORS:
            return f"{setting.typed}: {key} takes {_type_words(node)}, not {value}"
    if _is_number_for_a_word(node, value):
        return f"{setting.typed}: {key} takes {_type_words(node)}"
    text, read = setting.text.partition("=")[2].strip(), setting.value
    if hydra_private.declared_type(node).type is str and isinstance(read, (bool, int, float)) and str(read) != text:
        return f"{setting.typed}: would become {read}; put quotes around a text: {key}=\"'{text}'\""
    return None


def _is_number_for_a_word(node: Any, value: Any) -> bool:
    """Whether a value is a number although the setting is true or false, or one of several words."""
    declared = hydra_private.declared_type(node).type
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else None
    if declared is bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(declared, type) and issubclass(declared, Enum) and isinstance(value, (int, float))


def _settable(node: DictConfig, path: str) -> list[str]:
    """The settings of a group that can be changed: a name that the choice fixes cannot."""
    names = sorted(map(str, node))
    return [name for name in names if f"{path}.{name}" not in FIXED_NAMES or OmegaConf.is_missing(node, name)]


def _hint(base: DictConfig, path: str, part: str, allowed: Sequence[str]) -> str:
    """Where a setting that ``path`` does not have may be instead."""
    if having := owners(path.replace(".", "/"), part):
        return f"; {part} is a setting of {path}={', '.join(having)}"
    inner = [
        f"{group}.{k}"
        for group, node in ((str(g), n) for g, n in base.items())
        if isinstance(node, DictConfig)
        for k in map(str, node)
    ]
    same = [key for key in inner if key.split(".")[-1] == part]
    return f"; did you mean {' or '.join(same)}?" if same else nearest(part, allowed)


def _type_words(node: Any) -> str:
    """The type that a node takes, in words."""
    declared = hydra_private.declared_type(node)
    optional = " or null" if declared.optional else ""
    if isinstance(declared.type, type) and issubclass(declared.type, Enum):
        return "one of " + ", ".join(declared.type.__members__) + optional
    if isinstance(node, DictConfig):
        names = node if not hydra_private.is_null(node) else [item.name for item in dataclasses.fields(declared.type)]
        return "settings of its own: " + ", ".join(hydra_private.full_key(node, k) for k in map(str, names))
    if isinstance(node, ListConfig):
        for element in get_args(declared.type):
            if isinstance(element, type) and issubclass(element, Enum):
                return "one or more of " + ", ".join(element.__members__) + optional
        return "a list such as [0.5,0.5,0.5]" + optional
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(declared.type, str(declared.type)) + optional
