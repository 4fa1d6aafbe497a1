"""A counter as a pair of files, for other people: NAME.safetensors holds the weights, NAME.json everything else.

Neither can hold code. The description names the hash of the weights, so that the files of two counters are never mixed.
Weights are stored in half precision where that changes them by no more than rounding, and loaded as float32.
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
from headcount.files import atomic_write, write_json
from headcount.published import FORMAT, pair_of, read_description
from headcount.wording import one_line

FORMAT_VERSION = 1
# Keys of a checkpoint that only a resumed training needs, and the weights.
_NOT_DESCRIBED = {
    *("format", "format_version", "model", "optimizer", "schedule", "average", "scaler", "record", "step", "processes"),
    *("training_images", "training_data", "selection_data"),
}
# A tensor is stored as float16 if its relative error, in the Euclidean norm, is at most this: rounding makes 2^-12.
_MAX_HALF_ERROR = 1e-3
_FOLDERS = ("data_root", "output_dir")
_ABSOLUTE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


def save_counter(path: Path, content: Mapping[str, Any], *, half: bool = True) -> tuple[Path, Path]:
    """Write a counter as a pair of files.

    Args:
        path: ``NAME.safetensors`` or ``NAME.json``; both are written, and neither may exist.
        content: what :func:`headcount.engine.checkpoint.read` returns. ``license``, ``figures`` and ``limits`` are
            stored as well (``headcount.published``). Folders of this machine are left out.
        half: whether to store matrices and kernels as float16. Vectors (biases, BatchNorm's parameters and
            statistics) stay float32, and so does a tensor that float16 cannot hold.

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
    state = {name: _as_stored(value, half=half) for name, value in content["model"].items()}
    with atomic_write(weights) as part:
        stored = safetensors.torch.save(state, metadata={"format": "pt", "description": description.name})
        part.write_bytes(stored)
    plain["weights"] = {"sha256": hashlib.sha256(stored).hexdigest(), "bytes": len(stored), "half": half}
    write_json(description, plain)
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
    return {**plain, "model": {key: _as_loaded(value) for key, value in state.items()}}


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
    dataset = plain.get("dataset")
    if isinstance(dataset, dict):
        dataset.pop("cache_dir", None)
        if dataset.get("name") != "custom":  # published datasets are the same in every folder
            dataset.pop("root", None)
    shortened: dict[str, Any] = _last_parts(plain)
    return shortened


def _last_parts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _last_parts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] or value
    return value


def _with_infinity(value: Any) -> Any:
    """Bins with infinity as the text ``inf``, from which :class:`~headcount.bins.CountBins` reads it."""
    if isinstance(value, dict):
        return {key: _with_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinity(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _as_stored(value: Tensor, *, half: bool) -> Tensor:
    """A tensor of the weights as it is stored: contiguous, and of its own memory."""
    value = value.detach().cpu()
    if half and value.ndim >= 2 and value.is_floating_point():
        rounded = value.half()
        error = (rounded.double() - value.double()).norm()
        if error <= _MAX_HALF_ERROR * value.double().norm():  # False for infinity
            return rounded.contiguous()
    return value.clone(memory_format=torch.contiguous_format)


def _as_loaded(value: Tensor) -> Tensor:
    return value.float() if value.dtype is torch.float16 else value
