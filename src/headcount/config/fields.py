"""Numeric fields with a range: stated beside the default, checked for a whole config at once."""

import dataclasses
import math
from dataclasses import field
from typing import Any


def number(default: Any, minimum: float = 0, maximum: float = math.inf) -> Any:
    """A dataclass field whose value must lie between ``minimum`` and ``maximum``, both included.

    :func:`range_errors` checks it; None, where the field's type allows it, is always in range.
    """
    return field(default=default, metadata={"range": (minimum, maximum)})


def range_errors(config: Any, path: str = "") -> list[str]:
    """Find the numbers outside the range of their field, in a dataclass and the dataclasses inside it.

    Args:
        config: a dataclass instance.
        path: full name of ``config`` with a dot at its end, such as ``optim.``; empty for a whole config.

    Returns:
        One message per number.
    """
    errors = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        key = f"{path}{item.name}"
        allowed = item.metadata.get("range")
        if dataclasses.is_dataclass(value):
            errors += range_errors(value, f"{key}.")
        elif value is not None and allowed is not None:
            minimum, maximum = allowed
            if not (minimum <= value <= maximum and math.isfinite(value)):
                limits = f"from {minimum:g} to {maximum:g}"
                if maximum == math.inf:
                    limits = f"at least {minimum:g}, and finite"
                errors.append(f"{key}={value}: must be {limits}")
    return errors
