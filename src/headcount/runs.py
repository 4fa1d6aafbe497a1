"""What a run leaves in its folder, read back: settings, one record an epoch, how it was made.

Reads text alone; neither torch nor the checkpoint is needed.
"""

import json
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from headcount.config import PLACE, ConfigError, CustomConfig, TrainConfig, counting_mode, from_plain, to_plain

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
PROVENANCE = "run.json"
COUNTS = "counts.csv"
LAST_EVALUATIONS = 5
"""So many evaluations at the end of a run are averaged: what it gives without a split to select on."""

_MADE_HINT = "put it back, or delete it: it tells the run's commits and images, and nothing is lost but these"
# What is no part of a recipe.
_PLACE = (*PLACE, "runtime.devices", "expected")
# Settings that are files or folders.
_FILES = ("model.weights", *(f"dataset.{key}" for key in ("train", "val", "test", "points", "split_file")))


@dataclass
class RunRecord:
    """A run, from its folder."""

    folder: Path
    config: TrainConfig
    metrics: list[dict[str, Any]]
    """One an epoch, as in metrics.jsonl."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Commit, images, versions and hardware; empty for runs of before these were kept."""

    @property
    def commits(self) -> list[str]:
        """The commits it was trained at, more than one where it was resumed."""
        made = self.provenance
        return [str(commit) for commit in made.get("commits", [made["commit"]] if "commit" in made else [])]

    @property
    def images(self) -> tuple[int, int] | None:
        """Training images and images that select; None where that was not kept."""
        images = self.provenance.get("images", {})
        return (images["train"], images["selection"]) if {"train", "selection"} <= images.keys() else None

    @property
    def digest(self) -> str | None:
        """Tells the images it was trained and selected on from others; None where that was not kept."""
        found: str | None = self.provenance.get("images", {}).get("digest")
        return found

    @property
    def epochs(self) -> int:
        """Epochs finished."""
        return self.metrics[-1]["epoch"] if self.metrics else 0

    @property
    def finished(self) -> bool:
        """Whether every epoch of its settings was trained."""
        return self.epochs >= self.config.epochs

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The records of the epochs that were evaluated."""
        return [r for r in self.metrics if math.isfinite(r.get("eval/mae", math.nan))]

    @property
    def best(self) -> dict[str, Any] | None:
        """The evaluation with the least MAE, which the split of ``selection`` chose."""
        return min(self.evaluations, key=lambda r: r["eval/mae"], default=None)

    @property
    def selection(self) -> str:
        """Name of the split that was evaluated and selects."""
        return self.evaluations[-1]["eval/split"] if self.evaluations else "nothing"

    @property
    def last_evaluations(self) -> list[dict[str, Any]]:
        """The records of the last evaluations, :data:`LAST_EVALUATIONS` of them where there are so many."""
        return self.evaluations[-LAST_EVALUATIONS:]

    def late(self, key: str) -> float:
        """Mean of ``eval/<key>`` over the last evaluations; NaN without any."""
        values = [r[f"eval/{key}"] for r in self.last_evaluations]
        return statistics.mean(values) if values else math.nan


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, one an epoch; a last line that was cut short is left out.

    Raises:
        ConfigError: names any other line that is no record of an epoch.
    """
    file = folder / METRICS
    try:
        lines = file.read_text().splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ConfigError(f"{file}: line {number} cannot be read ({error}); mend it or take it out") from error
        if not _is_record(record):
            raise ConfigError(f"{file}: line {number} is no record of an epoch; mend it or take it out")
        records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Whether an epoch's line holds what is read of it: numbers, but for the name of the split."""
    if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
        return False
    if not all(isinstance(v, (int, float, type(None))) for key, v in record.items() if key != "eval/split"):
        return False
    if "eval/mae" not in record:
        return True
    return isinstance(record.get("eval/split"), str) and all(
        isinstance(record.get(f"eval/{key}"), (int, float)) for key in ("mae", "rmse")
    )


def read_provenance(folder: Path) -> dict[str, Any]:
    """How a run was made; empty where there is no such file.

    Raises:
        ConfigError: if it is there and cannot be read.
    """
    file = folder / PROVENANCE
    try:
        made = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); {_MADE_HINT}") from error
    if not _is_provenance(made):
        raise ConfigError(f"{file} does not tell how a run was made; {_MADE_HINT}")
    return dict(made)


def _is_provenance(made: Any) -> bool:
    """Whether it holds what is read of it."""
    if not isinstance(made, dict):
        return False
    commits, images = made.get("commits", []), made.get("images", {})
    return (
        isinstance(commits, list)
        and all(isinstance(commit, str) for commit in commits)
        and isinstance(images, dict)
        and all(isinstance(images.get(key, 0), int) for key in ("train", "selection"))
        and isinstance(images.get("digest", ""), str)
    )


def evaluation_folder(run: Path, dataset: str, split: str) -> Path:
    """Where the evaluation of a run's checkpoint on a split is written, unless another place is typed."""
    return run / "eval" / f"{dataset}_{split}"


def read_run(folder: Path) -> RunRecord:
    """The run in a folder.

    Raises:
        ConfigError: if there is none, or its settings or records cannot be read.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ConfigError(f"{folder} holds no run: there is no {CONFIG}")
    try:
        plain = OmegaConf.to_container(OmegaConf.load(file))
        if not isinstance(plain, dict):
            raise TypeError("it holds no settings")
        config = from_plain(plain)  # type: ignore[arg-type]
    except ConfigError:
        raise
    except (OmegaConfBaseException, YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return RunRecord(folder, config, read_metrics(folder), read_provenance(folder))


def find_runs(root: Path) -> Iterator[Path]:
    """The run folders at or below ``root``, in the order of their names."""
    yield from sorted(file.parent for file in root.rglob(CONFIG) if (file.parent / METRICS).is_file())


def recipe(config: TrainConfig) -> dict[str, Any]:
    """Every setting that changes what is learned or how it is evaluated, by its full name; the seed is one of them.

    Files go by their names: wherever it lies, a file of one name is taken to be the same. So do the datasets that have
    a name; one's own are told apart by where they lie.
    """
    plain = to_plain(config)
    plain["kinds"].pop("eval")
    plain["eval"] = to_plain_mode(config)
    flat = flatten(plain)
    own = isinstance(config.dataset, CustomConfig)
    place = [p for p in _PLACE if not (own and p == "dataset.root")]
    kept = {k: v for k, v in flat.items() if not any(k == p or k.startswith(f"{p}.") for p in place)}
    files = [key for key in _FILES if kept.get(key) is not None and not (own and key.startswith("dataset."))]
    return kept | {key: _name_of_file(kept[key]) for key in files}


def to_plain_mode(config: TrainConfig) -> dict[str, Any]:
    """How images are counted, with sizes given, whether they were chosen or follow the model."""
    mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size)
    border = getattr(mode, "border", None)
    return {
        "mode": type(mode).__name__.removesuffix("Config"),
        "window": getattr(mode, "window", None),
        "stride": getattr(mode, "stride", None),
        "border": None if border is None else border.name,
    }


def differences(one: dict[str, Any], other: dict[str, Any], *, but: tuple[str, ...] = ()) -> dict[str, tuple[Any, Any]]:
    """Settings that two recipes do not share: name -> the two values; None where one has no such setting."""
    keys = sorted((one.keys() | other.keys()) - set(but))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def flatten(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by their full names, such as ``optim.lr``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _name_of_file(value: str) -> str:
    """A path without its folders: the same file lies elsewhere on another machine; a name like ``none`` is no file."""
    return "file " + re.split(r"[/\\]", value)[-1] if re.search(r"[/\\.]", value) else value
