"""Several datasets as one: which image is which, how often each is drawn, and what is refused."""

from pathlib import Path

import pytest
import torch

from data.folders import write_image
from headcount.config import (
    AugmentConfig,
    ConfigError,
    CustomConfig,
    FolderDatasetConfig,
    MixedConfig,
    SyntheticConfig,
    TrainedDatasetConfig,
)
from headcount.data.audit import audit_dataset
from headcount.data.augment import TrainAugment, build_augment
from headcount.data.catalogue import selection_split, split_names
from headcount.data.histograms import block_histogram
from headcount.data.loading import EpochSampler
from headcount.data.locate import check_folders, locate
from headcount.data.mixed import MixedCrowd, refuse_shared
from headcount.data.open import missing_splits, open_split
from headcount.errors import DataError

SMALL = {"width": 64, "height": 64, "max_people": 9, "val_images": 2, "test_images": 1}


def small(images: int, **settings: object) -> SyntheticConfig:
    return SyntheticConfig(train_images=images, **{**SMALL, **settings})  # type: ignore[arg-type]


def both(**settings: object) -> MixedConfig:
    parts = {"a": small(3), "b": small(4, seed=5, width=96)}
    return MixedConfig(parts=list(parts), datasets=parts, **settings)  # type: ignore[arg-type]


@pytest.fixture
def augment() -> TrainAugment:
    return build_augment(AugmentConfig(crop_size=32))


def test_images_are_those_of_the_parts_one_after_the_other() -> None:
    config = both()
    mixed = open_split(config, "train")
    alone = {name: open_split(part, "train") for name, part in config.datasets.items()}
    assert mixed.parts() == {"a": range(3), "b": range(3, 7)}
    assert mixed.names[:1] + mixed.names[3:4] == ["a/train_0000", "b/train_0000"]
    for part, indices in mixed.parts().items():
        for k, index in enumerate(indices):
            assert torch.equal(mixed[index].image, alone[part][k].image)
            assert torch.equal(mixed[index].points, alone[part][k].points)
            assert torch.equal(mixed.points(index), alone[part].points(k))
            assert mixed.count(index) == alone[part].count(k)
            assert mixed.digest(index) == alone[part].digest(k)
            assert mixed.sizes[index] == alone[part].sizes[k]
    assert mixed[3].name == mixed[0, 3].name == "b/train_0000"
    counts = [block_histogram(dataset, 8) for dataset in (mixed, *alone.values())]
    assert all(counts[0][n] == counts[1].get(n, 0) + counts[2].get(n, 0) for n in counts[0])
    with pytest.raises(IndexError):
        mixed[7]


@pytest.mark.parametrize(
    ("weights", "per_part"),
    [(None, (3, 4)), ([1, 1], (3, 4)), ([2, 0.5], (6, 2)), ([1.34, 0.001], (4, 1)), ([0.3, 2.25], (1, 9))],
)
def test_weights_say_how_often_images_are_drawn(weights: list[float] | None, per_part: tuple[int, int]) -> None:
    mixed = open_split(both(weights=weights), "train")
    for epoch in range(3):
        drawn = mixed.drawn(epoch)
        assert len(drawn) == len(set(drawn)) == mixed.images_per_epoch == sum(per_part)
        assert sum(k % 7 < 3 for k in drawn) == per_part[0]
    images = [k % 7 for k in mixed.drawn(0)]
    for part, weight in zip(mixed.parts().values(), weights or [1, 1], strict=True):
        assert {images.count(k) for k in part} <= {int(weight), int(weight) + 1}


def test_a_fraction_draws_other_images_in_each_epoch_and_the_same_again() -> None:
    mixed = open_split(both(weights=[0.3, 0.5]), "train")
    epochs = [mixed.drawn(epoch) for epoch in range(20)]
    assert {k for epoch in epochs for k in epoch} == set(range(7))
    again = open_split(both(weights=[0.3, 0.5]), "train")
    assert epochs == [again.drawn(epoch) for epoch in range(20)]


def test_an_image_that_is_drawn_twice_is_cropped_twice(augment: TrainAugment) -> None:
    mixed = open_split(both(weights=[2, 1]), "train", augment=augment)
    first, second = mixed[0, 1], mixed[0, 1 + 7]
    assert first.name == second.name == "a/train_0001"
    assert not torch.equal(first.image, second.image)
    assert torch.equal(first.image, mixed[0, 1].image)
    assert not torch.equal(first.image, mixed[1, 1].image)


def test_the_sampler_shares_what_is_drawn_among_processes() -> None:
    mixed = open_split(both(weights=[2, 1]), "train")

    def batches(rank: int, world: int) -> list[list[tuple[int, int]]]:
        size = 4 // world
        return list(EpochSampler(10, batch_size=size, seed=1, rank=rank, world=world, drawn=mixed.drawn))

    whole = batches(0, 1)
    shares = [batches(rank, 2) for rank in range(2)]
    assert [sorted(batch) for batch in whole] == [sorted(a + b) for a, b in zip(*shares, strict=True)]
    assert {index for batch in whole for _, index in batch} <= set(mixed.drawn(0))


def test_the_selection_is_that_of_the_parts() -> None:
    sha = FolderDatasetConfig(name="sha", holdout=0.5)
    assert selection_split(both()) == "val"
    assert split_names(both()) == ("train", "val", "test", "selection")
    mixed = MixedConfig(datasets={"a": small(4), "b": small(4, holdout=0.5)})
    assert selection_split(mixed) == "selection"
    assert open_split(mixed, "selection").names == ["a/val_0000", "a/val_0001"] + [
        f"b/{name}" for name in open_split(mixed.datasets["b"], "holdout").names
    ]
    assert selection_split(MixedConfig(datasets={"a": small(4, holdout=0.5), "sha": sha})) == "holdout"
    with pytest.raises(ConfigError, match="part a: split=holdout: synthetic has train, val, test"):
        open_split(mixed, "holdout")


def custom(root: Path, *names: str) -> CustomConfig:
    for k, name in enumerate(names):
        write_image(root / f"{name}.png", seed=k)
        (root / f"{name}.csv").write_text("x,y\n1,2\n")
    return CustomConfig(root=str(root), cache_dir=str(root.parent / "cache"), min_side=64, val_fraction=0, holdout=0.3)


def test_a_part_without_files_is_named(tmp_path: Path) -> None:
    mixed = MixedConfig(datasets={"a": small(2), "sha": FolderDatasetConfig(name="sha")})
    for use in (check_folders, lambda config, data_root: open_split(config, "train", data_root=data_root)):
        with pytest.raises(DataError, match="part sha: dataset=sha: found no folder"):
            use(mixed, data_root=str(tmp_path))
    with pytest.raises(ConfigError, match="dataset=mixed: each part is audited alone: dataset=synthetic or dataset=sh"):
        audit_dataset(mixed)


def test_missing_test_images_do_not_matter_with_held_out_images(tmp_path: Path) -> None:
    images = tmp_path / "part_B" / "train_data" / "images"
    for k in range(4):
        write_image(images / f"IMG_{k}.jpg", seed=k)
    (tmp_path / "part_B" / "train_data" / "ground-truth").mkdir()
    shb = FolderDatasetConfig(name="shb", holdout=0.3)
    found = missing_splits(MixedConfig(datasets={"a": small(2), "shb": shb}), data_root=str(tmp_path))
    assert found == ["shb: no images of 'test' were found; this run does not need them"]
    assert missing_splits(FolderDatasetConfig(name="shb"), data_root=str(tmp_path)) == []  # it selects, and is needed


def test_an_image_that_one_part_trains_on_and_another_selects_with_is_refused(tmp_path: Path) -> None:
    first = custom(tmp_path / "first", *"abcdefgh")
    second = custom(tmp_path / "second", *"ijkl")
    mixed = MixedConfig(datasets={"first": first, "second": second})
    train, held = open_split(mixed, "train"), open_split(mixed, "holdout")
    refuse_shared(train, held)
    assert isinstance(held, MixedCrowd)
    held.members["second"].sources[0].unlink()
    held.members["second"].sources[0].symlink_to(train.members["first"].sources[0])
    with pytest.raises(DataError, match="1 image files are trained on in one part and select in another"):
        refuse_shared(train, held)


def test_the_folders_of_a_mixture_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_DATA", raising=False)
    own = custom(tmp_path / "own", "a")
    sha = FolderDatasetConfig(name="sha", root=str(tmp_path / "gone"))
    mixed = MixedConfig(datasets={"own": own, "sha": sha})
    located = locate(mixed, typed=TrainedDatasetConfig(cache_dir="/c"), data_root="/data")
    assert isinstance(located.config, MixedConfig)
    assert [(part.root, part.cache_dir) for part in located.config.datasets.values()] == [  # type: ignore[attr-defined]
        (str(tmp_path / "own"), "/c"),
        (None, "/c"),
    ]
    assert sha.root == str(tmp_path / "gone")
    with pytest.raises(DataError, match=r"part sha: .*, the folder of the images in training, no longer exists"):
        locate(mixed)
    with pytest.raises(ConfigError, match=r"dataset\.root=/x: the counter was trained on mixed, which has no root"):
        locate(mixed, typed=TrainedDatasetConfig(root="/x"))
