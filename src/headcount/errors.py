"""The kinds of errors whose message is written for the user.

A command prints the message without a traceback and exits with status 2.
"""

from pathlib import Path

from headcount.wording import printable


class HeadcountError(ValueError):
    """An error whose message is written for the user; commands print it without a traceback and exit with 2."""

    is_reported = False
    """Whether another process of the same run stops for the same reason and prints it, so that this one does not."""


class ConfigError(HeadcountError):
    """Invalid settings; the message is written for the user."""


class DataError(HeadcountError):
    """A dataset, or one of its files, that is missing or cannot be used.

    Args:
        message: what is wrong and what to do about it.
        kind: what kind of fault it is, in one word that callers can compare. It has a default because a worker process
            of a DataLoader recreates an exception from its message alone.
        file: the file at fault; None if the fault is of no single file.
    """

    def __init__(self, message: str, *, kind: str = "unknown", file: Path | None = None) -> None:
        # A line end in the name of the file would look like the next line of the message.
        super().__init__(message if file is None else message.replace(str(file), printable(str(file))))
        self.kind = kind
        self.file = file


class CheckpointError(HeadcountError):
    """A checkpoint or run folder that is missing, damaged, or was written by something else."""


class OutputError(HeadcountError, OSError):
    """A file that cannot be written, for example because the disk is full or read-only; the file is unchanged."""


class DivergedError(HeadcountError, FloatingPointError):
    """A training whose loss, weights or predictions are no longer finite; what was saved before is finite."""


class ProcessError(HeadcountError):
    """The processes of a run cannot connect, or another one has died; the message says which, how, and what to do."""
