"""Groups, nested groups, and choices that are added from outside."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hydra.core.config_store import ConfigStore

from headcount.config import (
    SCHEMAS,
    AdaptiveKernelConfig,
    ConfigError,
    DaceConfig,
    HeadConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
    MseConfig,
    RegressionHeadConfig,
    StableTransportConfig,
    TrainConfig,
    TransportConfig,
    check,
    from_plain,
    kinds,
    register,
    to_plain,
)

Compose = Callable[..., TrainConfig]


@dataclass
class ToyHeadConfig(HeadConfig):
    """A head that predicts one number per image."""

    name: str = "toy"
    width: int = 3


@dataclass
class ToyModelConfig(ModelConfig):
    """A model whose default head is not the usual one."""

    names: ClassVar[dict[str, int | None]] = {"toy": 8}
    name: str = "toy"
    head: HeadConfig = field(default_factory=RegressionHeadConfig)


@dataclass
class ToyTransportConfig(TransportConfig):
    """A transport without iterations."""

    steps: int = 3


@dataclass
class ToyMethodConfig(MethodConfig):
    """Another method."""

    name: str = "toy"
    crops: int = 4


@dataclass
class ToyLossConfig(LossConfig):
    """Compares one number per image."""

    compares: ClassVar[frozenset[str]] = frozenset({"count"})
    name: str = "toy"


@pytest.fixture
def toys() -> Iterator[None]:
    """Toy choices, registered for one test."""
    schemas = {group: dict(choices) for group, choices in SCHEMAS.items()}
    register("model/head", "toy", ToyHeadConfig)
    register("model", "toy", ToyModelConfig)
    register("loss/transport", "toy", ToyTransportConfig)
    register("method", "toy", ToyMethodConfig)
    register("loss", "toy", ToyLossConfig)
    yield
    store = ConfigStore.instance()
    for group, choices in SCHEMAS.items():
        for name in choices.keys() - schemas[group].keys():
            del choices[name]
            for path in (f"schema/{group}", group):
                node = store.repo
                for part in path.split("/"):
                    node = node[part]
                del node[f"{name}.yaml"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"model/head": "ebc", "loss/transport": "released", "method": "supervised"}),
        (["model/head=regression", "bins=none", "loss=dm"], {"model/head": "regression", "bins": "none"}),
        (["model=clip_vit_b16", "model/head=regression"], {"model": "clip_vit", "model/head": "regression"}),
        (["loss/transport=stable", "loss.transport.tolerance=1e-3"], {"loss/transport": "stable"}),
        (["loss=mse", "loss/kernel=adaptive", "loss.kernel.beta=0.5"], {"loss": "mse", "loss/kernel": "adaptive"}),
        (["experiment=table1/csrnet_nwpu"], {"model/head": "regression", "loss/kernel": "fixed"}),
    ],
)
def test_nested_groups_are_chosen_and_survive_plain_values(
    overrides: list[str], expected: dict[str, str], compose: Compose
) -> None:
    config = compose(*overrides)
    assert kinds(config).items() >= expected.items()
    assert from_plain(to_plain(config)) == config


def test_a_loss_without_a_nested_group_has_no_kind_of_it(compose: Compose) -> None:
    assert not [group for group in kinds(compose("loss=cross_entropy")) if group.startswith("loss/")]
    assert "loss/transport" not in kinds(compose("loss=mse"))


def test_settings_of_a_nested_group_reach_it(compose: Compose) -> None:
    loss = compose("loss/transport=stable", "loss.transport.tolerance=1e-3", "loss.transport.iterations=7").loss
    assert isinstance(loss, DaceConfig)
    assert loss.transport == StableTransportConfig(iterations=7, tolerance=1e-3)
    smoothed = compose("loss=mse", "loss/kernel=adaptive", "loss.kernel.neighbors=2").loss
    assert isinstance(smoothed, MseConfig)
    assert smoothed.kernel == AdaptiveKernelConfig(neighbors=2)


@pytest.mark.usefixtures("toys")
def test_registered_choices_compose_without_a_yaml_file(compose: Compose) -> None:
    config = compose("model/head=toy", "model.head.width=5", "method=toy", "method.crops=2", "loss/transport=toy")
    assert config.model.head == ToyHeadConfig(width=5)
    assert config.method == ToyMethodConfig(crops=2)
    assert isinstance(config.loss, DaceConfig)
    assert config.loss.transport == ToyTransportConfig()
    assert from_plain(to_plain(config)) == config


@pytest.mark.usefixtures("toys")
def test_a_registered_model_has_the_groups_inside_it(compose: Compose) -> None:
    assert compose("model=toy").model == ToyModelConfig(head=RegressionHeadConfig())
    config = compose("model=toy", "model/head=toy")
    assert config.model == ToyModelConfig(head=ToyHeadConfig())
    assert from_plain(to_plain(config)) == config


@pytest.mark.usefixtures("toys")
def test_a_registered_head_is_checked_by_what_it_predicts(compose: Compose) -> None:
    assert check(compose("model/head=toy", "bins=none", "loss=toy")) == []
    assert check(compose("model/head=toy", "bins=none", "loss=dm")) == [
        "loss=dm: compares blocks, and model.head=toy predicts count; choose loss=toy"
    ]
    assert check(compose("model/head=toy", "loss=dm")) == [
        "model.head=toy: predicts counts without bins; add bins=none loss=toy"
    ]


@pytest.mark.usefixtures("toys")
def test_registering_again_is_allowed_for_the_same_schema_only() -> None:
    register("model/head", "toy", ToyHeadConfig)
    with pytest.raises(ConfigError, match=r"model/head=toy: is already the name of .*ToyHeadConfig"):
        register("model/head", "toy", RegressionHeadConfig)


def test_names_and_groups_of_this_package_are_protected() -> None:
    with pytest.raises(ConfigError, match=r"model/head=ebc: is already the name of headcount\.config\.head"):
        register("model/head", "ebc", ToyHeadConfig)
    with pytest.raises(ConfigError, match="heads: no such config group; allowed are dataset, method, model"):
        register("heads", "toy", ToyHeadConfig)


def test_a_kind_that_is_not_registered_is_refused(compose: Compose) -> None:
    config = compose()
    config.model.head = ToyHeadConfig()
    with pytest.raises(ConfigError, match=r"model/head: ToyHeadConfig is not registered .* there are ebc, regression"):
        to_plain(config)
