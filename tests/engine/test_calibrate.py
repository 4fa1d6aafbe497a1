"""Calibrating a counter: what is stored, what is refused, and that coverage is as promised on images like these."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import headcount
from data.folders import make_shanghaitech, write_image, write_nwpu_json
from engine.test_checkpoint import write_checkpoint
from headcount.cli.compose import compose, to_config
from headcount.config import (
    Accelerator,
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    EvalConfig,
    FolderDatasetConfig,
    MixedConfig,
    RuntimeConfig,
    SlidingWindowConfig,
    SyntheticConfig,
    TrainConfig,
    WholeImageConfig,
)
from headcount.coverage import judge_calibrated, judge_own, measure_intervals
from headcount.data.crowd import CrowdDataset
from headcount.data.open import open_split
from headcount.distribution import bin_moments
from headcount.engine import checkpoint
from headcount.engine.calibrate import calibrate, calibrate_checkpoint
from headcount.engine.evaluate import CheckpointEvaluation, evaluate, evaluate_checkpoint
from headcount.engine.evaluators import OwnIntervals
from headcount.engine.load import load
from headcount.engine.predict import PhotoCounter
from headcount.engine.runtime import Runtime
from headcount.engine.train import train
from headcount.engine.training_images import KEY, training_digests
from headcount.errors import CheckpointError
from headcount.intervals import PROMISES, conformal_rank, scale
from headcount.types import ImageCount
from test_intervals import calibration

STORED = Path(__file__).parent.parent / "stored" / "format_2"
SMALL = ["dataset.train_images=30", "dataset.test_images=12", "dataset.width=64", "dataset.height=64", "model.width=8"]
SMALL += ["dataset.max_people=30"]


def evaluation(ckpt: Path, split: str, dataset: DatasetConfig | None = None, **settings: object) -> EvalCommandConfig:
    runtime = RuntimeConfig(accelerator=Accelerator.cpu, workers=0)
    chosen = {"eval": EvalConfig(), **settings}
    return EvalCommandConfig(ckpt=str(ckpt), split=split, dataset=dataset, runtime=runtime, **chosen)


def evaluated(ckpt: Path, split: str, dataset: DatasetConfig | None = None) -> CheckpointEvaluation:
    result = evaluate_checkpoint(evaluation(ckpt, split, dataset))
    assert result is not None
    return result


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run that held 10 of 30 images out."""
    return write_checkpoint(tmp_path_factory.mktemp("untrained"), *SMALL, "dataset.holdout=0.34")


@pytest.fixture(scope="module")
def calibrated(untrained: Path) -> Path:
    output = untrained.with_name("calibrated.pt")
    calibrate_checkpoint(evaluation(untrained, "holdout"), output)
    return output


# ------------------------------------------------------------------------------------------ what is stored


def test_scores_are_errors_over_the_scale_and_features_are_of_the_prepared_images() -> None:
    dataset = CrowdDataset(
        ["a", "b"],
        lambda index: torch.full((3, 100, 200), index, dtype=torch.uint8),
        [torch.zeros(4, 2), torch.zeros(9, 2)],
        source_sizes=[(400, 200)] * 2,
        sizes=[(200, 100)] * 2,
    )
    images = [
        ImageCount(0, "a", 4.0, 10.0, None, {"variance": 3.0}),  # 6 / 2
        ImageCount(1, "b", 9.0, 8.0, None),  # 1 / sqrt(8 + 1)
    ]
    made = calibrate(images, dataset, name="mine", split="val", mode="whole image")
    assert made.scores == pytest.approx((1 / 3, 3))
    assert made.names == ("a", "b")
    assert made.digests == (dataset.digest(0), dataset.digest(1))
    assert made.digests[0] != made.digests[1]
    assert (made.least.density, made.most.density) == pytest.approx((8 / 0.02, 10 / 0.02))
    assert made.least.megapixels == made.most.megapixels == pytest.approx(0.02)


def test_an_image_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        for k in range(2):
            write_image(tmp_path / folder / f"{folder}{k}.png", seed=k)
            write_nwpu_json(tmp_path / folder / f"{folder}{k}.json", [(9.0, 9.0)])
    digests = []
    for folder in ("one", "other"):
        config = CustomConfig(root=str(tmp_path / folder), val_fraction=0, test_fraction=0, min_side=64)
        config.cache_dir = str(tmp_path / "cache")
        dataset = open_split(config, "train")
        digests.append([dataset.digest(k) for k in range(2)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 2


def test_a_calibrated_checkpoint_counts_as_before(untrained: Path, calibrated: Path) -> None:
    before, after = load(untrained), load(calibrated)
    assert before.calibration is None
    assert after.calibration is not None
    assert (len(after.calibration), after.calibration.dataset, after.calibration.split) == (10, "synthetic", "holdout")
    assert after.calibration.mode == "whole image"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    own, supported = before.predict(pixels), after.predict(pixels)
    assert own.count == supported.count
    assert own.interval is not None
    assert supported.interval is not None
    assert (own.interval.calibrated, supported.interval.calibrated) == (False, True)
    # ceil(11 * 0.9) = 10: the largest score. The probabilities give the variance, here without the network's help.
    assert after.bins is not None
    assert own.probabilities is not None
    values, squares = torch.tensor([after.bins.representatives, bin_moments(after.bins)], dtype=torch.float64)
    blocks = own.probabilities.flatten(1).double()
    variance = float((squares @ blocks - (values @ blocks).square()).sum())
    reach = after.calibration.scores[9] * math.sqrt(variance + 1)
    assert supported.interval.high == pytest.approx(supported.count + reach, rel=1e-4)
    assert supported.interval.level == own.interval.level == 0.9


def test_it_holds_nothing_to_resume_from(tmp_path: Path) -> None:
    """Of a run of format 2, as users have it; its four images do not suffice, but eight more drawn ones do."""
    shutil.copy(STORED / "last.pt", tmp_path / "last.pt")
    drawn = SyntheticConfig(seed=5, test_images=12, width=96, height=96, max_people=30)
    done = calibrate_checkpoint(evaluation(tmp_path / "last.pt", "test", drawn), tmp_path / "out.pt")
    assert done.has_variance
    assert done.notes == []
    content = checkpoint.read(tmp_path / "out.pt")
    assert not {"optimizer", "schedule", "average", "record"} & content.keys()
    assert content["calibration"]["names"] == [f"test_{k:04d}" for k in range(12)]
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        checkpoint.read_training(tmp_path / "out.pt")


def test_an_older_checkpoint_is_calibrated_with_its_settings_in_todays_keys(untrained: Path, tmp_path: Path) -> None:
    content = checkpoint.read(untrained)
    del content["config"]["method"]  # as in format 1
    torch.save(content | {"format_version": 1}, tmp_path / "old.pt")
    calibrate_checkpoint(evaluation(tmp_path / "old.pt", "holdout"), tmp_path / "out.pt")
    written = torch.load(tmp_path / "out.pt", weights_only=True)
    assert written["format_version"] == checkpoint.FORMAT_VERSION
    assert written["config"]["method"] == {"name": "supervised"}
    assert load(tmp_path / "out.pt").calibration is not None


def test_a_damaged_calibration_is_a_damaged_checkpoint(calibrated: Path, tmp_path: Path) -> None:
    content = checkpoint.read(calibrated)
    content["calibration"]["scores"].reverse()
    checkpoint.save(content, tmp_path / "bad.pt")
    with pytest.raises(
        CheckpointError, match=r"ckpt=.*bad\.pt: the checkpoint is damaged: .*calibration is unreadable"
    ):
        load(tmp_path / "bad.pt")


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("split", "dataset", "words"),
    [
        (
            "train",
            None,
            "split=train: the counter was trained on these images; choose split=val, or another dataset with",
        ),
        (
            "train",
            SyntheticConfig(width=64, height=64, max_people=30, train_images=40),
            "split=train: the counter was trained on 20 of these 40 images",
        ),
        ("holdout", SyntheticConfig(holdout=0.5), "split=holdout: is a part of the counter's own dataset; leave out"),
        (
            "val",
            SyntheticConfig(width=64, height=64, max_people=30, val_images=8, seed=3),
            "split=val: has 8 images; a calibration needs at least 9",
        ),
        ("valid", None, "split=valid: synthetic has train, val, test, holdout"),
    ],
)
def test_images_that_cannot_calibrate_are_refused(
    split: str, dataset: DatasetConfig | None, words: str, untrained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        calibrate_checkpoint(evaluation(untrained, split, dataset), tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_held_out_images_must_have_been_held_out(tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SMALL)
    with pytest.raises(
        ConfigError, match=r"split=holdout: .* dataset\.holdout=0, .*; choose .* another dataset with dataset=NAME"
    ):
        calibrate_checkpoint(evaluation(ckpt, "holdout"), tmp_path / "out.pt")


def test_other_drawn_crowds_are_not_those_of_the_training(untrained: Path, tmp_path: Path) -> None:
    other = SyntheticConfig(seed=9, train_images=10, width=64, height=64, max_people=30)
    done = calibrate_checkpoint(evaluation(untrained, "train", other), tmp_path / "out.pt")
    assert len(done.calibration) == 10


@pytest.mark.slow
def test_images_that_selected_the_checkpoint_are_said(tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SMALL, "dataset.val_images=9")
    done = calibrate_checkpoint(evaluation(ckpt, "val"), tmp_path / "out.pt")
    assert done.notes == [SELECTED]
    # Another epoch of the same run, such as the last one, is not what they selected.
    content = torch.load(ckpt)
    content["best"] = best_of(content["epoch"] - 1)
    torch.save(content, ckpt)
    assert calibrate_checkpoint(evaluation(ckpt, "val"), tmp_path / "out.pt").notes == []


SELECTED = "These images selected the checkpoint: errors on others may be larger."


def best_of(epoch: int) -> dict[str, float]:
    return {"mae": 5.0 - epoch, "rmse": 5.0, "nae": 1.0, "images": 9, "epoch": epoch}


@pytest.mark.slow
def test_a_checkpoint_that_was_the_best_when_it_was_written_may_not_be_selected(tmp_path: Path) -> None:
    """Epochs 1 to 3 of a run whose error falls: what lies beside tells."""
    best = write_checkpoint(tmp_path, *SMALL, "dataset.val_images=9")
    content = checkpoint.read(best)
    first = tmp_path / "epoch_0001.pt"
    checkpoint.save(content | {"epoch": 1, "best": best_of(1)}, first)

    def notes(ckpt: Path) -> list[str]:
        return calibrate_checkpoint(evaluation(ckpt, "val"), tmp_path / "out.pt").notes

    checkpoint.save(content | {"best": best_of(3)}, best)
    assert notes(first) == []
    assert notes(best) == [SELECTED]
    best.unlink()
    assert notes(first) == ["These images may have selected the checkpoint: errors on others may be larger."]
    records = [{"epoch": k, "eval/split": "val", "eval/mae": 5.0 - k, "eval/rmse": 5.0} for k in (1, 2, 3)]
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert notes(first) == []
    (tmp_path / "metrics.jsonl").write_text(lines[0])
    assert notes(first) == [SELECTED]


def test_the_last_checkpoint_of_a_training_that_stopped_early_is_one_that_they_decided(tmp_path: Path) -> None:
    settings = ["dataset.val_images=9", "early_stopping=2", "eval_every_epochs=1"]
    ckpt = write_checkpoint(tmp_path, *SMALL, *settings)
    last = ckpt.rename(tmp_path / "last.pt")
    checkpoint.save(checkpoint.read(last) | {"best": best_of(1)}, last)
    done = calibrate_checkpoint(evaluation(last, "val"), tmp_path / "out.pt")
    assert done.notes == [
        "These images decided that the training ended at this checkpoint: errors on others may be larger."
    ]


def test_a_level_that_the_calibration_does_not_support_is_refused_before_counting(calibrated: Path) -> None:
    words = r"level=0\.95: needs a calibration on at least 19 images, and this one has 10"
    with pytest.raises(ConfigError, match=words):
        load(calibrated, level=0.95)
    counter = load(calibrated, level=0.5)
    counter.level = 0.95
    for count in (counter.predict, lambda picture: counter.predict_batch([picture])):
        with pytest.raises(ConfigError, match=words):
            count(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"level=90: .* for 90 %, type 0\.9"):
        headcount.load(calibrated, level=90)


# ------------------------------------------------------------------------------------------ images of the training


def write_crowd(folder: Path, seeds: range) -> Path:
    """Different images with one head each."""
    for seed in seeds:
        write_image(folder / f"{seed}.png", seed=seed)
        write_nwpu_json(folder / f"{seed}.json", [(9.0, 9.0)])
    return folder


def custom(root: Path, **settings: object) -> CustomConfig:
    return CustomConfig(root=str(root), cache_dir=str(root.parent / "cache"), min_side=64, **settings)


@pytest.fixture(params=["recorded", "early"])
def of_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint trained on the images of a folder that are not those of validation, with digests or without."""
    root = write_crowd(tmp_path / "crowd", range(28))
    settings = [f"dataset.root={root}", "dataset.val_fraction=0.15", "dataset.test_fraction=0", "dataset.min_side=64"]
    ckpt = write_checkpoint(tmp_path, "dataset=custom", *settings, "model.width=8")
    if request.param == "recorded":
        train_images = open_split(custom(root, val_fraction=0.15, test_fraction=0), "train")
        checkpoint.save(checkpoint.read(ckpt) | {KEY: training_digests(train_images)}, ckpt)
    return ckpt


def refusal(ckpt: Path, split: str, dataset: DatasetConfig) -> str:
    with pytest.raises(ConfigError) as refused:
        calibrate_checkpoint(evaluation(ckpt, split, dataset), ckpt.with_name("out.pt"))
    assert not ckpt.with_name("out.pt").exists()
    return str(refused.value)


def test_images_of_the_training_are_refused_in_another_split(of_folder: Path) -> None:
    message = refusal(of_folder, "test", custom(of_folder.parent / "crowd", test_fraction=0.5))
    assert re.match(
        r"split=test: the counter was trained on \d+ of these \d+ images \(\d+, \d+, \d+, \.\.\.\)", message
    )
    assert message.endswith("choose split=val, or another dataset with dataset=NAME")


def test_images_of_the_training_are_refused_by_another_path(of_folder: Path) -> None:
    root = of_folder.parent / "crowd"
    (of_folder.parent / "linked").symlink_to(root)
    for spelling in (root.parent / "crowd" / ".." / "crowd", of_folder.parent / "linked"):
        same = CustomConfig(root=str(spelling), cache_dir=str(root.parent / "cache"), min_side=64)
        assert "the counter was trained on" in refusal(of_folder, "train", same)


def test_images_of_the_training_are_refused_in_a_copy_under_other_names(of_folder: Path) -> None:
    copy = of_folder.parent / "copy"
    copy.mkdir()
    for file in (of_folder.parent / "crowd").iterdir():
        shutil.copy(file, copy / f"renamed_{file.name}")
    everything = custom(copy, val_fraction=0, test_fraction=0)
    trained = len(open_split(checkpoint.load(of_folder).config.dataset, "train"))
    assert 14 < trained < 28
    words = f"the counter was trained on {trained} of these 28 images (renamed_"
    assert words in refusal(of_folder, "train", everything)


def test_images_of_the_training_are_refused_as_a_part_of_a_mixed_dataset(of_folder: Path) -> None:
    part = custom(of_folder.parent / "crowd", val_fraction=0, test_fraction=0)
    other = custom(write_crowd(of_folder.parent / "other", range(100, 110)), val_fraction=0, test_fraction=0)
    mixed = MixedConfig(parts=["crowd", "other"], datasets={"crowd": part, "other": other})
    assert re.search(r"trained on \d+ of these 38 images \(crowd/\d", refusal(of_folder, "train", mixed))


def test_images_of_the_training_are_refused_as_custom_ones_and_in_a_published_set(tmp_path: Path) -> None:
    """Of an early checkpoint: found below the folder of all datasets."""
    heads = {f"IMG_{k}": [(9.0, 9.0)] for k in range(12)}
    make_shanghaitech(tmp_path / "part_A", {"train": heads, "test": {"IMG_1": [(9.0, 9.0)]}})
    for k in range(12):
        write_image(tmp_path / "part_A" / "train_data" / "images" / f"IMG_{k}.jpg", seed=k)
    ckpt = write_checkpoint(tmp_path, "dataset=sha", "model.width=8")
    sha = {"name": "sha", "cache_dir": str(tmp_path / "cache"), "min_side": 64}
    assert "trained on these images" in refusal(ckpt, "train", FolderDatasetConfig(root=str(tmp_path), **sha))
    images = write_crowd(tmp_path / "mine", range(12))
    for k in range(12):
        (images / f"{k}.png").unlink()
        shutil.copy(tmp_path / "part_A" / "train_data" / "images" / f"IMG_{k}.jpg", images / f"{k}.jpg")
    config = evaluation(ckpt, "train", custom(images, val_fraction=0, test_fraction=0), data_root=str(tmp_path))
    with pytest.raises(ConfigError, match="trained on these images"):
        calibrate_checkpoint(config, tmp_path / "out.pt")


def test_what_an_early_checkpoint_was_trained_on_may_be_unknown(of_folder: Path) -> None:
    recorded = KEY in checkpoint.read(of_folder)
    (of_folder.parent / "crowd").rename(of_folder.parent / "gone")
    other = custom(write_crowd(of_folder.parent / "other", range(100, 110)), val_fraction=0, test_fraction=0)
    done = calibrate_checkpoint(evaluation(of_folder, "train", other), of_folder.with_name("out.pt"))
    assert [note.split(":")[0] for note in done.notes] == (
        [] if recorded else ["Whether the counter was trained on these images could not be checked"]
    )
    assert (KEY in checkpoint.read(of_folder.with_name("out.pt"))) == recorded


def test_copies_of_training_images_among_the_held_out_ones_are_left_out(untrained: Path, tmp_path: Path) -> None:
    held_out = open_split(checkpoint.load(untrained).config.dataset, "holdout")
    checkpoint.save(checkpoint.read(untrained) | {KEY: [held_out.digest(0)[:16]]}, tmp_path / "one.pt")
    done = calibrate_checkpoint(evaluation(tmp_path / "one.pt", "holdout"), tmp_path / "out.pt")
    assert held_out.digest(0) not in done.calibration.digests
    assert len(done.calibration) == 9
    assert done.notes == ["1 image left out, with the same content as training images."]


@pytest.mark.parametrize("recorded", ["abc", [1], {"a": 1}])
def test_a_damaged_record_of_the_training_is_a_damaged_checkpoint(
    recorded: object, untrained: Path, tmp_path: Path
) -> None:
    checkpoint.save(checkpoint.read(untrained) | {KEY: recorded}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt: the checkpoint is damaged: its 'trained_on'"):
        calibrate_checkpoint(evaluation(tmp_path / "bad.pt", "holdout"), tmp_path / "out.pt")


def test_a_training_on_very_many_images_records_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headcount.engine.training_images.MAX_RECORDED", 3)
    settings = ["scale=smoke", "epochs=1", "runtime=cpu", "runtime.workers=0", "augment.crop_size=64", "model.width=4"]
    settings += ["dataset.width=96", "dataset.height=96", "dataset.val_images=2", "dataset.train_images=4"]
    train(to_config(compose([*settings, f"output_dir={tmp_path}", "run_name=one"], config_name="train")))
    assert KEY not in checkpoint.read(tmp_path / "synthetic" / "one" / "seed1" / "best_mae.pt")


def test_a_training_records_its_images_and_those_it_started_from(tmp_path: Path) -> None:
    settings = ["scale=smoke", "epochs=1", "runtime=cpu", "runtime.workers=0", "augment.crop_size=64", "model.width=4"]
    settings += ["dataset.width=96", "dataset.height=96", "dataset.val_images=2", f"output_dir={tmp_path}"]
    found = []
    for run, more in (("one", []), ("two", ["dataset.seed=7", "init_from={one}"])):
        typed = [text.format(one=tmp_path / "synthetic" / "one" / "seed1" / "last.pt") for text in more]
        config: TrainConfig = to_config(
            compose([*settings, "dataset.train_images=4", f"run_name={run}", *typed], config_name="train")
        )
        train(config)
        own = set(training_digests(open_split(config.dataset, "train")))
        recorded = checkpoint.read(tmp_path / "synthetic" / run / "seed1" / "best_mae.pt")[KEY]
        assert len(own) == 4
        assert own <= set(recorded)
        assert all(len(digest) == 16 for digest in recorded)
        found.append(set(recorded))
    assert len(found[1]) == 8
    assert found[0] < found[1]


# ------------------------------------------------------------------------------------------ what is written


def test_a_pair_of_files_is_written_and_loaded(untrained: Path, calibrated: Path, tmp_path: Path) -> None:
    done = calibrate_checkpoint(evaluation(untrained, "holdout"), tmp_path / "new" / "pair.safetensors")
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"pair.safetensors", "pair.json"}
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    counter = load(tmp_path / "new" / "pair.safetensors")
    assert counter.calibration == done.calibration
    assert counter.predict(pixels).interval == load(calibrated).predict(pixels).interval


def test_a_replaced_calibration_is_said(calibrated: Path, tmp_path: Path) -> None:
    done = calibrate_checkpoint(evaluation(calibrated, "test"), tmp_path / "again.pt")
    assert done.notes == ["This replaces the counter's calibration on 10 images of synthetic holdout."]


# ------------------------------------------------------------------------------------------ evaluation


def test_images_of_the_calibration_are_not_judged(calibrated: Path, untrained: Path) -> None:
    same = evaluated(calibrated, "holdout").intervals
    assert (same.overlapping, same.calibrated) == (10, [])
    assert len(same.own) == 10
    assert not any(image.intervals[0].calibrated for image in same.best)
    others = evaluated(calibrated, "test").intervals
    assert (others.overlapping, len(others.calibrated)) == (0, 12)
    assert [of.level for of in others.calibrated[0].intervals] == [0.5, 0.8, 0.9]
    # All training images: those that were held out are among them.
    both = SyntheticConfig(train_images=30, width=64, height=64, max_people=30)
    part = evaluated(calibrated, "train", both).intervals
    assert (part.overlapping, len(part.calibrated)) == (10, 20)
    before = evaluated(untrained, "test").intervals
    assert (before.calibration, before.calibrated, before.overlapping) == (None, [], 0)
    assert before.own == others.own


def test_an_evaluation_has_the_intervals_of_a_prediction(calibrated: Path) -> None:
    result = evaluated(calibrated, "test")
    counter = load(calibrated)
    for image, judged in zip(result.evaluation.images, result.intervals.calibrated, strict=True):
        found = counter.predict(result.dataset[image.index].image).interval
        assert found is not None
        assert (found.low, found.high) == pytest.approx((judged.intervals[2].low, judged.intervals[2].high))
        assert found.outside_calibration == judged.intervals[2].outside_calibration


def test_windows_of_a_counter_that_is_calibrated_on_whole_images_are_marked(calibrated: Path) -> None:
    counter = load(calibrated)
    counter.mode = SlidingWindowConfig(window=32)
    found = counter.predict(np.zeros((64, 64, 3), dtype=np.uint8)).interval
    assert found is not None
    assert "counted in another way (windows of 32 px every 32 px" in found.outside_calibration
    counter.mode = WholeImageConfig()
    found = counter.predict(np.zeros((64, 96, 3), dtype=np.uint8)).interval
    assert found is not None
    assert "0.00614 megapixels, in calibration 0.0041 to 0.0041" in found.note


@pytest.mark.slow
def test_a_regression_has_an_interval_once_it_is_calibrated(tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SMALL, "model.head=regression", "bins=none", "loss=mse")
    picture = np.full((64, 64, 3), 99, dtype=np.uint8)
    assert load(ckpt).predict(picture).interval is None
    assert evaluated(ckpt, "test").intervals.best == []
    done = calibrate_checkpoint(evaluation(ckpt, "test"), tmp_path / "out.pt")
    assert not done.has_variance
    found = load(tmp_path / "out.pt", level=0.5).predict(picture)
    reach = done.calibration.scores[conformal_rank(12, 0.5) - 1] * scale(found.count, None)
    assert found.interval is not None
    assert found.interval.high == pytest.approx(found.count + reach)


def test_a_counter_without_a_calibration_object_is_uncalibrated(untrained: Path) -> None:
    loaded = checkpoint.load(untrained)
    counter = PhotoCounter(loaded.counter, loaded.config, None, calibration=calibration(*map(float, range(1, 10))))
    assert counter.check_level(0.9) == 0.9
    with pytest.raises(ConfigError, match="this one has 9"):
        counter.check_level(0.91)


# ------------------------------------------------------------------------------------------ coverage


@pytest.mark.slow
def test_coverage_is_as_promised_on_random_splits_of_generated_crowds(tmp_path: Path) -> None:
    """A small trained counter, 20 random splits of 300 images into calibration and test.

    In each split the number of covered test images has a beta-binomial distribution; every one of the 80 lies within
    bounds that all together hold with 99 %, and the mean over the splits within the binomial bounds of the promise.
    """
    settings = ["dataset.train_images=160", "dataset.width=96", "dataset.height=96", "dataset.max_people=30"]
    settings += ["augment.crop_size=64", "model.width=16", "batch_size=4", "optim.lr=1e-3", "optim.warmup_epochs=1"]
    settings += ["epochs=10", "eval_every_epochs=10", "runtime=cpu", "runtime.workers=0", f"output_dir={tmp_path}"]
    config: TrainConfig = to_config(compose([*settings, "run_name=run"], config_name="train"))
    train(config)
    loaded = checkpoint.load(tmp_path / "synthetic" / "run" / "seed1" / "last.pt")
    dataset = open_split(SyntheticConfig(test_images=300, width=96, height=96, max_people=30, seed=1), "test")
    runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu, workers=0))
    found = evaluate(
        runtime, loaded.counter, dataset, evaluators=[OwnIntervals(loaded.bins)], probabilities=True, variance=True
    )
    true = np.array([image.true for image in found.images])
    predicted = np.array([image.predicted for image in found.images])
    assert np.corrcoef(true, predicted)[0, 1] > 0.5, "it did not learn to count"

    rng, half, splits = np.random.default_rng(0), 150, 20
    rank = {level: conformal_rank(half, level) for level in PROMISES}
    shares: dict[float, list[float]] = {level: [] for level in PROMISES}
    for _ in range(splits):
        order = rng.permutation(2 * half)
        chosen, others = ([found.images[k] for k in part] for part in (order[:half], order[half:]))
        made = calibrate(chosen, dataset, name="synthetic", split="test", mode="whole image")
        judged = judge_calibrated(others, made, sizes=[(96, 96)] * half, mode="whole image")
        metrics = measure_intervals(judged, calibration_images=half)
        for of in metrics.levels:
            covered = stats.betabinom(half, rank[of.level], half + 1 - rank[of.level])
            low, high = covered.interval(1 - 0.01 / (splits * len(PROMISES)))
            assert low <= of.coverage.covered <= high, f"{of.coverage.covered} of {half} at {of.level}"
            shares[of.level].append(of.coverage.share)
    for level, seen in shares.items():
        low, high = np.array(stats.binom(half, level).interval(0.95)) / half
        assert low <= np.mean(seen) <= high
    # Without calibration, its own intervals are too narrow: a calibration is not for nothing.
    own = measure_intervals(judge_own(found.images))
    assert own.levels[2].coverage.share < own.levels[2].plausible[0]
