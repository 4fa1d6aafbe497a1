"""An evaluation on disk and on the terminal: errors.json, counts.csv, and a picture of the worst."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

from headcount.data.datasets import CrowdDataset
from headcount.report.pictures import ComparisonRow, comparison_picture
from headcount.types import Evaluation

ERRORS = "errors.json"
COUNTS = "counts.csv"
PICTURE = "worst.png"


def write_evaluation(evaluation: Evaluation, dataset: CrowdDataset, folder: Path, *, facts: dict[str, Any]) -> None:
    """Write the report of an evaluation into ``folder`` and print its errors.

    Args:
        facts: what was evaluated: at least dataset, split, selected_on, block_size, and
            pictures: how many images to draw, worst absolute errors first; 0 draws none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = evaluation.errors
    (folder / ERRORS).write_text(json.dumps({**dataclasses.asdict(errors), **facts}, indent=2) + "\n")
    with (folder / COUNTS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "true", "predicted", "error"])
        for image in evaluation.images:
            writer.writerow(
                [image.name, f"{image.true:g}", f"{image.predicted:.4f}", f"{image.predicted - image.true:.4f}"]
            )
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
        f"selected on '{facts['selected_on']}')\n"
        f"  MAE {errors.mae:.2f}   RMSE {errors.rmse:.2f}   NAE {errors.nae:.4f}\n"
        + "".join(f"  {folder / name}\n" for name in (ERRORS, COUNTS, *([PICTURE] if worst else []))),
        end="",
    )
    for line in dataset.left_out_report():
        print(f"  {line}")
    if facts["split"] == "train":
        print("  The counter was trained on these images: the error on unseen images is larger.")
    elif facts["selected_on"] == facts["split"]:
        print("  This split selected the checkpoint: the error on unseen images is larger.")
