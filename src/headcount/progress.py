"""Progress bars: a moving bar on a terminal, a line at intervals in a log file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# Seconds between two updates.
_ON_TERMINAL = 0.2
_IN_LOG = 20


def progress_bar(items: Iterable[Any] | None = None, *, label: str, unit: str = "img", **settings: Any) -> Any:
    """A tqdm bar on stderr.

    Args:
        items: what to iterate over; None for a bar that is updated by hand.
        label: what is being done.
        unit: what is counted.
        settings: other settings of tqdm, such as ``total`` and ``disable``. With ``leave=False``, the bar disappears
            from a terminal at its end, and appears in a log file only if it takes longer than an interval.
    """
    on_terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=label,
        unit=unit,
        dynamic_ncols=True,
        mininterval=_ON_TERMINAL if on_terminal else _IN_LOG,
        # tqdm would otherwise update more often than asked for.
        maxinterval=10 if on_terminal else 2 * _IN_LOG,
        delay=0 if on_terminal or settings.get("leave", True) else _IN_LOG,
        **settings,
    )
