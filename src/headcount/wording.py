"""Phrases that messages of several modules have in common."""

from collections.abc import Sequence


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """List names in a message, separated by commas; ``...`` stands for those after the first ``limit``."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
