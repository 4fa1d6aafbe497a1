"""The values that fields take: a range beside each number's default, checked for a whole config at once."""

import dataclasses
import math
import os
from dataclasses import field
from typing import Any

from omegaconf import MISSING

from headcount.wording import cut

_MAX_NAME_BYTES = 255  # of a file or folder, in the usual file systems


def number(default: Any, minimum: float = 0, maximum: float = math.inf) -> Any:
    """A dataclass field whose value must lie between ``minimum`` and ``maximum``, both included.

    Give a maximum: a typing error such as 10^12 must not start processes, allocate memory or run for years.
    :func:`range_errors` checks it; None, where the field's type allows it, is always in range. In a list, every number
    must be in range.
    """
    metadata = {"range": (minimum, maximum)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def range_errors(config: Any, path: str = "") -> list[str]:
    """Find numbers outside the range of their field and blank texts, in a dataclass and the dataclasses inside it.

    Args:
        config: a dataclass instance.
        path: full name of ``config`` with a dot at its end, such as ``optim.``; empty for a whole config.

    Returns:
        One message per setting.
    """
    errors = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        key = f"{path}{item.name}"
        allowed = item.metadata.get("range")
        if dataclasses.is_dataclass(value):
            errors += range_errors(value, f"{key}.")
        elif isinstance(value, str) and value != MISSING and not value.strip():
            # As a path, it would be the working folder.
            errors.append(f"{key}={value}: must not be empty; leave it out, or name something")
        elif isinstance(value, str) and any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in value.split("/")):
            errors.append(f"{key}={cut(value)}: is too long: a name in a path may have {_MAX_NAME_BYTES} bytes")
        elif value is not None and allowed is not None:
            minimum, maximum = allowed
            values = value if isinstance(value, list) else [value]
            if not all(minimum <= one <= maximum and math.isfinite(one) for one in values):
                what = "each number must be" if isinstance(value, list) else "must be"
                limits = f"from {_exact(minimum)} to {_exact(maximum)}"
                if maximum == math.inf:
                    limits = f"at least {_exact(minimum)}, and finite"
                errors.append(f"{key}={value}: {what} {limits}")
    return errors


def _exact(value: float) -> str:
    """A limit as text: whole numbers with all digits, such as 4294967295."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def nearest_multiples(value: int, step: int) -> str:
    """The multiple of ``step`` next to ``value`` that a message recommends."""
    below = value // step * step
    return f"nearest below or at: {below}" if below else f"the smallest is {step}"
