"""Draw the contact sheet of an audit: images of a dataset with their annotated heads."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from headcount.data.audit import AuditedImage, AuditedSplit, Fault
from headcount.data.masks import PlacedMask
from headcount.data.points import clamp_into, inside
from headcount.errors import DataError
from headcount.report.pictures import MASK_NOTE, save_figure, shade_outside, shorten

_DPI = 110
_SHEET_IMAGES, _SHEET_COLUMNS, _SHEET_PIXELS = 24, 6, 420
_MAX_UNUSABLE = 6  # images that cannot be used, on the contact sheet


def contact_sheet(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Draw images from the sparsest to the densest with their annotated heads, and some images that cannot be used.

    Among images with similar counts, those with unusual annotations are preferred. Nothing is written if there is no
    image to show.

    Args:
        splits: to choose images from.
        path: the picture file; its suffix determines the format.
        title: written above the images.

    Raises:
        OSError: if the file cannot be written.
    """
    every = [(split.name, image) for split in splits if split.annotated for image in split.images]
    unusable = [pair for pair in every if pair[1].fault not in (None, Fault.no_image)][:_MAX_UNUSABLE]
    usable = sorted(
        (pair for pair in every if pair[1].problem is None), key=lambda pair: (len(pair[1].points), pair[1].name)
    )
    picked = [
        usable[k]
        for k in _choose_from_sorted([len(_unusual(image)) for _, image in usable], _SHEET_IMAGES - len(unusable))
    ]
    picked += unusable
    if not picked:
        return
    columns = min(_SHEET_COLUMNS, len(picked))
    rows = math.ceil(len(picked) / columns)
    figure = Figure(figsize=(max(columns, 2) * 3.4, rows * 3 + 0.5), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (split, image) in zip(axes, picked, strict=False):
        _draw(axis, split, image)
    legend = "annotated heads in yellow, duplicates in pink, heads outside as red crosses"
    if any(image.mask is not None for _, image in picked):
        legend = f"{legend}; {MASK_NOTE}"
    figure.suptitle(f"{title}: sparsest to densest\n{legend}", parse_math=False)
    save_figure(figure, path)


def _choose_from_sorted(unusual: Sequence[int], number: int) -> list[int]:
    """Choose about ``number`` positions of a sorted list: the first, the last, and one of each equal part between.

    Every other part gives its most unusual image, the others their middle one, so that typical images are shown too.

    Args:
        unusual: how unusual each image is.
        number: maximum number of positions.
    """
    parts = np.array_split(np.arange(len(unusual)), min(number, len(unusual))) if unusual else []
    picked = [
        max(part.tolist(), key=lambda k: unusual[k]) if index % 2 else int(part[len(part) // 2])
        for index, part in enumerate(parts)
    ]
    if picked:
        picked[0], picked[-1] = 0, len(unusual) - 1
    return sorted(set(picked))


def _unusual(image: AuditedImage) -> list[str]:
    """Unusual properties of an image that can be used."""
    numbers = ((image.duplicates, "duplicates"), (image.outside, "outside"), (image.masked, "outside the mask"))
    found = [f"{n} {what}" for n, what in numbers if n]
    return [*found, "gray"] if image.gray else found


def _draw(axis: Axes, split: str, image: AuditedImage) -> None:
    """Draw one image of the contact sheet."""
    name = shorten(image.name, 22)
    try:
        picture = Image.fromarray(image.pixels().permute(1, 2, 0).contiguous().numpy())
    except DataError:
        picture = None
    if picture is None:
        axis.text(0.5, 0.5, "no image", ha="center", va="center", transform=axis.transAxes)
    else:
        width, height = picture.size
        picture.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
        axis.imshow(picture, extent=(0, width, height, 0))
        if image.mask is not None:
            placed = PlacedMask.whole(image.mask, source_size=(width, height), size=(width, height))
            shade_outside(axis, placed, height=height, width=width)
            axis.set(xlim=(0, width), ylim=(height, 0))
    if image.fault is not None:
        axis.set_title(f"{split}/{name}\ncannot be used, see the report", fontsize=8, color="#c00000", parse_math=False)
        return
    size = float(np.clip(2500 / max(len(image.points), 1), 4, 20))
    points, times = image.points.unique(dim=0, return_counts=True)
    within = inside(points, width=image.width, height=image.height)
    # Edges keep the dots visible on light and on dark images.
    styles: tuple[tuple[Any, dict[str, Any]], ...] = (
        (within & (times == 1), {"s": size, "c": "#ffdd00", "edgecolors": "black", "linewidths": 0.5}),
        (within & (times > 1), {"s": 2 * size, "c": "#ff4fd8", "edgecolors": "white", "linewidths": 0.8}),
        (~within, {"s": 36, "c": "red", "marker": "x", "linewidths": 1.5, "clip_on": False}),
    )
    for chosen, style in styles:
        # Heads outside are drawn at the border: farther away, they would lie on another image.
        x, y = clamp_into(points[chosen], width=image.width, height=image.height).numpy().T
        axis.scatter(x, y, **style)
    unusual = _unusual(image)
    title = f"{split}/{name}: {len(image.points)}"
    if unusual:
        title += f"\n{', '.join(unusual)}"
    color = "#c00000" if image.duplicates or image.outside else "black"  # A gray image is not at fault.
    axis.set_title(title, fontsize=8, color=color, parse_math=False)
