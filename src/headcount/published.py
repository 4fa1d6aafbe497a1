"""Find the counters that come with headcount, read their descriptions, and resolve the names of checkpoints.

A published counter is a pair of files, ``NAME.safetensors`` with the weights and ``NAME.json`` with everything else;
``engine.stored`` reads and writes them. This module reads descriptions only, and needs neither torch nor the network.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headcount.commands import as_typed
from headcount.errors import CheckpointError
from headcount.files import read_text
from headcount.wording import cut, one_line, printable

DEFAULT = "sha_efficientnet_lite0"
"""Name of the default counter."""
UNSELECTED = "nothing: the last epoch"
"""What selected the weights of the last epoch, in a figure."""
HUB = "hf-hub:"
"""Prefix of the name of a counter on the Hugging Face Hub: ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``."""
WEIGHTS = ".safetensors"
DESCRIPTION = ".json"
FORMAT = "headcount counter"
MAX_DESCRIPTION_BYTES = 2_000_000


def _is_error(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_interval(value: Any) -> bool:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_error, value))
    return value is None or is_pair


# Field of a figure -> whether a value of it is possible.
_FIGURE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("dataset", "split", "selected_on"), lambda value: isinstance(value, str)),
    "images": lambda value: type(value) is int,
    "own": lambda value: isinstance(value, bool),
    **dict.fromkeys(("mae", "rmse"), _is_error),
    **dict.fromkeys(("mae_interval", "rmse_interval"), _is_interval),
}


@dataclass(frozen=True)
class Figure:
    """Errors of a counter on a split of a dataset, over whole images."""

    dataset: str
    split: str
    images: int
    """Number of images in the split."""
    selected_on: str
    """Split that selected the checkpoint, or :data:`UNSELECTED`."""
    mae: float
    """Mean absolute error, in heads per image."""
    rmse: float
    """Root mean squared error, in heads per image."""
    mae_interval: tuple[float, float] | None
    """95 % bootstrap interval over the images; None if it was not measured."""
    rmse_interval: tuple[float, float] | None
    """95 % bootstrap interval over the images; None if it was not measured."""
    own: bool
    """Whether it was measured with exactly this counter; False for another checkpoint of the same recipe."""

    @classmethod
    def from_plain(cls, plain: Any) -> "Figure":
        """A figure as a description stores it.

        Raises:
            ValueError: if it is damaged.
        """
        values = dict(plain) if isinstance(plain, Mapping) else {}
        if not all(is_valid(values.get(key)) for key, is_valid in _FIGURE.items()):
            raise ValueError(f"a figure is {cut(repr(plain))}")
        pairs = {key: values[key] and tuple(values[key]) for key in ("mae_interval", "rmse_interval")}
        return cls(**{key: values[key] for key in _FIGURE} | pairs)

    def __str__(self) -> str:
        return f"MAE {self.mae:.1f}, RMSE {self.rmse:.1f} on {self.dataset} {self.split} ({self.images} images)"


@dataclass(frozen=True)
class PublishedCounter:
    """A counter that comes with headcount."""

    name: str
    """What ``headcount.load`` and ``ckpt=`` take."""
    file: Path
    """Its file of weights."""
    license: str
    """Terms under which its weights may be used."""
    figures: tuple[Figure, ...]
    """Its errors, those of exactly this counter first."""

    def __str__(self) -> str:
        figure = str(self.figures[0]) if self.figures else "no errors were measured"
        return printable(f"{self.name}: {figure}; license: {self.license or 'not stated'}")


def published_folder() -> Path:
    """The folder of the counters that come with headcount: in an installed package, or in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "counters"
    return installed if installed.is_dir() else package.parents[1] / "checkpoints" / "published"


def available() -> list[PublishedCounter]:
    """The counters that come with headcount, with their errors and licenses; the default one first.

    Raises:
        CheckpointError: if a description is damaged.
    """
    return [_facts(name) for name in names()]


def names() -> list[str]:
    """The names of the counters that come with headcount, the default one first."""
    found = {file.stem for file in published_folder().glob(f"*{WEIGHTS}")}
    return sorted(found, key=lambda name: (name != DEFAULT, name))


def default_counter() -> PublishedCounter:
    """The default counter.

    Raises:
        CheckpointError: if it does not come with this installation.
    """
    found = names()
    if DEFAULT in found:
        return _facts(DEFAULT)
    others = f"which has {', '.join(found)}: name one with ckpt=NAME," if found else "which has none:"
    raise CheckpointError(
        f"no counter is named, and the default one, {DEFAULT}, does not come with this installation, {others} name a "
        f"file with ckpt=best_mae.pt, or train a counter: {as_typed('python train.py')} dataset=NAME"
    )


def is_on_hub(ckpt: str | Path) -> bool:
    """Whether a checkpoint is named as one on the Hugging Face Hub."""
    return str(ckpt).startswith(HUB)


def locate(ckpt: str | Path) -> Path | None:
    """The file of a checkpoint on this machine; None if there is none.

    Args:
        ckpt: a file, or the name of a counter that comes with headcount; a file of that name takes precedence.
    """
    path = Path(ckpt).expanduser()
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):  # no name of a file at all
        return None
    return published_folder() / f"{ckpt}{WEIGHTS}" if str(ckpt) in names() else None


def pair_of(path: Path) -> tuple[Path, Path]:
    """The files of weights and of the description, either of which names a stored counter."""
    return path.with_suffix(WEIGHTS), path.with_suffix(DESCRIPTION)


def is_pair(path: Path) -> bool:
    """Whether a file is one of such a pair, by its name."""
    return path.suffix in (WEIGHTS, DESCRIPTION)


def read_description(file: Path) -> dict[str, Any]:
    """The content of a description, which may come from anywhere.

    Raises:
        ValueError: if it is damaged, or belongs to something else; the message does not name the file.
    """
    try:
        plain = json.loads(read_text(file, max_bytes=MAX_DESCRIPTION_BYTES))
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ValueError("it is not the description of a counter: it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is truncated or not JSON: {one_line(error)}") from error
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise ValueError(f"it is not the description of a counter (its 'format' is not {FORMAT!r})")
    return plain


def figures_of(plain: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of a description, those of exactly this counter first.

    Raises:
        ValueError: if one is damaged.
    """
    stored = plain.get("figures", [])
    if not isinstance(stored, list):
        raise ValueError(f"its figures are {cut(repr(stored))}")
    figures = [Figure.from_plain(figure) for figure in stored]
    return tuple(sorted(figures, key=lambda figure: not figure.own))


def license_of(plain: Mapping[str, Any]) -> str:
    """The license in a description or checkpoint; empty if it states none."""
    stated = plain.get("license", "")
    return stated if isinstance(stated, str) else ""


def _facts(name: str) -> PublishedCounter:
    weights, description = pair_of(published_folder() / f"{name}{WEIGHTS}")
    try:
        plain = read_description(description)
        return PublishedCounter(name, weights, license_of(plain), figures_of(plain))
    except ValueError as error:
        raise CheckpointError(f"{description}: {error}; install headcount again") from error
