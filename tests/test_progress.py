"""Progress bars write a line now and then into a log file, and there is one kind of them."""

import io
import sys
import time
from pathlib import Path

import pytest

from headcount.progress import progress_bar

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(("leave", "lines"), [(True, 2), (False, 0)])
def test_a_log_gets_the_first_and_the_last_line(leave: bool, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress_bar(range(30), label="evaluating", leave=leave):
        time.sleep(0.02)  # tqdm's own interval is 0.1 s
    assert len([line for line in log.getvalue().split("\r") if line.strip()]) == lines
    if leave:
        assert "evaluating: 100%" in log.getvalue()


def test_only_one_file_makes_progress_bars() -> None:
    files = [file for folder in ("src", "benchmarks", "scripts") for file in (ROOT / folder).rglob("*.py")]
    assert [file.name for file in files if "tqdm" in file.read_text() and "import tqdm" in file.read_text()] == [
        "progress.py"
    ]
