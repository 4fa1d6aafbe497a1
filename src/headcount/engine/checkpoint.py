"""Checkpoints: one file of plain values that rebuilds a counter anywhere.

Loads with ``weights_only=True``, so that an untrusted file cannot run code. See
checkpoints/README.md for its keys.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
from headcount.types import BlockGrid, SeenImages

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
    """Write a checkpoint; a kill at any moment leaves the old file or the new one."""
    with atomic_write(path) as part:
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, part)


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
        CheckpointError: as :func:`read`, or if the weights do not fit the network or are not finite.
    """
    content = read(path)
    try:
        config = from_plain(content["config"])
        bins = None if content["bins"] is None else CountBins.from_dict(content["bins"])
        seen = SeenImages.from_plain(content.get("seen"), crop_size=config.augment.crop_size)
        counter = build_model(config.model, BlockGrid(config.bins.block_size), bins, pretrained=False)
    except HeadcountError as error:
        raise CheckpointError(f"ckpt={path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"ckpt={path}: the checkpoint is damaged: {error!r}") from error
    try:
        counter.load_state_dict(content["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"ckpt={path}: the weights do not fit the network it describes: {error}") from error
    check_finite(counter, path)
    return LoadedCheckpoint(counter.eval(), config, bins, content, seen)


def check_finite(counter: Counter, path: str | Path) -> None:
    """Check that no weight of a checkpoint is NaN or infinite.

    Raises:
        CheckpointError: names the first tensor that holds such values, and how many it holds.
    """
    for name, tensor in counter.state_dict().items():
        finite = tensor.isfinite()
        if not finite.all():
            raise CheckpointError(
                f"ckpt={path}: the weights are not finite: {int((~finite).sum())} of {tensor.numel()} values of {name} "
                "are NaN or infinite, first of all tensors; the training diverged, or the file was changed: choose "
                "another checkpoint"
            )
