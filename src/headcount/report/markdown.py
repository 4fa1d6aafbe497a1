"""Tables of Markdown pages."""

from collections.abc import Sequence

from tabulate import tabulate


def pipe_table(rows: Sequence[Sequence[str]], *, numbers_from: int | None = None) -> list[str]:
    """Format a table.

    Args:
        rows: the same number of cells in each row, the headings first. A ``|`` within a cell is escaped.
        numbers_from: index of the first right-aligned column; None aligns all columns to the left.

    Returns:
        The lines of the table.
    """
    headings, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    left = len(headings) if numbers_from is None else min(numbers_from, len(headings))
    alignment = ["left"] * left + ["right"] * (len(headings) - left)
    return tabulate(body, headings, tablefmt="pipe", disable_numparse=True, colalign=alignment).splitlines()
