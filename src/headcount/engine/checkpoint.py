"""Checkpoints: one file of plain values that rebuilds a counter anywhere.

Loads with ``weights_only=True``, so a file from a stranger cannot run code. See
checkpoints/README.md for its keys.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headcount.bins import CountBins
from headcount.config import ConfigError, TrainConfig, from_plain, missing_checkpoint
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.weights import read_plain

FORMAT = "headcount checkpoint"
FORMAT_VERSION = 2
LAST = "last.pt"
BEST = "best_mae.pt"


def commit() -> str:
    """The commit of the source tree, with ``+changes`` where it was edited; ``unknown`` outside one."""
    folder = Path(__file__).parent
    try:
        run = {"cwd": folder, "capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def save(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old file or the new one."""
    temporary = path.with_suffix(".writing")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        ConfigError: if the file is missing, truncated, not a checkpoint, of a newer format, or
            holds anything but plain values and tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(missing_checkpoint(path))
    content = read_plain(path, setting="ckpt", what="a checkpoint of headcount")
    if (
        not isinstance(content, dict)
        or content.get("format") != FORMAT
        or not isinstance(content["format_version"], int)
    ):
        raise ConfigError(f"ckpt={path}: not a checkpoint of headcount (its 'format' is not {FORMAT!r})")
    if content["format_version"] > FORMAT_VERSION:
        raise ConfigError(
            f"ckpt={path}: written in format {content['format_version']}; this headcount reads up to {FORMAT_VERSION}"
        )
    return content


@dataclass
class Loaded:
    """A counter from a checkpoint, and what the checkpoint says of it."""

    counter: Counter
    config: TrainConfig
    bins: CountBins | None
    """None for a counter that regresses."""
    content: dict[str, Any]


def load(path: str | Path) -> Loaded:
    """Rebuild the counter of a checkpoint, in evaluation mode on the CPU, from this file alone.

    Raises:
        ConfigError: as :func:`read`, or if the weights do not fit the network.
    """
    content = read(path)
    try:
        config = from_plain(content["config"])
        bins = None if content["bins"] is None else CountBins.from_dict(content["bins"])
        counter = build_model(config.model, bins, block_size=config.bins.block_size, pretrained=False)
    except ConfigError as error:
        raise ConfigError(f"ckpt={path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"ckpt={path}: the checkpoint is damaged: {error!r}") from error
    try:
        counter.load_state_dict(content["model"])
    except (RuntimeError, KeyError, TypeError) as error:
        raise ConfigError(f"ckpt={path}: the weights do not fit the network it describes: {error}") from error
    return Loaded(counter.eval(), config, bins, content)
