"""Write the tables of results in README.md and EXPERIMENTS.md from the records in results/.

  python scripts/results_table.py                   rewrite both tables
  python scripts/results_table.py --check           change nothing; exit with 1 if something is wrong or out of date
  python scripts/results_table.py --add checkpoints/sha/mine/seed1/eval/sha_test --name mine --network MobileNetV2 \\
      --section 2026-12-01-my-run                   make a record from evaluations that eval.py wrote

One record describes one training and the errors of its checkpoints; class Record explains its fields, and what is not
known is null. Every error and commit of a record must stand in the section of EXPERIMENTS.md that it names. Exit
status: 0, 1 if a check failed, 2 if nothing could be read or written.
"""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.cli.arguments import script_parser, to_path
from headcount.cli.status import FAILED, exit_on_error
from headcount.config import ConfigError, ExpectedConfig
from headcount.data.catalogue import DATASETS
from headcount.files import read_text, write_json, write_text
from headcount.report.markdown import plain
from headcount.runs import RunRecord, read_run

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "results"
EXPERIMENTS = "EXPERIMENTS.md"
METRICS_FILE = "metrics.json"
"""Of an evaluation; the name is not imported from headcount.report.evaluation, because that imports torch."""
FACTS = ("dataset", "split", "images", "mode", "commit", "seed", "trained_on")
"""Keys of metrics.json that are the same for all evaluations of a record."""
BLOCK = re.compile(r"(?<=<!-- results: begin -->\n).*?(?=<!-- results: end -->)", re.DOTALL)
SPLITS = {"test": "test images", "val": "validation images", "holdout": "held-out training images"}
SELECTIONS = ("selected on these images", "selected on other images", "last epoch")
"""Headings of the columns of errors."""
UNKNOWN = "not recorded"
NO_SELECTION = "nothing"
"""``selected_on`` of the last checkpoint of a training whose length was fixed before."""


@dataclass
class Errors:
    """The errors of one checkpoint, in heads per image; of several seeds, their means."""

    selected_on: str = MISSING
    """The split whose MAE selected the checkpoint, or ``nothing``."""
    selection_images: int | None = MISSING
    """Number of images in that split; null for ``nothing``, and if not recorded."""
    epoch: int | None = MISSING
    """Epoch of the checkpoint; null for several seeds."""
    mae: float = MISSING
    """Mean absolute error, as rounded in the text."""
    rmse: float = MISSING
    """Root mean squared error, as rounded in the text."""
    mae_std: float | None = MISSING
    """Standard deviation over the seeds; null for one seed."""
    rmse_std: float | None = MISSING
    """Standard deviation over the seeds; null for one seed."""


@dataclass
class Record:
    """One training. Fields that metrics.json of an evaluation has, too, have the same names and values."""

    dataset: str = MISSING
    """Name of the dataset of the images that were counted, as in ``dataset=``."""
    split: str = MISSING
    """Split of the images that were counted: test, val or holdout."""
    images: int = MISSING
    """Number of images that were counted."""
    mode: str = MISSING
    """How they were counted, such as ``whole image``."""
    trained_on: str = MISSING
    """Training images, for readers."""
    network: str = MISSING
    """Network and what is special about this training, for readers."""
    parameters: int | None = MISSING
    """Number of parameters of the network."""
    epochs: int = MISSING
    """Length of the training."""
    crop_size: int = MISSING
    """Side of a training crop, in pixels."""
    crops: int | None = MISSING
    """Number of training crops of all epochs."""
    hardware: str | None = MISSING
    """Hardware and arithmetic, for readers."""
    minutes: float | None = MISSING
    """Duration of the training with its evaluations."""
    seeds: list[int] = MISSING
    """Several if the errors are means."""
    commit: str | None = MISSING
    """Commit of the training."""
    command: str | None = MISSING
    """The training's command at that commit."""
    section: str = MISSING
    """Anchor of the section of EXPERIMENTS.md that describes it."""
    expected: ExpectedConfig | None = MISSING
    """The paper's result with this dataset and network; null if there is none."""
    in_readme: bool = MISSING
    """Whether README.md shows it; EXPERIMENTS.md shows all records."""
    results: list[Errors] = MISSING
    """One entry per checkpoint."""


def main() -> None:
    """Read the command line and write or check the tables, or add a record."""
    parser = script_parser(__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if something is wrong")
    parser.add_argument("--add", nargs="+", type=to_path, metavar="FOLDER", help="evaluations of one run")
    parser.add_argument("--name", help="of the new record's file, without .json")
    parser.add_argument("--network", help="of the new record, for readers")
    parser.add_argument("--section", help="of the new record: an anchor of EXPERIMENTS.md")
    with exit_on_error(parser.prog):
        options = parser.parse_args()
        if options.add:
            print(add(ROOT, options.add, name=options.name, network=options.network, section=options.section))
            return
        problems = update(ROOT, check=options.check)
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    sys.exit(FAILED if problems else 0)


# ----------------------------------------------------------------------------------------- records


def read_records(root: Path) -> dict[str, Record]:
    """Read all records, in the order of the tables.

    Returns:
        File, relative to ``root`` -> record.

    Raises:
        ConfigError: if one cannot be read, lacks a field, or has an unknown or invalid one.
    """
    records = {str(file.relative_to(root)): read_record(file) for file in (root / FOLDER).glob("*.json")}
    known = list(DATASETS)
    return dict(
        sorted(
            records.items(),
            key=lambda item: (
                known.index(item[1].dataset),
                item[1].split != "test",
                min(errors.mae for errors in item[1].results),
                item[0],
            ),
        )
    )


def read_record(file: Path) -> Record:
    """Read one record.

    Raises:
        ConfigError: if it cannot be read, lacks a field, or has an unknown or invalid one.
    """
    try:
        text = read_text(file)
        if "${" in text:
            raise ValueError("${ would refer to another value")
        content = json.loads(text)
        record: Record = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Record), content))  # type: ignore[assignment]
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}; scripts/results_table.py lists the fields") from error
    if record.dataset not in DATASETS or record.split not in SPLITS:
        known = f"datasets are {', '.join(DATASETS)}, splits {', '.join(SPLITS)}"
        raise ConfigError(f"{file}: dataset {record.dataset}, split {record.split}: not known; {known}")
    if not record.results or not record.seeds:
        raise ConfigError(f"{file}: results and seeds must not be empty")
    for errors in record.results:
        if errors.selected_on not in SPLITS and errors.selected_on != NO_SELECTION:
            raise ConfigError(
                f"{file}: selected_on {errors.selected_on} is none of {', '.join(SPLITS)}, {NO_SELECTION}"
            )
        several = len(record.seeds) > 1
        if any((std is not None) != several for std in (errors.mae_std, errors.rmse_std)):
            raise ConfigError(f"{file}: mae_std and rmse_std must be null for one seed, and numbers for several")
    return record


def add(root: Path, folders: Sequence[Path], *, name: str | None, network: str | None, section: str | None) -> str:
    """Write a record from evaluations of one run.

    Args:
        root: of the project.
        folders: that eval.py wrote into the run's folder, for its best_mae.pt or last.pt.
        name, network, section: of the record.

    Returns:
        What to do next.

    Raises:
        ConfigError: if an argument is missing, a file cannot be read, or the record exists.
    """
    if not name or not network or not section:
        raise ConfigError("--add needs --name, --network and --section")
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(f"--name {name}: must consist of letters, digits and underscores")
    file = root / FOLDER / f"{name}.json"
    if file.exists():
        raise ConfigError(f"{file}: exists; choose another --name, or delete it")
    run = read_run(folders[0].resolve().parent.parent)
    evaluations = [read_evaluation(folder) for folder in folders]
    facts = {key: evaluations[0][key] for key in FACTS}
    for folder, evaluation in zip(folders, evaluations, strict=True):
        if folder.resolve().parent.parent != run.folder or not facts.items() <= evaluation.items():
            raise ConfigError(f"{folder}: is not an evaluation of the same run and images as {folders[0]}")
    trained_on = DATASETS[facts["trained_on"]].title if facts["trained_on"] in DATASETS else facts["trained_on"]
    seconds, command = run.provenance.get("seconds"), run.provenance.get("command")
    record = Record(
        **{key: facts[key] for key in ("dataset", "split", "images", "mode", "commit")},
        trained_on=f"{trained_on} ({run.images[0]} images)" if run.images else trained_on,
        network=network,
        parameters=None,
        epochs=run.epochs,
        crop_size=run.config.augment.crop_size,
        crops=None,
        hardware=", ".join(run.provenance[key] for key in ("device", "precision") if key in run.provenance) or None,
        minutes=None if seconds is None else round(seconds / 60, 1),
        seeds=[facts["seed"]],
        command=None if command is None else re.sub(r"^\S*train\.py", "python train.py", command),
        section=section,
        expected=None,
        in_readme=False,
        results=[errors_of(evaluation, run) for evaluation in evaluations],
    )
    write_json(file, asdict(record))
    return f"{file}: fill in what is null, describe the run in {EXPERIMENTS}#{section}, and run this script again"


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read what eval.py wrote about a checkpoint whose selection is known.

    Raises:
        ConfigError: if it cannot be read, is about another checkpoint than best_mae.pt and last.pt, or was not made
            with the settings of the training.
    """
    file = folder / METRICS_FILE
    try:
        metrics = json.loads(read_text(file))
        keys = (*FACTS, "checkpoint", "selected_on", "epoch", "settings", "mae", "rmse")
        evaluation = {key: metrics[key] for key in keys}
        checkpoint = Path(evaluation["checkpoint"]).name
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file}: is not a file that eval.py wrote ({error})") from error
    if checkpoint not in ("best_mae.pt", "last.pt"):
        raise ConfigError(f"{file}: is about {checkpoint}; only best_mae.pt and last.pt say what selected them")
    if evaluation["settings"]:
        raise ConfigError(
            f"{file}: was made with {evaluation['settings']}; a record is of whole splits, counted as in training"
        )
    return evaluation


def errors_of(evaluation: dict[str, Any], run: RunRecord) -> Errors:
    """The errors of an evaluation, rounded as they are quoted."""
    selected = Path(evaluation["checkpoint"]).name == "best_mae.pt"
    return Errors(
        selected_on=evaluation["selected_on"] if selected else NO_SELECTION,
        selection_images=run.images[1] if selected and run.images else None,
        epoch=evaluation["epoch"],
        mae=round(evaluation["mae"], 1),
        rmse=round(evaluation["rmse"], 1),
        mae_std=None,
        rmse_std=None,
    )


# ------------------------------------------------------------------------------------------ tables


def update(root: Path, *, check: bool) -> list[str]:
    """Write the tables from the records.

    Args:
        root: of the project.
        check: whether to only report, and change nothing.

    Returns:
        What is wrong with the records, and with ``check`` which tables are out of date.

    Raises:
        ConfigError: if a record or a page cannot be read.
    """
    records = read_records(root)
    experiments = read_text(root / EXPERIMENTS)
    problems = [problem for file, record in records.items() for problem in disagreements(file, record, experiments)]
    shown = [record for record in records.values() if record.in_readme]
    tables = {"README.md": readme_table(shown), EXPERIMENTS: experiments_table(list(records.values()))}
    for name, table in tables.items():
        text = read_text(root / name)
        if len(BLOCK.findall(text)) != 1:
            raise ConfigError(
                f"{root / name}: must have one block between <!-- results: begin --> and <!-- results: end -->"
            )
        new = BLOCK.sub(lambda _, lines=table: "".join(f"{line}\n" for line in ["", *lines, ""]), text)  # type: ignore[misc]
        if new != text and check:
            problems.append(f"{name}: its table of results is out of date; run python scripts/results_table.py")
        elif new != text:
            write_text(root / name, new)
    return problems


def disagreements(file: str, record: Record, experiments: str) -> list[str]:
    """What a record states that the section of EXPERIMENTS.md does not: errors and commit."""
    section = find_section(experiments, record.section)
    if section is None:
        return [f"{file}: {EXPERIMENTS} has no section #{record.section}"]
    problems = []
    for errors in record.results:
        numbers = [errors.mae, errors.rmse, errors.mae_std, errors.rmse_std]
        stated = [rf"(?<![\d.]){re.escape(str(number))}(?![\d.]*\d)" for number in numbers if number is not None]
        if not any(all(re.search(number, line) for number in stated) for line in section.splitlines()):
            problems.append(f"{file}: no line of {EXPERIMENTS}#{record.section} has {describe(errors)}")
    if record.commit is not None and record.commit not in section:
        problems.append(f"{file}: commit {record.commit} is not in {EXPERIMENTS}#{record.section}")
    return problems


def find_section(text: str, anchor: str) -> str | None:
    """The text of a section of level 2 by its anchor, as GitHub and MkDocs form it; None if there is none."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        if re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) == anchor:
            return section
    return None


def readme_table(records: Sequence[Record]) -> list[str]:
    """The table of README.md."""
    rows = [
        [
            counted(r),
            f"{network(r)}, {parameters(r)} parameters",
            f"{plain(r.trained_on)}; {training(r)}",
            *by_selection(r),
            f"[section]({EXPERIMENTS}#{r.section})",
        ]
        for r in records
    ]
    return table([["counted", "network", "training", *SELECTIONS, "command and details"], *rows])


def experiments_table(records: Sequence[Record]) -> list[str]:
    """The table of EXPERIMENTS.md."""
    headings = ["counted", "network", "parameters", "trained on", "training", *SELECTIONS, "seeds", "commit"]
    rows = [
        [
            *(counted(r), network(r), parameters(r), plain(r.trained_on), training(r), *by_selection(r)),
            ", ".join(map(str, r.seeds)),
            r.commit or UNKNOWN,
            f"[section](#{r.section})",
        ]
        for r in records
    ]
    return table([[*headings, "command and details"], *rows])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without padding, so that a changed cell changes one line."""
    headings, *body = rows
    return [f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *body]]


def by_selection(record: Record) -> list[str]:
    """MAE / RMSE for each of :data:`SELECTIONS`; a dash for what was not measured."""
    cells: list[list[str]] = [[], [], []]
    for errors in record.results:
        if errors.selected_on == NO_SELECTION:
            cells[2].append(describe(errors))
        elif errors.selected_on == record.split:
            cells[0].append(describe(errors))
        else:
            number = "" if errors.selection_images is None else f"{errors.selection_images} "
            cells[1].append(f"{describe(errors)} ({number}{SPLITS[errors.selected_on]})")
    return ["; ".join(cell) or "-" for cell in cells]


def describe(errors: Errors) -> str:
    """MAE / RMSE, with the standard deviations of several seeds."""
    pairs = ((errors.mae, errors.mae_std), (errors.rmse, errors.rmse_std))
    return " / ".join(f"{mean}" if std is None else f"{mean} +- {std}" for mean, std in pairs)


def counted(record: Record) -> str:
    """The images that were counted."""
    return plain(f"{DATASETS[record.dataset].title}, {record.images} {SPLITS[record.split]}")


def network(record: Record) -> str:
    """The network, and the paper's result with it."""
    if record.expected is None:
        return plain(record.network)
    published = [f"{error}" for error in (record.expected.mae, record.expected.rmse) if error is not None]
    return plain(f"{record.network} (paper: {' / '.join(published)})")


def parameters(record: Record) -> str:
    """Number of parameters, in millions."""
    return UNKNOWN if record.parameters is None else f"{record.parameters / 1e6:.2f} M"


def training(record: Record) -> str:
    """Length, duration and hardware of the training."""
    number = "" if record.crops is None else f"{record.crops:,} "
    duration = None if record.minutes is None else f"{record.minutes:g} minutes"
    cost = ", ".join(text for text in (duration, record.hardware) if text)
    length = f"{record.epochs} epochs, {number}crops of {record.crop_size} px"
    return plain(f"{length}; {cost}" if cost else length)


if __name__ == "__main__":
    main()
