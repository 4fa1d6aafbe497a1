"""Masks are found beside the images, named, or in a table; every mistake is reported with its file."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from data.folders import make_mall, write_image, write_mall_mat
from headcount.config import Cache, ConfigError, CustomConfig, FolderDatasetConfig
from headcount.data.audit import Fault, audit_dataset
from headcount.data.augment import TrainAugment
from headcount.data.crowd import CrowdDataset
from headcount.data.kinds import DataErrorKind
from headcount.data.locate import locate
from headcount.data.mask_files import read_mask
from headcount.data.masks import PixelMask
from headcount.data.open import open_split, split_faults
from headcount.errors import DataError

SIZE = 64
# Heads of every image: two left of the middle, one on the first column right of it, one far right.
HEADS = [(3.0, 3.0), (31.9, 10.0), (32.0, 10.0), (60.0, 50.0)]
LEFT = np.zeros((SIZE, SIZE), dtype=np.uint8)
LEFT[:, : SIZE // 2] = 1
Folder = Callable[..., CustomConfig]


@pytest.fixture
def make(tmp_path: Path) -> Folder:
    """Makes a folder of images ``a`` and ``b`` with annotations in a folder or a table, all for training."""

    def made(*, table: str | None = None, **settings: Any) -> CustomConfig:
        root = tmp_path / "my"
        for name in ("a", "b"):
            write_image(root / "images" / f"{name}.jpg")
            if table is None:
                (root / "points").mkdir(exist_ok=True)
                (root / "points" / f"{name}.csv").write_text("".join(f"{x},{y}\n" for x, y in HEADS))
        if table is not None:
            (root / "all.csv").write_text(table)
            settings["points"] = "all.csv"
        return CustomConfig(
            root=str(root),
            cache_dir=str(tmp_path / "cache"),
            min_side=SIZE,
            val_fraction=0.0,
            test_fraction=0.0,
            **settings,
        )

    return made


def write_mask(path: Path, inside: np.ndarray = LEFT, *, value: int = 255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(inside * np.uint8(value)).save(path)


def opened(config: FolderDatasetConfig, split: str = "train") -> CrowdDataset:
    return open_split(config, split)


def counts(config: FolderDatasetConfig) -> list[float]:
    dataset = opened(config)
    return [dataset.count(k) for k in range(len(dataset))]


def polygons(path: Path, *shapes: list[tuple[float, float]]) -> None:
    drawn = [{"label": str(k), "points": shape, "shape_type": "polygon"} for k, shape in enumerate(shapes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"shapes": drawn, "imagePath": "x", "imageWidth": SIZE, "imageHeight": SIZE}))


# ---------------------------------------------------------------------------------------- where they are


def test_without_masks_heads_count_everywhere(make: Folder) -> None:
    config = make()
    assert counts(config) == [4, 4]
    assert not opened(config).has_masks


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "PNG"])
def test_a_folder_beside_the_images_has_a_mask_of_each(make: Folder, ending: str) -> None:
    config = make()
    root = Path(config.root or "")
    write_mask(root / "masks" / f"a.{ending}", value=1)
    write_mask(root / "masks" / f"b.{ending}", 1 - LEFT)
    dataset = opened(config)
    assert [dataset[k].points[:, 0].tolist() for k in range(2)] == [[3, pytest.approx(31.9)], [32, 60]]
    assert dataset[0].mask is not None
    shares = dataset[0].mask.shares(32)
    assert shares.tolist() == [[1, 0], [1, 0]]
    assert split_faults(config, data_root=None) == ([], [])  # masks are not images that were left out
    assert counts(dataclasses.replace(config, mask="none")) == [4, 4]


@pytest.mark.parametrize("name", ["a_mask.png", "amask.mat", "a-mask.png", "a_roi.json"])
def test_other_names_of_a_mask_and_other_formats(make: Folder, name: str) -> None:
    config = make()
    folder = Path(config.root or "") / "masks"
    write_mask(folder / "b.png", np.ones_like(LEFT))
    match name.rpartition(".")[2]:
        case "png":
            write_mask(folder / name)
        case "mat":  # as in TRANCOS
            scipy.io.savemat(folder / name, {"BW": LEFT.astype(bool)})
        case "json":
            polygons(folder / name, [(0, 0), (32, 0), (32, 64), (0, 64)])
    assert counts(config) == [2, 4]


@pytest.mark.parametrize("where", ["masks", "named"])
def test_a_folder_may_be_named(make: Folder, where: str, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    for name in ("a", "b"):
        write_mask(folder / f"{name}.png")
    assert counts(make(mask=str(folder))) == [2, 2]


@pytest.mark.parametrize("file", ["roi.png", "roi.mat", "roi.json", "images/roi.png"])
def test_one_mask_for_all_images(make: Folder, file: str) -> None:
    """Also where images or annotations are looked for, of which it is none."""
    config = make(mask=file)
    path = Path(config.root or "") / file
    if path.suffix == ".png":
        write_mask(path)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, {"roi": {"xi": np.zeros(3), "mask": LEFT.astype(bool)}})  # as in UCSD
    else:
        polygons(path, [(0, 0), (16, 0), (16, 64), (0, 64)], [(16, 0), (32, 0), (32, 64), (16, 64)])
    assert counts(config) == [2, 2]
    assert split_faults(config, data_root=None) == ([], [])


TABLE = 'image,x,y,mask\na.jpg,3,3,"0,0,32,64"\na.jpg,40,3,\nb.jpg,3,3,"0%,0%,50%,0%,50%,100%"\nb.jpg,50,3,\n'


def test_a_column_of_the_annotations(make: Folder) -> None:
    config = make(table=TABLE)
    assert counts(config) == [1, 1]
    dataset = opened(config)
    assert dataset[1].mask is not None
    assert float(dataset[1].mask.shares(64)) == pytest.approx(0.25)  # the triangle


def test_a_table_of_its_own(make: Folder) -> None:
    config = make(mask="masks.csv")
    (Path(config.root or "") / "masks.csv").write_text('name;mask\na;"0,0,32,64"\nb;"32,0,64,64"\n')
    dataset = opened(config)
    assert [dataset[k].points[:, 0].tolist() for k in range(2)] == [[3, pytest.approx(31.9)], [32, 60]]


def test_three_folders_have_masks_of_their_own(make: Folder, tmp_path: Path) -> None:
    for split, inside in (("train", LEFT), ("val", 1 - LEFT)):
        write_image(tmp_path / split / "images" / "a.jpg")
        (tmp_path / split / "images" / "a.csv").write_text("3,3\n40,3\n50,3\n")
        write_mask(tmp_path / "drawn" / split / "a.png", inside)
        write_mask(tmp_path / split / "masks" / "a.png", 1 - inside)
    places = {"train": str(tmp_path / "train"), "val": str(tmp_path / "val" / "images")}
    beside = CustomConfig(**places, cache_dir=str(tmp_path / "cache"), min_side=SIZE)
    assert [opened(beside, split).count(0) for split in ("train", "val")] == [2, 1]
    named = dataclasses.replace(beside, mask=str(tmp_path / "drawn"))
    assert [opened(named, split).count(0) for split in ("train", "val")] == [1, 2]


@pytest.mark.parametrize("form", ["struct", "matrix"])
def test_the_mask_of_mall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr("headcount.data.layouts.MALL_TRAINING_FRAMES", 1)
    root = tmp_path / "mall"
    make_mall(root, frames=3)
    write_mall_mat(root / "mall_gt.mat", [[(3.0, 3.0), (40.0, 3.0), (64.5, 3.0)]] * 3)
    roi = {"mask": LEFT.astype(bool)} if form == "struct" else LEFT
    scipy.io.savemat(root / "perspective_roi.mat", {"pMapN": np.ones((SIZE, SIZE)), "roi": roi})
    config = FolderDatasetConfig(name="mall", root=str(root), cache_dir=str(tmp_path / "cache"), min_side=SIZE)
    assert opened(config, "test").count(0) == 3  # published results count everywhere
    masked = opened(dataclasses.replace(config, mask="roi"), "test")
    assert [masked.count(k) for k in range(2)] == [1, 1]
    assert masked.heads_masked == 4
    (root / "perspective_roi.mat").unlink()
    with pytest.raises(DataError, match=r"perspective_roi\.mat does not exist"):
        opened(dataclasses.replace(config, mask="roi"), "test")


def test_a_mask_of_mall_is_none_of_another_dataset(make: Folder) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.mask=roi: custom is not distributed with a mask"):
        opened(make(mask="roi"))


def test_masks_have_moved_with_the_dataset(make: Folder, tmp_path: Path) -> None:
    config = make()
    root = Path(config.root or "")
    config = dataclasses.replace(config, mask=str(root / "roi.png"))
    write_mask(root / "roi.png")
    root.rename(tmp_path / "moved")
    now = locate(config, data_root=str(tmp_path / "moved")).config
    assert counts(now) == [2, 2]  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- loading and augmentation


@pytest.mark.parametrize("cache", list(Cache))
def test_the_decoded_cache_and_the_resize_rule_keep_the_mask(make: Folder, cache: Cache) -> None:
    config = dataclasses.replace(make(mask="roi.png"), min_side=128, cache=cache)
    write_mask(Path(config.root or "") / "roi.png")
    dataset = open_split(config, "train", augment=TrainAugment(32, 1.0, 1.0))
    assert dataset[0].image.shape == (3, 128, 128)
    assert dataset[0].mask is not None
    assert dataset[0].mask.shares(32).tolist() == [[1, 1, 0, 0]] * 4
    sample = dataset[3, 1]
    assert sample.mask is not None
    assert sample.mask.shares(8).shape == (4, 4)


def test_held_out_images_keep_their_masks(make: Folder) -> None:
    config = dataclasses.replace(make(), holdout=0.5)
    root = Path(config.root or "")
    write_mask(root / "masks" / "a.png")
    write_mask(root / "masks" / "b.png", 1 - LEFT)
    for split in ("train", "holdout"):
        dataset = opened(config, split)
        expected = [3, pytest.approx(31.9)] if dataset.names == ["a"] else [32, 60]
        assert dataset[0].points[:, 0].tolist() == expected


# ------------------------------------------------------------------------------------------------- errors


def broken_png(path: Path) -> None:
    write_mask(path)
    path.write_bytes(path.read_bytes()[:60])


def two_masks(path: Path) -> None:
    write_mask(path)
    write_mask(path.with_suffix(".bmp"))


MISTAKES: dict[str, tuple[Callable[[Path], None], str, Fault]] = {
    "size": (
        lambda path: write_mask(path, LEFT[:, :40]),
        r"image .*a\.jpg has 64 x 64 pixels, but its mask .*a\.png has 40 x 64; a mask has the size of its image",
        Fault.mask,
    ),
    "empty": (
        lambda path: write_mask(path, np.zeros_like(LEFT)),
        r"mask .*a\.png is empty: all of its pixels are 0, which is outside",
        Fault.mask,
    ),
    "not binary": (
        lambda path: Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).save(path),
        r"mask .*a\.png is not binary: it has 64 different values; a mask has 0 outside",
        Fault.mask,
    ),
    "damaged": (broken_png, r"mask .*a\.png cannot be read as an image", Fault.mask),
    "missing": (
        lambda path: None,
        r"image .*a\.jpg has no mask a\.png \(or \.mat, \.json\) in .*masks; add one, or set dataset\.mask=none",
        Fault.no_mask,
    ),
    "two": (
        two_masks,
        r"image .*a\.jpg has 2 masks, .*a\.bmp and .*a\.png; keep one",
        Fault.mask,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_training_and_by_the_audit(make: Folder, mistake: str) -> None:
    config = make()
    write, message, fault = MISTAKES[mistake]
    folder = Path(config.root or "") / "masks"
    write_mask(folder / "b.png")
    write(folder / "a.png")
    with pytest.raises(DataError, match=f"(?s)1 of 2 images of train cannot be used.*{message}"):
        opened(config)
    assert opened(dataclasses.replace(config, skip_bad=True)).names == ["b"]
    audit = audit_dataset(config)
    assert audit.splits[0].faults == {fault: 1}
    assert re.search(message, "\n".join(audit.errors))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("roi.mat", {"density": LEFT}, r"roi\.mat holds density; expected one matrix called mask or BW or roi"),
        ("roi.mat", {"mask": LEFT, "BW": LEFT}, r"holds BW, mask; expected one matrix|holds mask, BW; expected one"),
        ("roi.mat", {"roi": {"xi": LEFT, "yi": LEFT}}, r"or a struct roi with the field mask"),
        ("roi.mat", b"\x00" * 300, r"mask .*roi\.mat is not a readable \.mat file"),
        ("roi.json", b"{}", r"roi\.json: is not a file of regions"),
        ("roi.npy", b"", r"mask .*roi\.npy: the files that are read end in \.jpg, "),
        ("roi.png", None, r"mask .*roi\.png does not exist"),
        ("t.csv", b"image,polygon\na,1\n", r"t\.csv, line 1: the columns are 'image,polygon', expected image and mask"),
        ("t.csv", b"", r"t\.csv is empty"),
        ("t.csv", b"image,mask\na,1 2\n", r"t\.csv, line 2, mask of a: region mask: '1 2' is not a number"),
        ("t.csv", b'image,mask\na,"0,0,9,9"\na,"0,0,8,8"\n', r"t\.csv, line 3: a has another mask than before"),
    ],
)
def test_a_file_about_all_images_stops_at_once(make: Folder, name: str, content: Any, message: str) -> None:
    config = make(mask=name)
    path = Path(config.root or "") / name
    if isinstance(content, dict):
        scipy.io.savemat(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        opened(config)
    assert caught.value.file == path


def test_images_that_a_table_leaves_out_are_named(make: Folder) -> None:
    config = make(table=TABLE.replace('"0%,0%,50%,0%,50%,100%"', ""))
    with pytest.raises(DataError, match=r"image .*b\.jpg has no mask in the column mask of .*all\.csv"):
        opened(config)


def test_a_polygon_outside_the_image_is_refused(make: Folder) -> None:
    config = make(mask="roi.json")
    polygons(Path(config.root or "") / "roi.json", [(0, 0), (90, 0), (90, 9)])
    with pytest.raises(DataError, match=r"its mask in .*roi\.json cannot be used: region 0: reaches 26 pixels beyond"):
        opened(config)


def test_a_folder_and_a_column_are_ambiguous(make: Folder) -> None:
    config = make(table=TABLE)
    folder = Path(config.root or "") / "masks"
    for name in ("a", "b"):
        write_mask(folder / f"{name}.png", np.ones_like(LEFT))
    with pytest.raises(DataError, match=r"masks holds masks, and so does the column mask of .*all\.csv") as caught:
        opened(config)
    assert caught.value.kind is DataErrorKind.ambiguous
    assert counts(dataclasses.replace(config, mask="masks")) == [2, 2]
    assert counts(dataclasses.replace(config, mask="all.csv")) == [1, 1]
    assert counts(dataclasses.replace(config, mask="none")) == [2, 2]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_masks_of_every_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "m.png"
    if mode == "I;16":
        Image.fromarray(LEFT.astype(np.uint16)).save(path)  # 1 of 65535 is inside
    else:
        Image.fromarray(LEFT * np.uint8(255)).convert(mode).save(path)
    mask = read_mask(path)
    assert isinstance(mask, PixelMask)
    assert np.array_equal(mask.pixels(), LEFT.astype(bool))


def test_the_audit_counts_heads_outside_and_suspects_inverted_masks(make: Folder) -> None:
    config = make(mask="roi.png")
    path = Path(config.root or "") / "roi.png"
    write_mask(path)
    audit = audit_dataset(config)
    assert [image.masked for image in audit.splits[0].images] == [2, 2]
    assert [image.area_in_mask for image in audit.splits[0].images] == [0.5, 0.5]
    assert "train: 4 of 8 heads outside the mask, not counted, in 2 images: a (2), b (2)" in audit.warnings
    assert audit.blocks[8] == {0: 60, 1: 4}  # 32 blocks of each image are inside
    corner = np.zeros_like(LEFT)
    corner[:16, :16] = 1
    write_mask(path, corner)
    assert any("the masks may be inverted" in warning for warning in audit_dataset(config).warnings)


def test_masks_without_heads_or_whole_blocks_stop_training(make: Folder) -> None:
    config = make(mask="roi.png")
    path = Path(config.root or "") / "roi.png"
    corner = np.zeros_like(LEFT)
    corner[60:, :4] = 1
    write_mask(path, corner)
    errors = audit_dataset(config, block_size=8).errors
    assert any("all 8 heads of the 2 training images lie outside the images' masks" in error for error in errors)
    assert any("no block of 8 px lies entirely inside" in error for error in errors)
