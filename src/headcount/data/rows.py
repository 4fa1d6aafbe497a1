"""Tables of text: lines of fields with one separator, and named columns of numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headcount.data.kinds import DataErrorKind
from headcount.data.textfile import is_number, read_text
from headcount.errors import DataError


class Row(NamedTuple):
    """A line of a text table."""

    line: int
    """Its number in the file, from 1."""
    text: str
    fields: list[str]


def read_rows(path: Path) -> list[Row]:
    """Read the lines of a text table, without empty ones.

    The separator is the most frequent of comma, semicolon and tab in the first line, or else blanks. A file has one
    separator, so that a decimal comma is never mistaken for one.
    """
    lines = read_text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=first.count)
    if separator not in first:
        separator, lines = " ", [line.strip() for line in lines]
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    found: list[Row] = []
    try:
        for row in rows:
            if rows.line_num != len(found) + 1:  # A field took the lines after it with it.
                raise csv.Error(f"line {len(found) + 1} has a quotation mark that is not closed in it")
            found.append(Row(rows.line_num, lines[rows.line_num - 1].strip(), [field.strip() for field in row]))
    except csv.Error as error:
        raise _invalid(path, f"{path}, line {rows.line_num}: {error}; correct the quotation marks") from error
    return [row for row in found if any(row.fields)]


def find_columns(header: Row, path: Path, *wanted: str) -> tuple[int, ...]:
    """Find the positions of named columns, each of which must occur once."""
    names = [field.lower() for field in header.fields]
    if any(names.count(name) != 1 for name in wanted):
        raise _invalid(
            path,
            f"{path}, line {header.line}: the columns are {header.text[:80]!r}, expected {', '.join(wanted)} once; "
            "name these in the first line",
        )
    return tuple(names.index(name) for name in wanted)


def to_positions(rows: Sequence[Row], columns: tuple[int, ...], width: int, path: Path) -> np.ndarray:
    """Convert two columns of a table of ``width`` columns to numbers."""
    for row in rows:
        if len(row.fields) != width or not all(is_number(row.fields[column]) for column in columns):
            raise _invalid(
                path,
                f"{path}, line {row.line}: {row.text[:80]!r} is not a position: {width} columns expected, as in the "
                "first line, with numbers as x and y and a point as decimal mark",
            )
    return np.array([[float(row.fields[column]) for column in columns] for row in rows])


def _invalid(path: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.annotation, file=path)
