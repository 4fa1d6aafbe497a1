"""Facts about the datasets, and that other places agree with them."""

from pathlib import Path

import pytest

from headcount.config import FolderDatasetConfig, SyntheticConfig
from headcount.data.catalogue import DATASETS, selection_split, source_split

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_the_selection_split_is_the_fields_unless_images_are_held_out() -> None:
    assert selection_split(FolderDatasetConfig(name="sha")) == "test"
    assert selection_split(SyntheticConfig()) == "val"
    assert selection_split(FolderDatasetConfig(name="sha", holdout=0.1)) == "holdout"
    for info in DATASETS.values():
        assert info.selection in info.splits


def test_held_out_images_come_from_the_training_split() -> None:
    assert [source_split(split) for split in ("train", "holdout", "val", "test")] == ["train", "train", "val", "test"]


@pytest.mark.parametrize("name", [name for name, info in DATASETS.items() if name not in ("custom", "synthetic")])
def test_the_comment_of_each_config_agrees(name: str) -> None:
    """Title and publication are the catalogue's, and so is the split that selects."""
    info = DATASETS[name]
    lines = (CONFIGS / "dataset" / f"{name}.yaml").read_text().splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    assert comment.startswith(info.title)
    assert info.license.split("; ")[1] in comment
    said = "validation split selects" if info.selection == "val" else "test"
    assert said in comment
