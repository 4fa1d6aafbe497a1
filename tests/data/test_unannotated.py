"""Images for a training without annotations: none is opened, none needs to exist."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headcount.config import (
    ConfigError,
    CropLayout,
    CustomConfig,
    DataError,
    MixedConfig,
    RankingConfig,
    SyntheticConfig,
)
from headcount.crops import cut_resized, nested_boxes
from headcount.data import custom
from headcount.data.loading import Targets, build_batches, nested_batch
from headcount.data.open import open_images, open_split, open_unannotated
from headcount.types import BlockGrid, Sample


def write_images(folder: Path, number: int, size: tuple[int, int] = (60, 40)) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(number):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{k}.png")


def config_of(folder: Path, test: str = "train", **settings: Any) -> CustomConfig:
    settings = {"min_side": 4, "side_multiple": 4, "cache_dir": str(folder / "cache"), **settings}
    return CustomConfig(train=str(folder / "train"), test=str(folder / test), **settings)


def test_a_folder_of_images_only(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "test", 1)
    config = config_of(tmp_path, "test")
    dataset = open_unannotated(config, "train")
    assert len(dataset) == 3
    assert dataset[0, 1].image.shape == (3, 40, 60)
    assert dataset.seen().most_heads is None
    assert dataset.describe() == ["3 images, whose annotations are not read"]
    with pytest.raises(DataError):
        open_split(config, "train")


def test_annotations_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "train", 2)
    for k in range(2):
        (tmp_path / "train" / f"{k}.csv").write_text("not an annotation")

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("an annotation was opened")

    monkeypatch.setattr(custom, "read_annotation", fail)
    config = config_of(tmp_path)
    dataset = open_unannotated(config, "train")
    assert [len(dataset[0, k].points) for k in range(2)] == [0, 0]


def test_the_number_of_images_is_limited(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 4)
    config = config_of(tmp_path, max_train_images=2)
    assert len(open_unannotated(config, "train")) == 2


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 2)
    (tmp_path / "train" / "broken.png").write_bytes(b"no image")
    config = config_of(tmp_path)
    with pytest.raises(DataError, match=r"1 of 3 images of train cannot be used(.|\n)*broken.png"):
        open_unannotated(config, "train")


def test_generated_crowds_lose_their_annotations() -> None:
    config = SyntheticConfig(train_images=2, width=64, height=48)
    dataset = open_unannotated(config, "train")
    annotated = open_split(config, "train")
    assert not dataset.has_annotations
    assert all(len(dataset[k].points) == 0 for k in range(2))
    assert torch.equal(dataset[0].image, annotated[0].image)


def test_parts_of_a_mixed_dataset(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3)
    folder = config_of(tmp_path)
    config = MixedConfig(parts=["a", "b"])
    config.datasets = {"a": SyntheticConfig(train_images=2, width=64, height=48), "b": folder}
    dataset = open_unannotated(config, "train")
    assert len(dataset) == 5
    assert not dataset.has_annotations
    assert dataset.seen().most_heads is None


def sample(width: int, height: int, seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return Sample(image, torch.zeros(0, 2), f"image{seed}")


def test_a_batch_of_nested_crops() -> None:
    """Images of any size; each gives its crops, smallest first."""
    samples = [sample(90, 60, 0), sample(31, 77, 1)]
    config = RankingConfig(crops=3, layout=CropLayout.top_left)
    batch = build_batches(config, Targets(frozenset({"rank"}), BlockGrid(8), input_size=32))(samples)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.names == ["image0", "image1"]
    assert batch.target("rank").tolist() == [[0, 1, 2], [0, 1, 2]]
    boxes = nested_boxes(31, 77, crops=3, layout=CropLayout.top_left)
    assert torch.equal(batch.images[3:], cut_resized(samples[1].image, boxes, size=32))
    with pytest.raises(ConfigError, match="which belong together"):
        batch.split(2)


@pytest.mark.parametrize(
    ("needs", "size", "message"),
    [
        ({"block_counts"}, 32, "the loss needs annotations; choose loss=mmr or loss=clip"),
        ({"rank"}, None, "needs a model of one input size; choose model=clip_ranking"),
    ],
)
def test_losses_and_models_that_do_not_fit(needs: set[str], size: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_batches(RankingConfig(), Targets(frozenset(needs), BlockGrid(8), input_size=size))


def test_a_batch_of_one_image_is_the_default() -> None:
    batch = nested_batch([sample(60, 60, 0)], config=RankingConfig(), size=32)
    assert len(batch.images) == 6


def test_images_that_cannot_be_read_are_left_out_on_request(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3)
    (tmp_path / "train" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 3 images of train cannot be used; .*dataset\.skip_bad=true"):
        open_unannotated(config_of(tmp_path), "train")
    dataset = open_unannotated(config_of(tmp_path, skip_bad=True), "train")
    assert (dataset.names, dataset.left_out) == (["0", "2"], ["1"])
    with pytest.raises(DataError, match="1 of 3 train images cannot be read"):  # a prediction misses none unsaid
        open_images(config_of(tmp_path, skip_bad=True), "train")


def test_the_seed_draws_the_images_of_weighted_parts() -> None:
    parts = {name: SyntheticConfig(width=32, height=32, max_people=2, train_images=8) for name in ("a", "b")}
    config = MixedConfig(parts=["a", "b"], weights=[0.5, 1.0])
    config.datasets = parts
    drawn = [open_unannotated(config, "train", seed=seed).drawn(0) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert not drawn[0] == drawn[2] == drawn[3]
