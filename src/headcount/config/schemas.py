"""Every kind of every config group: registered with Hydra, written as plain values, and read back."""

import dataclasses
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.config.augment import AugmentConfig
from headcount.config.bins import AutoBinsConfig, BinsConfig, BlocksConfig, BlockwiseConfig, GivenBinsConfig
from headcount.config.counting import EvalConfig, SlidingWindowConfig, WholeImageConfig
from headcount.config.dataset import (
    CustomConfig,
    FolderDatasetConfig,
    MixedConfig,
    SyntheticConfig,
    TrainedDatasetConfig,
    UcfCc50Config,
)
from headcount.config.head import HEADS
from headcount.config.loss import KERNELS, LOSSES, TRANSPORTS
from headcount.config.method import RankingConfig, SupervisedConfig
from headcount.config.model import MODELS
from headcount.config.optim import OptimConfig
from headcount.config.run import EvalCommandConfig, RuntimeConfig, TrainConfig
from headcount.config.upgrade import upgrade_config
from headcount.errors import ConfigError
from headcount.extensions import CONFIGS, load_extensions

# The YAML file of a choice names its kind in its defaults list. A nested group follows the group that contains it.
SCHEMAS: dict[str, dict[str, Any]] = {
    "dataset": {
        "folder": FolderDatasetConfig,
        "ucf_cc_50": UcfCc50Config,
        "custom": CustomConfig,
        "synthetic": SyntheticConfig,
        "mixed": MixedConfig,
    },
    "method": {"supervised": SupervisedConfig, "ranking": RankingConfig},
    "model": MODELS,
    "model/head": HEADS,
    "bins": {
        "bins": BinsConfig,
        "given": GivenBinsConfig,
        "auto": AutoBinsConfig,
        "blockwise": BlockwiseConfig,
        "none": BlocksConfig,
    },
    "augment": {"ebc": AugmentConfig},
    "loss": LOSSES,
    "loss/transport": TRANSPORTS,
    "loss/kernel": KERNELS,
    "optim": {"optim": OptimConfig},
    "eval": {"auto": EvalConfig, "whole_image": WholeImageConfig, "sliding_window": SlidingWindowConfig},
    "runtime": {"runtime": RuntimeConfig},
}
"""Path of a Hydra config group -> kind -> dataclass."""
# Where the kinds of a mixed dataset's parts are recorded.
_PARTS = "dataset/datasets/"


@cache  # once per process: tables compose hundreds of configs
def register_schemas() -> None:
    """Store every schema where the YAML files find it: ``/schema/<group>/<kind>``."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=_node("", TrainConfig))
    store.store(group="schema", name="eval", node=EvalCommandConfig)
    # The default of eval.yaml; not one of SCHEMAS, because nothing can be trained on it.
    store.store(group="dataset", name="as_trained", node=TrainedDatasetConfig)
    for group, schemas in SCHEMAS.items():
        for kind, schema in schemas.items():
            store.store(group=f"schema/{group}", name=kind, node=_node(group, schema))
    load_extensions(CONFIGS)


def _node(group: str, schema: type) -> DictConfig:
    """The schema for Hydra, with the config groups inside it left to the defaults list."""
    node: DictConfig = OmegaConf.structured(schema)
    for name in _default_kinds(group, schema):
        node[name] = MISSING  # OmegaConf merges a kind into its base, but not into another kind
    return node


def register(group: str, name: str, schema: type) -> None:
    """Add a choice to a config group from outside this package; ``group=name`` then selects it without a YAML file.

    Registering the same schema again changes nothing.

    Args:
        group: path of the group, one of :data:`SCHEMAS`, such as ``loss`` or ``model/head``.
        name: what selects the choice, and the kind that checkpoints record.
        schema: a dataclass derived from the group's base, with a default for every field.

    Raises:
        ConfigError: if there is no such group, or the name belongs to another schema.
    """
    if group not in SCHEMAS:
        raise ConfigError(f"{group}: no such config group; allowed are {', '.join(SCHEMAS)}")
    taken = SCHEMAS[group].get(name)
    if taken is not None and taken is not schema:
        raise ConfigError(f"{group}={name}: is already the name of {taken.__module__}.{taken.__qualname__}")
    SCHEMAS[group][name] = schema
    nested = [{item: kind} for item, kind in _default_kinds(group, schema).items()]
    store = ConfigStore.instance()
    store.store(group=f"schema/{group}", name=name, node=_node(group, schema))
    store.store(group=group, name=name, node={"defaults": [f"/schema/{group}/{name}@_here_", *nested, "_self_"]})


def _default_kinds(group: str, schema: type) -> dict[str, str]:
    """Field -> kind of its default, for the fields of ``schema`` that are config groups of their own."""
    found = {}
    for item in dataclasses.fields(schema):
        path = f"{group}/{item.name}".removeprefix("/")
        if path in SCHEMAS and item.default_factory is not dataclasses.MISSING:
            found[item.name] = _kind(path, item.default_factory())
    return found


def _kind(group: str, config: Any) -> str:
    """The kind under which the schema of ``config`` is registered."""
    for kind, schema in SCHEMAS[group].items():
        if schema is type(config):
            return kind
    known = ", ".join(SCHEMAS[group])
    raise ConfigError(
        f"{group}: {type(config).__name__} is not registered (headcount.config.register); there are {known}"
    )


def kinds(config: TrainConfig) -> dict[str, str]:
    """Path of each config group -> the kind that ``config`` uses; a nested group only where its parent has one."""
    found = {}
    for group in SCHEMAS:
        node: Any = config
        for part in group.split("/"):
            node = getattr(node, part, None)
        if node is not None:
            found[group] = _kind(group, node)
    if isinstance(config.dataset, MixedConfig):
        found |= {f"{_PARTS}{name}": _kind("dataset", part) for name, part in config.dataset.datasets.items()}
    return found


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, with the kind of each group, for a checkpoint or a file.

    Raises:
        ConfigError: if a part of it is of a kind that is not registered.
    """
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)  # type: ignore[assignment]
    return {"kinds": kinds(config), **plain}


def from_plain(plain: dict[str, Any]) -> TrainConfig:
    """The config that :func:`to_plain` wrote, in this version or an earlier one; ``plain`` is not changed.

    A key that was added since takes its default. Nothing in ``plain`` is resolved: a file may come from anywhere.

    Raises:
        ConfigError: if this version knows no such key, value or kind, or a value refers to another one or to the
            environment.
    """
    load_extensions(CONFIGS)
    _refuse_other_values(plain)
    try:
        plain = upgrade_config(plain)
        values = {key: value for key, value in plain.items() if key != "kinds"}
        config = OmegaConf.structured(TrainConfig)
        for group in sorted(plain["kinds"], key=lambda path: path.count("/")):
            schema_group = "dataset" if group.startswith(_PARTS) else group
            node = SCHEMAS[schema_group][plain["kinds"][group]]
            OmegaConf.update(config, group.replace("/", "."), OmegaConf.structured(node), merge=False)
        return OmegaConf.to_object(OmegaConf.merge(config, values))  # type: ignore[return-value]
    except (OmegaConfBaseException, LookupError, TypeError, AttributeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"this configuration was written by another version of headcount: {first}") from error


# The largest config has about 150 values. A file may refer to one list a thousand times, and in it to another.
_MAX_VALUES = 10_000


def _refuse_other_values(plain: Any) -> None:
    """Refuse what :func:`to_plain` never writes.

    Raises:
        ConfigError: if a value is not plain, holds an interpolation, or there are far too many.
    """
    waiting: list[tuple[str, Any]] = [("", plain)]
    for _ in range(_MAX_VALUES):
        if not waiting:
            return
        key, value = waiting.pop()
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            waiting += [(f"{key}.{name}".removeprefix("."), item) for name, item in value.items()]
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, str) and "${" in value:
            raise ConfigError(f"{key}={value}: holds an interpolation, which is never resolved from a file")
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise ConfigError(f"{key}: holds a number above {2**63}")
        elif not isinstance(value, (str, int, float, type(None))):
            raise ConfigError(f"{key or 'the configuration'}: holds a {type(value).__name__}, not a plain value")
    raise ConfigError(f"the configuration holds more than {_MAX_VALUES} values")
