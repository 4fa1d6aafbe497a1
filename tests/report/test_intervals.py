"""Tables and the picture of intervals say what was measured."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from headcount.coverage import JudgedImage, JudgedIntervals
from headcount.intervals import PROMISES
from headcount.report.intervals import (
    coverage_picture,
    describe_calibration,
    describe_intervals,
    intervals_to_plain,
    usual_intervals,
)
from headcount.types import CountInterval
from test_intervals import calibration

NINE = calibration(*(0.5 * k for k in range(1, 10)))


def images(
    half_widths: tuple[float, ...], *, count: int = 40, calibrated: bool, outside: str = ""
) -> list[JudgedImage]:
    """Counts 20, 22, ... of which each is 0 to 9 too low, in turn."""
    made = []
    for k in range(count):
        predicted, true = 20.0 + 2 * k, 20.0 + 2 * k + k % 10
        found = [
            CountInterval(predicted - half, predicted + half, level, calibrated, outside)
            for half, level in zip(half_widths, PROMISES, strict=False)
        ]
        made.append(JudgedImage(f"image_{k}", true, predicted, tuple(found), crps=1.5))
    return made


@pytest.fixture
def both() -> JudgedIntervals:
    """Own intervals that never hold, and calibrated ones that hold 50, 80 and 90 %."""
    own = images((-1.0,) * 4, calibrated=False)
    return JudgedIntervals(own, images((4.5, 7.5, 8.5), calibrated=True), NINE, overlapping=3)


def test_the_tables(both: JudgedIntervals) -> None:
    text = describe_intervals(both)
    lines = text.splitlines()
    assert lines[0] == "  intervals by the counter's own probabilities, uncalibrated (40 images, CRPS 1.50)"
    assert [line.endswith("too narrow") for line in lines[2:6]] == [True] * 4
    assert "  intervals calibrated on 9 images of sha holdout (40 images, CRPS 1.50)" in lines
    calibrated = lines[lines.index("  intervals calibrated on 9 images of sha holdout (40 images, CRPS 1.50)") :]
    assert [line.split()[:5] for line in calibrated[2:5]] == [
        ["50", "%", "50.0", "%", "33.8"],
        ["80", "%", "80.0", "%", "64.4"],
        ["90", "%", "90.0", "%", "76.3"],
    ]
    assert calibrated[5] == "    covered at 90 % by heads: 1-100: 34 of 37, 101-500: 2 of 3"
    assert lines[-1] == "  3 images not judged, being among those of the calibration (9 images of sha holdout)"
    assert "unlike" not in text


def test_images_unlike_the_calibration_are_counted(both: JudgedIntervals) -> None:
    shifted = dataclasses.replace(both, calibrated=images((4.5, 7.5, 8.5), calibrated=True, outside="denser"))
    assert "40 of 40 images unlike those of the calibration" in describe_intervals(shifted)
    wide = dataclasses.replace(both, calibrated=images((90.0, 90.0, 90.0), calibrated=True))
    assert describe_intervals(wide).count("too wide") == 1  # of nine images, 80 % and 90 % may hold always


def test_without_any_there_is_nothing_to_say() -> None:
    none = JudgedIntervals([], [], None)
    assert describe_intervals(none) == ""
    assert intervals_to_plain(none) == {"own": None, "calibrated": None, "calibration": None}
    assert usual_intervals(none) == {}


def test_the_usual_interval_is_the_calibrated_one_of_90_percent(both: JudgedIntervals) -> None:
    assert usual_intervals(both)["image_0"] == CountInterval(11.5, 28.5, 0.9, calibrated=True)
    own = dataclasses.replace(both, calibrated=[])
    assert usual_intervals(own)["image_0"].calibrated is False


def test_what_a_calibration_promises() -> None:
    lines = describe_calibration(NINE, has_variance=False).splitlines()
    assert "square root of count + 1" in lines[0]
    # Ranks 5, 8 and 9 of nine.
    assert [" ".join(line.split()) for line in lines[1:]] == [
        *("50 % count +- 2.50", "80 % count +- 4.00", "90 % count +- 4.50")
    ]


def test_the_picture_shows_both_coverages_and_every_image(
    both: JudgedIntervals, figures: list[Figure], tmp_path: Path
) -> None:
    coverage_picture(both, tmp_path / "coverage.png", title="sha test $x$")
    levels, shown = figures[0].axes
    found = [line for line in levels.lines if len(line.get_xdata()) in (3, 4)]
    shares = [np.asarray(line.get_ydata()).tolist() for line in found if line.get_marker() == "o"]
    assert shares == [[0.5, 0.8, 0.9], [0, 0, 0, 0]]
    assert levels.get_legend_handles_labels()[1] == ["calibrated", "uncalibrated"]
    hit, missed = (len(points.get_offsets()) for points in shown.collections if points.get_label().startswith("true"))
    assert (hit, missed) == (36, 4)
    assert shown.get_title(loc="left") == "90 % intervals, calibrated: 36 of 40 hold"
    with pytest.raises(ValueError, match="at least one image"):
        coverage_picture(JudgedIntervals([], [], None), tmp_path / "coverage.png")
