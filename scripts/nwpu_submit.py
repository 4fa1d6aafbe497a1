"""Count the test images of NWPU-Crowd for its benchmark, or check a file before it is sent there.

  python scripts/nwpu_submit.py --ckpt best_mae.pt --data-root ~/data --output submission.txt
  python scripts/nwpu_submit.py --ckpt best_mae.pt --output submission.txt eval=sliding_window runtime=cpu
  python scripts/nwpu_submit.py --ckpt best_mae.pt --output val.txt --split val    # for scripts/nwpu_score.py
  python scripts/nwpu_submit.py --validate submission.txt

A line `id count` an image, in the order of the dataset's list. Images are resized as in evaluation: by the settings of
the checkpoint if it was trained on NWPU-Crowd, else by those of dataset=nwpu. Settings are those of eval.py.
Exit status: 0, 1 if a checked file has problems, which are listed, 2 if a setting is wrong or the data are not there.
"""

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headcount.command import compose, to_config
from headcount.config import ConfigError, EvalCommandConfig, FolderDatasetConfig, check_evaluation
from headcount.files import make_folder

if TYPE_CHECKING:
    from torch import Tensor

    from headcount.data.crowd import CrowdDataset

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# Settings that are flags here, or that a submission cannot have.
NOT_HERE = {
    "ckpt": "type --ckpt",
    "split": "type --split",
    "data_root": "type --data-root",
    "output_dir": "type --output",
    "max_images": "a submission holds every image",
    "dataset": "the benchmark is dataset=nwpu",
}


def eval_config(overrides: list[str], ckpt: Path, split: str, data_root: str | None) -> EvalCommandConfig:
    """The settings of an evaluation on NWPU-Crowd.

    Raises:
        ConfigError: if a setting is wrong.
    """
    for override in overrides:
        if hint := NOT_HERE.get(override.partition("=")[0]):
            raise ConfigError(f"{override}: cannot be set here; {hint}")
    typed = ["ckpt=unused", "dataset=nwpu", f"split={split}", *overrides]
    config: EvalCommandConfig = to_config(compose(typed, config_name="eval", config_dir=CONFIGS))
    config.data_root = data_root
    config.ckpt = str(ckpt)
    if errors := check_evaluation(config):
        raise ConfigError("\n  ".join(errors))
    return config


def count(config: EvalCommandConfig, output: Path, overrides: list[str]) -> None:
    """Count every image of the split and write the file.

    Args:
        overrides: what was typed; a checkpoint trained on NWPU-Crowd says the rest of how images are resized.

    Raises:
        ConfigError: if the checkpoint or images cannot be read, or a count is not finite.
    """
    from tqdm import tqdm

    from headcount.config import counting_mode, window_error
    from headcount.data.loading import evaluation_samples
    from headcount.engine import checkpoint
    from headcount.engine.evaluate import as_trained, folder_of_datasets
    from headcount.engine.runtime import Runtime
    from headcount.engine.tiling import predict_blocks
    from headcount.report.nwpu import read_submission, write_submission

    runtime = Runtime(config.runtime)
    loaded = checkpoint.load(config.ckpt)
    images, trained_on = config.dataset, loaded.config.dataset
    assert isinstance(images, FolderDatasetConfig)
    own = trained_on.name == "nwpu"
    data_root = folder_of_datasets(config.data_root, loaded.config.data_root, own=own)
    if own and isinstance(trained_on, FolderDatasetConfig):
        images = as_trained(trained_on, images, overrides, data_root=config.data_root)
        assert isinstance(images, FolderDatasetConfig)
    counter = runtime.place(loaded.counter)
    trained = loaded.config
    mode = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=config.eval)
    if wrong := window_error(mode, counter.block_size, counter.stride):
        raise ConfigError(wrong)
    if runtime.is_main:
        make_folder(output.resolve().parent, "--output")
    with runtime.main_first():
        dataset = open_images(images, config.split, data_root=data_root)

    mine: list[tuple[int, float]] = []
    counter.eval()
    samples = evaluation_samples(dataset, rank=runtime.rank, world=runtime.world, workers=config.runtime.workers)
    bar = tqdm(
        total=len(dataset), desc=f"nwpu {config.split}", unit="img", disable=not runtime.is_main, dynamic_ncols=True
    )
    with bar:
        for index, sample in samples:
            try:
                blocks = predict_blocks(counter, sample.image, mode).counts
            except MemoryError as error:
                raise ConfigError(f"{sample.name}: {error}") from error
            counted = float(blocks.double().sum())
            if not math.isfinite(counted):
                raise ConfigError(
                    f"ckpt={config.ckpt}: counts {counted} people on {sample.name}; take another checkpoint"
                )
            mine.append((index, counted))
            bar.update(runtime.world)
    counts = {dataset.names[index]: value for index, value in sorted(runtime.gather(mine))}
    if not runtime.is_main:
        return
    try:
        write_submission(counts, output)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); choose another --output") from error
    checked = read_submission(output, [int(name) for name in dataset.names])
    assert not checked.problems, checked.problems
    most = max(counts, key=lambda name: counts[name])
    print(
        f"{output}: {len(counts)} {config.split} images, {sum(counts.values()):.0f} people, at most {counts[most]:.0f} "
        f"({most}); counter trained on {trained_on.name}"
    )


def open_images(config: FolderDatasetConfig, split: str, *, data_root: str | None) -> "CrowdDataset":
    """The images of a split in the order of its list, resized as for evaluation, without their heads.

    Raises:
        ConfigError: if the dataset or images of the split are not there.
    """
    import torch

    from headcount.data.crowd import CrowdDataset
    from headcount.data.images import check_image
    from headcount.data.layouts import nwpu_ids
    from headcount.data.open import list_split
    from headcount.data.prepare import cache_folder, prepare_images

    config.max_train_images = config.max_eval_images = None
    root, listed = list_split(config, split, data_root=data_root)
    files = {item.name: item.image for item in listed}
    names = list(nwpu_ids(root, split))
    problems = []
    for name in names:
        try:
            check_image(files[name])
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        lines = "".join(f"\n  {line}" for line in problems)
        raise ConfigError(f"{root}: {len(problems)} of {len(names)} {split} images cannot be read:{lines}")
    limits = {"min_side": config.min_side, "max_side": config.max_side, "multiple": config.side_multiple}
    prepared = prepare_images(
        [files[name] for name in names],
        cache_folder(config.cache_dir, dataset=config.name, root=root, settings=limits) / split,
        min_side=config.min_side,
        max_side=config.max_side,
        multiple=config.side_multiple,
        label=f"{config.name} {split}",
    )
    paths = [image.path for image in prepared]
    return CrowdDataset(
        names,
        partial(_read_one, paths),
        [torch.zeros(0, 2)] * len(names),
        source_sizes=[image.source_size for image in prepared],
        sizes=[image.size for image in prepared],
    )


def _read_one(paths: list[Path], index: int) -> "Tensor":
    from headcount.data.images import read_image

    return read_image(paths[index])


def validate(path: Path, data_root: str | None, split: str) -> bool:
    """Check a file and print what is wrong with it.

    Returns:
        Whether the benchmark will read it as it is meant.

    Raises:
        ConfigError: if the file, or a data folder that was named, is not there.
    """
    if not path.is_file():
        raise ConfigError(f"--validate {path}: no such file")

    from headcount.data.layouts import NWPU_IMAGES, nwpu_ids
    from headcount.data.locate import DATA_ROOT_VARIABLE
    from headcount.data.open import list_split
    from headcount.report.nwpu import read_submission

    first, last = NWPU_IMAGES[split]
    ids, source = [*range(first, last + 1)], f"the published ids {first} to {last}"
    if data_root or os.environ.get(DATA_ROOT_VARIABLE):
        try:
            root, _ = list_split(FolderDatasetConfig(name="nwpu"), split, data_root=data_root)
        except ConfigError:
            if data_root:
                raise
        else:
            if (root / f"{split}.txt").is_file():
                ids, source = [int(name) for name in nwpu_ids(root, split)], str(root / f"{split}.txt")
    checked = read_submission(path, ids)
    against = f"checked against {source}"
    if checked.problems:
        print("\n".join(checked.problems))
        print(f"{path}: {len(checked.problems)} problems, {against}")
    else:
        print(f"{path}: valid, {len(ids)} images, {against}")
    return not checked.problems


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", type=Path, help="the checkpoint that counts")
    what.add_argument("--validate", type=Path, metavar="FILE", help="check this file and count nothing")
    parser.add_argument("--output", type=Path, help="the file to write")
    parser.add_argument("--data-root", help="folder of the datasets; default: environment variable HEADCOUNT_DATA")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val to be scored offline")
    parser.add_argument("settings", nargs="*", help="as for eval.py: eval=..., runtime=..., dataset.cache_dir=...")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.validate is not None:
            if arguments.settings or arguments.output:
                raise ConfigError("--validate reads a file and takes no --output and no settings")
            sys.exit(0 if validate(arguments.validate.expanduser(), arguments.data_root, arguments.split) else 1)
        if arguments.output is None:
            raise ConfigError("--output is not set: type --output submission.txt")
        if arguments.output.is_dir():
            raise ConfigError(f"--output {arguments.output}: is a folder; name a file in it")
        config = eval_config(arguments.settings, arguments.ckpt.expanduser(), arguments.split, arguments.data_root)
        count(config, arguments.output.expanduser(), arguments.settings)
    except ConfigError as error:
        print(f"nwpu_submit.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
