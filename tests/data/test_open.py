"""Folders as distributed become samples: every head counted, every oddity survived, every error plain."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.io
import torch
from PIL import Image

from headcount.config import AugmentConfig, Cache, ConfigError, FolderDatasetConfig, Outside, SyntheticConfig
from headcount.data.augment import TrainAugment, build_augment
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram
from headcount.data.open import open_split
from headcount.errors import DataError

MakeFolder = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> FolderDatasetConfig:
    return FolderDatasetConfig(name="sha", cache_dir=str(tmp_path / "cache"), max_side=4096)


def test_training_images_and_heads_are_read(make_shanghaitech: MakeFolder, config: FolderDatasetConfig) -> None:
    dataset = open_split(config, "train", data_root=str(make_shanghaitech()))
    assert dataset.names == ["IMG_1", "IMG_2", "IMG_3", "IMG_4", "IMG_10"]
    assert [dataset.count(k) for k in range(5)] == [3, 3, 3, 0, 4]
    assert dataset.sizes == [(448, 448), (448, 640), (480, 448), (512, 448), (608, 480)]
    for k, (width, height) in enumerate(dataset.sizes):
        sample = dataset[k]
        assert sample.image.shape == (3, height, width)
        assert len(sample.points) == dataset.count(k)
    # 182 x 260 became 448 x 640: heads move by exactly these ratios.
    expected = torch.tensor([(0.0, 0.0), (181.5 * 448 / 182, 259.5 * 640 / 260), (90 * 448 / 182, 100 * 640 / 260)])
    torch.testing.assert_close(dataset[1].points, expected)
    assert dataset[0].points.tolist()[0] == [10.5, 20.25]
    gray = dataset[2].image
    assert torch.equal(gray[0], gray[1])
    assert gray[0].float().std() > 10


@pytest.mark.parametrize("part", ["part_A", "part_A_final", "shanghaitech/part_A", "ShanghaiTech/part_A_final"])
@pytest.mark.parametrize("annotations", ["ground-truth", "ground_truth"])
def test_every_common_layout_is_found(
    part: str, annotations: str, make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root = make_shanghaitech(part, annotations)
    assert len(open_split(config, "test", data_root=str(root))) == 2


@pytest.mark.parametrize("below", ["", "ShanghaiTech", "ShanghaiTech/part_A"])
def test_root_may_name_the_dataset_or_a_folder_above(
    below: str, make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    config.root = str(make_shanghaitech() / below)
    assert len(open_split(config, "test")) == 2


def test_the_environment_names_the_data_root(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADCOUNT_DATA", str(make_shanghaitech()))
    assert len(open_split(config, "test")) == 2
    monkeypatch.delenv("HEADCOUNT_DATA")
    with pytest.raises(ConfigError, match=r"set dataset\.root, data_root or the environment variable HEADCOUNT_DATA"):
        open_split(config, "test")


def test_preparing_leaves_the_dataset_folder_as_it_was(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root = make_shanghaitech()
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    open_split(config, "train", data_root=str(root))
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_other_settings_prepare_other_sizes(make_shanghaitech: MakeFolder, config: FolderDatasetConfig) -> None:
    root = str(make_shanghaitech())
    open_split(config, "train", data_root=root)
    config.min_side = 480
    dataset = open_split(config, "train", data_root=root)
    assert dataset.sizes == [(480, 480), (480, 672), (512, 480), (544, 480), (608, 480)]
    assert [tuple(reversed(dataset[k].image.shape[1:])) for k in range(5)] == dataset.sizes


def test_evaluation_counts_heads_outside_and_shows_them_on_the_border(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    """IMG_10 has three of its four heads outside; it becomes 608 x 480."""
    config.outside = Outside.drop
    dataset = open_split(config, "test", data_root=str(make_shanghaitech()))
    x, y = dataset[1].points.T
    assert dataset.count(1) == len(x) == 4
    assert x[0] == 0
    assert 607.99 < x[1] < 608
    assert 479.99 < y[3] < 480


@pytest.mark.parametrize(("rule", "kept"), [(Outside.clamp, 4), (Outside.drop, 1)])
def test_training_moves_or_drops_heads_outside_and_says_so(
    rule: Outside, kept: int, make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    config.outside = rule
    dataset = open_split(config, "train", data_root=str(make_shanghaitech()))
    assert len(dataset.points(4)) == len(dataset[0, 4].points) == kept
    assert dataset.heads_outside == 3
    verb = {Outside.clamp: "moved", Outside.drop: "dropped"}[rule]
    assert any(line.startswith("3 heads lie outside their image") and verb in line for line in dataset.describe())


def test_heads_of_one_pixel_are_merged_in_training_if_asked(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root = str(make_shanghaitech())
    assert len(open_split(config, "train", data_root=root).points(0)) == 3
    config.one_head_per_pixel = True
    dataset = open_split(config, "train", data_root=root)
    assert dataset.heads_sharing_a_pixel == 2  # A duplicate in IMG_1, two close heads in IMG_3.
    assert [len(dataset.points(k)) for k in range(5)] == [2, 3, 2, 0, 4]
    samples = [dataset[0, 0], dataset[0, 2]]  # they keep every head: only labels count a pixel once
    assert [len(sample.points) for sample in samples] == [3, 3]
    assert len(dataset[0].points) == dataset.count(0) == 3


def test_holdout_splits_the_training_images(make_shanghaitech: MakeFolder, config: FolderDatasetConfig) -> None:
    root = str(make_shanghaitech())
    config.holdout = 0.4
    train, held = (open_split(config, split, data_root=root) for split in ("train", "holdout"))
    assert len(train) == 3
    assert len(held) == 2
    assert sorted(train.names + held.names) == sorted(["IMG_1", "IMG_2", "IMG_3", "IMG_4", "IMG_10"])
    assert open_split(config, "holdout", data_root=root, seed=9).names == held.names
    assert len(open_split(config, "test", data_root=root)) == 2
    config.holdout = 0.95
    with pytest.raises(ConfigError, match="leaves none to train on"):
        open_split(config, "train", data_root=root)


def test_limits_take_the_first_images(make_shanghaitech: MakeFolder, config: FolderDatasetConfig) -> None:
    root = str(make_shanghaitech())
    config.max_train_images, config.max_eval_images = 2, 1
    assert open_split(config, "train", data_root=root).names == ["IMG_1", "IMG_2"]
    assert open_split(config, "test", data_root=root).names == ["IMG_1"]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("shc", "train", "no dataset 'shc'; there are sha, shb, qnrf, nwpu, jhu, ucf_cc_50, mall, custom, synthetic"),
        ("sha", "val", "split=val: sha has train, test"),
        ("sha", "holdout", "split=holdout: sha has train, test"),
    ],
)
def test_an_unknown_dataset_or_split_is_refused(
    name: str, split: str, message: str, config: FolderDatasetConfig
) -> None:
    config.name = name
    with pytest.raises(ConfigError, match=message):
        open_split(config, split)


def test_a_missing_folder_says_what_was_searched_and_where_to_get_it(
    tmp_path: Path, config: FolderDatasetConfig
) -> None:
    (tmp_path / "ShanghaiTech").mkdir()
    with pytest.raises(DataError) as error:
        open_split(config, "train", data_root=str(tmp_path))
    text = str(error.value)
    for part in ("https://", str(tmp_path / "ShanghaiTech" / "part_A_final"), "holds ShanghaiTech"):
        assert part in text
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_split(config, "train", data_root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("images/IMG_3.jpg", r"annotation .*GT_IMG_3\.mat has no image .*IMG_3\.jpg"),
        ("ground-truth/GT_IMG_3.mat", r"image .*IMG_3\.jpg has no annotation .*GT_IMG_3\.mat"),
    ],
)
def test_an_image_or_annotation_without_partner_is_named(
    removed: str, message: str, make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root = make_shanghaitech()
    (root / "ShanghaiTech/part_A/train_data" / removed).unlink()
    with pytest.raises(DataError, match=message):
        open_split(config, "train", data_root=str(root))


def test_missing_annotations_are_reported_with_what_exists(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root = make_shanghaitech(annotations="labels")
    with pytest.raises(DataError, match=r"needs the folders images and ground-truth .* holds .*images, labels"):
        open_split(config, "train", data_root=str(root))


def test_a_training_sample_depends_on_seed_epoch_and_index_alone(
    make_shanghaitech: MakeFolder, config: FolderDatasetConfig
) -> None:
    root, augment = str(make_shanghaitech()), build_augment(AugmentConfig(crop_size=64))
    one, same = (open_split(config, "train", data_root=root, augment=augment, seed=3) for _ in range(2))
    other = open_split(config, "train", data_root=root, augment=augment, seed=4)
    same[1, 2]
    assert torch.equal(one[0, 1].image, same[0, 1].image)
    assert torch.equal(one[0, 1].points, same[0, 1].points)
    assert not torch.equal(one[0, 1].image, one[1, 1].image)
    assert not torch.equal(one[0, 1].image, other[0, 1].image)
    sizes, twins = [(448, 448)] * 2, [one[0].image] * 2
    pair = CrowdDataset(
        ["a", "b"], twins.__getitem__, [torch.zeros(0, 2)] * 2, source_sizes=sizes, sizes=sizes, augment=augment
    )
    assert not torch.equal(pair[0, 0].image, pair[0, 1].image)


def test_synthetic_splits_have_the_asked_sizes_and_differ() -> None:
    config = SyntheticConfig(train_images=4, val_images=2, test_images=1, width=96, height=64, max_people=20)
    splits = {split: open_split(config, split) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 4, "val": 2, "test": 1}
    assert not torch.equal(splits["train"][0].image, splits["val"][0].image)
    assert splits["train"][0].image.shape == (3, 64, 96)
    again = open_split(config, "train")
    assert all(torch.equal(splits["train"][k].image, again[k].image) for k in range(4))
    config.max_train_images = 2
    assert open_split(config, "train").names == splits["train"].names[:2]


def heads_of_mat(path: Path) -> int:
    """Rows of the position array, found by shape: independent of the reader."""
    found: list[int] = []

    def look(node: object) -> None:
        dtype, size = getattr(node, "dtype", None), getattr(node, "size", 0)
        if dtype is None or not size:
            return
        if dtype.names:
            for name in dtype.names:
                look(node[name])  # type: ignore[index]
        elif dtype.kind == "O":
            for element in node.flat:  # type: ignore[attr-defined]
                look(element)
        elif node.ndim == 2 and node.shape[1] == 2:  # type: ignore[attr-defined]
            found.append(len(node))  # type: ignore[arg-type]

    look(scipy.io.loadmat(path)["image_info"])
    assert len(found) == 1
    return found[0]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("split", "images"), [("train", 300), ("test", 182)])
def test_shanghaitech_a_is_read_whole(split: str, images: int, data_dir: Path, config: FolderDatasetConfig) -> None:
    dataset = open_split(config, split, data_root=str(data_dir), augment=build_augment(AugmentConfig(crop_size=448)))
    folder = next(data_dir.glob(f"**/part_A/{split}_data/ground-truth"))
    counts = {path.stem.removeprefix("GT_"): heads_of_mat(path) for path in folder.glob("*.mat")}
    assert len(dataset) == images
    assert {name: dataset.count(k) for k, name in enumerate(dataset.names)} == counts
    for k, (width, height) in enumerate(dataset.sizes):
        with Image.open(folder.parent / "images" / f"{dataset.names[k]}.jpg") as image:
            source = image.size
        assert min(width, height) >= 448
        assert width % 32 == height % 32 == 0
        assert abs(width / height / (source[0] / source[1]) - 1) < 0.08
    assert dataset[0, 7].image.shape == (3, 448, 448)
    histogram = block_histogram(dataset, 8)
    assert sum(count * blocks for count, blocks in histogram.items()) == sum(counts.values())


def test_decoded_images_give_the_same_samples(make_shanghaitech: MakeFolder, config: FolderDatasetConfig) -> None:
    """Written once, beside the resized images; the second opening reads no image file."""
    root = make_shanghaitech()
    augment = TrainAugment(crop_size=64)
    decoded = dataclasses.replace(config, cache=Cache.decoded)
    plain = open_split(config, "train", data_root=str(root), augment=augment, seed=3)
    mapped = open_split(decoded, "train", data_root=str(root), augment=augment, seed=3)
    for index in range(len(plain)):
        for key in (index, (2, index)):
            assert torch.equal(plain[key].image, mapped[key].image)
            assert torch.equal(plain[key].points, mapped[key].points)
    assert len(list(Path(config.cache_dir).rglob("decoded/train/*.npy"))) == len(plain)
