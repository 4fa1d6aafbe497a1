"""What files of annotation tools say, whichever tool wrote them, and which of their marks are heads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headcount.config import Boxes
from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.files import quoted
from headcount.wording import cut, many, printable

Size = tuple[int, int]
"""(width, height) of an image, pixels."""
NO_AREA = "box without area"
"""Shape of a box whose width or height is zero or negative."""
CROWD = "crowd"
"""Shape of a mark that stands for an unknown number of heads."""


@dataclass(frozen=True)
class HeadMarks:
    """Which marks of a tool's file are heads."""

    label: str | None = None
    """Only marks with this label; None accepts files with a single label."""
    boxes: Boxes = Boxes.refuse

    def chosen(self, marks: Sequence["Mark"]) -> list["Mark"]:
        """The marks that have the label."""
        return [mark for mark in marks if self.label is None or self.label in mark.labels]


@dataclass(frozen=True)
class Mark:
    """One mark in an image."""

    labels: tuple[str, ...]
    """All labels that it has, at least one; an empty text if it has none."""
    shape: str
    """``point``, ``box``, ``NO_AREA``, ``CROWD``, or the tool's name for another shape."""
    xy: tuple[float, float] = (0, 0)
    """The point or the center of the box, in pixels; of no meaning for other shapes."""


@dataclass
class ToolFile:
    """What a tool's file says."""

    tool: str
    images: dict[str, list[Mark]] = field(default_factory=dict)
    """Marks by image, as the file names it."""
    about_one: bool = False
    """Whether the file is about one image, which its own name names."""
    sizes: dict[str, Size] = field(default_factory=dict)
    """Sizes of those images whose size the file holds."""

    def labels(self) -> Counter[str]:
        """Number of marks by label; a mark with several labels counts for each."""
        return Counter(label for marks in self.images.values() for mark in marks for label in mark.labels)

    def set_size(self, image: str, size: Size | None) -> None:
        """Keep the size of an image, if it is known.

        Raises:
            ValueError: if the file holds another size of it.
        """
        if size is not None and self.sizes.setdefault(image, size) != size:
            one, other = (f"{width} x {height}" for width, height in (self.sizes[image], size))
            raise ValueError(f"{cut(image)} has two sizes, {one} and {other} pixels")

    def heads(self, path: Path, marks: HeadMarks, labels: Counter[str] | None = None) -> dict[str, np.ndarray]:
        """The positions (n, 2) of the heads of each image.

        Args:
            labels: number of marks by label in all files of the dataset, if each is about one image; None uses those
                of this file.

        Raises:
            DataError: if it is unclear which marks are heads; says what there is and what to set.
        """
        where = f"{path}, a file of {self.tool}"
        problem = _label_problem(self.labels() if labels is None else labels, marks)
        if problem is not None and labels is not None:
            where = f"{path.parent}, files of {self.tool}"
        if problem is None:
            every = [mark for of_image in self.images.values() for mark in of_image]
            problem = _shape_problem(marks.chosen(every), marks)
        if problem is not None:
            raise DataError(printable(f"{where}: {problem}"), kind=DataErrorKind.annotation, file=path)
        return {
            image: np.array([mark.xy for mark in marks.chosen(of_image)], np.float64).reshape(-1, 2)
            for image, of_image in self.images.items()
        }


def _label_problem(labels: Counter[str], marks: HeadMarks) -> str | None:
    """Why it is unclear which label is that of the heads; None if it is clear."""
    by_number = sorted(labels.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{cut(label) or '(no label)'} ({number})" for label, number in by_number[:8])
    if marks.label is None and len(labels) > 1:
        first = quoted(cut(next(label for label, _ in by_number if label)))
        return f"there are the labels {listed}; choose the one of the heads with dataset.label={first}"
    if marks.label is not None and labels and marks.label not in labels:
        return f"dataset.label={marks.label}: no mark has this label; there are {listed}"
    return None


def _shape_problem(chosen: Sequence[Mark], marks: HeadMarks) -> str | None:
    """Why the marks with the label of the heads cannot be counted; None if they can."""
    shapes = Counter(mark.shape for mark in chosen)
    if shapes[CROWD]:
        return (
            f"{many(shapes[CROWD], 'mark')} with iscrowd=1 can stand for any number of heads; mark each head, or "
            "choose a label with dataset.label"
        )
    others = [f"{number} of shape {cut(shape)}" for shape, number in shapes.items() if shape not in ("point", "box")]
    if others:
        return f"{', '.join(others)} cannot be heads; mark heads as points, or choose a label with dataset.label"
    boxes = f"{shapes['box']} {'box' if shapes['box'] == 1 else 'boxes'}"
    if shapes["box"] and shapes["point"]:
        return (
            f"it has {many(shapes['point'], 'point')} and {boxes}, which may mark the same heads; remove one kind, or "
            "choose a label with dataset.label"
        )
    if shapes["box"] and marks.boxes is Boxes.refuse:
        return f"it has {boxes}; if each is around one head, count their centers with dataset.boxes=centers"
    return None
