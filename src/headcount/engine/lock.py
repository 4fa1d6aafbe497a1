"""A lock on a folder, so that only one process writes there.

The lock is a file that names its process, and appears with its whole content or not at all. The lock of a process that
has ended is taken over, which only the machine of that process can find out.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from headcount.errors import ConfigError, HeadcountError, OutputError
from headcount.files import make_folder, naming_failures, temporary_name
from headcount.processes import Process, this_process

LOCK_FILE = "run.lock"

# A lock that ends while it is examined, or is taken by another process, is examined again.
_ATTEMPTS = 20


class FolderLock:
    """Sole use of a folder by this process, from :meth:`acquire` to :meth:`release`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / LOCK_FILE
        self._created: list[Path] = []
        self._holder: Process | None = None

    def acquire(self, *, setting: str, instead: str) -> None:
        """Lock the folder, which is created with its parents.

        Args:
            setting: the setting that chose the folder, for error messages.
            instead: what to do if another process uses the folder.

        Raises:
            ConfigError: if another process holds the lock, or may hold it; or the folder cannot be created.
            OutputError: if the lock cannot be written.
        """
        folder = self.file.parent
        self._created = [path for path in (folder, *folder.parents) if not path.exists()]
        make_folder(folder, setting)
        try:
            self._take(instead)
        except HeadcountError:
            self._remove_folders()
            raise
        self._holder = this_process()

    def release(self) -> None:
        """Remove the lock, and the folders that :meth:`acquire` created if nothing was written there."""
        if self._holder != this_process():  # never acquired, released, or a forked process
            return
        self._holder = None
        with suppress(OSError):
            self.file.unlink()
        self._remove_folders()

    def verify(self) -> None:
        """Check that no other process took the folder: it may have been moved, and another run started in its place.

        Raises:
            OutputError: names the other process.
        """
        found = None
        with suppress(OSError):  # missing: writing into a folder that does not exist says so better
            found = _parse(self.file.read_text(encoding="utf-8", errors="replace"))
        if found not in (None, self._holder):
            raise OutputError(
                f"{self.file.parent} now belongs to process {found.number}, started {found.started}: it was moved or "
                "removed while this process trained, and another run started in its place; nothing was written there"
            )

    def _take(self, instead: str) -> None:
        content = json.dumps(asdict(this_process()), indent=2) + "\n"
        for _ in range(_ATTEMPTS):
            with naming_failures(self.file):
                if _create(self.file, content):
                    return
            found = self._read()
            if found is None:
                continue
            owner = _parse(found)
            if owner is None or not owner.has_ended():
                raise ConfigError(self._refusal(owner, instead))
            self._discard(found)
        raise ConfigError(f"{self.file.parent} is in use by other processes that start and end; {instead}")

    def _remove_folders(self) -> None:
        for folder in self._created:
            with suppress(OSError):  # not empty
                folder.rmdir()

    def _read(self) -> str | None:
        """The content of another process's lock; None if it has just been released."""
        try:
            return self.file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.file} cannot be read: {error}") from error

    def _discard(self, stale: str) -> None:
        """Remove the lock of a process that has ended, unless another process has replaced it meanwhile."""
        with naming_failures(self.file), _one_at_a_time(self.file.parent):
            if self._read() == stale:
                self.file.unlink()

    def _refusal(self, owner: Process | None, instead: str) -> str:
        folder = self.file.parent
        remove = f"if no run uses the folder any more, remove {self.file} and try again; otherwise {instead}"
        if owner is None:
            return f"{folder} is locked, and {self.file} does not name the process; {remove}"
        user = f"process {owner.number}, started {owner.started}"
        if owner.is_here():
            return f"{folder} is in use by {user}; wait until it ends, or {instead}"
        return f"{folder} is in use by {user}, on another machine or in another container ({owner.host}); {remove}"


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in this block, for this folder."""
    import fcntl  # not on Windows, where no lock is known to be stale

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _create(file: Path, content: str) -> bool:
    """Create a file with its content, in one step; False if it exists."""
    temporary = temporary_name(file)
    try:
        with temporary.open("x", encoding="utf-8") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(temporary, file)
        except FileExistsError:
            return False
        except OSError:  # a disk without links: not in one step, but still by one process only
            return _create_directly(file, content)
        return True
    finally:
        with suppress(OSError):
            temporary.unlink()


def _create_directly(file: Path, content: str) -> bool:
    try:
        handle = file.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    try:
        with handle:
            handle.write(content)
    except OSError:
        file.unlink()
        raise
    return True


def _parse(content: str) -> Process | None:
    """The process that a lock names; None if it cannot be read."""
    try:
        owner = Process(**json.loads(content))
    except (ValueError, TypeError):
        return None
    kinds = all(isinstance(text, str) for text in (owner.host, owner.birth, owner.started, owner.job))
    return owner if kinds and type(owner.number) is int and owner.number > 0 else None
