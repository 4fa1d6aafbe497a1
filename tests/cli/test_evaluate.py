"""eval.py as typed: every evaluation keeps its results, and a dataset that moved is named without its settings."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.folders import Heads, make_shanghaitech, write_image, write_nwpu_json
from engine.test_checkpoint import write_checkpoint
from headcount.config import (
    Accelerator,
    Border,
    CustomConfig,
    DatasetConfig,
    EvalCommandConfig,
    EvalConfig,
    Precision,
    RuntimeConfig,
    SlidingWindowConfig,
    TrainedDatasetConfig,
    WholeImageConfig,
)
from headcount.engine import checkpoint
from headcount.engine.evaluate import evaluate_checkpoint
from headcount.runs import evaluation_folder

Script = Callable[..., tuple[int, str, str]]
SYNTHETIC = ["dataset.test_images=3", "dataset.val_images=2", "dataset.width=64", "dataset.height=64", "model.width=8"]
USUAL = ["runtime=cpu", "runtime.workers=0", "eval.pictures=0"]
HEADS: dict[str, Heads] = {"IMG_1": [(9.0, 9.0)] * 4, "IMG_2": []}


def own_images(folder: Path, *, heads: int = 1) -> Path:
    for k in range(4):
        write_image(folder / f"{k}.png", seed=k)
        write_nwpu_json(folder / f"{k}.json", [(9.0, 9.0)] * heads)
    return folder


def written(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of each folder of results below ``folder`` -> its metrics."""
    return {file.parent.name: json.loads(file.read_text()) for file in folder.rglob("metrics.json")}


def folder_of(ckpt: Path, *, defaults: DatasetConfig | None = None, **settings: Any) -> str:
    """Evaluate, and give the name of the folder of the results."""
    runtime = RuntimeConfig(accelerator=Accelerator.cpu, precision=settings.pop("precision", Precision.float32))
    config = EvalCommandConfig(**{"ckpt": str(ckpt), "eval": EvalConfig(), **settings}, runtime=runtime)
    result = evaluate_checkpoint(config, defaults=defaults)
    assert result is not None
    assert result.facts.images == len(result.evaluation.images)
    return result.folder.name


@pytest.mark.slow
def test_every_evaluation_keeps_its_results(tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SYNTHETIC)
    for name in ("best_rmse.pt", "last.pt", "my copy.pt"):
        shutil.copy(ckpt, tmp_path / name)
    roots = [own_images(tmp_path / name, heads=k) for k, name in enumerate(("A", "B", "else/A"))]
    custom = {"split": "train", "defaults": CustomConfig()}
    sizes: dict[str, Any] = {"min_side": 64, "cache_dir": str(tmp_path / "cache")}
    windows = [{"stride": 16}, {"border": Border.pad}]
    found = [
        folder_of(ckpt),
        folder_of(ckpt, split="val"),
        folder_of(ckpt, max_images=2),
        *(folder_of(ckpt, eval=SlidingWindowConfig(window=32, **more)) for more in windows),
        folder_of(ckpt, precision=Precision.bf16),
        *(folder_of(ckpt, dataset=CustomConfig(root=str(root), **sizes), **custom) for root in roots),
        folder_of(ckpt, dataset=CustomConfig(root=str(roots[0]), **sizes | {"min_side": 96}), **custom),
        folder_of(ckpt, dataset=CustomConfig(root=str(roots[0]), points=str(roots[1]), **sizes), **custom),
        *(folder_of(tmp_path / name) for name in ("best_rmse.pt", "last.pt", "my copy.pt")),
    ]
    assert len(set(found)) == len(found)
    assert found[:2] == ["synthetic_test", "synthetic_val"]
    assert found[-3:-1] == ["synthetic_test_best_rmse", "synthetic_test_last"]
    assert found[2].startswith("synthetic_test_max_images-2_")
    assert all(len(name) < 80 for name in found)
    # What changes no count changes no name.
    assert folder_of(ckpt, eval=WholeImageConfig(pictures=1), dataset=TrainedDatasetConfig()) == "synthetic_test"
    root = Path(os.path.relpath(roots[0]))
    assert folder_of(ckpt, dataset=CustomConfig(root=f"{root}/.", **sizes), **custom) == found[6]


@pytest.mark.slow
def test_a_part_of_a_split_does_not_replace_the_whole(script: Script, tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SYNTHETIC)
    usual = [f"ckpt={ckpt}", *USUAL]
    assert script("eval.py", *usual)[0] == 0
    _, out, _ = script("eval.py", *usual, "max_images=2")
    assert "the first 2 images only" in out
    assert "Replaced" not in out
    whole, part = sorted(written(tmp_path / "eval").items())
    assert (whole[0], whole[1]["images"], whole[1]["settings"]) == ("synthetic_test", 3, {})
    assert (part[1]["images"], part[1]["settings"]) == (2, {"max_images": 2})
    # In a folder that was typed, it is replaced, and that is said.
    script("eval.py", *usual, "output_dir=out")
    _, out, _ = script("eval.py", *usual, "output_dir=out", "max_images=2")
    assert "Replaced an earlier evaluation in this folder: images 3." in out


@pytest.mark.slow
def test_counts_that_are_not_finite_name_the_images(script: Script, tmp_path: Path) -> None:
    """Of weights that are: they overflow."""
    ckpt = write_checkpoint(tmp_path, *SYNTHETIC)
    content = checkpoint.read(ckpt)
    for value in content["model"].values():
        value.copy_(value * 1e30 if value.is_floating_point() and value.ndim == 4 else value)
    checkpoint.save(content, ckpt)
    status, _, err = script("eval.py", f"ckpt={ckpt}", "runtime=cpu", "runtime.workers=0")
    assert status == 2
    assert f"ckpt={ckpt}: the predicted counts are not finite on 3 of 3 images: test_0000 (" in err
    assert "bincount" not in err


@pytest.mark.slow
def test_images_far_outside_the_training_are_noted(script: Script, tmp_path: Path) -> None:
    ckpt = write_checkpoint(tmp_path, *SYNTHETIC)
    seen = {"shortest_side": 300, "longest_side": 400, "most_heads": 1000}
    checkpoint.save({**checkpoint.read(ckpt), "seen": seen}, ckpt)
    status, out, err = script("eval.py", f"ckpt={ckpt}", *USUAL)
    assert status == 0, err
    assert "3 of 3 images far outside the training images (note in counts.csv): test_0000, test_0001, test_0002" in out
    rows = list(csv.DictReader((tmp_path / "eval" / "synthetic_test" / "counts.csv").read_text().splitlines()))
    assert list(rows[0])[:4] == ["image", "true", "predicted", "error"]
    note = "far outside the training images: shorter side 64 px, in training at least 300 px"
    assert [(row["width"], row["height"], row["note"]) for row in rows] == [("64", "64", note)] * 3


def test_names_of_checkpoints_that_are_no_plain_text_do_not_meet() -> None:
    names = ["a b.pt", "a-b.pt", "ä.pt", "ö.pt", "x" * 200 + "1.pt", "x" * 200 + "2.pt", "a.pth", "a.pt", "\udcff.pt"]
    folders = {evaluation_folder(Path("r"), "sha", "test", checkpoint=name).name for name in names}
    assert len(folders) == len(names)
    assert all(len(folder) < 80 and folder.isascii() for folder in folders)


@pytest.mark.slow
def test_a_published_dataset_that_moved_is_evaluated_by_the_settings_of_the_training(
    script: Script, tmp_path: Path
) -> None:
    make_shanghaitech(tmp_path / "data" / "part_A", {"train": HEADS, "test": HEADS})
    trained = ["dataset=sha", "dataset.min_side=64", "dataset.root=/gone", "dataset.cache_dir=/gone/cache"]
    ckpt = write_checkpoint(tmp_path, "model.width=8", *trained)
    cache = f"dataset.cache_dir={tmp_path / 'cache'}"
    for where in ("dataset.root=data/part_A", "data_root=data"):
        status, out, err = script("eval.py", f"ckpt={ckpt}", where, cache, *USUAL)
        assert status == 0, err
        assert "not on sha" not in out
    assert list(written(tmp_path / "eval")) == ["sha_test"]  # the same images in another place
    assert json.loads((tmp_path / "eval/sha_test/metrics.json").read_text())["images"] == 2
    status, _, err = script("scripts/draw_figure.py", f"ckpt={ckpt}", "--images", "1", "data_root=data", cache)
    assert status == 0, err


@pytest.mark.slow
def test_own_images_that_moved_take_their_annotations_along(script: Script, tmp_path: Path) -> None:
    old = own_images(tmp_path / "old")
    (old / "notes").mkdir()
    for file in old.glob("*.json"):
        file.rename(old / "notes" / file.name)
    trained = ["dataset=custom", f"dataset.root={old}", f"dataset.points={old / 'notes'}", "dataset.min_side=64"]
    ckpt = write_checkpoint(tmp_path, "model.width=8", *trained)
    usual = [f"ckpt={ckpt}", "split=train", f"dataset.cache_dir={tmp_path / 'cache'}", *USUAL]
    assert script("eval.py", *usual)[0] == 0
    shutil.copytree(old, tmp_path / "copy")
    old.rename(tmp_path / "new")
    for where in ("dataset.root=new", f"data_root={tmp_path / 'copy'}"):
        status, _, err = script("eval.py", *usual, where)
        assert status == 0, err
    found = written(tmp_path / "eval")
    assert len(found) == 3  # whether the two folders hold the same images is not known
    assert len({metrics["mae"] for metrics in found.values()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "typed", "said"),
    [
        ("dataset=sha", "dataset.min_side=64", "dataset has no min_side; allowed are cache, cache_dir,"),
        ("dataset=sha", "dataset.holdout=0.5", "dataset has no holdout"),
        ("dataset=sha", "dataset.points=x", "dataset.points=x: the counter was trained on sha, which has no points"),
        ("dataset=synthetic", "dataset.root=x", "trained on synthetic, which has no root"),
        ("dataset=sha", "dataset=as_trained", None),
    ],
)
def test_only_places_are_changed_without_naming_a_dataset(
    trained: str, typed: str, said: str | None, script: Script, tmp_path: Path
) -> None:
    ckpt = write_checkpoint(tmp_path, "model.width=8", trained)
    status, _, err = script("eval.py", f"ckpt={ckpt}", typed, *USUAL)
    assert status == 2
    assert said is None or said in err
    assert not (tmp_path / "eval").exists()


def test_nothing_is_trained_on_the_place_of_a_dataset(script: Script) -> None:
    status, _, err = script("train.py", "dataset=as_trained")
    assert status == 2
    assert "dataset=as_trained: no such choice; allowed are custom" in err


@pytest.mark.slow
def test_a_cache_may_be_named_for_every_checkpoint(script: Script, tmp_path: Path) -> None:
    """Scripts that evaluate many need not know which were trained on generated crowds."""
    ckpt = write_checkpoint(tmp_path, *SYNTHETIC)
    assert script("eval.py", f"ckpt={ckpt}", "dataset.cache_dir=c", *USUAL)[0] == 0
    cross = ["scripts/cross_evaluate.py", str(ckpt), "--datasets", "synthetic", "max_images=1", *USUAL]
    status, _, err = script(*cross, "dataset.cache_dir=c", "dataset.test_images=2")
    assert status == 0, err
    assert not (tmp_path / "c").exists()
