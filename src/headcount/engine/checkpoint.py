"""Checkpoints: one file of plain values that rebuilds a counter anywhere.

Loads with ``weights_only=True``, so that an untrusted file cannot run code. See
checkpoints/README.md for its keys.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headcount.bins import CountBins
from headcount.config import (
    ConfigError,
    EvalConfig,
    SlidingWindowConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
    from_plain,
    missing_checkpoint,
    window_error,
)
from headcount.errors import CheckpointError, HeadcountError
from headcount.files import atomic_write
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.weights import read_plain
from headcount.types import BlockGrid

FORMAT = "headcount checkpoint"
FORMAT_VERSION = 2
LAST = "last.pt"
BEST = "best_mae.pt"


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


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        CheckpointError: if the file is missing, truncated, not a checkpoint, of a newer format, or
            contains anything but plain values and tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(missing_checkpoint(path))
    content = read_plain(path, setting="ckpt", what="a checkpoint of headcount")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"ckpt={path}: not a checkpoint of headcount (its 'format' is not {FORMAT!r})")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"ckpt={path}: the checkpoint is damaged: its 'format_version' is {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"ckpt={path}: written in format {version}; this version of headcount reads formats up to {FORMAT_VERSION}"
        )
    return content


# What a resumed run needs, and of which type.
_TRAINING: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("config", "model", "optimizer", "schedule", "average", "scaler"), Mapping),
    "best": (Mapping, type(None)),
    "epoch": int,
}


def read_training(path: Path) -> dict[str, Any]:
    """The content of a checkpoint to resume from, with all its keys.

    Raises:
        CheckpointError: as :func:`read`, or if it is a checkpoint to evaluate, or a key has a value of another type.
    """
    content = read(path)
    hint = "put the run's own file back, or start another run with run_name=NAME"
    if missing := [key for key in _TRAINING if key not in content]:
        raise CheckpointError(
            f"{path}: cannot be resumed from, because it has no {', '.join(map(repr, missing))}; a checkpoint such as "
            f"{BEST} holds the weights only: {hint}"
        )
    for key, kind in _TRAINING.items():
        value = content[key]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            found = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
            raise CheckpointError(f"{path}: the checkpoint is damaged: its {key!r} is {found}; {hint}")
    return content


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that hold NaN or infinity; one device sync."""
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    if not tensors:
        return []
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    return [key for key, whole in zip(tensors, finite, strict=True) if not whole]


@dataclass
class LoadedCheckpoint:
    """A counter from a checkpoint, and what the checkpoint records about it."""

    counter: Counter
    config: TrainConfig
    """Settings of the training run; never changed after loading."""
    bins: CountBins | None
    """None for a counter without bins."""
    content: dict[str, Any]

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


def load(path: str | Path) -> LoadedCheckpoint:
    """Rebuild the counter of a checkpoint, in evaluation mode on the CPU, from this file alone.

    Raises:
        CheckpointError: as :func:`read`, or if the weights do not fit the network.
    """
    content = read(path)
    try:
        config = from_plain(content["config"])
        bins = None if content["bins"] is None else CountBins.from_dict(content["bins"])
        counter = build_model(config.model, BlockGrid(config.bins.block_size), bins, pretrained=False)
    except HeadcountError as error:
        raise CheckpointError(f"ckpt={path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"ckpt={path}: the checkpoint is damaged: {error!r}") from error
    try:
        counter.load_state_dict(content["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"ckpt={path}: the weights do not fit the network it describes: {error}") from error
    return LoadedCheckpoint(counter.eval(), config, bins, content)
