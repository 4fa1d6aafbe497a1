"""What is readable but cannot be meant is refused or reported, in training and in the audit."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data.folders import make_nwpu, write_image
from headcount.cli.compose import compose, to_config
from headcount.config import CustomConfig, FolderDatasetConfig, PointsFormat
from headcount.data.audit import audit_dataset
from headcount.data.open import open_split
from headcount.data.plausible import doubtful_positions
from headcount.engine.setup import open_data
from headcount.errors import DataError

PIXELS = [(10.0, 10.0), (20.0, 30.0), (40.0, 12.0)]


def write_folder(folder: Path, number: int, heads: object = PIXELS, *, first: int = 0) -> None:
    """Different images with the same heads."""
    for k in range(first, first + number):
        write_image(folder / f"img{k}.jpg", seed=k)
        (folder / f"img{k}.csv").write_text("".join(f"{x},{y}\n" for x, y in heads))  # type: ignore[attr-defined]


@pytest.fixture
def config(tmp_path: Path) -> CustomConfig:
    return CustomConfig(
        root=str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"), min_side=64, val_fraction=0.3, test_fraction=0
    )


# ------------------------------------------------------------------- one image in two splits


def the_folder_by_a_link(d: Path) -> Path:
    (d / "link").symlink_to(d / "train")
    return d / "link"


def its_folder_images(d: Path) -> Path:
    return d / "train" / "images"


def a_hard_link(d: Path) -> Path:
    write_folder(d / "val", 2, first=7)
    os.link(d / "train" / "images" / "img1.jpg", d / "val" / "other.jpg")
    (d / "val" / "other.csv").write_text("1,2\n")
    return d / "val"


def a_link(d: Path) -> Path:
    write_folder(d / "val", 2, first=7)
    (d / "val" / "img1.jpg").symlink_to(d / "train" / "images" / "img1.jpg")
    (d / "val" / "img1.csv").write_text("1,2\n")
    return d / "val"


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(
    ("make", "number"), [(the_folder_by_a_link, 4), (its_folder_images, 4), (a_hard_link, 1), (a_link, 1)]
)
def test_an_image_file_of_two_splits_is_refused_under_any_name(
    make: Callable[[Path], Path], number: int, split: str, config: CustomConfig, tmp_path: Path
) -> None:
    write_folder(tmp_path / "d" / "train" / "images", 4)
    config.root, config.train = None, str(tmp_path / "d" / "train")
    setattr(config, split, str(make(tmp_path / "d")))
    message = rf"{number} images? (is|are) in more than one split: train/img\d = {split}/(img\d|other)"
    for opened in ("train", split):
        with pytest.raises(DataError, match=message):
            open_split(config, opened)
    audit = audit_dataset(config)
    assert any(f"{number} image" in error and "in more than one split" in error for error in audit.errors)


@pytest.mark.parametrize("holdout", [False, True])
def test_an_image_and_its_link_in_one_folder_must_not_be_split(
    holdout: bool, config: CustomConfig, tmp_path: Path
) -> None:
    write_folder(tmp_path / "d", 1)
    for k in range(1, 8):
        os.link(tmp_path / "d" / "img0.jpg", tmp_path / "d" / f"img{k}.jpg")
        (tmp_path / "d" / f"img{k}.csv").write_text("1,2\n")
    if holdout:
        config.val_fraction, config.holdout = 0, 0.5
    with pytest.raises(DataError, match="1 image is in more than one split: train/img"):
        open_split(config, "train")


def test_lists_of_a_published_dataset_that_overlap_are_reported(tmp_path: Path) -> None:
    """They are as distributed, so nothing is refused."""
    heads = [(3.0, 3.0)]
    make_nwpu(tmp_path / "n", {"train": {"0001": heads, "0002": heads}, "val": {"0002": heads}, "test": {"0003": []}})
    nwpu = FolderDatasetConfig(name="nwpu", root=str(tmp_path / "n"), min_side=64, cache_dir=str(tmp_path / "cache"))
    message = "dataset=nwpu: 1 image is in more than one split: train/0002 = val/0002"
    assert message in open_split(nwpu, "train").describe()
    audit = audit_dataset(nwpu)
    assert audit.errors == []
    assert message in audit.warnings


# ------------------------------------------------------------------------- what is left out


def test_images_in_subfolders_that_are_left_out_are_reported(config: CustomConfig, tmp_path: Path) -> None:
    d = tmp_path / "d"
    write_folder(d, 4)
    write_folder(d / "images", 2, first=4)
    write_folder(d / "day2" / "noon", 3, first=6)
    write_folder(tmp_path / "elsewhere", 2, first=9)
    (d / "linked").symlink_to(tmp_path / "elsewhere")
    (d / "day2" / "up").symlink_to(d)  # a loop
    dataset = open_split(config, "train")
    (line,) = [line for line in dataset.describe() if "left out" in line]
    assert line.startswith("7 images are left out, being in a subfolder: day2/noon/img6.jpg, ")
    assert line.endswith(f"only those in {d} are read")
    assert line in audit_dataset(config).warnings
    config.root = str(d / "day2" / "noon")
    assert not any("left out" in line for line in open_split(config, "train").describe())


def test_images_of_another_split_are_not_left_out(config: CustomConfig, tmp_path: Path) -> None:
    write_folder(tmp_path / "d", 2)
    write_folder(tmp_path / "d" / "val", 2, first=2)
    config.train, config.val = ".", "val"
    assert open_split(config, "train").doubts == []


# ----------------------------------------------------------------- one annotation for one image


@pytest.mark.parametrize("table", [False, True])
def test_an_annotation_that_two_images_could_have_is_refused(table: bool, config: CustomConfig, tmp_path: Path) -> None:
    d = tmp_path / "d"
    for k, split in enumerate(("train", "val")):
        write_image(d / split / "same.jpg", seed=k)
        write_image(d / split / f"{split}.jpg", seed=2 + k)
    (d / "heads").mkdir()
    for name in ("same", "train", "val"):
        (d / "heads" / f"{name}.csv").write_text("1,2\n")
    (d / "all.csv").write_text("image,x,y\nsame,1,2\ntrain,1,2\nval,1,2\n")
    config.train, config.val, config.points = "train", "val", "all.csv" if table else "heads"
    for split in ("train", "val"):
        with pytest.raises(DataError, match=rf"1 of 2 images of {split}[\s\S]*have the same name, and an annotation"):
            open_split(config, split)
    config.skip_bad = True
    assert open_split(config, "train").names == ["train"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_annotation_linked_to_two_images_is_refused_unless_it_is_empty(
    link: Callable[..., None], config: CustomConfig, tmp_path: Path
) -> None:
    d = tmp_path / "d"
    write_folder(d, 1)
    for k in range(1, 4):
        write_image(d / f"img{k}.jpg", seed=k)
    link(d / "img0.csv", d / "img1.csv")
    (d / "img2.csv").write_text("x,y\n")
    link(d / "img2.csv", d / "img3.csv")
    config.val_fraction, config.skip_bad = 0, True
    dataset = open_split(config, "train")
    assert (dataset.names, dataset.left_out) == (["img2", "img3"], ["img0", "img1"])
    config.skip_bad = False
    with pytest.raises(DataError, match=r"img1\.csv, which is the same file as that of img0; each image needs its own"):
        open_split(config, "train")


# ------------------------------------------------------------------------ one file for all images


TABLES = {
    "annotations.csv": "image,x,y\n" + "".join(f"img{k}.jpg,1,2\n" for k in range(30)),
    "labels.txt": "filename\tx\ty\n" + "".join(f"img{k}.jpg\t1\t2\n" for k in range(30)),
    "all.json": "{" + ", ".join(f'"img{k}.jpg": [[1, 2]]' for k in range(30)) + "}",
    "list.json": "[" + ", ".join(f'{{"image": "img{k}.jpg", "points": []}}' for k in range(30)) + "]",
}


@pytest.mark.parametrize("name", TABLES)
def test_one_file_beside_the_images_is_named_with_its_setting(name: str, config: CustomConfig, tmp_path: Path) -> None:
    file = tmp_path / "d" / name
    for k in range(30):
        write_image(tmp_path / "d" / f"img{k}.jpg", seed=k)
    file.write_text(TABLES[name])
    config.val_fraction, config.holdout = 0, 0.1
    with pytest.raises(DataError, match="27 of 27 images of train") as error:
        open_split(config, "train")
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert f"dataset.points={file}" in lines[1]
    audit = audit_dataset(config)
    assert sum(f"dataset.points={file}" in line for error in audit.errors for line in error.splitlines()) == 2
    assert sum(len(error.splitlines()) for error in audit.errors) <= 5
    config.points = str(file)
    assert len(open_split(config, "train")) == 27


def test_a_table_beside_annotations_of_each_image_is_reported(config: CustomConfig, tmp_path: Path) -> None:
    write_folder(tmp_path / "d", 4)
    (tmp_path / "d" / "annotations.csv").write_text(TABLES["annotations.csv"])
    dataset = open_split(config, "train")
    assert dataset.left_out == []
    (line,) = dataset.doubts
    assert f"dataset.points={tmp_path / 'd' / 'annotations.csv'}; now it is not read" in line
    assert line in audit_dataset(config).warnings


def test_a_coco_file_beside_the_images_is_named_as_such(config: CustomConfig, tmp_path: Path) -> None:
    for k in range(4):
        write_image(tmp_path / "d" / f"img{k}.jpg", seed=k)
    file = tmp_path / "d" / "instances.json"
    file.write_text('{"images": [{"id": 1, "file_name": "img0.jpg"}], "annotations": []}')
    config.points, config.points_format = None, PointsFormat.auto
    with pytest.raises(DataError, match=r"instances\.json is a file of COCO about many images; read it with") as error:
        open_split(config, "train")
    assert "image images" not in str(error.value)


# ------------------------------------------------------------------------------------- positions


def test_shares_of_the_image_are_refused_or_left_out(config: CustomConfig, tmp_path: Path) -> None:
    write_folder(tmp_path / "d", 4)
    shares = np.random.default_rng(0).uniform(0, 1, (9, 2)).round(3)
    write_folder(tmp_path / "d", 6, shares, first=4)
    with pytest.raises(DataError, match=r"all 9 annotated heads lie within 0 and 1, so they are shares of the image"):
        open_split(config, "train")
    audit = audit_dataset(config)
    assert sum("shares of the image" in error for error in audit.errors) == 2  # in train and in val
    config.skip_bad = True
    left_out = {name for split in ("train", "val") for name in open_split(config, split).left_out}
    assert left_out == {f"img{k}" for k in range(4, 10)}


def heads(values: object) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float32)).reshape(-1, 2)


RANDOM = np.random.default_rng(1)
DOUBTFUL = {
    "percent": ([heads(RANDOM.uniform(0, 100, (9, 2))) for _ in range(3)], "3 images have .* percent of the image"),
    "percent in one image": ([heads(RANDOM.uniform(0, 100, (40, 2))), heads([[600, 400]])], "1 image has .* percent"),
    "one head each": ([heads(RANDOM.uniform(0.1, 0.9, (1, 2))) for _ in range(3)], "3 images have .* shares"),
    "a heap": (
        [heads([[5.2, 5.7]] * 4 + [[300, 200]]), heads([[600, 400]])],
        "1 image .* in one pixel or a few: img0",
    ),
    "heaps": ([heads([[5, 5]] * 5 + [[9, 370]] * 5 + [[600, 0]] * 5)], "1 image has .* in one pixel or a few"),
    "a heap of a pixel": ([heads(RANDOM.uniform(7, 8, (9, 2)))], "1 image has .* in one pixel"),
    "nobody at all": ([heads([]), heads([])], "none of the 2 images has an annotated head"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_positions_that_cannot_be_meant_are_reported(case: str) -> None:
    positions, message = DOUBTFUL[case]
    (line,) = doubtful_positions([f"img{k}" for k in range(len(positions))], positions, [(640, 480)] * len(positions))
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("positions", "size"),
    [
        ([heads(RANDOM.uniform(0, 100, (40, 2)))], (128, 96)),  # all over a small image
        ([heads([[20, 30], [50, 60]]), heads([[600, 400]])], (640, 480)),  # a few in the corner
        ([heads([[0.5, 0.5]]), heads([[600, 400]])], (640, 480)),  # one in the corner
        ([heads([[5, 5], [5, 5], [9, 9], [300, 1]])], (640, 480)),  # a click that was counted twice
        ([heads([]), heads([[300, 1]])], (640, 480)),
    ],
)
def test_positions_that_may_be_true_are_not_reported(positions: list[torch.Tensor], size: tuple[int, int]) -> None:
    assert doubtful_positions(["a", "b"][: len(positions)], positions, [size] * len(positions)) == []


def test_training_without_any_head_is_refused(tmp_path: Path) -> None:
    """Empty annotations mean nobody; all of them are a failed copy. An evaluation of nobody is possible."""
    write_folder(tmp_path / "d", 6, [])
    typed = [f"dataset.root={tmp_path / 'd'}", f"dataset.cache_dir={tmp_path / 'cache'}", "dataset.min_side=64"]
    config = to_config(compose(["dataset=custom", *typed], config_name="train"))
    with pytest.raises(DataError, match=r"none of the \d training images has an annotated head, so there is nothing"):
        open_data(config)
    assert any("none of the" in error for error in audit_dataset(config.dataset).errors)
    val = open_split(config.dataset, "val")
    assert val.describe_left_out() == [
        "none of the 1 images has an annotated head, so the best count is 0; check the annotations"
    ]
