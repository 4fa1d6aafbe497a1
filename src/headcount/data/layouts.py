"""Which images a split has and where their heads are, in each dataset's folder as distributed.

One function for each layout. It opens no image and reads no more than lists and files about many
images; what it finds missing is listed with the reason, so that all of it can be told at once.
"""

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from jaxtyping import Float
from torch import Tensor

from headcount.config import ConfigError, CustomConfig, FolderDatasetConfig, PointsFormat, UcfCc50Config
from headcount.data.readers import (
    NAME_KEYS,
    READERS,
    read_ann_points_mat,
    read_jhu_text,
    read_json_points,
    read_mall_mat,
    read_points_table,
    read_shanghaitech_mat,
    read_text,
)

ReadHeads = Callable[[Path], Float[Tensor, "n 2"]]

SPLITS = ("train", "val", "test")
# The first one is taken where a dataset has a name under several, such as copies in PNG.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# Folders beside one's own images that are looked through for head positions, in this order.
POINTS_FOLDERS = ("points", "annotations", "ground_truth", "ground-truth", "gt", "labels", "mats", "jsons")
# What the first column of a split file may be called.
SPLIT_FILE_NAMES = (*NAME_KEYS, "id", "img", "img_id", "image_id", "image_name", "img_name", "file_name", "path")
# First and last image of NWPU-Crowd's splits, for copies without its lists.
NWPU_IMAGES = {"train": (1, 3109), "val": (3110, 3609), "test": (3610, 5109)}
MALL_TRAINING_FRAMES = 800


@dataclass(frozen=True)
class Listed:
    """An image that a split has, or should have."""

    image: Path
    """The image file; where it is missing, the one that was expected."""
    heads: Callable[[], Float[Tensor, "n 2"]]
    """Reads the head positions in pixels of the stored image; raises ConfigError if it or the image is missing."""

    @property
    def name(self) -> str:
        """What the image is called everywhere."""
        return self.image.stem


def shanghaitech(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """``<split>_data/images/IMG_<k>.jpg`` with ``<split>_data/ground-truth/GT_IMG_<k>.mat``.

    Files of other names beside them (copies in PNG, Thumbs.db) are left alone.
    """
    base = _folder(root, f"{split}_data")
    if base is None:
        raise ConfigError(f"{root} needs the folder {split}_data; {holding(root)}")
    images_in = _folder(base, "images")
    annotations_in = _folder(base, "ground-truth", "ground_truth", "groundtruth")
    if images_in is None or annotations_in is None:
        raise ConfigError(f"{base} needs the folders images and ground-truth (or ground_truth); {holding(base)}")
    annotations = {
        stem.removeprefix("GT_"): path
        for stem, path in _files(annotations_in, ".mat").items()
        if stem.startswith("GT_")
    }
    if not annotations:
        raise ConfigError(f"{annotations_in} holds no GT_IMG_<k>.mat; {holding(annotations_in)}")
    images = _images(images_in)
    return _pair(
        {*annotations, *(name for name in images if name.startswith("IMG_"))},
        images,
        annotations,
        read_shanghaitech_mat,
        images_in=images_in,
        annotations_in=annotations_in,
        annotation="GT_{}.mat",
    )


def qnrf(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """``Train/img_0001.jpg`` with ``Train/img_0001_ann.mat``, and ``Test`` likewise."""
    base = _folder(root, split)
    if base is None:
        raise ConfigError(f"{root} needs the folders Train and Test; {holding(root)}")
    annotations = _ann_files(base)
    images = _images(base)
    names = {*annotations, *(name for name in images if name.lower().startswith("img_"))}
    if not names:
        raise ConfigError(f"{base} holds no img_<k>.jpg with img_<k>_ann.mat; {holding(base)}")
    return _pair(
        names, images, annotations, read_ann_points_mat, images_in=base, annotations_in=base, annotation="{}_ann.mat"
    )


def ucf_cc_50(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """``1.jpg`` with ``1_ann.mat`` to ``50.jpg``; fold k tests ten of them and trains on the others."""
    assert isinstance(config, UcfCc50Config)
    tested = range(10 * config.fold - 9, 10 * config.fold + 1)
    names = [str(k) for k in range(1, 51) if (k in tested) == (split == "test")]
    return _pair(
        names,
        _images(root),
        _ann_files(root),
        read_ann_points_mat,
        images_in=root,
        annotations_in=root,
        annotation="{}_ann.mat",
        named_by="one of the 50",
    )


def nwpu(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """Ids in ``train.txt`` and ``val.txt``, ``images*/0001.jpg``, ``mats/0001.mat`` or ``jsons/0001.json``.

    Images may lie in one folder or in the five parts they are downloaded in. Lines of a list begin
    with an id, see :func:`nwpu_ids`.
    """
    folders = [p for p in _listing(root) if p.is_dir() and re.fullmatch(r"images(_part\d)?", p.name.lower())]
    images = _images(*folders)
    list_file = root / f"{split}.txt"
    first, last = NWPU_IMAGES[split]
    mats, jsons = _folder(root, "mats"), _folder(root, "jsons")
    if mats is None and jsons is None and split != "test":
        raise ConfigError(f"{root} needs a folder mats or jsons with the annotations; {holding(root)}")
    annotations = {**_files(jsons, ".json"), **_files(mats, ".mat")}
    return _pair(
        nwpu_ids(root, split),
        images,
        annotations,
        lambda path: read_ann_points_mat(path) if path.suffix.lower() == ".mat" else read_json_points(path),
        images_in=folders[0] if len(folders) == 1 else root,
        annotations_in=mats or jsons or root,
        annotation="{}.mat" if mats else "{}.json",
        named_by=f"named by {list_file}" if list_file.is_file() else f"one of the {split} images {first} to {last}",
    )


def nwpu_ids(root: Path, split: str) -> dict[str, list[str]]:
    """Ids of a split of NWPU-Crowd as its images are called, in the order of its list, with what follows them there.

    In ``train.txt`` and ``val.txt`` these are a luminance label and a scene level, in ``test.txt`` nothing. Without
    a list, ids are split as they were published.

    Raises:
        ConfigError: if a list cannot be read, names nobody, or names an image twice.
    """
    list_file = root / f"{split}.txt"
    if not list_file.is_file():
        first, last = NWPU_IMAGES[split]
        return {f"{k:04d}": [] for k in range(first, last + 1)}
    ids: dict[str, list[str]] = {}
    for line in filter(str.strip, read_text(list_file).splitlines()):
        name, *labels = re.split(r"[\s,;]+", line.strip())
        if (name := plain_name(name).zfill(4)) in ids:
            raise ConfigError(f"{list_file} names {name} twice; remove one of the lines")
        ids[name] = labels
    if not ids:
        raise ConfigError(f"{list_file} names no images; write an id a line, or remove it to split as published")
    return ids


def jhu(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """``<split>/images/0001.jpg`` with ``<split>/gt/0001.txt``, a line for each head; an empty one has none."""
    base = _folder(root, split)
    if base is None:
        raise ConfigError(f"{root} needs the folder {split}; {holding(root)}")
    images_in, annotations_in = _folder(base, "images"), _folder(base, "gt")
    if images_in is None or annotations_in is None:
        raise ConfigError(f"{base} needs the folders images and gt; {holding(base)}")
    images, annotations = _images(images_in), _files(annotations_in, ".txt")
    if not images:
        raise ConfigError(f"{images_in} holds no images; {holding(images_in)}")
    return _pair(
        {*images, *annotations},
        images,
        annotations,
        read_jhu_text,
        images_in=images_in,
        annotations_in=annotations_in,
        annotation="{}.txt",
    )


def mall(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """``frames/seq_000001.jpg`` and so on, with all their heads in ``mall_gt.mat``; the first 800 train."""
    frames = _folder(root, "frames") or root / "frames"
    annotations, images = root / "mall_gt.mat", _images(frames)
    if not annotations.is_file():
        raise ConfigError(f"{root} needs mall_gt.mat beside the folder frames; {holding(root)}")
    listed = []
    for k, heads in enumerate(read_mall_mat(annotations), start=1):
        name = f"seq_{k:06d}"
        if (k <= MALL_TRAINING_FRAMES) == (split == "train"):
            expected = frames / f"{name}.jpg"
            missing = _refusing(f"frame {k} of {annotations} has no image {expected}")
            listed.append(Listed(images.get(name, expected), _giving(heads) if name in images else missing))
    if not listed:
        raise ConfigError(f"{annotations} has no frames after the {MALL_TRAINING_FRAMES} that train")
    return listed


# ------------------------------------------------------------------------------------ one's own images


def custom_splits(config: CustomConfig) -> tuple[str, ...]:
    """The splits that a dataset of one's own has.

    Raises:
        ConfigError: if they are in a file that cannot be read.
    """
    if config.train is not None:
        return tuple(split for split in SPLITS if getattr(config, split) is not None)
    if config.split_file is not None:
        named = _read_split_file(_resolve(config.split_file, config.root)).values()
        return tuple(split for split in SPLITS if split in named)
    shares = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    return tuple(split for split in SPLITS if shares[split] > 0)


def custom_folder(config: CustomConfig, split: str) -> Path:
    """The folder that holds the images of a split.

    Raises:
        ConfigError: if it is not there or not set.
    """
    key = "root" if config.train is None else split
    folder = config.root if config.train is None else getattr(config, split)
    if folder is None:
        raise ConfigError(
            "dataset=custom: no folder given; set dataset.root=FOLDER, or dataset.train=FOLDER and dataset.val=FOLDER"
        )
    path = Path(folder).expanduser() if key == "root" else _resolve(folder, config.root)
    if not path.is_dir():
        raise ConfigError(f"dataset.{key}={folder}: there is no folder {path}; {holding(path.parent)}")
    return path


def custom(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """Images in a folder or its subfolder ``images``, heads in one file for each image or for all.

    Which of one folder's images are in a split is said by a file, or else by a hash of their names, see
    :func:`_split_by_hash`. With three folders, ``root`` is the split's own.
    """
    assert isinstance(config, CustomConfig)
    images_in = _images_in(root)
    if images_in is None:
        raise ConfigError(f"{root} holds no images ({', '.join(IMAGE_ENDINGS)}), nor does a folder images in it")
    images = _images(images_in, alone=True)
    names: Iterable[str] = images
    named_by = None
    if config.train is None:
        if config.split_file is not None:
            named_by = _resolve(config.split_file, config.root)
            names = [name for name, named in _read_split_file(named_by).items() if named == split]
        else:
            splits = _split_by_hash(list(images), test=config.test_fraction, val=config.val_fraction)
            names = [name for name, its in splits.items() if its == split]
        if not names:
            raise ConfigError(f"dataset=custom: none of the {len(images)} images of {root} is in split {split}")
    # Three folders may share a folder or file of points.
    of_splits = [config.train, config.val, config.test] if config.train is not None else []
    folders = [_resolve(folder, config.root) for folder in of_splits if folder is not None]
    known = {*names, *images, *(name for folder in folders for name in _images(_images_in(folder) or folder))}
    heads_of, orphans = _custom_heads(config, root, images_in, split, known=known)
    listed = []
    for name in sorted(names, key=natural):
        if name in images:
            listed.append(Listed(images[name], heads_of(images[name])))
        else:
            expected = images_in / f"{name}.jpg"
            listed.append(Listed(expected, _refusing(f"{name}, named by {named_by}, has no image in {images_in}")))
    # In every split, as nobody knows in which their images are; and where one of three folders is away, in none.
    for name in sorted(orphans, key=natural) if all(folder.is_dir() for folder in folders) else ():
        reason = (
            f"{orphans[name]} has no image {name} in {images_in}; correct the name, or remove what is no annotation"
        )
        listed.append(Listed(images_in / f"{name}.jpg", _refusing(reason)))
    return listed


def custom_unnamed(config: CustomConfig) -> list[str]:
    """The images that a split file leaves out, as it names the others; none where there is no such file."""
    if config.train is not None or config.split_file is None:
        return []
    images_in = _images_in(custom_folder(config, "train"))
    named = _read_split_file(_resolve(config.split_file, config.root))
    return sorted(set(_images(images_in)) - set(named), key=natural) if images_in else []


def _images_in(root: Path) -> Path | None:
    """The folder or its subfolder ``images``, whichever has images."""
    return next((folder for folder in (root, _folder(root, "images")) if folder and _images(folder)), None)


HeadsOf = Callable[[Path], Callable[[], Float[Tensor, "n 2"]]]
"""For an image, what reads its heads."""


def _custom_heads(
    config: CustomConfig, root: Path, images_in: Path, split: str, *, known: Set[str]
) -> tuple[HeadsOf, dict[str, str]]:
    """What reads an image's heads, and by name the annotations that are of no ``known`` image, in words."""
    points = _resolve(config.points, config.root) if config.points is not None else None
    if points is not None and points.is_file():
        return _heads_in_table(points, config.points_format, known=known)
    if points is not None:
        if not points.is_dir():
            raise ConfigError(f"dataset.points={config.points}: there is no file or folder {points}")
        # Three folders of images may have three of points, with the same names in each.
        folders = [(config.train is not None and _folder(points, split)) or points]
    else:
        # Beside a folder called images lie those of its points; beside another one may lie another split's.
        bases = [root, root.parent] if images_in == root and root.name.lower() == "images" else [root]
        folders = [images_in, *(folder for base in bases for folder in _folders(base, *POINTS_FOLDERS))]
    wanted = config.points_format
    endings = [ending for ending, (kind, _) in READERS.items() if wanted in (PointsFormat.auto, kind)]
    files: dict[str, list[Path]] = {}
    lists = _resolve(config.split_file, config.root) if config.split_file is not None else None
    for folder in dict.fromkeys(folders):
        for ending in endings:
            for stem, path in _files(folder, ending).items():
                if lists is None or not lists.exists() or not path.samefile(lists):
                    files.setdefault(_annotated(stem, known), []).append(path)

    def heads_of(image: Path) -> Callable[[], Float[Tensor, "n 2"]]:
        paths = files.get(image.stem, [])
        if not paths:
            where = ", ".join(str(folder) for folder in folders)
            return _refusing(f"image {image} has no annotation {image.stem}{{{','.join(endings)}}} in {where}")
        if len(paths) > 1:
            return _refusing(
                f"image {image} has {len(paths)} annotations, {' and '.join(map(str, paths))}; keep one, or choose "
                "with dataset.points or dataset.points_format"
            )
        return partial(READERS[paths[0].suffix.lower()][1], paths[0])

    return heads_of, {
        name: f"annotation {' and '.join(map(str, paths))}" for name, paths in files.items() if name not in known
    }


def _annotated(stem: str, known: Set[str]) -> str:
    """The image that an annotation file is about: that of its name, or of its name without ``_ann`` or ``GT_``."""
    names = (stem, stem.removesuffix("_ann"), stem.removeprefix("GT_"))
    return next((name for name in names if name in known), stem)


def _heads_in_table(path: Path, points_format: PointsFormat, *, known: Set[str]) -> tuple[HeadsOf, dict[str, str]]:
    """The same where one file is about all images."""
    table: dict[str, Float[Tensor, "_ 2"]] = {}
    for name, heads in read_points_table(path, points_format).items():
        if plain_name(name) in table:
            raise ConfigError(f"{path} names {plain_name(name)} twice, with different endings or folders")
        table[plain_name(name)] = heads

    def heads_of(image: Path) -> Callable[[], Float[Tensor, "n 2"]]:
        if image.stem in table:
            return _giving(table[image.stem])
        nobody = f'"{image.name}": []' if path.suffix.lower() == ".json" else f'"{image.name},,"'
        return _refusing(f"image {image} has no annotation in {path}; one without people is written {nobody}")

    return heads_of, {name: f"annotation {name} of {path}" for name in table if name not in known}


def _read_split_file(path: Path) -> dict[str, str]:
    """The split of each image that a csv (``name,split``) or JSON file names.

    JSON may be ``{name: split}`` or ``{split: [name, ...]}``.

    Raises:
        ConfigError: if it is not there or neither, if a split is unknown, or if an image is named twice.
    """
    if not path.is_file():
        raise ConfigError(f"dataset.split_file={path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset.split_file={path} cannot be read: {error}") from error
    rows: list[tuple[str, str]] = []
    if isinstance(content, dict):
        for key, value in content.items():
            rows += [(str(name), key) for name in value] if isinstance(value, list) else [(key, str(value))]
    elif content is not None:
        raise ConfigError(f"dataset.split_file={path} holds neither {{name: split}} nor {{split: [name, ...]}}")
    else:
        lines = [line for line in csv.reader(text.splitlines()) if any(field.strip() for field in line)]
        for k, fields in enumerate(lines):
            if len(fields) != 2:
                raise ConfigError(f"dataset.split_file={path}: {','.join(fields)!r} is no name,split")
            name, split = (field.strip() for field in fields)
            if k > 0 or name.lower() not in SPLIT_FILE_NAMES or split.lower() not in ("split", "subset", "set"):
                rows.append((name, split))
    splits: dict[str, str] = {}
    for name, split in rows:
        if split.lower() not in SPLITS:
            raise ConfigError(
                f"dataset.split_file={path}: {name} is in split {split!r}; there are {', '.join(SPLITS)} (a first line "
                "with names of columns is image,split)"
            )
        if plain_name(name) in splits:
            raise ConfigError(f"dataset.split_file={path} names {plain_name(name)} twice")
        splits[plain_name(name)] = split.lower()
    if not splits:
        raise ConfigError(f"dataset.split_file={path} names no images")
    return splits


def _split_by_hash(names: list[str], *, test: float, val: float) -> dict[str, str]:
    """A split for each name: those whose hash in [0, 1) is below ``test`` are tested, the next ``val`` select.

    An image's split thus depends on its name alone, and shares are those asked for on average. Only where a
    split would have no images does it take one, that of the lowest hash, from the largest split; that
    image goes back once the split has one of its own.
    """
    shares = {"test": test, "val": val, "train": 1.0}
    wanted = [split for split, share in shares.items() if share > 0]
    if len(names) < len(wanted):
        raise ConfigError(
            f"dataset=custom: {len(names)} images are too few for dataset.val_fraction={val:g} and "
            f"dataset.test_fraction={test:g}, as {', '.join(wanted)} need one each; add images, or set one to 0"
        )
    found: dict[str, list[str]] = {split: [] for split in shares}
    for name in by_hash(names, salt="split"):
        place = int.from_bytes(_hash(name, salt="split")[:8]) / 2**64
        found["test" if place < test else "val" if place < test + val else "train"].append(name)
    for split in wanted:
        if not found[split]:
            found[split].append(max(found.values(), key=len).pop(0))
    return {name: split for split, its in found.items() for name in its}


# ---------------------------------------------------------------------------------------------- names


def by_hash(names: Iterable[str], *, salt: str = "") -> list[str]:
    """Names in an order that looks drawn and depends on nothing but each name and ``salt``."""
    return sorted(names, key=lambda name: _hash(name, salt=salt))


def _hash(name: str, *, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}{name}".encode()).digest()


def plain_name(name: str) -> str:
    """A name as people write it into lists, without folder and image ending."""
    file = re.split(r"[/\\]", name)[-1]
    return file[: file.rindex(".")] if file.lower().endswith(IMAGE_ENDINGS) else file


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts IMG_2 before IMG_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def holding(folder: Path) -> str:
    """What a folder holds, for an error."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names = sorted(p.name for p in folder.iterdir())
    return f"{folder} holds {', '.join(names[:8]) + (', ...' if len(names) > 8 else '') if names else 'nothing'}"


# ---------------------------------------------------------------------------------------------- files


def _pair(
    names: Iterable[str],
    images: Mapping[str, Path],
    annotations: Mapping[str, Path],
    read: ReadHeads,
    *,
    images_in: Path,
    annotations_in: Path,
    annotation: str,
    named_by: str = "",
) -> list[Listed]:
    """The images of these names in natural order, each with its annotation or with what is missing.

    Args:
        images_in, annotations_in: where files are expected, for errors.
        annotation: what the annotation of ``{}`` is called there.
        named_by: what asks for an image that has neither.
    """
    listed = []
    for name in sorted(names, key=natural):
        image, heads = images.get(name), annotations.get(name)
        if image is None:
            image = images_in / f"{name}.jpg"
            what = f"annotation {heads}" if heads else f"{name}, {named_by},"
            listed.append(Listed(image, _refusing(f"{what} has no image {image}")))
        elif heads is None:
            expected = annotations_in / annotation.format(name)
            listed.append(Listed(image, _refusing(f"image {image} has no annotation {expected}")))
        else:
            listed.append(Listed(image, partial(read, heads)))
    return listed


def _images(*folders: Path, alone: bool = False) -> dict[str, Path]:
    """Image files by name, whatever their endings' case.

    Args:
        alone: refuse a name that has several files, which would otherwise be the first of ``IMAGE_ENDINGS``.
    """
    found: dict[str, Path] = {}
    files = [path for folder in folders for path in _listing(folder) if path.suffix.lower() in IMAGE_ENDINGS]
    for path in sorted(files, key=lambda p: IMAGE_ENDINGS.index(p.suffix.lower())):
        if alone and path.stem in found:
            raise ConfigError(f"{found[path.stem]} and {path} have one name; heads could be those of either")
        found.setdefault(path.stem, path)
    return found


def _files(folder: Path | None, ending: str) -> dict[str, Path]:
    """Files of one ending by name; none where there is no folder."""
    return {path.stem: path for path in _listing(folder) if path.suffix.lower() == ending} if folder else {}


def _ann_files(folder: Path) -> dict[str, Path]:
    """``<name>_ann.mat`` by name."""
    files = _files(folder, ".mat")
    return {stem.removesuffix("_ann"): path for stem, path in files.items() if stem.endswith("_ann")}


def _folder(base: Path, *names: str) -> Path | None:
    """The first of these folders that is there, in any case."""
    return next(iter(_folders(base, *names)), None)


def _folders(base: Path, *names: str) -> list[Path]:
    """Those of these folders that are there, in any case."""
    found = {path.name.lower(): path for path in _listing(base) if path.name.lower() in names and path.is_dir()}
    return [found[name] for name in names if name in found]


def _listing(folder: Path) -> list[Path]:
    """What a folder holds, without the hidden files that archives made on a Mac have for each of theirs."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")] if folder.is_dir() else []


def _resolve(path: str, root: str | None) -> Path:
    """An absolute path, one below ``root``, or else one from the working directory."""
    given = Path(path).expanduser()
    below = Path(root).expanduser() / given if root is not None else given
    return below if below.exists() or not given.exists() else given


def _giving(heads: Float[Tensor, "n 2"]) -> Callable[[], Float[Tensor, "n 2"]]:
    return lambda: heads


def _refusing(reason: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise ConfigError(reason)

    return refuse
