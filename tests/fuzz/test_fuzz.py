"""A few of the cases of ``make fuzz``, and what the fuzzer itself must notice: it fails where it should."""

import os
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from fuzz.harness import Case, run_cases
from fuzz.mutate import mutated, mutated_text

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "number"), [("annotations", 250), ("images", 150), ("settings", 40), ("checkpoints", 40), ("names", 3)]
)
def test_random_inputs_are_read_rightly_or_refused_by_name(kind: str, number: int, tmp_path: Path) -> None:
    from fuzz.kinds import CHECKS

    report = run_cases((Case(kind, 1, k) for k in range(number)), CHECKS, tmp_path / "keep", seconds=300)
    assert not report.faults, "\n".join(report.faults)
    assert sum(report.outcomes.values()) == number
    assert len(report.outcomes) > 1, "all inputs are alike"


# ------------------------------------------------------------------------------------------ the fuzzer


def fine(rng: np.random.Generator, folder: Path) -> str:
    (folder / "input").write_bytes(rng.bytes(9))
    return "read"


def wrong(rng: np.random.Generator, folder: Path) -> str:
    fine(rng, folder)
    raise AssertionError("it is wrong")


def warning(rng: np.random.Generator, folder: Path) -> str:
    warnings.warn("strange", stacklevel=1)
    return "read"


def leaving(rng: np.random.Generator, folder: Path) -> str:
    raise SystemExit(3)


def crashing(rng: np.random.Generator, folder: Path) -> str:
    fine(rng, folder)
    os.abort()


def hanging(rng: np.random.Generator, folder: Path) -> str:
    fine(rng, folder)
    time.sleep(1000)
    return "read"


def greedy(rng: np.random.Generator, folder: Path) -> str:
    return f"read {len(bytearray(7 * 2**30))}"


FAULTS = {
    "wrong": (wrong, "it is wrong"),
    "warning": (warning, "UserWarning: strange"),
    "leaving": (leaving, "SystemExit: 3"),
    "crashing": (crashing, r"status -6[^0-9](.*\n)*.*in crashing"),
    "hanging": (hanging, r"not finished after 5 s\n(.*\n)*.*in hanging"),
    "greedy": (greedy, "MemoryError"),
}


def test_each_kind_of_fault_is_noticed_and_its_input_kept(tmp_path: Path) -> None:
    checks = {"fine": fine, **{name: check for name, (check, _) in FAULTS.items()}}
    cases = [Case(kind, 7, k) for k in range(2) for kind in checks]
    report = run_cases(cases, checks, tmp_path, processes=2, seconds=5)
    assert report.outcomes == {"fine read": 2, **{f"{name} FAULT": 2 for name in FAULTS}}
    for name, (_, message) in FAULTS.items():
        found = [fault for fault in report.faults if f"--seed 7 --only {name}:1;" in fault]
        assert len(found) == 1
        assert re.search(message, found[0]), found[0]
    for name in ("wrong", "crashing", "hanging"):
        kept = (tmp_path / f"{name}-7-1" / "input").read_bytes()
        assert kept == Case(name, 7, 1).rng().bytes(9), "the same case makes the same input"


@pytest.mark.parametrize("change", [mutated, mutated_text])
def test_damage_is_repeatable_and_various(change: object) -> None:
    data = bytes(range(256))
    results = [change(np.random.default_rng(k), data, other=b"other") for k in range(200)]  # type: ignore[operator]
    again = [change(np.random.default_rng(k), data, other=b"other") for k in range(200)]  # type: ignore[operator]
    assert results == again
    assert len(set(results)) > 150
    assert sum(result != data for result in results) > 180
