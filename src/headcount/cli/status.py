"""The exit statuses of every command, and how a command ends on an error whose message is written for the user."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headcount.errors import HeadcountError

FAILED = 1
"""Part of the work failed; the rest was done."""
REFUSED = 2
"""Nothing was done: a setting is invalid, or a file is missing."""
INTERRUPTED = 130
"""Stopped by Ctrl-C, as shells report it."""


@contextmanager
def exit_on_error(program: str, *also: type[Exception]) -> Iterator[None]:
    """Print the message of a :class:`HeadcountError`, or of an error of the types ``also``, and exit with 2."""
    kinds: tuple[type[Exception], ...] = (HeadcountError, *also)
    try:
        yield
    except kinds as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(REFUSED)
