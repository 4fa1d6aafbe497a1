"""List the images of a split and open them as samples."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headcount.config import (
    Cache,
    ConfigError,
    CustomConfig,
    DatasetConfig,
    FolderDatasetConfig,
    MixedConfig,
    SyntheticConfig,
)
from headcount.data.augment import TrainAugment
from headcount.data.catalogue import (
    DATASETS,
    HOLDOUT,
    check_split,
    dataset_info,
    part_split,
    selection_split,
    source_split,
    split_names,
)
from headcount.data.crowd import CrowdDataset
from headcount.data.custom import files_left_out, images_in_no_split
from headcount.data.decoded import decode_images, open_decoded
from headcount.data.images import read_image
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import Listed, sort_by_hash
from headcount.data.locate import dataset_folder, naming_part
from headcount.data.mask_files import find_masks
from headcount.data.masks import Mask
from headcount.data.mixed import MixedCrowd
from headcount.data.plausible import check_pixels, shared_files
from headcount.data.prepare import PreparedImage, ResizeRule, cache_folder, plan_image, prepare_images, resize_image
from headcount.errors import DataError, HeadcountError
from headcount.files import describe_folder
from headcount.progress import progress_bar
from headcount.wording import first_names, many, printable

MAX_REASONS = 10
"""Longest list of unusable images in an error message."""

Pixels = Callable[[int], UInt8[Tensor, "3 height width"]]


def open_split(
    config: DatasetConfig,
    split: str,
    *,
    data_root: str | None = None,
    augment: TrainAugment | None = None,
    seed: int = 0,
) -> CrowdDataset:
    """Open a split with its annotations; resizes the images into the cache if that has not been done.

    Args:
        split: one of the dataset's own splits, or ``holdout`` if training images are held out; ``train`` then excludes
            these, which do not depend on the seed.
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.
        augment: applied to ``dataset[epoch, index]``; None leaves training images whole.
        seed: seed of the augmentation.

    Raises:
        ConfigError: if the dataset or the split does not exist, the split's annotations are not public, or no folder
            is set.
        DataError: if the folder or files are missing, the split has no images, some images cannot be used and
            ``dataset.skip_bad`` is false, or a custom dataset has an image file in two splits.
    """
    if isinstance(config, MixedConfig):
        return _open_mixed(config, split, data_root=data_root, augment=augment, seed=seed)
    info = check_split(config, split)
    if split == info.unannotated:
        others = " or ".join(f"split={other}" for other in info.splits if other not in ("train", split))
        raise ConfigError(
            f"split={split}: the annotations of {info.title}'s {split} images are not public ({info.source}), so they "
            f"cannot be used for training or evaluation; use {others}, and count these images with a checkpoint instead"
        )
    if isinstance(config, SyntheticConfig):
        return _open_synthetic(config, split, augment=augment, seed=seed)
    doubts = _check_splits(config, data_root=data_root)
    dataset = _open_folder(config, split, data_root=data_root, augment=augment, seed=seed)
    dataset.doubts += doubts
    return dataset


def _open_mixed(
    config: MixedConfig, split: str, *, data_root: str | None, augment: TrainAugment | None, seed: int
) -> MixedCrowd:
    parts = {}
    for name, part in config.datasets.items():
        with naming_part(name):
            parts[name] = open_split(part, part_split(part, split), data_root=data_root, augment=augment)
    return MixedCrowd(parts, weights=config.weights, one_head_per_pixel=config.one_head_per_pixel, seed=seed)


def _check_splits(config: DatasetConfig, *, data_root: str | None) -> list[str]:
    """Describe what is doubtful about the files of all splits together; raises DataError if it stops training."""
    errors, warnings = split_faults(config, data_root=data_root)
    if errors:
        raise DataError("\n".join(errors), kind=DataErrorKind.ambiguous)
    return warnings


def split_faults(config: DatasetConfig, *, data_root: str | None) -> tuple[list[str], list[str]]:
    """Find image files that belong to two splits, or to none because they are in a subfolder.

    Args:
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.

    Returns:
        Messages of what stops training, and of what does not. The splits of published datasets are read as they are.
    """
    if not isinstance(config, FolderDatasetConfig):
        return [], []
    whole = dataclasses.replace(config, max_train_images=None, max_eval_images=None, train_fraction=1.0)
    files = {}
    for split in [*split_names(config), *([HOLDOUT] if config.holds_out else [])]:
        try:
            files[split] = [item.image for item in list_split(whole, split, data_root=data_root)[1]]
        except HeadcountError:  # Reported when the split is opened.
            continue
    warnings = files_left_out(config, files) if isinstance(config, CustomConfig) else []
    shared = shared_files(files)
    if not shared:
        return [], warnings
    number, verb = many(len(shared), "image"), "is" if len(shared) == 1 else "are"
    message = f"dataset={config.name}: {number} {verb} in more than one split: {first_names(shared)}"
    if isinstance(config, CustomConfig):
        return [f"{message}; an error on images of the training means nothing: remove them from one split"], warnings
    return [], [message, *warnings]


def missing_splits(config: DatasetConfig, *, data_root: str | None) -> list[str]:
    """Describe the splits without images that a training does not need; one line each, usually none.

    Args:
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.
    """
    if isinstance(config, MixedConfig):
        return [
            f"{name}: {line}"
            for name, part in config.datasets.items()
            for line in missing_splits(part, data_root=data_root)
        ]
    if not isinstance(config, FolderDatasetConfig):
        return []
    needed = ("train", selection_split(config), dataset_info(config.name).unannotated)
    missing = []
    for split in (name for name in split_names(config) if name not in needed):
        try:
            list_split(config, split, data_root=data_root)
        except HeadcountError:
            missing.append(f"no images of '{split}' were found; this run does not need them")
    return missing


def no_blocks_error(config: DatasetConfig, block_size: int) -> DataError:
    """Return the error about masks in which no block of ``block_size`` pixels lies entirely."""
    return DataError(
        f"dataset={config.name}: no block of {block_size} px lies entirely inside the mask of a training image, so no "
        "block has a known count; choose smaller blocks (bins.block_size), or larger masks",
        kind=DataErrorKind.mask,
    )


def no_heads_error(config: DatasetConfig, images: int, *, masked: int = 0) -> DataError:
    """Return the error about training images without any head.

    Args:
        masked: number of heads outside the images' masks.
    """
    if masked:
        return DataError(
            f"dataset={config.name}: all {masked} heads of the {images} training images lie outside the images' masks; "
            "0 is outside, any other value inside: the masks may be inverted",
            kind=DataErrorKind.mask,
        )
    return DataError(
        f"dataset={config.name}: none of the {images} training images has an annotated head, so there is nothing to "
        "learn; an empty annotation means an image without people: check the annotations",
        kind=DataErrorKind.empty,
    )


def open_images(config: FolderDatasetConfig, split: str, *, data_root: str | None = None) -> CrowdDataset:
    """Open all images of a split without annotations and masks, for prediction; they are resized as for evaluation.

    Args:
        split: a split of the dataset, which may be one whose annotations are not public.
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.

    Returns:
        Images without heads, in the order of the dataset's own list if it has one, otherwise in natural order.

    Raises:
        ConfigError: if the dataset or the split does not exist, or no folder is set.
        DataError: if the folder or images are missing, or images cannot be read; lists the first of them.
    """
    # The decoded cache would take more time and space than counting every image once.
    config = dataclasses.replace(config, max_train_images=None, max_eval_images=None, cache=Cache.none)
    return _open_unannotated(config, split, data_root=data_root)


def open_unannotated(config: DatasetConfig, split: str, *, data_root: str | None = None, seed: int = 0) -> CrowdDataset:
    """Open the images of a split for training without annotations, which need not exist and are not read.

    Args:
        split: a split of the dataset, which may be one whose annotations are not public.
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.
        seed: of the images that the parts of a mixed dataset give to an epoch.

    Raises:
        ConfigError, DataError: as :func:`open_images`; unreadable images are left out with ``dataset.skip_bad``.
    """
    if isinstance(config, MixedConfig):
        parts = {}
        for name, part in config.datasets.items():
            with naming_part(name):
                parts[name] = open_unannotated(part, part_split(part, split), data_root=data_root)
        return MixedCrowd(parts, weights=config.weights, seed=seed)
    if isinstance(config, SyntheticConfig):
        return _open_synthetic(config, split, augment=None, seed=0, annotated=False)
    assert isinstance(config, FolderDatasetConfig)
    return _open_unannotated(config, split, data_root=data_root, skip_bad=config.skip_bad)


def _open_unannotated(
    config: FolderDatasetConfig, split: str, *, data_root: str | None, skip_bad: bool | None = None
) -> CrowdDataset:
    """Open images without annotations.

    Args:
        skip_bad: whether images that cannot be read are left out; None: never, whatever the config says.
    """
    info = check_split(config, split)
    root, listed = list_split(config, split, data_root=data_root)
    if info.files is not None and info.files.split_order is not None:
        place = {name: k for k, name in enumerate(info.files.split_order(root, source_split(split)))}
        listed = sorted(listed, key=lambda item: place[item.name])
    cache = _cache(config, root)
    usable, bad = _read_headers(listed, config, split, cache, annotated=False)
    bad |= _prepare(usable, config, split)
    if bad and not (skip_bad and len(bad) < len(listed)):
        problems = [bad[item.name] for item in listed if item.name in bad]
        message = f"{root}: {len(problems)} of {len(listed)} {split} images cannot be read:{reason_lines(problems)}"
        if skip_bad is not None:
            message = unusable_message(config, split, problems, images=len(listed))
        raise DataError(message, kind=DataErrorKind.unusable_images, file=root)
    usable = [item for item in usable if item.name not in bad]
    return CrowdDataset(
        [item.name for item in usable],
        _pixels(usable, config, split, cache),
        [item.heads for item in usable],
        source_sizes=[item.image.source_size for item in usable],
        sizes=[item.image.size for item in usable],
        left_out=[item.name for item in listed if item.name in bad],
        sources=[item.image.source for item in usable],
        has_annotations=False,
    )


def list_split(config: DatasetConfig, split: str, *, data_root: str | None) -> tuple[Path, list[Listed]]:
    """Find a dataset's folder and the images of a split; no image is opened.

    Args:
        split: a split that the dataset has.
        data_root: folder of all datasets; None uses the environment variable HEADCOUNT_DATA.

    Returns:
        The folder, and at least one image.

    Raises:
        ConfigError: if no folder is set, or the settings are those of another dataset.
        DataError: if the folder or the split's files are missing, or the split has no images.
    """
    files = DATASETS[config.name].files
    if files is None or not isinstance(config, FolderDatasetConfig) or not isinstance(config, files.settings):
        raise ConfigError(f"dataset {config.name} cannot be read with the settings of {type(config).__name__}")
    source = source_split(split)
    root = dataset_folder(config, source, data_root=data_root)
    listed = files.list_split(root, source, config)
    if not listed:
        raise DataError(
            f"dataset={config.name}: {source} has no images in {root}; {describe_folder(root)}",
            kind=DataErrorKind.empty,
            file=root,
        )
    chosen = [listed[k] for k in _choose([item.name for item in listed], config, split)]
    masks = find_masks(config, root, source, own=dict(files.masks))
    own = config.mask != "none"
    return root, [
        Listed(
            item.image,
            partial(_heads_in_pixels, item),
            mask=masks(item.image) if masks else item.mask if own else None,
        )
        for item in chosen
    ]


def _heads_in_pixels(item: Listed) -> Float[Tensor, "n 2"]:
    return check_pixels(item.heads(), item.image)


def unusable_message(config: FolderDatasetConfig, split: str, reasons: Sequence[str], *, images: int) -> str:
    """Write the error message about images that cannot be used, with one line for each of the first ``MAX_REASONS``.

    Args:
        reasons: one for each unusable image.
        images: number of all images of the split.
    """
    lines = reason_lines(reasons)
    if len(reasons) == images and config.skip_bad:
        return f"dataset={config.name}: none of the {images} images of {split} can be used:{lines}"
    return (
        f"dataset={config.name}: {len(reasons)} of {images} images of {split} cannot be used; correct them, or "
        f"leave them out with dataset.skip_bad=true:{lines}"
    )


def reason_lines(reasons: Sequence[str]) -> str:
    """Write each of the first ``MAX_REASONS`` reasons on a line of its own, and how many more there are."""
    once = list(dict.fromkeys(reasons))  # Many images may have one reason.
    lines = "".join(f"\n  {printable(reason)}" for reason in once[:MAX_REASONS])
    return lines + (f"\n  and {len(once) - MAX_REASONS} more" if len(once) > MAX_REASONS else "")


@dataclass(frozen=True)
class _Usable:
    """An image that can be used, as far as is known."""

    name: str
    heads: Float[Tensor, "_ 2"]
    image: PreparedImage
    mask: Mask | None = None


def _open_folder(
    config: DatasetConfig, split: str, *, data_root: str | None, augment: TrainAugment | None, seed: int
) -> CrowdDataset:
    root, listed = list_split(config, split, data_root=data_root)
    assert isinstance(config, FolderDatasetConfig)
    cache = _cache(config, root)
    usable, bad = _read_headers(listed, config, split, cache)
    # All images are decoded before the error, which names all that are bad; the resized ones stay in the cache.
    bad |= _prepare(usable, config, split)
    if bad and not (config.skip_bad and len(bad) < len(listed)):
        reasons = [bad[item.name] for item in listed if item.name in bad]
        raise DataError(
            unusable_message(config, split, reasons, images=len(listed)), kind=DataErrorKind.unusable_images
        )
    usable = [item for item in usable if item.name not in bad]
    return CrowdDataset(
        [item.name for item in usable],
        _pixels(usable, config, split, cache),
        [item.heads for item in usable],
        source_sizes=[item.image.source_size for item in usable],
        sizes=[item.image.size for item in usable],
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        augment=augment,
        seed=seed,
        left_out=[item.name for item in listed if item.name in bad],
        in_no_split=images_in_no_split(config) if isinstance(config, CustomConfig) else (),
        sources=[item.image.source for item in usable],
        first_rows=None if config.cache is Cache.decoded else partial(_decode_rows, [item.image for item in usable]),
        masks=[item.mask for item in usable if item.mask is not None],
    )


def _cache(config: FolderDatasetConfig, root: Path) -> Path:
    rule = ResizeRule.from_config(config)
    return cache_folder(config.cache_dir, dataset=config.name, root=root, rule=rule, upright=config.exif_orientation)


def _read_headers(
    listed: list[Listed], config: FolderDatasetConfig, split: str, cache: Path, *, annotated: bool = True
) -> tuple[list[_Usable], dict[str, str]]:
    """Read the annotations and the headers of all images.

    Args:
        annotated: False reads neither annotations nor masks.

    Returns:
        The usable images, and the reason why each of the others is not, by name.
    """
    rule = ResizeRule.from_config(config)
    usable: list[_Usable] = []
    bad: dict[str, str] = {}
    progress = progress_bar(listed, label=f"reading {config.name} {split}", disable=len(listed) <= 1000)
    for item in progress:
        try:
            heads = item.heads() if annotated else torch.zeros(0, 2)
            image = plan_image(item.image, cache / source_split(split), rule=rule, upright=config.exif_orientation)
            mask = item.mask(image.source_size) if annotated and item.mask is not None else None
        except DataError as error:
            bad[item.name] = str(error)
        else:
            usable.append(_Usable(item.name, heads, image, mask))
    return usable, bad


def _prepare(usable: Sequence[_Usable], config: FolderDatasetConfig, split: str) -> dict[str, str]:
    """Resize the images that have not been yet; returns the reason for each that cannot be decoded, by name."""
    errors = prepare_images([item.image for item in usable], label=f"{config.name} {split}")
    return {item.name: str(errors[item.image.source]) for item in usable if item.image.source in errors}


def _pixels(usable: Sequence[_Usable], config: FolderDatasetConfig, split: str, cache: Path) -> Pixels:
    """Return what reads the prepared images, which ``dataset.cache=decoded`` decodes first."""
    images = [item.image for item in usable]
    if config.cache is Cache.decoded:
        folder = cache / "decoded" / source_split(split)
        return partial(_map_image, decode_images(images, folder, label=f"{config.name} {split}"))
    return partial(_decode_image, images)


def _open_synthetic(
    config: SyntheticConfig, split: str, *, augment: TrainAugment | None, seed: int, annotated: bool = True
) -> CrowdDataset:
    from headcount.data.drawing import draw_crowds

    source = source_split(split)
    total = {"train": config.train_images, "val": config.val_images, "test": config.test_images}[source]
    chosen = _choose([f"{source}_{k:04d}" for k in range(total)], config, split)
    samples = draw_crowds(chosen, config=config, split=source, label=f"drawing synthetic {split}")
    sizes = [(sample.image.shape[2], sample.image.shape[1]) for sample in samples]
    return CrowdDataset(
        [sample.name for sample in samples],
        [sample.image for sample in samples].__getitem__,
        [sample.points if annotated else torch.zeros(0, 2) for sample in samples],
        source_sizes=sizes,
        sizes=sizes,
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        augment=augment,
        seed=seed,
        has_annotations=annotated,
    )


def _choose(names: list[str], config: DatasetConfig, split: str) -> list[int]:
    """Return the positions, among the images of the source split, of those that belong to ``split``.

    Raises:
        ConfigError: if holding images out leaves none to train on, or there are fewer images than folds.
    """
    chosen = list(range(len(names)))
    if config.cv_folds is not None and config.cv_fold is not None and source_split(split) == "train":
        if config.cv_folds > len(names):
            raise ConfigError(
                f"cv={config.cv_folds}: dataset={config.name} has {len(names)} training images, and every fold needs "
                "one; choose fewer folds"
            )
        ordered = sort_by_hash(names, salt=f"fold {config.cv_seed}")
        held = set(ordered[config.cv_fold - 1 :: config.cv_folds])
        chosen = [k for k in chosen if (names[k] in held) == (split == HOLDOUT)]
    if config.holdout > 0 and source_split(split) == "train":
        # By a hash of the name: independent of seeds and of the order.
        held = set(sort_by_hash(names)[: max(1, round(config.holdout * len(names)))])
        if len(held) == len(names):
            raise ConfigError(f"dataset.holdout {config.holdout} of {len(names)} images leaves none to train on")
        chosen = [k for k in chosen if (names[k] in held) == (split == HOLDOUT)]
    if split == "train" and config.train_fraction < 1:
        # The first names of one fixed order: a smaller share is part of a larger one.
        ordered = sort_by_hash((names[k] for k in chosen), salt="fraction")
        kept = set(ordered[: max(1, round(config.train_fraction * len(ordered)))])
        chosen = [k for k in chosen if names[k] in kept]
    return chosen[: config.max_train_images if split == "train" else config.max_eval_images]


# Functions of the module, not closures: a CrowdDataset is pickled for worker processes that are not forked.
def _decode_image(images: Sequence[PreparedImage], index: int) -> UInt8[Tensor, "3 height width"]:
    return _decode_rows(images, index, None)


def _decode_rows(images: Sequence[PreparedImage], index: int, rows: int | None) -> UInt8[Tensor, "3 height width"]:
    image = images[index]
    try:
        return read_image(image.path, upright=image.upright, rows=rows)
    except DataError:
        if image.path == image.source:
            raise
        resize_image(image)  # The cached file was damaged since it was checked.
        return read_image(image.path, rows=rows)


def _map_image(files: Sequence[Path], index: int) -> UInt8[Tensor, "3 height width"]:
    return open_decoded(files[index])
