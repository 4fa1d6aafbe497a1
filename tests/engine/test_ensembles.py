"""Checkpoints that count together, in evaluations and for pictures, and averages over views of an image."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headcount
from engine.test_checkpoint import write_checkpoint
from headcount.config import (
    Accelerator,
    ConfigError,
    EvalCommandConfig,
    EvalConfig,
    RuntimeConfig,
    SlidingWindowConfig,
    Tta,
    check_evaluation,
)
from headcount.engine import checkpoint
from headcount.engine.ensemble import PhotoEnsemble
from headcount.engine.evaluate import CheckpointEvaluation, evaluate_checkpoint
from headcount.engine.load import load
from headcount.engine.predict import PhotoCounter
from headcount.errors import CheckpointError

SMALL = ["dataset.test_images=3", "dataset.val_images=2", "dataset.width=72", "dataset.height=64"]
# They differ in bins, width of the network and size of the blocks; the last in its training images.
KINDS = {
    "a": ["model.width=8"],
    "b": ["model.width=16", "bins=coarse", "bins.block_size=16"],
    "c": ["model.width=8", "dataset.max_people=99"],
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained counters whose counts depend on the image, by name."""
    found = {}
    for seed, (name, settings) in enumerate(KINDS.items()):
        folder = tmp_path_factory.mktemp(name)
        path = write_checkpoint(folder, *SMALL, *settings)
        content = checkpoint.read(path)
        generator = torch.Generator().manual_seed(seed)
        for value in content["model"].values():
            if value.ndim == 4:
                value.normal_(std=0.2, generator=generator)
        checkpoint.save(content, path)
        found[name] = str(path)
    return found


def evaluated(ckpt: str | list[str], **settings: object) -> CheckpointEvaluation:
    runtime = RuntimeConfig(accelerator=Accelerator.cpu, workers=0)
    config = EvalCommandConfig(**{"ckpt": ckpt, "eval": EvalConfig(), **settings}, runtime=runtime)  # type: ignore[arg-type]
    assert not check_evaluation(config)
    result = evaluate_checkpoint(config)
    assert result is not None
    return result


def counts(result: CheckpointEvaluation) -> np.ndarray:
    return np.array([image.predicted for image in result.evaluation.images])


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.mark.slow
def test_an_ensemble_predicts_the_mean_of_its_members(paths: dict[str, str]) -> None:
    one, two = evaluated(paths["a"]), evaluated(paths["b"])
    both = evaluated([paths["a"], paths["b"]])
    np.testing.assert_allclose(counts(both), (counts(one) + counts(two)) / 2, rtol=1e-6)
    assert abs(counts(one) - counts(two)).min() > 1e-3
    image = both.evaluation.images[0]
    assert {"game1", "game2", "game3", "blocks"} <= image.numbers.keys()
    assert image.blocks is not None
    assert image.blocks.shape == (8, 9)
    assert both.reliability is None  # their bins differ
    assert both.folder.parent == one.folder.parent  # beside the first, under a name of its own
    assert both.folder != one.folder
    assert both.facts.settings == {"ensemble": paths["b"]}


@pytest.mark.slow
def test_one_member_is_the_plain_evaluation(paths: dict[str, str]) -> None:
    plain, alone = evaluated(paths["a"]), evaluated([paths["a"]])
    np.testing.assert_array_equal(counts(plain), counts(alone))
    assert (alone.folder, alone.facts) == (plain.folder, plain.facts)


@pytest.mark.slow
def test_members_of_the_same_bins_have_probabilities(paths: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(paths["a"], tmp_path / "copy.pt")
    both = evaluated([paths["a"], str(tmp_path / "copy.pt")])
    plain = evaluated(paths["a"])
    np.testing.assert_allclose(counts(both), counts(plain), rtol=1e-6)
    assert both.reliability is not None
    assert plain.reliability is not None
    np.testing.assert_allclose(both.reliability.probability, plain.reliability.probability, rtol=1e-6)


@pytest.mark.slow
def test_averaged_evaluations_have_folders_of_their_own(paths: dict[str, str]) -> None:
    modes = [EvalConfig(tta=Tta.flip), EvalConfig(scales=[0.5, 1]), EvalConfig(tta=Tta.flip, scales=[0.5, 1])]
    results = [evaluated(paths["a"], eval=mode) for mode in (EvalConfig(), *modes)]
    assert len({result.folder for result in results}) == 4
    assert [result.reliability is None for result in results] == [False, False, True, True]
    assert results[3].facts.mode == "whole image, averaged with the mirror image, averaged over sizes 0.5, 1"
    assert evaluated(paths["a"], eval=EvalConfig(tta=Tta.none, scales=[1.0])).folder == results[0].folder


@pytest.mark.slow
def test_the_folds_of_a_cross_validation_are_an_ensemble_on_test_images(tmp_path: Path) -> None:
    """Each has other training images, and the same test images."""
    found = []
    for fold in (1, 2):
        (tmp_path / str(fold)).mkdir()
        settings = [*SMALL, "model.width=8", "dataset.cv_folds=2", f"dataset.cv_fold={fold}"]
        found.append(str(write_checkpoint(tmp_path / str(fold), *settings)))
    assert counts(evaluated(found)).shape == (3,)
    with pytest.raises(ConfigError, match=r"2/best_mae\.pt: was trained on"):
        evaluated(found, split="holdout")


@pytest.mark.slow
def test_a_fault_of_a_member_names_it(paths: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"ckpt={paths['c']}: was trained on .* dataset=NAME"):
        evaluated([paths["a"], paths["c"]])
    with pytest.raises(ConfigError, match=rf"ckpt={paths['b']}: eval\.window=24: must be a multiple of 16"):
        evaluated([paths["a"], paths["b"]], eval=SlidingWindowConfig(window=24))
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"broken\.pt"):
        evaluated([paths["a"], str(tmp_path / "broken.pt")])


def test_checkpoints_that_are_missing_or_named_twice_are_refused(tmp_path: Path) -> None:
    def errors(ckpt: object) -> str:
        return "\n".join(check_evaluation(EvalCommandConfig(ckpt=ckpt, eval=EvalConfig(), runtime=RuntimeConfig())))

    (tmp_path / "a.pt").touch()
    there = str(tmp_path / "a.pt")
    assert errors([there, "gone.pt"]).startswith("ckpt=gone.pt: no such file")
    assert errors([there, there]) == f"ckpt={there}: occurs twice among the checkpoints; name each once"
    assert errors([]).startswith("ckpt=[]: names no checkpoint")
    assert errors(None) == "ckpt is not set: type ckpt=..."
    config = EvalCommandConfig(ckpt=["a.pt", "b.pt"])
    with pytest.raises(ConfigError, match=r"ckpt=\[a.pt,b.pt\]: this command uses one checkpoint"):
        _ = config.checkpoint


@pytest.mark.slow
def test_pictures_are_counted_by_an_ensemble(paths: dict[str, str], picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "photo.png")
    one, two = (load(paths[name]).predict(picture) for name in "ab")
    ensemble = headcount.load([paths["a"], paths["b"]])
    assert isinstance(ensemble, PhotoEnsemble)
    with (tmp_path / "photo.png").open("rb") as file:  # which can be read only once
        both = ensemble.predict(file)
    assert both.count == pytest.approx((one.count + two.count) / 2, rel=1e-6)
    assert both.count == pytest.approx(ensemble.count(picture), rel=1e-6)
    assert both.block_counts is not None
    assert both.probabilities is None
    halves = {"left": "0%,0%,50%,100%", "right": "50%,0%,100%,100%"}
    assert sum(both.count_regions(halves).values()) == pytest.approx(both.count, rel=1e-5)
    mean = {key: (one.count_regions(halves)[key] + two.count_regions(halves)[key]) / 2 for key in halves}
    assert both.count_regions(halves)["left"] == pytest.approx(mean["left"], rel=0.05)


@pytest.mark.slow
def test_pictures_are_averaged_over_views(paths: dict[str, str], picture: np.ndarray) -> None:
    plain, flipped = load(paths["a"]), load(paths["a"], tta="flip")
    assert isinstance(plain, PhotoCounter)
    expected = (plain.count(picture) + plain.count(np.ascontiguousarray(picture[:, ::-1]))) / 2
    assert flipped.count(picture) == pytest.approx(expected, rel=1e-6)
    averaged = load(paths["a"], tta="flip", scales=[0.5, 1]).predict(picture)
    assert averaged.block_counts is not None
    halves = averaged.count_regions({"left": "0%,0%,50%,100%", "right": "50%,0%,100%,100%"})
    assert sum(halves.values()) == pytest.approx(averaged.count, rel=1e-5)
    assert len(flipped.predict_batch([picture, picture])) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tta": "rotate"}, r"tta=rotate: must be none or flip"),
        ({"scales": [0.0]}, r"scales=\[0\.0\]: each number must be from 0\.25 to 4"),
        ({"scales": []}, r"scales=\[\]: names no size"),
    ],
)
def test_averaging_that_is_not_possible_is_refused(
    options: dict[str, object], said: str, paths: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        load(paths["a"], **options)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="not an empty list"):
        load([])


@pytest.mark.slow
def test_a_member_whose_counts_are_not_finite_is_named(
    paths: dict[str, str], picture: np.ndarray, tmp_path: Path
) -> None:
    content = checkpoint.read(paths["b"])
    for value in content["model"].values():
        value.copy_(value * 1e30 if value.is_floating_point() and value.ndim == 4 else value)
    checkpoint.save(content, tmp_path / "wild.pt")
    with pytest.raises(FloatingPointError, match=r"wild\.pt: the predicted count is"):
        load([paths["a"], str(tmp_path / "wild.pt")]).predict(picture)


@pytest.mark.slow
def test_commands_take_several_checkpoints(
    paths: dict[str, str],
    picture: np.ndarray,
    run_command: Callable[..., object],
    tmp_path: Path,
) -> None:
    ckpt = f"ckpt=[{paths['a']},{paths['b']}]"
    Image.fromarray(picture).save(tmp_path / "photo.png")
    run = run_command("eval.py", ckpt, "eval.tta=flip", "eval.scales=[0.75,1]", "runtime.workers=0", "output_dir=e")
    assert run.returncode == 0, run.stderr  # type: ignore[attr-defined]
    metrics = json.loads((tmp_path / "e/metrics.json").read_text())
    assert metrics["checkpoint"] == f"[{paths['a']},{paths['b']}]"
    assert metrics["settings"]["eval"] == "whole_image_flip_scales_0.75_1"
    options = [
        "--device",
        "cpu",
        "--tta",
        "flip",
        "--scales",
        "0.75,1",
        "--output",
        "p",
        "--region",
        "all=0%,0%,100%,100%",
    ]
    run = run_command("scripts/predict.py", "photo.png", ckpt, *options)
    assert run.returncode == 0, run.stderr  # type: ignore[attr-defined]
    (row,) = csv.DictReader((tmp_path / "p/counts.csv").read_text().splitlines())
    expected = load([paths["a"], paths["b"]], tta="flip", scales=[0.75, 1]).count(picture)
    assert float(row["count"]) == pytest.approx(expected, abs=0.01)
    assert float(row["region all"]) == pytest.approx(expected, abs=0.01)
    run = run_command("scripts/predict.py", "photo.png", f"ckpt=[{paths['a']},gone.pt]")
    assert (run.returncode, "ckpt=gone.pt: no such file" in run.stderr) == (2, True)  # type: ignore[attr-defined]
    run = run_command("scripts/predict.py", "photo.png", f"ckpt={paths['a']}", "--scales", "big")
    assert (run.returncode, "big: must be numbers such as 0.75,1,1.25" in run.stderr) == (2, True)  # type: ignore[attr-defined]
    run = run_command("scripts/draw_figure.py", ckpt)
    assert (run.returncode, "uses one checkpoint" in run.stderr) == (2, True)  # type: ignore[attr-defined]
