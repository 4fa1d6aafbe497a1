"""A counter as a pair of files, for other people: NAME.safetensors holds the weights, NAME.json everything else.

Neither can hold code. The description names the hash of the weights, so that the files of two counters are never mixed.
Large tensors are stored as 16-bit integers with a scale per output channel and loaded as float32. This takes as much
space as float16, whose rounding changed counts of an EfficientNet by up to 0.3 %; these change them by 0.01 %
(docs/counters.md).
"""

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from headcount import published
from headcount.errors import CheckpointError, ConfigError
from headcount.files import atomic_write, json_text
from headcount.published import FORMAT, pair_of, read_description
from headcount.wording import one_line

FORMAT_VERSION = 1
# Keys of a checkpoint that only a resumed training needs, and the weights.
_NOT_DESCRIBED = {
    *("format", "format_version", "model", "optimizer", "schedule", "average", "scaler", "record", "step", "processes"),
    *("training_images", "training_data", "selection_data"),
}
# Smaller tensors stay float32: they take little space, and most convolutions of single channels are among them.
_MIN_ELEMENTS = 4096
_MAX_INTEGER = 32_767
_SCALE = ".scale_of_int16"
_FOLDERS = ("data_root", "output_dir")
_PATHS = ("root", "points", "mask", "split_file", "train", "val", "test")
_ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


def save_counter(path: Path, content: Mapping[str, Any], *, int16: bool = True) -> tuple[Path, Path]:
    """Write a counter as a pair of files.

    Args:
        path: ``NAME.safetensors`` or ``NAME.json``; both are written, and neither may exist.
        content: what :func:`headcount.engine.checkpoint.read` returns. ``license``, ``figures`` and ``limits`` are
            stored as well (``headcount.published``). Folders of this machine are left out.
        int16: whether to store matrices and kernels of at least 4096 elements as 16-bit integers, which halves the
            file. Everything else, such as biases and BatchNorm's parameters and statistics, stays float32.

    Returns:
        The files of weights and of the description.

    Raises:
        ConfigError: if a file exists, or ``path`` has another ending.
        CheckpointError: if ``content`` holds something that JSON cannot.
        OutputError: if a file cannot be written.
    """
    weights, description = pair_of(path)
    if not published.is_pair(path):
        raise ConfigError(f"{path}: must end in {published.WEIGHTS} or {published.DESCRIPTION}")
    for file in (weights, description):
        if file.exists():
            raise ConfigError(f"{file}: exists; name another file, or remove it")
    plain = _description(content)
    state: dict[str, Tensor] = {}
    for name, value in content["model"].items():
        state |= _as_stored(name, value.detach().cpu(), int16=int16)
    # One entry: safetensors writes several in a random order, and the same counter would have another hash each time.
    stored = safetensors.torch.save(state, metadata={"format": "pt"})
    plain["weights"] = {"sha256": hashlib.sha256(stored).hexdigest(), "bytes": len(stored), "half": int16}
    # Neither gets its name before both are complete: one alone could not be used, and would refuse the next attempt.
    with atomic_write(description) as described_part, atomic_write(weights) as weights_part:
        weights_part.write_bytes(stored)
        described_part.write_text(json_text(plain), encoding="utf-8", newline="\n")
    return weights, description


def read_pair(path: Path, *, name: str) -> dict[str, Any]:
    """The content of a stored counter as that of a checkpoint, with float32 weights on the CPU.

    Args:
        path: either file of the pair.
        name: of the checkpoint, for error messages.

    Raises:
        CheckpointError: if a file is missing, damaged, or belongs to something else.
    """
    weights, description = pair_of(path)
    for file, what in ((weights, "its weights"), (description, "its description")):
        if not file.is_file():
            raise CheckpointError(f"{name}: {file.name} is missing beside it, which holds {what}; copy both files")
    try:
        plain = read_description(description)
        expected = _expected_hash(plain)
        published.figures_of(plain)
    except ValueError as error:
        raise CheckpointError(f"{name}: {description.name} cannot be used: {error}") from error
    with weights.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{name}: {weights.name} is truncated, changed, or of another counter: its SHA-256 begins with "
            f"{found[:8]}, and {description.name} describes {expected[:8]}; copy or download both files again"
        )
    try:
        state = safetensors.torch.load_file(weights)
    except Exception as error:  # many kinds, for a file that is foreign
        raise CheckpointError(f"{name}: {weights.name} is not a file of safetensors: {one_line(error)}") from error
    del plain["weights"], plain["format"], plain["format_version"]
    try:
        return {**plain, "model": _as_loaded(state)}
    except ValueError as error:
        raise CheckpointError(f"{name}: {weights.name} is damaged: {error}") from error


def described(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds beside its weights and the state of its training."""
    return {key: value for key, value in content.items() if key not in _NOT_DESCRIBED}


def _expected_hash(plain: Mapping[str, Any]) -> str:
    """The hash of the weights that a description belongs to.

    Raises:
        ValueError: if it names none, or is of a newer format.
    """
    version = plain.get("format_version")
    if type(version) is not int:
        raise ValueError(f"its 'format_version' is {version!r}")
    if version > FORMAT_VERSION:
        raise ValueError(f"it has format {version}; this version of headcount reads formats up to {FORMAT_VERSION}")
    weights = plain.get("weights")
    expected = weights.get("sha256") if isinstance(weights, dict) else None
    if not isinstance(expected, str) or not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ValueError("it does not name the SHA-256 of its weights")
    return expected


def _description(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the description holds, but for the hash of the weights.

    Raises:
        CheckpointError: if JSON cannot hold it.
    """
    plain: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    for key, value in described(content).items():
        if key == "config":
            value = without_folders(value)
        elif key == "bins":
            value = _with_infinity(value)
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's {key!r} cannot be written as JSON: {one_line(error)}") from error
        plain[key] = value
    return plain


def without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint without the folders of the machine that trained it: of a path, the last part."""
    plain = copy.deepcopy(dict(config))
    for key in _FOLDERS:
        plain.pop(key, None)
    dataset = plain.get("dataset", {})
    typed = [part for part in dataset.get("parts", []) if isinstance(part, dict)]
    for part in (dataset, *dataset.get("datasets", {}).values(), *typed):  # of a mixed dataset
        part.pop("cache_dir", None)
        if part.get("name") != "custom":  # published datasets are the same in every folder
            part.pop("root", None)
        part |= {key: _last_part(part[key]) for key in _PATHS if isinstance(part.get(key), str)}
    if isinstance(plain.get("init_from"), str):
        plain["init_from"] = _last_part(plain["init_from"])
    shortened: dict[str, Any] = _last_parts(plain)
    return shortened


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or path


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return _last_part(value)
    return value


def _with_infinity(value: Any) -> Any:
    """Bins with infinity as the text ``inf``, from which :class:`~headcount.bins.CountBins` reads it."""
    if isinstance(value, dict):
        return {key: _with_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_stored(name: str, value: Tensor, *, int16: bool) -> dict[str, Tensor]:
    """A tensor of the weights as it is stored: contiguous and in its own memory, or as integers and their scale."""
    if int16 and value.ndim >= 2 and value.numel() >= _MIN_ELEMENTS and value.is_floating_point():
        largest = value.double().abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True)
        scale = torch.where(largest > 0, largest / _MAX_INTEGER, 1.0).float()
        if scale.isfinite().all() and (scale >= torch.finfo(torch.float32).tiny).all():
            integers = (value.double() / scale.double()).round().to(torch.int16)
            return {name: integers.contiguous(), f"{name}{_SCALE}": scale}
    return {name: value.clone(memory_format=torch.contiguous_format)}


def _as_loaded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as float32.

    Raises:
        ValueError: if integers and scales do not belong together.
    """
    loaded = {}
    for name, value in state.items():
        if name.endswith(_SCALE):
            continue
        scale = state.get(f"{name}{_SCALE}")
        if scale is not None:
            if value.dtype is not torch.int16 or scale.shape != (*value.shape[:1], *[1] * (value.ndim - 1)):
                raise ValueError(f"{name} is {value.dtype}, with scales of shape {tuple(scale.shape)}")
            value = value.float() * scale
        elif value.dtype is torch.int16:
            raise ValueError(f"{name} has no scale")
        loaded[name] = value.float() if value.is_floating_point() else value
    return loaded
