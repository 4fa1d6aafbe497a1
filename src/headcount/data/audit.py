"""Check every annotation and image file of a dataset before training on it.

Heads are audited as annotated, in pixels of the image, upright if ``dataset.exif_orientation`` says so; blocks as in
training, after the dataset's resize rule. Images are decoded, but nothing is resized or written. Damage in the middle
of a JPEG is not found, because no decoder reports it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headcount.config import ConfigError, CustomConfig, DatasetConfig, FolderDatasetConfig, MixedConfig
from headcount.data.catalogue import HOLDOUT, dataset_info, selection_split, split_names
from headcount.data.crowd import CrowdDataset
from headcount.data.custom import images_in_no_split
from headcount.data.histograms import block_histogram
from headcount.data.images import read_image, read_picture
from headcount.data.kinds import DataErrorKind
from headcount.data.listing import LoadMask
from headcount.data.masks import Mask, PlacedMask
from headcount.data.open import (
    list_split,
    no_blocks_error,
    no_heads_error,
    open_split,
    reason_lines,
    split_faults,
    unusable_message,
)
from headcount.data.plausible import doubtful_positions
from headcount.data.points import clamp_into, inside
from headcount.data.prepare import ResizeRule, check_cache_dir, resized_size, run_in_threads
from headcount.errors import DataError, HeadcountError
from headcount.progress import progress_bar
from headcount.types import FAR_OUTSIDE, SeenImages
from headcount.wording import first_names, many

BLOCK_SIZES = (8, 16, 32)
"""The paper's block sizes, pixels; their block counts are compared."""

_GRAY = ("1", "L", "LA", "I", "I;16", "F")


class Fault(StrEnum):
    """Why an image cannot be used for training or evaluation; the value is a label for reports."""

    no_image = "annotated or listed images that are missing"
    no_annotation = "images without annotation"
    image = "images that cannot be read"
    annotation = "annotations that cannot be read"
    not_finite = "annotations with positions that are not finite"
    no_mask = "images without mask"
    mask = "masks that cannot be used"


MASK_FAULTS = (Fault.no_mask, Fault.mask)
"""Faults that only datasets with masks can have."""


_FAULTS: dict[str, Fault] = {
    DataErrorKind.missing_image: Fault.no_image,
    DataErrorKind.missing_annotation: Fault.no_annotation,
    DataErrorKind.image: Fault.image,
    DataErrorKind.not_finite: Fault.not_finite,
    DataErrorKind.missing_mask: Fault.no_mask,
    DataErrorKind.mask: Fault.mask,
}


@dataclass
class AuditedImage:
    """One image and its annotation."""

    name: str
    file: Path | None
    """The image file; None for images that are drawn by code."""
    pixels: Callable[[], UInt8[Tensor, "3 height width"]]
    """Decodes the image; raises DataError if that is not possible."""
    width: int = 0
    """Width of the image before resizing, pixels; 0 if it was not read."""
    height: int = 0
    """Height of the image before resizing, pixels; 0 if it was not read."""
    mode: str = ""
    """Pillow's color mode: RGB, L for grayscale, ..."""
    orientation: int = 1
    """Its EXIF orientation, 1 to 8; 1 is upright."""
    dark: bool = False
    """Whether it has 16 bits and no value above 4095."""
    size_bytes: int = 0
    """Size of the file, or of the pixels of an image drawn by code."""
    points: Float[Tensor, "n 2"] = field(default_factory=lambda: torch.zeros(0, 2))
    """(x, y) in pixels of the image before resizing."""
    load_mask: LoadMask | None = None
    """Reads the part of the image in which heads count; None if they count everywhere."""
    mask: Mask | None = None
    """That part; None also if it was not read."""
    fault: Fault | None = None
    """None if it can be used."""
    problem: str | None = None
    """The message with which training would stop; None if it can be used."""
    note: str = ""
    """Which of its size and number of heads are far outside those of the training images; empty if none."""

    @property
    def duplicates(self) -> int:
        """Number of heads at exactly the position of an earlier one."""
        return len(self.points) - len(torch.unique(self.points, dim=0))

    @property
    def outside(self) -> int:
        """Number of heads outside the image."""
        return int((~inside(self.points, width=self.width, height=self.height)).sum())

    @property
    def distance_outside(self) -> float:
        """Largest distance of a head from the image, pixels; 0 if all are inside."""
        nearest = clamp_into(self.points, width=self.width, height=self.height)
        return float((self.points - nearest).norm(dim=1).max()) if len(self.points) else 0.0

    @property
    def masked(self) -> int:
        """Number of heads outside the mask, which are not counted; 0 without a mask."""
        if self.mask is None:
            return 0
        return int((~self.mask.holds(clamp_into(self.points, width=self.width, height=self.height))).sum())

    @property
    def area_in_mask(self) -> float:
        """Share of the image's area inside its mask; 1 without a mask."""
        if self.mask is None:
            return 1.0
        size = (self.width, self.height)
        placed = PlacedMask.whole(self.mask, source_size=size, size=size)
        return float(placed.shares(max(size)))

    @property
    def gray(self) -> bool:
        """Whether it is stored without color."""
        return self.mode in _GRAY

    def digest(self) -> bytes:
        """Hash the content; equal for copies under other names."""
        content = self.pixels().contiguous().numpy().tobytes() if self.file is None else self.file.read_bytes()
        return hashlib.blake2b(content, digest_size=16).digest()


@dataclass
class AuditedSplit:
    """The images of a split."""

    name: str
    annotated: bool
    """Whether the split has public annotations."""
    images: list[AuditedImage]

    @property
    def usable(self) -> list[AuditedImage]:
        """The images that can be used for training or evaluation."""
        return [image for image in self.images if image.problem is None]

    @property
    def heads(self) -> int:
        """Number of annotated heads in all usable images."""
        return sum(len(image.points) for image in self.usable)

    @property
    def has_masks(self) -> bool:
        """Whether heads count only inside a mask of each image."""
        return any(image.load_mask is not None for image in self.images)

    @property
    def faults(self) -> Counter[Fault]:
        """Number of images by fault."""
        return Counter(image.fault for image in self.images if image.fault is not None)


@dataclass
class Audit:
    """The result of checking a dataset."""

    dataset: str
    root: str
    """Its folder, or ``drawn by code``."""
    splits: list[AuditedSplit]
    train: CrowdDataset | None
    """The usable training images as training counts them, without pixels; None if there are none."""
    blocks: dict[int, dict[int, int]] = field(default_factory=dict)
    """Block size (pixels) -> block count -> number of training blocks."""
    copies: list[list[tuple[str, str]]] = field(default_factory=list)
    """Groups of (split, image) that are identical byte for byte."""
    errors: list[str] = field(default_factory=list)
    """Messages of everything that stops training."""
    warnings: list[str] = field(default_factory=list)
    """What the user should know although it does not stop training."""


def audit_dataset(config: DatasetConfig, *, data_root: str | None = None, block_size: int | None = None) -> Audit:
    """Read all files of a dataset, even if some of them are broken.

    Args:
        data_root: folder of all datasets, as for :func:`headcount.data.open.open_split`.
        block_size: a block size to count in addition to ``BLOCK_SIZES``, pixels.

    Raises:
        DataError: if the dataset's folder is missing.
        ConfigError: if no folder is set, the dataset does not exist, or it is a mixed one.
    """
    if isinstance(config, MixedConfig):
        parts = " or ".join(f"dataset={part.name}" for part in config.datasets.values())
        raise ConfigError(f"dataset=mixed: each part is audited alone: {parts}")
    audit = Audit(dataset=config.name, root="drawn by code", splits=[], train=None)
    failures: list[HeadcountError] = []
    for split in [*split_names(config), *([HOLDOUT] if config.holds_out else [])]:
        try:
            audit.splits.append(_audit_split(config, split, data_root, audit))
        except HeadcountError as error:
            failures.append(error)
    audit.errors += [str(error) for error in failures]
    if not audit.splits:  # There is no folder at all, so there is nothing to audit.
        raise _combined(failures)
    audit.errors += _settings_errors(config, Path(audit.root))
    errors, warnings = split_faults(config, data_root=data_root)
    audit.errors += errors
    audit.warnings += warnings
    for found in audit.splits:
        reasons = [image.problem for image in found.images if image.problem is not None]
        if not found.images:
            audit.errors.append(f"dataset={config.name}: {found.name} has no images")
        elif reasons and isinstance(config, FolderDatasetConfig):
            message, stops = _describe_unusable(config, found, reasons)
            (audit.errors if stops else audit.warnings).append(message)
        masked = sum(image.masked for image in found.usable)
        if found.name == "train" and found.usable and found.heads == masked:
            audit.errors.append(str(no_heads_error(config, len(found.usable), masked=masked)))
        audit.warnings += _warnings(found)
        audit.warnings += _orientation_warnings(config, found)
    names = images_in_no_split(config) if isinstance(config, CustomConfig) else []
    if names:
        audit.warnings.append(f"{len(names)} images are in no split of dataset.split_file: {first_names(names)}")
    audit.copies = _copies(audit.splits)
    audit.warnings += _copy_warnings(audit)
    train = next((found for found in audit.splits if found.name == "train"), None)
    if train is not None and train.usable:
        audit.train = _as_training_counts(config, train.usable)
        for size in sorted({*BLOCK_SIZES, *([block_size] if block_size else [])}):
            audit.blocks[size] = block_histogram(audit.train, size)
        if audit.train.has_masks and not audit.blocks[block_size or BLOCK_SIZES[0]]:
            audit.errors.append(str(no_blocks_error(config, block_size or BLOCK_SIZES[0])))
        audit.blocks = {size: counts for size, counts in audit.blocks.items() if counts}
        for found in audit.splits:
            audit.warnings += _far_outside(config, found, audit.train.seen())
    return audit


def capped(histogram: dict[int, int], m: int) -> tuple[int, int]:
    """Count what label correction caps, or puts into the last bin with ``bins.last=open``.

    Args:
        histogram: number of blocks by number of heads.
        m: largest block count that is kept.

    Returns:
        Number of blocks with more than ``m`` heads, and of the heads above ``m`` in them.

    Source: arXiv:2403.09281, section III-A.2.
    """
    above = {count: blocks for count, blocks in histogram.items() if count > m}
    return sum(above.values()), sum((count - m) * blocks for count, blocks in above.items())


def _audit_split(config: DatasetConfig, split: str, data_root: str | None, audit: Audit) -> AuditedSplit:
    if not isinstance(config, FolderDatasetConfig):
        return AuditedSplit(split, True, _drawn(open_split(config, split)))
    root, listed = list_split(config, split, data_root=data_root)
    audit.root = str(root)
    annotated = split != dataset_info(config.name).unannotated
    found = AuditedSplit(split, annotated, [])
    for item in progress_bar(listed, label=f"reading {config.name} {split}", disable=len(listed) <= 1000):
        pixels = partial(read_image, item.image, upright=config.exif_orientation)
        image = AuditedImage(item.name, item.image, pixels, load_mask=item.mask if annotated else None)
        found.images.append(image)
        with _recorded_fault(image):
            if annotated:
                image.points = item.heads()
    sound = [image for image in found.images if image.problem is None]
    run_in_threads(partial(_audit_image, config), sound, label=f"auditing {config.name} {split}")
    return found


def _audit_image(config: FolderDatasetConfig, image: AuditedImage) -> None:
    """Decode an image as training does, and record what is known of it or its fault."""
    assert image.file is not None
    with _recorded_fault(image):
        picture = read_picture(image.file, upright=config.exif_orientation)
        image.height, image.width = picture.pixels.shape[1:]
        image.mode, image.orientation, image.dark = picture.mode, picture.orientation, picture.dark
        image.size_bytes = image.file.stat().st_size
        resized_size(image.file, (image.width, image.height), rule=ResizeRule.from_config(config))
        image.mask = None if image.load_mask is None else image.load_mask((image.width, image.height))


@contextmanager
def _recorded_fault(image: AuditedImage) -> Iterator[None]:
    """Record a DataError as the reason why an image cannot be used."""
    try:
        yield
    except DataError as error:
        image.problem = str(error)
        image.fault = _FAULTS.get(error.kind, Fault.annotation)


def _combined(failures: Sequence[HeadcountError]) -> HeadcountError:
    """Combine the errors of all splits into one, with each message once."""
    message = "\n".join(dict.fromkeys(str(error) for error in failures))
    first = failures[0]
    if isinstance(first, DataError):
        return DataError(message, kind=first.kind, file=first.file)
    return ConfigError(message)


def _drawn(dataset: CrowdDataset) -> list[AuditedImage]:
    def pixels(index: int) -> Tensor:
        return dataset[index].image

    images = []
    for index, (name, (width, height)) in enumerate(zip(dataset.names, dataset.sizes, strict=True)):
        points = dataset[index].points
        images.append(
            AuditedImage(
                name,
                None,
                partial(pixels, index),
                width=width,
                height=height,
                mode="RGB",
                size_bytes=3 * width * height,
                points=points,
            )
        )
    return images


def _settings_errors(config: DatasetConfig, root: Path) -> Iterator[str]:
    """Yield the errors that stop training before it reads an image."""
    try:
        selection_split(config)
    except HeadcountError as error:
        yield str(error)
    if isinstance(config, FolderDatasetConfig):
        try:
            check_cache_dir(config.cache_dir, root)
        except ConfigError as error:
            yield str(error)


def _describe_unusable(config: FolderDatasetConfig, split: AuditedSplit, reasons: Sequence[str]) -> tuple[str, bool]:
    """Describe the images of a split that cannot be used, and say whether they stop training or evaluation."""
    number = f"{split.name}: {len(reasons)} of {many(len(split.images), 'image')}"
    if not split.annotated:
        return f"{number} cannot be read: {first_names(reasons)}", False
    if config.skip_bad and split.usable:
        return f"{number} are left out with dataset.skip_bad=true:{reason_lines(reasons)}", False
    return unusable_message(config, split.name, reasons, images=len(split.images)), True


def _warnings(split: AuditedSplit) -> Iterator[str]:
    """Yield one line per kind of oddity of the usable images of a split."""
    if split.annotated:
        points, sizes = [i.points for i in split.usable], [(i.width, i.height) for i in split.usable]
        for line in doubtful_positions([i.name for i in split.usable], points, sizes):
            yield f"{split.name}: {line}"
    numbers = [image.duplicates for image in split.usable]
    if any(numbers):
        worst = split.usable[numbers.index(max(numbers))].name
        images = many(sum(number > 0 for number in numbers), "image")
        yield (
            f"{split.name}: {many(sum(numbers), 'head')} at exactly the place of another, in {images} "
            f"(most in {worst}: {max(numbers)})"
        )
    yield from _mask_warnings(split)
    outside = sorted((i for i in split.usable if i.outside), key=lambda i: i.distance_outside, reverse=True)
    if outside:
        heads = many(sum(image.outside for image in outside), "head")
        shown = [f"{image.name} ({image.outside}, up to {image.distance_outside:.4g} px)" for image in outside]
        yield f"{split.name}: {heads} outside the image, in {many(len(outside), 'image')}: {first_names(shown)}"
    for what, names in (
        ("without people", [i.name for i in split.usable if split.annotated and not len(i.points)]),
        ("without colors", [i.name for i in split.usable if i.gray]),
        (
            "nearly black, of 16 bits without a value above 4095; multiply 12-bit values by 16",
            [i.name for i in split.usable if i.dark],
        ),
    ):
        if names:
            yield f"{split.name}: {many(len(names), 'image')} {what}: {first_names(names)}"


def _mask_warnings(split: AuditedSplit) -> Iterator[str]:
    """Yield a line about heads outside the masks, which may be inverted."""
    masked = {image.name: image.masked for image in split.usable if image.mask is not None}
    total = sum(masked.values())
    if total:
        shown = [f"{name} ({number})" for name, number in masked.items() if number]
        inverted = "; 0 is outside: the masks may be inverted" if total > split.heads / 2 else ""
        yield (
            f"{split.name}: {total} of {many(split.heads, 'head')} outside the mask, not counted, in "
            f"{many(len(shown), 'image')}: {first_names(shown)}{inverted}"
        )


def _orientation_warnings(config: DatasetConfig, split: AuditedSplit) -> Iterator[str]:
    """Yield a warning about images that are not stored upright: annotations may refer to either."""
    names = [image.name for image in split.usable if image.orientation != 1]
    if names and isinstance(config, FolderDatasetConfig):
        done = "turned upright" if config.exif_orientation else "read as stored"
        setting = f"dataset.exif_orientation={str(config.exif_orientation).lower()}"
        images = many(len(names), "image")
        yield f"{split.name}: {images} with an EXIF orientation, {done} ({setting}): {first_names(names)}"


def _far_outside(config: DatasetConfig, split: AuditedSplit, seen: SeenImages) -> Iterator[str]:
    """Note in what images of a split lie far outside the training images, and yield one line about all of them."""
    for image in split.usable:
        stored = prepared = (image.width, image.height)
        if isinstance(config, FolderDatasetConfig):
            prepared = ResizeRule.from_config(config).size(*stored)
        image.note = seen.note(stored=stored, prepared=prepared, heads=len(image.points) - image.masked)
    far = [f"{image.name} ({image.note.removeprefix(FAR_OUTSIDE + ': ')})" for image in split.usable if image.note]
    if far:
        yield f"{split.name}: {many(len(far), 'image')} {FAR_OUTSIDE}: {first_names(far)}"


def _copies(splits: Sequence[AuditedSplit]) -> list[list[tuple[str, str]]]:
    """Group images that are identical byte for byte."""
    sizes = Counter(image.size_bytes for split in splits for image in split.usable)
    places: dict[bytes, list[tuple[str, str]]] = {}
    for split in splits:
        for image in split.usable:
            if sizes[image.size_bytes] > 1:  # A file of unique size has no copy.
                places.setdefault(image.digest(), []).append((split.name, image.name))
    return [group for group in places.values() if len(group) > 1]


def _copy_warnings(audit: Audit) -> Iterator[str]:
    """Yield warnings about copies of images, which make an evaluation look too good in another split."""
    across = [group for group in audit.copies if len({split for split, _ in group}) > 1]
    within = [group for group in audit.copies if group not in across]
    for groups, where in (
        (across, "the same byte for byte in more than one split, which makes an evaluation look too good"),
        (within, "the same byte for byte as another of the split"),
    ):
        if groups:
            shown = first_names([" = ".join("/".join(place) for place in group) for group in groups])
            yield f"{many(len(groups), 'image')} {where}: {shown}"


def _as_training_counts(config: DatasetConfig, images: list[AuditedImage]) -> CrowdDataset:
    """Return the training images as training counts them, without pixels."""
    source = [(image.width, image.height) for image in images]
    sizes = source
    if isinstance(config, FolderDatasetConfig):
        rule = ResizeRule.from_config(config)
        sizes = [rule.size(width, height) for width, height in source]

    def no_pixels(index: int) -> Tensor:
        raise AssertionError("an audited dataset has no pixels")

    return CrowdDataset(
        [image.name for image in images],
        no_pixels,
        [image.points for image in images],
        source_sizes=source,
        sizes=sizes,
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
        masks=[image.mask for image in images if image.mask is not None],
    )
