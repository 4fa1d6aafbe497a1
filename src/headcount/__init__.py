"""Crowd counting by enhanced blockwise classification (arXiv:2403.09281).

``headcount.load("best_mae.pt").count("photo.jpg")`` counts the people in a photo.
"""

from typing import Any

__version__ = "0.2.0"
__all__ = ["PhotoCount", "PhotoCounter", "convert_released", "load", "read_regions"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Imported on first use, so that invalid settings are reported before torch is loaded.
    if name in __all__:
        from headcount.data import region_files
        from headcount.engine import predict
        from headcount.models import released

        modules = {"convert_released": released, "read_regions": region_files}
        return getattr(modules.get(name, predict), name)
    raise AttributeError(f"module 'headcount' has no attribute {name!r}")
