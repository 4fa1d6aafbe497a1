"""Figure 6: which images, what is drawn of them, and that it can be read."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from headcount.config import ConfigError
from headcount.data.points import block_counts
from headcount.report.figure import choose_by_rank, density_figure
from headcount.report.pictures import MAPS_NOTE, ComparisonRow, density_maps
from report.test_diagnostics import assert_legible

BLOCK = 8
Drawn = Callable[..., Figure]


def column(
    height: int = 48,
    width: int = 64,
    *,
    points: list[tuple[float, float]] = (),
    predicted: float = 2.0,
    name: str = "a",
) -> ComparisonRow:
    rows, cols = -(-height // BLOCK), -(-width // BLOCK)
    return ComparisonRow(
        image=torch.zeros(3, height, width, dtype=torch.uint8),
        points=torch.tensor(points, dtype=torch.float32).reshape(-1, 2),
        true_count=float(len(points)),
        predicted_blocks=torch.full((rows, cols), predicted / (rows * cols)),
        block_size=BLOCK,
        name=name,
    )


@pytest.fixture
def drawn(figures: list[Figure], tmp_path: Path) -> Drawn:
    """The figure that is drawn of columns, and not written."""

    def draw(columns: list[ComparisonRow], title: str = "") -> Figure:
        density_figure(columns, tmp_path / "f.png", title=title)
        return figures[-1]

    return draw


def _left(axis: Axes) -> float:
    return axis.get_position(original=True).x0


def panels(figure: Figure) -> list[list[Axes]]:
    """The axes of each column from top to bottom, columns from left to right; color bars left out."""
    axes = [a for a in figure.axes if a.images]
    columns = itertools.groupby(sorted(axes, key=_left), key=_left)
    return [sorted(column, key=lambda a: -a.get_position().y0) for _, column in columns]


# ------------------------------------------------------------------------------------------- which images


def test_images_are_taken_from_the_sparsest_to_the_densest_at_equal_steps_of_rank() -> None:
    counts = [50.0, 0.0, 40.0, 10.0, 30.0, 20.0, 9000.0]
    assert choose_by_rank(counts, 4) == [1, 5, 2, 6]  # ranks 0, 2, 4, 6
    assert choose_by_rank(counts, 2) == [1, 6]
    assert choose_by_rank(counts, 1) == [4]  # the median
    assert choose_by_rank(counts, 7) == [1, 3, 5, 4, 2, 0, 6]
    assert choose_by_rank([3.0, 3.0, 3.0], 2) == [0, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.data())
def test_no_image_is_taken_twice(counts: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(counts)))
    chosen = choose_by_rank(counts, n)
    assert len(set(chosen)) == n
    assert [counts[i] for i in chosen] == sorted(counts[i] for i in chosen)


@pytest.mark.parametrize("n", [0, -1, 3])
def test_more_images_than_there_are_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="must be 1 to 2"):
        choose_by_rank([1.0, 2.0], n)


# ------------------------------------------------------------------------------------------------ maps


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 2), st.integers(0, 20))
def test_both_maps_keep_all_heads(image: tuple[int, int], heads: int) -> None:
    """Those at the border and outside, too."""
    height, width = image
    x = np.linspace(-2, width + 2, heads)
    drawn = column(height, width, points=[(float(a), height - 0.01) for a in x], predicted=7.0)
    truth, prediction = density_maps(drawn.points, drawn.predicted_blocks, BLOCK)
    assert truth.shape == prediction.shape == (-(-height // BLOCK), -(-width // BLOCK))
    assert truth.sum() == pytest.approx(heads, abs=1e-6)
    assert prediction.sum() == pytest.approx(7, rel=1e-6)


def test_truth_and_prediction_are_treated_alike(drawn: Drawn) -> None:
    """A prediction that is right looks exactly like the truth."""
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([61.0, 45.0])
    right = column(45, 61, points=[tuple(p) for p in points.tolist()])
    right.predicted_blocks = block_counts(points, height=48, width=64, block_size=BLOCK)
    figure = drawn([right])
    ((_, truth, prediction),) = panels(figure)
    one, other = truth.images[0], prediction.images[0]
    assert np.array_equal(one.get_array(), other.get_array())
    assert one.get_array().sum() == pytest.approx(40)
    assert one.get_extent() == other.get_extent() == [0, 64, 48, 0]  # the last blocks reach beyond the image
    assert truth.get_xlim() == prediction.get_xlim() == (0, 61)
    assert truth.get_ylim() == prediction.get_ylim() == (45, 0)
    assert one.norm is other.norm
    assert MAPS_NOTE in [text.get_text() for text in figure.texts]


def test_heads_are_drawn_where_they_are(drawn: Drawn) -> None:
    one = column(48, 64, points=[(40.0, 30.0)])
    one.predicted_blocks = torch.zeros(6, 8)
    one.predicted_blocks[5, 0] = 3.0
    ((_, *axes),) = panels(drawn([one]))
    truth, prediction = (np.asarray(axis.images[0].get_array()) for axis in axes)
    assert np.unravel_index(truth.argmax(), truth.shape) == (3, 5)
    assert truth[:, 0].max() < 1e-3
    assert np.unravel_index(prediction.argmax(), prediction.shape) == (5, 0)
    assert prediction[0].max() < 1e-3


# ---------------------------------------------------------------------------------------------- figure


def test_rows_are_image_truth_and_prediction_and_say_so(drawn: Drawn) -> None:
    three = column(points=[(9.0, 9.0)] * 3, predicted=5.0)
    three.image[0] = 200
    figure = drawn([three], "a title")
    (axes,) = panels(figure)
    assert len(axes) == 3
    image, truth, prediction = (axis.images[0].get_array() for axis in axes)
    assert image.shape[2] == 3
    assert (image[..., 0] == 200).all()
    assert truth.sum() == pytest.approx(3)
    assert prediction.sum() == pytest.approx(5)
    middles = {text.get_text(): text.get_position()[1] for text in figure.texts}
    for label, axis in zip(("IMAGE", "TRUTH", "PREDICTION"), axes, strict=True):
        assert axis.get_position().y0 < middles[label] < axis.get_position().y1
    assert {"true 3", "predicted 5.0", "heads\nper block", "a title"} <= {
        t.get_text() for t in [*figure.texts, figure._suptitle]
    }


def test_truth_and_prediction_of_a_column_share_a_scale_with_its_own_bar(drawn: Drawn) -> None:
    dense = column(points=[(9.0, 9.0)], predicted=480.0)  # 10 heads a block
    empty = column(predicted=0.001)
    figure = drawn([empty, dense])
    limits = [[axis.images[0].get_clim() for axis in axes[1:]] for axes in panels(figure)]
    assert limits == [[(0, 0.5)] * 2, [pytest.approx((0, 10))] * 2]  # an empty image does not glow
    bars = sorted((a for a in figure.axes if not a.images), key=lambda a: a.get_position().x0)
    assert [bar.get_xlim() for bar in bars] == [(0, 0.5), pytest.approx((0, 10))]
    for bar, axes in zip(bars, panels(figure), strict=True):
        place, panel = bar.get_position(), axes[2].get_position()
        assert panel.x0 < place.x0 < place.x1 < panel.x1
        assert place.y1 < panel.y0


@pytest.mark.parametrize("n", [1, 5])
def test_no_text_covers_another_or_is_cut(n: int, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headcount.report.figure._DPI", 72)  # quicker; texts have their size in inches
    shapes = [(48, 64), (64, 48), (8, 700), (700, 8), (1, 1)]
    columns = [
        column(*shapes[k], points=[(0.5, 0.5)] * 4321, predicted=12345.6, name=f"$a_very_long{k}_" + "name_" * 20)
        for k in range(n)
    ]
    figure = drawn(columns, "title " * 8)
    assert_legible(figure)
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_the_ending_says_the_format(ending: str, begins: bytes, tmp_path: Path) -> None:
    density_figure([column(points=[(1.0, 1.0)])], tmp_path / f"f{ending}")
    assert (tmp_path / f"f{ending}").read_bytes().startswith(begins)


def test_other_endings_and_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a figure's file ends in \.png, \.pdf, \.svg"):
        density_figure([column()], tmp_path / "f.jpg")
    with pytest.raises(ValueError, match="at least one image"):
        density_figure([], tmp_path / "f.png")
    assert not list(tmp_path.iterdir())
