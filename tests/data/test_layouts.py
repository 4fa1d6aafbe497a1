"""Every dataset is read from its folder as distributed, and a folder that cannot be says what is wrong with it."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data import folders
from data.folders import Heads, write_ann_mat, write_image
from headcount.cli.compose import compose
from headcount.config import (
    Cache,
    ConfigError,
    DatasetConfig,
    FolderDatasetConfig,
    Outside,
    SyntheticConfig,
    TrainConfig,
    UcfCc50Config,
)
from headcount.data.catalogue import DATASETS, dataset_info, selection_split
from headcount.data.layouts import nwpu_ids
from headcount.data.open import open_images, open_split
from headcount.errors import DataError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# A duplicate, two outside, nobody, one alone. The images are 64 x 64 and stay so.
HEADS: dict[str, Heads] = {
    "1": [(10.5, 20.25), (10.5, 20.25), (3.0, 4.0)],
    "2": [(-358.0, 20.0), (64.0, 63.5), (50.0, 6.25)],
    "3": [],
    "10": [(63.5, 0.0)],
}


def named(pattern: str, keys: str = "1 2 3 10") -> dict[str, Heads]:
    return {pattern.format(int(key)): HEADS[key] for key in keys.split()}


def config_of(name: str, tmp_path: Path, kind: type[FolderDatasetConfig] = FolderDatasetConfig) -> FolderDatasetConfig:
    return kind(name=name, cache_dir=str(tmp_path / "cache"), min_side=32, outside=Outside.drop)


def read(config: DatasetConfig, split: str, root: Path) -> dict[str, Heads]:
    """The heads of each image in pixels as distributed; images are not resized."""
    dataset = open_split(config, split, data_root=str(root))
    assert all(dataset[k].image.shape[1:] == (h, w) for k, (w, h) in enumerate(dataset.sizes))
    return {name: [(x, y) for x, y in dataset[k].points.tolist()] for k, name in enumerate(dataset.names)}


def assert_heads(read: Mapping[str, Heads], written: Mapping[str, Heads], *, side: float = 64) -> None:
    """The same images in natural order; heads as written, those outside shown on the border."""
    assert list(read) == list(written)
    for name, heads in written.items():
        inside = [(min(max(x, 0), side), min(max(y, 0), side)) for x, y in heads]
        assert [pytest.approx(head, abs=1e-4) for head in inside] == list(read[name]), name


# ------------------------------------------------------------------------------------------- each one


@pytest.mark.parametrize("part", ["part_B", "part_B_final", "ShanghaiTech/part_B", "shanghaitech/part_B_final"])
@pytest.mark.parametrize("annotations", ["ground-truth", "ground_truth"])
def test_shanghaitech_b(part: str, annotations: str, tmp_path: Path) -> None:
    written = {"train": named("IMG_{}"), "test": named("IMG_{}", "1 3")}
    folders.make_shanghaitech(tmp_path / part, written, annotations)
    for split, images in written.items():
        assert_heads(read(config_of("shb", tmp_path), split, tmp_path), images)


@pytest.mark.parametrize("folder", ["UCF-QNRF_ECCV18", "UCF-QNRF"])
@pytest.mark.parametrize("spell", [str.title, str.lower])
def test_qnrf(folder: str, spell: Callable[[str], str], tmp_path: Path) -> None:
    written = {"train": named("img_{:04d}"), "test": named("img_{:04d}", "2")}
    folders.make_qnrf(tmp_path / folder, {spell(split): images for split, images in written.items()})
    config = config_of("qnrf", tmp_path)
    for split, images in written.items():
        assert_heads(read(config, split, tmp_path), images)
    config.root = str(tmp_path / folder)
    assert_heads(read(config, "test", tmp_path / "nowhere"), written["test"])


@pytest.mark.parametrize("images_in", [["images"], ["images_part1", "images_part2", "images_part5"]], ids=len)
@pytest.mark.parametrize("jsons", [False, True], ids=["mats", "jsons"])
def test_nwpu(images_in: list[str], jsons: bool, tmp_path: Path) -> None:
    """Ids of the lists, padded or not, with luminance and level after them or without."""
    written = {"train": named("{:04d}"), "val": {"0004": HEADS["1"]}, "test": {"0005": []}}
    folders.make_nwpu(tmp_path / "NWPU-Crowd", written, folders=images_in, jsons=jsons)
    config = config_of("nwpu", tmp_path)
    for split in ("train", "val"):
        assert_heads(read(config, split, tmp_path), written[split])


@pytest.mark.slow
def test_nwpu_without_lists_is_split_as_published(tmp_path: Path) -> None:
    written = {"train": {"0001": HEADS["1"]}, "val": {"3110": HEADS["2"], "3609": []}, "test": {"3610": []}}
    folders.make_nwpu(tmp_path / "NWPU", written, lists=False)
    config = config_of("nwpu", tmp_path)
    config.skip_bad = True
    assert_heads(read(config, "val", tmp_path), written["val"])
    config.skip_bad, config.max_train_images = False, 1
    assert_heads(read(config, "train", tmp_path), {"0001": HEADS["1"]})
    with pytest.raises(DataError, match=r"498 of 500 images of val .*\n  3111, one of the val images 3110 to 3609,"):
        open_split(config, "val", data_root=str(tmp_path))


def test_the_annotations_of_nwpus_test_split_are_not_public(tmp_path: Path) -> None:
    written = {"train": named("{:04d}"), "val": {}, "test": {"0004": [], "0005": []}}
    folders.make_nwpu(tmp_path / "NWPU-Crowd", written)
    config = config_of("nwpu", tmp_path)
    with pytest.raises(ConfigError, match=r"test images are not public .*use split=val"):
        open_split(config, "test", data_root=str(tmp_path))
    images = tmp_path / "NWPU-Crowd" / "images"
    opened = open_images(config, "test", data_root=str(tmp_path))
    assert opened.names == ["0004", "0005"]
    assert opened[1].image.shape == (3, 64, 64)
    assert [opened.count(k) for k in range(2)] == [0, 0]
    (images / "0005.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 test images cannot be read:\n.*0005\.jpg"):
        open_images(config, "test", data_root=str(tmp_path))


def test_images_are_opened_in_the_order_of_the_datasets_list(tmp_path: Path) -> None:
    """All of them, whatever limits a training had; open_split sorts them."""
    written = {"train": named("{:04d}"), "val": {"0004": HEADS["1"], "0005": [], "0006": []}, "test": {}}
    folders.make_nwpu(tmp_path / "NWPU-Crowd", written)
    (tmp_path / "NWPU-Crowd" / "val.txt").write_text("6 0 0\n0004 0 0\n5 0 0\n")
    config = config_of("nwpu", tmp_path)
    config.max_eval_images = 1
    config.cache = Cache.decoded
    assert open_images(config, "val", data_root=str(tmp_path)).names == ["0006", "0004", "0005"]
    assert not list(tmp_path.rglob("*.npy"))
    assert (config.max_eval_images, config.cache) == (1, Cache.decoded)
    assert open_split(config, "val", data_root=str(tmp_path)).names == ["0004"]
    with pytest.raises(ConfigError, match="split=dev: nwpu has train, val, test"):
        open_images(config, "dev", data_root=str(tmp_path))


def test_jhu(tmp_path: Path) -> None:
    """Columns after x and y are other things, and an empty file is about nobody."""
    written = {"train": named("{:04d}"), "val": named("{:04d}", "2 3"), "test": named("{:04d}", "10")}
    folders.make_jhu(tmp_path / "jhu_crowd_v2.0", written)
    for split, images in written.items():
        assert_heads(read(config_of("jhu", tmp_path), split, tmp_path), images)


@pytest.mark.parametrize(("fold", "tested"), [(1, range(1, 11)), (3, range(21, 31)), (5, range(41, 51))])
def test_ucf_cc_50_tests_ten_images_a_fold(fold: int, tested: range, tmp_path: Path) -> None:
    folders.make_ucf_cc_50(tmp_path / "UCF_CC_50")
    config = config_of("ucf_cc_50", tmp_path, UcfCc50Config)
    assert isinstance(config, UcfCc50Config)
    config.fold = fold
    train, test = (open_split(config, split, data_root=str(tmp_path)) for split in ("train", "test"))
    assert test.names == [str(k) for k in tested]
    assert train.names == [str(k) for k in range(1, 51) if k not in tested]
    assert [test.count(k) for k in range(10)] == [k % 4 for k in tested]


def test_ucf_cc_50_names_those_of_the_50_that_are_missing(tmp_path: Path) -> None:
    root = tmp_path / "UCF_CC_50"
    folders.make_ucf_cc_50(root)
    for file in ("7.jpg", "7_ann.mat", "9_ann.mat"):
        (root / file).unlink()
    config = config_of("ucf_cc_50", tmp_path, UcfCc50Config)
    with pytest.raises(DataError, match=r"7, one of the 50, has no image .*7\.jpg\n.*9\.jpg has no annotation"):
        open_split(config, "test", data_root=str(tmp_path))
    with pytest.raises(ConfigError, match="cannot be read with the settings of FolderDatasetConfig"):
        open_split(config_of("ucf_cc_50", tmp_path), "test", data_root=str(tmp_path))


@pytest.mark.slow
def test_mall_trains_on_the_first_800_frames(tmp_path: Path) -> None:
    folders.make_mall(tmp_path / "mall_dataset", frames=803)
    config = config_of("mall", tmp_path)
    test = open_split(config, "test", data_root=str(tmp_path))
    assert test.names == ["seq_000801", "seq_000802", "seq_000803"]
    assert [test.count(k) for k in range(3)] == [801 % 3, 802 % 3, 803 % 3]
    assert test[1].points.tolist() == [[0, 5]]
    config.max_train_images = 5
    train = open_split(config, "train", data_root=str(tmp_path))
    assert [train.count(k) for k in range(5)] == [1, 2, 0, 1, 2]
    config.max_train_images = None
    (tmp_path / "mall_dataset/frames/seq_000800.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 800 images of train .*\n  frame 800 of .*mall_gt\.mat has no image"):
        open_split(config, "train", data_root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("sha", "test"), ("shb", "test"), ("qnrf", "test"), ("ucf_cc_50", "test"), ("mall", "test")),
        *(("nwpu", "val"), ("jhu", "val"), ("custom", "val"), ("synthetic", "val")),
    ],
)
def test_the_split_that_selects(name: str, split: str) -> None:
    config = composed(name)
    assert selection_split(config) == split
    config.holdout = 0.1
    assert selection_split(config) == "holdout"


# ------------------------------------------------------------------------------------ what may be wrong


def composed(name: str) -> DatasetConfig:
    config: TrainConfig = OmegaConf.to_object(compose([f"dataset={name}"], config_name="train"))
    return config.dataset


def make_any(name: str, root: Path) -> Path:
    """A small folder of the dataset below ``root``; its own folder."""
    trains = {"train": 3, "test": 2}
    if name in ("sha", "shb"):
        folder = root / f"part_{name[2].upper()}"
        folders.make_shanghaitech(folder, {s: dict(list(named("IMG_{}").items())[:n]) for s, n in trains.items()})
    elif name == "qnrf":
        folder = root / "UCF-QNRF_ECCV18"
        images = named("img_{:04d}")
        folders.make_qnrf(folder, {"Train": images, "Test": images})
    elif name == "nwpu":
        folder = root / "NWPU-Crowd"
        folders.make_nwpu(folder, {"train": named("{:04d}"), "val": named("{:04d}", "2"), "test": {"0004": []}})
    elif name == "jhu":
        folder = root / "jhu_crowd_v2.0"
        folders.make_jhu(folder, {split: named("{:04d}") for split in ("train", "val", "test")})
    elif name == "ucf_cc_50":
        folder = root / "UCF_CC_50"
        folders.make_ucf_cc_50(folder)
    elif name == "mall":
        folder = root / "mall_dataset"
        folders.make_mall(folder, frames=802)
    else:
        folder = root / "mine"
        for image, heads in named("photo_{}").items():
            write_image(folder / "images" / f"{image}.jpg")
            folders.write_nwpu_json(folder / "points" / f"{image}.json", heads)
    return folder


FOLDER_DATASETS = sorted(set(DATASETS) - {"synthetic"})


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_choice_of_dataset_opens(name: str, tmp_path: Path) -> None:
    config = composed(name)
    assert {f.stem for f in (CONFIGS / "dataset").glob("*.yaml")} == {*DATASETS, "mixed"}
    config.max_train_images = config.max_eval_images = 2
    if isinstance(config, FolderDatasetConfig):
        config.cache_dir, config.min_side = str(tmp_path / "cache"), 64  # small, as the images are
        folder = make_any(name, tmp_path)
        config.root = str(folder) if name == "custom" else None
    for split in ("train", selection_split(config)):
        dataset = open_split(config, split, data_root=str(tmp_path))
        assert 1 <= len(dataset) <= 2
        assert dataset[0].image.shape[0] == 3
        assert len(dataset[0].points) == dataset.count(0)
        assert not dataset.left_out


@pytest.mark.parametrize("name", [name for name in FOLDER_DATASETS if name != "custom"])
def test_a_folder_that_is_not_there_says_what_was_searched(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    config = composed(name)
    with pytest.raises(DataError) as error:
        open_split(config, "train", data_root=str(tmp_path))
    info = dataset_info(name)
    assert info.files is not None
    for words in (f"{tmp_path} holds other", *(f"  {tmp_path / f}" for f in info.files.folders), info.source):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        ("shb", "train_data", r"part_B needs the folder train_data; .* holds test_data"),
        ("jhu", "train", r"jhu_crowd_v2\.0 needs the folder train; .* holds test, val"),
        ("shb", "train_data/images", r"train_data needs the folders images and ground-truth .*train_data holds ground"),
        ("shb", "train_data/ground-truth/*", r"ground-truth holds no GT_IMG_<k>\.mat"),
        ("qnrf", "Train", r"UCF-QNRF_ECCV18 needs the folders Train and Test; .* holds Test"),
        ("qnrf", "Train/img_*", r"Train holds no img_<k>\.jpg with img_<k>_ann\.mat; .*Thumbs\.db"),
        ("nwpu", "mats", r"NWPU-Crowd needs a folder mats or jsons"),
        ("jhu", "train/gt", r"train needs the folders images and gt; .*train holds image_labels\.txt, images"),
        ("jhu", "train/images/*", r"images holds no images; .* holds nothing"),
        ("mall", "mall_gt.mat", r"mall_dataset needs mall_gt\.mat beside the folder frames; .*holds frames"),
    ],
)
def test_a_missing_part_is_named_with_what_is_there(name: str, removed: str, message: str, tmp_path: Path) -> None:
    folder = make_any(name, tmp_path)
    for path in sorted([p for r in folder.glob(removed) for p in (r, *r.rglob("*"))], reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    config = config_of(name, tmp_path)
    with pytest.raises(DataError, match=message):
        open_split(config, "train", data_root=str(tmp_path))


# For each dataset an image and an annotation of its training split.
PARTNERS = {
    "shb": ("train_data/images/IMG_1.jpg", "train_data/ground-truth/GT_IMG_1.mat"),
    "qnrf": ("Train/img_0001.jpg", "Train/img_0001_ann.mat"),
    "nwpu": ("images/0001.jpg", "mats/0001.mat"),
    "jhu": ("train/images/0001.jpg", "train/gt/0001.txt"),
}


@pytest.mark.parametrize("name", sorted(PARTNERS))
@pytest.mark.parametrize("missing", [0, 1], ids=["image", "annotation"])
def test_a_missing_partner_names_the_file(name: str, missing: int, tmp_path: Path) -> None:
    folder = make_any(name, tmp_path)
    files = [folder / file for file in PARTNERS[name]]
    files[missing].unlink()
    with pytest.raises(DataError, match=r"1 of \d images of train cannot be used") as error:
        open_split(config_of(name, tmp_path), "train", data_root=str(tmp_path))
    kinds = ("image", "annotation")
    assert f"{kinds[1 - missing]} {files[1 - missing]} has no {kinds[missing]} {files[missing]}" in str(error.value)


def test_separators_in_nwpus_lists_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0001 2,\n, 2;1 ;;\n,;\n3\n")
    assert nwpu_ids(tmp_path, "train") == {"0001": ["2"], "0002": ["1"], "0003": []}


def test_nwpus_lists_may_name_files(tmp_path: Path) -> None:
    folder = make_any("nwpu", tmp_path)
    (folder / "train.txt").write_text("0001.jpg 0 1\nimages/2.JPG 0 1\n0003.png\n10\n")
    dataset = open_split(config_of("nwpu", tmp_path), "train", data_root=str(tmp_path))
    assert dataset.names == ["0001", "0002", "0003", "0010"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val\.txt names no images; write one id per line, or remove it"),
        (" \n\n", r"val\.txt names no images"),
        ("0002 1 2\n2.jpg 0 0\n", r"val\.txt names 0002 twice"),
        (b"\xff\xfe\x00", r"val\.txt is not readable as text"),
    ],
)
def test_a_list_of_nwpu_that_cannot_be_used_says_why(text: str | bytes, message: str, tmp_path: Path) -> None:
    (make_any("nwpu", tmp_path) / "val.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        open_split(config_of("nwpu", tmp_path), "val", data_root=str(tmp_path))


def test_a_split_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lists them."""
    root = make_any("qnrf", tmp_path)
    files = DATASETS["qnrf"].files
    assert files is not None
    nobody = dataclasses.replace(files, list_split=lambda *_: [])
    monkeypatch.setitem(DATASETS, "qnrf", dataclasses.replace(DATASETS["qnrf"], files=nobody))
    config = config_of("qnrf", tmp_path)
    for holdout in (0.0, 0.1):
        config.holdout = holdout
        with pytest.raises(DataError, match=f"dataset=qnrf: train has no images in {root}; {root} holds Test, Train"):
            open_split(config, "train", data_root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        *(("shb", "train_data"), ("qnrf", "Train"), ("jhu", "train"), ("nwpu", "mats")),
        pytest.param("mall", "frames", marks=pytest.mark.slow),  # 801 images
    ],
)
@pytest.mark.parametrize("spell", [str.lower, str.title, str.upper])
def test_folders_are_found_in_any_case(name: str, folder: str, spell: Callable[[str], str], tmp_path: Path) -> None:
    root = make_any(name, tmp_path)
    (root / folder).rename(root / spell(folder))
    config = config_of(name, tmp_path)
    config.max_train_images = 2
    assert len(open_split(config, "train", data_root=str(tmp_path))) == 2


def test_ids_of_a_list_without_files_are_named(tmp_path: Path) -> None:
    folder = make_any("nwpu", tmp_path)
    with (folder / "train.txt").open("a") as file:
        file.write("0777 1 3\n812 0 0\n")
    with pytest.raises(DataError) as error:
        open_split(config_of("nwpu", tmp_path), "train", data_root=str(tmp_path))
    for name in ("0777", "0812"):
        expected = folder / "images" / f"{name}.jpg"
        assert f"{name}, named by {folder / 'train.txt'}, has no image {expected}" in str(error.value)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_all_bad_images_are_reported_or_left_out(skip_bad: bool, tmp_path: Path) -> None:
    """An empty file, one cut off, a text, a broken annotation, two missing partners; three are good."""
    base = tmp_path / "UCF-QNRF" / "Train"
    folders.make_qnrf(base.parent, {"Train": {f"img_{k:04d}": [(k, k)] for k in range(1, 10)}})
    (base / "img_0001.jpg").write_bytes(b"")
    cut = (base / "img_0002.jpg").read_bytes()
    (base / "img_0002.jpg").write_bytes(cut[: len(cut) * 3 // 4])
    (base / "img_0003.jpg").write_text("a page of an archive that asks to log in")
    (base / "img_0004_ann.mat").write_bytes(b"no mat file")
    (base / "img_0005_ann.mat").unlink()
    (base / "img_0006.jpg").unlink()
    config = config_of("qnrf", tmp_path)
    config.skip_bad = skip_bad
    if skip_bad:
        dataset = open_split(config, "train", data_root=str(tmp_path))
        assert dataset.names == ["img_0007", "img_0008", "img_0009"]
        assert dataset.left_out == [f"img_000{k}" for k in range(1, 7)]
        assert dataset.describe()[0] == (
            "6 of 9 images are left out, being unreadable or not annotated: "
            "img_0001, img_0002, img_0003, img_0004, img_0005, ..."
        )
        config.max_train_images = 2
        with pytest.raises(DataError, match="none of the 2 images of train can be used"):
            open_split(config, "train", data_root=str(tmp_path))
    else:
        with pytest.raises(DataError, match=r"6 of 9 images of train .*dataset\.skip_bad=true") as error:
            open_split(config, "train", data_root=str(tmp_path))
        reasons = str(error.value).splitlines()[1:]
        assert len(reasons) == 6
        assert all(f"img_000{k}" in reason for k, reason in enumerate(reasons, start=1))


def test_a_good_folder_has_nothing_to_leave_out(tmp_path: Path) -> None:
    make_any("jhu", tmp_path)
    dataset = open_split(config_of("jhu", tmp_path), "train", data_root=str(tmp_path))
    assert dataset.describe_left_out() == []
    assert dataset.describe()[0].startswith("4 images, 7 annotated heads, 1 images without any")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("ending", ["JPG", "jpeg", "PNG"])
def test_endings_and_colors_vary(ending: str, mode: str, tmp_path: Path) -> None:
    base = tmp_path / "UCF-QNRF" / "Train"
    write_image(base / f"img_0001.{ending}", mode=mode)
    write_ann_mat(base / "img_0001_ann.MAT", HEADS["1"])
    dataset = open_split(config_of("qnrf", tmp_path), "train", data_root=str(tmp_path))
    assert dataset.names == ["img_0001"]
    assert dataset[0].image.shape == (3, 64, 64)


# ------------------------------------------------------------------------------------ shares of training


def names_at(fraction: float, *, seed: int = 0, holdout: float = 0.0) -> set[str]:
    config = SyntheticConfig(
        train_images=40, width=32, height=32, max_people=2, train_fraction=fraction, holdout=holdout
    )
    return set(open_split(config, "train", seed=seed).names)


def test_a_smaller_share_is_part_of_a_larger_one_whatever_the_seed() -> None:
    shares = [0.001, 0.1, 0.25, 0.5, 0.9, 1.0]
    names = [names_at(share) for share in shares]
    assert [len(n) for n in names] == [1, 4, 10, 20, 36, 40]
    assert all(small < large for small, large in itertools.pairwise(names))
    assert names_at(0.25, seed=7) == names[2]


def test_the_share_is_taken_of_what_is_not_held_out() -> None:
    held = names_at(1.0) - names_at(1.0, holdout=0.2)
    assert len(held) == 8
    half = names_at(0.5, holdout=0.2)
    assert len(half) == 16
    assert not half & held


def test_evaluation_is_not_shared() -> None:
    config = SyntheticConfig(train_images=10, val_images=3, width=32, height=32, max_people=2, train_fraction=0.1)
    assert len(open_split(config, "val")) == 3
    config.holdout = 0.5
    assert len(open_split(config, "holdout")) == 5
