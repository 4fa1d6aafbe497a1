"""Facts about the datasets."""

from headcount.config import FolderDatasetConfig, SyntheticConfig
from headcount.data.catalogue import DATASETS, selection_split, source_split


def test_the_selection_split_is_the_fields_unless_images_are_held_out() -> None:
    assert selection_split(FolderDatasetConfig(name="sha")) == "test"
    assert selection_split(SyntheticConfig()) == "val"
    assert selection_split(FolderDatasetConfig(name="sha", holdout=0.1)) == "holdout"
    for info in DATASETS.values():
        assert info.selection in info.splits


def test_held_out_images_come_from_the_training_split() -> None:
    assert [source_split(split) for split in ("train", "holdout", "val", "test")] == ["train", "train", "val", "test"]
