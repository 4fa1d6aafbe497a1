"""Every private interface of Hydra and OmegaConf that is used does what it is used for, in the installed version."""

import sys
from enum import Enum
from typing import Any

import hydra
import omegaconf
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from headcount.cli import hydra_private
from headcount.cli.compose import config_dir
from headcount.config import Border, EvalCommandConfig, SlidingWindowConfig, SyntheticConfig

HYDRA = f"hydra-core {hydra.__version__} changed what headcount/cli/hydra_private.py uses: "
OMEGACONF = f"omegaconf {omegaconf.__version__} changed what headcount/cli/hydra_private.py uses: "


def test_hydra_reads_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2", "optim.lr=1", "--cfg", "job"])
    arguments = hydra_private.command_line()
    assert arguments.overrides == ["seed=1,2", "optim.lr=1"], f"{HYDRA}_internal.utils.get_args_parser, overrides"
    assert arguments.multirun is True, f"{HYDRA}_internal.utils.get_args_parser, multirun"
    for flag in ("help", "hydra_help", "shell_completion", "info", "cfg"):
        assert hasattr(arguments, flag), f"{HYDRA}_internal.utils.get_args_parser, {flag}"


def test_hydra_is_initialized_again_after_a_reset() -> None:
    for _ in range(2):  # the second time raises without the reset
        hydra_private.reset()
        hydra.initialize_config_dir(str(config_dir()), version_base="1.3")
    hydra_private.reset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=1e-3", {"key_or_group": "optim.lr", "value": 1e-3, "sweep": False, "added": False}),
        ("+speed=1", {"key_or_group": "speed", "value": 1, "sweep": False, "added": True}),
        ("model/head=a", {"key_or_group": "model/head", "value": "a", "sweep": False, "added": False}),
    ],
)
def test_hydra_parses_an_override(text: str, expected: dict[str, Any]) -> None:
    override = hydra_private.parse(text)
    found = {
        "key_or_group": override.key_or_group,
        "value": override.value(),
        "sweep": override.is_sweep_override(),
        "added": override.is_add() or override.is_force_add(),
    }
    assert found == expected, f"{HYDRA}core.override_parser"
    assert override.input_line == text, f"{HYDRA}core.override_parser.types.Override.input_line"


def test_hydra_lists_the_values_of_a_sweep_and_refuses_what_is_no_override() -> None:
    override = hydra_private.parse("seed=range(1,3)")
    assert override.is_sweep_override(), f"{HYDRA}Override.is_sweep_override"
    assert list(override.sweep_string_iterator()) == ["1", "2"], f"{HYDRA}Override.sweep_string_iterator"
    assert override.get_key_element() == "seed", f"{HYDRA}Override.get_key_element"
    assert hydra_private.parse("~loss").is_delete(), f"{HYDRA}Override.is_delete"
    with pytest.raises(HydraException):
        hydra_private.parse("optim.lr=[1")


def test_omegaconf_has_the_declared_type_of_a_node() -> None:
    node = OmegaConf.structured(SlidingWindowConfig)
    window = hydra_private.declared_type(hydra_private.child(node, "window"))
    assert (window.type, window.optional) == (int, True), f"{OMEGACONF}Node._metadata, _get_node"
    border = hydra_private.declared_type(hydra_private.child(node, "border"))
    assert border.type is Border, f"{OMEGACONF}Node._metadata.ref_type"
    assert issubclass(border.type, Enum)


def test_omegaconf_knows_null_groups_and_full_keys() -> None:
    cfg = OmegaConf.structured(EvalCommandConfig(dataset=SyntheticConfig()))
    inner = hydra_private.child(cfg, "dataset")
    assert not hydra_private.is_null(inner), f"{OMEGACONF}DictConfig._is_none"
    assert hydra_private.full_key(inner, "name") == "dataset.name", f"{OMEGACONF}DictConfig._get_full_key"
    cfg.dataset = None
    assert hydra_private.is_null(hydra_private.child(cfg, "dataset")), f"{OMEGACONF}DictConfig._is_none"
