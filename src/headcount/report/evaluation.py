"""Write an evaluation: metrics.json, counts.csv and pictures, and a summary on the terminal."""

import dataclasses
import hashlib
import json
import math
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from headcount.coverage import JudgedIntervals
from headcount.data.crowd import CrowdDataset
from headcount.files import read_text, write_csv, write_json
from headcount.metrics import GAME, Interval, Metrics, Reliability, measure, parts_table
from headcount.report.diagnostics import levels_picture, reliability_picture, scatter_picture
from headcount.report.intervals import coverage_picture, describe_intervals, intervals_to_plain, usual_intervals
from headcount.report.pictures import ComparisonRow, comparison_picture
from headcount.report.predictions import INTERVAL_COLUMNS, interval_cells
from headcount.runs import COUNTS_FILE, EVALUATION_FILE, EvaluationFacts
from headcount.types import FAR_OUTSIDE, Evaluation
from headcount.wording import first_names, printable

# What makes two evaluations in one folder different ones.
_IDENTITY = ("dataset", "split", "images", "mode", "epoch", "commit", "seed")
WORST_FILE, SCATTER_FILE, LEVELS_FILE, RELIABILITY_FILE = "worst.png", "scatter.png", "levels.png", "reliability.png"
COVERAGE_FILE = "coverage.png"


def write_evaluation(
    evaluation: Evaluation,
    dataset: CrowdDataset,
    folder: Path,
    *,
    facts: EvaluationFacts,
    reliability: Reliability | None = None,
    intervals: JudgedIntervals | None = None,
) -> None:
    """Write the report of an evaluation and print a summary.

    Args:
        evaluation: counts and errors of the images.
        dataset: the evaluated split, for the pictures.
        folder: of the report; created if missing.
        facts: what was evaluated, and how many pictures to draw.
        reliability: of the bins' probabilities; None for a counter without bins of whole heads.
        intervals: of the counts; None reports none.

    Raises:
        OSError: if a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metrics = measure(evaluation.images)
    plain = dataclasses.asdict(evaluation.errors) | dataclasses.asdict(metrics) | dataclasses.asdict(facts)
    if evaluation.parts:
        plain["parts"] = {part: dataclasses.asdict(errors) for part, errors in evaluation.parts.items()}
    del plain["errors"]
    occupied = None if reliability is None else reliability.occupied
    plain["calibration_error"] = None if reliability is None else reliability.calibration_error()
    plain["calibration_error_occupied"] = None if occupied is None else occupied.calibration_error()
    plain["intervals"] = None if intervals is None else intervals_to_plain(intervals)
    names_and_counts = json.dumps([[image.name, image.true] for image in evaluation.images])
    plain["images_digest"] = hashlib.sha256(names_and_counts.encode()).hexdigest()[:16]
    replaced = _describe_replaced(folder / EVALUATION_FILE, plain)
    write_json(folder / EVALUATION_FILE, plain)
    measured = [name for name in GAME if name in evaluation.images[0].numbers]
    usual = {} if intervals is None else usual_intervals(intervals)
    rows: list[list[Any]] = [
        ["image", "true", "predicted", "error", *measured, "width", "height", *INTERVAL_COLUMNS, "note"]
    ]
    for image in evaluation.images:
        decimals = [image.predicted, image.predicted - image.true, *(image.numbers[name] for name in measured)]
        size = dataset.source_sizes[image.index]
        numbers = [f"{image.true:.0f}", *(f"{value:.4f}" for value in decimals), *size]
        interval = usual.get(image.name)
        note = "; ".join(filter(None, [image.note, "" if interval is None else interval.note]))
        rows.append([image.name, *numbers, *interval_cells(interval), note])
    write_csv(folder / COUNTS_FILE, rows)
    drawn = _draw(evaluation, metrics, dataset, folder, facts, reliability, intervals)
    epoch = "an unknown epoch" if facts.epoch is None else f"epoch {facts.epoch}"
    lines = [
        f"{facts.dataset} {facts.split}, {evaluation.errors.images} images (checkpoint of {epoch}, "
        f"selected on '{facts.selected_on}'{_others(facts)}), {facts.mode}",
        *summary(metrics).splitlines(),
        *(f"  {line}" for line in parts_table(evaluation.parts, evaluation.errors).splitlines() if evaluation.parts),
        *([] if intervals is None else describe_intervals(intervals).splitlines()),
        *(f"  {folder / name}" for name in (EVALUATION_FILE, COUNTS_FILE, *drawn)),
    ]
    far = [image.name for image in evaluation.images if image.note.startswith(FAR_OUTSIDE)]
    of_all = f"{len(far)} of {len(evaluation.images)} images"
    notes = [f"{of_all} {FAR_OUTSIDE} (note in {COUNTS_FILE}): {first_names(far)}"] if far else []
    lines += [f"  {line}" for line in (*replaced, *_caveats(facts, evaluation), *notes, *dataset.describe_left_out())]
    print("\n".join(map(printable, lines)))


def _others(facts: EvaluationFacts) -> str:
    """The other checkpoints of an ensemble."""
    others = facts.settings.get("ensemble")
    return f"; averaged with {others}" if others else ""


def _caveats(facts: EvaluationFacts, evaluation: Evaluation) -> list[str]:
    """Reasons why the errors may not be those on all unseen images of the training dataset."""
    lines = []
    if "max_images" in facts.settings:
        which = f"{facts.settings['max_images']} images of each part" if evaluation.parts else f"{facts.images} images"
        lines.append(f"These are the first {which} only, not the whole split.")
    if "runtime.precision" in facts.settings:
        lines.append(f"runtime.precision={facts.settings['runtime.precision']}: evaluation always uses float32.")
    if facts.dataset != facts.trained_on:
        lines.append(f"The counter was trained on {facts.trained_on}, not on {facts.dataset}.")
    elif facts.split == "train":
        lines.append("The counter was trained on these images: the error on unseen images is larger.")
    elif facts.selected_on == facts.split:
        lines.append("This split selected the checkpoint: the error on unseen images is larger.")
    return lines


def _describe_replaced(file: Path, now: Mapping[str, Any]) -> list[str]:
    """In what an evaluation that is about to be replaced was another one; empty if it was not, or there is none.

    Args:
        file: metrics.json of the earlier one.
        now: the values that will be written there.
    """
    try:
        before = json.loads(read_text(file))
        paths = [os.path.abspath(values["checkpoint"]) for values in (before, now)]
        changed = [f"{key} {before[key]}" for key in _IDENTITY if before[key] != now[key]]
        if not changed and before.get("settings", {}) != now["settings"]:
            changed = ["other settings"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []
    changed += [f"checkpoint {before['checkpoint']}"] if paths[0] != paths[1] else []
    if not changed and before.get("images_digest", now["images_digest"]) != now["images_digest"]:
        changed = ["other images or annotations"]
    return [f"Replaced an earlier evaluation in this folder: {', '.join(changed)}."] if changed else []


def _draw(
    evaluation: Evaluation,
    metrics: Metrics,
    dataset: CrowdDataset,
    folder: Path,
    facts: EvaluationFacts,
    reliability: Reliability | None,
    intervals: JudgedIntervals | None,
) -> list[str]:
    """Draw the pictures that ``facts`` requests, remove those of an earlier evaluation, and return the file names."""
    for name in (WORST_FILE, SCATTER_FILE, LEVELS_FILE, RELIABILITY_FILE, COVERAGE_FILE):
        (folder / name).unlink(missing_ok=True)
    if not facts.pictures:
        return []
    errors, split = evaluation.errors, f"{facts.dataset} {facts.split}"
    title = f"{split}, {errors.images} images: MAE {errors.mae:.2f}, RMSE {errors.rmse:.2f}"
    scatter_picture(evaluation.images, folder / SCATTER_FILE, title=title)
    levels_picture(metrics, folder / LEVELS_FILE, title=title)
    drawn = [SCATTER_FILE, LEVELS_FILE]
    if _draw_worst(evaluation, dataset, folder / WORST_FILE, facts):
        drawn.insert(0, WORST_FILE)
    if reliability is not None and not math.isnan(reliability.calibration_error()):
        title = f"{split}: probabilities of blocks by bin"
        reliability_picture(reliability, folder / RELIABILITY_FILE, title=title)
        drawn.append(RELIABILITY_FILE)
    if intervals is not None and intervals.best:
        coverage_picture(intervals, folder / COVERAGE_FILE, title=f"{split}: intervals of counts")
        drawn.append(COVERAGE_FILE)
    return drawn


def _draw_worst(evaluation: Evaluation, dataset: CrowdDataset, path: Path, facts: EvaluationFacts) -> bool:
    """Draw the images with the largest errors beside their densities; not for a counter without blocks."""
    errors = evaluation.errors
    worst = sorted(evaluation.images, key=lambda image: -abs(image.predicted - image.true))[: facts.pictures]
    rows = []
    for image in worst:
        if image.blocks is None:
            return False
        sample = dataset[image.index]
        rows.append(
            ComparisonRow(
                image=sample.image,
                points=sample.points,
                true_count=image.true,
                predicted_blocks=image.blocks,
                block_size=facts.block_size,
                name=image.name,
                mask=sample.mask,
            )
        )
    title = f"{facts.dataset} {facts.split}: MAE {errors.mae:.2f}, {len(worst)} largest errors of {errors.images}"
    comparison_picture(rows, path, title=title)
    return True


def summary(metrics: Metrics) -> str:
    """Format all metrics as tables for a terminal, indented by two spaces."""
    errors = metrics.errors
    overall = [
        ["MAE", f"{errors.mae:.2f}", _interval(metrics.mae_interval)],
        ["RMSE", f"{errors.rmse:.2f}", _interval(metrics.rmse_interval)],
        ["NAE", f"{errors.nae:.4f}", ""],
        *([f"GAME({k})", f"{value:.2f}", ""] for k, value in enumerate(metrics.game, start=1)),
        ["bias", f"{metrics.bias:+.2f}", ""],
        ["R^2", f"{metrics.r2:.4f}", ""],
        (
            ["rank correlation", "undefined", "equal counts, or one image"]
            if math.isnan(metrics.rank_correlation)
            else ["rank correlation", f"{metrics.rank_correlation:.4f}", ""]
        ),
        *([name.replace("_", " "), f"{share:.1%}", "of the patches"] for name, share in metrics.dropped.items()),
    ]
    levels = [
        [name, str(level.images), f"{level.mae:.2f}", f"{level.rmse:.2f}", f"{level.nae:.4f}"]
        for name, level in metrics.levels.items()
        if level is not None
    ]
    tables = (
        tabulate(overall, tablefmt="plain", disable_numparse=True, colalign=("left", "right", "left")),
        tabulate(
            levels,
            ["heads", "images", "MAE", "RMSE", "NAE"],
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", *["right"] * 4),
        ),
    )
    return textwrap.indent("\n".join(tables), "  ")


def _interval(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"95 % of resampled sets: {interval.low:.2f} to {interval.high:.2f}"
