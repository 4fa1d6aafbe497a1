"""The audit of a dataset as a page, as numbers, and as pictures."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from headcount.bins import CountBins
from headcount.config import BinsConfig, BlocksConfig
from headcount.data.audit import Audit, AuditedImage, AuditedSplit, capped
from headcount.data.readers import read_image

REPORT, NUMBERS = "report.md", "report.json"
HISTOGRAMS, BLOCKS, SHEET = "histograms.png", "blocks.png", "contact_sheet.png"

_DPI = 110
_SHEET_IMAGES, _SHEET_COLUMNS, _SHEET_PIXELS = 24, 6, 360
# Heads an image; the last bar is open.
_COUNT_EDGES = (0, 1, 10, 50, 100, 250, 500, 1000, 2500, 5000)
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_MOST_BINS = 24


def write_audit(audit: Audit, config: BlocksConfig, bins: CountBins | None, folder: Path) -> str:
    """Write report, numbers and pictures into ``folder``.

    Args:
        config: block size and bins as they were chosen.
        bins: those bins with their representative counts; None for a head that regresses, or without training images.

    Returns:
        The report, as in report.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = audit_page(audit, config, bins)
    (folder / REPORT).write_text(page)
    (folder / NUMBERS).write_text(json.dumps(audit_numbers(audit, config, bins), indent=2) + "\n")
    for name in (HISTOGRAMS, BLOCKS, SHEET):  # those of an earlier audit would show another dataset
        (folder / name).unlink(missing_ok=True)
    if any(split.usable for split in audit.splits):
        histogram_picture(audit.splits, folder / HISTOGRAMS, title=audit.dataset)
        contact_sheet(audit.splits, folder / SHEET, title=audit.dataset)
    if audit.blocks:
        block_picture(audit.blocks, config, folder / BLOCKS, title=audit.dataset)
    return page


def audit_numbers(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> dict[str, Any]:
    """Everything that was counted, as plain values."""
    return {
        "dataset": audit.dataset,
        "root": audit.root,
        "errors": audit.errors,
        "warnings": audit.warnings,
        "splits": {split.name: _split_numbers(split) for split in audit.splits},
        "blocks": {str(size): {str(c): n for c, n in counts.items()} for size, counts in audit.blocks.items()},
        "bins": _bin_numbers(audit, config, bins),
    }


def _split_numbers(split: AuditedSplit) -> dict[str, Any]:
    usable = split.usable
    counts = sorted(len(image.points) for image in usable) if split.annotated else []
    sides = sorted((image.width * image.height, image.width, image.height) for image in usable)
    return {
        "images": len(split.images),
        "usable": len(usable),
        "annotated": split.annotated,
        "heads": split.heads if split.annotated else None,
        "empty": sum(c == 0 for c in counts) if split.annotated else None,
        "duplicates": sum(image.duplicates for image in usable),
        "images_with_duplicates": sum(image.duplicates > 0 for image in usable),
        "outside": sum(image.outside for image in usable),
        "greyscale": sum(image.mode in ("1", "L", "LA", "I", "I;16", "F") for image in usable),
        "least_median_most_heads": [counts[0], float(np.median(counts)), counts[-1]] if counts else None,
        "smallest_median_largest_px": [list(sides[k][1:]) for k in (0, len(sides) // 2, -1)] if sides else None,
        "count_histogram": dict(zip(_count_words(), _count_bars(counts), strict=True)),
    }


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
        numbers |= {"m": config.m, "blocks_above_m": blocks, "heads_above_m": heads}
    return numbers


def audit_page(audit: Audit, config: BlocksConfig, bins: CountBins | None) -> str:
    """The report, about a page of Markdown."""
    lines = [f"# {audit.dataset}", "", f"{audit.root}", ""]
    lines += _listed("errors: training stops at these", audit.errors) + _listed("warnings", audit.warnings)
    rows = [["", *(split.name for split in audit.splits)]]
    numbers = [_split_numbers(split) for split in audit.splits]
    for words, key in (
        ("images", "images"),
        ("that can be used", "usable"),
        ("annotated heads", "heads"),
        ("images without people", "empty"),
        ("exact duplicates of a head", "duplicates"),
        ("in so many images", "images_with_duplicates"),
        ("heads outside their image", "outside"),
        ("images without colours", "greyscale"),
    ):
        rows.append([words, *("-" if n[key] is None else str(n[key]) for n in numbers)])
    heads = (n["least_median_most_heads"] for n in numbers)
    rows.append(["heads an image: least, median, most", *(", ".join(f"{v:g}" for v in h) if h else "-" for h in heads)])
    sides = (n["smallest_median_largest_px"] for n in numbers)
    rows.append(
        ["size: smallest, median, largest", *(", ".join(f"{w} x {h}" for w, h in s) if s else "-" for s in sides)]
    )
    for word in _count_words():
        rows.append(
            [f"images of {word} heads", *(str(n["count_histogram"][word]) if n["annotated"] else "-" for n in numbers)]
        )
    lines += _table(rows)
    found = _bin_numbers(audit, config, bins)
    if found is not None:
        histogram = audit.blocks[config.block_size]
        lines += ["", f"## Blocks of {config.block_size} px in training", ""]
        lines.append(f"{sum(histogram.values())} blocks, at most {found['largest_block_count']} heads in one.")
        if "m" in found:
            share = found["blocks_above_m"] / sum(histogram.values())
            lines.append(
                f"Label correction caps counts above m = {found['m']}: {found['blocks_above_m']} blocks ({share:.4%}), "
                f"{found['heads_above_m']} heads above it."
            )
        shown = list(zip(found["names"], found["representative_counts"], found["shares"], strict=True))
        table = [["bin", "stands for", "share of blocks"]]
        table += [[name, f"{value:.4f}", f"{share:.4%}"] for name, value, share in shown[:_MOST_BINS]]
        if len(shown) > _MOST_BINS:
            table.append(["...", f"{len(shown)} bins", "..."])
        lines += ["", *_table(table)]
    return "\n".join(lines) + "\n"


def histogram_picture(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Heads an image, and the sizes of the images, of every split."""
    figure = Figure(figsize=(12, 4.6), dpi=_DPI, layout="constrained")
    heads, sizes, longest = figure.subplots(1, 3)
    annotated = [split for split in splits if split.annotated and split.usable]
    words = [word.replace(" or more", "+") for word in _count_words()]
    width = 0.8 / max(len(annotated), 1)
    for k, split in enumerate(annotated):
        bars = _count_bars([len(image.points) for image in split.usable])
        places = np.arange(len(bars)) + (k - (len(annotated) - 1) / 2) * width
        heads.bar(places, bars, width, label=split.name, color=_COLOURS[k % len(_COLOURS)])
    heads.set(xlabel="heads in an image", ylabel="images")
    heads.set_xticks(range(len(words)), words, rotation=45, ha="right")
    for k, split in enumerate(s for s in splits if s.usable):
        style = {"color": _COLOURS[k % len(_COLOURS)], "label": split.name}
        wide, high = zip(*((image.width, image.height) for image in split.usable), strict=True)
        sizes.scatter(wide, high, s=14, alpha=0.4, edgecolors="none", **style)
        longest.hist(np.maximum(wide, high), bins=20, histtype="step", linewidth=1.8, **style)
    sizes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    longest.set(xlabel="longer side, pixels", ylabel="images")
    for axis in (heads, sizes, longest):
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.suptitle(f"{title}: heads and sizes", parse_math=False)
    figure.savefig(path)


def block_picture(blocks: Mapping[int, Mapping[int, int]], config: BlocksConfig, path: Path, *, title: str) -> None:
    """Share of the training blocks by their count, for each block size, with the maximum m of the chosen bins.

    After figure 2 of arXiv:2403.09281: most blocks are empty, and few counts fill the rest.
    """
    figure = Figure(figsize=(5 * len(blocks), 4.2), dpi=_DPI, layout="constrained")
    for axis, (size, histogram) in zip(figure.subplots(1, len(blocks), squeeze=False)[0], blocks.items(), strict=True):
        total = sum(histogram.values())
        chosen = size == config.block_size
        axis.bar(
            list(histogram), [n / total for n in histogram.values()], width=0.9, color=_COLOURS[0 if chosen else 2]
        )
        axis.set_yscale("log")
        axis.set(xlabel="heads in a block", ylabel="share of blocks")
        axis.set_title(f"blocks of {size} px" + " (chosen)" * chosen, fontweight="bold" if chosen else "normal")
        axis.set_xlim(-0.8, max(max(histogram, default=0), 4) + 0.8)
        axis.grid(alpha=0.3, axis="y")
        if isinstance(config, BinsConfig) and config.label_correction:
            # The same smallest head gives each block size its own maximum, unless one was set.
            m = config.m if chosen else (size // config.min_head_px) ** 2
            axis.axvline(m + 0.5, color=_COLOURS[1], linestyle="--")
            above, heads = capped(dict(histogram), m)
            axis.text(
                0.97,
                0.95,
                f"m = {m} (dashed): {above} blocks above,\n{heads} heads capped",
                transform=axis.transAxes,
                ha="right",
                va="top",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
            )
    figure.suptitle(f"{title}: heads in the blocks of the training images", parse_math=False)
    figure.savefig(path)


def contact_sheet(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Images from the sparsest to the densest with their annotated heads drawn."""
    images = sorted(
        (
            (split.name, image)
            for split in splits
            for image in split.usable
            if image.file is not None and split.annotated
        ),
        key=lambda pair: (len(pair[1].points), pair[1].name),
    )
    if not images:
        return
    picked = np.unique(np.linspace(0, len(images) - 1, min(_SHEET_IMAGES, len(images))).round().astype(int))
    columns = min(_SHEET_COLUMNS, len(picked))
    rows = math.ceil(len(picked) / columns)
    figure = Figure(figsize=(columns * 3, rows * 2.8 + 0.5), dpi=_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(axes, picked, strict=False):
        split, image = images[index]
        _draw(axis, split, image)
    figure.suptitle(f"{title}: sparsest to densest, annotated heads in yellow", parse_math=False)
    figure.savefig(path)


def _draw(axis: Any, split: str, image: AuditedImage) -> None:
    assert image.file is not None
    picture = Image.fromarray(read_image(image.file).permute(1, 2, 0).numpy())
    picture.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
    axis.imshow(picture, extent=(0, image.width, image.height, 0))
    x, y = image.points.numpy().T
    size = float(np.clip(500 / max(len(x), 1), 1.5, 12))
    # A dark rim, so that the dots are seen on light and on dark pictures.
    axis.scatter(x, y, s=size, c="#ffdd00", edgecolors="black", linewidths=0.3, clip_on=False)
    name = image.name if len(image.name) <= 24 else f"{image.name[:11]}...{image.name[-10:]}"
    axis.set_title(f"{split}/{name}: {len(x)}", fontsize=8, parse_math=False)


def _count_words() -> list[str]:
    words = []
    for low, high in itertools.pairwise(_COUNT_EDGES):
        words.append(str(low) if high == low + 1 else f"{low}-{high - 1}")
    return [*words, f"{_COUNT_EDGES[-1]} or more"]


def _count_bars(counts: Sequence[int]) -> list[int]:
    return np.histogram(counts, bins=[*_COUNT_EDGES, np.inf])[0].tolist()


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title[0].upper()}{title[1:]}", "", *(f"* {line}" for line in lines), ""] if lines else []


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [texts[0], "| " + " | ".join("-" * w for w in widths) + " |", *texts[1:]]
