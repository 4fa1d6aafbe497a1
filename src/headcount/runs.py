"""Read a run back from its folder: its settings, one record per epoch, and its provenance.

Reads text files only; needs neither torch nor the checkpoint.
"""

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.config import (
    PLACE,
    CustomConfig,
    MixedConfig,
    TrainConfig,
    as_of_one_dataset,
    counting_mode,
    from_plain,
    to_plain,
)
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import read_text

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
PROVENANCE_FILE = "run.json"
COUNTS_FILE = "counts.csv"
EVALUATION_FILE = "metrics.json"
"""Errors and facts of an evaluation."""
CALIBRATED = "_calibrated"
"""Ending of the name of a checkpoint's calibrated copy, before its suffix."""
MAX_EVALUATION_NAME = 60
"""Longest readable part of the name of an evaluation's folder."""
LAST_EVALUATIONS = 5
"""Number of evaluations at the end of a run that are averaged: the error without selection by a split."""

_PROVENANCE_HINT = "put it back, or delete it: it holds only the commits and images of the run"
# Larger files were not written by a run: bytes, and levels of nested settings.
_MAX_CONFIG_BYTES = 200_000
_MAX_DEPTH = 20
_MAX_INTEGER = 2**63
# Settings that are not part of a recipe.
_PLACE = (*PLACE, "expected")
# Values that earlier versions recorded under another name: old -> new.
_RENAMED = {f"{key}_spread": f"{key}_std" for key in ("train/predicted", "eval/predicted", "eval/true")}
# Settings that name files or folders.
_FILES = (
    *("model.weights", "init_from"),
    *(f"dataset.{key}" for key in ("train", "val", "test", "points", "split_file", "mask")),
)


@dataclass(frozen=True)
class EvaluationFacts:
    """What was evaluated and how; written to metrics.json beside the errors."""

    checkpoint: str
    """File of the checkpoint, as given on the command line."""
    dataset: str
    split: str
    trained_on: str
    """Name of the training dataset; with its folder if only that distinguishes it from ``dataset``."""
    images: int
    """Number of images in the split."""
    mode: str
    """How images were counted, such as ``whole image``."""
    epoch: int
    """Epoch of the checkpoint."""
    selected_on: str
    """Split that selected the checkpoint."""
    scale: str
    """The ``scale`` setting of the training."""
    seed: int
    """Of the training."""
    commit: str
    """Commit of the training."""
    block_size: int
    """Side of a block, in pixels."""
    pictures: int
    """Number of images to draw, largest absolute errors first; 0 draws no pictures at all."""
    weights: str = ""
    """Digest of the evaluated weights (``checkpoint.weights_digest``); of an ensemble, of its first member."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings that differ from those of the plain evaluation (:func:`evaluation_folder`)."""


@dataclass
class RunRecord:
    """A run, read from its folder."""

    folder: Path
    config: TrainConfig
    metrics: list[dict[str, Any]]
    """One record per epoch, as in metrics.jsonl."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Commits, images, versions and hardware; empty for runs of versions that did not write run.json."""

    @property
    def commits(self) -> list[str]:
        """The commits that trained it; several if it was resumed."""
        first = [self.provenance["commit"]] if "commit" in self.provenance else []
        return [str(commit) for commit in self.provenance.get("commits", first)]

    @property
    def images(self) -> tuple[int, int] | None:
        """Number of training images and of images that select; None if not recorded."""
        images = self.provenance.get("images", {})
        return (images["train"], images["selection"]) if {"train", "selection"} <= images.keys() else None

    @property
    def digest(self) -> str | None:
        """Digest of the images and annotations it was trained and selected on; None if not recorded."""
        digest: str | None = self.provenance.get("images", {}).get("digest")
        return digest

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return self.metrics[-1]["epoch"] if self.metrics else 0

    @property
    def finished(self) -> bool:
        """Whether it was trained for all epochs of its settings, or stopped early by them."""
        if self.epochs >= self.config.epochs:
            return True
        best = self.best
        return best is not None and stops_early(self.config, epoch=self.epochs, best_epoch=best["epoch"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of the epochs that were evaluated."""
        return [r for r in self.metrics if math.isfinite(r.get("eval/mae", math.nan))]

    @property
    def best(self) -> dict[str, Any] | None:
        """The record with the lowest MAE on the split ``selection``; None if it was never evaluated."""
        return min(self.evaluations, key=lambda r: r["eval/mae"], default=None)

    @property
    def selection(self) -> str:
        """Name of the split that is evaluated during training and selects the best epoch."""
        return self.evaluations[-1]["eval/split"] if self.evaluations else "nothing"

    @property
    def last_evaluations(self) -> list[dict[str, Any]]:
        """The records of the last evaluations, at most :data:`LAST_EVALUATIONS`."""
        return self.evaluations[-LAST_EVALUATIONS:]

    def late(self, key: str) -> float:
        """Mean of ``eval/<key>`` over the last evaluations; NaN if there are none.

        Args:
            key: ``mae`` or ``rmse``.
        """
        values = [r[f"eval/{key}"] for r in self.last_evaluations]
        return statistics.mean(values) if values else math.nan


def stops_early(config: TrainConfig, *, epoch: int, best_epoch: int) -> bool:
    """Whether a run ends after this epoch, because its last evaluations were no better than an earlier one.

    Args:
        epoch: number of finished epochs.
        best_epoch: epoch of the best evaluation among them.
    """
    every = config.eval_every_epochs
    return config.early_stopping is not None and epoch // every - best_epoch // every >= config.early_stopping


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of a run, one per epoch.

    Args:
        folder: of the run.

    Returns:
        The records in the order of the file, with the present names of values that were renamed; empty without a file.
        An incomplete last line is left out.

    Raises:
        CheckpointError: if the file cannot be read, or any other line is not a record of an epoch.
    """
    file = folder / METRICS_FILE
    try:
        lines = read_text(file).splitlines() if file.exists() else []
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise CheckpointError(f"{file}: line {number} cannot be read ({error}); correct or remove it") from error
        if not _is_record(record):
            raise CheckpointError(f"{file}: line {number} is not a record of an epoch; correct or remove it")
        records.append({_RENAMED.get(key, key): value for key, value in record.items()})
    return records


def _is_record(record: Any) -> bool:
    """Whether a line holds what is read from it: numbers, except for the name of the split."""
    if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
        return False
    values = [value for key, value in record.items() if key != "eval/split"]
    if not all(isinstance(value, (int, float, type(None))) for value in values):
        return False
    if any(isinstance(value, int) and abs(value) > _MAX_INTEGER for value in values):
        return False
    if "eval/mae" not in record:
        return True
    split = record.get("eval/split")
    return (
        isinstance(split, str)
        and split.isidentifier()
        and all(isinstance(record.get(f"eval/{key}"), (int, float)) for key in ("mae", "rmse"))
    )


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read how a run was made: commits, images, versions and hardware.

    Args:
        folder: of the run.

    Returns:
        The content of run.json; empty without that file.

    Raises:
        CheckpointError: if the file exists and cannot be read.
    """
    file = folder / PROVENANCE_FILE
    try:
        provenance = json.loads(read_text(file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); {_PROVENANCE_HINT}") from error
    if not _is_provenance(provenance):
        raise CheckpointError(f"{file} does not describe how a run was made; {_PROVENANCE_HINT}")
    return dict(provenance)


def _is_provenance(value: Any) -> bool:
    """Whether the content of run.json holds what is read from it."""
    if not isinstance(value, dict):
        return False
    commits, images = value.get("commits", []), value.get("images", {})
    return (
        isinstance(commits, list)
        and all(isinstance(commit, str) for commit in commits)
        and isinstance(images, dict)
        and all(isinstance(images.get(key, 0), int) for key in ("train", "selection"))
        and isinstance(images.get("digest", ""), str)
    )


def evaluation_folder(
    run: Path,
    dataset: str,
    split: str,
    *,
    checkpoint: str = "best_mae.pt",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Default folder of the evaluation of a run's checkpoint.

    The plain evaluation, of the best checkpoint on all images of a split as in training, is in ``<dataset>_<split>``.
    Everything else that an evaluation depends on is added to that name, so that no evaluation replaces another.

    Args:
        run: folder of the run.
        dataset, split: what is evaluated.
        checkpoint: name of the checkpoint's file.
        settings: the settings that differ from those of the plain evaluation, by their names.
    """
    settings = settings or {}
    stem = checkpoint.removesuffix(".pt")
    parts = [dataset, split, *([] if checkpoint == "best_mae.pt" else [stem])]
    parts += [f"{key.rpartition('.')[2]}-{Path(str(value)).name}" for key, value in settings.items()]
    name = "_".join(re.sub(r"[^A-Za-z0-9._+-]+", "-", part) for part in parts)
    if settings or len(name) > MAX_EVALUATION_NAME or "_".join(parts) != name:
        everything = json.dumps([dataset, split, checkpoint, dict(settings)], sort_keys=True, default=str)
        digest = hashlib.sha256(everything.encode(errors="surrogatepass")).hexdigest()[:8]
        name = f"{name[:MAX_EVALUATION_NAME]}_{digest}"
    return run / "eval" / name


def epoch_file(epoch: int) -> str:
    """Name of the checkpoint of the evaluation after an epoch, of which runs keep as many as their settings say."""
    return f"epoch_{epoch:04d}.pt"


def read_run(folder: Path) -> RunRecord:
    """Read a run.

    Args:
        folder: of the run.

    Raises:
        CheckpointError: if the folder holds no run, or its settings or records cannot be read.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no run: there is no {CONFIG_FILE}")
    try:
        config = from_plain(_read_settings(file))
    except HeadcountError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (
        *(OmegaConfBaseException, yaml.YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError),
        *(RecursionError, ArithmeticError),
    ) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    return RunRecord(folder, config, read_metrics(folder), read_provenance(folder))


def _read_settings(file: Path) -> dict[str, Any]:
    """Read config.yaml, which may come from anywhere.

    Raises:
        OSError, YAMLError, ValueError: if it cannot be read, or is not such a file as a run writes. A few lines of
            references to each other stand for more settings than any memory holds.
    """
    text = read_text(file, max_bytes=_MAX_CONFIG_BYTES)
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or (isinstance(event, yaml.ScalarEvent) and "${" in event.value):
            raise ValueError(f"line {line} refers to another setting; a run writes values only")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"line {line} is more than {_MAX_DEPTH} levels deep")
    plain: Any = OmegaConf.to_container(OmegaConf.create(text))
    if not isinstance(plain, dict):
        raise TypeError("it does not hold settings")
    for key, value in flatten(plain).items():
        if isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError(f"{key} has more digits than any setting")
    return plain


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the run folders at or below ``root``, sorted by name."""
    yield from sorted(file.parent for file in root.rglob(CONFIG_FILE) if (file.parent / METRICS_FILE).is_file())


def recipe(config: TrainConfig) -> dict[str, Any]:
    """Collect every setting that changes what is learned or how it is evaluated, the seed included.

    Files are compared by name only, since the same file may be in another folder on another machine; so are the
    published datasets. Custom datasets are compared by their folders.

    Returns:
        Values by the full name of the setting, such as ``optim.lr``.
    """
    plain = to_plain(config)
    plain["kinds"].pop("eval")
    plain["eval"] = to_plain_mode(config)
    flat = flatten(plain)
    datasets = {"dataset.": config.dataset}
    if isinstance(config.dataset, MixedConfig):
        datasets |= {f"dataset.datasets.{name}.": part for name, part in config.dataset.datasets.items()}
    custom = tuple(path for path, dataset in datasets.items() if isinstance(dataset, CustomConfig))
    kept = {
        key: value for key, value in flat.items() if not _is_place(key) or key in {f"{path}root" for path in custom}
    }
    named = {key: value for key, value in kept.items() if value is not None and not key.startswith(custom)}
    return kept | {key: _name_of_file(value) for key, value in named.items() if as_of_one_dataset(key) in _FILES}


def _is_place(key: str) -> bool:
    """Whether a setting says where and how a run is executed, not what is learned."""
    name = as_of_one_dataset(key)
    return any(name == place or name.startswith(f"{place}.") for place in _PLACE)


def to_plain_mode(config: TrainConfig) -> dict[str, Any]:
    """How images are counted, with explicit sizes, whether they were chosen or derived from the model."""
    mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)
    border = getattr(mode, "border", None)
    return {
        "mode": type(mode).__name__.removesuffix("Config"),
        "window": getattr(mode, "window", None),
        "stride": getattr(mode, "stride", None),
        "border": None if border is None else border.name,
    }


def differences(
    one: dict[str, Any], other: dict[str, Any], *, ignore: tuple[str, ...] = ()
) -> dict[str, tuple[Any, Any]]:
    """Compare two recipes.

    Args:
        one, other: values by full name, as :func:`recipe` returns them.
        ignore: names of settings that may differ.

    Returns:
        The two values of each setting that differs; None for a recipe without that setting.
    """
    keys = sorted((one.keys() | other.keys()) - set(ignore))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def flatten(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings to their full names, such as ``optim.lr``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _name_of_file(value: str) -> str:
    """A path without its folders; a value without ``/`` and ``.``, such as ``none``, is not a file and stays."""
    return "file " + re.split(r"[/\\]", value)[-1] if re.search(r"[/\\.]", value) else value
