"""The protocol of the NWPU-Crowd benchmark: its submission file, and its scores for a split with annotations.

Sources: Wang et al., arXiv:2001.03360; the file formats and the averages follow the benchmark's published evaluation
code and the dataset's readme. Works on counts only, independent of the counter.
"""

import dataclasses
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from headcount.config import ConfigError
from headcount.files import write_json, write_text
from headcount.metrics import LEVELS, measure
from headcount.types import CountErrors, ImageCount

SCENE_LEVELS = dict(zip(("S0", "S1", "S2", "S3", "S4"), LEVELS, strict=True))
"""The benchmark's names for the levels of the true count."""
LUMINANCE = 4
"""Number of luminance labels, from 0, that the benchmark averages over; the published images have the first three."""
_EMPTY = -1.0
"""MAE of a level without images in the benchmark's averages."""


@dataclass
class Submission:
    """The content of a submission file."""

    counts: dict[int, float]
    """Count of each image by its id; the last count of a repeated id, as in the benchmark."""
    problems: list[str]
    """Everything that makes the benchmark reject or misread the file, with line numbers and ids."""


def write_submission(counts: Mapping[str, float], path: Path) -> None:
    """Write a submission file, one line ``id count`` per image, atomically.

    Args:
        counts: count by image id; determines the order of the lines.
        path: the file.

    Raises:
        ValueError: if a count is negative or not finite.
        OSError: if the file cannot be written.
    """
    wrong = [name for name, count in counts.items() if not (math.isfinite(count) and count >= 0)]
    if wrong:
        raise ValueError(f"counts must be finite and at least 0; these are not: {', '.join(wrong)}")
    write_text(path, "".join(f"{int(name)} {count:.4f}\n" for name, count in counts.items()))


def read_submission(path: Path, ids: Iterable[int]) -> Submission:
    """Read a submission file and collect all its problems.

    The benchmark skips all lines but those of exactly two items separated by one space; skipped lines are problems too.

    Args:
        path: the file.
        ids: of the images that must be counted.

    Returns:
        Counts and problems; the counts are complete if there are no problems.

    Raises:
        ConfigError: if the file cannot be read.
    """
    expected = sorted(set(ids))
    known = set(expected)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    counts: dict[int, float] = {}
    seen: dict[int, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number}"
        items = line.split()
        if line.strip().split(" ") != items or len(items) != 2:
            problems.append(f"{where}: {_layout_problem(line)}")
        # A line with the wrong layout may still name its image, which is then not reported as missing.
        image = _whole(items[0]) if items else None
        if image is None:
            if len(items) == 2:
                mark = "; the file begins with a byte order mark" if line.startswith("\ufeff") else ""
                problems.append(f"{where}: {items[0]!r} is not an image id{mark}")
            continue
        count = items[1] if len(items) > 1 else ""
        if image not in known:
            problems.append(f"{where}: id {image} is not one of the {len(expected)} images")
        elif image in seen:
            problems.append(f"{where}: id {image} is already in line {seen[image]}")
        seen.setdefault(image, number)
        value = _number(count)
        if len(items) != 2:
            continue  # reported above
        if value is None or not math.isfinite(value):
            problems.append(f"{where}: id {image}: the count {count!r} is not a finite number")
        elif value < 0:
            problems.append(f"{where}: id {image}: the count {count} is negative")
        else:
            counts[image] = value
    missing = [image for image in expected if image not in seen]
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} images are missing: {_ranges(missing)}")
    if len(lines) != len(expected):
        problems.append(f"there are {len(lines)} lines, {len(expected)} are expected, one per image")
    return Submission(counts, problems)


def _layout_problem(line: str) -> str:
    items = line.split()
    if not items:
        return "is blank"
    if len(items) == 2:
        return f"{line.strip()!r}: id and count must be separated by one space"
    more = "; a localization file has more" if len(items) > 2 else ""
    return f"{_short(line.strip())!r} has {len(items)} items, not an id and a count{more}"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _ranges(numbers: Sequence[int]) -> str:
    """Describe ascending integers by their ranges: ``3, 5 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in runs)


# ------------------------------------------------------------------------------------------- scores


@dataclass
class Scores:
    """The benchmark's scores. What it calls MSE is our RMSE: it takes the root."""

    overall: CountErrors
    levels: dict[str, CountErrors | None]
    """By scene level, S0 to S4, of the annotated count; None for levels without images."""
    luminance: dict[str, CountErrors | None] | None
    """By luminance label, L0 to L3, None for labels without images; None without any labels."""
    level_averages: dict[str, float]
    """Means of mae, rmse and nae over the scene levels that have images; nae without S0."""
    luminance_averages: dict[str, float] | None
    """The same over the luminance labels."""
    mmae_level: float
    """Mean MAE over five scene levels as the benchmark's code computes it: a level without images counts as -1."""
    mmae_luminance: float | None
    """The same over the four luminance labels; None without labels."""
    other_levels: list[int]
    """Ids whose scene level in the list file differs from that of their annotated heads, which is used here."""


def score(
    predicted: Mapping[int, float], true: Mapping[int, float], labels: Mapping[int, Sequence[str]] | None = None
) -> Scores:
    """Compute errors overall, by scene level, and by luminance.

    Args:
        predicted, true: counts by image id, for the same ids.
        labels: luminance and scene level of each image as in the list file; None if the list file has none.

    Raises:
        ValueError: if the ids differ, or a luminance label is invalid.
    """
    if predicted.keys() != true.keys():
        ids = sorted(predicted.keys() ^ true.keys())
        raise ValueError(f"predicted and true counts have different images: ids {ids} are in one of them only")
    images = [
        ImageCount(index=k, name=str(i), true=true[i], predicted=predicted[i], blocks=torch.zeros(0, 0))
        for k, i in enumerate(true)
    ]
    measured = measure(images)
    levels = {name: measured.levels[key] for name, key in SCENE_LEVELS.items()}
    luminance: dict[str, CountErrors | None] | None = None
    other_levels: list[int] = []
    if labels is not None:
        groups: dict[str, list[int]] = {f"L{k}": [] for k in range(LUMINANCE)}
        for image in true:
            shade, *rest = labels[image] or [""]
            if f"L{shade}" not in groups:
                raise ValueError(f"id {image}: luminance label {shade!r} is not one of 0 to {LUMINANCE - 1}")
            groups[f"L{shade}"].append(image)
            if rest and f"S{rest[0]}" != _scene_level(true[image]):
                other_levels.append(image)
        luminance = {
            name: CountErrors.from_counts([predicted[i] for i in ids], [true[i] for i in ids]) if ids else None
            for name, ids in groups.items()
        }
    return Scores(
        overall=measured.errors,
        levels=levels,
        luminance=luminance,
        level_averages=_averages(levels),
        luminance_averages=None if luminance is None else _averages(luminance),
        mmae_level=_benchmark_average(levels),
        mmae_luminance=None if luminance is None else _benchmark_average(luminance),
        other_levels=other_levels,
    )


def _scene_level(count: float) -> str:
    return next(name for name, key in SCENE_LEVELS.items() if LEVELS[key][0] <= count <= LEVELS[key][1])


def _averages(groups: Mapping[str, CountErrors | None]) -> dict[str, float]:
    means = {}
    for key in ("mae", "rmse", "nae"):
        values = [getattr(errors, key) for errors in groups.values() if errors is not None]
        values = [value for value in values if not math.isnan(value)]
        means[key] = sum(values) / len(values) if values else math.nan
    return means


def _benchmark_average(groups: Mapping[str, CountErrors | None]) -> float:
    return sum(_EMPTY if errors is None else errors.mae for errors in groups.values()) / len(groups)


def scores_table(scores: Scores) -> str:
    """Format the scores for a terminal: a table, and notes on how to read it."""
    rows = [["overall", *_cells(scores.overall)]]
    rows += [[f"{name} ({key} heads)", *_cells(scores.levels[name])] for name, key in SCENE_LEVELS.items()]
    rows.append(["mean of scene levels", *_mean_cells(scores.level_averages)])
    averages = f"MAE over scene levels {scores.mmae_level:.2f}"
    if scores.luminance is not None and scores.luminance_averages is not None:
        present = {name: errors for name, errors in scores.luminance.items() if errors is not None}
        rows += [[f"{name} (luminance {name[1:]})", *_cells(errors)] for name, errors in present.items()]
        rows.append(["mean of luminance", *_mean_cells(scores.luminance_averages)])
        averages += f", over luminance {scores.mmae_luminance:.2f}"
    headings = ["", "images", "MAE", "RMSE", "NAE"]
    alignment = ["left", *["right"] * 4]
    table = tabulate(rows, headings, tablefmt="plain", disable_numparse=True, colalign=alignment)
    lines = [
        textwrap.indent(table, "  "),
        "RMSE is what the benchmark calls MSE. NAE leaves out images without people.",
        f"The benchmark's own averages: {averages}; any of its 5 levels and {LUMINANCE} labels without images counts "
        "as -1 there.",
    ]
    if scores.luminance is None:
        lines.append("There are no luminance labels: the split has no list file, or its list file has ids only.")
    if scores.other_levels:
        lines.append(
            f"{len(scores.other_levels)} images have another scene level in the list file than their annotated heads, "
            f"which are used here: {_ranges(sorted(scores.other_levels))}"
        )
    return "\n".join(lines)


def _cells(errors: CountErrors | None) -> list[str]:
    """Images, MAE, RMSE and NAE."""
    if errors is None:
        return ["0", "-", "-", "-"]
    return [str(errors.images), f"{errors.mae:.2f}", f"{errors.rmse:.2f}", _nae(errors.nae)]


def _mean_cells(means: Mapping[str, float]) -> list[str]:
    return ["", f"{means['mae']:.2f}", f"{means['rmse']:.2f}", _nae(means["nae"])]


def _nae(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def write_scores(scores: Scores, path: Path, *, facts: Mapping[str, Any]) -> None:
    """Write the scores as JSON, NaN as null.

    Args:
        scores: what to write.
        path: the file.
        facts: plain values to write before the scores.

    Raises:
        OSError: if the file cannot be written.
    """
    write_json(path, {**facts, **dataclasses.asdict(scores)})
