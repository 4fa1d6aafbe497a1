"""NWPU-Crowd's files and figures: every fault of a file is told, and scores are those worked out by hand."""

import json
import math
from pathlib import Path

import pytest

from headcount.config import ConfigError
from headcount.report.nwpu import read_submission, score, scores_table, write_scores, write_submission


def submission(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "submission.txt"
    file.write_bytes(text.encode())
    return file


def test_a_written_file_is_read_back_and_valid(tmp_path: Path) -> None:
    counts = {"3612": 8976.01731, "3610": 0.0, "0007": 2.24564}
    file = tmp_path / "out.txt"
    file.write_text("of an earlier run")
    write_submission(counts, file)
    assert file.read_text() == "3612 8976.0173\n3610 0.0000\n7 2.2456\n"  # in the order given
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    read = read_submission(file, [7, 3610, 3612])
    assert read.problems == []
    assert read.counts == {3612: 8976.0173, 3610: 0.0, 7: 2.2456}


@pytest.mark.parametrize("count", [-0.5, math.nan, math.inf])
def test_a_count_that_is_none_is_not_written(count: float, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("old")
    with pytest.raises(ValueError, match="these are not: 3611"):
        write_submission({"3610": 1.0, "3611": count}, tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3611 -1", "line 2: id 3611: the count -1 is negative"),
        ("3611 nan", "line 2: id 3611: the count 'nan' is not a finite number"),
        ("3611 inf", "line 2: id 3611: the count 'inf' is not a finite number"),
        ("3611 many", "line 2: id 3611: the count 'many' is not a finite number"),
        ("3611 1_0", "line 2: id 3611: the count '1_0' is not a finite number"),
        ("3611\t5", r"line 2: '3611\t5': id and count must be separated by one space"),
        ("3611  5", "line 2: '3611  5': id and count must be separated by one space"),
        ("3611 1 5 5", "line 2: '3611 1 5 5' has 4 items, not an id and a count; a localization file has more"),
        ("3611", "line 2: '3611' has 1 items, not an id and a count"),
    ],
)
def test_a_bad_line_is_one_problem(line: str, problem: str, tmp_path: Path) -> None:
    """The image it is about is not told as missing on top."""
    read = read_submission(submission(tmp_path, f"3610 1\n{line}\n3612 2.5\n"), range(3610, 3613))
    assert read.problems == [problem]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "3610 1\n3610 2\n3612 0\n",
            ["line 2: id 3610 is already in line 1", "1 of 3 images are missing: 3611"],
        ),
        (
            "3610 1\n3611 2\n0001 0\n",
            ["line 3: id 1 is not one of the 3 images", "1 of 3 images are missing: 3612"],
        ),
        (
            "3610 1\n\n3611 2\n3612 0\n",
            ["line 2: is blank", "there are 4 lines, 3 are expected, one per image"],
        ),
        (
            "3610,1\n3611 2\n3612 0\n",
            [
                "line 1: '3610,1' has 1 items, not an id and a count",
                "1 of 3 images are missing: 3610",
            ],
        ),
        (
            "\ufeff3610 1\n3611 2\n3612 0\n",
            [
                r"line 1: '\ufeff3610' is not an image id; the file begins with a byte order mark",
                "1 of 3 images are missing: 3610",
            ],
        ),
        ("", ["3 of 3 images are missing: 3610 to 3612", "there are 0 lines, 3 are expected, one per image"]),
    ],
)
def test_every_problem_of_a_file_is_listed(text: str, problems: list[str], tmp_path: Path) -> None:
    assert read_submission(submission(tmp_path, text), range(3610, 3613)).problems == problems


def test_missing_images_are_all_named_in_few_words(tmp_path: Path) -> None:
    kept = [3610, 3613, 3615]
    file = submission(tmp_path, "".join(f"{k} 1\n" for k in kept))
    problems = read_submission(file, range(3610, 3620)).problems
    assert problems[0] == "7 of 10 images are missing: 3611 to 3612, 3614, 3616 to 3619"


def test_windows_line_ends_and_a_missing_last_one_do_no_harm(tmp_path: Path) -> None:
    assert read_submission(submission(tmp_path, "3610 1\r\n3611 2"), [3610, 3611]).problems == []


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"3610 \xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        read_submission(tmp_path / "x", [3610])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_submission(tmp_path, [3610])


# True counts at the ends of the scene levels, and an error for each.
TRUE = {1: 0.0, 2: 100.0, 3: 101.0, 4: 500.0, 5: 5000.0, 6: 5001.0, 7: 1.0}
ERROR = {1: 3.0, 2: -10.0, 3: 2.0, 4: 4.0, 5: 50.0, 6: -100.0, 7: 1.0}
LABELS = {1: "0 0", 2: "1 1", 3: "1 2", 4: "2 2", 5: "0 3", 6: "2 4", 7: "1 1"}


def predicted() -> dict[int, float]:
    return {k: TRUE[k] + ERROR[k] for k in TRUE}


def test_scores_worked_out_by_hand() -> None:
    scores = score(predicted(), TRUE, {k: v.split() for k, v in LABELS.items()})
    assert scores.overall.images == 7
    assert scores.overall.mae == pytest.approx(170 / 7)
    assert scores.overall.rmse == pytest.approx(math.sqrt((9 + 100 + 4 + 16 + 2500 + 10000 + 1) / 7))
    nae = [10 / 100, 2 / 101, 4 / 500, 50 / 5000, 100 / 5001, 1 / 1]  # without the image that shows nobody
    assert scores.overall.nae == pytest.approx(sum(nae) / 6)

    levels = {name: (e.images, e.mae, e.rmse) for name, e in scores.levels.items() if e is not None}
    assert levels == {
        "S0": (1, 3, 3),
        "S1": (2, pytest.approx(5.5), pytest.approx(math.sqrt(101 / 2))),
        "S2": (2, 3, pytest.approx(math.sqrt(10))),
        "S3": (1, 50, 50),
        "S4": (1, 100, 100),
    }
    assert scores.level_averages["mae"] == pytest.approx((3 + 5.5 + 3 + 50 + 100) / 5)
    level_nae = [(0.1 + 1) / 2, (2 / 101 + 4 / 500) / 2, 0.01, 100 / 5001]
    assert scores.level_averages["nae"] == pytest.approx(sum(level_nae) / 4)
    assert scores.mmae_level == pytest.approx((3 + 5.5 + 3 + 50 + 100) / 5)

    assert scores.luminance is not None
    assert scores.luminance_averages is not None
    shades = {name: None if e is None else e.mae for name, e in scores.luminance.items()}
    assert shades == {"L0": 26.5, "L1": pytest.approx(13 / 3), "L2": 52, "L3": None}
    assert scores.luminance_averages["mae"] == pytest.approx((26.5 + 13 / 3 + 52) / 3)
    # The benchmark's code: four labels, and -1 for one without images.
    assert scores.mmae_luminance == pytest.approx((26.5 + 13 / 3 + 52 - 1) / 4)
    assert scores.other_levels == []


def test_without_labels_and_with_empty_levels() -> None:
    scores = score({1: 4.0, 2: 60.0}, {1: 0.0, 2: 50.0})
    assert scores.luminance is None
    assert scores.mmae_luminance is None
    assert scores.levels["S4"] is None
    assert scores.level_averages == pytest.approx({"mae": 7.0, "rmse": 7.0, "nae": 0.2})
    assert scores.mmae_level == pytest.approx((4 + 10 - 3) / 5)
    assert "no luminance labels" in scores_table(scores)


def test_a_level_of_the_list_that_contradicts_the_heads_is_told() -> None:
    labels = {k: v.split() for k, v in LABELS.items()} | {4: ["2", "3"]}
    scores = score(predicted(), TRUE, labels)
    assert scores.other_levels == [4]
    assert scores.levels["S2"] is not None
    assert scores.levels["S2"].images == 2  # by its 500 heads
    assert "1 images have another scene level" in scores_table(scores)


def test_ids_must_pair_and_labels_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"ids \[2, 3\]"):
        score({1: 1.0, 2: 1.0}, {1: 1.0, 3: 1.0})
    with pytest.raises(ValueError, match="id 1: luminance label '4' is not one of 0 to 3"):
        score({1: 1.0}, {1: 1.0}, {1: ["4", "1"]})


def test_the_table_and_the_json_say_the_same(tmp_path: Path) -> None:
    scores = score(predicted(), TRUE, {k: v.split() for k, v in LABELS.items()})
    table = {line.split()[0]: line.split() for line in scores_table(scores).splitlines() if line.startswith(" ")}
    assert [table["S1"][-4], table["S1"][-3], table["S1"][-1]] == ["2", "5.50", "0.5500"]
    assert table["S0"][-1] == "-"
    write_scores(scores, tmp_path / "s.json", facts={"split": "val"})
    plain = json.loads((tmp_path / "s.json").read_text())
    assert plain["split"] == "val"
    assert plain["levels"]["S0"] == {"mae": 3, "rmse": 3, "nae": None, "images": 1}
    assert plain["luminance"]["L3"] is None
    assert "calls MSE" in scores_table(scores)
