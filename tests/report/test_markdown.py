"""Tables as Markdown writes them."""

from headcount.report.markdown import pipe_table


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
