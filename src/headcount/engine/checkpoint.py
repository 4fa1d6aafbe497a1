"""Checkpoints: one file of plain values that rebuilds a counter anywhere.

Loads with ``weights_only=True``, so that an untrusted file cannot run code. See
checkpoints/README.md for its keys.
"""

import hashlib
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headcount import published
from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    CustomConfig,
    DatasetConfig,
    EvalConfig,
    FolderDatasetConfig,
    MixedConfig,
    SlidingWindowConfig,
    SyntheticConfig,
    TrainConfig,
    WholeImageConfig,
    check,
    counting_mode,
    from_plain,
    missing_checkpoint,
    window_error,
)
from headcount.data.catalogue import dataset_info
from headcount.engine.hub import download
from headcount.engine.stored import read_pair
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import atomic_write
from headcount.intervals import Calibration
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.weights import read_plain
from headcount.types import BlockGrid, SeenImages

FORMAT = "headcount checkpoint"
FORMAT_VERSION = 2
LAST = "last.pt"
BEST = "best_mae.pt"
MID_EPOCH = "mid_epoch.pt"
"""Written within an epoch and removed at its end: what last.pt holds, and the number of steps done in the epoch."""


def epoch_files(folder: Path) -> list[tuple[Path, int]]:
    """The checkpoints of evaluations in a folder, and their epochs, the earliest first."""
    names = [(file, re.fullmatch(r"epoch_(\d+)\.pt", file.name)) for file in folder.glob("epoch_*.pt")]
    return sorted([(file, int(name[1])) for file, name in names if name], key=lambda found: found[1])


def _is_selection(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("split", "dataset", "metric"))


def _short(value: Any) -> str:
    """A value for a message: nothing that fills a screen."""
    plain = isinstance(value, (str, int, float, type(None))) and not (isinstance(value, int) and abs(value) >= 2**63)
    return repr(value)[:60] if plain else f"a {type(value).__name__} of another kind"


# What every reader of a checkpoint uses -> whether a value of it is possible.
_KEYS: dict[str, Callable[[Any], bool]] = {
    "commit": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict),
    "bins": lambda value: isinstance(value, (dict, type(None))),
    "model": lambda value: isinstance(value, dict) and all(isinstance(item, Tensor) for item in value.values()),
    # Imported checkpoints of the released code may not state their epoch.
    "epoch": lambda value: value is None or (type(value) is int and 0 <= value < 2**63),
    "best": lambda value: isinstance(value, (dict, type(None))),
    "selection": _is_selection,
}


def commit() -> str:
    """The commit of the source tree, with ``+changes`` if it was edited; ``unknown`` outside a repository."""
    folder = Path(__file__).parent
    try:
        run = {"cwd": folder, "capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint; a kill at any moment leaves the old file or the new one.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        try:
            torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        except RuntimeError as error:  # torch replaces an error of the file by its own
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def read(path: str | Path, *, setting: str = "ckpt") -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Args:
        path: a file that training wrote, either file of a stored pair (``engine.stored``), the name of a counter that
            comes with headcount, or ``hf-hub:owner/name``, which is downloaded.
        setting: the setting that named the file, for error messages; empty if none did.

    Raises:
        CheckpointError: if the file is missing, truncated, not a checkpoint, of a newer format, or
            contains anything but plain values and tensors.
        ConfigError: if it cannot be downloaded.
    """
    located = download(str(path)) if published.is_on_hub(path) else published.locate(path)
    path = Path(path).expanduser()
    if located is None:
        raise CheckpointError(missing_checkpoint(path))
    name = f"{setting}={path}" if setting else str(path)
    content = read_pair(located, name=name) if published.is_pair(located) else _read_file(located, setting, name)
    for key, is_valid in _KEYS.items():
        if key not in content:
            raise CheckpointError(f"{name}: the checkpoint is damaged: it has no {key!r}")
        if not is_valid(content[key]):
            raise CheckpointError(f"{name}: the checkpoint is damaged: its {key!r} is {_short(content[key])}")
    return content


def _read_file(path: Path, setting: str, name: str) -> dict[str, Any]:
    """The content of a file that :func:`save` wrote."""
    content = read_plain(path, setting=setting, what="a checkpoint of headcount")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{name}: not a checkpoint of headcount (its 'format' is not {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{name}: the checkpoint is damaged: its 'format_version' is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name}: written in format {version}; this version of headcount reads formats up to {FORMAT_VERSION}"
        )
    return content


@dataclass
class LoadedCheckpoint:
    """A counter from a checkpoint, and what the checkpoint records about it."""

    counter: Counter
    config: TrainConfig
    """Settings of the training run; never changed after loading."""
    bins: CountBins | None
    """None for a counter without bins."""
    content: dict[str, Any]
    seen: SeenImages
    """Limits of the images it was trained on."""
    calibration: Calibration | None = None
    """Its errors on held-out images, which support intervals; None for a counter that is not calibrated."""

    def counting_mode(self, chosen: EvalConfig) -> WholeImageConfig | SlidingWindowConfig:
        """How this counter counts images: as ``chosen``, otherwise as in its training, with every size filled in.

        Raises:
            ConfigError: if the windows do not fit the network.
        """
        config = self.config
        mode = counting_mode(config.eval, config.model, crop_size=config.augment.crop_size, chosen=chosen)
        if wrong := window_error(mode, self.counter.grid.block_size, self.counter.stride):
            raise ConfigError(wrong)
        return mode


def weights_digest(model: Mapping[str, Tensor]) -> str:
    """A hash that distinguishes the weights of one counter from those of every other, wherever they are stored."""
    digest = hashlib.sha256()
    for name, value in sorted(model.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def have_same_bins(members: Sequence[LoadedCheckpoint]) -> bool:
    """Whether the probabilities of all these counters are those of the same bins on blocks of the same size."""
    bins = [member.bins for member in members]
    distinct = {None if one is None else (one.grid, tuple(one.edges), one.smoothed) for one in bins}
    return len(distinct) == 1 and None not in distinct


def recorded_config(content: dict[str, Any], path: str | Path) -> TrainConfig:
    """The settings of the training that a checkpoint records, checked like typed ones.

    Folders to write to are those of this machine's defaults, not those of the file, which may come from anywhere.

    Raises:
        CheckpointError: if they are invalid; names every error.
    """
    try:
        config = from_plain(content["config"])
        errors = check(config, weights=False)
        for dataset in _datasets(config.dataset):
            dataset_info(dataset.name)  # a name is part of a path
    except HeadcountError as error:
        raise CheckpointError(f"ckpt={path}: {error}") from error
    if errors:
        raise CheckpointError(f"ckpt={path}: its settings are invalid:\n  " + "\n  ".join(errors))
    fixed = {CustomConfig: "custom", SyntheticConfig: "synthetic", MixedConfig: MixedConfig.name}
    for dataset in (config.dataset, *_datasets(config.dataset)):
        if fixed.get(type(dataset)) != (dataset.name if dataset.name in fixed.values() else None):
            raise CheckpointError(
                f"ckpt={path}: the checkpoint is damaged: its dataset {dataset.name} is of another kind"
            )
    return replace(config, dataset=_with_own_cache(config.dataset), output_dir=TrainConfig.output_dir)


def _datasets(dataset: DatasetConfig) -> list[DatasetConfig]:
    """The parts of a mixed dataset, or a single one alone."""
    return list(dataset.datasets.values()) if isinstance(dataset, MixedConfig) else [dataset]


def _with_own_cache(dataset: DatasetConfig) -> DatasetConfig:
    """A copy that caches images in this machine's default folder."""
    if isinstance(dataset, MixedConfig):
        parts = {name: _with_own_cache(part) for name, part in dataset.datasets.items()}
        return replace(dataset, datasets=parts, cache_dir=FolderDatasetConfig.cache_dir)
    if isinstance(dataset, FolderDatasetConfig):
        return replace(dataset, cache_dir=FolderDatasetConfig.cache_dir)
    return dataset


# What a resumed run needs beyond the keys of every checkpoint.
_TRAINING_KEYS = ("optimizer", "schedule", "average", "scaler")


def repair_hint(path: Path) -> str:
    """What to do if a checkpoint cannot be resumed from."""
    if path.name == MID_EPOCH:
        this = "folder" if path.is_dir() else "file"
        return f"remove this {this} to continue after the last finished epoch, or start another run with run_name=NAME"
    return "put the run's own file back, or start another run with run_name=NAME"


def read_training(path: Path) -> dict[str, Any]:
    """The content of a checkpoint to resume from, with all its keys.

    Raises:
        CheckpointError: as :func:`read`, or if it is a checkpoint to evaluate or of another name, or a key has a value
            of another type.
    """
    hint = repair_hint(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a checkpoint; {hint}")
    try:
        content = read(path, setting="")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {hint}") from error
    if path.name == LAST and "step" in content:
        raise CheckpointError(
            f"{path}: is the state after step {_short(content['step'])} of an unfinished epoch, which is read as "
            f"{MID_EPOCH} only: rename it to {MID_EPOCH}, or {hint}"
        )
    if missing := [key for key in _TRAINING_KEYS if key not in content]:
        raise CheckpointError(
            f"{path}: cannot be resumed from, because it has no {', '.join(map(repr, missing))}; a checkpoint such as "
            f"{BEST} holds the weights only: {hint}"
        )
    valid = {key: isinstance(content[key], Mapping) for key in _TRAINING_KEYS} | {"epoch": content["epoch"] is not None}
    if wrong := [key for key, is_valid in valid.items() if not is_valid]:
        found = _short(content[wrong[0]])
        raise CheckpointError(f"{path}: the checkpoint is damaged: its {wrong[0]!r} is {found}; {hint}")
    return content


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that hold NaN or infinity; one device sync."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    if not tensors:
        return []
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    return [key for key, whole in zip(tensors, finite, strict=True) if not whole]


def load(path: str | Path) -> LoadedCheckpoint:
    """Rebuild the counter of a checkpoint, in evaluation mode on the CPU, from this file alone.

    Raises:
        CheckpointError: as :func:`read`, or if the weights do not fit the network or are not finite.
    """
    content = read(path)
    config = recorded_config(content, path)
    grid = BlockGrid(config.bins.block_size)
    try:
        bins = None if content["bins"] is None else CountBins.from_dict(content["bins"])
        seen = SeenImages.from_plain(content.get("seen"), crop_size=config.augment.crop_size)
        calibration = Calibration.from_plain(content.get("calibration"))
        if (bins is not None) != config.bins.has_bins or (bins is not None and bins.grid != grid):
            raise ValueError("its bins are not those of its settings")
        with torch.device("meta"):  # allocates nothing
            shapes = build_model(config.model, grid, bins, pretrained=False).state_dict()
        _refuse_other_shapes(content["model"], shapes, path)
        counter = build_model(config.model, grid, bins, pretrained=False)
    except HeadcountError as error:
        raise CheckpointError(f"ckpt={path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"ckpt={path}: the checkpoint is damaged: {error!r}") from error
    counter.load_state_dict(content["model"])
    check_finite(counter, path)
    return LoadedCheckpoint(counter.eval(), config, bins, content, seen, calibration)


def _refuse_other_shapes(weights: Mapping[str, Tensor], network: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare the weights of a file with those of the network that it describes, before that is allocated.

    Raises:
        CheckpointError: names the first ones that differ.
    """
    problems = [f"{name} is missing" for name in network if name not in weights]
    problems += [f"{name} is unknown" for name in weights if name not in network]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(value.shape)}"
        for name, value in network.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems += [
        f"{name} is {value.dtype} and {value.layout}"
        for name, value in weights.items()
        if value.is_complex() or value.is_quantized or value.layout is not torch.strided
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"ckpt={path}: the weights do not fit the network it describes: {'; '.join(problems[:3])}{more}"
        )


def check_finite(counter: Counter, path: str | Path) -> None:
    """Check that no weight of a checkpoint is NaN or infinite.

    Raises:
        CheckpointError: names the first tensor that holds such values, and how many it holds.
    """
    state = counter.state_dict()
    if wrong := not_finite(state):
        values = state[wrong[0]]
        raise CheckpointError(
            f"ckpt={path}: the weights are not finite: {int((~values.isfinite()).sum())} of {values.numel()} values of "
            f"{wrong[0]} are NaN or infinite, first of all tensors; the training diverged, or the file was changed: "
            "choose another checkpoint"
        )
