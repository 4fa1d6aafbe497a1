"""Train the run that is stored in format_2: ``python tests/stored/make_run.py FOLDER``, with a relative path.

The run is stopped after the first of its two epochs, so that a test can resume it. It is stored once per format of
checkpoints, and the stored files of earlier versions are never made again: they are what users have.
"""

import sys
from pathlib import Path

from headcount.cli.compose import compose, to_config
from headcount.config import TrainConfig
from headcount.engine.run import RunFolder
from headcount.engine.setup import Job
from headcount.engine.train import train

SETTINGS = (
    *("scale=smoke", "epochs=2", "eval_every_epochs=1", "run_name=stored", "batch_size=2", "model.width=4"),
    *("runtime=cpu", "runtime.workers=0", "augment.crop_size=64", "eval.pictures=0"),
    *("dataset.train_images=4", "dataset.val_images=2", "dataset.test_images=2", "dataset.max_people=20"),
    *("dataset.width=96", "dataset.height=96"),
)


def stored_config(folder: Path, *changes: str) -> TrainConfig:
    """The settings of the stored run, with its parent folder of runs."""
    config: TrainConfig = to_config(compose([*SETTINGS, f"output_dir={folder}", *changes], config_name="train"))
    return config


class StoppingFolder(RunFolder):
    """A run folder that stops the training after the first save."""

    def save(self, job: Job, *, is_best: bool) -> None:
        super().save(job, is_best=is_best)
        raise KeyboardInterrupt


if __name__ == "__main__":
    import headcount.engine.train as engine

    engine.RunFolder = StoppingFolder  # type: ignore[misc]
    try:
        train(stored_config(Path(sys.argv[1])))
    except KeyboardInterrupt:
        print(f"stored below {sys.argv[1]}; remove the events of TensorBoard")
