"""The groups of settings and what can be chosen in each: the files below configs/, and schemas without a file.

Files of the user's own ``./configs`` come before those of headcount. A group may lie within another: ``model/head``
holds the kinds of prediction head and is typed ``model.head=regression``.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import headcount
from headcount.config import SCHEMAS, ConfigError, DatasetConfig
from headcount.files import read_text


def config_dir() -> Path:
    """The folder configs/: inside an installed package, or at the top of a checkout.

    Raises:
        ConfigError: if it is in neither place.
    """
    package = Path(headcount.__file__).resolve().parent
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"{package}: configs/ is missing; run the command from a checkout, or install the package again")


def config_dirs() -> list[Path]:
    """The folders with choices in the order in which they are searched: ``./configs``, if there is one, before our own.

    Raises:
        ConfigError: if ``./configs`` has a train.yaml or eval.yaml of another program.
    """
    own = Path("configs").resolve()
    if not own.is_dir() or own == config_dir():
        return [config_dir()]
    _refuse_other_program(own)
    return [own, config_dir()]


@cache
def _refuse_other_program(folder: Path) -> None:
    for name in ("train", "eval"):
        file = folder / f"{name}.yaml"
        if file.is_file() and f"/schema/{name}@_global_" not in read_config_file(file):
            raise ConfigError(
                f"{file}: belongs to another program, and headcount would read it instead of its own file (its "
                f"defaults list lacks /schema/{name}@_global_); run headcount from another folder, or rename the file"
            )


def find_file(name: str) -> Path | None:
    """The file of a choice, such as ``dataset/sha.yaml``, in the first folder that has it; None if none has."""
    return _find_in(tuple(config_dirs()), name)


def _find_in(folders: tuple[Path, ...], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def dotted(group: str) -> str:
    """A group as it is typed: ``model.head`` for ``model/head``."""
    return group.replace("/", ".")


def nested_groups() -> set[str]:
    """Groups that lie within another, such as ``model/head``."""
    return {group for group in SCHEMAS if "/" in group}


def all_choices() -> dict[str, list[str]]:
    """Every group with its choices, a nested one after the group that it lies in."""
    folders = tuple(config_dirs())
    found: dict[str, list[str]] = {}
    for group, choice in _choices_in(folders, user_files(), frozenset(nested_groups())):
        found.setdefault(group, []).append(choice)
    for group, kinds in SCHEMAS.items():
        # A kind without a YAML file was registered from Python and is chosen by its own name.
        named = {_kind_in(folders, group, choice) for choice in found.get(group, [])}
        found.setdefault(group, []).extend(kind for kind in kinds if kind not in named)
    return {group: found[group] for group in sorted(found)}


def command_choices(config_name: str) -> dict[str, list[str]]:
    """The groups that a command reads, with their choices: those of its defaults list, and the ones within them."""
    defaults = default_choices(config_name)
    return {group: choices for group, choices in all_choices().items() if group.split("/")[0] in defaults}


def default_choices(config_name: str) -> dict[str, str]:
    """Group -> choice, as in the defaults list of a file of configs/, such as ``train``; empty if there is no file."""
    file = find_file(f"{config_name}.yaml")
    return _defaults_of(file, file.stat().st_mtime_ns) if file is not None else {}


@cache
def _defaults_of(file: Path, changed: int) -> dict[str, str]:
    entries: Any = OmegaConf.select(OmegaConf.load(file), "defaults")
    return {str(k): str(v) for e in entries if isinstance(e, DictConfig) for k, v in e.items() if " " not in str(k)}


def schemas(group: str) -> dict[str, type]:
    """The schema of each choice of a group."""
    kinds, folders = SCHEMAS.get(group, {}), tuple(config_dirs())
    found = {}
    for choice in all_choices().get(group, []) if kinds else []:
        kind = _kind_in(folders, group, choice) or choice
        if kind in kinds:
            found[choice] = kinds[kind]
    return found


def default_dataset(name: str) -> DatasetConfig:
    """The dataset that ``dataset=name`` chooses, with the settings of its file."""
    file = find_file(f"dataset/{name}.yaml")
    written = OmegaConf.to_container(OmegaConf.load(file)) if file is not None else {}
    assert isinstance(written, dict)
    values = {key: value for key, value in written.items() if key != "defaults"}
    dataset: DatasetConfig = OmegaConf.to_object(OmegaConf.merge(schemas("dataset")[name], values))  # type: ignore[assignment]
    return dataset


def owners(group: str, setting: str) -> list[str]:
    """The choices of a group that have a setting of this name."""
    return [
        choice
        for choice, schema in schemas(group).items()
        if setting in {field.name for field in dataclasses.fields(schema)}
    ]


def nearest(word: str, allowed: Sequence[str]) -> str:
    """``; did you mean ...?`` if one of the allowed words resembles this one, else nothing."""
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def no_choice(typed: str, choices: Sequence[str]) -> str:
    """The message for a choice that a group does not offer.

    Args:
        typed: ``group=choice`` as typed.
        choices: what the group offers.
    """
    hint = nearest(typed.partition("=")[2], choices)
    return f"{typed}: no such choice; allowed are {', '.join(choices)}{hint}"


def user_files() -> tuple[tuple[str, int], ...]:
    """The files of ``./configs`` and when each was changed, so that what is kept of them is not used after that."""
    files = [file for folder in config_dirs()[:-1] for file in yaml_files(folder)]
    return tuple((str(file), file.stat().st_mtime_ns) for file in files)


@cache
def _choices_in(
    folders: tuple[Path, ...], own: tuple[tuple[str, int], ...], nested: frozenset[str]
) -> list[tuple[str, str]]:
    """The group and the choice of each file of the folders, with the user's ``own``; duplicates are listed once."""
    files = {file.relative_to(folder) for folder in folders for file in yaml_files(folder)}
    groups = {file: _group_of(file, nested) for file in sorted(files) if len(file.parts) > 1}
    return [(group, file.relative_to(group).with_suffix("").as_posix()) for file, group in groups.items()]


def yaml_files(folder: Path) -> list[Path]:
    """The YAML files below a folder, without hidden ones, which editors and macOS leave there."""
    return sorted(file for file in folder.rglob("[!.]*.yaml") if file.is_file())


def read_config_file(file: Path) -> str:
    """The text of a file of configs.

    Raises:
        ConfigError: if it cannot be read as text; names it.
    """
    try:
        return read_text(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}; correct it, or remove it") from error


def _group_of(file: Path, nested: frozenset[str]) -> str:
    """The innermost group that a file belongs to; other folders are part of the choice's name (experiments)."""
    folders = [parent.as_posix() for parent in file.parents]
    return next((folder for folder in folders if folder in nested), file.parts[0])


def _kind_in(folders: tuple[Path, ...], group: str, choice: str) -> str | None:
    """The kind of schema that a choice's file names in its defaults list; None without a file or a schema."""
    file = _find_in(folders, f"{group}/{choice}.yaml")
    return _kind_of(file, file.stat().st_mtime_ns, group) if file is not None else None


@cache
def _kind_of(file: Path, changed: int, group: str) -> str | None:
    named = re.search(rf"/schema/{group}/(\w+)@", read_config_file(file))
    return named[1] if named else None
