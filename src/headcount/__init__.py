"""Crowd counting by enhanced blockwise classification (arXiv:2403.09281).

``headcount.load().count("photo.jpg")`` counts the people in a photo.
"""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["PhotoCount", "PhotoCounter", "available", "convert_released", "load", "read_regions"]

_MODULES = {
    "available": "published",
    "convert_released": "models.released",
    "load": "engine.load",
    "read_regions": "data.region_files",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Imported on first use, so that invalid settings are reported before torch is loaded.
    if name in __all__:
        return getattr(importlib.import_module(f"headcount.{_MODULES.get(name, 'engine.predict')}"), name)
    raise AttributeError(f"module 'headcount' has no attribute {name!r}")
