"""Every kind of every group: registered with Hydra, written as plain values, and read back."""

from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.config.augment import AugmentConfig
from headcount.config.bins import BinsConfig, BlocksConfig, BlockwiseConfig
from headcount.config.counting import EvalConfig, SlidingWindowConfig, WholeImageConfig
from headcount.config.dataset import CustomConfig, FolderDatasetConfig, SyntheticConfig, UcfCc50Config
from headcount.config.loss import CrossEntropyConfig, DaceConfig, DmConfig, MseConfig
from headcount.config.model import (
    ClipResNetConfig,
    ClipViTConfig,
    ImageNetConfig,
    MobileNetV2Config,
    ModelConfig,
    TimmConfig,
    TinyConfig,
)
from headcount.config.optim import OptimConfig
from headcount.config.run import EvalCommandConfig, RuntimeConfig, TrainConfig
from headcount.errors import ConfigError

MODELS: dict[str, type[ModelConfig]] = {
    "tiny": TinyConfig,
    "mobilenet_v2": MobileNetV2Config,
    "imagenet": ImageNetConfig,
    "timm": TimmConfig,
    "clip_resnet": ClipResNetConfig,
    "clip_vit": ClipViTConfig,
}


# Every kind of every group. The YAML of a choice names its kind in its defaults list.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {
        "folder": FolderDatasetConfig,
        "ucf_cc_50": UcfCc50Config,
        "custom": CustomConfig,
        "synthetic": SyntheticConfig,
    },
    "model": {**MODELS},
    "bins": {"bins": BinsConfig, "blockwise": BlockwiseConfig, "none": BlocksConfig},
    "augment": {"ebc": AugmentConfig},
    "loss": {"dace": DaceConfig, "cross_entropy": CrossEntropyConfig, "dm": DmConfig, "mse": MseConfig},
    "optim": {"optim": OptimConfig},
    "eval": {"auto": EvalConfig, "whole_image": WholeImageConfig, "sliding_window": SlidingWindowConfig},
    "runtime": {"runtime": RuntimeConfig},
}


@cache  # once a process: tables compose hundreds of configs
def register_schemas() -> None:
    """Put every schema where the YAML files find it: ``/schema/<group>/<kind>``."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig)
    store.store(group="schema", name="eval", node=EvalCommandConfig)
    for group, kinds in SCHEMAS.items():
        for kind, node in kinds.items():
            store.store(group=f"schema/{group}", name=kind, node=node)


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, with the kind of each group, for a checkpoint or a file."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)  # type: ignore[assignment]
    kinds = {}
    for group, schemas in SCHEMAS.items():
        node_type = type(getattr(config, group))
        kinds[group] = next(kind for kind, schema in schemas.items() if schema is node_type)
    return {"kinds": kinds, **plain}


def from_plain(plain: dict[str, Any]) -> TrainConfig:
    """The config that :func:`to_plain` wrote.

    Raises:
        ConfigError: if a key or value is none of this version's.
    """
    values = {k: v for k, v in plain.items() if k != "kinds"}
    try:
        config = OmegaConf.structured(TrainConfig)
        for group, kind in plain["kinds"].items():
            config[group] = OmegaConf.structured(SCHEMAS[group][kind])
        return OmegaConf.to_object(OmegaConf.merge(config, values))  # type: ignore[return-value]
    except (OmegaConfBaseException, KeyError) as error:
        raise ConfigError(f"this configuration was written by another version of headcount: {error}") from error
