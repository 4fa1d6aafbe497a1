"""Custom datasets: find images and annotations in one folder or three, and split them by a file or a hash of names."""

import csv
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from headcount.config import CustomConfig, FolderDatasetConfig, PointsFormat
from headcount.data.annotations import (
    FORMATS,
    NAME_KEYS,
    Annotation,
    describe_table,
    read_annotation,
    read_points_table,
)
from headcount.data.catalogue import source_split
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import (
    IMAGE_ENDINGS,
    SPLITS,
    Listed,
    LoadHeads,
    find_folder,
    find_folders,
    find_images,
    find_images_below,
    image_name,
    list_visible,
    name_hash,
    natural_key,
    plain_name,
    report_when_read,
    sort_by_hash,
    spelled_out,
)
from headcount.data.locate import custom_folder, resolve_below
from headcount.data.marks import HeadMarks
from headcount.data.mask_files import mask_folder
from headcount.data.plausible import check_size
from headcount.data.textfile import load_json, read_text
from headcount.data.tools import SharedLabels
from headcount.errors import DataError
from headcount.files import FileIdentity, file_identity
from headcount.wording import MAX_NAME_LENGTH, cut, first_names, many

POINTS_FOLDERS = ("points", "annotations", "ground_truth", "ground-truth", "gt", "labels", "mats", "jsons")
"""Folders that are searched for annotations, in this order, if ``dataset.points`` is not set."""
SPLIT_FILE_NAMES = (*NAME_KEYS, "id", "img", "img_id", "image_id", "image_name", "img_name", "file_name", "path")
"""Accepted names of the first column of a split file."""

# Label Studio puts this before the name of an uploaded image.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
HeadsOf = Callable[[Path], LoadHeads]
"""Maps an image file to the function that reads its heads."""


# ---------------------------------------------------------------------------------------- public API


def custom_splits(config: CustomConfig) -> tuple[str, ...]:
    """Return the splits that a custom dataset has, in the order train, val, test.

    Raises:
        DataError: if the split file cannot be used.
    """
    if config.train is not None:
        return tuple(split for split in SPLITS if getattr(config, split) is not None)
    if config.split_file is not None:
        named = _read_split_file(resolve_below(config.split_file, config.root)).values()
        return tuple(split for split in SPLITS if split in named)
    shares = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    return tuple(split for split in SPLITS if shares[split] > 0)


def list_custom(root: Path, split: str, config: FolderDatasetConfig) -> list[Listed]:
    """List the images of a folder or its subfolder ``images``, with annotations in one file per image or in one file.

    With one folder, a split file or else a hash of the names decides which images belong to the split
    (:func:`_split_by_hash`).

    Args:
        root: the folder of all images or, with three folders, of this split's images.

    Raises:
        DataError: if there are no images, or a split file or a file with all annotations cannot be used.
    """
    assert isinstance(config, CustomConfig)
    images_in = _images_in(root, config)
    if images_in is None:
        raise DataError(
            f"{root} holds no images ({', '.join(IMAGE_ENDINGS)}), nor does a folder images in it",
            kind=DataErrorKind.empty,
            file=root,
        )
    images = _find_images(images_in, config, unique=True)
    names: Iterable[str] = _names_in_split(config, split, root, images) if config.train is None else images
    # Three folders may share one folder or file of annotations.
    of_splits = [config.train, config.val, config.test] if config.train is not None else []
    folders = [resolve_below(folder, config.root) for folder in of_splits if folder is not None]
    searched = [_images_in(folder, config) or folder for folder in folders]
    known = {*names, *images, *(name for folder in searched for name in _find_images(folder, config))}
    places = _annotation_places(config, root, images_in, split)
    of_others = _places_of_others(config, split)
    elsewhere = [place for _, theirs in of_others for place in theirs]
    heads_of, orphans = _find_annotations(config, places, known=known, elsewhere=elsewhere)
    others = _same_names(of_others, places, config)
    listed = []
    for name in sorted(names, key=natural_key):
        if name in images and name in others:
            message = (
                f"images {images[name]} and {others[name]} have the same name, and an annotation in "
                f"{', '.join(map(str, places))} could belong to either; rename one, or keep their annotations apart"
            )
            listed.append(Listed(images[name], report_when_read(message, DataErrorKind.ambiguous, images[name])))
        elif name in images:
            listed.append(Listed(images[name], heads_of(images[name])))
        else:
            expected = images_in / f"{name}.jpg"
            named_by = resolve_below(config.split_file, config.root) if config.split_file is not None else None
            message = f"{cut(name, MAX_NAME_LENGTH)}, named by {named_by}, has no image in {images_in}"
            listed.append(Listed(expected, report_when_read(message, DataErrorKind.missing_image, expected)))
    # The split of a missing image is unknown, so each split reports it. If one of three folders is missing, none
    # does: the image may be there.
    for name in sorted(orphans, key=natural_key) if all(folder.is_dir() for folder in folders) else ():
        expected = images_in / f"{name}.jpg"
        wanted = cut(name, MAX_NAME_LENGTH)
        message = f"{orphans[name]} has no image {wanted} in {images_in}; correct the name, or remove the annotation"
        listed.append(Listed(expected, report_when_read(message, DataErrorKind.missing_image, expected)))
    return listed


def images_in_no_split(config: CustomConfig) -> list[str]:
    """Return the names of images that the split file does not assign to a split; empty without a split file."""
    if config.train is not None or config.split_file is None:
        return []
    images_in = _images_in(custom_folder(config, "train"), config)
    named = _read_split_file(resolve_below(config.split_file, config.root))
    return sorted(set(_find_images(images_in, config)) - set(named), key=natural_key) if images_in else []


def files_left_out(config: CustomConfig, used: Mapping[str, Sequence[Path]]) -> list[str]:
    """Describe files that are not read although they may be meant, one line each.

    These are images in subfolders, of which only ``images`` is read, and only if its parent has none; and files with
    the heads of many images beside annotations of each image.

    Args:
        used: the image files of each split.
    """
    roots = {source_split(split): custom_folder(config, source_split(split)) for split in used}
    images_in = {split: _images_in(root, config) or root for split, root in roots.items()}
    # Images of no split are in these folders too, and have their own message.
    images = {name: path for folder in images_in.values() for name, path in _find_images(folder, config).items()}
    known = {path.resolve() for paths in (*used.values(), images.values()) for path in paths}
    lines = []
    for split, root in roots.items():
        below = [path for path in find_images_below(root) if path.resolve() not in known]
        below = [path for path in below if not _is_mask(path, config, mask_folder(config, root, split))]
        if below:
            shown = first_names([str(path.relative_to(root)) for path in below])
            number, verb = many(len(below), "image"), "is" if len(below) == 1 else "are"
            where = f"only those in {images_in[split]} are read"
            lines.append(f"{number} {verb} left out, being in a subfolder: {shown}; {where}")
        places = _annotation_places(config, root, images_in[split], split)
        if not any(place.is_file() for place in places):
            _, tables = _files_by_image(config, places, known=images.keys())
            lines += [f"{message}; now it is not read" for message in tables]
    return list(dict.fromkeys(lines))


def _is_mask(path: Path, config: CustomConfig, folder: Path | None) -> bool:
    """Whether an image file is a mask: the one of all images, or one in their ``folder``."""
    named = [resolve_below(config.mask, config.root)] if config.mask is not None else []
    return path.parent == folder or _is_one_of(path, named)


def _images_in(root: Path, config: CustomConfig) -> Path | None:
    """Return the folder or its subfolder ``images``, whichever has images."""
    folders = (root, find_folder(root, "images"))
    return next((folder for folder in folders if folder and _find_images(folder, config)), None)


def _find_images(folder: Path, config: CustomConfig, *, unique: bool = False) -> dict[str, Path]:
    """Return the image files of a folder by name; the file of a mask is none."""
    found = find_images(folder, unique=unique)
    return {name: path for name, path in found.items() if not _is_mask(path, config, None)}


def _is_one_of(path: Path, files: Sequence[Path]) -> bool:
    """Whether a path is that of one of the files, of which some may not exist."""
    return any(os.path.exists(file) and os.path.exists(path) and os.path.samefile(path, file) for file in files)


# ----------------------------------------------------------------------------------------- annotations


def _annotation_places(config: CustomConfig, root: Path, images_in: Path, split: str) -> list[Path]:
    """Return the file with all annotations, or the folders to search for them.

    Raises:
        DataError: if ``dataset.points`` does not exist.
    """
    points = resolve_below(config.points, config.root) if config.points is not None else None
    if points is not None and points.is_file():
        return [points]
    if points is not None:
        if not points.is_dir():
            raise DataError(
                f"dataset.points={config.points}: there is no file or folder {points}",
                kind=DataErrorKind.missing,
                file=points,
            )
        # Three folders of images may have three folders of annotations, with the same names in each.
        return [(config.train is not None and find_folder(points, split)) or points]
    # A folder called images has its annotations beside it; beside any other folder there may be another split's.
    bases = [root, root.parent] if images_in == root and root.name.lower() == "images" else [root]
    return [images_in, *(folder for base in bases for folder in find_folders(base, *POINTS_FOLDERS))]


def _places_of_others(config: CustomConfig, split: str) -> list[tuple[Path, list[Path]]]:
    """Return the folder of images and the annotation places of each other split that has a folder of its own."""
    found = []
    for other in SPLITS if config.train is not None else ():
        folder = getattr(config, other)
        root = resolve_below(folder, config.root) if folder is not None and other != split else None
        if root is not None and root.is_dir():
            images_in = _images_in(root, config) or root
            found.append((images_in, _annotation_places(config, root, images_in, other)))
    return found


def _same_names(others: Sequence[tuple[Path, list[Path]]], places: list[Path], config: CustomConfig) -> dict[str, Path]:
    """Find the images of other splits whose annotations are searched in the same places, by name."""
    found: dict[str, Path] = {}
    ours = {place.resolve() for place in places}
    for images_in, theirs in others:
        if not ours.isdisjoint(place.resolve() for place in theirs):
            found |= _find_images(images_in, config)
    return found


def _find_annotations(
    config: CustomConfig, places: list[Path], *, known: Set[str], elsewhere: list[Path]
) -> tuple[HeadsOf, dict[str, str]]:
    """Find the annotation of each image.

    Args:
        places: from :func:`_annotation_places`.
        known: names of all images that annotations may belong to.
        elsewhere: places of the annotations of other splits, which have labels in common with these.

    Returns:
        What reads an image's heads, and descriptions of annotations that belong to no known image, by name.
    """
    if any(place.is_file() for place in places):
        return _annotations_in_table(places[0], config, known=known)
    return _annotations_in_files(config, places, known=known, elsewhere=elsewhere)


def _files_by_image(
    config: CustomConfig, folders: list[Path], *, known: Set[str]
) -> tuple[dict[str, list[Path]], list[str]]:
    """Return the annotation files by name of their image, and descriptions of files about many images."""
    other = [resolve_below(file, config.root) for file in (config.split_file, config.mask) if file is not None]
    endings = _endings(config)
    files: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(folders):
        for path in list_visible(folder):
            if path.suffix.lower() in endings and not _is_one_of(path, other):
                files.setdefault(_annotated_image(image_name(path), known), []).append(path)
    tables = []
    for name in [name for name in files if name not in known]:
        messages = [describe_table(path) for path in files[name]]
        tables += [message for message in messages if message is not None]
        files[name] = [path for path, message in zip(files[name], messages, strict=True) if message is None]
    return {name: paths for name, paths in files.items() if paths}, tables


def _annotations_in_files(
    config: CustomConfig, folders: list[Path], *, known: Set[str], elsewhere: list[Path]
) -> tuple[HeadsOf, dict[str, str]]:
    """Find annotations in one file per image; see :func:`_find_annotations`."""
    files, tables = _files_by_image(config, folders, known=known)
    owners: dict[FileIdentity, list[str]] = {}
    for name in files.keys() & known:
        for path in files[name]:
            owners.setdefault(file_identity(path), []).append(name)
    others, _ = _files_by_image(config, [place for place in elsewhere if place not in folders], known=known)
    labeled = [path for found in (files, others) for name in found.keys() & known for path in found[name]]
    shared = SharedLabels(dict.fromkeys(labeled))

    def heads_of(image: Path) -> LoadHeads:
        name = image_name(image)
        paths = files.get(name, [])
        if not paths:
            where = ", ".join(str(folder) for folder in folders)
            wanted = f"{name}{{{','.join(_endings(config))}}}"
            message = f"image {image} has no annotation {wanted} in {where}"
            if tables:  # Once for all images.
                message = f"images in {where} have no annotation of their own, but {tables[0]}"
            return report_when_read(message, DataErrorKind.missing_annotation, image)
        if len(paths) > 1:
            message = (
                f"image {image} has {len(paths)} annotations, {spelled_out(paths)}; keep one, or choose "
                "with dataset.points or dataset.points_format"
            )
            return report_when_read(message, DataErrorKind.ambiguous, image)
        same = [other for other in owners[file_identity(paths[0])] if other != name]
        read = partial(read_annotation, paths[0], _marks(config), shared)
        heads = partial(_heads, read, paths[0], image, upright=config.exif_orientation)
        return partial(_not_shared, heads, paths[0], image, sorted(same, key=natural_key))

    return heads_of, {name: f"annotation {spelled_out(paths)}" for name, paths in files.items() if name not in known}


def _marks(config: CustomConfig) -> HeadMarks:
    return HeadMarks(config.label, config.boxes)


def _heads(read: Callable[[], Annotation], path: Path, image: Path, *, upright: bool) -> Float[Tensor, "n 2"]:
    """Return the heads of an image, which must have the size of the image that was annotated."""
    annotation = read()
    if annotation.size is not None:
        check_size(annotation.size, image, path, upright=upright)
    return annotation.heads


def _not_shared(load: LoadHeads, path: Path, image: Path, others: Sequence[str]) -> Float[Tensor, "n 2"]:
    """Read the annotation of an image; ``others`` are those whose annotation is a link to the same file."""
    heads = load()
    if others and len(heads):  # Images without people may share an empty annotation.
        message = f"image {image} has the annotation {path}, which is the same file as that of {first_names(others)}"
        raise DataError(f"{message}; each image needs its own", kind=DataErrorKind.ambiguous, file=image)
    return heads


def _endings(config: CustomConfig) -> list[str]:
    return [ending for ending, kind in FORMATS.items() if config.points_format in (PointsFormat.auto, kind)]


def _annotated_image(stem: str, known: Set[str]) -> str:
    """Return the image that an annotation file belongs to: its own, or that without ``_ann``, ``GT_``, ``.jpg``."""
    names = (stem, stem.removesuffix("_ann"), stem.removeprefix("GT_"), plain_name(stem))
    return next((name for name in names if name in known), stem)


def _annotations_in_table(path: Path, config: CustomConfig, *, known: Set[str]) -> tuple[HeadsOf, dict[str, str]]:
    """Find annotations in one file about all images; see :func:`_find_annotations`."""
    table: dict[str, Annotation] = {}
    tool = None
    for written, annotation in read_points_table(path, config.points_format, _marks(config)).items():
        name = _UPLOADED.sub("", plain_name(written))
        name = name if name in known else plain_name(written)
        if name in table:
            raise DataError(
                f"{path} names {cut(name)} twice, with different endings, folders or encodings of accents",
                kind=DataErrorKind.ambiguous,
                file=path,
            )
        table[name], tool = annotation, annotation.tool

    def heads_of(image: Path) -> LoadHeads:
        if image_name(image) in table:
            read = partial(table.__getitem__, image_name(image))
            return partial(_heads, read, path, image, upright=config.exif_orientation)
        empty = f'"{image.name}": []' if path.suffix.lower() == ".json" else f'"{image.name},,"'
        empty = f"is written {empty}" if tool is None else f"must be in this file of {tool}, without marks"
        message = f"image {image} has no annotation in {path}; one without people {empty}"
        return report_when_read(message, DataErrorKind.missing_annotation, image)

    return heads_of, {name: f"annotation {cut(name)} of {path}" for name in table if name not in known}


# ---------------------------------------------------------------------------------------------- splits


def _names_in_split(config: CustomConfig, split: str, root: Path, images: dict[str, Path]) -> list[str]:
    """Return the names of one folder's images that belong to a split; a split file may name missing ones too."""
    if config.split_file is not None:
        splits = _read_split_file(resolve_below(config.split_file, config.root))
    else:
        splits = _split_by_hash(list(images), test=config.test_fraction, val=config.val_fraction)
    names = [name for name, its_split in splits.items() if its_split == split]
    if not names:
        raise DataError(
            f"dataset=custom: none of the {len(images)} images of {root} is in split {split}",
            kind=DataErrorKind.empty,
            file=root,
        )
    return names


def _split_by_hash(names: list[str], *, test: float, val: float) -> dict[str, str]:
    """Assign each name to a split by its hash in [0, 1): below ``test`` is test, the next ``val`` is validation.

    The split of an image therefore depends only on its name, and the shares hold on average. Only a split that would
    be empty takes one image, the one with the lowest hash, from the largest split; that image returns when the split
    gets one of its own.

    Raises:
        DataError: if there are fewer images than splits.
    """
    shares = {"test": test, "val": val, "train": 1.0}
    wanted = [split for split, share in shares.items() if share > 0]
    if len(names) < len(wanted):
        raise DataError(
            f"dataset=custom: {len(names)} images are too few for dataset.val_fraction={val:g} and "
            f"dataset.test_fraction={test:g}, as {', '.join(wanted)} need one each; add images, or set one to 0",
            kind=DataErrorKind.empty,
        )
    found: dict[str, list[str]] = {split: [] for split in shares}
    for name in sort_by_hash(names, salt="split"):
        position = int.from_bytes(name_hash(name, salt="split")[:8]) / 2**64
        found["test" if position < test else "val" if position < test + val else "train"].append(name)
    for split in wanted:
        if not found[split]:
            found[split].append(max(found.values(), key=len).pop(0))
    return {name: split for split, members in found.items() for name in members}


def _read_split_file(path: Path) -> dict[str, str]:
    """Read a csv (``name,split``) or JSON file that assigns images to splits.

    JSON may be ``{name: split}`` or ``{split: [name, ...]}``.

    Returns:
        Split by plain image name.

    Raises:
        DataError: if the file is missing or invalid, a split is unknown, or an image is named twice.
    """
    if not path.is_file():
        raise DataError(f"dataset.split_file={path}: no such file", kind=DataErrorKind.missing, file=path)
    is_json = path.suffix.lower() == ".json"
    try:
        content = load_json(path) if is_json else read_text(path)
    except DataError as error:
        raise _invalid_split_file(path, f" cannot be read: {error}") from error
    if not is_json:
        rows = _split_rows_of_csv(content, path)
    elif isinstance(content, dict):
        rows = _split_rows_of_json(content)
    else:
        raise _invalid_split_file(path, " holds neither {name: split} nor {split: [name, ...]}")
    splits: dict[str, str] = {}
    for named, split in rows:
        name = plain_name(named)
        if split.lower() not in SPLITS:
            raise _invalid_split_file(
                path,
                f": {cut(name)} is in split {cut(split)!r}; there are {', '.join(SPLITS)} (a first line with names of "
                "columns is image,split)",
            )
        if name in splits:
            raise _invalid_split_file(path, f" names {cut(name)} twice")
        splits[name] = split.lower()
    if not splits:
        raise _invalid_split_file(path, " names no images")
    return splits


def _split_rows_of_json(content: dict[str, object]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        rows += [(str(name), key) for name in value] if isinstance(value, list) else [(key, str(value))]
    return rows


def _split_rows_of_csv(text: str, path: Path) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    try:
        lines = [line for line in csv.reader(text.splitlines(), strict=True) if any(field.strip() for field in line)]
    except csv.Error as error:
        raise _invalid_split_file(path, f" cannot be read: {error}; correct the quotation marks") from error
    for k, fields in enumerate(lines):
        if len(fields) != 2:
            raise _invalid_split_file(path, f": {cut(','.join(fields))!r} is not name,split")
        name, split = fields[0].strip(), fields[1].strip()
        is_header = k == 0 and name.lower() in SPLIT_FILE_NAMES and split.lower() in ("split", "subset", "set")
        if not is_header:
            rows.append((name, split))
    return rows


def _invalid_split_file(path: Path, problem: str) -> DataError:
    return DataError(f"dataset.split_file={path}{problem}", kind=DataErrorKind.split_list, file=path)
