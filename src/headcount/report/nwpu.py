"""The protocol of the NWPU-Crowd benchmark: its submission file, and its figures for a split with annotations.

Sources: Wang et al., arXiv:2001.03360; the file formats and the averages as the benchmark's published evaluation code
and the dataset's readme describe them. Counts alone: nothing here knows a counter.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headcount.config import ConfigError
from headcount.files import written_whole
from headcount.metrics import LEVELS, measure
from headcount.types import CountErrors, ImageCount

SCENE_LEVELS = dict(zip(("S0", "S1", "S2", "S3", "S4"), LEVELS, strict=True))
"""The benchmark's names for the levels of the true count."""
LUMINANCE = 4
"""Luminance labels, 0 to 3, that the benchmark averages over; published images carry the first three."""
_EMPTY = -1.0
"""What a level without images counts as in the benchmark's averages."""


@dataclass
class Submission:
    """A submission file as it was read."""

    counts: dict[int, float]
    """Count of each image by its id; of an id that comes twice, the last, as the benchmark takes it."""
    problems: list[str]
    """Everything for which the benchmark would refuse or misread the file, with line numbers and ids."""


def write_submission(counts: Mapping[str, float], path: Path) -> None:
    """Write a line ``id count`` for each image, in their order; a kill leaves the old file or the new one.

    Raises:
        ValueError: if a count is negative or not finite.
    """
    if wrong := [name for name, count in counts.items() if not (math.isfinite(count) and count >= 0)]:
        raise ValueError(f"counts must be finite and at least 0; these are not: {', '.join(wrong)}")
    _write(path, "".join(f"{int(name)} {count:.4f}\n" for name, count in counts.items()))


def read_submission(path: Path, ids: Iterable[int]) -> Submission:
    """Read a submission file for the images ``ids`` and collect everything that is wrong with it.

    The benchmark reads lines of exactly two items with one space between them and skips all others, so that
    these are problems too.

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
        raise ConfigError(f"{path}: no text file (byte {error.start} is no UTF-8)") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    counts: dict[int, float] = {}
    seen: dict[int, int] = {}
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        where = f"line {number}"
        items = line.split()
        if line.strip().split(" ") != items or len(items) != 2:
            problems.append(f"{where}: {_layout_problem(line)}")
        # What can be understood all the same is looked at, so that its image does not seem to be missing.
        image = _whole(items[0]) if items else None
        if image is None:
            if len(items) == 2:
                mark = "; the file begins with a byte order mark" if line.startswith("\ufeff") else ""
                problems.append(f"{where}: {items[0]!r} is no image id{mark}")
            continue
        count = items[1] if len(items) > 1 else ""
        if image not in known:
            problems.append(f"{where}: id {image} is none of the {len(expected)} images")
        elif image in seen:
            problems.append(f"{where}: id {image} was in line {seen[image]} already")
        seen.setdefault(image, number)
        value = _number(count)
        if len(items) != 2:
            continue  # told above
        if value is None or not math.isfinite(value):
            problems.append(f"{where}: id {image}: the count {count!r} is no finite number")
        elif value < 0:
            problems.append(f"{where}: id {image}: the count {count} is negative")
        else:
            counts[image] = value
    if missing := [image for image in expected if image not in seen]:
        problems.append(f"{len(missing)} of {len(expected)} images are missing: {_ranges(missing)}")
    if len(lines) != len(expected):
        problems.append(f"there are {len(lines)} lines, {len(expected)} are expected, one an image")
    return Submission(counts, problems)


def _layout_problem(line: str) -> str:
    items = line.split()
    if not items:
        return "is blank"
    if len(items) == 2:
        return f"{line.strip()!r}: id and count must have one space between them"
    more = "; a file of localization has more" if len(items) > 2 else ""
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
    """Ascending whole numbers in words: ``3, 5 to 9``."""
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
    """The benchmark's figures. Its MSE is our RMSE: the root is taken."""

    overall: CountErrors
    levels: dict[str, CountErrors | None]
    """By scene level, S0 to S4, of the annotated count; None where there are no images."""
    luminance: dict[str, CountErrors | None] | None
    """By luminance label, L0 to L3; None without labels."""
    level_averages: dict[str, float]
    """Means over the scene levels that have images, mae, rmse and nae; nae without S0."""
    luminance_averages: dict[str, float] | None
    """The same over the luminance labels."""
    mmae_level: float
    """The mean MAE over five scene levels as the benchmark's code computes it: one without images counts as -1."""
    mmae_luminance: float | None
    """The same over four luminance labels; one less than the mean over three where the last has no images."""
    other_levels: list[int]
    """Ids whose scene level in the list file is not that of their annotated heads; the heads decide here."""


def score(
    predicted: Mapping[int, float], true: Mapping[int, float], labels: Mapping[int, Sequence[str]] | None = None
) -> Scores:
    """Errors of counts overall, by scene level, and by luminance.

    Args:
        predicted, true: counts by image id; the same ids.
        labels: luminance and scene level of each image as in the list file; None without.

    Raises:
        ValueError: if the ids differ, or a label is none.
    """
    if predicted.keys() != true.keys():
        raise ValueError(f"no pairs of counts: ids {sorted(predicted.keys() ^ true.keys())} are in one of the two")
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
                raise ValueError(f"id {image}: luminance label {shade!r} is none of 0 to {LUMINANCE - 1}")
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
    """The figures as a table for a terminal."""
    lines = [f"{'':<24} {'images':>6} {'MAE':>10} {'RMSE':>10} {'NAE':>8}", _row("overall", scores.overall)]
    for name, key in SCENE_LEVELS.items():
        lines.append(_row(f"  {name} ({key} heads)", scores.levels[name]))
    lines.append(_mean_row("  mean of scene levels", scores.level_averages))
    if scores.luminance is not None and scores.luminance_averages is not None:
        lines += [
            _row(f"  {name} (luminance {name[1:]})", errors)
            for name, errors in scores.luminance.items()
            if errors is not None
        ]
        lines.append(_mean_row("  mean of luminance", scores.luminance_averages))
    averages = f"MAE over scene levels {scores.mmae_level:.2f}"
    if scores.mmae_luminance is not None:
        averages += f", over luminance {scores.mmae_luminance:.2f}"
    lines += [
        "RMSE is what the benchmark calls MSE. NAE leaves out images without people.",
        f"The benchmark's own averages: {averages}; one of its 5 levels or {LUMINANCE} labels without images counts "
        "as -1 there.",
    ]
    if scores.luminance is None:
        lines.append("There are no luminance labels: the split has no list file, or one of ids alone.")
    if scores.other_levels:
        lines.append(
            f"{len(scores.other_levels)} images have another scene level in the list file than their annotated heads, "
            f"which decide here: {_ranges(sorted(scores.other_levels))}"
        )
    return "\n".join(lines)


def _row(name: str, errors: CountErrors | None) -> str:
    if errors is None:
        return f"{name:<24} {0:>6} {'-':>10} {'-':>10} {'-':>8}"
    nae = "-" if math.isnan(errors.nae) else f"{errors.nae:.4f}"
    return f"{name:<24} {errors.images:>6} {errors.mae:10.2f} {errors.rmse:10.2f} {nae:>8}"


def _mean_row(name: str, means: Mapping[str, float]) -> str:
    nae = "-" if math.isnan(means["nae"]) else f"{means['nae']:.4f}"
    return f"{name:<24} {'':>6} {means['mae']:10.2f} {means['rmse']:10.2f} {nae:>8}"


def write_scores(scores: Scores, path: Path, *, facts: Mapping[str, Any]) -> None:
    """Write the figures as JSON, NaN as null, after ``facts``."""
    plain = {**facts, **dataclasses.asdict(scores)}
    _write(path, json.dumps(_without_nan(plain), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
