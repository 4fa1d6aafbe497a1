"""Look at every annotation and image file of a dataset before anything is trained on it.

Heads are audited as annotated, in pixels of the stored image; blocks as training sees them, after the
dataset's resize rule. Images are opened, but nothing is resized or written. Damage amid a JPEG is not
seen, as no decoder reports it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from headcount.config import ConfigError, DatasetConfig, FolderDatasetConfig
from headcount.data.datasets import (
    CrowdDataset,
    block_histogram,
    dataset_info,
    list_folder,
    open_split,
    split_names,
    unusable,
)
from headcount.data.points import inside
from headcount.data.prepare import prepared_size
from headcount.data.readers import check_image, open_pillow

BLOCK_SIZES = (8, 16, 32)
"""Pixels; the sizes of the paper, whose block counts are compared."""


@dataclass
class AuditedImage:
    """One image and its annotation."""

    name: str
    file: Path | None
    """None for images that are drawn by code."""
    width: int
    """Pixels of the stored image; 0 where it cannot be read."""
    height: int
    mode: str
    """Pillow's: RGB, L for greyscale, ..."""
    digest: str
    """Of the file's bytes: equal for copies under another name."""
    points: Float[Tensor, "n 2"]
    """(x, y) in pixels of the stored image."""
    problem: str | None = None
    """Why it cannot be used; None if it can."""

    @property
    def duplicates(self) -> int:
        """Heads at exactly the place of an earlier one."""
        return len(self.points) - len(torch.unique(self.points, dim=0))

    @property
    def outside(self) -> int:
        """Heads outside the image."""
        return int((~inside(self.points, width=self.width, height=self.height)).sum())


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
    for split in split_names(config):
        try:
            audit.splits.append(_audit_split(config, split, data_root, audit))
        except ConfigError as error:
            if not audit.splits and split == split_names(config)[-1]:
                raise  # no folder at all: nothing to audit
            audit.errors.append(str(error))
    for found in audit.splits:
        reasons = [image.problem for image in found.images if image.problem is not None]
        if reasons and isinstance(config, FolderDatasetConfig):
            audit.errors.append(unusable(config, found.name, reasons, images=len(found.images)))
        elif not found.images:
            audit.errors.append(f"dataset={config.name}: {found.name} has no images")
        audit.warnings += _warnings(found)
    audit.warnings += list(_copies(audit.splits))
    train = next((found for found in audit.splits if found.name == "train"), None)
    if train is not None and train.usable:
        audit.train = _as_training_counts(config, train.usable)
        for size in sorted({*BLOCK_SIZES, *([block_size] if block_size else [])}):
            audit.blocks[size] = block_histogram(audit.train, size)
    return audit


def _audit_split(config: DatasetConfig, split: str, data_root: str | None, audit: Audit) -> AuditedSplit:
    if not isinstance(config, FolderDatasetConfig):
        return AuditedSplit(split, True, _drawn(open_split(config, split)))
    root, listed = list_folder(config, split, data_root=data_root)
    audit.root = str(root)
    annotated = split != dataset_info(config.name).unannotated
    found = AuditedSplit(split, annotated, [])
    for item in tqdm(listed, desc=f"auditing {config.name} {split}", unit="image", leave=False):
        image = AuditedImage(item.name, item.image, 0, 0, "", "", torch.zeros(0, 2))
        found.images.append(image)
        try:
            if annotated:
                image.points = item.heads()
            check_image(item.image)
            image.digest = hashlib.blake2b(item.image.read_bytes(), digest_size=16).hexdigest()
            with open_pillow(item.image) as opened:
                (image.width, image.height), image.mode = opened.size, opened.mode
        except ConfigError as error:
            image.problem = str(error)
    return found


def _drawn(dataset: CrowdDataset) -> list[AuditedImage]:
    images = []
    for index, name in enumerate(dataset.names):
        sample = dataset[index]
        digest = hashlib.blake2b(sample.image.contiguous().numpy().tobytes(), digest_size=16).hexdigest()
        width, height = dataset.sizes[index]
        images.append(AuditedImage(name, None, width, height, "RGB", digest, sample.points))
    return images


def _warnings(split: AuditedSplit) -> Iterator[str]:
    """What is odd about the usable images of a split, a line a kind."""
    for what, number in (
        ("heads at exactly the place of another", [image.duplicates for image in split.usable]),
        ("heads outside their image", [image.outside for image in split.usable]),
    ):
        if total := sum(number):
            worst = split.usable[number.index(max(number))].name
            images = sum(n > 0 for n in number)
            yield f"{split.name}: {total} {what}, in {images} images (most in {worst}: {max(number)})"
    for what, names in (
        ("images without people", [i.name for i in split.usable if split.annotated and not len(i.points)]),
        ("images without colours", [i.name for i in split.usable if i.mode in ("1", "L", "LA", "I", "I;16", "F")]),
    ):
        if names:
            yield f"{split.name}: {len(names)} {what}: {_some(names)}"


def _copies(splits: list[AuditedSplit]) -> Iterator[str]:
    """Images that are the same byte for byte; those of two splits make an evaluation look too good."""
    places: dict[str, list[tuple[str, str]]] = {}
    for split in splits:
        for image in split.usable:
            places.setdefault(image.digest, []).append((split.name, image.name))
    same = [group for group in places.values() if len(group) > 1]
    for across in (True, False):
        groups = [group for group in same if (len({split for split, _ in group}) > 1) == across]
        if groups:
            shown = _some([" = ".join("/".join(place) for place in group) for group in groups])
            where = "in more than one split, so that what is tested was trained on" if across else "twice in one split"
            yield f"{len(groups)} images are there {where}: {shown}"


def _some(names: list[str]) -> str:
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


def capped(histogram: dict[int, int], m: int) -> tuple[int, int]:
    """Blocks with more than ``m`` heads, and the heads above ``m`` in them: what label correction caps.

    Source: arXiv:2403.09281, section III-A.2.
    """
    above = {count: blocks for count, blocks in histogram.items() if count > m}
    return sum(above.values()), sum((count - m) * blocks for count, blocks in above.items())
