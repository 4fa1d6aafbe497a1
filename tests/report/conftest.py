"""What the tests of pictures share."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that a test draws; their files are empty."""
    seen: list[Figure] = []

    def savefig(figure: Figure, path: Path, **options: Any) -> None:
        path.touch()
        seen.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen
