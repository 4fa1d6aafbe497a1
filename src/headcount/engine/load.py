"""Load a trained counter, or several, to count pictures with."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch

from headcount.config import DEFAULT_LEVEL, ConfigError, EvalConfig
from headcount.engine import checkpoint
from headcount.engine.ensemble import PhotoEnsemble, as_averaging
from headcount.engine.photos import FilePath
from headcount.engine.predict import PhotoCounter
from headcount.engine.stored import described
from headcount.published import default_counter

if TYPE_CHECKING:
    Device = str | torch.device
else:  # anything may be passed; what is not taken is refused with an error of our own
    Device = Any


@overload
def load(
    path: FilePath | None = None,
    *,
    device: Device = "cpu",
    level: float = DEFAULT_LEVEL,
    tta: str | None = None,
    scales: Sequence[float] | None = None,
) -> PhotoCounter: ...
@overload
def load(
    path: list[FilePath] | tuple[FilePath, ...],
    *,
    device: Device = "cpu",
    level: float = DEFAULT_LEVEL,
    tta: str | None = None,
    scales: Sequence[float] | None = None,
) -> PhotoEnsemble: ...
def load(
    path: FilePath | list[FilePath] | tuple[FilePath, ...] | None = None,
    *,
    device: Device = "cpu",
    level: float = DEFAULT_LEVEL,
    tta: str | None = None,
    scales: Sequence[float] | None = None,
) -> PhotoCounter | PhotoEnsemble:
    """The counter of a checkpoint, or of several whose counts are averaged; no other file is needed.

    Args:
        path: a checkpoint of training; either file of a pair ``NAME.safetensors`` and ``NAME.json``; the name of a
            counter that comes with headcount (``headcount.available()``); or ``hf-hub:owner/name``, a repository on the
            Hugging Face Hub, also with ``@revision``. None loads the default counter that comes with headcount. A list
            of these is an ensemble.
        device: a ``torch.device``, or ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``: a GPU if one is available.
        level: of the intervals of its counts, between 0 and 1.
        tta: ``flip`` averages the counts of each picture and its mirror image; ``none`` does not; None is as in
            training.
        scales: sizes at which each picture is counted, as multiples of its own, such as ``[0.75, 1, 1.25]``; the
            counts are averaged. None is as in training.

    Raises:
        CheckpointError: if a file is missing, truncated or not a checkpoint of headcount.
        ConfigError: if the device does not exist, ``path`` is no path, the hub cannot be reached, intervals cannot
            have the level, or ``tta`` or ``scales`` are invalid.
    """
    averaging = as_averaging(tta, scales)
    if path is None:
        path = default_counter().file
    paths = list(path) if isinstance(path, list | tuple) else [path]
    if not paths:
        raise ConfigError("load takes the path of a checkpoint, or a list of several, not an empty list")
    opened = [_load(one, device, averaging) for one in paths]
    counters = [counter for counter, _ in opened]
    for counter in counters:
        counter.level = counter.check_level(level)
    if not isinstance(path, list | tuple):
        return counters[0]
    same_bins = checkpoint.have_same_bins([loaded for _, loaded in opened])
    return PhotoEnsemble(counters, [os.fsdecode(one) for one in paths], same_bins)


def _load(path: Any, device: Device, averaging: EvalConfig) -> tuple[PhotoCounter, checkpoint.LoadedCheckpoint]:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"load takes the path of a checkpoint, not {type(path)}; save what it holds to a file")
    device = str(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"device={device}: must be cpu, cuda, cuda:N or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no GPU; use cpu or auto")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: PyTorch finds {torch.cuda.device_count()} GPUs, counted from 0")
    loaded = checkpoint.load(os.fsdecode(path))
    counter = PhotoCounter(
        loaded.counter.to(device),
        loaded.config,
        loaded.bins,
        seen=loaded.seen,
        averaging=averaging,
        calibration=loaded.calibration,
        record=described(loaded.content),
    )
    return counter, loaded
