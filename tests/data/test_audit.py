"""The audit finds what is broken, odd or copied, and says it in the words training stops with."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.folders import make_jhu, make_mall, make_nwpu, make_shanghaitech, make_ucf_cc_50, write_image, write_info_mat
from headcount.config import CustomConfig, FolderDatasetConfig, SyntheticConfig, UcfCc50Config
from headcount.data.audit import Audit, Fault, audit_dataset, capped
from headcount.data.histograms import block_histogram
from headcount.data.listing import SPLITS
from headcount.data.open import open_split
from headcount.errors import DataError


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
    assert train.faults == {Fault.image: 1, Fault.no_image: 1, Fault.no_annotation: 1}
    assert audit.copies == [[("train", "IMG_2"), ("test", "IMG_1")]]
    said = "\n".join(audit.warnings)
    assert "train: 2 heads at exactly the place of another, in 1 image (most in IMG_1: 2)" in said
    assert "train: 2 heads outside the image, in 1 image: IMG_2 (2, up to 300 px)" in said
    assert "train: 1 image without people: IMG_3" in said
    assert "train: 1 image without colors: IMG_3" in said
    assert "1 image the same byte for byte in more than one split" in said
    assert "train/IMG_2 = test/IMG_1" in said


def test_training_stops_with_the_same_words(faulty: Path) -> None:
    (error,) = audit_dataset(config(faulty)).errors
    with pytest.raises(DataError) as stopped:
        open_split(config(faulty), "train")
    assert str(stopped.value) == error
    assert "3 of 6 images of train cannot be used" in error


def test_what_training_leaves_out_is_no_error(faulty: Path) -> None:
    audit = audit_dataset(config(faulty, skip_bad=True))
    assert audit.errors == []
    left_out = next(w for w in audit.warnings if "skip_bad" in w)
    assert "train: 3 of 6 images are left out" in left_out
    assert left_out.count("\n") == 3


def test_annotations_are_broken_in_several_ways(tmp_path: Path) -> None:
    root = tmp_path / "part_A"
    make_shanghaitech(root, {s: {f"IMG_{k}": [(3.0, 3.0)] for k in (1, 2, 3)} for s in ("train", "test")})
    write_info_mat(root / "train_data" / "ground-truth" / "GT_IMG_1.mat", [(float("nan"), 3.0)])
    (root / "train_data" / "ground-truth" / "GT_IMG_2.mat").write_bytes(b"no mat file")
    audit = audit_dataset(config(root))
    assert audit.splits[0].faults == {Fault.not_finite: 1, Fault.annotation: 1}
    with pytest.raises(DataError) as stopped:
        open_split(config(root), "train")
    assert audit.errors == [str(stopped.value)]


def test_images_held_out_are_audited(tmp_path: Path) -> None:
    root = tmp_path / "part_A"
    make_shanghaitech(root, {"train": {f"IMG_{k}": [(3.0, 3.0)] for k in range(4)}, "test": {"IMG_9": [(3.0, 3.0)]}})
    audit = audit_dataset(config(root, holdout=0.25))
    assert {split.name: len(split.images) for split in audit.splits} == {"train": 3, "test": 1, "holdout": 1}


def test_what_stops_training_before_an_image_is_read_is_an_error(tmp_path: Path) -> None:
    for k in range(2):
        write_image(tmp_path / f"{k}.jpg", seed=k)
        (tmp_path / f"{k}.csv").write_text("x,y\n3,3\n")
    settings = {"val_fraction": 0.0, "test_fraction": 0.0, "cache_dir": str(tmp_path / "cache")}
    audit = audit_dataset(CustomConfig(name="custom", root=str(tmp_path), **settings))  # type: ignore[arg-type]
    assert len(audit.errors) == 2
    assert "no val or test images to select a checkpoint on" in audit.errors[0]
    assert "lies inside the dataset's folder" in audit.errors[1]


def test_images_without_public_annotations_are_counted_alone(tmp_path: Path) -> None:
    splits = {"train": {"0001": [(3.0, 3.0)]}, "val": {"0001": [(3.0, 3.0)]}, "test": {"0003": [], "0004": []}}
    make_nwpu(tmp_path, splits)
    (tmp_path / "images" / "0004.jpg").unlink()
    settings = {"min_side": 64, "cache_dir": str(tmp_path.parent / "cache")}
    audit = audit_dataset(FolderDatasetConfig(name="nwpu", root=str(tmp_path), **settings))  # type: ignore[arg-type]
    _, _, test = audit.splits
    assert (test.annotated, len(test.images), len(test.usable)) == (False, 2, 1)
    assert audit.errors == []  # none of these are needed
    said = "\n".join(audit.warnings)
    assert "test: 1 of 2 images cannot be read: " in said
    assert "1 image is in more than one split: train/0001 = val/0001" in said
    assert "test: 1 image without people" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "images", "heads"),
    [
        ("ucf_cc_50", make_ucf_cc_50, [40, 10], [60, 15]),
        ("mall", make_mall, [800, 3], [801, 3]),
        ("jhu", lambda root: make_jhu(root, {s: {"0001": [(3.0, 3.0)]} for s in SPLITS}), [1, 1, 1], [1, 1, 1]),
    ],
)
def test_other_layouts(
    tmp_path: Path, name: str, make: Callable[[Path], None], images: list[int], heads: list[int]
) -> None:
    make(tmp_path / name)
    kind = UcfCc50Config if name == "ucf_cc_50" else FolderDatasetConfig
    audit = audit_dataset(kind(name=name, root=str(tmp_path / name), min_side=64, cache_dir=str(tmp_path / "cache")))
    assert [len(split.usable) for split in audit.splits] == images
    assert [split.heads for split in audit.splits] == heads
    assert audit.errors == []


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


def test_dark_images_of_sixteen_bits_are_named(tmp_path: Path) -> None:
    for k, bits in enumerate((12, 16)):
        pixels = np.random.default_rng(0).integers(0, 2**bits, (64, 64), dtype=np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"i{bits}.png")
        (tmp_path / f"i{bits}.csv").write_text(f"{k},1\n")
    warnings = audit_dataset(CustomConfig(root=str(tmp_path), val_fraction=0, test_fraction=0)).warnings
    assert [line for line in warnings if "16 bits" in line] == [
        "train: 1 image nearly black, of 16 bits without a value above 4095; multiply 12-bit values by 16: i12"
    ]


def test_a_split_that_is_not_there_is_an_error_beside_the_others(tmp_path: Path) -> None:
    make_shanghaitech(tmp_path, {"train": {"IMG_1": [(3.0, 3.0)]}})
    (tmp_path / "test_data").mkdir()
    audit = audit_dataset(config(tmp_path))
    assert [split.name for split in audit.splits] == ["train"]
    assert "test_data needs the folders images and ground-truth" in audit.errors[0]


def test_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no folder with"):
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
    assert (train.heads, test.heads) == (162_413, 78_862)
    assert sum(i.duplicates for i in train.usable) == 63
    assert sum(i.duplicates > 0 for i in train.usable) == 38
    assert not train.faults
    assert not test.faults
    assert audit.copies == [[("train", "IMG_121"), ("test", "IMG_98")]]
    assert max(audit.blocks[8]) == 8
    assert capped(audit.blocks[8], 4) == (111, 137)
    assert audit.errors == []


def test_images_far_outside_those_of_the_training_are_named(tmp_path: Path) -> None:
    root = tmp_path / "part_A"
    heads = [(float(k), 1.0) for k in range(21)]
    make_shanghaitech(root, {"train": {"IMG_1": heads[:4]}, "test": {"IMG_1": heads, "IMG_2": [], "IMG_3": []}})
    write_image(root / "test_data" / "images" / "IMG_2.jpg", width=31, height=60)
    audit = audit_dataset(config(root))
    (said,) = [warning for warning in audit.warnings if "far outside" in warning]
    assert said == (
        "test: 2 images far outside the training images: IMG_1 (21 heads, in training at most 4), IMG_2 (shorter side "
        "31 px, in training at least 64 px)"
    )
    assert [bool(image.note) for split in audit.splits for image in split.images] == [False, True, True, False]
