"""An evaluation on disk and on the terminal: metrics.json, counts.csv, and pictures."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from headcount.data.crowd import CrowdDataset
from headcount.metrics import Interval, Metrics, Reliability, measure
from headcount.report.diagnostics import levels_picture, reliability_picture, scatter_picture
from headcount.report.pictures import ComparisonRow, comparison_picture
from headcount.runs import COUNTS
from headcount.types import Evaluation

METRICS = "metrics.json"
PICTURE, SCATTER, LEVELS_PICTURE, RELIABILITY = "worst.png", "scatter.png", "levels.png", "reliability.png"


def write_evaluation(
    evaluation: Evaluation,
    dataset: CrowdDataset,
    folder: Path,
    *,
    facts: dict[str, Any],
    reliability: Reliability | None = None,
) -> None:
    """Write the report of an evaluation into ``folder`` and print its errors.

    Args:
        facts: what was evaluated: at least dataset, split, trained_on, selected_on, epoch, mode, block_size, and
            pictures: how many images to draw, worst absolute errors first; 0 draws nothing at all.
        reliability: probabilities against shares of the blocks; None for a counter without bins of whole heads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = evaluation.errors
    metrics = measure(evaluation.images)
    plain = {**dataclasses.asdict(errors), **dataclasses.asdict(metrics), **facts}
    plain["calibration_error"] = None if reliability is None else reliability.calibration_error()
    del plain["errors"]
    (folder / METRICS).write_text(json.dumps(_without_nan(plain), indent=2) + "\n")
    with (folder / COUNTS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "error", "game1", "game2", "game3"])
        for image in evaluation.images:
            decimals = (image.predicted, image.predicted - image.true, *image.game)
            writer.writerow([image.name, f"{image.true:.0f}", *(f"{value:.4f}" for value in decimals)])
    drawn = _draw(evaluation, metrics, dataset, folder, facts, reliability)
    print(
        f"{facts['dataset']} {facts['split']}, {errors.images} images (checkpoint of epoch {facts['epoch']}, "
        f"selected on '{facts['selected_on']}'), {facts['mode']}\n{summary(metrics)}\n"
        + "".join(f"  {folder / name}\n" for name in (METRICS, COUNTS, *drawn)),
        end="",
    )
    if facts["dataset"] != facts["trained_on"]:
        print(f"  The counter was trained on {facts['trained_on']}, not on {facts['dataset']}.")
    for line in dataset.describe_left_out():
        print(f"  {line}")
    if facts["split"] == "train" and facts["dataset"] == facts["trained_on"]:
        print("  The counter was trained on these images: the error on unseen images is larger.")
    elif facts["selected_on"] == facts["split"] and facts["dataset"] == facts["trained_on"]:
        print("  This split selected the checkpoint: the error on unseen images is larger.")


def _draw(
    evaluation: Evaluation,
    metrics: Metrics,
    dataset: CrowdDataset,
    folder: Path,
    facts: dict[str, Any],
    reliability: Reliability | None,
) -> list[str]:
    """Draw what is asked for; the names of the files. Those of an earlier evaluation, of other errors, go."""
    for name in (PICTURE, SCATTER, LEVELS_PICTURE, RELIABILITY):
        (folder / name).unlink(missing_ok=True)
    if not facts["pictures"]:
        return []
    errors, what = evaluation.errors, f"{facts['dataset']} {facts['split']}"
    worst = sorted(evaluation.images, key=lambda image: -abs(image.predicted - image.true))[: facts["pictures"]]
    rows = [
        ComparisonRow(
            image=sample.image,
            points=sample.points,
            true_count=image.true,
            predicted_blocks=image.blocks,
            block_size=facts["block_size"],
            name=image.name,
        )
        for image, sample in ((image, dataset[image.index]) for image in worst)
    ]
    title = f"{what}: MAE {errors.mae:.2f}, {len(worst)} largest errors of {errors.images}"
    comparison_picture(rows, folder / PICTURE, title=title)
    title = f"{what}, {errors.images} images: MAE {errors.mae:.2f}, RMSE {errors.rmse:.2f}"
    scatter_picture(evaluation.images, folder / SCATTER, title=title)
    levels_picture(metrics, folder / LEVELS_PICTURE, title=title)
    if reliability is None or math.isnan(reliability.calibration_error()):
        return [PICTURE, SCATTER, LEVELS_PICTURE]
    reliability_picture(reliability, folder / RELIABILITY, title=f"{what}: probabilities of blocks by bin")
    return [PICTURE, SCATTER, LEVELS_PICTURE, RELIABILITY]


def summary(metrics: Metrics) -> str:
    """All metrics as a table for a terminal."""
    errors = metrics.errors
    lines = [
        f"  {'MAE':<6} {errors.mae:10.2f}   {_interval(metrics.mae_interval)}",
        f"  {'RMSE':<6} {errors.rmse:10.2f}   {_interval(metrics.rmse_interval)}",
        f"  {'NAE':<6} {errors.nae:10.4f}",
        *(f"  {f'GAME({k})':<8} {value:8.2f}" for k, value in enumerate(metrics.game, start=1)),
        f"  {'bias':<6} {metrics.bias:+10.2f}",
        f"  {'R^2':<6} {metrics.r2:10.4f}",
        f"  {'heads':<12} {'images':>6} {'MAE':>9} {'RMSE':>9} {'NAE':>8}",
    ]
    for name, level in metrics.levels.items():
        if level is not None:
            lines.append(f"  {name:<12} {level.images:>6} {level.mae:9.2f} {level.rmse:9.2f} {level.nae:8.4f}")
    return "\n".join(lines)


def _interval(interval: Interval) -> str:
    return "" if math.isnan(interval.low) else f"95 % of resampled sets: {interval.low:.2f} to {interval.high:.2f}"


def _without_nan(value: Any) -> Any:
    """Plain values with None for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
