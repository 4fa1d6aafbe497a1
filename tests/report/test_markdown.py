"""Tables as Markdown writes them."""

import html
import re

import markdown
import pytest

from headcount.report.markdown import code, code_block, pipe_table, plain

NAMES = [
    "<script>alert(1)</script>",
    "**bold** *it* _it_ __b__ `code` ![x](http://evil/x.png)",
    "[a](b) [a][b] &lt; &#60;",
    "a `b ``c``` d",
    "ends in \\",
    r"IMG_1_2 [4, inf) 3 * 4 \udce9 \* a & b",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_text(name: str) -> None:
    for written in (f"* {plain(name)}", f"* {code(name)}", "\n".join(pipe_table([["name"], [name]]))):
        page = markdown.markdown(written, extensions=["tables"])
        tags = set(re.findall(r"</?([a-z0-9]+)", page))
        assert tags <= {"ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}
        text = html.unescape(re.sub(r"<[^>]*>", "", page))
        assert name.replace("\\", "") in text.replace("\\", "")


def test_usual_names_are_written_as_they_are() -> None:
    for name in ("IMG_1_2", "/data/my photos/a-b.jpg", "[4, inf)", "R&D 100%", r"caf\udce9", "3 / 4 **", "12 *"):
        assert plain(name) == name


def test_a_message_cannot_leave_its_block() -> None:
    message = "train: 1 image:\n```\n<b>\n~~~\n  \x1b[31m````"
    first, text, last = code_block(message)
    assert first == last == "`" * 5
    assert text == message.replace("\x1b", r"\x1b")


def test_lines_and_marks_cannot_end_a_cell() -> None:
    assert len(pipe_table([["a"], ["b\n\n| c |\r<b>"]])) == 3


def test_numbers_stand_flush_right() -> None:
    assert pipe_table([["run", "seed", "MAE"], ["a", "1", "90.2"]], numbers_from=2) == [
        "| run   | seed   |   MAE |",
        "|:------|:-------|------:|",
        "| a     | 1      |  90.2 |",
    ]


def test_words_stand_left_and_a_bar_is_no_border() -> None:
    assert pipe_table([["bins"], ["fine|coarse"]]) == [
        "| bins         |",
        "|:-------------|",
        r"| fine\|coarse |",
    ]


def test_fewer_columns_than_are_words() -> None:
    assert pipe_table([["run"]], numbers_from=2) == ["| run   |", "|-------|"]


def test_a_number_keeps_its_digits_and_a_line_break_does_not_split_a_row() -> None:
    assert pipe_table([["MAE"], ["1.50"], ["a\nb"]]) == ["| MAE   |", "|:------|", "| 1.50  |", "| a b   |"]
