"""A training on several datasets resumes bit for bit; its checkpoint is evaluated per part, together and alone."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from headcount.cli.compose import checked_config
from headcount.config import ConfigError, MixedConfig, TrainConfig
from headcount.engine import checkpoint
from headcount.engine.continuation import fingerprint, refuse_changed_config
from headcount.engine.evaluate import CheckpointEvaluation, evaluate_checkpoint
from headcount.engine.load import load
from headcount.engine.setup import build_count_bins, open_data
from headcount.engine.train import train
from headcount.report.evaluation import write_evaluation
from headcount.runs import read_metrics
from headcount.types import CountErrors

pytestmark = pytest.mark.slow

PARTS = [
    "dataset=mixed",
    "dataset.parts=[{name: synthetic, width: 96, height: 96, max_people: 12, train_images: 5},"
    "{name: synthetic, as: other, seed: 4, width: 128, height: 96, max_people: 40, test_images: 2}]",
    "dataset.weights=[1.5,2]",
]


def config_of(folder: Path, *overrides: str) -> TrainConfig:
    small = ["scale=smoke", "model.width=8", "runtime=cpu", "runtime.workers=0", f"output_dir={folder}", "run_name=run"]
    config: TrainConfig = checked_config([*PARTS, *small, *overrides], config_name="train")
    return config


def evaluated(ckpt: Path, *overrides: str) -> CheckpointEvaluation:
    config = checked_config([f"ckpt={ckpt}", "runtime=cpu", "runtime.workers=0", *overrides], config_name="eval")
    result = evaluate_checkpoint(config)
    assert result is not None
    return result


def test_a_mixed_run_resumes_and_is_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config_of(tmp_path / "whole", "epochs=2"))
    assert whole is not None
    table = capsys.readouterr().err.splitlines()[-4:]
    assert [line.split()[0] for line in table] == ["part", "synthetic", "other", "all"]

    # The same run, stopped after its first epoch.
    cut = config_of(tmp_path / "cut", "epochs=2")
    with monkeypatch.context() as patched:
        patched.setattr("headcount.engine.train._is_drawn", lambda config, epoch: 1 / (epoch - 2) and False)
        with pytest.raises(ZeroDivisionError):
            train(cut)
    resumed = train(dataclasses.replace(cut, resume=True, runtime=dataclasses.replace(cut.runtime, workers=2)))
    assert resumed is not None
    weights = [checkpoint.read(run.folder / checkpoint.LAST)["model"] for run in (whole, resumed)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    with pytest.raises(ConfigError, match=r"dataset\.weights=\[1\.5, 3\.0\] \(was \[1\.5, 2\.0\]\)"):
        train(config_of(tmp_path / "cut", "epochs=2", "dataset.weights=[1.5,3]", "resume=true"))

    # Every image counts once in the errors of all parts together.
    record = read_metrics(whole.folder)[-1]
    first, other = (CountErrors(*(record[f"eval/{part}/{key}"] for key in KEYS)) for part in ("synthetic", "other"))
    assert record["eval/images"] == first.images + other.images == 6
    assert record["eval/mae"] == pytest.approx((3 * first.mae + 3 * other.mae) / 6)
    assert record["eval/rmse"] ** 2 == pytest.approx((3 * first.rmse**2 + 3 * other.rmse**2) / 6)

    best = whole.folder / checkpoint.BEST
    result = evaluated(best, "split=val", "max_images=3")
    if whole.best.epoch == 2:
        assert result.evaluation.parts["other"].mae == pytest.approx(other.mae)
    write_evaluation(result.evaluation, result.dataset, result.folder, facts=result.facts)
    assert "all together" in capsys.readouterr().out
    assert json.loads((result.folder / "metrics.json").read_text())["parts"].keys() == {"synthetic", "other"}
    assert [image.name for image in result.evaluation.images][2:4] == ["synthetic/val_0002", "other/val_0000"]
    assert evaluated(best, "max_images=2").evaluation.parts["other"].images == 2
    alone = evaluated(best, "dataset=synthetic", "max_images=1")
    assert alone.evaluation.parts == {}
    assert alone.facts.trained_on == "synthetic"
    with pytest.raises(ConfigError, match="part synthetic: split=holdout: synthetic has train, val, test"):
        evaluated(best, "split=holdout")
    picture = torch.zeros(3, 50, 70, dtype=torch.uint8)
    assert load(best).predict(picture).image.shape == picture.shape


KEYS = [item.name for item in dataclasses.fields(CountErrors)]


def test_pictures_are_resized_by_the_first_part_of_files(tmp_path: Path) -> None:
    run = train(config_of(tmp_path, "epochs=1"))
    assert run is not None
    counter = load(run.folder / checkpoint.BEST)
    parts = checked_config(["dataset=mixed", "dataset.parts=[synthetic,sha,qnrf]"], config_name="train").dataset
    counter.config = dataclasses.replace(counter.config, dataset=parts)
    assert counter.predict(torch.zeros(3, 100, 200, dtype=torch.uint8)).image.shape == (3, 448, 896)


def test_other_images_of_any_part_are_noticed() -> None:
    before, after = (
        open_data(config_of(Path(), *changed))
        for changed in ([], [f"{PARTS[1]}".replace("max_people: 40", "max_people: 41")])
    )
    assert fingerprint(before.train) != fingerprint(after.train)
    assert fingerprint(before.train) == fingerprint(open_data(config_of(Path())).train)


def test_only_the_places_of_parts_may_change_in_a_resumed_run() -> None:
    def typed(root: str, side: int) -> TrainConfig:
        parts = f"dataset.parts=[synthetic,{{name: sha, root: {root}, min_side: {side}}}]"
        return checked_config(["dataset=mixed", parts], config_name="train")  # type: ignore[no-any-return]

    refuse_changed_config(typed("/new", 64), typed("/old", 64))
    with pytest.raises(
        ConfigError, match=r"differ from those of the run: dataset\.datasets\.sha\.min_side=96 \(was 64\);"
    ):
        refuse_changed_config(typed("/new", 96), typed("/old", 64))


def test_one_part_gives_the_representative_counts() -> None:
    config = config_of(Path(), "bins.label_correction=false", "dataset.bins_from=synthetic")
    assert isinstance(config.dataset, MixedConfig)
    data = open_data(config)
    bins = build_count_bins(config.bins, data.train, data.histogram, part="synthetic")
    alone = open_data(dataclasses.replace(config, dataset=config.dataset.datasets["synthetic"]))
    expected = build_count_bins(config.bins, alone.train, alone.histogram)
    assert bins is not None
    assert expected is not None
    known = len(expected) - 1
    assert bins.representatives[:known] == expected.representatives[:known]
    assert bins.edges[-1][0] == max(data.histogram)  # of all parts
