"""Run the tests marked ``gpu`` in a process of their own, and read their results."""

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class TestsError(Exception):
    """A test failed, or the tests could not be run."""


@dataclass
class Outcome:
    """The results of the tests of one file."""

    module: str
    """The file, as a Python module."""
    passed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of tests."""
    failures: dict[str, str] = field(default_factory=dict)
    """Test -> message."""

    def columns(self) -> dict[str, str]:
        """The numbers, for a table."""
        numbers = {"passed": self.passed, "failed": len(self.failures), "skipped": sum(self.skipped.values())}
        return {"tests": self.module, **{name: str(number) for name, number in numbers.items()}}

    def check(self) -> dict[str, str]:
        """What is to say about the tests that did not fail; a failed one has a row of its own."""
        reasons = ", ".join(self.skipped)
        if not self.passed and not self.failures:
            return {"result": f"skipped: {reasons}"}
        return {"result": "; ".join(["passed" if not self.failures else "see below", *filter(None, [reasons])])}


# Marked itself, or by the fixture ``device``.
_FOR_A_GPU = re.compile(r"pytest\.mark\.gpu\b|^def test_\w+\([^)]*\bdevice\b", re.M)


def gpu_tests() -> list[Path]:
    """The files that contain tests marked ``gpu``; only these are imported, which saves half a minute."""
    files = (ROOT / "tests").rglob("test_*.py")
    return sorted(file for file in files if _FOR_A_GPU.search(file.read_text(encoding="utf-8")))


def run_tests(files: Sequence[Path], *, timeout: float, options: Sequence[str] = ()) -> list[Outcome]:
    """Run the tests of ``files`` that are marked ``gpu``; one outcome for each file that has some.

    Args:
        timeout: in seconds.
        options: of pytest.

    Raises:
        TestsError: if pytest could not run them, or not in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "gpu",
            *options,
            f"--junitxml={report}",
            *map(str, files),
        ]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise TestsError(f"the tests did not end within {timeout:.0f} s") from error
        print(done.stdout[-5000:], done.stderr[-5000:], sep="\n", file=sys.stderr)
        if done.returncode not in (0, 1):  # 1: a test failed
            raise TestsError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-200:]}")
        return read_outcomes(report)


def read_outcomes(report: Path) -> list[Outcome]:
    """The outcomes in pytest's JUnit report, by file."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "")
        outcome = outcomes.setdefault(module, Outcome(module))
        problems = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if problems:
            outcome.failures[f"{module}::{case.get('name')}"] = problems[0].get("message", "")
        elif skipped is not None:
            reason = skipped.get("message", "")
            outcome.skipped[reason] = outcome.skipped.get(reason, 0) + 1
        else:
            outcome.passed += 1
    return list(outcomes.values())
