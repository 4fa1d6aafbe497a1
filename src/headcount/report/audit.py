"""Write the audit of a dataset: a page, numbers, and pictures."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from headcount.bins import CountBins
from headcount.config import BinsConfig, BlocksConfig, Last
from headcount.data.audit import MASK_FAULTS, Audit, AuditedImage, AuditedSplit, Fault, capped
from headcount.files import write_json, write_text
from headcount.report.contact_sheet import contact_sheet
from headcount.report.markdown import code_block, pipe_table, plain
from headcount.report.pictures import save_figure

REPORT_FILE, NUMBERS_FILE = "report.md", "report.json"
HISTOGRAMS_FILE, BLOCKS_FILE, SHEET_FILE = "histograms.png", "blocks.png", "contact_sheet.png"

_DPI = 110
# Heads per image; the last bar is open.
_COUNT_EDGES = (0, 1, 10, 50, 100, 250, 500, 1000, 2500, 5000)
# Longer side in pixels; the last bar is open.
_SIDE_EDGES = (0, 256, 512, 768, 1024, 1536, 2048, 4096)
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_MAX_BINS = 24
_SIDE_BARS = 15  # odd: images of one size are in the middle


def write_audit(audit: Audit, config: BlocksConfig, bins: CountBins | None, folder: Path) -> str:
    """Write the report, the numbers and the pictures of an audit.

    Args:
        audit: of the dataset.
        config: the chosen block size and bins.
        bins: those bins with their representative counts; None for a regression head or without training images.
        folder: created if missing.

    Returns:
        The report, as in report.md.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = audit_page(audit, config, bins)
    write_text(folder / REPORT_FILE, page)
    write_json(folder / NUMBERS_FILE, audit_numbers(audit, config, bins))
    for name in (HISTOGRAMS_FILE, BLOCKS_FILE, SHEET_FILE):  # pictures of an earlier audit may show another dataset
        (folder / name).unlink(missing_ok=True)
    if any(split.usable for split in audit.splits):
        histogram_picture(audit.splits, folder / HISTOGRAMS_FILE, title=audit.dataset)
        contact_sheet(audit.splits, folder / SHEET_FILE, title=audit.dataset)
    if audit.blocks:
        block_picture(audit.blocks, config, folder / BLOCKS_FILE, title=audit.dataset)
    return page


def audit_numbers(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> dict[str, Any]:
    """Collect all results of an audit as plain values.

    Args:
        audit: of the dataset.
        config: the chosen block size and bins.
        bins: those bins with their representative counts, if any.
    """
    return {
        "dataset": audit.dataset,
        "root": audit.root,
        "errors": audit.errors,
        "warnings": audit.warnings,
        "copies": [[list(place) for place in group] for group in audit.copies],
        "splits": {split.name: _split_numbers(split) for split in audit.splits},
        "blocks": {str(size): {str(c): n for c, n in counts.items()} for size, counts in audit.blocks.items()},
        "bins": _bin_numbers(audit, config, bins),
    }


def _split_numbers(split: AuditedSplit) -> dict[str, Any]:
    usable = split.usable
    counts = [len(image.points) for image in usable] if split.annotated else []
    sizes = sorted((image.width * image.height, image.width, image.height) for image in usable)
    longer = [max(image.width, image.height) for image in usable]
    annotated: dict[str, Any] = {
        "heads": split.heads,
        "empty": sum(c == 0 for c in counts),
        "duplicates": sum(image.duplicates for image in usable),
        "images_with_duplicates": sum(image.duplicates > 0 for image in usable),
        "outside": sum(image.outside for image in usable),
        "images_with_heads_outside": sum(image.outside > 0 for image in usable),
        "outside_mask": sum(image.masked for image in usable) if split.has_masks else None,
        "count_histogram": _histogram(counts, _COUNT_EDGES),
    }
    return {
        "images": len(split.images),
        "usable": len(usable),
        "annotated": split.annotated,
        "faults": {fault.name: split.faults[fault] for fault in Fault if split.has_masks or fault not in MASK_FAULTS},
        **(annotated if split.annotated else dict.fromkeys(annotated)),
        "grayscale": sum(image.gray for image in usable),
        "exif_orientation": sum(image.orientation != 1 for image in usable),
        "least_median_most_heads": _min_median_max(counts),
        "least_median_most_shorter_side": _min_median_max([min(image.width, image.height) for image in usable]),
        "least_median_most_longer_side": _min_median_max(longer),
        "smallest_median_largest_px": [list(sizes[k][1:]) for k in (0, len(sizes) // 2, -1)] if sizes else None,
        "longer_side_histogram": _histogram(longer, _SIDE_EDGES),
        "each": [_image_numbers(image, annotated=split.annotated) for image in split.images],
    }


def _image_numbers(image: AuditedImage, *, annotated: bool) -> dict[str, Any]:
    if image.problem is not None:
        return {"name": image.name, "problem": image.problem}
    numbers: dict[str, Any] = {"name": image.name, "width": image.width, "height": image.height}
    if image.orientation != 1:
        numbers["exif_orientation"] = image.orientation
    if annotated:
        numbers |= {"heads": len(image.points), "duplicates": image.duplicates, "outside": image.outside}
    if image.mask is not None:
        numbers |= {"outside_mask": image.masked, "area_in_mask": round(image.area_in_mask, 4)}
    return numbers | ({"note": image.note} if image.note else {})


def _bin_numbers(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> dict[str, Any] | None:
    histogram = audit.blocks.get(config.block_size)
    if bins is None or not histogram:
        return None
    numbers: dict[str, Any] = {
        "block_size": config.block_size,
        "names": bins.names(),
        "representative_counts": list(bins.representatives),
        "shares": bins.shares(histogram),
        "largest_block_count": max(histogram),
    }
    if isinstance(config, BinsConfig) and config.label_correction:
        blocks, heads = capped(histogram, config.m)
        numbers |= {"m": config.m, "capped": config.last is Last.clipped}
        numbers |= {"blocks_above_m": blocks, "heads_above_m": heads}
    return numbers


def audit_page(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> str:
    """Format the report, about a page of Markdown.

    Args:
        audit: of the dataset.
        config: the chosen block size and bins.
        bins: those bins with their representative counts, if any.
    """
    lines = [f"# {audit.dataset}", "", plain(audit.root), ""]
    if audit.errors:
        # The messages of train.py, with their line breaks.
        lines += ["## Errors: training or evaluation stops at these", ""]
        lines += [line for error in audit.errors for line in (*code_block(error), "")]
    if audit.warnings:
        lines += ["## Warnings", "", *(f"* {_lines(warning)}" for warning in audit.warnings), ""]
    lines += pipe_table(_split_rows(audit.splits), numbers_from=1)
    lines += [
        f"\nThe annotations of {split.name} are not public: its images alone were audited."
        for split in audit.splits
        if not split.annotated
    ]
    lines += _block_lines(audit, config, bins)
    return "\n".join(lines) + "\n"


def _lines(message: str) -> str:
    """A message of one or several lines within a list."""
    return "\n".join(map(plain, message.split("\n")))


def _block_lines(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> list[str]:
    """The section of the report on the training blocks; empty without bins."""
    numbers = _bin_numbers(audit, config, bins)
    if numbers is None:
        return []
    blocks = sum(audit.blocks[config.block_size].values())
    lines = ["", f"## Blocks of {config.block_size} px in training", ""]
    lines.append(
        f"{blocks} blocks, at most {numbers['largest_block_count']} heads in one. They are counted in the images as "
        "training reads them, after the dataset's resize rule (docs/data.md)."
    )
    if "m" in numbers:
        above = "are capped at m" if numbers["capped"] else "share the last bin, uncapped (bins.last=open)"
        lines.append(
            f"Counts above m = {numbers['m']} {above}: {numbers['blocks_above_m']} blocks "
            f"({numbers['blocks_above_m'] / blocks:.4%}), {numbers['heads_above_m']} heads above it."
        )
    shown = list(zip(numbers["names"], numbers["representative_counts"], numbers["shares"], strict=True))
    rows = [["bin", "representative count", "fraction of blocks"]]
    rows += [[name, f"{value:.4f}", f"{share:.4%}"] for name, value, share in shown[:_MAX_BINS]]
    if len(shown) > _MAX_BINS:
        rows.append(["...", f"{len(shown)} bins", "..."])
    return [*lines, "", *pipe_table(rows, numbers_from=1)]


def _split_rows(splits: Sequence[AuditedSplit]) -> list[list[str]]:
    """Compare the splits, one column each, headings first; empty bars of the histograms are left out."""
    numbers = [_split_numbers(split) for split in splits]
    rows = [["", *(split.name for split in splits)]]

    def row(label: str, values: Sequence[int | None]) -> None:
        rows.append([label, *("-" if value is None else str(value) for value in values)])

    row("images", [n["images"] for n in numbers])
    row("usable images", [n["usable"] for n in numbers])
    masks = any(split.has_masks for split in splits)
    for fault in [fault for fault in Fault if masks or fault not in MASK_FAULTS]:
        row(fault.value, [n["faults"].get(fault.name) for n in numbers])
    for label, key in (
        ("annotated heads", "heads"),
        ("images without people", "empty"),
        ("exact duplicates of a head", "duplicates"),
        ("images with duplicates", "images_with_duplicates"),
        ("heads outside their image", "outside"),
        *([("heads outside the mask, not counted", "outside_mask")] if masks else []),
        ("images without colors", "grayscale"),
        ("images with an EXIF orientation", "exif_orientation"),
    ):
        row(label, [n[key] for n in numbers])
    for label, key in (
        ("heads per image: minimum, median, maximum", "heads"),
        ("shorter side, px: minimum, median, maximum", "shorter_side"),
        ("longer side, px: minimum, median, maximum", "longer_side"),
    ):
        quantiles = [n[f"least_median_most_{key}"] for n in numbers]
        rows.append([label, *(", ".join(f"{value:g}" for value in values) if values else "-" for values in quantiles)])
    for key, edges, unit in (("count_histogram", _COUNT_EDGES, "heads"), ("longer_side_histogram", _SIDE_EDGES, "px")):
        for bar in _bar_labels(edges):
            images = [n[key][bar] if n[key] is not None else None for n in numbers]
            if any(images):
                row(f"images of {bar} {unit}", images)
    return rows


def histogram_picture(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Draw histograms of the heads per image and of both sides of the images, and a scatter plot of the sizes.

    Args:
        splits: drawn in one color each.
        path: the picture file; its suffix determines the format.
        title: written above the plots.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(16, 4.8), dpi=_DPI, layout="constrained")
    heads, sizes, shorter, longer = figure.subplots(1, 4)
    _draw_counts(heads, splits)
    shown = [split for split in splits if split.usable]
    _draw_sizes(sizes, shown)
    _draw_sides(shorter, shown, np.minimum, label="shorter side, pixels")
    _draw_sides(longer, shown, np.maximum, label="longer side, pixels")
    for axis in (heads, sizes, shorter, longer):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        if axis.get_legend_handles_labels()[0]:  # above the axes, where it covers nothing
            axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(splits), frameon=False)
    figure.suptitle(f"{title}: heads and sizes", parse_math=False)
    save_figure(figure, path)


def _draw_counts(axis: Axes, splits: Sequence[AuditedSplit]) -> None:
    """Draw the histogram of heads per image of every annotated split."""
    annotated = [split for split in splits if split.annotated and split.usable]
    labels = [label.replace(" or more", "+") for label in _bar_labels(_COUNT_EDGES)]
    width = 0.8 / max(len(annotated), 1)
    for k, split in enumerate(annotated):
        bars = _bars([len(image.points) for image in split.usable], _COUNT_EDGES)
        x = np.arange(len(bars)) + (k - (len(annotated) - 1) / 2) * width
        axis.bar(x, bars, width, label=split.name, color=_color(k))
    axis.set(xlabel="heads in an image", ylabel="images")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xticks(range(len(labels)), labels, rotation=90)


def _draw_sizes(axis: Axes, splits: Sequence[AuditedSplit]) -> None:
    """Draw width against height; the markers of several splits at one size lie around each other."""
    for k, split in enumerate(splits):
        wide, high = _sides(split)
        area = 16 + 40 * k
        axis.scatter(wide, high, s=area, alpha=0.5, facecolors="none", edgecolors=_color(k), label=split.name)
    axis.set(xlabel="width, pixels", ylabel="height, pixels")
    for set_limit, side in ((axis.set_xlim, axis.dataLim.x1), (axis.set_ylim, axis.dataLim.y1)):
        set_limit(0, 1.15 * side if 0 < side < math.inf else 1)


def _draw_sides(axis: Axes, splits: Sequence[AuditedSplit], choose: np.ufunc, *, label: str) -> None:
    """Draw the histogram of one side of the images, the bars of the splits beside each other.

    Args:
        axis: to draw on.
        splits: with usable images.
        choose: the minimum or the maximum of width and height.
        label: of the horizontal axis.
    """
    axis.set(xlabel=label, ylabel="images")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    if not splits:
        return
    sides = [choose(*_sides(split)) for split in splits]
    distinct = np.unique(np.concatenate(sides))
    smallest, largest = float(distinct[0]), float(distinct[-1])
    # Sides from 500 to 19000 pixels can only be shown on a logarithmic scale.
    logarithmic = largest > 4 * smallest
    # Images of one size get a bar in the middle.
    low, high = (0.9 * smallest, 1.1 * largest) if smallest == largest else (smallest, largest)
    edges = np.geomspace(low, high, _SIDE_BARS + 1) if logarithmic else np.linspace(low, high, _SIDE_BARS + 1)
    colors = [_color(k) for k in range(len(splits))]
    axis.hist(sides, bins=edges.tolist(), color=colors, label=[split.name for split in splits])
    if logarithmic:
        axis.set_xscale("log")
        ticks = [side for side in (2**k for k in range(20)) if smallest <= side <= largest]
        axis.set_xticks(ticks, [str(side) for side in ticks], rotation=45)
        axis.set_xticks([], minor=True)
    elif smallest == largest:
        axis.set_xticks([smallest])


def _color(k: int) -> str:
    """The color of a split."""
    return _COLORS[k % len(_COLORS)]


def block_picture(blocks: Mapping[int, Mapping[int, int]], config: BlocksConfig, path: Path, *, title: str) -> None:
    """Draw the fraction of training blocks by count for each block size, with the largest label m of the chosen bins.

    After figure 2 of arXiv:2403.09281: most blocks are empty, and few of the others hold many heads.

    Args:
        blocks: by block size in pixels, the number of blocks by count.
        config: the chosen block size and bins.
        path: the picture file; its suffix determines the format.
        title: written above the plots.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(5 * len(blocks), 4.2), dpi=_DPI, layout="constrained")
    for axis, (size, histogram) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks.items(), strict=True):
        total = sum(histogram.values())
        chosen = size == config.block_size
        axis.bar(list(histogram), [n / total for n in histogram.values()], width=0.9, color=_COLORS[0 if chosen else 2])
        axis.set_yscale("log")
        axis.set(xlabel="heads in a block", ylabel="fraction of blocks")
        axis.set_title(f"blocks of {size} px{' (chosen)' if chosen else ''}", fontweight="bold" if chosen else "normal")
        largest = max(*histogram, 4)
        axis.grid(alpha=0.3, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if isinstance(config, BinsConfig) and config.label_correction:
            # The maximum follows from the smallest head and the block size, unless it was set for the chosen size.
            m = config.m if chosen else max((size // config.min_head_px) ** 2, 1)
            largest = max(largest, m + 1)
            axis.axvline(m + 0.5, color=_COLORS[1], linestyle="--")
            above, heads = capped(dict(histogram), m)
            what = "capped" if config.last is Last.clipped else "above it, none capped"
            axis.text(
                0.97,
                0.95,
                f"m = {m} (dashed): {above} blocks above,\n{heads} heads {what}",
                transform=axis.transAxes,
                ha="right",
                va="top",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
            )
        axis.set_xlim(-0.8, largest + 0.8)
        axis.set_ylim(top=10)  # space for the text
    figure.suptitle(f"{title}: heads in the blocks of the training images, after resizing", parse_math=False)
    save_figure(figure, path)


def _sides(split: AuditedSplit) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights of the usable images, in pixels."""
    wide, high = np.array([(image.width, image.height) for image in split.usable]).T
    return wide, high


def _min_median_max(values: Sequence[int]) -> list[float] | None:
    """Minimum, median and maximum; None without values."""
    return [min(values), float(np.median(values)), max(values)] if values else None


def _bar_labels(edges: Sequence[int]) -> list[str]:
    labels = [str(low) if high == low + 1 else f"{low}-{high - 1}" for low, high in itertools.pairwise(edges)]
    return [*labels, f"{edges[-1]} or more"]


def _bars(values: Sequence[int], edges: Sequence[int]) -> list[int]:
    return np.histogram(values, bins=[*edges, np.inf])[0].tolist()


def _histogram(values: Sequence[int], edges: Sequence[int]) -> dict[str, int]:
    return dict(zip(_bar_labels(edges), _bars(values, edges), strict=True))
