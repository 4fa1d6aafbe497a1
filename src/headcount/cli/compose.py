"""Compose the settings that were typed into a typed config, or refuse them with our own explanation.

Hydra's own messages do not list what is allowed.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from headcount.cli.choices import command_choices, config_dir, no_choice
from headcount.cli.composed import composed
from headcount.cli.explain import COMPOSING_ERRORS, FIXED_NAMES, explain_invalid_setting, reason, value_problem
from headcount.cli.overrides import Setting, parse, show_typed
from headcount.cli.parts import expand_parts
from headcount.config import ConfigError, HeadcountError, TrainConfig, check, check_evaluation

__all__ = ["checked_config", "chosen", "compose", "config_dir", "refuse", "to_config"]


def compose(overrides: Sequence[str], *, config_name: str) -> DictConfig:
    """The config that Hydra composes of ``overrides``.

    Args:
        overrides: ``key=value`` as typed.
        config_name: ``train`` or ``eval``, the file in configs/ with the defaults.

    Raises:
        ConfigError: names the key, the value, what is allowed, and the nearest match.
    """
    settings = parse(overrides)
    groups = command_choices(config_name)
    for setting in settings:  # Hydra would merge a dictionary into the group
        if setting.key in groups and not setting.is_sweep and not isinstance(setting.value, str):
            raise ConfigError(no_choice(setting.typed, groups[setting.key]))
    try:
        cfg = composed(config_name, [setting.text for setting in settings])
    except COMPOSING_ERRORS as error:
        raise ConfigError(explain_invalid_setting(settings, error, config_name)) from error
    for setting in settings:
        if setting.key.startswith("hydra"):
            _refuse_unknown_reference(setting, config_name)
        elif setting.key not in groups and (problem := value_problem(cfg, setting)):
            raise ConfigError(problem)
    if any(setting.key in FIXED_NAMES for setting in settings):
        _refuse_other_names(cfg, composed(config_name, [s.text for s in settings if s.key in groups]))
    return cfg


def chosen(settings: Sequence[Setting], *, config_name: str) -> dict[str, str]:
    """Group -> choice of a composition, nested groups included; what was not typed comes from the defaults."""
    cfg = composed(config_name, [setting.text for setting in settings], with_hydra=True)
    return {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}


def to_config(cfg: DictConfig) -> Any:
    """The typed config of a composed one.

    Raises:
        ConfigError: if a setting is missing, or refers to what does not exist.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise ConfigError(f"{missing[0]} is not set: type {missing[0]}=...")
        expand_parts(cfg)
        return OmegaConf.to_object(cfg)
    except COMPOSING_ERRORS as error:
        if isinstance(error, HeadcountError):
            raise
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'settings'}: {reason(error)}") from error


def checked_config(overrides: Sequence[str], *, config_name: str) -> Any:
    """The typed config of ``overrides``, without errors.

    Args:
        overrides: ``key=value`` as typed.
        config_name: ``train`` or ``eval``.

    Raises:
        ConfigError: lists every error.
    """
    config = to_config(compose(overrides, config_name=config_name))
    refuse(check(config) if isinstance(config, TrainConfig) else check_evaluation(config), overrides, config)
    return config


def refuse(errors: Sequence[str], overrides: Sequence[str], config: Any) -> None:
    """Raise the errors of a config, if there are any, with values as they were typed.

    Raises:
        ConfigError: lists every error.
    """
    if errors:
        raise ConfigError("\n  ".join(show_typed(errors, parse(overrides), config)))


def _refuse_unknown_reference(setting: Setting, config_name: str) -> None:
    """Refuse a setting of Hydra that refers to one that does not exist; others are known only once it runs."""
    if "${" not in setting.text or setting.override.is_sweep_override():
        return
    cfg = composed(config_name, [setting.text], with_hydra=True)
    try:
        OmegaConf.select(cfg, setting.key)
    except InterpolationKeyError as error:
        raise ConfigError(f"{setting.typed}: {reason(error)}") from error
    except COMPOSING_ERRORS:
        return


def _refuse_other_names(cfg: DictConfig, unnamed: DictConfig) -> None:
    """Refuse a name other than the one of the choice: runs would be mistaken for those of another choice."""
    for key in FIXED_NAMES:
        name, fixed = OmegaConf.select(cfg, key), OmegaConf.select(unnamed, key)
        if fixed is not None and name != fixed:  # a choice without a fixed name (model=timm) accepts any
            raise ConfigError(
                f"{key}={_value(name)}: is always {_value(fixed)}; choose another with {key.rpartition('.')[0]}=..."
            )


def _value(value: Any) -> Any:
    """A value as it is typed."""
    return value.name if isinstance(value, Enum) else value
