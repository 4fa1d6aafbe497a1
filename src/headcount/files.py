"""Create output folders, write files atomically, and write a path as a setting."""

import csv
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headcount.config import ConfigError


def make_folder(folder: Path, setting: str) -> None:
    """Create an output folder, before any work is done for it.

    Args:
        folder: created with its parents; may exist.
        setting: the setting or option that chose the folder; named in the error.

    Raises:
        ConfigError: if the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be created ({error}); choose another with {setting}=...") from error


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Write a file so that an interruption at any moment leaves either the old file or the complete new one.

    An exception in the ``with`` block leaves the old file.

    Args:
        path: the file to create or replace; its folder must exist.
        sync: wait until the content is on the disk. Without, a power failure may leave an incomplete file, which is
            acceptable for files that are checked when they are read and can be made again.

    Yields:
        A temporary file name in the same folder, used by no other process. Its suffix is not that of ``path``:
        writers that choose the format by the suffix must be given the format.

    Raises:
        OSError: if the file cannot be written.
    """
    # The name is random: process ids may coincide on two machines that share a disk.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def quoted(path: Path | str) -> str:
    """A path as Hydra reads it on a command line: in quotes where it holds more than plain characters."""
    if re.fullmatch(r"[A-Za-z0-9._+/~-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with ``\\n`` as the end of each line on every system.

    Raises:
        OSError: if the file cannot be written.
    """
    with atomic_write(path) as part:
        # File names may hold bytes that are not valid UTF-8.
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def json_line(values: Any) -> str:
    """Plain values as one line of JSON with its end; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Write plain values as an indented JSON file, atomically; NaN and infinity become null.

    Raises:
        OSError: if the file cannot be written.
    """
    write_text(path, json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the headings first, as a CSV file in UTF-8, atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    with (
        atomic_write(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows(rows)


def _finite(values: Any) -> Any:
    """The same plain values with None for NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
