"""Pictures: written whole for every image, with the data's own numbers, and nothing global left behind."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from headcount.data.masks import PlacedMask, PolygonMask
from headcount.report.pictures import (
    ComparisonRow,
    comparison_picture,
    curve_picture,
    density_picture,
    distribute_blocks,
)
from headcount.types import Sample
from report.test_diagnostics import assert_legible


def row(height: int, width: int, *, heads: int = 3, name: str = "square", block_size: int = 8) -> ComparisonRow:
    generator = torch.Generator().manual_seed(height * width)
    rows, cols = -(-height // block_size), -(-width // block_size)
    return ComparisonRow(
        image=torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        points=torch.rand(heads, 2, generator=generator) * torch.tensor([width, height]),
        true_count=float(heads),
        predicted_blocks=torch.full((rows, cols), 2.0 / (rows * cols)),
        block_size=block_size,
        name=name,
    )


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands in the pictures a test draws."""
    seen: list[str] = []
    save = Figure.savefig

    def spy(figure: Figure, *args: object, **kwargs: object) -> None:
        save(figure, *args, **kwargs)
        seen.extend(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text())

    monkeypatch.setattr(Figure, "savefig", spy)
    return seen


# ----------------------------------------------------------------------------------- comparison picture


def test_comparison_says_what_is_what_and_how_many(tmp_path: Path, texts: list[str]) -> None:
    comparison_picture([row(48, 64), row(48, 64, heads=0, name="nobody")], tmp_path / "a.png", title="two images")
    said = "\n".join(texts)
    for expected in ("two images", "PHOTO", "TRUTH", "PREDICTION", "square", "nobody", "true 3", "true 0"):
        assert expected in said
    assert "predicted 2.0, error -1.0" in texts
    assert "predicted 2.0, error +2.0" in texts


@pytest.mark.slow
def test_comparison_grows_with_its_rows(tmp_path: Path) -> None:
    sizes = []
    for n in (1, 3):
        comparison_picture([row(48, 64) for _ in range(n)], tmp_path / f"{n}.png")
        with Image.open(tmp_path / f"{n}.png") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0] > 900
    assert sizes[1][1] - sizes[0][1] > 2 * 250


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1), (13, 21), (200, 6001)])
def test_comparison_draws_every_shape(height: int, width: int, tmp_path: Path) -> None:
    comparison_picture([row(height, width, heads=0), row(height, width)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) < 2500


@pytest.mark.slow
def test_a_picture_of_many_rows_stays_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headcount.report.pictures._MAX_PIXELS", 500)
    comparison_picture([row(8, 8) for _ in range(4)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert 490 <= picture.size[1] <= 500


def test_comparison_has_one_color_scale_for_truth_and_prediction(tmp_path: Path, figures: list[Figure]) -> None:
    few, many = row(64, 64, heads=1), row(64, 64, heads=1)
    many.predicted_blocks = torch.full((8, 8), 5.0)
    comparison_picture([few, many], tmp_path / "a.png")
    maps = [axis.images[0] for axis in figures[0].axes if axis.images and axis.images[0].get_array().ndim == 2]
    assert [image.get_clim() for image in maps] == [(0, 0.5), (0, 0.5), (0, 5), (0, 5)]
    # The whole truth and the whole prediction are drawn, smoothed or not.
    assert [float(image.get_array().sum()) for image in maps] == pytest.approx([1, 2, 1, 320], rel=1e-5)


@pytest.mark.parametrize("ratio", [0.05, 20.0])
def test_the_lower_of_truth_and_prediction_is_visible_and_the_higher_one_not_saturated(
    ratio: float, tmp_path: Path, figures: list[Figure]
) -> None:
    """The map of far too few people is not black, and the scale is stated."""
    counted = row(64, 64, heads=6400)
    counted.predicted_blocks = torch.full((8, 8), 100 * ratio)
    comparison_picture([counted], tmp_path / "a.png")
    truth, prediction = (
        image.to_rgba(image.get_array())[..., :3] for image in (axis.images[0] for axis in figures[0].axes[1:3])
    )
    lower, higher = (prediction, truth) if ratio < 1 else (truth, prediction)
    assert np.median(lower.max(axis=2)) > 0.3
    assert lower.sum(2).max() < higher.sum(2).min()
    assert figures[0]._supxlabel is not None
    assert "smoothed alike" in figures[0]._supxlabel.get_text()
    assert "square root" in figures[0]._supxlabel.get_text()


def test_names_are_no_formulas_and_long_ones_are_cut(tmp_path: Path, texts: list[str]) -> None:
    comparison_picture([row(16, 16, name=r"$\broken{$"), row(16, 16, name="a" * 30 + "b" * 30)], tmp_path / "a.png")
    assert r"$\broken{$" in texts
    assert "a" * 20 + "..." + "b" * 20 in texts


def test_letters_that_the_font_lacks_are_drawn_without_a_warning(tmp_path: Path) -> None:
    comparison_picture([row(16, 16, name="日本＝👩")], tmp_path / "a.png", title="日本")  # warnings are errors
    assert (tmp_path / "a.png").exists()


def test_comparison_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        comparison_picture([], tmp_path / "a.png")


def test_nothing_global_is_touched(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    comparison_picture([row(16, 16)], tmp_path / "a.png")
    curve_picture([{"epoch": 1, "train/total": 1.0}], tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded
    if loaded:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


# --------------------------------------------------------------------------------------- spreading blocks


def test_a_block_is_spread_over_the_pixels_it_covers() -> None:
    drawn = distribute_blocks(np.array([[8.0, 0.0], [0.0, 4.0]]), image=(8, 8), panel=(8, 8), block_size=4)
    expected = np.zeros((8, 8))
    expected[:4, :4] = 0.5
    expected[4:, 4:] = 0.25
    assert drawn == pytest.approx(expected)


def test_a_block_over_the_border_is_spread_over_its_part_inside() -> None:
    drawn = distribute_blocks(np.array([[4.0], [6.0]]), image=(6, 4), panel=(6, 4), block_size=4)
    assert drawn[:4] == pytest.approx(np.full((4, 4), 0.25))
    assert drawn[4:] == pytest.approx(np.full((2, 4), 0.75))


def test_a_smaller_map_adds_blocks_up() -> None:
    drawn = distribute_blocks(np.arange(1.0, 7.0).reshape(1, 6), image=(2, 12), panel=(1, 3), block_size=2)
    assert drawn == pytest.approx(np.array([[1 + 2, 3 + 4, 5 + 6]]))


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 70)] * 2), st.tuples(*[st.integers(1, 70)] * 2), st.sampled_from([1, 4, 8, 16]))
def test_spreading_keeps_the_sum(image: tuple[int, int], panel: tuple[int, int], block_size: int) -> None:
    shape = tuple(-(-side // block_size) for side in image)
    blocks = np.random.default_rng(0).random(shape)
    drawn = distribute_blocks(blocks, image=image, panel=panel, block_size=block_size)
    assert drawn.shape == panel
    assert drawn.min() >= 0
    assert drawn.sum() == pytest.approx(blocks.sum(), rel=1e-9)


# ---------------------------------------------------------------------------------------- density picture


@pytest.mark.parametrize(("height", "width", "expected"), [(288, 384, 192), (100, 100, 256), (1, 1, 256), (1, 900, 1)])
def test_density_picture_is_three_panels_wide(height: int, width: int, expected: int) -> None:
    drawn = row(height, width)
    picture = density_picture(Sample(drawn.image, drawn.points, drawn.name), drawn.predicted_blocks, 8)
    assert picture.dtype == np.uint8
    assert picture.shape == (3, expected, 3 * 256 + 2 * 4)


def test_density_picture_shows_photo_truth_and_prediction_in_this_order() -> None:
    image = torch.zeros(3, 256, 256, dtype=torch.uint8)
    image[0] = 200
    sample = Sample(image, torch.tensor([[40.0, 200.0]]), "one head at the lower left")
    predicted = torch.zeros(32, 32)
    predicted[4, 28] = 1  # at the upper right
    photo, truth, prediction = (density_picture(sample, predicted, 8)[:, :, k * 260 : k * 260 + 256] for k in range(3))
    assert (photo == image.numpy()).all()
    for panel, brightest in ((truth, (200, 40)), (prediction, (36, 228))):
        y, x = np.unravel_index(panel.astype(int).sum(0).argmax(), (256, 256))
        assert abs(y - brightest[0]) <= 8
        assert abs(x - brightest[1]) <= 8


def test_what_lies_outside_a_mask_is_gray(tmp_path: Path, texts: list[str]) -> None:
    drawn = row(96, 128, heads=0)
    drawn.image[:] = 255
    left = PlacedMask.whole(PolygonMask(shapely.box(0, 0, 64, 96)), source_size=(128, 96), size=(128, 96))
    sample = Sample(drawn.image, drawn.points, "a", left)
    panels = density_picture(sample, torch.zeros(12, 16), 8)
    photo, truth = panels[:, :, :256], panels[:, :, 260:516]
    assert (photo[:, :, :126] == 255).all()
    assert np.unique(photo[:, :, 130:]).tolist() == [int(255 * 0.4 + 127.5 * 0.6)]
    assert truth[:, :, :126].max() < 10
    assert truth[:, :, 130:].min() >= int(127.5 * 0.6)

    drawn.mask = left
    comparison_picture([drawn, row(96, 128)], tmp_path / "a.png")
    assert any("gray: outside the mask, not counted" in text for text in texts)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == 178).all(2).sum() > 5000  # half of the photo, and no other color of the picture
    texts.clear()
    comparison_picture([row(96, 128)], tmp_path / "b.png")
    assert not any("mask" in text for text in texts)


def test_density_picture_of_nobody_is_dark() -> None:
    sample = Sample(torch.full((3, 64, 64), 255, dtype=torch.uint8), torch.zeros(0, 2), "empty")
    maps = density_picture(sample, torch.full((8, 8), 0.001), 8)[:, :, 264:]
    assert maps[:, :, :252].max() < 30


# ------------------------------------------------------------------------------------------- curves


def test_curves_mark_the_best_epoch(tmp_path: Path, texts: list[str]) -> None:
    records = [
        {"epoch": 1, "train/total": 9.0},
        {"epoch": 2, "train/total": 5.0, "eval/mae": 7.25, "eval/rmse": 9.0},
        {"epoch": 3, "eval/mae": 4.5},
        {"epoch": 4, "train/total": -0.5, "eval/mae": float("nan"), "eval/rmse": None},
        {"epoch": 5, "train/total": 3.0, "eval/mae": 6.0, "eval/rmse": 8.0},
    ]
    curve_picture(records, tmp_path / "c.png")
    assert "best MAE 4.50 at epoch 3 (dashed)" in texts
    assert {"training loss", "MAE", "RMSE", "epoch"} <= set(texts)
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (880, 715)


@pytest.mark.parametrize("epochs", [(1,), (2, 4), (1, 2, 3), tuple(range(5, 2601, 5))])
def test_curves_show_whole_epochs_and_cover_no_point(
    epochs: tuple[int, ...], tmp_path: Path, figures: list[Figure]
) -> None:
    records = [{"epoch": e, "train/total": 5.0, "eval/mae": 10.0 + e, "eval/rmse": 12.0 + e} for e in epochs]
    curve_picture(records, tmp_path / "c.png")
    (figure,) = figures
    assert_legible(figure)
    loss, errors = figure.axes
    for axis in (loss, errors):
        assert all(tick == round(tick) for tick in axis.get_xticks())
        assert any(axis.get_xlim()[0] <= tick <= axis.get_xlim()[1] for tick in axis.get_xticks())
        for line in axis.lines if axis is loss else axis.lines[:2]:
            assert (line.get_marker() in ("o", "s")) == (axis is errors or len(epochs) <= 30)
            drawn, box = axis.transData.transform(line.get_xydata()), axis.get_window_extent()
            assert (drawn[:, 0] > box.x0 + 4).all()  # markers are not cut
            assert (drawn < [box.x1 - 4, box.y1 - 4]).all()
        if legend := axis.get_legend():
            assert not legend.get_window_extent().overlaps(axis.get_window_extent())


@pytest.mark.parametrize("records", [[], [{"epoch": 1}]])
def test_curves_of_nothing_say_so(records: list[dict[str, float]], tmp_path: Path, texts: list[str]) -> None:
    curve_picture(records, tmp_path / "c.png")
    assert texts.count("nothing recorded") == 2
