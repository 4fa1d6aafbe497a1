"""Write the tables of results in README.md and EXPERIMENTS.md from the records in results/.

  python scripts/results_table.py                   rewrite both tables
  python scripts/results_table.py --check           change nothing; exit with 1 if something is wrong or out of date
  python scripts/results_table.py --add checkpoints/sha/mine/seed1/eval/sha_test --name mine --network MobileNetV2 \\
      --section 2026-12-01-my-run                   make a record from evaluations that eval.py wrote

One record describes one training and the errors of its checkpoints; class Record explains its fields, and what is not
known is null. The section of EXPERIMENTS.md that a record names must state its errors with what selected the
checkpoint, crops, minutes, and commit; docs/tables.md says in which words. Exit status: 0, 1 if a check failed, 2 if
nothing could be read or written.
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
from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetConfig,
    ExpectedConfig,
    MixedConfig,
    SupervisedConfig,
    TrainConfig,
)
from headcount.data.catalogue import DATASETS
from headcount.files import read_text, write_json, write_text
from headcount.report.markdown import plain
from headcount.runs import CALIBRATED, RunRecord, epoch_file, read_run

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
STATED = {
    NO_SELECTION: r"\blast epoch\b",
    "test": r"\bselected on the test split\b|\bthe test split (?:also )?selects\b",
    "val": r"\bselected on (?:the )?(?:\d+ )?validation\b",
    "holdout": r"\bselected on (?:the )?(?:\d+ )?held-out\b",
}
"""How EXPERIMENTS.md says what selected a checkpoint."""
COMMIT = re.compile(r"[0-9a-f]{7,40}(\+changes)?")
COMMIT_DIGITS = 7
"""Number of digits of a commit that are compared."""


@dataclass
class Errors:
    """The errors of one checkpoint, in heads per image; of several seeds, their means."""

    selected_on: str = MISSING
    """The split whose MAE selected the checkpoint, or ``nothing``."""
    selection_datasets: list[str] = MISSING
    """Names of the datasets of that split, several of a mixed one; empty for ``nothing``."""
    selection_images: int | None = MISSING
    """Number of images in that split; null for ``nothing``, and if not recorded."""
    epoch: int | None = MISSING
    """Epoch of the checkpoint; null for several seeds, and if not recorded."""
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
    """Commit of the training; of a resumed one, all of them, such as ``f03af67, 88b033f``."""
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
        if options.add and options.check:
            raise ConfigError("--add and --check: choose one")
        if not options.add and (options.name or options.network or options.section):
            raise ConfigError("--name, --network and --section are those of a new record: they need --add")
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
    check_record(file, record)
    return record


def check_record(file: Path, record: Record) -> None:
    """Refuse a record that contradicts itself.

    Raises:
        ConfigError: if it does.
    """
    if record.dataset not in DATASETS or record.split not in SPLITS:
        known = f"datasets are {', '.join(DATASETS)}, splits {', '.join(SPLITS)}"
        raise ConfigError(f"{file}: dataset {record.dataset}, split {record.split}: not known; {known}")
    if not record.results or not record.seeds:
        raise ConfigError(f"{file}: results and seeds must not be empty")
    if record.commit is not None and not all(map(COMMIT.fullmatch, record.commit.split(", "))):
        raise ConfigError(
            f"{file}: commit {record.commit!r}: must be at least {COMMIT_DIGITS} hexadecimal digits, or null"
        )
    for errors in record.results:
        problems = errors_problems(errors, record)
        if problems:
            raise ConfigError(f"{file}: {describe(errors)}: {'; '.join(problems)}")


def errors_problems(errors: Errors, record: Record) -> list[str]:
    """What the errors of a checkpoint contradict: each other, or their record."""
    several, selected = len(record.seeds) > 1, errors.selected_on != NO_SELECTION
    problems = []
    if errors.selected_on not in STATED:
        problems.append(f"selected_on {errors.selected_on} is none of {', '.join(SPLITS)}, {NO_SELECTION}")
    if any((std is not None) != several for std in (errors.mae_std, errors.rmse_std)):
        problems.append("mae_std and rmse_std must be null for one seed, and numbers for several")
    if errors.rmse < errors.mae:
        problems.append("the RMSE cannot be below the MAE")
    if bool(errors.selection_datasets) != selected or (errors.selection_images is not None and not selected):
        problems.append(f"selection_datasets and selection_images must be empty and null only for {NO_SELECTION}")
    alone = selects_itself(errors, record) and len(errors.selection_datasets) == 1
    if alone and errors.selection_images not in (None, record.images):
        problems.append(f"selection_images is {errors.selection_images}, but these images are {record.images}")
    if errors.epoch is not None and (several or not 1 <= errors.epoch <= record.epochs):
        problems.append(f"epoch {errors.epoch}: must be one of the {record.epochs}, and null for several seeds")
    if not selected and not several and errors.epoch != record.epochs:
        problems.append(f"epoch {errors.epoch}: selected on {NO_SELECTION} is only the last epoch, {record.epochs}")
    return problems


def selects_itself(errors: Errors, record: Record) -> bool:
    """Whether images that were evaluated are among those that selected the checkpoint."""
    return errors.selected_on == record.split and record.dataset in errors.selection_datasets


def add(root: Path, folders: Sequence[Path], *, name: str | None, network: str | None, section: str | None) -> str:
    """Write a record from evaluations of one run.

    Args:
        root: of the project.
        folders: that eval.py wrote into the run's folder, for its best checkpoint or that of the last epoch.
        name, network, section: of the record.

    Returns:
        What to do next.

    Raises:
        ConfigError: if an argument is missing, a file cannot be read, the record exists, or would not be accepted.
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
    commits = ", ".join(run.commits) or facts["commit"]
    seconds, command = run.provenance.get("seconds"), run.provenance.get("command")
    record = Record(
        **{key: facts[key] for key in ("dataset", "split", "images", "mode")},
        trained_on=training_images(run),
        network=network,
        parameters=None,
        epochs=run.epochs,
        crop_size=run.config.augment.crop_size,
        crops=training_crops(run),
        hardware=", ".join(run.provenance[key] for key in ("device", "precision") if key in run.provenance) or None,
        minutes=None if seconds is None else round(seconds / 60, 1),
        seeds=[facts["seed"]],
        commit=None if "unknown" in commits else commits,
        command=None if command is None else re.sub(r"^\S*train\.py", "python train.py", command),
        section=section,
        expected=None,
        in_readme=False,
        results=[errors_of(evaluation, run) for evaluation in evaluations],
    )
    check_record(file, record)
    write_json(file, asdict(record))
    return f"{file}: fill in what is null, describe the run in {EXPERIMENTS}#{section}, and run this script again"


def parts(config: TrainConfig) -> dict[str, DatasetConfig]:
    """The datasets that a run was trained on, by name."""
    dataset = config.dataset
    return dataset.datasets if isinstance(dataset, MixedConfig) else {dataset.name: dataset}


def training_images(run: RunRecord) -> str:
    """The training images, for readers: all parts of a mixed dataset."""
    names = [
        name if isinstance(part, CustomConfig) or part.name not in DATASETS else DATASETS[part.name].title
        for name, part in parts(run.config).items()
    ]
    return f"{' and '.join(names)}{f' ({run.images[0]} images)' if run.images else ''}"


def training_crops(run: RunRecord) -> int | None:
    """Number of training crops of all epochs; None where the files of the run do not say it."""
    from headcount.data.loading import step_images  # imports torch, which only this needs

    config, dataset = run.config, run.config.dataset
    drawn = isinstance(dataset, MixedConfig) and dataset.weights is not None
    if run.images is None or drawn or not isinstance(config.method, SupervisedConfig):
        return None
    images = run.images[0]
    step = step_images(images, config.batch_size, config.runtime.processes * config.accumulate)
    return run.epochs * (images // step) * step


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Read what eval.py wrote about a checkpoint.

    Raises:
        ConfigError: if it cannot be read, or was not made with the settings of the training.
    """
    file = folder / METRICS_FILE
    try:
        metrics = json.loads(read_text(file))
        keys = (*FACTS, "checkpoint", "selected_on", "epoch", "settings", "mae", "rmse")
        evaluation = {"file": file, **{key: metrics[key] for key in keys}}
        path = Path(evaluation["checkpoint"])
        evaluation["checkpoint"] = f"{path.stem.removesuffix(CALIBRATED)}{path.suffix}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file}: is not a file that eval.py wrote ({error})") from error
    if evaluation["settings"]:
        raise ConfigError(
            f"{file}: was made with {evaluation['settings']}; a record is of whole splits, counted as in training"
        )
    return evaluation


def errors_of(evaluation: dict[str, Any], run: RunRecord) -> Errors:
    """The errors of an evaluation, rounded as they are quoted.

    Raises:
        ConfigError: if it is of another checkpoint than the best one and the averaged weights of the last epoch.
    """
    selected = evaluation["checkpoint"] == "best_mae.pt"
    if not selected:
        refuse_unless_last(evaluation, run)
    names = [part.name for part in parts(run.config).values()]
    elsewhere = isinstance(run.config.dataset, CustomConfig)  # then trained_on names the folder if it is another one
    return Errors(
        selected_on=evaluation["selected_on"] if selected else NO_SELECTION,
        selection_datasets=([evaluation["trained_on"]] if elsewhere else list(dict.fromkeys(names)))
        if selected
        else [],
        selection_images=run.images[1] if selected and run.images else None,
        epoch=evaluation["epoch"],
        mae=round(evaluation["mae"], 1),
        rmse=round(evaluation["rmse"], 1),
        mae_std=None,
        rmse_std=None,
    )


def refuse_unless_last(evaluation: dict[str, Any], run: RunRecord) -> None:
    """Refuse an evaluation that is not of the evaluated weights of a last epoch that nothing selected.

    Raises:
        ConfigError: if it is not.
    """
    file, checkpoint, config = evaluation["file"], evaluation["checkpoint"], run.config
    last = epoch_file(config.epochs)
    if run.epochs < config.epochs or "stopped_early" in run.provenance:
        raise ConfigError(
            f"{file}: the run ended after epoch {run.epochs} of {config.epochs}, so that its last epoch was not fixed "
            "before; record only its best_mae.pt"
        )
    if checkpoint == "last.pt" and config.optim.ema_decay is not None:
        raise ConfigError(
            f"{file}: last.pt stores the weights in training; errors are those of their average "
            f"(optim.ema_decay={config.optim.ema_decay:g}): evaluate {last}, which train.py writes with keep=1 or more"
        )
    if checkpoint not in ("last.pt", last):
        raise ConfigError(
            f"{file}: is about {checkpoint}; a record is of best_mae.pt, which a split selected, or of {last}, the "
            "last epoch"
        )
    if evaluation["epoch"] != config.epochs:
        raise ConfigError(
            f"{file}: is about epoch {evaluation['epoch']}, not the last, {config.epochs}; evaluate it again"
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
    """What a record states that the section of EXPERIMENTS.md does not: errors, crops, minutes and commit."""
    section, place = find_section(experiments, record.section), f"{EXPERIMENTS}#{record.section}"
    if section is None:
        return [f"{file}: {EXPERIMENTS} has no section #{record.section}"]
    problems = []
    for errors in record.results:
        found = statements(errors, section)
        if not found:
            problems.append(f"{file}: no line of {place} has {describe(errors)}")
        elif not any(agrees(one, errors, record, section) for one in found):
            number = "" if errors.selection_images is None else f", {errors.selection_images} images"
            epoch = "" if errors.epoch is None else f", epoch {errors.epoch}"
            wanted = f"selected on {errors.selected_on}{number}{epoch}, {record.epochs} epochs"
            problems.append(f"{file}: {place} does not say of {describe(errors)}: {wanted}")
    body = re.sub(r"\[[^]]*\]\(", "(", section.partition("\n")[2])  # headings and links may round
    for amount, name in ((record.crops, "crops"), (record.minutes, "minutes")):
        text = "" if amount is None else f"{amount:,}".removesuffix(".0")
        if text and not re.search(rf"(?<![\d.,]){re.escape(text)}(\.0)?(\s+{name}\b| \|)", body):
            problems.append(f"{file}: {text} {name} are not in {place}")
    for commit in record.commit.split(", ") if record.commit else []:
        if not re.search(rf"\b{commit[:COMMIT_DIGITS]}", section):
            problems.append(f"{file}: commit {commit} is not in {place}")
    return problems


@dataclass(frozen=True)
class Statement:
    """Where a section states a pair of errors."""

    line: str
    heading: str
    """Of the column; empty outside a table."""
    cells: dict[str, str]
    """The cells of the line by the headings of their columns."""
    following: str
    """The rest of the line."""


def statements(errors: Errors, section: str) -> list[Statement]:
    """Where a section states MAE and RMSE, in this order: ``MAE / RMSE``, neighboring cells, or ``MAE (RMSE ...)``."""
    pairs = ((errors.mae, errors.mae_std), (errors.rmse, errors.rmse_std))
    mae, rmse = (re.escape(f"{mean}" if std is None else f"{mean} +- {std}") + r"(?![\d.]*\d)" for mean, std in pairs)
    pattern = re.compile(rf"(?<![\d.]){mae}\**(?: / | \| | \(RMSE )\**{rmse}\**")
    found: list[Statement] = []
    headings: list[str] = []
    for line in map(str.strip, section.splitlines()):
        cells = [cell.strip() for cell in line.split("|")]
        headings = [] if not line.startswith("|") else headings or cells
        for match in pattern.finditer(line):
            column = line[: match.start()].count("|")
            heading = headings[column] if column < len(headings) else ""
            found.append(Statement(line, heading, dict(zip(headings, cells, strict=False)), line[match.end() :]))
    return found


def agrees(stated: Statement, errors: Errors, record: Record, section: str) -> bool:
    """Whether a statement has the selection, the epoch and the length of the training of a record.

    The heading of the column decides what selected; if it does not say it, the line; otherwise, the whole section.
    """
    prose = " ".join(section.split())
    deciding = next((text for text in (stated.heading, stated.line, prose) if selections(text)), "")
    if errors.selected_on not in selections(deciding):
        return False
    lengths = r"\b(\d+) epochs\b(?!=)|\bepochs=(\d+)"
    found = re.findall(lengths, stated.line) or re.findall(lengths, prose)
    if str(record.epochs) not in {number for numbers in found for number in numbers}:
        return False
    minutes = stated.cells.get("minutes", "").strip("*")
    if minutes and record.minutes is not None and minutes.removesuffix(".0") != f"{record.minutes:g}":
        return False
    if errors.selected_on in ("val", "holdout") and errors.selection_images is not None:
        numbers = re.findall(r"\bselected on (?:the )?(\d+) ", deciding) or re.findall(
            r"\b(\d+) (?:held-out|validation)\b", prose
        )
        if str(errors.selection_images) not in numbers:
            return False
    if errors.epoch is None or (errors.epoch == record.epochs and NO_SELECTION in selections(deciding)):
        return True
    epochs = re.findall(r"^ \((\d+)\)", stated.following) or re.findall(r"\bepoch (\d+)", stated.line)
    return str(errors.epoch) in (epochs or re.findall(r"\bepoch (\d+)", prose))


def selections(text: str) -> set[str]:
    """What a text names as having selected a checkpoint."""
    return {selected_on for selected_on, words in STATED.items() if re.search(words, text, re.IGNORECASE)}


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
            evaluated_on(r),
            f"{network(r)}, {parameters(r)} parameters",
            f"{plain(r.trained_on)}; {length(r)}",
            *by_selection(r),
            f"[section]({EXPERIMENTS}#{r.section})",
        ]
        for r in records
    ]
    return table([["evaluated on", "network", "training", *SELECTIONS, "command and details"], *rows])


def experiments_table(records: Sequence[Record]) -> list[str]:
    """The table of EXPERIMENTS.md."""
    headings = ["evaluated on", "network", "parameters", "trained on", "training", *SELECTIONS, "seeds", "commit"]
    rows = [
        [
            *(evaluated_on(r), network(r), parameters(r), plain(r.trained_on), training(r), *by_selection(r)),
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
        elif selects_itself(errors, record):
            among = f" (among {selection(errors)})" if len(errors.selection_datasets) > 1 else ""
            cells[0].append(f"{describe(errors)}{among}")
        else:
            names = [DATASETS[name].title if name in DATASETS else name for name in errors.selection_datasets]
            place = "" if record.dataset in errors.selection_datasets else f" of {' and '.join(names)}"
            cells[1].append(f"{describe(errors)} ({selection(errors)}{plain(place)})")
    return ["; ".join(cell) or "-" for cell in cells]


def selection(errors: Errors) -> str:
    """The images that selected a checkpoint."""
    number = "" if errors.selection_images is None else f"{errors.selection_images} "
    return f"{number}{SPLITS[errors.selected_on]}"


def describe(errors: Errors) -> str:
    """MAE / RMSE, with the standard deviations of several seeds."""
    pairs = ((errors.mae, errors.mae_std), (errors.rmse, errors.rmse_std))
    return " / ".join(f"{mean}" if std is None else f"{mean} +- {std}" for mean, std in pairs)


def evaluated_on(record: Record) -> str:
    """The images that were evaluated."""
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
    duration = None if record.minutes is None else f"{record.minutes:g} minute{'' if record.minutes == 1 else 's'}"
    cost = ", ".join(text for text in (duration, record.hardware) if text)
    return f"{length(record)}; {plain(cost)}" if cost else length(record)


def length(record: Record) -> str:
    """Length of the training."""
    number = "" if record.crops is None else f"{record.crops:,} "
    return f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}, {number}crops of {record.crop_size} px"


if __name__ == "__main__":
    main()
