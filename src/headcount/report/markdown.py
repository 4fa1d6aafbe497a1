"""Tables and texts of Markdown pages; whatever a name contains stays text."""

import re
from collections.abc import Sequence

from tabulate import tabulate

from headcount.wording import printable

# What makes code, a cell, HTML, a character reference, emphasis (but not an underscore within a word, or an asterisk
# between spaces), a link, or an address that becomes a link.
_MARKUP = re.compile(
    r"[`~|<>]|\\(?=[!-/:-@\[-`{-~]|$)|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|(?<![\s*])\*+|\*+(?![\s*]|$)|\](?=[(\[:])|(?<=www)\.|(?<=:)/(?=/)",
    re.IGNORECASE,
)
_HTML = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def plain(text: str) -> str:
    """Text within a line of a page, such as a message that contains names, without any markup."""
    return _MARKUP.sub(lambda mark: "".join(_HTML.get(c, f"\\{c}") for c in mark[0]), printable(text))


def code(text: str) -> str:
    """Text within a line, in the font of code."""
    ticks = _ticks(text, 1)
    space = " " if "`" in text else ""
    return f"{ticks}{space}{printable(text)}{space}{ticks}"


def code_block(text: str) -> list[str]:
    """Lines in the font of code, such as a message of several lines."""
    ticks = _ticks(text, 3)
    return [ticks, printable(text, keep="\n"), ticks]


def _ticks(text: str, least: int) -> str:
    """The marks of code, longer than any in the text."""
    return "`" * max([least, *(len(found) + 1 for found in re.findall("`+", text))])


def pipe_table(rows: Sequence[Sequence[str]], *, numbers_from: int | None = None, markup: bool = False) -> list[str]:
    """Format a table.

    Args:
        rows: the same number of cells in each row, the headings first.
        numbers_from: index of the first right-aligned column; None aligns all columns to the left.
        markup: whether cells contain Markdown; otherwise their text is written :func:`plain`.

    Returns:
        The lines of the table.
    """
    headings, *body = [[cell if markup else plain(cell.replace("\n", " ")) for cell in row] for row in rows]
    left = len(headings) if numbers_from is None else min(numbers_from, len(headings))
    alignment = ["left"] * left + ["right"] * (len(headings) - left)
    return tabulate(body, headings, tablefmt="pipe", disable_numparse=True, colalign=alignment).splitlines()
