"""Settings written by earlier versions, and what replaces them.

Checkpoints and config.yaml files go through :func:`upgrade_config` before they are read; the command line refuses an
old spelling and names the new one (:data:`OLD_SPELLINGS`).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Plain = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """One key that is written differently today."""

    old: str
    """Full name of the key, as it was written."""
    becomes: str
    """What replaces it, in words."""
    since: int
    """Format of the first checkpoints that are written in the new way."""
    apply: Callable[[Plain], None]
    """Replace the key in a config of plain values; nothing happens to a config that does not have it."""


def upgrade_config(plain: Plain) -> Plain:
    """Rewrite a config of plain values, as an earlier version wrote it, in today's keys.

    Args:
        plain: what :func:`headcount.config.to_plain` returned in this or an earlier version; it is not changed.

    Returns:
        A deep copy. A config of this version is returned as it is.
    """
    upgraded = copy.deepcopy(plain)
    for change in CHANGES:
        change.apply(upgraded)
    return upgraded


def _group(plain: Plain, name: str) -> Plain:
    """The settings of a group; a new, empty dictionary if there are none."""
    node: Any = plain
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _add_method(plain: Plain) -> None:
    if "method" not in plain:
        plain["method"] = {"name": "supervised"}
        _group(plain, "kinds")["method"] = "supervised"


def _head(plain: Plain) -> None:
    model = _group(plain, "model")
    if isinstance(model.get("head"), str):
        _group(plain, "kinds")["model/head"] = model["head"]
        model["head"] = {"name": model["head"]}


def _regularisation(plain: Plain) -> None:
    transport = _group(plain, "loss.transport")
    if "regularisation" in transport:
        transport["regularization"] = transport.pop("regularisation")


def _solver(plain: Plain) -> None:
    transport = _group(plain, "loss.transport")
    if "solver" not in transport:
        return
    solver = transport.pop("solver")
    _group(plain, "kinds")["loss/transport"] = solver
    if solver != "stable":
        transport.pop("tolerance", None)
    elif transport.get("tolerance") is not None or transport.get("iterations") == 100:
        transport["iterations"] = None  # was ignored with a tolerance; 100 is today's default without one


def _count_loss(plain: Plain) -> None:
    loss = _group(plain, "loss")
    if "count_loss" not in loss:
        return
    error = loss.pop("count_loss")
    if error != "dm":
        kinds = _group(plain, "kinds")
        kinds["loss"] = "dace_block_error"
        kinds.pop("loss/transport", None)
        loss.pop("transport", None)  # was ignored
        loss["error"] = error


def _kernel(plain: Plain) -> None:
    loss = _group(plain, "loss")
    if not isinstance(loss.get("kernel"), str):
        return
    kind = loss["kernel"]
    # A fixed kernel ignored the others.
    kept = {"sigma": "sigma"}
    if kind == "adaptive":
        kept |= {"neighbours": "neighbors", "neighbors": "neighbors", "beta": "beta"}
    loss["kernel"] = {new: loss[old] for old, new in kept.items() if old in loss}
    for old in ("sigma", "neighbours", "neighbors", "beta"):
        loss.pop(old, None)
    _group(plain, "kinds")["loss/kernel"] = kind


def _exif_orientation(plain: Plain) -> None:
    dataset = _group(plain, "dataset")
    if dataset.get("name") == "custom":
        dataset.setdefault("exif_orientation", False)


def _sync_batchnorm(plain: Plain) -> None:
    runtime = _group(plain, "runtime")
    if isinstance(runtime.get("devices"), int) and runtime["devices"] > 1:
        runtime.setdefault("sync_batchnorm", False)


CHANGES = (
    Change("method", "missing: supervised, the only method at that time", 2, _add_method),
    Change("model.head", "the kind of the group model/head", 2, _head),
    Change("loss.transport.regularisation", "loss.transport.regularization", 2, _regularisation),
    Change("loss.transport.solver", "the kind of the group loss/transport", 2, _solver),
    Change("loss.count_loss", "mae, mse: loss.error of the kind dace_block_error; dm: the kind dace", 2, _count_loss),
    Change("loss.kernel", "the kind of the group loss/kernel, with sigma, neighbours and beta in it", 2, _kernel),
    Change("dataset.exif_orientation", "missing: false, as all images were read", 2, _exif_orientation),
    Change("runtime.sync_batchnorm", "missing: false with several processes, as they all ran", 2, _sync_batchnorm),
)
"""Every key that is written differently today, in the order in which they are replaced."""


OLD_SPELLINGS: dict[str, str] = {
    "loss.transport.regularisation": "is now loss.transport.regularization",
    "loss.transport.solver=released": "is now loss.transport=released",
    "loss.transport.solver=stable": "is now loss.transport=stable",
    "loss.transport.solver": "is now loss.transport=released or loss.transport=stable",
    "loss.count_loss=dm": "is now loss=dace",
    "loss.count_loss=mae": "is now loss=dace_mae",
    "loss.count_loss=mse": "is now loss=dace_mse",
    "loss.count_loss": "is now loss=dace, loss=dace_mae or loss=dace_mse",
    "loss.sigma": "is now loss.kernel.sigma",
    "loss.neighbours": "is now loss.kernel.neighbors, with loss.kernel=adaptive",
    "loss.neighbors": "is now loss.kernel.neighbors, with loss.kernel=adaptive",
    "loss.beta": "is now loss.kernel.beta, with loss.kernel=adaptive",
}
"""Old key, or key=value, of the command line -> what it is now. A key=value takes precedence over its key."""
