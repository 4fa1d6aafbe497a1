"""Phrases and forms that messages of several modules have in common."""

from collections.abc import Sequence


def one_line(error: object, limit: int = 300) -> str:
    """The message of another library in one line, without what follows the first ``limit`` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """List names in a message, separated by commas; ``...`` stands for those after the first ``limit``."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
