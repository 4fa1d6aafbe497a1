"""The parts of a mixed dataset, as they are typed."""

import pytest

from headcount.cli.compose import checked_config
from headcount.cli.name import run_name
from headcount.config import Cache, ConfigError, CustomConfig, FolderDatasetConfig, MixedConfig, from_plain, to_plain
from headcount.runs import recipe


def mixed(*overrides: str) -> MixedConfig:
    config = checked_config(["dataset=mixed", *overrides], config_name="train").dataset
    assert isinstance(config, MixedConfig)
    return config


def test_settings_of_the_mixture_apply_to_the_parts_without_their_own() -> None:
    parts = "dataset.parts=[sha,{name: qnrf, holdout: 0.0, min_side: 64, root: /x},synthetic]"
    config = mixed(parts, "dataset.holdout=0.2", "dataset.cache=decoded")
    sha, qnrf, synthetic = config.datasets.values()
    assert isinstance(sha, FolderDatasetConfig)
    assert isinstance(qnrf, FolderDatasetConfig)
    assert config.parts == ["sha", "qnrf", "synthetic"] == list(config.datasets)
    assert (sha.name, sha.holdout, sha.max_side, sha.cache) == ("sha", 0.2, 4096, Cache.decoded)
    assert (qnrf.name, qnrf.holdout, qnrf.min_side, qnrf.max_side, qnrf.root) == ("qnrf", 0.0, 64, 2048, "/x")
    assert (synthetic.name, synthetic.holdout) == ("synthetic", 0.2)


@pytest.mark.slow
def test_two_folders_of_own_images_are_two_parts_and_a_checkpoint_keeps_them() -> None:
    typed = [
        "dataset=mixed",
        "dataset.parts=[{name: custom, as: a, root: /a},{name: custom, as: b, root: /b},sha]",
        "dataset.weights=[1,2.5,1]",
    ]
    config = checked_config(typed, config_name="train")
    assert [(part.name, getattr(part, "root", "")) for part in config.dataset.datasets.values()] == [
        ("custom", "/a"),
        ("custom", "/b"),
        ("sha", None),
    ]
    assert isinstance(config.dataset.datasets["b"], CustomConfig)
    assert from_plain(to_plain(config)) == config
    kept = recipe(config)
    assert kept["dataset.datasets.a.root"] == "/a"
    assert "dataset.datasets.sha.root" not in kept
    assert "dataset.datasets.sha.cache_dir" not in kept


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "has no parts; name them, as in 'dataset.parts=[sha,shb]'"),
        (["dataset.parts=[]"], "has no parts"),
        (["dataset.parts=sha"], "dataset.parts=sha: dataset.parts takes a list"),
        (["dataset.parts=[sha,shc]"], "there is no dataset 'shc'; allowed are custom, jhu, "),
        (["dataset.parts=[mixed]"], "there is no dataset 'mixed'"),
        (["dataset.parts=[{root: /x}]"], "there is no dataset None"),
        (["dataset.parts=[sha,sha]"], "sha occurs twice; name each part once, or give a second one another name"),
        (["dataset.parts=[{name: sha, as: a/b}]"], "the name 'a/b' may only hold letters, digits, '_' and '-'"),
        (["dataset.parts=[{name: sha, min_sid: 3}]"], "part sha: dataset=sha has no min_sid; allowed are as, cache, "),
        (["dataset.parts=[{name: sha, min_side: big}]"], "part sha: min_side: big: "),
        (["dataset.parts=[{name: sha, min_side: 30}]"], "part sha: dataset.min_side=30: must be a multiple of"),
        (["dataset.parts=[{name: sha, holdout: 2}]"], "part sha: dataset.holdout=2.0: must be from 0 to 0.9"),
        (["dataset.parts=[{name: sha, one_head_per_pixel: true}]"], "is set for all parts together"),
        (
            ["dataset.parts=[sha,shb]", "dataset.weights=[1]"],
            "has 1 numbers for 2 parts; give one for each of sha, shb",
        ),
        (["dataset.parts=[sha,shb]", "dataset.weights=[1,0]"], "dataset.weights=[1,0]: each number must be from 0.001"),
        (["dataset.parts=[sha,shb]", "dataset.weights=[1,-1]"], "each number must be from 0.001"),
        (["dataset.parts=[sha]", "dataset.bins_from=shb"], "dataset.bins_from=shb: is no part; allowed are sha"),
        (["dataset.parts=[sha]", "dataset.bins_from=sha", "bins=blockwise"], "dataset.bins_from=sha: has no effect"),
        (["dataset.parts=[sha]", "dataset.root=/x"], "dataset.root=/x: dataset has no root"),
    ],
)
def test_invalid_parts_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        mixed(*overrides)
    assert message in str(error.value)


def test_the_name_of_a_run_has_its_parts_but_not_their_folders() -> None:
    assert run_name(["dataset=mixed", "dataset.parts=[sha,shb]"]) == "tiny_fine_dataset.parts-sha-shb"
    own = "dataset.parts=[sha,{name: custom, as: plaza, root: /x, min_side: 64}]"
    assert run_name(["dataset=mixed", own]) == "tiny_fine_dataset.parts-sha-plaza+custom+min_side-64"
