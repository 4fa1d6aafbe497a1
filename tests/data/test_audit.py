"""The audit finds what is broken, odd or copied, and says it in the words training stops with."""

from pathlib import Path

import pytest

from data.folders import make_shanghaitech, write_image, write_info_mat
from headcount.config import ConfigError, FolderDatasetConfig, SyntheticConfig
from headcount.data.audit import Audit, audit_dataset, capped
from headcount.data.datasets import block_histogram, open_split


def config(root: Path, **settings: object) -> FolderDatasetConfig:
    values = {"min_side": 64, "max_side": 256, "cache_dir": str(root.parent / "cache"), **settings}
    return FolderDatasetConfig(name="sha", root=str(root), **values)  # type: ignore[arg-type]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    train = {
        "IMG_1": [(5.0, 5.0), (5.0, 5.0), (5.0, 5.0), (9.0, 9.0)],  # one place, three heads
        "IMG_2": [(-300.0, 4.0), (63.9, 63.9), (64.0, 10.0)],  # two of them outside
        "IMG_3": [],
        "IMG_4": [(1.0, 1.0)],  # broken below
        "IMG_5": [(1.0, 1.0)],  # its image is missing
        "IMG_6": [(1.0, 1.0)],  # its annotation is missing
    }
    root = tmp_path / "part_A"
    make_shanghaitech(root, {"train": train, "test": {"IMG_1": [(2.0, 2.0)]}})
    images = root / "train_data" / "images"
    for k in (1, 2, 3, 6):
        write_image(images / f"IMG_{k}.jpg", seed=k, mode="L" if k == 3 else "RGB")
    (images / "IMG_4.jpg").write_bytes((images / "IMG_1.jpg").read_bytes()[:400])
    (images / "IMG_5.jpg").unlink()
    (root / "train_data" / "ground-truth" / "GT_IMG_6.mat").unlink()
    (root / "test_data" / "images" / "IMG_1.jpg").write_bytes((images / "IMG_2.jpg").read_bytes())
    return root


def test_everything_wrong_is_found_at_once(faulty: Path) -> None:
    audit = audit_dataset(config(faulty))
    train, test = audit.splits
    assert (len(train.images), len(train.usable), train.heads) == (6, 3, 7)
    assert {i.name for i in train.images if i.problem} == {"IMG_4", "IMG_5", "IMG_6"}
    assert {i.name: (i.duplicates, i.outside) for i in train.usable} == {
        "IMG_1": (2, 0),
        "IMG_2": (0, 2),
        "IMG_3": (0, 0),
    }
    assert len(test.usable) == 1
    said = "\n".join(audit.warnings)
    assert "train: 2 heads at exactly the place of another, in 1 images (most in IMG_1: 2)" in said
    assert "train: 2 heads outside their image, in 1 images (most in IMG_2: 2)" in said
    assert "train: 1 images without people: IMG_3" in said
    assert "train: 1 images without colours: IMG_3" in said
    assert "1 images are there in more than one split" in said
    assert "train/IMG_2 = test/IMG_1" in said


def test_training_stops_with_the_same_words(faulty: Path) -> None:
    (error,) = audit_dataset(config(faulty)).errors
    with pytest.raises(ConfigError) as stopped:
        open_split(config(faulty), "train")
    assert str(stopped.value) == error
    assert "3 of 6 images of train cannot be used" in error


def test_blocks_are_those_that_training_counts(faulty: Path) -> None:
    settings = config(faulty, skip_bad=True)
    audit = audit_dataset(settings, block_size=4)
    dataset = open_split(settings, "train")
    assert sorted(audit.blocks) == [4, 8, 16, 32]
    for size, counted in audit.blocks.items():
        assert counted == block_histogram(dataset, size)
    assert audit.blocks[8][3] == 1  # the three heads on one place


def test_a_clean_folder_has_nothing_to_say(tmp_path: Path) -> None:
    tmp_path = tmp_path / "part_A"
    make_shanghaitech(tmp_path, {"train": {"IMG_1": [(3.0, 3.0)]}, "test": {"IMG_1": [(4.0, 4.0)]}})
    for split in ("train", "test"):
        write_image(tmp_path / f"{split}_data" / "images" / "IMG_1.jpg", seed=len(split))
        write_info_mat(tmp_path / f"{split}_data" / "ground-truth" / "GT_IMG_1.mat", [(3.0, 3.0)])
    audit = audit_dataset(config(tmp_path))
    assert (audit.errors, audit.warnings) == ([], [])
    assert not (tmp_path.parent / "cache").exists()  # an audit resizes nothing


def test_a_split_that_is_not_there_is_an_error_beside_the_others(tmp_path: Path) -> None:
    make_shanghaitech(tmp_path, {"train": {"IMG_1": [(3.0, 3.0)]}})
    (tmp_path / "test_data").mkdir()
    audit = audit_dataset(config(tmp_path))
    assert [split.name for split in audit.splits] == ["train"]
    assert "test_data needs the folders images and ground-truth" in audit.errors[0]


def test_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no folder with"):
        audit_dataset(config(tmp_path))


def test_drawn_crowds_are_audited_too() -> None:
    audit = audit_dataset(SyntheticConfig(train_images=3, val_images=2, test_images=2))
    assert [len(split.usable) for split in audit.splits] == [3, 2, 2]
    assert audit.errors == []
    assert sum(audit.blocks[8].values()) == 3 * (384 // 8) * (288 // 8)


def test_what_label_correction_caps() -> None:
    assert capped({0: 90, 4: 3, 5: 2, 9: 1}, 4) == (3, 2 * 1 + 5)


@pytest.mark.data
def test_shanghaitech_a(data_dir: Path) -> None:
    """Counts of the files as distributed; one of the training images is in the test split as well."""
    audit: Audit = audit_dataset(FolderDatasetConfig(name="sha"), data_root=str(data_dir))
    train, test = audit.splits
    assert (len(train.usable), len(test.usable)) == (300, 182)
    assert train.heads == 162_413
    assert sum(i.duplicates for i in train.usable) == 63
    assert sum(i.duplicates > 0 for i in train.usable) == 38
    assert audit.errors == []
