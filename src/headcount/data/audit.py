"""Look at every annotation and image file of a dataset before anything is trained on it.

Heads are audited as annotated, in pixels of the stored image; blocks as training sees them, after the
dataset's resize rule. Images are opened, but nothing is resized or written. Damage amid a JPEG is not
seen, as no decoder reports it.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError, CustomConfig, DatasetConfig, FolderDatasetConfig
from headcount.data.datasets import (
    HOLDOUT,
    CrowdDataset,
    block_histogram,
    dataset_info,
    list_folder,
    open_split,
    selection_split,
    split_names,
    unusable,
)
from headcount.data.layouts import custom_unnamed
from headcount.data.points import inside
from headcount.data.prepare import cache_folder, prepared_size
from headcount.data.readers import check_image, open_pillow, read_image

BLOCK_SIZES = (8, 16, 32)
"""Pixels; the sizes of the paper, whose block counts are compared."""

_GRAY = ("1", "L", "LA", "I", "I;16", "F")


class Fault(StrEnum):
    """Why an image cannot be trained or evaluated on."""

    no_image = "annotated or listed images not there"
    no_annotation = "images without annotation"
    image = "images that cannot be read"
    annotation = "annotations that cannot be read"
    not_finite = "annotations with positions not finite"


@dataclass
class AuditedImage:
    """One image and its annotation."""

    name: str
    file: Path | None
    """None for images that are drawn by code."""
    pixels: Callable[[], UInt8[Tensor, "3 height width"]]
    """Decodes the stored image; raises ConfigError if it cannot be."""
    width: int = 0
    """Pixels of the stored image; 0 where it was not read."""
    height: int = 0
    mode: str = ""
    """Pillow's: RGB, L for grayscale, ..."""
    size_bytes: int = 0
    """Of the file, or of the pixels of an image drawn by code."""
    points: Float[Tensor, "n 2"] = field(default_factory=lambda: torch.zeros(0, 2))
    """(x, y) in pixels of the stored image."""
    fault: Fault | None = None
    """None if it can be used."""
    problem: str | None = None
    """The fault in the words of training; None if it can be used."""

    @property
    def duplicates(self) -> int:
        """Heads at exactly the place of an earlier one."""
        return len(self.points) - len(torch.unique(self.points, dim=0))

    @property
    def outside(self) -> int:
        """Heads outside the image."""
        return int((~inside(self.points, width=self.width, height=self.height)).sum())

    @property
    def gray(self) -> bool:
        """Whether it is stored without colors."""
        return self.mode in _GRAY

    def digest(self) -> bytes:
        """The same for copies under another name, and for nothing else."""
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
        """Those that can be trained or evaluated on."""
        return [image for image in self.images if image.problem is None]

    @property
    def heads(self) -> int:
        """Annotated heads of all usable images."""
        return sum(len(image.points) for image in self.usable)

    @property
    def faults(self) -> Counter[Fault]:
        """How many images have which fault."""
        return Counter(image.fault for image in self.images if image.fault is not None)


@dataclass
class Audit:
    """What there is to say of a dataset."""

    dataset: str
    root: str
    """Its folder, or what it is made by."""
    splits: list[AuditedSplit]
    train: CrowdDataset | None
    """The usable training images as training counts them, without pixels; None if there are none."""
    blocks: dict[int, dict[int, int]] = field(default_factory=dict)
    """Block size -> block count -> number of training blocks."""
    copies: list[list[tuple[str, str]]] = field(default_factory=list)
    """Groups of (split, image) that are the same byte for byte."""
    errors: list[str] = field(default_factory=list)
    """What stops training, in the words that it is stopped with."""
    warnings: list[str] = field(default_factory=list)
    """What a person should know, and training goes on with."""


def audit_dataset(config: DatasetConfig, *, data_root: str | None = None, block_size: int | None = None) -> Audit:
    """Read everything of a dataset, whatever of it is broken.

    Args:
        data_root: folder of all datasets, as for :func:`headcount.data.datasets.open_split`.
        block_size: the chosen one, px, to be counted beside those of the paper.

    Raises:
        ConfigError: if the dataset's folder is not there.
    """
    audit = Audit(dataset=config.name, root="drawn by code", splits=[], train=None)
    for split in [*split_names(config), *([HOLDOUT] if config.holdout > 0 else [])]:
        try:
            audit.splits.append(_audit_split(config, split, data_root, audit))
        except ConfigError as error:
            audit.errors.append(str(error))
    if not audit.splits:  # no folder at all: nothing to audit
        raise ConfigError("\n".join(dict.fromkeys(audit.errors)))
    audit.errors += _settings_errors(config, Path(audit.root))
    for found in audit.splits:
        reasons = [image.problem for image in found.images if image.problem is not None]
        if not found.images:
            audit.errors.append(f"dataset={config.name}: {found.name} has no images")
        elif reasons and isinstance(config, FolderDatasetConfig):
            said, stops = _told(config, found, reasons)
            (audit.errors if stops else audit.warnings).append(said)
        audit.warnings += _warnings(found)
    if isinstance(config, CustomConfig) and (unnamed := custom_unnamed(config)):
        audit.warnings.append(f"{len(unnamed)} images are in no split of dataset.split_file: {_some(unnamed)}")
    audit.copies = _copies(audit.splits)
    audit.warnings += _copy_warnings(audit)
    train = next((found for found in audit.splits if found.name == "train"), None)
    if train is not None and train.usable:
        audit.train = _as_training_counts(config, train.usable)
        for size in sorted({*BLOCK_SIZES, *([block_size] if block_size else [])}):
            audit.blocks[size] = block_histogram(audit.train, size)
    return audit


def capped(histogram: dict[int, int], m: int) -> tuple[int, int]:
    """Blocks with more than ``m`` heads, and the heads above ``m`` in them: what label correction caps.

    Source: arXiv:2403.09281, section III-A.2.
    """
    above = {count: blocks for count, blocks in histogram.items() if count > m}
    return sum(above.values()), sum((count - m) * blocks for count, blocks in above.items())


def _audit_split(config: DatasetConfig, split: str, data_root: str | None, audit: Audit) -> AuditedSplit:
    if not isinstance(config, FolderDatasetConfig):
        return AuditedSplit(split, True, _drawn(open_split(config, split)))
    root, listed = list_folder(config, split, data_root=data_root)
    audit.root = str(root)
    annotated = split != dataset_info(config.name).unannotated
    found = AuditedSplit(split, annotated, [])
    for item in tqdm(listed, desc=f"auditing {config.name} {split}", unit="image"):
        image = AuditedImage(item.name, item.image, partial(read_image, item.image))
        found.images.append(image)
        reading = False
        try:
            if annotated:
                image.points = item.heads()
            reading = True
            check_image(item.image)
            with open_pillow(item.image) as opened:
                (image.width, image.height), image.mode = opened.size, opened.mode
            image.size_bytes = item.image.stat().st_size
        except ConfigError as error:
            image.problem = str(error)
            image.fault = _fault(item.image, image.problem, reading=reading)
    return found


def _fault(file: Path, problem: str, *, reading: bool) -> Fault:
    """The kind of a problem that came up before or while ``reading`` the image."""
    if not file.is_file():
        return Fault.no_image
    if reading:
        return Fault.image
    if "has no annotation" in problem:
        return Fault.no_annotation
    return Fault.not_finite if "not finite" in problem else Fault.annotation


def _drawn(dataset: CrowdDataset) -> list[AuditedImage]:
    def pixels(index: int) -> Tensor:
        return dataset[index].image

    images = []
    for index, (name, (width, height)) in enumerate(zip(dataset.names, dataset.sizes, strict=True)):
        points = dataset[index].points
        images.append(
            AuditedImage(name, None, partial(pixels, index), width, height, "RGB", 3 * width * height, points)
        )
    return images


def _settings_errors(config: DatasetConfig, root: Path) -> Iterator[str]:
    """What training stops at before it reads an image."""
    try:
        selection_split(config)
    except ConfigError as error:
        yield str(error)
    if isinstance(config, FolderDatasetConfig):
        try:
            cache_folder(config.cache_dir, dataset=config.name, root=root, settings={})
        except ConfigError as error:
            yield str(error)


def _told(config: FolderDatasetConfig, split: AuditedSplit, reasons: Sequence[str]) -> tuple[str, bool]:
    """What to say of the images of a split that cannot be used, and whether it stops training or evaluation."""
    number = f"{split.name}: {len(reasons)} of {_many(len(split.images), 'image')}"
    if not split.annotated:
        return f"{number} cannot be predicted for: {_some(reasons)}", False
    if config.skip_bad and split.usable:
        lines = "".join(f"\n  {reason}" for reason in reasons)
        return f"{number} are left out with dataset.skip_bad=true:{lines}", False
    return unusable(config, split.name, reasons, images=len(split.images)), True


def _warnings(split: AuditedSplit) -> Iterator[str]:
    """What is odd about the usable images of a split, a line a kind."""
    for what, number in (
        ("at exactly the place of another", [image.duplicates for image in split.usable]),
        ("outside the image", [image.outside for image in split.usable]),
    ):
        if total := sum(number):
            worst = split.usable[number.index(max(number))].name
            images = _many(sum(n > 0 for n in number), "image")
            yield f"{split.name}: {_many(total, 'head')} {what}, in {images} (most in {worst}: {max(number)})"
    for what, names in (
        ("without people", [i.name for i in split.usable if split.annotated and not len(i.points)]),
        ("without colors", [i.name for i in split.usable if i.gray]),
    ):
        if names:
            yield f"{split.name}: {_many(len(names), 'image')} {what}: {_some(names)}"


def _copies(splits: Sequence[AuditedSplit]) -> list[list[tuple[str, str]]]:
    """Groups of images that are the same byte for byte."""
    sizes = Counter(image.size_bytes for split in splits for image in split.usable)
    places: dict[bytes, list[tuple[str, str]]] = {}
    for split in splits:
        for image in split.usable:
            if sizes[image.size_bytes] > 1:  # others need not be read
                places.setdefault(image.digest(), []).append((split.name, image.name))
    return [group for group in places.values() if len(group) > 1]


def _copy_warnings(audit: Audit) -> Iterator[str]:
    """Copies of two splits, one of them of training, make an evaluation look too good."""
    files: dict[Path, list[str]] = {}
    for split in audit.splits:
        for image in split.usable:
            if image.file is not None:
                files.setdefault(image.file, []).append(split.name)
    if listed := [f"{'/'.join(names)} {file.stem}" for file, names in files.items() if len(names) > 1]:
        yield f"{_many(len(listed), 'image')} listed in more than one split: {_some(listed)}"
    across = [group for group in audit.copies if len({split for split, _ in group}) > 1]
    within = [group for group in audit.copies if group not in across]
    for groups, where in (
        (across, "the same byte for byte in more than one split, which makes an evaluation look too good"),
        (within, "the same byte for byte as another of the split"),
    ):
        if groups:
            shown = _some([" = ".join("/".join(place) for place in group) for group in groups])
            yield f"{_many(len(groups), 'image')} {where}: {shown}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _as_training_counts(config: DatasetConfig, images: list[AuditedImage]) -> CrowdDataset:
    """The training images as training counts them; they have no pixels."""
    source = [(image.width, image.height) for image in images]
    sizes = source
    if isinstance(config, FolderDatasetConfig):
        sizes = [
            prepared_size(
                width, height, min_side=config.min_side, max_side=config.max_side, multiple=config.side_multiple
            )
            for width, height in source
        ]

    def no_pixels(index: int) -> Tensor:
        raise AssertionError("an audit trains on nothing")

    return CrowdDataset(
        [image.name for image in images],
        no_pixels,
        [image.points for image in images],
        source_sizes=source,
        sizes=sizes,
        outside=config.outside,
        one_head_per_pixel=config.one_head_per_pixel,
    )
