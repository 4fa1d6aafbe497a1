"""Phrases of messages."""

from headcount.wording import first_names


def test_a_long_list_of_names_shows_the_first() -> None:
    names = ["a", "b", "c", "d", "e", "f"]
    assert first_names(names) == "a, b, c, d, e, ..."
    assert first_names(names, 6) == "a, b, c, d, e, f"
    assert first_names(names[:5]) == "a, b, c, d, e"
    assert first_names([]) == ""
