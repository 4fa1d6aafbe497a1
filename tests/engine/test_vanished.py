"""What disappears in the middle of training, or takes no more, costs nothing, and one message says what to do."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headcount.cli.compose import compose, to_config
from headcount.config import TrainConfig
from headcount.engine import checkpoint
from headcount.engine import train as loop
from headcount.engine.train import train
from headcount.errors import DataError, OutputError
from interrupted import assert_same_run, config_of, folder_of

MIDDLE = checkpoint.MID_EPOCH


def after_step(number: int, work: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Let something happen after a step, counted over all epochs."""
    train_step, steps = loop.train_step, 0

    def stepping(*arguments: Any) -> Any:
        nonlocal steps
        result = train_step(*arguments)
        steps += 1
        if steps == number:
            work()
        return result

    patch.setattr(loop, "train_step", stepping)


# ------------------------------------------------------------------------------------------------- the run folder


@pytest.mark.slow
def test_a_run_folder_that_vanished_stops_with_its_name_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path)
    every = "save_every_minutes=1e-9"
    with monkeypatch.context() as patch:
        after_step(3, lambda: shutil.move(folder, tmp_path / "moved"), patch)
        with pytest.raises(OutputError) as caught:
            train(config_of(tmp_path, every))
    message = str(caught.value)
    assert message.startswith(f"{folder / MIDDLE} cannot be written: No such file or directory")
    assert "its folder was removed or moved, or is on a disk that is gone: put it back" in message
    assert f"{MIDDLE} are no longer in {folder}" in message
    assert "add resume=true to the same command" in message
    assert checkpoint.read(tmp_path / "moved" / MIDDLE)["step"] == 2
    shutil.move(tmp_path / "moved", folder)
    (folder / "run.lock").unlink()  # this process could not
    assert train(config_of(tmp_path, every, "resume=true")) is not None


def test_a_file_that_grows_too_large_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the system, so that the third saving really fails in the middle of the file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    every = "save_every_minutes=1e-9"
    with monkeypatch.context() as patch:
        after_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1])), patch)
        try:
            with pytest.raises(OutputError) as caught:
                train(config_of(tmp_path, every))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"{folder_of(tmp_path) / MIDDLE} cannot be written: File too large; free space")
    assert f"safe in {folder_of(tmp_path)}: {MIDDLE} of epoch 1, step 2" in message
    assert checkpoint.read(folder_of(tmp_path) / MIDDLE)["step"] == 2
    assert not list(folder_of(tmp_path).glob(".*"))
    assert train(config_of(tmp_path, every, "resume=true")) is not None


# ----------------------------------------------------------------------------------------------------- the dataset


def photographs(root: Path) -> None:
    """Eight images for training and two that select."""
    for split, images in (("train", 8), ("val", 2)):
        folder = root / split
        folder.mkdir(parents=True)
        for k in range(images):
            pixels = np.random.default_rng([k, images]).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{split}{k}.bmp")
            np.save(folder / f"{split}{k}.npy", np.full((3, 2), 9.0))


def custom(root: Path, output: Path, *overrides: str) -> TrainConfig:
    own = ["dataset=custom", f"dataset.train={root / 'train'}", f"dataset.val={root / 'val'}", "dataset.min_side=64"]
    sizes = ["scale=smoke", "dataset.max_train_images=8", "model.width=8", "runtime=cpu", "run_name=run"]
    typed = [*own, *sizes, f"dataset.cache_dir={root.parent / 'cache'}", f"output_dir={output}", *overrides]
    return to_config(compose([*typed, "epochs=3", "save_every_minutes=null"], config_name="train"))


@pytest.mark.parametrize(
    ("gone", "workers", "named"),
    [
        pytest.param(
            "data/train", 2, r"train\d\.bmp cannot be read as an image: .*No such file", marks=pytest.mark.slow
        ),
        pytest.param("data/train", 0, r"train\d\.bmp cannot be read as an image", marks=pytest.mark.slow),
        pytest.param("data/val", 2, r"val\d\.bmp cannot be read as an image", marks=pytest.mark.slow),
        pytest.param("cache", 2, r"\.npy cannot be read: .*that the next start makes again", marks=pytest.mark.slow),
    ],
)
def test_a_dataset_that_vanished_stops_with_the_name_of_an_image_in_any_process(
    tmp_path: Path, gone: str, workers: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(tmp_path / "data")
    cache = "decoded" if gone == "cache" else "none"
    settings = [f"runtime.workers={workers}", f"dataset.cache={cache}"]
    whole = train(custom(tmp_path / "data", tmp_path / "whole", *settings))
    assert whole is not None
    with monkeypatch.context() as patch:
        after_step(6, lambda: shutil.move(tmp_path / gone, tmp_path / "gone"), patch)
        with pytest.raises(DataError, match=named) as caught:
            train(custom(tmp_path / "data", tmp_path / "stopped", *settings))
    message = str(caught.value)
    assert "Traceback" not in message
    assert f"; safe in {tmp_path / 'stopped' / 'custom' / 'run' / 'seed1'}: " in message
    assert "Once the data are complete again, add resume=true to the same command" in message
    assert caught.value.file is not None
    assert str(caught.value.file) in message
    if gone != "cache":
        shutil.move(tmp_path / "gone", tmp_path / gone)
    resumed = train(custom(tmp_path / "data", tmp_path / "stopped", *settings, "resume=true"))
    assert resumed is not None
    assert_same_run(whole.folder, resumed.folder)
