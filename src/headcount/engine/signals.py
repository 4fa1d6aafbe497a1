"""The signals that stop a command: at once, after the step of a training, or after the frames of a video.

Two other places deal with signals: processes that load data ignore these (``headcount.data.loading``), and
``headcount.engine.launch`` uses this file for processes that are not connected yet.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# Sent by a cluster's scheduler (SLURM sends SIGUSR1 if it is set to), by a terminal that is closed, and by Ctrl-C.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name)]
# What shells report for SIGTERM: one status for both signals of schedulers.
_STATUS = {getattr(signal, "SIGUSR1", None): 128 + signal.SIGTERM}
_AFTER_STEP = "stopping after this step; Ctrl-C again stops at once, without saving"
_AFTER_FRAMES = "stopping; press Ctrl-C again to give up the video"


def _report(text: str) -> None:
    """Write a line to the error stream; not by ``print``, as the signal may have come in the middle of one."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class StopSignals:
    """Receives the signals inside a ``with`` block; those that somebody else handles, or ignores, are left.

    A signal raises ``SystemExit``, or for Ctrl-C ``KeyboardInterrupt``, so that files are closed and locks released.
    Inside :meth:`deferred` it is only recorded.
    """

    def __init__(self, *, is_main: bool = True) -> None:
        """No signal is received yet.

        Args:
            is_main: whether this process reports the first Ctrl-C, which reaches all processes of a terminal.
        """
        self._is_main = is_main
        self.received = 0
        """Number of the first signal that :meth:`deferred` recorded; 0 if there was none."""
        self._deferred = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # no other thread can handle signals
            for number in _SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals instead of raising an exception; a second Ctrl-C raises all the same."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or (number == signal.SIGINT and self.received == number):
            stop(number)
        if self._is_main and not self.received and number == signal.SIGINT:
            _report(_AFTER_STEP)
        self.received = self.received or number


def stop(number: int) -> NoReturn:
    """End as this signal asks to.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: for the others, with the status that shells report: 143 for SIGTERM and for SIGUSR1.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(_STATUS.get(number, 128 + number))


@contextmanager
def stop_event() -> Iterator[threading.Event]:
    """Set an event at the first SIGINT or SIGTERM inside a ``with`` block; the second one interrupts as usual."""
    event = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        event.set()
        _report(_AFTER_FRAMES)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield event
    finally:
        restore()


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Start processes inside a ``with`` block that hold back SIGINT until they call :func:`end_at_interrupt`.

    Ctrl-C in the middle of their imports would print a traceback. This thread holds it back, too, until the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_at_interrupt() -> bool:
    """Let SIGINT, also one that was held back, end this process without a word.

    Returns:
        Whether that was changed; if so, :func:`raise_at_interrupt` undoes it. Not where SIGINT is ignored or handled.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        return False
    changed = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if changed:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return changed


def raise_at_interrupt() -> None:
    """Let SIGINT raise ``KeyboardInterrupt``, as in every process of Python."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
