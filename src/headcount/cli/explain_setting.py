"""Explain settings: what they mean, which values they take, and their defaults.

  headcount explain                     the groups and the settings outside them
  headcount explain dataset             its choices and settings
  headcount explain dataset.outside     one setting
  headcount explain model=clip_vit_b16  one choice, with its own defaults

Exit status: 0; 2 if there is no such setting.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from headcount.cli.arguments import script_parser
from headcount.cli.choices import (
    all_choices,
    default_choices,
    dotted,
    find_file,
    nearest,
    no_choice,
    read_config_file,
    schemas,
)
from headcount.cli.compose import compose
from headcount.cli.explain import SPANNING
from headcount.cli.meanings import Meaning, choice_text, field_docs, meanings, settings_of, typed_value
from headcount.cli.status import exit_on_error
from headcount.config import ConfigError, register_schemas

_WIDTH = 100


def main() -> None:
    """Read the command line and print the explanations."""
    parser = script_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="SETTING", help="a setting, a group, or GROUP=CHOICE")
    with exit_on_error(parser.prog):
        register_schemas()
        names = parser.parse_args().names
        print("\n\n".join(map(explain, names)) if names else _overview())


def explain(name: str) -> str:
    """The explanation of a setting, a group, or a choice.

    Args:
        name: such as ``optim.lr``, ``optim`` or ``model=vgg19``.

    Raises:
        ConfigError: if there is none of that name; names the nearest.
    """
    groups = {dotted(group): group for group in all_choices()}
    key, equals, choice = name.partition("=")
    if equals and key in groups:
        return _explain_choice(groups[key], choice)
    if key in groups:
        return _explain_group(groups[key])
    parent, _, setting = key.rpartition(".")
    group = groups.get(parent, parent)
    found = meanings(group, setting) if not parent or parent in groups else []
    if not found and (nested := _nested_setting(key)):
        return nested
    if not found:
        known = [f"{dotted(group)}.{s}" for group in groups.values() for s in settings_of(group)]
        raise ConfigError(f"{key}: there is no such setting{nearest(key, [*groups, *settings_of(''), *known])}")
    return "\n".join([key, *(line for meaning in found for line in _lines(meaning, group))])


def _lines(meaning: Meaning, group: str) -> list[str]:
    """A meaning as indented lines."""
    lines = textwrap.wrap(meaning.text, _WIDTH - 4)
    lines.append(f"allowed: {meaning.allowed}")
    lines.append(f"default: {meaning.default}" if meaning.default else "default: none, it depends on the choice")
    if meaning.having:
        text = f"with {dotted(group)}={', '.join(meaning.having)}"
        lines += textwrap.wrap(text, _WIDTH - 4, subsequent_indent="     ", break_on_hyphens=False)
    return [f"    {line}" for line in lines]


def _nested_setting(key: str) -> str | None:
    """The explanation of a setting within settings that are no group, such as ``model.prompts.style``."""
    group, _, rest = key.partition(".")
    path = rest.split(".")
    if group not in all_choices() or len(path) < 2:
        return None
    for choice, schema in schemas(group).items():
        inner: Any = schema
        for part in path[:-1]:
            inner = next((_class_of(f) for f in dataclasses.fields(inner) if f.name == part), None)
            if inner is None:
                break
        if inner is not None and path[-1] in {field.name for field in dataclasses.fields(inner)}:
            value = typed_value(OmegaConf.select(compose([f"{group}={choice}"], config_name="train"), key))
            lines = [*textwrap.wrap(field_docs(inner).get(path[-1], ""), _WIDTH - 4)]
            lines.append(f"default: {value} with {group}={choice}")
            return "\n    ".join([key, *lines])
    return None


def _class_of(field: "dataclasses.Field[Any]") -> Any:
    """The dataclass of a field that holds settings; None for other fields."""
    return field.default_factory if dataclasses.is_dataclass(field.default_factory) else None


def _explain_group(group: str) -> str:
    """The choices of a group with a line each, and its settings."""
    lines = [f"{dotted(group)}=", "", "Choices:"]
    for choice in all_choices()[group]:
        lines += _entry(choice, choice_summary(group, choice))
    names = settings_of(group)
    if names:
        lines += ["", f"Settings, typed {dotted(group)}.NAME=VALUE:"]
    for name in names:
        having = meanings(group, name)
        lines += _entry(name, having[0].text if having else "")
    return "\n".join(lines)


def _explain_choice(group: str, choice: str) -> str:
    """A choice with the values of its settings."""
    if choice not in all_choices()[group]:
        raise ConfigError(no_choice(f"{dotted(group)}={choice}", all_choices()[group]))
    command = "train" if group.split("/")[0] in default_choices("train") else "eval"
    lines = [f"{dotted(group)}={choice}", *(f"    {line}" for line in textwrap.wrap(choice_summary(group, choice), 96))]
    if group not in SPANNING:
        node = OmegaConf.select(compose([f"{group}={choice}"], config_name=command), dotted(group))
        lines += ["", *_values(node, f"{dotted(group)}.")]
    elif file := find_file(f"{group}/{choice}.yaml"):
        lines += ["", *(f"    {line}" for line in read_config_file(file).splitlines())]
    return "\n".join(lines)


def _values(node: DictConfig, path: str) -> list[str]:
    """``key=value`` of every setting of a node, those inside it included."""
    lines = []
    for key in map(str, node):
        value = None if OmegaConf.is_missing(node, key) else node[key]
        if isinstance(value, DictConfig):
            lines += _values(value, f"{path}{key}.")
        else:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            lines.append(f"    {path}{key}={typed_value(plain)}")
    return lines


def choice_summary(group: str, choice: str) -> str:
    """The meaning of a choice: the comment at the top of its file, or the docstring of its schema."""
    file = find_file(f"{group}/{choice}.yaml")
    comments: list[str] = []
    for line in read_config_file(file).splitlines() if file else []:
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            comments.append(line.lstrip("# "))
    return " ".join(comments) or choice_text(group, choice)


def _overview() -> str:
    """All groups, and the settings outside them."""
    lines = ["Groups, typed GROUP=CHOICE (headcount explain GROUP lists the choices):", ""]
    for group, choices in all_choices().items():
        lines += _entry(dotted(group), ", ".join(choices) if len(choices) < 12 else f"{len(choices)} choices")
    lines += ["", "Settings outside the groups, typed NAME=VALUE:", ""]
    for name in settings_of(""):
        found = meanings("", name)
        lines += _entry(name, found[0].text if found else "")
    return "\n".join(lines)


def _entry(name: str, text: str) -> Sequence[str]:
    """``name   text``, with the text wrapped in a column of its own."""
    if not text:
        return [f"  {name}"]
    return textwrap.fill(f"  {name:<21} {text}", _WIDTH, subsequent_indent=" " * 24, break_on_hyphens=False).split("\n")
