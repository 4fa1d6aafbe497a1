"""Tell a process that still runs from one that has ended, to recognize what a killed process left behind."""

import datetime
import functools
import hashlib
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TAG = re.compile(r"([0-9a-f]{8})-(\d+)-([0-9a-f]{8})")


@dataclass(frozen=True)
class Process:
    """A process, distinguished from a later one that has the same number."""

    host: str
    """Name of the machine; on Linux with the number of its process namespace, since containers may share a name."""
    number: int
    """Process id."""
    birth: str
    """When it started, by the clock of the system's start; empty where the system does not report it."""
    started: str
    """Date and time of the start of its work, for people."""
    job: str = ""
    """Number of its job on a SLURM cluster, and how often that was restarted, such as ``1234 0``; empty elsewhere."""

    @property
    def tag(self) -> str:
        """The process in a file name."""
        return f"{_short(self.host)}-{self.number}-{_short(self.birth)}"

    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine, so that :meth:`has_ended` is reliable."""
        return self.host == this_process().host

    def has_ended(self) -> bool:
        """Whether it no longer runs; False for a process of another machine, unless its job was restarted here."""
        if self.job and self.job != this_process().job and self.job.split()[0] == this_process().job.partition(" ")[0]:
            return True  # SLURM ends all processes of a job before it restarts the job, on whichever machine
        return self.is_here() and not _runs(self.number, self.birth)


def this_process() -> Process:
    """The calling process."""
    return _describe(os.getpid())


def tag_has_ended(name: str) -> bool | None:
    """Whether the process whose :attr:`Process.tag` is in a file name has ended.

    Returns:
        None if the name has no tag, or the process is of another machine.
    """
    found = _TAG.search(name)
    if found is None or found[1] != _short(this_process().host):
        return None
    number = int(found[2])
    return not _runs(number, "") or found[3] != _short(_birth(number))


@functools.cache  # per process id: a forked process is another one
def _describe(number: int) -> Process:
    started = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    job = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return Process(_host(), number, _birth(number), started, f"{job} {restarts}" if job else "")


def _host() -> str:
    try:
        return f"{socket.gethostname()} {os.readlink(_PROC / 'self' / 'ns' / 'pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _runs(number: int, birth: str) -> bool:
    """Whether a process of this machine runs; with ``birth``, a later one of the same number does not count."""
    if sys.platform == "win32":
        return True  # Signal 0 would interrupt the process; nothing else in the standard library can ask.
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, for another user
        pass
    now = _birth(number)
    return now != "ended" and (not birth or not now or now == birth)


def _birth(number: int) -> str:
    """When a process started: the system's start and clock ticks since then; ``ended`` for one that has."""
    try:
        boot = (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="utf-8").strip()
        state, *fields = (
            (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except (OSError, ValueError):
        return ""
    # A killed process stays listed until its parent has asked for its status.
    return "ended" if state in "ZX" else f"{boot} {fields[18]}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
