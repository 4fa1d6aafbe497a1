"""Phrases that messages of several modules have in common, and names as they are shown."""

import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress

MAX_NAME_LENGTH = 255
"""Longest name in a message, in characters: no file system has longer ones, but a file may hold any text as a name."""

# Controls, invisible marks (some reverse the text after them), halves of characters, and line separators.
_NOT_SHOWN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Persian, Indic scripts and emoji need these two.
_JOINERS = "\u200c\u200d"


def one_line(error: object, limit: int = 300) -> str:
    """The message of another library in one line, without what follows the first ``limit`` characters."""
    return cut(" ".join(str(error).split()), limit)


def cut(text: str, limit: int = 80) -> str:
    """A text from a file as it is quoted in a message: of a long one, only the start."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """List names in a message, separated by commas; ``...`` stands for those after the first ``limit``."""
    return ", ".join(printable(cut(name, MAX_NAME_LENGTH)) for name in names[:limit]) + (
        ", ..." if len(names) > limit else ""
    )


def many(number: int, what: str) -> str:
    """A number of things, such as ``1 image`` and ``2 images``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape what a terminal would act on, or not show: ``\n``, ``\x1b``, ``\u202e``, ``\udcff`` for a byte.

    For every name and text that comes from data, a checkpoint or another file, wherever it is printed, logged or drawn.

    Args:
        keep: characters that stay, such as the line ends of a message with several lines.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _NOT_SHOWN and c not in _JOINERS and c not in keep
        else c
        for c in decoded(text)
    )


def url_hint(path: str) -> str:
    """What to do about a URL that was given as a path; empty for anything else."""
    # A Path has one slash after the scheme. One letter and a colon are a drive of Windows.
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", path)
    return "; this is a URL: download the file, and give the path of the copy" if is_url else ""


def decoded(text: str) -> str:
    """The text as a system that uses UTF-8 reads it; in the C locale, each byte of a letter is a character."""
    with suppress(UnicodeEncodeError):  # half of a surrogate pair, which Windows and JSON allow
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return text
