"""Count the test images of NWPU-Crowd for its benchmark, or check a file before it is sent there.

  python scripts/nwpu_submit.py ckpt=best_mae.pt data_root=~/data --output submission.txt
  python scripts/nwpu_submit.py ckpt=best_mae.pt --output submission.txt eval=sliding_window runtime=cpu
  python scripts/nwpu_submit.py ckpt=best_mae.pt split=val --output val.txt    # for scripts/nwpu_score.py
  python scripts/nwpu_submit.py --validate submission.txt

Writes a line `id count` per image, in the order of the dataset's list. Images are resized as in evaluation: by the
settings of the checkpoint if it was trained on NWPU-Crowd, else by those of dataset=nwpu. Settings are those of
eval.py; split= is test (default) or val. Exit status: 0, 1 if a checked file has problems, which are listed, 2 if a
setting is invalid or the data are missing.
"""

import os
import sys
from collections.abc import Sequence

from headcount.cli.arguments import Arguments, read_arguments, refuse_set, script_parser, to_path
from headcount.cli.compose import compose, refuse, to_config
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import ConfigError, EvalCommandConfig, FolderDatasetConfig, check_evaluation
from headcount.errors import HeadcountError

SPLITS = ("test", "val")
# Settings that are flags here, or that a submission cannot have.
_NOT_HERE = {
    "output_dir": "type --output",
    "max_images": "a submission holds every image",
    "dataset": "the benchmark is dataset=nwpu",
}


def main() -> None:
    """Read the command line and count, or check a file."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="ckpt=, split=, data_root=, eval=, ..., as for eval.py"
    )
    parser.add_argument("--output", type=to_path, help="the file to write")
    parser.add_argument("--validate", type=to_path, metavar="FILE", help="check this file and count nothing")
    with exit_on_error(parser.prog, MemoryError):
        arguments = read_arguments(parser, old_flags=("ckpt", "split", "data_root"))
        if arguments.options.validate is not None:
            sys.exit(0 if validate(arguments) else FAILED)
        submit(arguments)


def evaluation_config(overrides: Sequence[str]) -> EvalCommandConfig:
    """The settings of an evaluation on NWPU-Crowd.

    Raises:
        ConfigError: if a setting is invalid.
    """
    refuse_set(overrides, _NOT_HERE)
    config: EvalCommandConfig = to_config(compose(["dataset=nwpu", *overrides], config_name="eval"))
    errors = check_evaluation(config)
    if config.split not in SPLITS:
        errors.append(f"split={config.split}: must be {' or '.join(SPLITS)}")
    refuse(errors, overrides, config)
    return config


def submit(arguments: Arguments) -> None:
    """Count every image of the split, write the file and check it.

    Raises:
        ConfigError: if a setting is invalid, or the checkpoint or images cannot be read.
    """
    if arguments.options.output is None:
        raise ConfigError("--output is not set: type --output submission.txt")
    output = arguments.options.output.expanduser()
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file in it")
    config = evaluation_config(arguments.settings)

    # Heavy imports after the checks.
    with deferred_interrupt():
        from headcount.engine.submission import count_split
        from headcount.report.nwpu import read_submission, write_submission

    counted = count_split(config, arguments.settings, output)
    if counted is None:
        return
    counts = counted.counts
    write_submission(counts, output)
    checked = read_submission(output, [int(name) for name in counts])
    assert not checked.problems, checked.problems
    most = max(counts, key=lambda name: counts[name])
    print(
        f"{output}: {len(counts)} {config.split} images, {sum(counts.values()):.0f} people, at most {counts[most]:.0f} "
        f"({most}); counter trained on {counted.trained_on}"
    )


def validate(arguments: Arguments) -> bool:
    """Check a file and print what is wrong with it.

    Returns:
        Whether the benchmark will read it as intended.

    Raises:
        ConfigError: if the file, or a data folder that was typed, is missing.
    """
    if arguments.options.output:
        raise ConfigError("--validate reads a file and takes no --output")
    settings = arguments.values("data_root", "split")
    data_root, split = settings.get("data_root"), settings.get("split") or "test"
    if split not in SPLITS:
        raise ConfigError(f"split={split}: must be {' or '.join(SPLITS)}")
    path = arguments.options.validate.expanduser()
    if not path.is_file():
        raise ConfigError(f"--validate {path}: no such file")

    from headcount.report.nwpu import read_submission

    ids, source = _benchmark_ids(data_root, split)
    checked = read_submission(path, ids)
    if checked.problems:
        print("\n".join(checked.problems))
        print(f"{path}: {len(checked.problems)} problems, checked against {source}")
    else:
        print(f"{path}: valid, {len(ids)} images, checked against {source}")
    return not checked.problems


def _benchmark_ids(data_root: str | None, split: str) -> tuple[list[int], str]:
    """The ids of a split's images and where they come from: the list beside the data, else the published range.

    Raises:
        ConfigError: if the data are not in the folder that was typed.
    """
    from headcount.data.layouts import NWPU_IMAGES, nwpu_ids
    from headcount.data.locate import DATA_ROOT_VARIABLE
    from headcount.data.open import list_split

    first, last = NWPU_IMAGES[split]
    published = list(range(first, last + 1)), f"the published ids {first} to {last}"
    if not data_root and not os.environ.get(DATA_ROOT_VARIABLE):
        return published
    try:
        root, _ = list_split(FolderDatasetConfig(name="nwpu"), split, data_root=data_root)
    except HeadcountError:
        if data_root:
            raise
        return published
    file = root / f"{split}.txt"
    return ([int(name) for name in nwpu_ids(root, split)], str(file)) if file.is_file() else published
