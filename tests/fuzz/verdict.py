"""What a right result and a right refusal are."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from headcount.config import CustomConfig
from headcount.data.audit import audit_dataset
from headcount.data.crowd import CrowdDataset
from headcount.data.open import open_split
from headcount.errors import DataError, HeadcountError
from headcount.wording import printable

MAX_MESSAGE = 3000
"""Longest message, in characters; a page of the input is no explanation."""


def refused(error: HeadcountError, path: Path) -> str:
    """Check that a refusal names the file and can be read."""
    message = str(error)
    renamed = path.with_name("train.txt")  # a list of NWPU-Crowd has a fixed name
    assert str(path) in message or str(renamed) in message, f"the message does not name {path}: {message[:500]}"
    assert len(message) <= MAX_MESSAGE, f"a message of {len(message)} characters: {message[:300]}..."
    if isinstance(error, DataError):
        assert error.file in (path, renamed), f"the file of the error is {error.file}, not {path}"
    return "refused"


def shown(text: str) -> None:
    """Check that a terminal only prints this text."""
    assert printable(text, keep="\n") == text, f"it acts on a terminal: {ascii(text)[:2000]}"


def same(found: Any, expected: Any) -> None:
    """Check that a reading is that of an independent reader: positions, or lists or tables of them, or of words."""
    if isinstance(found, dict):
        assert list(found) == list(expected), f"{list(found)[:9]} instead of {list(expected)[:9]}"
        for name in found:
            same(found[name], expected[name])
    elif isinstance(found, list):
        assert len(found) == len(expected), f"{len(found)} items instead of {len(expected)}"
        for one, other in zip(found, expected, strict=True):
            if isinstance(one, Tensor):
                same(one, other)
            else:
                assert one == other, f"{one!r} instead of {other!r}"
    else:
        with np.errstate(over="ignore"):
            array = np.asarray(expected).astype(np.float32).reshape(-1, 2)
        assert np.isfinite(found.numpy()).all()
        assert np.array_equal(found.numpy(), array), f"{found[:5]} ({len(found)}) instead of {array[:5]} ({len(array)})"


def opened(config: CustomConfig, outcome: str) -> CrowdDataset:
    """Check that a dataset of ``good`` and ``bad`` opens without what was refused, and that the audit says the same."""
    dataset = open_split(config, "train")
    audit = audit_dataset(config)
    assert "good" in dataset.names
    if outcome == "refused":
        assert dataset.left_out == ["bad"]
    assert sum(audit.splits[0].faults.values()) == len(dataset.left_out)
    return dataset
