"""Train a counter: ``python train.py dataset=sha model=mobilenet_v2``; ``--help`` lists the choices."""

from headcount.command import command
from headcount.config import TrainConfig


def main(config: TrainConfig) -> dict[str, float] | None:  # noqa: D103
    from headcount.engine.train import train  # loads torch: only once the settings are known to be good
    from headcount.report.pictures import curve_picture, density_picture

    run = train(config, draw=density_picture)
    if run is None:
        return None
    curve_picture(run.metrics, run.folder / "curves.png")
    return {key: run.best[key.lower()] for key in ("MAE", "RMSE", "NAE")}


if __name__ == "__main__":
    command(main, __file__)
