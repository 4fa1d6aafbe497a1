"""The signals that ask a training to stop: obeyed at once, or by the training loop at its next step.

No other file handles signals, except that processes which load data ignore these (``headcount.data.loading``).
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# What ends a process politely: a cluster's scheduler (SLURM sends SIGUSR1 if it is told to), a closed terminal, Ctrl-C.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name)]
# What shells report for SIGTERM: one status for both signals of schedulers.
_STATUS = {getattr(signal, "SIGUSR1", None): 128 + signal.SIGTERM}
_AGAIN = b"\nstopping after this step; Ctrl-C again stops at once, without saving\n"


class StopSignals:
    """Receives the signals inside a ``with`` block; those that somebody else handles, or ignores, are left.

    A signal raises ``SystemExit``, or for Ctrl-C ``KeyboardInterrupt``, so that files are closed and locks released.
    Inside :meth:`deferred` it is only recorded.
    """

    def __init__(self) -> None:
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
        if not self.received and number == signal.SIGINT:
            with suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(2, _AGAIN)
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
