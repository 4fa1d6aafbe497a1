"""Create output folders, write files atomically, and write names of files: as text, as a setting, as another file.

A temporary file names the process that writes it, so that a later one removes it if that process was killed.
"""

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import stat
import time
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headcount.errors import ConfigError, OutputError
from headcount.processes import tag_has_ended, this_process
from headcount.wording import decoded, printable, url_hint

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk without room for a file, of a user's share that is used up, of a file above the allowed size."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a file or folder that must not be written."""

# Longest part of a file's name in that of its temporary file: a name may have 255 bytes, a character up to 4.
_MAX_NAME_LENGTH = 40
# Temporary files, those of earlier versions included.
_TEMPORARY = re.compile(r"\..+\.(?:[0-9a-f]{32}|[0-9a-f]{8}-\d+-[0-9a-f]{8}-[0-9a-f]{8})\.part|.+\.writing")
_SECONDS_PER_WEEK = 7 * 86_400
# File systems end at 255 bytes.
_MAX_NAME_BYTES = 200
# A spreadsheet computes a cell that begins with one of these.
_FORMULA_STARTS = tuple("=+-@＝＋－＠")


def make_folder(folder: Path, setting: str) -> None:
    """Create an output folder, before any work is done for it, and remove what killed processes left in it.

    Args:
        folder: created with its parents; may exist.
        setting: the setting or option that chose the folder; named in the error.

    Raises:
        ConfigError: if the folder cannot be created, or is a URL.
    """
    typed = f"{setting} ..." if setting.startswith("--") else f"{setting}=..."
    if url_hint(str(folder)) and not folder.exists():
        raise ConfigError(f"{folder}: is a URL, and results are written to a folder; name one with {typed}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error
        raise ConfigError(f"folder {folder} cannot be created ({reason}); choose another with {typed}") from error
    remove_leftovers(folder)


def describe_folder(folder: Path) -> str:
    """Say what a folder contains, for error messages."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    names = sorted(printable(path.name) for path in folder.iterdir())
    if not names:
        return f"{folder} holds nothing"
    shown = ", ".join(names[:8])
    return f"{folder} holds {shown}, ..." if len(names) > 8 else f"{folder} holds {shown}"


def temporary_name(path: Path) -> Path:
    """A name in the folder of ``path`` that no other file has, and that names the process it belongs to."""
    stem = f".{path.name[:_MAX_NAME_LENGTH]}.{this_process().tag}"
    # Partly random: process ids may coincide on two machines that share a disk.
    return path.with_name(f"{stem}-{uuid.uuid4().hex[:8]}.part")


def remove_leftovers(folder: Path, *, sole_use: bool = False) -> None:
    """Remove the temporary files in a folder whose process has ended.

    Where the process cannot be asked, because it is of another machine or the file does not name it, the file is
    removed when it has not changed for a week.

    Args:
        sole_use: whether only this process writes into the folder: nothing then needs to be that old.
    """
    names: list[str] = []
    with suppress(OSError):  # a folder that must not be listed
        names = os.listdir(folder)
    for file in [folder / name for name in names if _TEMPORARY.fullmatch(name)]:
        with suppress(OSError):  # another process was faster, or it is not ours to remove
            ended = tag_has_ended(file.name)
            if ended is None:
                ended = sole_use or time.time() - file.stat().st_mtime > _SECONDS_PER_WEEK
            if ended:
                file.unlink()


@contextmanager
def naming_failures(path: Path) -> Iterator[None]:
    """Let an error of writing ``path`` in the ``with`` block name the file, and say what to do.

    Raises:
        OutputError: for any :class:`OSError` in the block.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        remedy = "choose another folder"
        if error.errno in NO_ROOM:
            remedy = f"free space on its disk, or {remedy}"
        elif error.errno in READ_ONLY:
            remedy = f"make it writable, or {remedy}"
        reason = error.strerror or str(error)
        if not path.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: {reason}; its folder was removed or moved, or is on a disk that is gone: "
                f"put it back, or {remedy}"
            ) from error
        raise OutputError(f"{path} cannot be written: {reason}; {remedy}. The file is as it was before") from error


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
        OutputError: if the file cannot be written.
    """
    temporary = temporary_name(path)
    with naming_failures(path):
        try:
            yield temporary
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # a disk that went read-only: the error of writing says so
                temporary.unlink()


def append_bytes(path: Path, data: bytes) -> None:
    """Add to the end of a file, which is created if missing; if that fails, the file is as it was before.

    Raises:
        OutputError: if the file cannot be written.
    """
    with naming_failures(path):
        before = path.stat().st_size if path.exists() else None
        try:
            with path.open("ab") as file:
                file.write(data)
        except OSError:
            with suppress(OSError):
                if before is None:
                    path.unlink()
                else:
                    os.truncate(path, before)
            raise


FileIdentity = tuple[int, int] | str
"""What distinguishes a file from all others, whatever its paths are called."""


def file_identity(path: Path | str) -> FileIdentity:
    """Device and number of a file, equal for all its links; its absolute path if there is no file, or no number."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.abspath(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def quoted(path: Path | str) -> str:
    """A path as Hydra reads it on a command line: in quotes where it holds more than plain characters."""
    if re.fullmatch(r"[A-Za-z0-9._+/~-]+", str(path)):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def name_text(name: str) -> str:
    r"""A name as text that is the same on every system, and can be compared, hashed, printed and written.

    A composed and a decomposed accent (Unicode's NFC, NFD) are the same, as are file names read with another locale.
    Bytes that are not UTF-8, control characters and invisible marks become escapes such as ``\udce9`` and ``\n``.

    Args:
        name: of a file, or from a list of files.
    """
    return printable(unicodedata.normalize("NFC", decoded(name)))


def short_name(stem: str, suffix: str = "") -> str:
    """``stem`` and ``suffix`` as a file name; of a very long stem only the start, and a hash of the whole."""
    space = _MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(os.fsencode(stem)) <= space:
        return stem + suffix
    digest = hashlib.sha256(name_text(stem).encode()).hexdigest()[:12]
    start = os.fsencode(stem)[: space - len(digest) - 1].decode("utf-8", "ignore")
    return f"{start}-{digest}{suffix}"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically, with ``\\n`` as the end of each line on every system.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as part:
        # File names may hold bytes that are not valid UTF-8.
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def read_text(path: Path, *, max_bytes: int = 20_000_000) -> str:
    """Read a UTF-8 text file that may come from anywhere.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no regular file (a pipe would be waited for), has more than ``max_bytes``, or is not text.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content.decode("utf-8-sig").replace("\r\n", "\n")


def json_line(values: Any) -> str:
    """Plain values as one line of JSON with its end; NaN and infinity, which JSON does not have, become null."""
    return json.dumps(_finite(values), allow_nan=False) + "\n"


def json_text(values: Any) -> str:
    """Plain values as indented JSON; NaN and infinity become null."""
    return json.dumps(_finite(values), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, values: Any) -> None:
    """Write plain values as an indented JSON file, atomically; NaN and infinity become null.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_text(path, json_text(values))


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the headings first, as a CSV file in UTF-8, atomically; :func:`read_csv` reads it.

    Text is :func:`printable`. Text that a spreadsheet would compute, such as ``=1+1``, follows an apostrophe; numbers
    do not.

    Raises:
        OutputError: if the file cannot be written.
    """
    with (
        atomic_write(path) as part,
        part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([_cell(value) for value in row] for row in rows)


def append_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Add rows to a file of :func:`write_csv`; if that fails, the file is as it was before.

    Raises:
        OutputError: if the file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    append_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a file that :func:`write_csv` wrote: one dictionary per row, with the headings as keys.

    Raises:
        OSError, ValueError, csv.Error: if the file cannot be read.
    """
    headings, *rows = csv.reader(io.StringIO(read_text(path)))
    return [dict(zip(headings, map(_uncell, row), strict=True)) for row in rows]


def _cell(value: Any) -> Any:
    """A value as a spreadsheet shows it without computing it."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if _is_computed(text) else text


def _uncell(text: str) -> str:
    """The text that :func:`_cell` was given."""
    return text[1:] if text.startswith("'") and _is_computed(text[1:]) else text


def _is_computed(text: str) -> bool:
    """Whether a spreadsheet may compute a cell, or the cell has apostrophes because of that."""
    try:
        float(text)
    except ValueError:
        bare = text.lstrip("'")
        return len(bare) > 1 and bare.startswith(_FORMULA_STARTS)  # a dash alone stands for no value
    return False


def _finite(values: Any) -> Any:
    """The same plain values with None for NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
