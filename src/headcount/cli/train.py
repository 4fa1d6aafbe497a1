"""``train.py``: train a counter."""

from headcount.cli.command import run_command
from headcount.config import TrainConfig


def main() -> None:
    """Train what was typed on the command line."""
    run_command(train_job, "train")


def train_job(config: TrainConfig) -> dict[str, float] | None:
    """Train one run and draw its curves.

    Returns:
        The errors of the best evaluation; None for a dry run, and on every process but the first.
    """
    from headcount.engine.train import train  # imports torch: only once the settings are known to be valid
    from headcount.report.pictures import curve_picture, density_picture

    run = train(config, draw=density_picture)
    if run is None:
        return None
    curve_picture(run.metrics, run.folder / "curves.png")
    return {key: getattr(run.best, key.lower()) for key in ("MAE", "RMSE", "NAE")}
