"""Pretrained weights: found, read without running anything in them, and put into a backbone.

A file that does not fit says which layer does not, before any weight is changed. CLIP's weights
and the released checkpoints bring names of their own (``clip``, ``released``).
"""

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from headcount.config import ConfigError
from headcount.models.backbones import Backbone

_scalar: Any = type(np.float64(0)).__reduce__(np.float64(0))[0]
_NUMPY_NUMBERS: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
]


def load_backbone(backbone: Backbone, weights: str, published: WeightsEnum | None) -> None:
    """Fill ``backbone`` from ``imagenet``, or from a file; ``none`` leaves it as it is.

    A file holds the state dict of torchvision's (or timm's) classifier of the same architecture,
    with any number of classes: only the layers the backbone has are read. What the backbone puts on
    top of them (``context``) is in no such file, and keeps its values.

    Args:
        published: what ``imagenet`` stands for; None if it stands for nothing.

    Raises:
        ConfigError: names what is missing, and where to put it.
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
            f"model.weights={weights}: not this architecture's weights: {problem} "
            f"({len(missing)} missing, {len(wrong)} of another shape)"
        )
    backbone.features.load_state_dict({k: found.get(k, v) for k, v in own.items()})


# DenseNet's published files are older than the rule that a layer's name has no dot: norm.1 became norm1.
_OLD_DENSE_LAYER = re.compile(r"(\bdenselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


def _names(key: str) -> tuple[str, ...]:
    """What a layer of a published file may be called in a backbone.

    timm's feature extractors keep a classifier's names, join the first two parts
    (``stages.0.blocks`` to ``stages_0.blocks``), or hold it whole under a name.
    """
    key = _OLD_DENSE_LAYER.sub(r"\1", key)
    return key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}"


def _download(published: WeightsEnum) -> Mapping[str, Tensor]:
    url = published.url
    folder = os.path.join(torch.hub.get_dir(), "checkpoints")
    file = os.path.join(folder, os.path.basename(url))
    try:
        return published.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # no network, a wrong hash, or a file in that folder that is cut short
        raise ConfigError(
            f"model.weights=imagenet: {os.path.basename(url)} could not be had ({error}). Without a network, put the "
            f"file from {url} at {file}, name a state dict with model.weights=FILE, or train from nothing with "
            "model.weights=none"
        ) from error


def read_plain(path: Path, *, setting: str, what: str = "a checkpoint") -> Any:
    """What torch saved in a file, if it is plain values and tensors, on the CPU.

    Args:
        setting: what the file was given as, for the error.
        what: what the file should be, for the error.

    Raises:
        ConfigError: if the file is truncated, empty, a folder, no such file, or holds code.
    """
    if path.is_dir():
        raise ConfigError(f"{setting}={path}: is a folder; name a file in it")
    try:
        # A foreign file is refused below, in our words. NumPy's numbers (losses, errors) run nothing.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{setting}={path}: not {what}, or one that holds code, which is never run") from error
    except Exception as error:  # of many kinds, for a file that is truncated or foreign
        raise ConfigError(f"{setting}={path}: the file is truncated or not {what}") from error


def read_state_dict(file: str) -> Mapping[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of one that torch saved; nothing in it is executed.

    A training checkpoint that keeps them under ``state_dict`` is read as well.

    Raises:
        ConfigError: if there is no such file, it cannot be read, or it holds something else.
    """
    path = Path(file).expanduser()
    if not path.exists():
        raise ConfigError(f"model.weights={file}: no such file")
    state: Any
    if path.suffix == ".safetensors" and path.is_file():
        try:
            state = safetensors.torch.load_file(path)
        except Exception as error:  # of many kinds, for a file that is truncated or foreign
            raise ConfigError(f"model.weights={file}: not a readable .safetensors file: {error}") from error
    else:
        state = read_plain(path, setting="model.weights", what="a state dict")
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        keys = list(map(str, state))[:6] if isinstance(state, Mapping) else []
        held = type(state).__name__ + f" with {', '.join(keys)}" * bool(keys)
        raise ConfigError(f"model.weights={file}: holds {held}, not a state dict of tensors; save that alone in a file")
    return state
