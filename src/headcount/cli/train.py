"""``train.py``: train a counter."""

from typing import Any

from headcount.cli.command import importing, run_command
from headcount.cli.sweep import IMAGES
from headcount.config import TrainConfig


def main() -> None:
    """Train what was typed on the command line."""
    run_command(train_job, "train")


def train_job(config: TrainConfig) -> dict[str, float] | None:
    """Train one run and draw its curves.

    Returns:
        The errors of the best evaluation, which a sweep lists; None for a dry run, and on every process but the first.
    """
    with importing():  # torch: only once the settings are known to be valid
        from headcount.engine.train import train

    run = train(config, draw=_draw_densities)
    if run is None:
        return None
    from headcount.report.pictures import curve_picture

    curve_picture(run.metrics, run.folder / "curves.png")
    results: dict[str, float] = {key: getattr(run.best, key.lower()) for key in ("MAE", "RMSE", "NAE")}
    if config.dataset.cv_folds is not None:
        results |= {IMAGES: run.best.images, "MAE of the last epoch": run.metrics[-1]["eval/mae"]}
    return results


def _draw_densities(*arguments: Any) -> Any:
    """``density_picture``; its libraries are imported when the first evaluation is drawn."""
    from headcount.report.pictures import density_picture

    return density_picture(*arguments)
