"""Tables as Markdown writes them."""

from collections.abc import Sequence


def pipe_table(rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> list[str]:
    """The lines of a table whose first row holds the headings.

    Args:
        rows: cells of equal number a row; a ``|`` within one is escaped.
        numbers_from: columns from this one on are set flush right; None for no column.
    """
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    columns = len(rows[0])
    left = columns if numbers_from is None else min(numbers_from, columns)
    return [lines[0], "|" + " --- |" * left + " ---: |" * (columns - left), *lines[1:]]
