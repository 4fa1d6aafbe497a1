"""Run fuzz cases in child processes: a crash or a hang of one is a fault like a wrong result, and ends no other case.

A case is a kind, a seed and a number, from which its input is made; it can be run again alone. The input of a case with
a fault is kept.
"""

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

Check = Callable[[np.random.Generator, Path], str]
"""Makes an input in a folder and gives it to the code under test. Returns what became of it: ``read`` or ``refused``,
with the format before it; any exception is a fault."""

SECONDS = 60
"""Longest time of a case."""
_BYTES = 6 * 2**30  # memory of a child
_CASES_PER_CHILD = 1000


@dataclass(frozen=True)
class Case:
    """One input."""

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"--seed {self.seed} --only {self.kind}:{self.number}"

    def rng(self) -> np.random.Generator:
        """Random numbers of this case alone."""
        return np.random.default_rng([self.seed, self.number, *self.kind.encode()])


@dataclass
class Report:
    """What became of the cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line per outcome."""
        return [f"{number:6} {what}" for what, number in sorted(self.outcomes.items())]


def run_cases(
    cases: Iterable[Case], checks: dict[str, Check], keep: Path, *, processes: int = 1, seconds: float = SECONDS
) -> Report:
    """Run all cases.

    Args:
        checks: what checks a case of each kind; functions of modules, which a child process can import.
        keep: folder that the inputs with faults are moved to.
        processes: number of child processes.
        seconds: longest time of a case.
    """
    report = Report()
    waiting = iter(list(cases))

    def work(_: int) -> None:
        child = _Child(checks, seconds)
        try:
            for case in waiting:  # next() of a list's iterator is atomic
                outcome, problem = child.run(case)
                report.outcomes[outcome] += 1
                if (done := sum(report.outcomes.values())) % 500 == 0:
                    print(f"{done} cases, {len(report.faults)} faults", flush=True)
                if problem:
                    kept = keep / f"{case.kind}-{case.seed}-{case.number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(child.folder, kept, symlinks=True)
                    report.faults.append(f"FAULT {case}; its input is kept in {kept}\n{problem}")
                    print(report.faults[-1].rstrip(), flush=True)
        finally:
            child.end()

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, range(processes)))
    return report


class _Child:
    """A process that runs one case at a time; a new one follows one that crashed or was too slow."""

    def __init__(self, checks: dict[str, Check], seconds: float) -> None:
        self._checks, self._seconds = checks, seconds
        self._base = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.folder = self._base / "case"
        self._process: Any = None

    def run(self, case: Case) -> tuple[str, str]:
        """Return the outcome and, for a fault, the problem."""
        if self._process is None:
            self._start()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self._cases += 1
        try:
            self._connection.send(case)
            if not self._connection.poll(self._seconds):
                self._stop(signal.SIGABRT)  # faulthandler writes where it is
                return f"{case.kind} FAULT", f"not finished after {self._seconds:g} s\n{self._last_words()}"
            outcome: tuple[str, str] = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            status = self._process.exitcode
            self._process = None
            return f"{case.kind} FAULT", f"the process ended with status {status}\n{self._last_words()}"
        if self._cases == _CASES_PER_CHILD:
            self._stop()
        return outcome

    def end(self) -> None:
        """Stop the process and remove its files."""
        if self._process is not None:
            self._stop()
        shutil.rmtree(self._base, ignore_errors=True)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._checks, self._base))
        self._process.start()
        theirs.close()
        self._connection.recv()  # It has imported torch.
        self._cases = 0

    def _stop(self, how: int | None = None) -> None:
        self._connection.close()  # it ends when it reads the next case
        if how is not None:
            os.kill(self._process.pid, how)
        self._process.join(10)
        self._process.kill()
        self._process.join()
        self._process = None

    def _last_words(self) -> str:
        with suppress(OSError):
            text = (self._base / "stderr.txt").read_text(errors="replace")
            return text.partition("\nExtension modules")[0][:4000]
        return ""


def _serve(connection: Connection, checks: dict[str, Check], base: Path) -> None:
    """Run the cases that the parent sends until it closes the connection."""
    import faulthandler

    # What C libraries print belongs to the fault, if there is one; a file that is appended to holds the last case only.
    log = (base / "stderr.txt").open("ab", buffering=0)
    os.dup2(log.fileno(), 2)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    while True:
        try:
            case: Case = connection.recv()
        except EOFError:
            return
        os.ftruncate(2, 0)
        os.chdir(base)  # the folder of an earlier case is gone
        connection.send(_outcome(case, checks[case.kind], base / "case"))


def _outcome(case: Case, check: Check, folder: Path) -> tuple[str, str]:
    """Run one case; any exception is a fault, and so is a warning."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return f"{case.kind} {check(case.rng(), folder)}", ""
    except BaseException:
        return f"{case.kind} FAULT", traceback.format_exc()
