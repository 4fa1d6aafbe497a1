"""Create output folders, write files atomically, and write a path as a setting."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headcount.config import ConfigError


def make_folder(folder: Path, setting: str) -> None:
    """Make a folder to write into, before any work is done for it.

    Raises:
        ConfigError: names the ``setting`` to change if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error}); choose another with {setting}=...") from error


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A file of this process alone to write, which takes the name of ``target`` only when it is complete."""
    # No process number: on two machines that share a disk it may be the same.
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def quoted(path: Path | str) -> str:
    """A path as Hydra reads it on a command line: in quotes where it holds more than plain characters."""
    if re.fullmatch(r"[A-Za-z0-9._+/~-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"
