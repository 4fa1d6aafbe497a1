"""An evaluation on disk and on the terminal: metrics.json, counts.csv, and pictures."""

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from headcount.data.datasets import CrowdDataset
from headcount.metrics import Interval, Metrics, measure
from headcount.report.pictures import ComparisonRow, comparison_picture
from headcount.types import Evaluation

METRICS = "metrics.json"
COUNTS = "counts.csv"
PICTURE = "worst.png"


def write_evaluation(evaluation: Evaluation, dataset: CrowdDataset, folder: Path, *, facts: dict[str, Any]) -> None:
    """Write the report of an evaluation into ``folder`` and print its errors.

    Args:
        facts: what was evaluated: at least dataset, split, trained_on, selected_on, epoch, mode, block_size, and
            pictures: how many images to draw, worst absolute errors first; 0 draws none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = evaluation.errors
    metrics = measure(evaluation.images)
    plain = {**dataclasses.asdict(errors), **dataclasses.asdict(metrics), **facts}
    del plain["errors"]
    (folder / METRICS).write_text(json.dumps(_without_nan(plain), indent=2) + "\n")
    with (folder / COUNTS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "error", "game1", "game2", "game3"])
        for image in evaluation.images:
            decimals = (image.predicted, image.predicted - image.true, *image.game)
            writer.writerow([image.name, f"{image.true:.0f}", *(f"{value:.4f}" for value in decimals)])
    worst = sorted(evaluation.images, key=lambda image: -abs(image.predicted - image.true))[: facts["pictures"]]
    (folder / PICTURE).unlink(missing_ok=True)  # one of an earlier evaluation would show other errors
    if worst:
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
        title = (
            f"{facts['dataset']} {facts['split']}: MAE {errors.mae:.2f}, {len(worst)} largest errors of {errors.images}"
        )
        comparison_picture(rows, folder / PICTURE, title=title)
    print(
        f"{facts['dataset']} {facts['split']}, {errors.images} images (checkpoint of epoch {facts['epoch']}, "
        f"selected on '{facts['selected_on']}'), {facts['mode']}\n{summary(metrics)}\n"
        + "".join(f"  {folder / name}\n" for name in (METRICS, COUNTS, *([PICTURE] if worst else []))),
        end="",
    )
    if facts["dataset"] != facts["trained_on"]:
        print(f"  The counter was trained on {facts['trained_on']}, not on {facts['dataset']}.")
    for line in dataset.left_out_report():
        print(f"  {line}")
    if facts["split"] == "train" and facts["dataset"] == facts["trained_on"]:
        print("  The counter was trained on these images: the error on unseen images is larger.")
    elif facts["selected_on"] == facts["split"] and facts["dataset"] == facts["trained_on"]:
        print("  This split selected the checkpoint: the error on unseen images is larger.")


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
