"""Explain why Hydra could not compose what was typed: the key, the value, what is allowed, the nearest match."""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.cli import hydra_private
from headcount.cli.choices import command_choices, dotted, nearest, no_choice, owners
from headcount.cli.overrides import Setting, as_typed


def explain_invalid_setting(settings: Sequence[Setting], error: Exception, config_name: str) -> str:
    """Find the setting that is invalid and say what is allowed; Hydra must be initialized.

    Args:
        settings: everything that was typed.
        error: what Hydra raised; its message is used only if no setting is found to be invalid.
    """
    groups = command_choices(config_name)
    typed = [setting for setting in settings if not setting.key.startswith("hydra")]
    chosen = []
    for setting in typed:
        if setting.is_sweep:
            return f"{as_typed(setting.text)}: several values; one is needed here"
        if setting.key in groups:
            if setting.value not in groups[setting.key]:
                return no_choice(setting.key, setting.value, groups[setting.key])
            chosen.append(setting)
    base = hydra.compose(config_name, [setting.text for setting in chosen if "/" not in setting.key])
    nested = [setting for setting in chosen if "/" in setting.key]
    for setting in nested:
        if problem := _problem(base, setting):
            return problem
    if nested:
        base = hydra.compose(config_name, [setting.text for setting in chosen])
    for setting in typed:
        if setting.key not in groups and (problem := _problem(base, setting)):
            return problem
    return f"{' '.join(as_typed(setting.text) for setting in settings)}: {error}"


def _problem(base: DictConfig, setting: Setting) -> str | None:
    """Why a setting is invalid in ``base``; None if it is not, or is a choice of a nested group that exists."""
    key, value = dotted(setting.key), setting.value
    node: Any = base
    path = ""
    for part in key.split("."):
        if isinstance(node, DictConfig) and hydra_private.is_null(node):
            return f"{key}={value}: {part} is a setting of {path}, which is not chosen; add {path}=..."
        if not isinstance(node, DictConfig) or part not in map(str, node):  # missing values are keys as well
            allowed = sorted(str(k) for k in node) if isinstance(node, DictConfig) else []
            where = f"{path} has no {part}" if path else f"there is no setting {part}"
            hint = _hint(base, path, part, allowed)
            return f"{key}={value}: {where}; allowed are {', '.join(allowed) or 'none'}{hint}"
        path = f"{path}.{part}" if path else part
        parent, node = node, hydra_private.child(node, part)
    if "/" in setting.key:
        return None
    try:
        OmegaConf.update(parent, key.split(".")[-1], value)
    except (OmegaConfBaseException, AttributeError):  # OmegaConf fails in its own way on a null dictionary
        return f"{key}={value}: {path} takes {_type_words(node)}"
    return None


def _hint(base: DictConfig, path: str, part: str, allowed: Sequence[str]) -> str:
    """Where a setting that ``path`` does not have may be instead."""
    if having := owners(path.replace(".", "/"), part):
        return f"; {part} is a setting of {path}={', '.join(having)}"
    if near := nearest(part, allowed):
        return near
    inner = [
        f"{group}.{k}"
        for group, node in ((str(g), n) for g, n in base.items())
        if isinstance(node, DictConfig)
        for k in map(str, node)
    ]
    same = [key for key in inner if key.split(".")[-1] == part]
    return f"; did you mean {' or '.join(same)}?" if same else ""


def _type_words(node: Any) -> str:
    """The type that a node takes, in words."""
    declared = hydra_private.declared_type(node)
    optional = " or null" if declared.optional else ""
    if isinstance(declared.type, type) and issubclass(declared.type, Enum):
        return "one of " + ", ".join(declared.type.__members__) + optional
    if isinstance(node, DictConfig):
        return "settings of its own: " + ", ".join(hydra_private.full_key(node, k) for k in map(str, node))
    if isinstance(node, ListConfig):
        return "a list such as [0.5,0.5,0.5]" + optional
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(declared.type, str(declared.type)) + optional
