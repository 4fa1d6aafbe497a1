"""Pretrained weights: find or download them, read them without running code in them, load them into a backbone.

If a file does not fit, the error names the first layer that does not, and no weight is changed. CLIP's weights and the
released checkpoints use other names, which ``clip`` and ``released`` handle.
"""

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from headcount.config import ConfigError
from headcount.errors import CheckpointError
from headcount.models.archives import DamagedRecord, check_archive, is_torchscript, read_torchscript
from headcount.models.backbones import Backbone

_scalar: Any = type(np.float64(0)).__reduce__(np.float64(0))[0]
_NUMPY_NUMBERS: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


@runtime_checkable
class Published(Protocol):
    """Published weights, as torchvision's ``WeightsEnum`` describes them; torchvision itself takes time to import."""

    @property
    def url(self) -> str:
        """Where the file is."""

    def get_state_dict(self, **options: Any) -> Mapping[str, Tensor]:
        """Download the file, if it is not there yet, and read it."""


def load_backbone(backbone: Backbone, weights: str, published: Published | None) -> None:
    """Load pretrained weights into ``backbone``.

    A file holds the state dict of torchvision's (or timm's) classifier of the same architecture, with any number of
    classes: only the layers that the backbone has are read. Layers that the backbone adds (``context``) are not in such
    a file and keep their values.

    Args:
        backbone: changed in place.
        weights: ``imagenet``, the path of a file, or ``none`` to change nothing.
        published: the weights that ``imagenet`` means; None if it has no meaning for this backbone.

    Raises:
        ConfigError: if the weights do not exist, could not be downloaded, or belong to another architecture.
        CheckpointError: if the file is damaged or is not a state dict.
    """
    if weights == "none":
        return
    state = _download(published) if weights == "imagenet" and published is not None else read_state_dict(weights)
    own = backbone.features.state_dict()
    found = {
        name: value
        for key, value in state.items()
        if key.startswith(backbone.prefix)
        for name in _names(key.removeprefix(backbone.prefix))
        if name in own
    }
    # BatchNorm's step counter is absent from old files and changes nothing.
    missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
    wrong = [k for k in own if k in found and found[k].shape != own[k].shape]
    if missing or wrong:
        problem = (
            f"{backbone.prefix}{missing[0]} is missing"
            if missing
            else f"{backbone.prefix}{wrong[0]} is {tuple(found[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
        )
        raise ConfigError(
            f"model.weights={weights}: weights of another architecture: {problem} "
            f"({len(missing)} missing, {len(wrong)} of another shape)"
        )
    backbone.features.load_state_dict({k: found.get(k, v) for k, v in own.items()})


# DenseNet's published files have dots inside the names of layers (norm.1), which torch no longer allows (norm1).
_OLD_DENSE_LAYER = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


def _names(key: str) -> tuple[str, ...]:
    """Possible names in a backbone for a layer of a published file.

    timm's feature extractors keep a classifier's names, join the first two parts (``stages.0.blocks`` becomes
    ``stages_0.blocks``), or contain the whole classifier as ``model`` or ``body``.
    """
    key = _OLD_DENSE_LAYER.sub(r"\1", key)
    return key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}"


def _download(published: Published) -> Mapping[str, Tensor]:
    url = published.url
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    file = os.path.join(folder, os.path.basename(url))
    try:
        if os.path.isfile(file):
            _check_hash(Path(file))
            return read_state_dict(file)
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except CheckpointError:  # the file that is there is damaged
        raise
    except Exception as error:  # no network, a wrong hash, or an unreadable file in that folder
        raise ConfigError(
            f"model.weights=imagenet: {os.path.basename(url)} could not be downloaded ({error}). Without a network "
            f"connection, copy the file from {url} to {file}, set model.weights=FILE (a state dict), or train from "
            "scratch with model.weights=none"
        ) from error


def _check_hash(path: Path) -> None:
    """Compare a published file with the start of its SHA-256, which its name contains; old files have no checksums.

    Raises:
        CheckpointError: if they differ.
    """
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if expected is not None and not found.startswith(expected[1]):
        raise CheckpointError(f"{path} is damaged, or another file: its SHA-256 begins with {found[:8]}; remove it")


def read_plain(path: Path, *, setting: str, what: str = "a checkpoint") -> Any:
    """Read a file that torch saved, if it contains only plain values and tensors.

    Args:
        path: the file.
        setting: the setting that named the file, for error messages; empty if none did.
        what: what the file should be, for error messages.

    Returns:
        The content, with tensors on the CPU.

    Raises:
        ConfigError: if the path does not exist or is a folder.
        CheckpointError: if the file is empty, truncated or foreign, or contains code.
    """
    name = f"{setting}={path}" if setting else str(path)
    if path.is_dir():
        raise ConfigError(f"{name}: is a folder; name a file in it")
    if not path.exists():
        raise ConfigError(f"{name}: no such file")
    try:
        check_archive(path)
        # torch's warnings about foreign files add nothing to the errors below. NumPy's scalars (losses) run no code.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{name}: not {what}, or it holds code, which is never run") from error
    except DamagedRecord as error:
        raise CheckpointError(f"{name}: the file is damaged: {error}; copy or download it again") from error
    except Exception as error:  # many kinds, for a file that is truncated or foreign
        raise CheckpointError(f"{name}: the file is truncated or not {what}") from error


def read_state_dict(file: str) -> Mapping[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, a TorchScript archive or a file that torch saved.

    Code in the file is never run.

    Args:
        file: path; a training checkpoint that contains the tensors as ``state_dict`` is accepted as well.

    Raises:
        ConfigError: if the file does not exist.
        CheckpointError: if the file cannot be read or contains something else.
    """
    path = Path(file).expanduser()
    if not path.exists():
        raise ConfigError(f"model.weights={file}: no such file")
    state: Any
    if path.suffix == ".safetensors" and path.is_file():
        try:
            state = safetensors.torch.load_file(path)
        except Exception as error:  # many kinds, for a file that is truncated or foreign
            raise CheckpointError(f"model.weights={file}: not a readable .safetensors file: {error}") from error
    elif path.is_file() and is_torchscript(path):
        try:
            state = read_torchscript(path)
        except Exception as error:  # as above
            raise CheckpointError(
                f"model.weights={file}: a damaged archive, or one that holds more than modules and tensors; download "
                f"it again ({error})"
            ) from error
    else:
        state = read_plain(path, setting="model.weights", what="a state dict")
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        content = type(state).__name__
        if isinstance(state, Mapping) and state:
            content += f" with {', '.join(list(map(str, state))[:6])}"
        raise CheckpointError(
            f"model.weights={file}: contains {content}, not a state dict of tensors; save only the state dict in a file"
        )
    return state
