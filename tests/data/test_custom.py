"""Custom datasets: every annotation format and way to split them, and every mistake is reported with its file."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from data.folders import (
    Heads,
    as_array,
    write_ann_mat,
    write_image,
    write_info_mat,
    write_nwpu_json,
)
from headcount.cli.compose import compose, to_config
from headcount.config import Cache, ConfigError, CustomConfig, PointsFormat, check
from headcount.data.catalogue import selection_split
from headcount.data.crowd import CrowdDataset
from headcount.data.listing import SPLITS
from headcount.data.open import list_split, open_images, open_split
from headcount.errors import DataError

IMAGES: dict[str, Heads] = {"a": [(1.5, 2.0), (60.25, 3.0), (1.5, 2.0)], "b.v2": [(5.0, 6.5)], "c": []}
SIZE = 64  # of the images, which need no resizing


@pytest.fixture
def config(tmp_path: Path) -> CustomConfig:
    """All images of the folder ``mine`` but one train."""
    mine = tmp_path / "mine"
    return CustomConfig(
        root=str(mine), cache_dir=str(tmp_path / "cache"), min_side=SIZE, val_fraction=0.0, test_fraction=0.0, holdout=0
    )


def write_images(folder: Path, names: object = tuple(IMAGES), ending: str = "jpg") -> None:
    for name in names:  # type: ignore[attr-defined]
        write_image(folder / f"{name}.{ending}")


def heads_of(dataset: CrowdDataset) -> dict[str, Heads]:
    return {name: [(x, y) for x, y in dataset[k].points.tolist()] for k, name in enumerate(dataset.names)}


# ------------------------------------------------------------------------------------------- names

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
LATIN_1 = os.fsdecode(b"caf\xe9")
LONG = "x" * 251


def write_named(folder: Path, image: str, how: str, name: str) -> None:
    """An image and its head at (3, 4), annotated in one of the ways."""
    try:
        write_image(folder / f"{image}.png")
    except OSError:
        pytest.skip("this file system has no such names")
    if how == "file":
        (folder / f"{name}.csv").write_text("3,4\n", encoding="utf-8")
    elif how == "csv":
        (folder / "points.csv").write_text(f"image,x,y\n{name}.png,3,4\n", encoding="utf-8")
    else:
        (folder / "points.json").write_text(json.dumps({f"images/{name}.png": [[3, 4]]}), encoding="utf-8")


@pytest.mark.parametrize("how", ["file", "csv", "json"])
@pytest.mark.parametrize(
    ("image", "name", "text"),
    [
        (DECOMPOSED, COMPOSED, COMPOSED),
        (COMPOSED, DECOMPOSED, COMPOSED),
        (LATIN_1, r"caf\udce9", r"caf\udce9"),  # as our tables write it
        ("=a\u202eb", "=a\u202eb", r"=a\u202eb"),
    ],
    ids=["decomposed", "composed", "latin 1", "reversed"],
)
def test_names_match_however_they_are_encoded(
    image: str, name: str, text: str, how: str, config: CustomConfig, tmp_path: Path
) -> None:
    write_named(tmp_path / "mine", image, how, name)
    config.points = None if how == "file" else f"points.{how}"
    assert heads_of(open_split(config, "train")) == {text: [(3, 4)]}
    # A list names it the same way.
    (tmp_path / "mine" / "splits.json").write_text(json.dumps({"val": [f"{name}.png"]}), encoding="utf-8")
    config.split_file = "splits.json"
    assert open_split(config, "val").names == [text]


def test_the_split_of_an_image_does_not_depend_on_how_its_name_is_encoded(config: CustomConfig, tmp_path: Path) -> None:
    splits = []
    for folder, accent in (("nfc", "\u00e9"), ("nfd", "e\u0301")):
        write_images(tmp_path / folder, [f"{accent}{k}" for k in range(9)])
        half = dataclasses.replace(config, root=str(tmp_path / folder), val_fraction=0.5)
        listed = [list_split(half, split, data_root=None)[1] for split in ("train", "val")]
        splits.append([[item.name for item in items] for items in listed])
    assert splits[0] == splits[1]
    assert len(splits[0][0]) in range(1, 9)


@pytest.mark.parametrize("twice", ["image", "annotation", "table"])
def test_two_encodings_of_one_name_are_refused_and_told_apart(twice: str, config: CustomConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write_named(mine, COMPOSED, "csv" if twice == "table" else "file", COMPOSED)
    if twice == "image":
        write_image(mine / f"{DECOMPOSED}.png")
    elif twice == "annotation":
        (mine / f"{DECOMPOSED}.csv").write_text("5,6\n")
    else:
        config.points = "points.csv"
        with (mine / "points.csv").open("a", encoding="utf-8") as file:
            file.write(f"{DECOMPOSED}.png,5,6\n")
    spelled = "encodings of accents" if twice == "table" else re.escape(r"cafe\u0301")
    with pytest.raises(DataError, match=spelled):
        open_split(config, "train")


def test_names_as_long_as_they_may_be_are_resized_and_decoded(config: CustomConfig, tmp_path: Path) -> None:
    for k, name in enumerate((LONG[:-1] + "a", LONG[:-1] + "b", LATIN_1)):
        write_named(tmp_path / "mine", name, "file", name)
        (tmp_path / "mine" / f"{name}.csv").write_text(f"{k},0\n")
    config.min_side, config.cache = 96, Cache.decoded
    for _ in range(2):  # made, then found
        assert len({heads[0] for heads in heads_of(open_split(config, "train")).values()}) == 3
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(list((tmp_path / "cache").rglob("*.jpg"))) == 3


def test_no_line_of_a_message_is_made_up_by_a_name(config: CustomConfig, tmp_path: Path) -> None:
    try:
        write_image(tmp_path / "mine" / "a\n  b: all is well\x1b[2J.png")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DataError, match="cannot be used") as error:
        open_split(config, "train")
    assert len(str(error.value).splitlines()) == 2
    assert r"a\n  b: all is well\x1b[2J.png has no annotation" in str(error.value)


# ------------------------------------------------------------------------- a file for each image


def write_csv(path: Path, heads: Heads, *, header: str = "x,y\n", row: str = "{},{}\n") -> None:
    path.write_text(header + "".join(row.format(x, y) for x, y in heads))


WRITERS: dict[str, tuple[str, Callable[[Path, Heads], object]]] = {
    "csv with a header": ("{}.csv", write_csv),
    "csv without": ("{}.csv", lambda path, heads: write_csv(path, heads, header="")),
    "csv of other columns": (
        "{}.csv",
        lambda path, heads: write_csv(path, heads, header="\ufeffid; Y; X\n", row="7; {1}; {0}\n"),
    ),
    "csv of names in quotes": (
        "{}.csv",
        lambda path, heads: write_csv(path, heads, header='who,"X","y"\n', row='"Doe, J.", {},{}\n,,\n'),
    ),
    "tsv of an index": ("{}.csv", lambda path, heads: write_csv(path, heads, header="\tx\ty\n", row="0\t{}\t{}\n")),
    "txt of blanks": ("{}.txt", lambda path, heads: write_csv(path, heads, header="  x   y n\n", row=" {}  {} 7 \n")),
    "txt with tabs": ("{}.TXT", lambda path, heads: write_csv(path, heads, header="", row="{}\t{}\n\n")),
    "json list": ("{}.json", lambda path, heads: path.write_text(json.dumps(heads))),
    "json as nwpu": ("{}.json", write_nwpu_json),
    "json of annotations": ("{}.json", lambda path, heads: path.write_text(json.dumps({"annotations": heads}))),
    "json of human_points": ("{}.json", lambda path, heads: path.write_text(json.dumps({"human_points": heads}))),
    "json of x and y": (
        "{}.json",
        lambda path, heads: path.write_text(json.dumps({"points": [{"x": x, "y": y} for x, y in heads]})),
    ),
    "npy": ("{}.npy", lambda path, heads: np.save(path, as_array(heads))),
    "mat of annPoints": ("{}_ann.mat", write_ann_mat),
    "mat as shanghaitech": ("GT_{}.mat", write_info_mat),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_of_a_file_for_each_image(kind: str, config: CustomConfig, tmp_path: Path) -> None:
    pattern, write = WRITERS[kind]
    write_images(tmp_path / "mine")
    (tmp_path / "mine" / "points").mkdir()
    for name, heads in IMAGES.items():
        write(tmp_path / "mine" / "points" / pattern.format(name), heads)
    assert heads_of(open_split(config, "train")) == IMAGES


@pytest.mark.parametrize("images_in", ["", "images", "Images"])
@pytest.mark.parametrize(
    "points_in", ["<images>", "points", "annotations", "ground_truth", "ground-truth", "GT", "labels", "mats", "jsons"]
)
def test_points_are_found_beside_the_images_or_in_a_sibling_folder(
    images_in: str, points_in: str, config: CustomConfig, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    write_images(mine / images_in)
    for name, heads in IMAGES.items():
        write_nwpu_json(mine / (images_in if points_in == "<images>" else points_in) / f"{name}.json", heads)
    assert heads_of(open_split(config, "train")) == IMAGES
    if images_in:
        config.root = str(mine / images_in)  # the folder of the images itself
        assert heads_of(open_split(config, "train")) == IMAGES


def test_the_points_folder_and_format_may_be_said(config: CustomConfig, tmp_path: Path) -> None:
    """Two annotators, each with two formats, none of which is taken by chance."""
    mine = tmp_path / "mine"
    write_images(mine / "images", ["a"])
    for k, folder in enumerate([mine / "points", mine / "second", tmp_path / "third"]):
        write_nwpu_json(folder / "a.json", [(k, 1)])
        write_csv(folder / "a.csv", [(k, 2)])
    for points, points_format, expected in (
        (None, PointsFormat.csv, (0, 2)),
        ("second", PointsFormat.csv, (1, 2)),
        ("second", PointsFormat.json, (1, 1)),
        (str(tmp_path / "third"), PointsFormat.csv, (2, 2)),
    ):
        config.points, config.points_format = points, points_format
        assert heads_of(open_split(config, "train")) == {"a": [expected]}
    config.points_format = PointsFormat.auto
    with pytest.raises(DataError, match=r"a\.jpg has 2 annotations, .*a\.csv and .*a\.json; keep one, or choose with"):
        open_split(config, "train")
    config.points_format = PointsFormat.npy
    with pytest.raises(DataError, match=r"a\.jpg has no annotation a\{\.npy\} in .*third"):
        open_split(config, "train")
    config.points = "fourth"
    with pytest.raises(DataError, match=r"dataset\.points=fourth: there is no file or folder .*fourth"):
        open_split(config, "train")


# ------------------------------------------------------------------------------ one file for all


def table_of(kind: str) -> str:
    if kind == "csv":
        return "image,x,y\n" + "a.jpg,1.5,2\nb.v2.jpg,5,6.5\na.jpg,60.25,3\na.jpg,1.5,2\nc.jpg,,\n"
    if kind == "csv of other columns":
        rows = ["x\\a;1;2;1.5", "x/b.v2;1;6.5;5", "x\\a;1;3;60.25", "x\\a;1;2;1.5", "c;;;", ";;;"]
        return "FileName;kind;Y;X\n" + "\n".join(rows)
    if kind == "json":
        return json.dumps({f"images/{name}.jpg": heads for name, heads in IMAGES.items()})
    return json.dumps([{"file": f"{name}.PNG", "points": heads} for name, heads in IMAGES.items()])


@pytest.mark.parametrize("kind", ["csv", "csv of other columns", "json", "json list"])
def test_one_file_for_all_images(kind: str, config: CustomConfig, tmp_path: Path) -> None:
    write_images(tmp_path / "mine", ending="JPG")
    config.points = f"all.{kind.split()[0]}"
    (tmp_path / "mine" / config.points).write_text(table_of(kind))
    assert heads_of(open_split(config, "train")) == IMAGES


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("all.csv", "image,lon,lat\na,1,2\n", "line 1: the columns are 'image,lon,lat', expected image, x, y once"),
        ("all.csv", "a,1,2\n", r"the columns are 'a,1,2', expected image, x, y once"),
        ("all.csv", "image,x,y,x\n", "expected image, x, y once"),
        ("all.csv", "", "the columns are '', expected image, x, y once"),
        ("all.csv", "\nname,x,y\na,1,2\na,3,\n", r"all\.csv, line 4: 'a,3,' is not a position: 3 columns expected"),
        ("all.csv", "name,x,y\na,1,2\nb.v2\n", r"line 3: 'b\.v2' is not an image .* people has an empty x and y"),
        ("all.csv", "name;x;y\na;1,5;2,5\n", "line 2: 'a;1,5;2,5' is not a position: .*a point as decimal mark"),
        ("all.csv", 'name,x,y\n"a,1,2\n', "line 2: .*correct the quotation marks"),
        ("all.csv", "name,x,y\na.jpg,1,2\na.png,1,2\nb.v2,,\nc,,\n", "names a twice"),
        ("all.csv", "name,x,y\na,1,2\n", r'b\.v2\.jpg has no annotation in .*"b\.v2\.jpg,,"'),
        ("all.json", '{"a": [[1, 2]], "c": []}', r'b\.v2\.jpg has no annotation in .*"b\.v2\.jpg": \[\]'),
        ("all.json", '{"a": [[1, 2, 3]]}', r"a: expected a list of \[x, y\]"),
        ("all.json", '{"a": [[1, 2], [3]]}', r"a: expected a list of \[x, y\]"),
        ("all.json", '{"a": {"boxes": []}}', r"a: it holds \['boxes'\], expected points or"),
        ("all.json", '[{"points": []}]', r'item 0 is not \{"image": name'),
        ("all.json", '[{"name": "a", "points": []}, {"name": "a", "points": []}]', "has a twice"),
        ("all.json", '"a"', r"holds neither \{name"),
        ("all.json", '{"a": [', r"not a readable \.json file"),
        ("all.npy", "", r"one file with the heads of all images is a csv, json or xml file"),
    ],
)
def test_a_file_for_all_that_cannot_be_read_says_why(
    file: str, text: str, message: str, config: CustomConfig, tmp_path: Path
) -> None:
    write_images(tmp_path / "mine")
    (tmp_path / "mine" / file).write_text(text)
    config.points = file
    with pytest.raises(DataError, match=message) as error:
        open_split(config, "train")
    assert file in str(error.value)


# ---------------------------------------------------------------------------------------- splits


def write_many(folder: Path, names: object) -> None:
    """Each image with one head, at (its number, 1)."""
    for k, name in enumerate(names):  # type: ignore[call-overload]
        write_image(folder / f"{name}.jpg")
        write_csv(folder / f"{name}.csv", [(k, 1)])


def test_three_folders(config: CustomConfig, tmp_path: Path) -> None:
    """Names may repeat; absolute or below the root; points of each beside its images."""
    for k, folder in enumerate(["mine/train", "mine/val/images", "elsewhere"]):
        write_image(tmp_path / folder / "same.jpg")
        write_csv(tmp_path / folder / "same.csv", [(k, 1)])
    config.train, config.val = "train", "val"
    assert selection_split(config) == "val"
    with pytest.raises(ConfigError, match="split=test: custom has train, val"):
        open_split(config, "test")
    config.test = str(tmp_path / "elsewhere")
    for k, split in enumerate(["train", "val", "test"]):
        assert heads_of(open_split(config, split)) == {"same": [(k, 1)]}
    config.val = None
    assert selection_split(config) == "test"
    config.root = None
    with pytest.raises(DataError, match=r"dataset\.train=train: there is no folder train; \. holds"):
        open_split(config, "train")


def test_three_folders_may_have_their_points_in_three_others(config: CustomConfig, tmp_path: Path) -> None:
    for k, split in enumerate(["train", "val"]):
        write_image(tmp_path / "mine" / split / "same.jpg")
        write_nwpu_json(tmp_path / "mine" / "heads" / split / "same.json", [(k, 1)])
    config.train, config.val, config.points = "train", "val", "heads"
    for k, split in enumerate(["train", "val"]):
        assert heads_of(open_split(config, split)) == {"same": [(k, 1)]}


def test_shares_of_one_folder_depend_on_names_alone(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", [f"photo_{k}" for k in range(20)])
    config.val_fraction, config.test_fraction = 0.1, 0.25
    splits = {split: set(open_split(config, split, seed=k).names) for k, split in enumerate(["train", "val", "test"])}
    assert [len(names) for names in splits.values()] == [15, 1, 4]
    assert len(set.union(*splits.values())) == 20
    assert set(open_split(config, "test", seed=9).names) == splits["test"]
    config.val_fraction = 0.3  # more of the training images; the same are tested
    assert set(open_split(config, "test").names) == splits["test"]
    assert set(open_split(config, "val").names) > splits["val"]
    config.val_fraction = 0.0
    assert selection_split(config) == "test"
    with pytest.raises(ConfigError, match="split=val: custom has train, test"):
        open_split(config, "val")


def splits_of(config: CustomConfig) -> dict[str, str]:
    return {item.name: split for split in SPLITS for item in list_split(config, split, data_root=None)[1]}


def test_images_that_are_added_move_no_others(config: CustomConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    config.val_fraction, config.test_fraction = 0.1, 0.2
    before: dict[str, str] = {}
    for number in (60, 61, 62, 300):
        for k in range(len(before), number):
            (mine / f"photo_{k}.jpg").write_bytes(b"")
        after = splits_of(config)
        assert len(after) == number
        assert before.items() <= after.items()
        before = after
    shares = Counter(before.values())
    assert 20 <= shares["val"] <= 40
    assert 45 <= shares["test"] <= 75


@pytest.mark.parametrize("images", [3, 4, 5])
def test_every_split_of_a_small_folder_has_an_image(images: int, config: CustomConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    config.val_fraction, config.test_fraction = 0.01, 0.9
    for k in range(images):
        (tmp_path / "mine" / f"{k}.jpg").write_bytes(b"")
    assert set(splits_of(config).values()) == {"train", "val", "test"}


def test_a_folder_too_small_to_split(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a", "b"])
    config.val_fraction, config.test_fraction = 0.1, 0.2
    with pytest.raises(
        DataError, match=r"2 images are too few for dataset\.val_fraction=0\.1 and .*=0\.2.* set one to 0"
    ):
        open_split(config, "train")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("splits.csv", "a,train\nb.jpg,val\nc,test\n"),
        ("splits.csv", "\ufefffilename,subset\nimages/a.jpg,Train\n\nb.JPG, val\nc.jpg,TEST\n"),
        ("splits.json", '{"a": "train", "b.jpg": "val", "c.png": "test"}'),
        ("splits.json", '{"train": ["a"], "val": ["b.jpg"], "test": ["c"]}'),
    ],
)
def test_a_file_may_say_the_splits(file: str, text: str, config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a", "b", "c", "nowhere named"])
    (tmp_path / "mine" / file).write_text(text)
    config.split_file = file
    assert [open_split(config, split).names for split in ("train", "val", "test")] == [["a"], ["b"], ["c"]]
    assert selection_split(config) == "val"
    dataset = open_split(config, "val")
    assert dataset.in_no_split == ["nowhere named"]
    assert dataset.describe()[0] == "1 images are in no split of dataset.split_file: nowhere named"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("s.csv", "name,split\na,training\n", r"a is in split 'training'; there are train, val, test"),
        ("s.csv", "a,training\nb,val\n", r"a is in split 'training'; there are train, val, test \(a first line"),
        ("s.csv", "a,set\nb,val\n", "a is in split 'set'; there are"),
        ("s.csv", "a,train\na.png,val\n", "names a twice"),
        ("s.csv", "a;train\n", "'a;train' is not name,split"),
        ("s.json", '{"a": "dev"}', "a is in split 'dev'"),
        ("s.json", '{"dev": ["a"]}', "a is in split 'dev'"),
        ("s.json", '["a"]', "holds neither"),
        ("s.json", "{", "cannot be read"),
        ("s.csv", "name,split\n", r"s\.csv names no images"),
        ("t.csv", None, r"dataset\.split_file=.*t\.csv: no such file"),
        ("s.csv", "a,train\nz,train\nb,val\n", r"1 of 2 images of train [\s\S]*z, named by .*s\.csv, has no image in"),
        ("s.csv", "b,val\n", r"split=train: dataset\.split_file=s\.csv has no images in train, only in val; name some"),
    ],
)
def test_a_file_of_splits_that_cannot_be_used_says_why(
    file: str, text: str | None, message: str, config: CustomConfig, tmp_path: Path
) -> None:
    write_many(tmp_path / "mine", ["a", "b"])
    if text is not None:
        (tmp_path / "mine" / file).write_text(text)
    config.split_file = file
    with pytest.raises(DataError, match=message) as error:
        open_split(config, "train")
    assert file in str(error.value)


def test_there_must_be_images_to_select_on(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a", "b"])
    with pytest.raises(ConfigError, match=r"no val or test images to select a checkpoint on"):
        selection_split(config)
    config.holdout = 0.5
    assert selection_split(config) == "holdout"
    assert len(open_split(config, "holdout")) == len(open_split(config, "train")) == 1


def test_images_are_held_out_of_a_training_folder_of_its_own(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a", "b", "c", "d"])
    config.train, config.root, config.holdout = str(tmp_path / "mine"), None, 0.5
    train, held_out = (open_split(config, split).names for split in ("train", "holdout"))
    assert sorted([*train, *held_out]) == ["a", "b", "c", "d"]
    assert len(train) == len(held_out) == 2


# ------------------------------------------------------------------------------ what may be wrong


def test_an_image_without_annotation_is_named_or_left_out(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a", "b", "c"])
    for name in ("a", "c"):
        (tmp_path / "mine" / f"{name}.csv").unlink()
    (tmp_path / "mine" / "b.csv").write_text("")  # nobody
    with pytest.raises(DataError, match="2 of 3 images of train") as error:
        open_split(config, "train")
    for name in ("a", "c"):
        assert f"image {tmp_path / 'mine' / name}.jpg has no annotation {name}{{.csv,.txt" in str(error.value)
    config.skip_bad = True
    dataset = open_split(config, "train")
    assert heads_of(dataset) == {"b": []}
    assert dataset.left_out == ["a", "c"]
    images = open_images(config, "train")  # prediction needs no annotation
    assert images.names == ["a", "b", "c"]
    assert images[2].image.shape == (3, SIZE, SIZE)


def test_two_images_of_one_name_are_refused(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["a"])
    write_image(tmp_path / "mine" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have the same name"):
        open_split(config, "train")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n3\n", r"a\.csv, line 3: '3' is not a position: 2 columns expected"),
        (
            "a.txt",
            "0 0.5 0.5 0.1 0.1\n",
            r"a\.txt, line 1: '0 0\.5.*' has 5 columns, .* as YOLO writes them; convert the heads to pixels",
        ),
        ("a.csv", "0,10,20\n", r"a\.csv, line 1: '0,10,20' has 3 columns, .* name the columns x,y in a first line"),
        ("a.csv", "10\n", "has 1 columns, .* name the columns x,y"),
        ("a.csv", "1,2\n0,10,20\n", r"line 2: '0,10,20' is not a position: 2 columns expected"),
        ("a.csv", "x;y\n1,5;2,5\n", r"line 2: '1,5;2,5' is not a position: .* a point as decimal mark"),
        ("a.csv", "1,5;2,5\n", "has 3 columns"),
        ("a.csv", "label,x,y\nhead 1,10,20,\n", "line 2: 'head 1,10,20,' is not a position: 3 columns expected"),
        ("a.csv", "x,y,x\n1,2,3\n", r"the columns are 'x,y,x', expected x, y once"),
        ("a.csv", "1e39,2\n", r"not finite, \(1e\+39, 2\) first"),
        ("a.csv", "x,y\n1,two\n", r"a\.csv, line 2: '1,two' is not a position"),
        ("a.csv", "lon,lat\n1,2\n", r"a\.csv, line 1: the columns are 'lon,lat', expected x, y once"),
        ("a.csv", "1,2\nnan,3\n", "not finite"),
        ("a.txt", b"\xff\xfe\x00", "not readable as text"),
        ("a.json", "[1, 2]", r"expected a list of \[x, y\]"),
        ("a.json", '{"points": null}', r"expected a list of \[x, y\]"),
        ("a.json", '{"points": [["1", "2"]]}', r"expected a list of \[x, y\]"),
        ("a.json", "[[]]", r"expected a list of \[x, y\]"),
        ("a.json", "[[], []]", r"expected a list of \[x, y\]"),
        ("a.npy", b"no array", r"not a readable \.npy file"),
        ("a.mat", b"no mat", r"not a readable \.mat file"),
    ],
)
def test_an_annotation_that_cannot_be_read_says_why(
    file: str, content: str | bytes, message: str, config: CustomConfig, tmp_path: Path
) -> None:
    write_images(tmp_path / "mine", ["a"])
    path = tmp_path / "mine" / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        open_split(config, "train")
    assert str(path) in str(error.value)


def test_an_array_or_mat_of_another_shape_says_what_it_holds(config: CustomConfig, tmp_path: Path) -> None:
    write_images(tmp_path / "mine", ["a"])
    np.save(tmp_path / "mine" / "a.npy", np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"array of float64 of shape \(4, 3\)"):
        open_split(config, "train")
    np.save(tmp_path / "mine" / "a.npy", np.zeros((0, 3)))
    with pytest.raises(DataError, match=r"array of float64 of shape \(0, 3\)"):
        open_split(config, "train")
    np.save(tmp_path / "mine" / "a.npy", np.array([{"x": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable \.npy file"):  # it could run code
        open_split(config, "train")
    (tmp_path / "mine" / "a.npy").unlink()
    scipy.io.savemat(tmp_path / "mine" / "a.mat", {"heads": np.zeros((4, 2))})
    with pytest.raises(DataError, match=r"holds \['heads'\], expected annPoints or image_info"):
        open_split(config, "train")


def test_a_label_of_two_words_is_no_column(config: CustomConfig, tmp_path: Path) -> None:
    write_images(tmp_path / "mine", ["a"])
    (tmp_path / "mine" / "a.csv").write_text("label,x,y\nhead 1,10,20\n")
    assert heads_of(open_split(config, "train")) == {"a": [(10, 20)]}


@pytest.mark.parametrize("other", ["im.json", "im_ann.mat", "GT_im.mat", "points/im.csv"])
def test_two_annotations_of_an_image_are_named(other: str, config: CustomConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    write_many(mine, ["im", "other"])
    (mine / other).parent.mkdir(exist_ok=True)
    (mine / other).write_text("[[1, 2]]")
    with pytest.raises(DataError, match="1 of 2 images of train") as error:
        open_split(config, "train")
    assert f"image {mine / 'im.jpg'} has 2 annotations, " in str(error.value)
    assert all(str(file) in str(error.value) for file in (mine / "im.csv", mine / other))


def test_an_image_may_be_called_as_the_annotation_of_another(config: CustomConfig, tmp_path: Path) -> None:
    write_many(tmp_path / "mine", ["im", "im_ann", "GT_im"])
    assert heads_of(open_split(config, "train")) == {"GT_im": [(2, 1)], "im": [(0, 1)], "im_ann": [(1, 1)]}


@pytest.mark.parametrize("table", [False, True])
def test_annotations_without_an_image_are_named_or_left_out(table: bool, config: CustomConfig, tmp_path: Path) -> None:
    """In every split, and with the images that cannot be used."""
    mine = tmp_path / "mine"
    write_many(mine, ["a", "b", "c"])
    (mine / "splits.csv").write_text("a,train\nb,val\nc,test\n")  # no annotation
    config.split_file = "splits.csv"
    expected = [f"annotation {mine / f'img_typo{k}.csv'} has no image img_typo{k} in {mine}; correct" for k in (2, 10)]
    if table:
        (mine / "all.csv").write_text("image,x,y\na,1,2\nb,1,2\nc,1,2\nimg_typo2.jpg,1,2\nimg_typo10.jpg,,\n")
        config.points = "all.csv"
        expected = [f"annotation img_typo{k} of {mine / 'all.csv'} has no image img_typo{k}" for k in (2, 10)]
    else:
        for k in (2, 10):
            write_csv(mine / f"img_typo{k}.csv", [(1, 2)])
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"2 of 3 images of {split}") as error:
            open_split(config, split)
        assert all(words in str(error.value) for words in expected)
    config.skip_bad = True
    dataset = open_split(config, "train")
    assert (dataset.names, dataset.left_out) == (["a"], ["img_typo2", "img_typo10"])


@pytest.mark.parametrize("table", [False, True])
def test_three_folders_may_share_their_points(table: bool, config: CustomConfig, tmp_path: Path) -> None:
    """What is of another folder's image is no annotation without one; where a folder is away nobody knows."""
    mine = tmp_path / "mine"
    for split in ("train", "val", "test"):
        write_image(mine / split / ("images" if split == "val" else "") / f"{split}_1.jpg")
        (mine / "heads").mkdir(exist_ok=True)
        write_csv(mine / "heads" / f"{split}_1.csv", [(1, 2)])
    (mine / "heads.csv").write_text("image,x,y\n" + "".join(f"{split}_1,1,2\n" for split in ("train", "val", "test")))
    config.points = "heads.csv" if table else "heads"
    config.train, config.val, config.test = "train", "val", "test"
    for split in ("train", "val", "test"):
        assert heads_of(open_split(config, split)) == {f"{split}_1": [(1, 2)]}
    (mine / "val" / "images" / "val_1.jpg").rename(mine / "val" / "images" / "typo.jpg")
    with pytest.raises(DataError, match=r"annotation .*val_1.* has no image val_1 in"):
        open_split(config, "train")
    (mine / "val").rename(mine / "elsewhere")
    assert heads_of(open_split(config, "train")) == {"train_1": [(1, 2)]}


def test_an_error_about_many_images_has_few_lines(config: CustomConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for k in range(50):
        (tmp_path / "mine" / f"{k}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="50 of 50 images of train") as error:
        open_split(config, "train")
    lines = str(error.value).splitlines()
    assert len(lines) == 12
    assert "9.jpg" in lines[10]
    assert lines[11] == "  and 40 more"


def test_folders_that_are_not_there_or_empty_are_named(config: CustomConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.root=.*mine: there is no folder .*mine; .* holds nothing"):
        open_split(config, "train")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match=r"mine holds no images \(\.jpg, "):
        open_split(config, "train")
    config.root = None
    with pytest.raises(ConfigError, match=r"no folder given; set dataset\.root=FOLDER"):
        open_split(config, "train", data_root=str(tmp_path))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["val=b"], "dataset.val: needs dataset.train as well"),
        (["train=a"], "dataset.train: add dataset.val or dataset.test to select on"),
        (["train=a", "val=./a"], "dataset.train, dataset.val: two of these are one folder"),
        (["train=a", "val=b", "split_file=s.csv"], "dataset.split_file=s.csv: splits one folder"),
        (["val_fraction=0.5", "test_fraction=0.5"], "leave no images to train on"),
        (["val_fraction=0", "test_fraction=0"], "leave no images to select on"),
        (["train=a", "holdout=0.1"], None),
        (["split_file=s.csv", "val_fraction=0", "test_fraction=0"], None),
        ([], None),
    ],
)
def test_contradictions_are_reported_before_anything_is_read(typed: list[str], message: str | None) -> None:
    overrides = ["dataset=custom", *(f"dataset.{setting}" for setting in typed)]
    errors = check(to_config(compose(overrides, config_name="train")))
    assert [message in error for error in errors] == [True] if message else not errors


# ---------------------------------------------------------------------------------- real samples


def test_a_sample_of_nwpu_is_read_as_a_custom_dataset(data_dir: Path, tmp_path: Path) -> None:
    config = CustomConfig(root=str(data_dir / "NWPU-Crowd-sample"), cache_dir=str(tmp_path), max_side=1024)
    config.val_fraction = config.test_fraction = 0.0
    dataset = open_split(config, "train")
    counts = {name: int(dataset.count(k)) for k, name in enumerate(dataset.names)}
    assert counts == {"0001": 45, "0002": 0, "0003": 0, "0120": 739, "0183": 1384, "0294": 863}
    assert dataset[1].points.shape == torch.Size([0, 2])


def test_a_sample_of_qnrf_is_read_as_a_custom_dataset(data_dir: Path, tmp_path: Path) -> None:
    config = CustomConfig(root=str(data_dir / "UCF-QNRF-sample" / "unknown_split"), cache_dir=str(tmp_path))
    config.val_fraction, config.test_fraction = 0.1, 0.2
    opened = [open_split(config, split) for split in ("train", "val", "test")]
    assert [len(dataset) for dataset in opened] == [7, 1, 2]
    for dataset in opened:
        for k, name in enumerate(dataset.names):
            content = scipy.io.loadmat(data_dir / "UCF-QNRF-sample" / "unknown_split" / f"{name}_ann.mat")
            assert dataset.count(k) == len(content["annPoints"])
