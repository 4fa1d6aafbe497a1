"""Score a file in the format of NWPU-Crowd's benchmark against annotations, as the benchmark does, offline.

  python scripts/nwpu_submit.py ckpt=best_mae.pt split=val data_root=~/data --output val.txt
  python scripts/nwpu_score.py val.txt data_root=~/data

MAE, RMSE (which the benchmark calls MSE) and NAE: overall, by the scene levels S0 (nobody), S1 (up to 100 heads), S2
(up to 500), S3 (up to 5000) and S4, and by the luminance labels of the split's list file. Writes them as JSON beside
the file, or to --output. Settings: data_root=FOLDER, the folder of the datasets (default: the environment variable
HEADCOUNT_DATA), and split=val (default) or train. Exit status: 0, 1 if the file has problems, which are listed, 2 if
the data are missing.
"""

import sys
from pathlib import Path

from headcount.cli.arguments import read_arguments, script_parser, to_path
from headcount.cli.start import deferred_interrupt
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import ConfigError, FolderDatasetConfig
from headcount.data.catalogue import dataset_info
from headcount.data.locate import DATA_ROOT_VARIABLE, default_data_root
from headcount.errors import DataError
from headcount.files import short_name
from headcount.wording import printable


def main() -> None:
    """Read the command line and score."""
    parser = script_parser(__doc__)
    parser.add_argument("file", type=to_path, help="lines `id count`, as nwpu_submit.py writes")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="data_root=FOLDER, split=val or split=train")
    parser.add_argument(
        "--output", type=to_path, help="JSON file to write; default: <file>_scores.json beside the file"
    )
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser, old_flags=("data_root", "split"))
        settings = arguments.values("data_root", "split")
        split = settings.get("split") or "val"
        if split not in ("val", "train"):
            raise ConfigError(f"split={split}: must be val or train; other annotations are not public")
        path = arguments.options.file.expanduser()
        output = arguments.options.output or path.with_name(short_name(path.stem, "_scores.json"))
        good = score_file(path, settings.get("data_root"), split, output.expanduser())
    sys.exit(0 if good else FAILED)


def score_file(path: Path, data_root: str | None, split: str, output: Path) -> bool:
    """Print and write the scores of a file, or print what is wrong with it.

    Returns:
        Whether it could be scored.

    Raises:
        ConfigError: if the file or the annotations cannot be read.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if not data_root and not default_data_root():
        info = dataset_info("nwpu")
        raise ConfigError(
            f"no folder given; type data_root=FOLDER, or set the environment variable {DATA_ROOT_VARIABLE}. "
            f"{info.title} is distributed at {info.source} ({info.license})"
        )

    with deferred_interrupt():
        from headcount.data.layouts import nwpu_ids
        from headcount.data.open import list_split
        from headcount.report.nwpu import read_submission, score, scores_table, write_scores

    root, listed = list_split(FolderDatasetConfig(name="nwpu"), split, data_root=data_root)
    true: dict[int, float] = {}
    bad = []
    for item in listed:
        try:
            true[_image_id(item.name)] = float(len(item.heads()))
        except DataError as error:
            bad.append(str(error))
    if bad:
        lines = "".join(f"\n  {printable(reason)}" for reason in bad)
        raise ConfigError(
            f"{root}: {len(bad)} of {len(listed)} images of {split} have no annotation to score against:{lines}"
        )
    entries = {int(name): labels for name, labels in nwpu_ids(root, split).items()}
    labels = entries if all(entries.values()) else None
    read = read_submission(path, true)
    if read.problems:
        print("\n".join(read.problems))
        print(f"{path}: {len(read.problems)} problems; not scored")
        return False
    try:
        scores = score(read.counts, true, labels)
    except ValueError as error:
        raise ConfigError(f"{root / f'{split}.txt'}: {error}") from error
    facts = {"file": str(path), "dataset": "nwpu", "split": split, "images": len(true)}
    write_scores(scores, output, facts=facts)
    print(f"{path}: NWPU-Crowd {split}, {len(true)} images\n{scores_table(scores)}\n  {output}")
    return True


def _image_id(name: str) -> int:
    """The number that an image of NWPU-Crowd has for a name.

    Raises:
        ConfigError: if the name is not a number.
    """
    if not name.isdigit():
        raise ConfigError(f"image {name}: its name is not a number, as those of NWPU-Crowd are")
    return int(name)
