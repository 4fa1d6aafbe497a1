"""The audit of a dataset as a page, as numbers, and as pictures."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from headcount.bins import CountBins
from headcount.config import BinsConfig, BlocksConfig, ConfigError
from headcount.data.audit import Audit, AuditedImage, AuditedSplit, Fault, capped
from headcount.data.points import clamp_into, inside

REPORT, NUMBERS = "report.md", "report.json"
HISTOGRAMS, BLOCKS, SHEET = "histograms.png", "blocks.png", "contact_sheet.png"

_DPI = 110
_SHEET_IMAGES, _SHEET_COLUMNS, _SHEET_PIXELS = 24, 6, 420
_SHEET_UNUSABLE = 6  # of these at most
# Heads an image; the last bar is open.
_COUNT_EDGES = (0, 1, 10, 50, 100, 250, 500, 1000, 2500, 5000)
# Pixels of the longer side; the last bar is open.
_SIDE_EDGES = (0, 256, 512, 768, 1024, 1536, 2048, 4096)
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
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
    (folder / REPORT).write_text(page, encoding="utf-8")
    numbers = json.dumps(audit_numbers(audit, config, bins), indent=2, allow_nan=False)
    (folder / NUMBERS).write_text(numbers + "\n", encoding="utf-8")
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
        "count_histogram": _histogram(counts, _COUNT_EDGES),
    }
    return {
        "images": len(split.images),
        "usable": len(usable),
        "annotated": split.annotated,
        "faults": {fault.name: split.faults[fault] for fault in Fault},
        **(annotated if split.annotated else dict.fromkeys(annotated)),
        "grayscale": sum(image.gray for image in usable),
        "least_median_most_heads": _spread(counts),
        "least_median_most_shorter_side": _spread([min(image.width, image.height) for image in usable]),
        "least_median_most_longer_side": _spread(longer),
        "smallest_median_largest_px": [list(sizes[k][1:]) for k in (0, len(sizes) // 2, -1)] if sizes else None,
        "longer_side_histogram": _histogram(longer, _SIDE_EDGES),
        "each": [_image_numbers(image, annotated=split.annotated) for image in split.images],
    }


def _image_numbers(image: AuditedImage, *, annotated: bool) -> dict[str, Any]:
    if image.problem is not None:
        return {"name": image.name, "problem": image.problem}
    numbers: dict[str, Any] = {"name": image.name, "width": image.width, "height": image.height}
    if annotated:
        numbers |= {"heads": len(image.points), "duplicates": image.duplicates, "outside": image.outside}
    return numbers


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
    if audit.errors:
        # As they are written when training stops at them, which keeps their lines.
        lines += ["## Errors: training or evaluation stops at these", ""]
        lines += [line for error in audit.errors for line in ("```", error, "```", "")]
    if audit.warnings:
        lines += ["## Warnings", "", *(f"* {warning}" for warning in audit.warnings), ""]
    lines += _table(_split_rows(audit.splits))
    lines += [
        f"\nThe annotations of {split.name} are not public: its images alone were audited."
        for split in audit.splits
        if not split.annotated
    ]
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


def _split_rows(splits: Sequence[AuditedSplit]) -> list[list[str]]:
    """A column for each split; of the bars of histograms those that any split has images in."""
    numbers = [_split_numbers(split) for split in splits]
    rows = [["", *(split.name for split in splits)]]

    def row(words: str, values: Sequence[int | None]) -> None:
        rows.append([words, *("-" if value is None else str(value) for value in values)])

    row("images", [n["images"] for n in numbers])
    row("that can be used", [n["usable"] for n in numbers])
    for fault in Fault:
        row(fault.value, [n["faults"][fault.name] for n in numbers])
    for words, key in (
        ("annotated heads", "heads"),
        ("images without people", "empty"),
        ("exact duplicates of a head", "duplicates"),
        ("in so many images", "images_with_duplicates"),
        ("heads outside their image", "outside"),
        ("images without colors", "grayscale"),
    ):
        row(words, [n[key] for n in numbers])
    for words, key in (
        ("heads an image: least, median, most", "heads"),
        ("shorter side, px: least, median, most", "shorter_side"),
        ("longer side, px: least, median, most", "longer_side"),
    ):
        spreads = (n[f"least_median_most_{key}"] for n in numbers)
        rows.append([words, *(", ".join(f"{v:g}" for v in spread) if spread else "-" for spread in spreads)])
    for key, edges, unit in (("count_histogram", _COUNT_EDGES, "heads"), ("longer_side_histogram", _SIDE_EDGES, "px")):
        for word in _bar_words(edges):
            values = [n[key][word] if n[key] is not None else None for n in numbers]
            if any(values):
                row(f"images of {word} {unit}", values)
    return rows


def histogram_picture(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Heads an image, and the sizes of the images, of every split."""
    figure = Figure(figsize=(12, 4.6), dpi=_DPI, layout="constrained")
    heads, sizes, longest = figure.subplots(1, 3)
    annotated = [split for split in splits if split.annotated and split.usable]
    words = [word.replace(" or more", "+") for word in _bar_words(_COUNT_EDGES)]
    width = 0.8 / max(len(annotated), 1)
    for k, split in enumerate(annotated):
        bars = _bars([len(image.points) for image in split.usable], _COUNT_EDGES)
        places = np.arange(len(bars)) + (k - (len(annotated) - 1) / 2) * width
        heads.bar(places, bars, width, label=split.name, color=_COLORS[k % len(_COLORS)])
    heads.set(xlabel="heads in an image", ylabel="images")
    heads.set_xticks(range(len(words)), words, rotation=45, ha="right")
    shown = [(split, *_sides(split)) for split in splits if split.usable]
    sides = np.concatenate([side for _, wide, high in shown for side in (wide, high)]) if shown else np.ones(1)
    least, most = float(sides.min()), float(sides.max())
    # Sides of 500 and of 19000 pixels are told apart on a log scale alone.
    spread = most > 4 * least
    edges = np.geomspace(least, most, 25) if spread else np.linspace(least - 1, most + 1, 25)
    for k, (split, wide, high) in enumerate(shown):
        style = {"color": _COLORS[k % len(_COLORS)], "label": split.name}
        sizes.scatter(wide, high, s=14, alpha=0.4, edgecolors="none", **style)
        longest.hist(np.maximum(wide, high), bins=edges.tolist(), histtype="step", linewidth=1.8, **style)
        style["label"] = f"{split.name}, shorter side"
        longest.hist(
            np.minimum(wide, high), bins=edges.tolist(), histtype="step", linewidth=1.2, linestyle=":", **style
        )
    if spread:
        longest.set_xscale("log")
        ticks = [side for side in (2**k for k in range(20)) if least <= side <= most]
        longest.set_xticks(ticks, [str(side) for side in ticks])
        longest.set_xticks([], minor=True)
    sizes.set(xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    longest.set(xlabel="longer side (dotted: shorter side), pixels", ylabel="images")
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
        axis.bar(list(histogram), [n / total for n in histogram.values()], width=0.9, color=_COLORS[0 if chosen else 2])
        axis.set_yscale("log")
        axis.set(xlabel="heads in a block", ylabel="share of blocks")
        axis.set_title(f"blocks of {size} px" + " (chosen)" * chosen, fontweight="bold" if chosen else "normal")
        largest = max(*histogram, 4)
        axis.grid(alpha=0.3, axis="y")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if isinstance(config, BinsConfig) and config.label_correction:
            # The same smallest head gives each block size its own maximum, unless one was set.
            m = config.m if chosen else max((size // config.min_head_px) ** 2, 1)
            largest = max(largest, m + 1)
            axis.axvline(m + 0.5, color=_COLORS[1], linestyle="--")
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
        axis.set_xlim(-0.8, largest + 0.8)
        axis.set_ylim(top=10)  # room for the text
    figure.suptitle(f"{title}: heads in the blocks of the training images", parse_math=False)
    figure.savefig(path)


def contact_sheet(splits: Sequence[AuditedSplit], path: Path, *, title: str) -> None:
    """Images from the sparsest to the densest with their annotated heads drawn, and some that cannot be used.

    Of images with about as many heads, those are taken that there is something to say of.
    """
    every = [(split.name, image) for split in splits if split.annotated for image in split.images]
    unusable = [pair for pair in every if pair[1].fault not in (None, Fault.no_image)][:_SHEET_UNUSABLE]
    usable = sorted(
        (pair for pair in every if pair[1].problem is None), key=lambda pair: (len(pair[1].points), pair[1].name)
    )
    picked = [usable[k] for k in _spread_out([len(_odd(image)) for _, image in usable], _SHEET_IMAGES - len(unusable))]
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
    figure.suptitle(
        f"{title}: sparsest to densest\nannotated heads in yellow, duplicates in pink, those outside as red crosses",
        parse_math=False,
    )
    figure.savefig(path)


def _spread_out(odd: Sequence[int], number: int) -> list[int]:
    """Positions of about ``number`` images over a sorted list: its first and last, and the oddest of every other part.

    The others are taken wherever they lie, or all that is seen would be odd.
    """
    parts = np.array_split(np.arange(len(odd)), min(number, len(odd))) if odd else []
    picked = [
        max(part.tolist(), key=lambda k: odd[k]) if place % 2 else int(part[len(part) // 2])
        for place, part in enumerate(parts)
    ]
    if picked:
        picked[0], picked[-1] = 0, len(odd) - 1
    return sorted(set(picked))


def _odd(image: AuditedImage) -> list[str]:
    """What a person should look at in an image that can be used."""
    found = [f"{n} {what}" for n, what in ((image.duplicates, "duplicates"), (image.outside, "outside")) if n]
    return [*found, *["gray"] * image.gray]


def _draw(axis: Axes, split: str, image: AuditedImage) -> None:
    name = image.name if len(image.name) <= 24 else f"{image.name[:11]}...{image.name[-10:]}"
    try:
        picture = Image.fromarray(image.pixels().permute(1, 2, 0).contiguous().numpy())
    except ConfigError:
        picture = None
    if picture is None:
        axis.text(0.5, 0.5, "no picture", ha="center", va="center", transform=axis.transAxes)
    else:
        width, height = picture.size
        picture.thumbnail((_SHEET_PIXELS, _SHEET_PIXELS))
        axis.imshow(picture, extent=(0, width, height, 0))
    if image.fault is not None:
        axis.set_title(f"{split}/{name}\ncannot be used, see the report", fontsize=8, color="#c00000", parse_math=False)
        return
    size = float(np.clip(2500 / max(len(image.points), 1), 4, 20))
    points, times = image.points.unique(dim=0, return_counts=True)
    within = inside(points, width=image.width, height=image.height)
    # Rims, so that the dots are seen on light and on dark pictures.
    styles: tuple[tuple[Any, dict[str, Any]], ...] = (
        (within & (times == 1), {"s": size, "c": "#ffdd00", "edgecolors": "black", "linewidths": 0.5}),
        (within & (times > 1), {"s": 2 * size, "c": "#ff4fd8", "edgecolors": "white", "linewidths": 0.8}),
        (~within, {"s": 36, "c": "red", "marker": "x", "linewidths": 1.5, "clip_on": False}),
    )
    for chosen, style in styles:
        # Those outside are drawn at the border: far away, they would be on another picture.
        x, y = clamp_into(points[chosen], width=image.width, height=image.height).numpy().T
        axis.scatter(x, y, **style)
    odd = _odd(image)
    axis.set_title(
        f"{split}/{name}: {len(image.points)}" + f"\n{', '.join(odd)}" * bool(odd),
        fontsize=8,
        color="#c00000" if odd else "black",
        parse_math=False,
    )


def _sides(split: AuditedSplit) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights of its usable images, pixels."""
    wide, high = np.array([(image.width, image.height) for image in split.usable]).T
    return wide, high


def _spread(values: Sequence[int]) -> list[float] | None:
    """Least, median and most; None of nothing."""
    return [min(values), float(np.median(values)), max(values)] if values else None


def _bar_words(edges: Sequence[int]) -> list[str]:
    words = []
    for low, high in itertools.pairwise(edges):
        words.append(str(low) if high == low + 1 else f"{low}-{high - 1}")
    return [*words, f"{edges[-1]} or more"]


def _bars(values: Sequence[int], edges: Sequence[int]) -> list[int]:
    return np.histogram(values, bins=[*edges, np.inf])[0].tolist()


def _histogram(values: Sequence[int], edges: Sequence[int]) -> dict[str, int]:
    return dict(zip(_bar_words(edges), _bars(values, edges), strict=True))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    texts = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return [texts[0], "| " + " | ".join("-" * w for w in widths) + " |", *texts[1:]]
