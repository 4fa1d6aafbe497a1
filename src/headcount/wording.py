"""Phrases that messages of several modules have in common."""

import re
from collections.abc import Sequence


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """List names in a message, separated by commas; ``...`` stands for those after the first ``limit``."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def url_hint(path: str) -> str:
    """What to do about a URL that was given as a path; empty for anything else."""
    # A Path has one slash after the scheme. One letter and a colon are a drive of Windows.
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:", path)
    return "; this is a URL: download the file, and give the path of the copy" if is_url else ""
