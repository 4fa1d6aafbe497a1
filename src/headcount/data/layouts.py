"""The folder layout of each published dataset: which images a split has and where their annotations are.

One function per layout. It opens no image and reads only lists and files about many images. A missing file is listed
with the reason, so that all faults of a split are reported together. Custom datasets: ``data.custom``.
"""

import re
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from headcount.config import FolderDatasetConfig, UcfCc50Config
from headcount.data.annotations import (
    read_ann_points_mat,
    read_jhu_text,
    read_json_points,
    read_mall_mat,
    read_shanghaitech_mat,
)
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import (
    Listed,
    find_files,
    find_folder,
    find_images,
    list_visible,
    loaded_heads,
    pair_files,
    plain_name,
    report_when_read,
)
from headcount.data.textfile import read_text
from headcount.errors import DataError
from headcount.files import describe_folder
from headcount.wording import cut

NWPU_IMAGES = {"train": (1, 3109), "val": (3110, 3609), "test": (3610, 5109)}
"""First and last image of NWPU-Crowd's splits, for copies without its lists."""
MALL_TRAINING_FRAMES = 800


def shanghaitech(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List ``<split>_data/images/IMG_<k>.jpg`` with ``<split>_data/ground-truth/GT_IMG_<k>.mat``.

    Files with other names (copies in PNG, Thumbs.db) are ignored.

    Raises:
        DataError: if a folder or all annotations are missing.
    """
    base = find_folder(root, f"{split}_data")
    if base is None:
        raise _missing(root, f"{root} needs the folder {split}_data; {describe_folder(root)}")
    images_in = find_folder(base, "images")
    annotations_in = find_folder(base, "ground-truth", "ground_truth", "groundtruth")
    if images_in is None or annotations_in is None:
        raise _missing(
            base, f"{base} needs the folders images and ground-truth (or ground_truth); {describe_folder(base)}"
        )
    annotations = {
        stem.removeprefix("GT_"): path
        for stem, path in find_files(annotations_in, ".mat").items()
        if stem.startswith("GT_")
    }
    if not annotations:
        raise _empty(annotations_in, f"{annotations_in} holds no GT_IMG_<k>.mat; {describe_folder(annotations_in)}")
    images = find_images(images_in)
    return pair_files(
        {*annotations, *(name for name in images if name.startswith("IMG_"))},
        images,
        annotations,
        read_shanghaitech_mat,
        images_in=images_in,
        annotations_in=annotations_in,
        annotation="GT_{}.mat",
    )


def qnrf(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List ``Train/img_0001.jpg`` with ``Train/img_0001_ann.mat``, and the same for ``Test``.

    Raises:
        DataError: if the folder is missing or empty.
    """
    base = find_folder(root, split)
    if base is None:
        raise _missing(root, f"{root} needs the folders Train and Test; {describe_folder(root)}")
    annotations = _ann_files(base)
    images = find_images(base)
    names = {*annotations, *(name for name in images if name.lower().startswith("img_"))}
    if not names:
        raise _empty(base, f"{base} holds no img_<k>.jpg with img_<k>_ann.mat; {describe_folder(base)}")
    return pair_files(
        names, images, annotations, read_ann_points_mat, images_in=base, annotations_in=base, annotation="{}_ann.mat"
    )


def ucf_cc_50(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List ``1.jpg`` with ``1_ann.mat`` to ``50.jpg``; fold k tests on ten of them and trains on the others."""
    assert isinstance(config, UcfCc50Config)
    tested = range(10 * config.fold - 9, 10 * config.fold + 1)
    names = [str(k) for k in range(1, 51) if (k in tested) == (split == "test")]
    return pair_files(
        names,
        find_images(root),
        _ann_files(root),
        read_ann_points_mat,
        images_in=root,
        annotations_in=root,
        annotation="{}_ann.mat",
        named_by="one of the 50",
    )


def nwpu(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List the ids of ``<split>.txt`` with ``images*/0001.jpg`` and ``mats/0001.mat`` or ``jsons/0001.json``.

    Images may be in one folder or in the five parts they are downloaded in. For the lists see :func:`nwpu_ids`.

    Raises:
        DataError: if there are no annotations, or a list cannot be used.
    """
    folders = [p for p in list_visible(root) if p.is_dir() and re.fullmatch(r"images(_part\d)?", p.name.lower())]
    images = find_images(*folders)
    list_file = root / f"{split}.txt"
    first, last = NWPU_IMAGES[split]
    mats, jsons = find_folder(root, "mats"), find_folder(root, "jsons")
    if mats is None and jsons is None and split != "test":
        raise _missing(root, f"{root} needs a folder mats or jsons with the annotations; {describe_folder(root)}")
    annotations = {**find_files(jsons, ".json"), **find_files(mats, ".mat")}
    return pair_files(
        nwpu_ids(root, split),
        images,
        annotations,
        _read_nwpu,
        images_in=folders[0] if len(folders) == 1 else root,
        annotations_in=mats or jsons or root,
        annotation="{}.mat" if mats else "{}.json",
        named_by=f"named by {list_file}" if list_file.is_file() else f"one of the {split} images {first} to {last}",
    )


def _read_nwpu(path: Path) -> Float[Tensor, "n 2"]:
    return read_ann_points_mat(path) if path.suffix.lower() == ".mat" else read_json_points(path)


def nwpu_ids(root: Path, split: str) -> dict[str, list[str]]:
    """Read the image ids of a split of NWPU-Crowd, in the order of its list.

    Without a list file, ids are split as published.

    Returns:
        Further values of the line by image name, such as ``0001``: a luminance label and a scene level in ``train.txt``
        and ``val.txt``, nothing in ``test.txt``.

    Raises:
        DataError: if a list cannot be read, names no image, or names an image twice.
    """
    list_file = root / f"{split}.txt"
    if not list_file.is_file():
        first, last = NWPU_IMAGES[split]
        return {f"{k:04d}": [] for k in range(first, last + 1)}
    ids: dict[str, list[str]] = {}
    for line in read_text(list_file).splitlines():
        words = re.findall(r"[^\s,;]+", line)
        if not words:
            continue
        first_word, *labels = words
        name = plain_name(first_word).zfill(4)
        if name in ids:
            raise _invalid_list(list_file, f"{list_file} names {cut(name)} twice; remove one of the lines")
        ids[name] = labels
    if not ids:
        raise _invalid_list(
            list_file, f"{list_file} names no images; write one id per line, or remove it to split as published"
        )
    return ids


def jhu(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List ``<split>/images/0001.jpg`` with ``<split>/gt/0001.txt``, one line per head; an empty file has none.

    Raises:
        DataError: if a folder is missing or has no images.
    """
    base = find_folder(root, split)
    if base is None:
        raise _missing(root, f"{root} needs the folder {split}; {describe_folder(root)}")
    images_in, annotations_in = find_folder(base, "images"), find_folder(base, "gt")
    if images_in is None or annotations_in is None:
        raise _missing(base, f"{base} needs the folders images and gt; {describe_folder(base)}")
    images, annotations = find_images(images_in), find_files(annotations_in, ".txt")
    if not images:
        raise _empty(images_in, f"{images_in} holds no images; {describe_folder(images_in)}")
    return pair_files(
        {*images, *annotations},
        images,
        annotations,
        read_jhu_text,
        images_in=images_in,
        annotations_in=annotations_in,
        annotation="{}.txt",
    )


def mall(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List ``frames/seq_000001.jpg`` and so on, with all heads in ``mall_gt.mat``; the first 800 frames train.

    Raises:
        DataError: if the annotations are missing, cannot be read, or have no frames for the split.
    """
    frames = find_folder(root, "frames") or root / "frames"
    annotations, images = root / "mall_gt.mat", find_images(frames)
    if not annotations.is_file():
        raise _missing(annotations, f"{root} needs mall_gt.mat beside the folder frames; {describe_folder(root)}")
    listed = []
    for k, heads in enumerate(read_mall_mat(annotations), start=1):
        name = f"seq_{k:06d}"
        if (k <= MALL_TRAINING_FRAMES) != (split == "train"):
            continue
        if name in images:
            listed.append(Listed(images[name], loaded_heads(heads)))
        else:
            expected = frames / f"{name}.jpg"
            message = f"frame {k} of {annotations} has no image {expected}"
            listed.append(Listed(expected, report_when_read(message, DataErrorKind.missing_image, expected)))
    if not listed:
        raise _empty(annotations, f"{annotations} has no frames after the {MALL_TRAINING_FRAMES} training frames")
    return listed


def _ann_files(folder: Path) -> dict[str, Path]:
    """Find ``<name>_ann.mat``, by name."""
    files = find_files(folder, ".mat")
    return {stem.removesuffix("_ann"): path for stem, path in files.items() if stem.endswith("_ann")}


def _missing(file: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.missing, file=file)


def _empty(file: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.empty, file=file)


def _invalid_list(file: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.split_list, file=file)
