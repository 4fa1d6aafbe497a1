"""Name a training run by its model, its bins and every setting that differs from the defaults."""

import hashlib
import re
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from headcount.cli.choices import all_choices, default_choices, dotted
from headcount.cli.compose import chosen, compose
from headcount.cli.overrides import Setting, parse
from headcount.config import PLACE
from headcount.files import name_text

MAX_NAME_LENGTH = 120
# Settings that do not change what is learned are not part of a run's name.
_NOT_IN_NAME = (*PLACE, "seed", "eval", "dataset.cv_seed")
# Sizes that a file of weights determines: others are refused, so that the file's name says enough.
_FROM_WEIGHTS = tuple(f"model.{key}" for key in ("embed_dim", "width", "layers", "text_width", "text_layers"))


def run_name(overrides: Sequence[str], *, config_name: str = "train") -> str:
    """The name of a run.

    It contains no '=' (Hydra could not read a checkpoint's path), ',' or '/'. A name of more than
    :data:`MAX_NAME_LENGTH` characters is cut and ends in a hash of the whole.
    """
    groups = all_choices()
    settings = parse(overrides)
    choices = {s.key: str(s.value) for s in settings if s.key in groups and "/" not in s.key}
    default = default_choices(config_name)
    if method := [s for s in settings if s.key == "method"]:  # chooses its own model, bins, loss, ...
        default = chosen(method, config_name=config_name) | {"method": default["method"]}
    # An experiment chooses its own model and bins: its name says which.
    named = [] if "experiment" in choices else ["model", "bins"]
    parts = [choices.get(group, default[group]) for group in named]
    parts += [choices["experiment"]] if "experiment" in choices else []
    for group, choice in sorted(choices.items()):
        if group not in (*named, "experiment", "dataset", "eval", "runtime") and (
            not named or choice != default[group]
        ):
            parts.append(f"{group}-{choice}")
    name = "_".join(parts + _changes(settings, groups, config_name)).replace("/", "-")
    if len(name) > MAX_NAME_LENGTH:
        digest = hashlib.sha256(name_text(name).encode()).hexdigest()[:8]
        name = f"{name[: MAX_NAME_LENGTH - 9]}-{digest}"
    return name


def _changes(settings: Sequence[Setting], groups: dict[str, list[str]], config_name: str) -> list[str]:
    """``key-value`` of the settings and nested choices that differ from what the choices in groups give."""
    full = compose([s.text for s in settings], config_name=config_name)
    base = compose([s.text for s in settings if s.key in groups], config_name=config_name)
    by_default: dict[str, str] = {}
    if any("/" in s.key for s in settings):
        by_default = chosen([s for s in settings if s.key in groups and "/" not in s.key], config_name=config_name)
    has_file = any(s.key == "model.weights" and re.search(r"[./\\]", str(s.value)) for s in settings)
    parts = []
    for setting in sorted(settings, key=lambda s: dotted(s.key)):
        key = dotted(setting.key)
        if any(key == skip or key.startswith(f"{skip}.") for skip in _NOT_IN_NAME):
            continue
        if has_file and key in _FROM_WEIGHTS:
            continue
        if setting.key not in groups:
            value = OmegaConf.select(full, key)
            if value != OmegaConf.select(base, key):
                parts.append(f"{key}-{_slug(_parts(value) if key == 'dataset.parts' else value)}")
        elif "/" in setting.key and setting.value != by_default.get(setting.key):
            parts.append(f"{key}-{setting.value}")
    return parts


def _parts(parts: Any) -> str:
    """The parts of a mixed dataset: their names, and what else was typed of them except for where their files are."""
    shown = []
    for part in parts:
        settings: dict[str, Any] = dict(part) if isinstance(part, DictConfig) else {"name": part}
        name = settings.pop("name", None)
        named = [str(settings.pop("as", name)), *([str(name)] if "as" in part else [])]
        kept = [f"{key}-{value}" for key, value in sorted(settings.items()) if f"dataset.{key}" not in PLACE]
        shown.append("+".join([*named, *kept]))
    return "-".join(shown)


def _slug(value: Any) -> str:
    """A value as part of a name; a hash distinguishes values that lose something, such as a path's folders."""
    value = value.name if isinstance(value, Enum) else str(value)
    plain = value.strip("[]").replace(", ", "-")
    short = re.sub(r"[^A-Za-z0-9._+-]+", "-", Path(plain).stem if "/" in plain else plain)
    return short if short == plain else f"{short}-{hashlib.sha256(name_text(value).encode()).hexdigest()[:6]}"
