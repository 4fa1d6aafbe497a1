"""The checkpoints that a run keeps with ``keep=all``, evaluated on a split that selected none of them in training.

A run can be judged by its last checkpoint; by the one with the lowest error on the images that select; or, as most
publications do, by the one with the lowest error on the judging images themselves, which thereby select it.
"""

import csv
import json
import math
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from headcount.commands import as_typed
from headcount.config import ConfigError, MixedConfig, TrainConfig
from headcount.data.catalogue import selection_split
from headcount.errors import CheckpointError
from headcount.files import quoted, read_csv, read_text
from headcount.runs import CALIBRATED, COUNTS_FILE, EVALUATION_FILE, RunRecord, epoch_file, evaluation_folder


class Selection(Enum):
    """How the checkpoint of a run is chosen."""

    last = "the last epoch"
    held_out = "selected on held-out images"
    judging = "best on the judging images"


@dataclass(frozen=True)
class JudgedCheckpoint:
    """A checkpoint of a run, evaluated on the judging images."""

    folder: Path
    """Of the evaluation."""
    errors: dict[str, float]
    """Absolute error of each image by name, in heads."""
    intervals: dict[str, Any]
    """How good its intervals were, as in metrics.json."""
    images_digest: str | None
    """Digest of the names and true counts of the images; None if not recorded."""
    weights: str | None
    """Digest of its weights; None if not recorded."""

    @property
    def mae(self) -> float:
        """Mean absolute error, in heads per image."""
        return statistics.mean(self.errors.values())

    @property
    def rmse(self) -> float:
        """Root mean squared error, in heads per image."""
        return math.sqrt(statistics.mean(error**2 for error in self.errors.values()))


@dataclass(frozen=True)
class JudgedRun:
    """The evaluations of a run on the judging images."""

    run: RunRecord
    checkpoints: dict[int, JudgedCheckpoint]
    """By epoch; without those that are not evaluated."""
    missing: dict[int, str]
    """Epoch -> why its checkpoint is not evaluated."""

    def chosen(self, selection: Selection) -> JudgedCheckpoint | None:
        """The checkpoint of a selection; None if it, or one that it is chosen among, is not evaluated."""
        best = self.run.best
        if best is None:
            return None
        if selection is Selection.judging:
            return None if self.missing else min(self.checkpoints.values(), key=lambda judged: judged.mae)
        record = self.run.evaluations[-1] if selection is Selection.last else best
        return self.checkpoints.get(record["epoch"])


# --------------------------------------------------------------------------------------- what can be judged


def check_judged(config: TrainConfig, split: str) -> None:
    """Check that a training leaves every choice of the table open to images other than those that judge.

    Args:
        config: of the training.
        split: that judges.

    Raises:
        ConfigError, DataError: if the split selects, the held-out images decide the last epoch, or not every
            evaluated checkpoint is kept.
    """
    parts = config.dataset.datasets.values() if isinstance(config.dataset, MixedConfig) else [config.dataset]
    if any(selection_split(part) == split for part in parts):
        raise ConfigError(
            f"dataset.holdout={config.dataset.holdout:g}: the {split} images would select the checkpoints that they "
            "judge; hold training images out with dataset.holdout=0.1"
        )
    if config.early_stopping is not None:
        raise ConfigError(
            f"early_stopping={config.early_stopping}: the images that select would decide which epoch is the last; "
            "leave it out"
        )
    if config.keep != "all":
        raise ConfigError(f"keep={config.keep}: the table judges every evaluated checkpoint; leave it out")


def why_not_judged(run: RunRecord, split: str) -> str | None:
    """Why a finished run cannot be judged on a split; None if it can."""
    if any(record["eval/split"] == split for record in run.evaluations):
        return f"was selected on the {split} images, which judge here"
    if run.epochs < run.config.epochs:
        return f"stopped early, after epoch {run.epochs} of {run.config.epochs}, as the images that select decided"
    gone = [record["epoch"] for record in run.evaluations if not _can_be_judged(run, record["epoch"], split)]
    if gone:
        epochs = ("epoch " if len(gone) == 1 else "epochs ") + ", ".join(map(str, gone))
        return (
            f"has no checkpoint of {epochs} left to evaluate (keep={run.config.keep}); train with keep=all, under "
            "another run_name= if this run stays"
        )
    return None


def _can_be_judged(run: RunRecord, epoch: int, split: str) -> bool:
    """Whether the checkpoint of an epoch, or an evaluation of it, exists."""
    names = checkpoint_names(run, epoch)
    files = [run.folder / name for name in names]
    return any(file.is_file() for file in (*files, *(f / EVALUATION_FILE for f in _folders(run, names, split))))


# ----------------------------------------------------------------------------------------------- reading


def judge_run(run: RunRecord, split: str) -> JudgedRun:
    """Read the evaluations of the kept checkpoints of a run on a split."""
    checkpoints, missing = {}, {}
    for record in run.evaluations:
        epoch = record["epoch"]
        try:
            checkpoints[epoch] = _read_checkpoint(run, epoch, split)
        except CheckpointError as error:
            missing[epoch] = str(error)
    return JudgedRun(run, checkpoints, missing)


def without_strangers(runs: Iterable[JudgedRun]) -> list[JudgedRun]:
    """Take the evaluations that are of other images than the first, or of the same weights as one before, for missing.

    Args:
        runs: all of a table, in its order.
    """
    known: dict[str, JudgedCheckpoint] = {}
    first: JudgedCheckpoint | None = None
    kept = []
    for judged in runs:
        checkpoints, missing = {}, dict(judged.missing)
        for epoch, one in judged.checkpoints.items():
            first = first or one
            same = one if one.weights is None else known.setdefault(one.weights, one)
            if not _of_same_images(one, first):
                missing[epoch] = f"{one.folder} is of other images than {first.folder}; evaluate both on the same"
            elif same is not one:
                missing[epoch] = f"{one.folder} is of another checkpoint: it has the weights of {same.folder}"
            else:
                checkpoints[epoch] = one
        kept.append(JudgedRun(judged.run, checkpoints, missing))
    return kept


def _of_same_images(one: JudgedCheckpoint, other: JudgedCheckpoint) -> bool:
    digests = {one.images_digest, other.images_digest} - {None}
    return one.errors.keys() == other.errors.keys() and len(digests) < 2


def checkpoint_names(run: RunRecord, epoch: int) -> list[str]:
    """Files of the checkpoint of an epoch: its calibrated copy first if it is the last, whose intervals are judged."""
    name = epoch_file(epoch)
    path = Path(name)
    return [f"{path.stem}{CALIBRATED}{path.suffix}", name] if epoch == run.evaluations[-1]["epoch"] else [name]


def _settings(run: RunRecord) -> dict[str, Any]:
    """Of the evaluations, as far as they differ from the usual ones."""
    limit = run.config.dataset.max_eval_images
    return {"max_images": limit} if limit else {}


def _folders(run: RunRecord, names: list[str], split: str) -> list[Path]:
    """Folders of the evaluations of checkpoints on a split."""
    dataset, settings = run.config.dataset.name, _settings(run)
    return [evaluation_folder(run.folder, dataset, split, checkpoint=name, settings=settings) for name in names]


def _read_checkpoint(run: RunRecord, epoch: int, split: str) -> JudgedCheckpoint:
    """Read the evaluation of the checkpoint of an epoch.

    Raises:
        CheckpointError: if it is missing, damaged, of some of the images, or of another checkpoint or split.
    """
    names = checkpoint_names(run, epoch)
    folders = _folders(run, names, split)
    folder = next((folder for folder in folders if (folder / EVALUATION_FILE).is_file()), None)
    if folder is None:
        raise CheckpointError(f"{folders[0]} is missing; {_commands(run, names, split)}")
    try:
        errors = {row["image"]: abs(float(row["error"])) for row in read_csv(folder / COUNTS_FILE)}
        facts = json.loads(read_text(folder / EVALUATION_FILE))
        found, wanted = [facts["epoch"], facts["seed"]], [epoch, run.config.seed]
        images, mae = int(facts["images"]), float(facts["mae"])
        commit, of_split = facts.get("commit"), facts.get("split", split)
        judged = JudgedCheckpoint(
            folder, errors, facts["intervals"] or {}, facts.get("images_digest"), facts.get("weights") or None
        )
    except (OSError, csv.Error, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error!r}") from error
    if not errors:
        raise CheckpointError(f"{folder / COUNTS_FILE} holds no images")
    if found != wanted:
        raise CheckpointError(f"{folder} is of another checkpoint: epoch and seed are {found}, not {wanted}")
    if commit is not None and run.commits and commit not in run.commits:
        raise CheckpointError(f"{folder} is of another checkpoint, trained at commit {commit}")
    if of_split != split:
        raise CheckpointError(f"{folder} is of the {of_split} images, not of the {split} images")
    if len(errors) != images:
        raise CheckpointError(f"{folder / COUNTS_FILE} holds {len(errors)} of the {images} images of {EVALUATION_FILE}")
    if not math.isclose(judged.mae, mae, rel_tol=1e-3, abs_tol=1e-3):
        raise CheckpointError(
            f"{folder / COUNTS_FILE} has MAE {judged.mae:.2f}, and {EVALUATION_FILE} {mae:.2f}: they are of two "
            "evaluations"
        )
    return judged


def _commands(run: RunRecord, names: list[str], split: str) -> str:
    """The commands that evaluate a checkpoint, after those that make the calibrated copy if there is none."""
    files = [run.folder / name for name in names]
    typed = [f"ckpt={quoted(files[0])}", f"split={split}"]
    arguments = shlex.join([*typed, *(f"{key}={value}" for key, value in _settings(run).items())])
    evaluated = f"{as_typed('python eval.py')} {arguments}"
    if files[0].exists() or len(files) == 1:
        return f"{evaluated} writes it"
    copied = shlex.join([f"ckpt={quoted(files[1])}", "--output", str(files[0])])
    return f"{as_typed('python scripts/calibrate.py')} {copied}, and then {evaluated}, write it"
