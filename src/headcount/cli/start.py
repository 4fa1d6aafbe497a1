"""Start a command so that Ctrl-C ends it with one line, also while modules are imported.

It imports little itself, so that hardly any time is left in which Ctrl-C still ends in a traceback of Python.
"""

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells report it."""


def run(module: str) -> None:
    """Import a command, and run it.

    Args:
        module: the module of ``headcount.cli`` that has its ``main``.
    """
    with ends_at_interrupt():
        with deferred_interrupt():
            command = importlib.import_module(f"headcount.cli.{module}")
        command.main()


@contextmanager
def ends_at_interrupt() -> Iterator[None]:
    """Exit with one line and status 130 if Ctrl-C interrupts the ``with`` block."""
    try:
        yield
    except KeyboardInterrupt:
        with deferred_interrupt():
            from pathlib import Path

            from headcount.commands import program

        print(f"\n{program(Path(sys.argv[0]).name)}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold Ctrl-C back until the imports of a ``with`` block are done: half-done ones fail in many ways.

    A second Ctrl-C interrupts at once. Nothing is changed where SIGINT is handled in another way, or ignored, and in
    other threads than the main one, which cannot handle signals.

    Raises:
        KeyboardInterrupt: at the end of the block, if Ctrl-C was pressed.
    """
    received = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, receive)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is receive:
            signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
