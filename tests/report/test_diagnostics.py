"""Diagnostics show the data's own numbers, and can be read."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from headcount.metrics import Reliability, measure
from headcount.report.diagnostics import levels_picture, reliability_picture, scatter_picture, short_number
from headcount.types import ImageCount


def counted(pairs: list[tuple[float, float]]) -> list[ImageCount]:
    """Images with these true and predicted counts."""
    return [
        ImageCount(index=k, name=f"image_$x_{k}", true=true, predicted=predicted, blocks=torch.zeros(1, 1))
        for k, (true, predicted) in enumerate(pairs)
    ]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def assert_legible(figure: Figure) -> None:
    """No text covers another, and none is cut."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ticks = [side for axis in figure.axes for side in (axis.xaxis, axis.yaxis)]
    within = {id(tick.label1) for side in ticks for tick in side._update_ticks()}
    beyond = {id(tick.label1) for side in ticks for tick in side.get_major_ticks()} - within
    boxes = [
        (text.get_text(), Text.get_window_extent(text, renderer))  # without the line of an annotation
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in beyond
    ]
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 1, (first, second)


# --------------------------------------------------------------------------------------------- scatter


def test_scatter_shows_every_image_and_names_the_largest_errors(tmp_path: Path, figures: list[Figure]) -> None:
    pairs = [(10.0, 12.0), (20.0, 5.0), (30.0, 30.0), (25.0, 28.0), (15.0, 14.0), (40.0, 41.5), (12.0, 12.0)]
    scatter_picture(counted(pairs), tmp_path / "s.png", title="$two_images")
    (figure,) = figures
    (axis,) = figure.axes
    everything, worst = axis.collections
    assert everything.get_offsets().tolist() == [list(pair) for pair in pairs]
    assert worst.get_offsets().tolist() == [[20, 5], [25, 28], [10, 12], [40, 41.5], [15, 14]]
    said = texts(figure)
    listed = [text for text in said if "image_$x" in text]
    assert listed == ["1  image_$x_1", "2  image_$x_3", "3  image_$x_0", "4  image_$x_5", "5  image_$x_4"]
    assert any("true 20, predicted 5.0 (-15.0)" in text for text in said)
    numbered = {a.get_text(): a.xy for a in axis.texts}
    assert numbered["1"] == pytest.approx((20, 5))
    assert "$two_images" in said
    assert_legible(figure)


def test_the_line_of_no_error_goes_through_the_whole_picture(tmp_path: Path, figures: list[Figure]) -> None:
    scatter_picture(counted([(3.0, 4.0), (8.0, 7.0)]), tmp_path / "s.png")
    (axis,) = figures[0].axes
    x, y = axis.lines[0].get_data()
    assert list(x) == list(y) == list(axis.get_xlim()) == list(axis.get_ylim())
    assert axis.get_xscale() == axis.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("pairs", "scale"),
    [
        ([(60.0, 70.0), (300.0, 200.0)], "linear"),
        ([(5.0, 7.0), (3000.0, 2500.0)], "symlog"),
        ([(0.0, 0.0), (0.0, 40.0), (7.0, 0.0), (2.0, 0.001), (20000.0, 18000.0)], "symlog"),
        ([(3.0, -5.0), (4000.0, 10.0)], "symlog"),
        ([(0.0, 0.0)], "linear"),
        ([(0.0, 3.0), (0.0, 0.5)], "linear"),
    ],
)
def test_counts_over_decades_get_log_axes_that_show_zero(
    pairs: list[tuple[float, float]], scale: str, tmp_path: Path, figures: list[Figure]
) -> None:
    scatter_picture(counted(pairs), tmp_path / "s.png")
    (axis,) = figures[0].axes
    assert axis.get_xscale() == axis.get_yscale() == scale
    low, high = axis.get_xlim()
    assert axis.get_ylim() == (low, high)
    assert all(low < value < high for pair in pairs for value in pair)
    at = axis.transData.transform(pairs)
    assert np.isfinite(at).all()
    ticks = axis.get_xticks()
    assert 3 <= len(ticks) <= 10
    assert all(low <= tick <= high for tick in ticks)
    if min(map(min, pairs)) == 0:
        assert 0 in ticks
    assert_legible(figures[0])


def test_numbers_of_errors_in_one_place_do_not_cover_each_other(tmp_path: Path, figures: list[Figure]) -> None:
    scatter_picture(counted([(500.0, 100.0)] * 6 + [(k * 5.0, k * 5.0) for k in range(300)]), tmp_path / "s.png")
    assert_legible(figures[0])


def test_nothing_to_scatter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        scatter_picture([], tmp_path / "s.png")


# ---------------------------------------------------------------------------------------------- levels


def test_levels_that_are_there_are_drawn_with_their_errors(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = measure(counted([(0.0, 2.0), (50.0, 40.0), (100.0, 120.0), (600.0, 300.0)]))
    levels_picture(metrics, tmp_path / "l.png", title="a title")
    (figure,) = figures
    absolute, relative = figure.axes
    heights = [bar.get_height() for bar in absolute.patches]
    assert heights[:3] == pytest.approx([2, 15, 300])  # MAE
    assert heights[3:] == pytest.approx([2, math.sqrt(250), 300])  # RMSE
    assert [bar.get_height() for bar in relative.patches] == pytest.approx([0, 0.2, 0.5])
    labels = [tick.get_text() for tick in absolute.get_xticklabels()]
    assert labels == ["0\n1 image", "1-100\n2 images", "501-5000\n1 image"]
    # Where nobody is, an error has nothing to be relative to: that is no error of 0.
    assert [text.get_text() for text in relative.texts] == ["no\npeople", "0.200", "0.500"]
    assert_legible(figure)


@pytest.mark.parametrize("counts", [[0.0], [7.0], [0.0, 50.0, 300.0, 900.0, 30000.0]])
def test_levels_can_be_read_however_many_there_are(counts: list[float], tmp_path: Path, figures: list[Figure]) -> None:
    levels_picture(measure(counted([(c, 1.5 * c + 1000) for c in counts])), tmp_path / "l.png", title="t")
    assert_legible(figures[0])


# ----------------------------------------------------------------------------------------- reliability


def reliability(bins: int = 2, buckets: int = 10) -> Reliability:
    return Reliability([f"{{{k}}}" for k in range(bins)], buckets=buckets)


def test_reliability_shows_shares_by_bin_and_how_many_blocks(tmp_path: Path, figures: list[Figure]) -> None:
    seen = reliability()
    p = torch.tensor([0.95, 0.95, 0.45, 0.45])
    seen.add(torch.stack([p, 1 - p])[:, None], torch.tensor([[0, 0, 0, 1]]))
    seen.blocks[0, 2], seen.probability[0, 2], seen.observed[0, 2] = 54321, 54321 * 0.25, 54321 * 0.5
    reliability_picture(seen, tmp_path / "r.png", title="sha test")
    (figure,) = figures
    shares = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert list(shares) == ["bin {0}", "bin {1}"]
    drawn = shares["bin {0}"].lines[1].get_xydata()
    assert drawn == pytest.approx(np.array([[0.25, 0.5], [0.45, 0.5], [0.95, 1.0]]))
    assert shares["bin {1}"].lines[1].get_xydata() == pytest.approx(np.array([[0.05, 0.0], [0.55, 0.5]]))
    # A share of two blocks is hollow, that of many is not.
    many, few = shares["bin {0}"].collections
    assert many.get_offsets().tolist() == [pytest.approx([0.25, 0.5])]
    assert len(few.get_offsets()) == 2
    assert few.get_facecolor()[0].tolist() == [1, 1, 1, 1]
    numbers = [[text.get_text() for text in axis.texts] for axis in figure.axes if not axis.get_title()]
    assert numbers == [["54k", "2", "2"], ["2", "2"]]
    error = seen.calibration_error()
    assert f"sha test\nexpected calibration error {error:.4f} over all blocks (blue)" in texts(figure)
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["observed fraction", "all blocks,\nlog scale"]


def test_reliability_shows_the_blocks_with_heads_as_well(tmp_path: Path, figures: list[Figure]) -> None:
    seen = reliability(3)
    seen.add(torch.tensor([[0.9, 0.05, 0.05]]).T.expand(3, 100)[:, None], torch.tensor([[0] * 97 + [1] * 3]))
    reliability_picture(seen, tmp_path / "r.png", title="sha test")
    (figure,) = figures
    diagrams = [axis for axis in figure.axes if axis.get_title()]
    # The dashed diagonal, the blocks with heads where the bin is not that of the empty ones, all blocks.
    assert [len(axis.lines) for axis in diagrams] == [2, 3, 3]
    assert diagrams[1].lines[1].get_xydata() == pytest.approx(np.array([[0.5, 1.0]]))
    assert diagrams[1].lines[2].get_xydata() == pytest.approx(np.array([[0.05, 0.03]]))
    (heading,) = [text for text in texts(figure) if "sha test" in text]
    assert "over all blocks" in heading
    assert "\n0.5000 over the 3 blocks outside bin {0} (orange)" in heading
    assert_legible(figure)


@pytest.mark.parametrize("bins", [1, 8])
def test_reliability_of_many_bins_can_be_read(bins: int, tmp_path: Path, figures: list[Figure]) -> None:
    seen = reliability(bins)
    seen.blocks[:] = 123456
    seen.probability[:] = seen.blocks * (np.arange(10) + 0.5) / 10
    seen.observed[:] = seen.probability
    reliability_picture(seen, tmp_path / "r.png", title="sha test: probabilities of blocks by bin")
    assert len([axis for axis in figures[0].axes if axis.get_title()]) == bins
    assert_legible(figures[0])
    for axis in figures[0].axes:  # texts stay in their box
        box = axis.get_window_extent()
        for text in axis.texts:
            assert text.get_window_extent().y1 <= box.y1


def test_reliability_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        reliability_picture(reliability(), tmp_path / "r.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "said"),
    [(1, "1"), (999, "999"), (1234, "1.2k"), (9960, "10k"), (565_000, "565k"), (999_600, "1.0M"), (2.5e9, "2.5G")],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert short_number(value) == said
