"""The exit statuses of every command, and how a command ends on an error whose message is written for the user."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headcount.cli.start import INTERRUPTED
from headcount.errors import HeadcountError
from headcount.files import NO_ROOM, READ_ONLY
from headcount.wording import printable

FAILED = 1
"""Part of the work failed; the rest was done."""
REFUSED = 2
"""A setting is invalid, or a file is missing, damaged or cannot be written: what to do is in the message."""


@contextmanager
def exit_on_error(program: str, *also: type[Exception], interrupts: bool = True) -> Iterator[None]:
    """Print the message of a :class:`HeadcountError`, or of an error of the types ``also``, and exit with 2.

    Likewise for a disk without room, or that must not be written, where another library found it.

    Args:
        program: the name before the message.
        also: more types whose messages are written for the user.
        interrupts: whether Ctrl-C ends the command with one line, too; False where the caller has more to say.
    """
    kinds: tuple[type[Exception], ...] = (HeadcountError, *also)
    try:
        yield
    except kinds as error:
        print_error(program, error)
        sys.exit(REFUSED)
    except KeyboardInterrupt:
        if not interrupts:
            raise
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in (*NO_ROOM, *READ_ONLY):
            raise
        text = f"{program}: a file cannot be written: {error}; free space, or choose another folder"
        print(printable(text, keep="\n"), file=sys.stderr)
        sys.exit(REFUSED)


def print_error(program: str, error: Exception) -> None:
    """Print the message of an error, which may name files and contents of files, on the error stream.

    Not if another process of the same run prints it.
    """
    if getattr(error, "is_reported", False):
        return
    print(printable(f"{program}: {error}", keep="\n"), file=sys.stderr)


def print_any_name() -> None:
    """Let the output streams escape characters that their encoding lacks, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
