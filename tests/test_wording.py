"""Phrases of messages."""

import pytest

from headcount.wording import first_names, printable


def test_a_long_list_of_names_shows_the_first() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    assert first_names(names) == "a, b, c, d, e, ..."
    assert first_names(names, 6) == "a, b, c, d, e, f"
    assert first_names(names[:5]) == "a, b, c, d, e"
    assert first_names([]) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo é 日本 👩\u200d👧.jpg", "photo é 日本 👩\u200d👧.jpg"),
        ("a\x1b[31mb\n\t\r\x7f", r"a\x1b[31mb\n\t\r\x7f"),
        ("\x9b2J\x85", r"\x9b2J\x85"),  # controls of 8 bits
        ("\u202egpj.exe\u2066\u200b\u2028", r"\u202egpj.exe\u2066\u200b\u2028"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_nothing_that_is_printed_acts_on_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(f"{text}\n{text}", keep="\n") == printable(text, keep="\n") + "\n" + printable(text, keep="\n")
    assert first_names([text]) == shown
