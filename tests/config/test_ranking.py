"""``method=ranking``: what it chooses, and the error of every wrong combination."""

from typing import Any

import pytest

from headcount.cli.compose import checked_config, compose, to_config
from headcount.cli.name import run_name
from headcount.config import (
    Algorithm,
    ClipRankingConfig,
    ClipResNetConfig,
    ConfigError,
    Freeze,
    RankingConfig,
    RankingHeadConfig,
    Schedule,
    TrainConfig,
    check,
    from_plain,
    scaled_numbers,
    to_plain,
)
from headcount.config.ranking import errors, group_errors, untrained_errors

NO_FILTERS = ["model.head.scenes=[]", "model.head.parts=[]"]


def config_of(*typed: str) -> TrainConfig:
    config: TrainConfig = to_config(compose(list(typed), config_name="train"))
    return config


@pytest.fixture(scope="module")
def ranking() -> TrainConfig:
    return config_of("method=ranking")


def changed(config: TrainConfig, **values: Any) -> TrainConfig:
    """A copy with settings by their full name, with two underscores for a dot."""
    config = from_plain(to_plain(config))
    for key, value in values.items():
        node: Any = config
        *path, name = key.split("__")
        for part in path:
            node = getattr(node, part)
        setattr(node, name, value)
    return config


def test_the_method_chooses_everything_it_needs(ranking: TrainConfig) -> None:
    assert check(ranking) == []
    assert isinstance(ranking.method, RankingConfig)
    assert isinstance(ranking.model, ClipRankingConfig)
    assert isinstance(ranking.model.head, RankingHeadConfig)
    assert ranking.loss.name == "mmr"
    assert not ranking.bins.has_bins
    assert ranking.batch_size == 1
    assert (ranking.optim.algorithm, ranking.optim.lr) == (Algorithm.radam, 1e-4)
    assert ranking.optim.schedule is Schedule.constant
    assert from_plain(to_plain(ranking)) == ranking
    assert run_name(["method=ranking", "loss=clip"]) == "clip_ranking_none_loss-clip_method-ranking"
    assert run_name(["method=ranking", "loss=mmr"]) == "clip_ranking_none_method-ranking"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["method=ranking", "model=tiny"], "model=tiny: method=ranking compares whole images with sentences"),
        (["method=ranking", "model=clip_vit_b16"], "choose model=clip_ranking"),
        (["method=ranking", "model.head=ebc"], "model.head=ebc: method=ranking needs model.head=ranking"),
        (["method=ranking", "model.head=regression"], "needs model.head=ranking"),
        (
            ["method=ranking", "loss=dm"],
            "needs annotations, and method=ranking reads none; choose loss=mmr or loss=clip",
        ),
        (["method=ranking", "bins=fine"], "model.head=ranking: predicts counts without bins; add bins=none"),
        (["method=ranking", "augment=zoom"], "uses whole images without random changes; choose augment=none"),
        (["method=ranking", "eval=sliding_window"], "choose eval=whole_image"),
        (["method=ranking", "method.crops=10"], "has 6 numbers; every nested crop needs one"),
        (["method=ranking", "model.weights=none"], "add 'model.head.scenes=[]' 'model.head.parts=[]'"),
        (["model=clip_ranking", "bins=none", "loss=mmr"], "method=supervised does not make; add method=ranking"),
        (["loss=mmr"], "loss=mmr: compares nested crops, which method=supervised does not make"),
        (
            ["model.head=ranking", "bins=none", "loss=dm"],
            "belongs to model=clip_ranking, not to tiny",
        ),
    ],
)
def test_choices_that_do_not_belong_together(typed: list[str], message: str) -> None:
    found = check(config_of(*typed))
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model__head__numbers": [20, 55]}, "method.crops=6: model.head.numbers=[20, 55] has 2 numbers"),
        ({"model__head__numbers": [20, 55, 90, 90, 160, 195]}, "must be ascending"),
        ({"model__head__crowd_sizes": [400, 100]}, "model.head.crowd_sizes=[400, 100]: must be ascending"),
        ({"model__head__crowd_sizes": [3, 100]}, "must be ascending, also when they are multiplied"),
        ({"model__head__prompt": "a crowd"}, "must hold {number}, and no other field"),
        ({"model__head__prompt": "{number} of {noun}"}, "must hold {number}, and no other field"),
        ({"model__head__scenes": ["crowd"]}, "name at least two, each once, or none"),
        ({"model__head__parts": ["heads", "legs", "heads", "road"]}, "name at least two, each once, or none"),
        ({"model__head__parts_kept": 6}, "must be below the number of model.head.parts (6)"),
        ({"model__input_size": 200}, "must be a multiple of 16 px for model.encoder=vit_b16; nearest below or at: 192"),
        ({"model__layers": [2, 2]}, "model.layers=[2, 2]: must be 1 whole number above 0"),
        ({"model__prior_bias": True}, "model.head=ranking has no bias"),
        ({"model__quick_gelu": False}, "OpenAI's weights were trained with QuickGELU"),
        ({"augment__flip": 0.5}, "augment.flip=0.5: method=ranking uses whole images"),
    ],
)
def test_settings_that_do_not_fit(ranking: TrainConfig, values: dict[str, Any], message: str) -> None:
    found = check(changed(ranking, **values))
    assert len(found) == 1, found
    assert message in found[0]


def test_parts_that_leave_nothing_to_train(ranking: TrainConfig) -> None:
    frozen = changed(ranking, model__freeze=Freeze.backbone)
    assert any("leaves nothing to train; add model.adapter=256" in error for error in check(frozen))
    both = changed(frozen, model__adapter=64)
    assert any("model.adapter freezes the image encoder itself" in error for error in check(both))
    assert check(changed(ranking, model__adapter=64)) == []


def test_random_weights_know_nothing(ranking: TrainConfig) -> None:
    model = changed(ranking, model__adapter=8).model
    assert isinstance(model, ClipRankingConfig)
    filters, adapter = untrained_errors(model)
    assert "random weights know nothing about crowds" in filters
    assert "model.adapter=8: the image encoder would keep its random weights" in adapter
    bare = changed(ranking, model__weights="none", model__head__scenes=[], model__head__parts=[])
    assert check(bare) == []
    assert check(changed(ranking, model__weights="none"), weights=False) == []  # reading a run


def test_other_methods_are_not_checked(ranking: TrainConfig) -> None:
    supervised = config_of()
    assert errors(supervised.method, supervised.model, supervised.augment) == []
    assert group_errors(supervised.method, supervised.model, supervised.loss) == []
    (error,) = group_errors(ranking.method, ClipResNetConfig(), ranking.loss)
    assert error.startswith("model=clip_rn50: method=ranking")


def test_numbers_follow_the_crowd_size() -> None:
    head = RankingHeadConfig(crowd_sizes=[50, 195, 800])
    assert scaled_numbers(head) == [
        [5, 14, 23, 32, 41, 50],
        [20, 55, 90, 125, 160, 195],
        [82, 226, 369, 513, 656, 800],
    ]
    assert scaled_numbers(RankingHeadConfig()) == [[20, 55, 90, 125, 160, 195]]


def test_an_encoder_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder=vit_b8"):
        checked_config(["method=ranking", "model.encoder=vit_b8"], config_name="train")


def test_numbers_that_end_with_nobody_are_refused(ranking: TrainConfig) -> None:
    config = changed(ranking, model__head__numbers=[5, 4, 3, 2, 1, 0], model__head__crowd_sizes=[50])
    assert "model.head.crowd_sizes=[50]: must be ascending" in check(config)[0]


def test_a_frozen_encoder_has_no_learning_rate(ranking: TrainConfig) -> None:
    config = changed(ranking, model__adapter=8, optim__backbone_lr_factor=0.1)
    assert "model.adapter=8 leaves no backbone to train" in check(config)[0]
