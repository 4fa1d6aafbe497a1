"""The parts of a mixed dataset: each name in ``dataset.parts`` becomes the settings of its file and what was typed."""

import dataclasses
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from headcount.cli.choices import all_choices, default_dataset, nearest
from headcount.config import ConfigError, MixedConfig
from headcount.wording import one_line

# Settings of the mixture that a part of the same field does not take over.
_OWN = ("name", "parts", "weights", "bins_from", "datasets")


def expand_parts(cfg: DictConfig) -> None:
    """Fill in ``dataset.datasets`` of a composed config from its ``dataset.parts``, if it is of a mixed dataset.

    A part has the settings of ``configs/dataset/<name>.yaml``, those of the mixture that are not at their default, and
    its own, the later ones winning.

    Raises:
        ConfigError: if a part does not exist, occurs twice, or has an invalid setting.
    """
    mixed = OmegaConf.select(cfg, "dataset")
    if not isinstance(mixed, DictConfig) or OmegaConf.get_type(mixed) is not MixedConfig:
        return
    entries: Any = OmegaConf.to_container(mixed.parts, resolve=True)
    parts: dict[str, DictConfig] = {}
    for entry in entries:
        settings = dict(entry) if isinstance(entry, dict) else {"name": entry}
        choice = settings.pop("name", None)
        name = str(settings.pop("as", choice))
        allowed = [other for other in all_choices()["dataset"] if other != MixedConfig.name]
        if choice not in allowed:
            raise ConfigError(
                f"dataset.parts: there is no dataset {choice!r}; allowed are {', '.join(allowed)}"
                f"{nearest(str(choice), allowed)}"
            )
        if name in parts:
            raise ConfigError(
                f"dataset.parts: {name} occurs twice; name each part once, or give a second one another name: "
                f"{{name: {choice}, as: NAME, ...}}"
            )
        parts[name] = _part(str(choice), name, _shared(mixed), settings)
    with open_dict(mixed):
        mixed.parts = list(parts)
        mixed.datasets = parts


def _shared(mixed: DictConfig) -> dict[str, Any]:
    """The settings of the mixture that apply to its parts: those that are not at their default."""
    fields = [item for item in dataclasses.fields(MixedConfig) if item.name not in _OWN]
    return {item.name: mixed[item.name] for item in fields if mixed[item.name] != item.default}


def _part(choice: str, name: str, shared: dict[str, Any], own: dict[str, Any]) -> DictConfig:
    node: DictConfig = OmegaConf.structured(default_dataset(choice))
    for key, value in shared.items():
        if key in node:
            node[key] = value
    allowed = sorted(key for key in map(str, node) if key != "name")
    for key, value in own.items():
        if key not in allowed:
            raise ConfigError(
                f"dataset.parts, part {name}: dataset={choice} has no {key}; allowed are as, {', '.join(allowed)}"
                f"{nearest(str(key), allowed)}"
            )
        try:
            node[key] = value
        except OmegaConfBaseException as error:
            problem = one_line(str(error).split("\n    full_key:")[0])
            raise ConfigError(f"dataset.parts, part {name}: {key}: {value}: {problem}") from error
    return node
