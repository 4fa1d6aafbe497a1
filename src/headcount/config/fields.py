"""Fields with a range: declared beside the default, checked for a whole config at once."""

import dataclasses
import math
from dataclasses import field
from typing import Any


def number(default: Any, least: float = 0, most: float = math.inf) -> Any:
    """A dataclass field whose value :func:`check` holds between ``least`` and ``most``."""
    return field(default=default, metadata={"allowed": (least, most)})


def range_errors(config: Any, path: str) -> list[str]:
    """Numbers outside what their field's metadata allows, for a dataclass and those inside it."""
    errors = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        key = f"{path}{item.name}"
        if dataclasses.is_dataclass(value):
            errors += range_errors(value, f"{key}.")
        elif value is not None and (allowed := item.metadata.get("allowed")):
            least, most = allowed
            if not (least <= value <= most and math.isfinite(value)):
                limits = f"at least {least:g}, and finite" if most == math.inf else f"from {least:g} to {most:g}"
                errors.append(f"{key}={value}: must be {limits}")
    return errors
