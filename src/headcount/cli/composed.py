"""What Hydra composes, kept for the process: a command needs some compositions several times, and each takes 0.15 s.

Configs that differ in values alone share the composition of their choices.
"""

import copy
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from headcount.cli import hydra_private
from headcount.cli.choices import all_choices, config_dir, user_files
from headcount.cli.search_path import search_own_configs
from headcount.config import SCHEMAS, register_schemas

# Number of compositions that are kept; each takes less than 1 MB.
_MAX_KEPT = 128


def composed(config_name: str, texts: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """The config that Hydra composes; a copy, which may be changed.

    Args:
        config_name: ``train`` or ``eval``, the file in configs/ with the defaults.
        texts: settings in Hydra's own spelling.
        with_hydra: keep Hydra's own settings, and its choices, in the node ``hydra``.

    Raises:
        COMPOSING_ERRORS: of ``cli.explain``, if Hydra cannot compose it.
    """
    registered = tuple((group, *kinds.items()) for group, kinds in SCHEMAS.items())
    values: list[hydra_private.Override] = []
    if not with_hydra:
        groups = all_choices()
        parsed = [(text, hydra_private.parse(text)) for text in texts]
        choices = [text for text, override in parsed if _is_choice(override, groups)]
        found = [override for _, override in parsed if _is_value(override, groups)]
        if len(choices) + len(found) == len(texts):  # Hydra applies anything else in the order typed
            texts, values = choices, found
    cfg = copy.deepcopy(_compose(user_files(), config_name, tuple(texts), with_hydra, registered))
    for override in values:  # as Hydra does at the end of a composition
        OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
    return cfg


def _is_value(override: hydra_private.Override, groups: Collection[str]) -> bool:
    """Whether an override sets one value of a config, rather than choosing, adding, removing or listing something."""
    key = override.key_or_group
    is_own = "/" not in key and key.split(".")[0] != "hydra"
    return _is_plain(override) and is_own and key not in groups


def _is_choice(override: hydra_private.Override, groups: Collection[str]) -> bool:
    """Whether an override chooses a file or a schema of a group."""
    return _is_plain(override) and override.key_or_group in groups and isinstance(override.value(), str)


def _is_plain(override: hydra_private.Override) -> bool:
    added = override.is_add() or override.is_force_add() or override.is_delete()
    return not added and override.package is None and not override.is_sweep_override()


@lru_cache(_MAX_KEPT)
def _compose(
    own: tuple[tuple[str, int], ...],
    config_name: str,
    texts: tuple[str, ...],
    with_hydra: bool,
    registered: tuple[Any, ...],
) -> DictConfig:
    """Compose the files of headcount and the user's ``own`` with the schemas that are ``registered``.

    The result is never changed once it is returned.
    """
    if not with_hydra:
        cfg = copy.deepcopy(_compose(own, config_name, texts, True, registered))
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg
    register_schemas()
    search_own_configs()
    hydra_private.reset()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(config_name, list(texts), return_hydra_config=True)
