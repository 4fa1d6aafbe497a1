"""Damage bytes and texts at random."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

# Numbers at which sizes and counters overflow.
_LIMITS = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (
    *("nan", "-inf", "1e400", "1e-400", "-0", "1_000", "0x10", "9" * 400, "9" * 5000, "٣", "１", "½", "+", "-", "."),
    *(",", ";", "\t", " ", "\n", "\r", "\r\n", "\0", '"', "'", "\\", "[", "]", "{", "}", ":", "#", "\ufeff", "\u2028"),
    *("null", "true", "false", "x", "y", "image", "points", "annotations", "é", "e\u0301", "👩", "\u202e", "\x1b[2J"),
)
"""Texts that readers of numbers, tables and JSON trip over."""


def mutated(rng: np.random.Generator, data: bytes, *, other: bytes = b"") -> bytes:
    """Change a file in one to four places.

    Args:
        other: another file, a piece of which may be spliced in.
    """
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        data = _change(rng, data, other)
    return data


def mutated_text(rng: np.random.Generator, data: bytes, *, other: bytes = b"") -> bytes:
    """Change a text file in one to four places, mostly by texts of :data:`TOKENS`."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        if rng.random() < 0.3:
            data = _change(rng, data, other)
            continue
        token = pick(rng, TOKENS).encode()
        start = _place(rng, data)
        end = start + int(rng.integers(0, 4))
        data = data[:start] + token * int(rng.choice([1, 1, 1, 2, 50])) + data[end:]
    return data


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of several, of any type."""
    return choices[int(rng.integers(len(choices)))]


def _place(rng: np.random.Generator, data: bytes) -> int:
    """A position; headers, at the start, are damaged as often as all the rest."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 160)
    return int(rng.integers(end + 1))


def _change(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    start, length = _place(rng, data), int(rng.choice([1, 2, 4, 8, 64, 1000]))
    end = start + length
    match int(rng.integers(9)):
        case 0:  # one bit
            flipped = bytes(byte ^ 1 << int(rng.integers(8)) for byte in data[start : start + 1])
            return data[:start] + flipped + data[start + 1 :]
        case 1:
            return data[:start] + rng.bytes(min(length, 8)) + data[end:]
        case 2:  # a number of 1, 2 or 4 bytes
            size = int(rng.choice([1, 2, 4]))
            value = int(rng.choice(_LIMITS)) % 256**size
            return data[:start] + value.to_bytes(size, "little" if rng.random() < 0.5 else "big") + data[start + size :]
        case 3:
            return data[:start]
        case 4:
            return data[:start] + data[end:]
        case 5:
            return data[:end] + data[start:]
        case 6:
            return data[:start] + rng.bytes(length) + data[start:]
        case 7:
            return data[:start] + bytes(min(length, max(len(data) - start, 0))) + data[end:]
        case _:
            there = _place(rng, other)
            return data[:start] + other[there : there + length] + data[end:]
