"""The matrix of an evaluation across datasets: the same numbers everywhere, legible on every color."""

import csv
import json
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from headcount.report.cross import (
    CrossCell,
    CrossMatrix,
    CrossRow,
    contrast,
    cross_figure,
    markdown,
    readable_on,
    terminal_table,
    write_cross,
)


def matrix() -> CrossMatrix:
    """Three counters; part A is five times as hard as part B; one evaluation has failed."""
    columns = [("sha", "test"), ("shb", "test")]
    rows = [
        CrossRow(
            "a.pt",
            "sha",
            "vgg19",
            1,
            [CrossCell(60.0, 100.5, 182, own=True, selected=True), CrossCell(24.0, 40.0, 316)],
        ),
        CrossRow("b.pt", "shb", "vgg19", 1, [CrossCell(240.0, 300.0, 182), CrossCell(6.0, 10.25, 316, own=True)]),
        CrossRow(
            "c.pt", "nwpu", "csrnet", 2, [CrossCell(error="no $folder\nlooked | here"), CrossCell(12.0, 20.0, 316)]
        ),
    ]
    return CrossMatrix(columns, rows)


def fills(figure: Figure) -> dict[tuple[int, int], str]:
    """Color of each cell, by row and column."""
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_gid() != "own"]
    return {(int(b.get_y()), int(b.get_x())): to_hex(b.get_facecolor()) for b in boxes}


def test_the_table_marks_each_counters_own_dataset() -> None:
    lines = terminal_table(matrix()).splitlines()
    assert lines[0].split() == ["trained", "on,", "model", "sha", "test", "shb", "test"]
    assert [line.split() for line in lines[1:4]] == [
        ["sha", "vgg19", "60.00", "/", "100.50", "**", "24.00", "/", "40.00"],
        ["shb", "vgg19", "240.00", "/", "300.00", "6.00", "/", "10.25", "*"],
        ["nwpu", "csrnet", "failed", "12.00", "/", "20.00"],
    ]
    assert "`**`: the counter's own training dataset; this split selected the checkpoint" in "\n".join(lines)
    assert "Images: sha test 182, shb test 316." in lines


def test_files_hold_the_numbers_and_the_reason_of_a_failure(tmp_path: Path) -> None:
    write_cross(matrix(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cross.csv", "cross.json", "cross.md", "cross.png"]
    rows = list(csv.DictReader((tmp_path / "cross.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert rows[2] | {"images": "182", "own": "False", "error": ""} == rows[2]
    assert [(r["checkpoint"], r["dataset"], r["split"], r["mae"], r["rmse"]) for r in rows[1:3]] == [
        ("a.pt", "shb", "test", "24.0", "40.0"),
        ("b.pt", "sha", "test", "240.0", "300.0"),
    ]
    plain = json.loads((tmp_path / "cross.json").read_text())
    assert plain["columns"][1] == {"dataset": "shb", "split": "test"}
    assert plain["rows"][0]["cells"][0]["mae"] == 60.0
    assert plain["rows"][2]["cells"][0]["mae"] is None
    page = re.sub(" +", " ", (tmp_path / "cross.md").read_text())
    assert "| sha vgg19 | 60.00 / 100.50 ** | 24.00 / 40.00 |" in page
    assert "* nwpu csrnet on sha test: no $folder\n" in page
    with Image.open(tmp_path / "cross.png") as picture:
        assert picture.size[0] > 500


def test_a_table_in_markdown_has_as_many_cells_in_every_line() -> None:
    odd = matrix()
    odd.rows[0].model = "a|b"
    table = [line for line in markdown(odd).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {4}


def named(checkpoints: list[str], seeds: list[int]) -> list[str]:
    cells = matrix().rows[0].cells
    rows = [CrossRow(ckpt, "sha", "vgg19", seed, cells) for ckpt, seed in zip(checkpoints, seeds, strict=True)]
    return CrossMatrix([("sha", "test"), ("shb", "test")], [*rows, matrix().rows[1]]).row_names()


def test_rows_that_look_alike_are_told_apart() -> None:
    assert named(["a.pt", "b.pt"], [1, 2]) == ["sha vgg19 seed 1", "sha vgg19 seed 2", "shb vgg19"]
    runs = ["runs/sha/fine/seed1/best.pt", "runs/sha/coarse/seed1/best.pt"]
    assert named(runs, [1, 1]) == ["sha vgg19 (fine/seed1)", "sha vgg19 (coarse/seed1)", "shb vgg19"]
    assert named(["x/best.pt", "x/last.pt"], [1, 1])[:2] == ["sha vgg19 (best.pt)", "sha vgg19 (last.pt)"]
    assert named(["x/best.pt", "best.pt"], [1, 1])[:2] == ["sha vgg19 (x)", "sha vgg19 (best.pt)"]


def test_a_reason_that_several_cells_have_is_told_once() -> None:
    lost = matrix()
    lost.rows[0].cells[0] = lost.rows[1].cells[0] = CrossCell(error="no folder\nSearched: here")
    lost.rows[2].cells[0] = CrossCell(error="out of luck")
    assert lost.failures() == [
        "sha vgg19 on sha test; shb vgg19 on sha test: no folder\nSearched: here",
        "nwpu csrnet on sha test: out of luck",
    ]


def test_a_checkpoint_that_could_not_be_read_goes_by_its_file() -> None:
    unread = CrossRow("bad.pt", None, None, None, [CrossCell(error="truncated")])
    assert CrossMatrix([("sha", "test")], [unread]).failures() == ["bad.pt on sha test: truncated"]


def test_colors_compare_within_a_column_alone() -> None:
    colors = fills(cross_figure(matrix()))
    scale = matplotlib.colormaps["viridis_r"]
    best, worst = to_hex(scale(0.0)), to_hex(scale(1.0))
    assert colors[0, 0] == colors[1, 1] == best  # 60 is the best of its column, and 6 of the other
    assert colors[1, 0] == colors[0, 1] == worst  # four times the best of the column, both
    assert colors[2, 1] == to_hex(scale(0.5))  # 12 lies between 6 and 24 as a ratio
    assert colors[2, 0] not in (best, worst)  # gray


def test_near_misses_look_alike_and_one_row_is_all_best() -> None:
    near = CrossMatrix([("sha", "test")], [CrossRow(str(v), "x", "m", 1, [CrossCell(v, v, 9)]) for v in (60.0, 60.6)])
    colors = fills(cross_figure(near))
    apart = max(abs(x - y) for x, y in zip(to_rgb(colors[0, 0]), to_rgb(colors[1, 0]), strict=True))
    assert 0 <= apart < 0.1
    alone = CrossMatrix([("sha", "test")], [CrossRow("a", "x", "m", 1, [CrossCell(0.0, 0.0, 9)])])
    assert fills(cross_figure(alone))[0, 0] == to_hex(matplotlib.colormaps["viridis_r"](0.0))


def test_numbers_are_legible_and_own_cells_are_outlined() -> None:
    figure = cross_figure(matrix())
    colors = fills(figure)
    texts = {(int(t.get_position()[1]), int(t.get_position()[0])): t for t in figure.axes[0].texts}
    assert {at: t.get_text() for at, t in texts.items()}[1, 0] == "240.00 / 300.00"
    assert texts[2, 0].get_text() == "failed"
    assert all(contrast(t.get_color(), to_rgb(colors[at])) >= 4.5 for at, t in texts.items())
    own = [p for p in figure.axes[0].patches if p.get_gid() == "own"]
    assert {(int(p.get_y()), int(p.get_x())) for p in own if isinstance(p, Rectangle)} == {(0, 0), (1, 1)}


def test_texts_stay_in_their_cells() -> None:
    wide = matrix()
    wide.columns += [("qnrf", "val"), ("jhu", "val")]
    for row in wide.rows:
        row.cells += [CrossCell(12345.67, 98765.43, 1, own=True)] * 2
    figure = cross_figure(wide)
    figure.canvas.draw()
    axis = figure.axes[0]
    for text in axis.texts:
        box = axis.transData.inverted().transform_bbox(text.get_window_extent())
        assert box.x0 > int(text.get_position()[0])
        assert box.x1 < int(text.get_position()[0]) + 1, text.get_text()


@pytest.mark.parametrize("shade", [k / 20 for k in range(21)])
def test_ink_stands_out_from_every_color_of_the_scale(shade: float) -> None:
    fill = to_rgb(matplotlib.colormaps["viridis_r"](shade)[:3])
    assert contrast(readable_on(fill), fill) >= 4.5
    assert contrast("black", to_rgb("white")) == pytest.approx(21)


def test_the_intervals_of_calibrated_counters_are_a_table_of_their_own(tmp_path: Path) -> None:
    assert "90 %" not in terminal_table(matrix()) + markdown(matrix())
    calibrated = matrix()
    calibrated.rows[0].cells[0].covered, calibrated.rows[0].cells[0].width = 0.9066, 181.25
    calibrated.rows[0].cells[1].covered, calibrated.rows[0].cells[1].width = 0.5, 62.0
    lines = terminal_table(calibrated).splitlines()
    assert lines[4].split()[:3] == ["90", "%", "intervals"]
    assert lines[5].split() == ["sha", "vgg19", "90.7", "%", "/", "181.2", "50.0", "%", "/", "62.0"]
    assert "Of 90 % intervals: share of images whose true count they hold / mean width, in heads." in lines
    page = re.sub(" +", " ", markdown(calibrated))
    assert "| sha vgg19 | 90.7 % / 181.2 | 50.0 % / 62.0 |" in page
    write_cross(calibrated, tmp_path)
    rows = list(csv.DictReader((tmp_path / "cross.csv").read_text().splitlines()))
    assert [(row["covered"], row["width"]) for row in rows[:3]] == [("0.9066", "181.25"), ("0.5", "62.0"), ("", "")]
