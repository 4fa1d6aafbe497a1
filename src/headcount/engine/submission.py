"""Count every image of a split of NWPU-Crowd, annotated or not, for a file in the format of its benchmark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headcount.config import EvalCommandConfig, FolderDatasetConfig
from headcount.data.loading import evaluation_samples
from headcount.data.open import open_images
from headcount.engine import checkpoint
from headcount.engine.evaluate import locate_evaluated
from headcount.engine.runtime import Runtime
from headcount.errors import CheckpointError
from headcount.files import make_folder
from headcount.progress import progress_bar


@dataclass
class CountedSplit:
    """The counts of a split's images."""

    counts: dict[str, float]
    """Name of the image -> people, in the order of the dataset's list."""
    trained_on: str
    """Name of the dataset that the counter was trained on."""


def count_split(config: EvalCommandConfig, overrides: Sequence[str], output: Path) -> CountedSplit | None:
    """Count every image of the split, shared among the processes.

    Args:
        config: an evaluation on ``dataset=nwpu``.
        overrides: the settings as typed. If the checkpoint was trained on NWPU-Crowd, the other settings of the
            dataset, such as sizes, come from it.
        output: the file that will be written; its folder is created before any image is counted.

    Returns:
        None on every process but the first.

    Raises:
        CheckpointError, DataError: if the checkpoint or images cannot be read, or a count is not finite.
        MemoryError: if an image does not fit into memory; names it.
    """
    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.checkpoint)
    trained = loaded.config
    located = locate_evaluated(config, trained, overrides=overrides)
    assert isinstance(located.config, FolderDatasetConfig)
    counter = runtime.move_to_device(loaded.counter)
    mode = loaded.counting_mode(config.eval)
    if runtime.is_main:
        make_folder(output.resolve().parent, "--output")
    with runtime.main_first():
        dataset = open_images(located.config, config.split, data_root=located.data_root)

    mine: list[tuple[int, float]] = []
    samples = evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=config.runtime.workers)
    bar = progress_bar(total=len(dataset), label=f"nwpu {config.split}", disable=not runtime.is_main)
    with bar:
        for index, sample in samples:
            try:
                counted = counter.count(sample.image, mode).count
            except MemoryError as error:
                raise MemoryError(f"{sample.name}: {error}") from error
            if not math.isfinite(counted):
                raise CheckpointError(
                    f"ckpt={config.ckpt}: the predicted count of {sample.name} is {counted}; choose another checkpoint"
                )
            mine.append((index, counted))
            bar.update(runtime.world)
    counts = {dataset.names[index]: value for index, value in sorted(runtime.gather(mine))}
    return CountedSplit(counts, trained.dataset.name) if runtime.is_main else None
