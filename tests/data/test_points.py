"""Heads keep their place: counted in the block they are in, whatever is done to the image."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headcount.data import points as heads


def below(value: float) -> float:
    """The next smaller float32."""
    return torch.nextafter(torch.tensor(value), torch.tensor(-math.inf)).item()


@st.composite
def images_with_heads(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    """(points, width, height, block size), with many points on edges, just beside them, and repeated."""
    block = draw(st.sampled_from([1, 7, 8, 16, 32]))
    cols, rows = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    width, height = cols * block, rows * block

    def coordinate(size: int) -> st.SearchStrategy[float]:
        edges = st.integers(0, size - 1).map(float)
        return st.one_of(
            edges,
            edges.map(lambda e: below(e + 1)),
            edges.map(lambda e: -below(-e)),  # The next larger float.
            st.floats(0, below(size), width=32),
        )

    points = draw(st.lists(st.tuples(coordinate(width), coordinate(height)), max_size=30))
    points += points[: draw(st.integers(0, 3))]
    return torch.tensor(points, dtype=torch.float32).reshape(-1, 2), width, height, block


def counts_one_by_one(points: torch.Tensor, *, width: int, height: int, block: int) -> torch.Tensor:
    """Block counts by comparing each point with each block's edges."""
    result = torch.zeros(height // block, width // block)
    for x, y in points.tolist():
        for row in range(height // block):
            for col in range(width // block):
                inside_x = col * block <= x < (col + 1) * block
                inside_y = row * block <= y < (row + 1) * block
                result[row, col] += inside_x and inside_y
    return result


@given(images_with_heads())
def test_each_head_counts_once_in_the_block_around_it(image: tuple[torch.Tensor, int, int, int]) -> None:
    points, width, height, block = image
    counts = heads.block_counts(points, height=height, width=width, block_size=block)
    assert torch.equal(counts, counts_one_by_one(points, width=width, height=height, block=block))
    assert counts.sum() == len(points)


@pytest.mark.parametrize("point", [(16.0, 0.0), (-0.001, 0.0), (0.0, 16.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_a_point_outside_is_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"lies outside the 16 x 16 image"):
        heads.block_counts(torch.tensor([(1.0, 1.0), point]), height=16, width=16, block_size=8)


@pytest.mark.parametrize(("width", "height", "side"), [(20, 16, "width 20"), (16, 12, "height 12"), (0, 16, "width 0")])
def test_a_size_that_is_no_multiple_is_refused(width: int, height: int, side: str) -> None:
    with pytest.raises(ValueError, match=rf"{side} is not a positive multiple of the block size 8"):
        heads.block_counts(torch.zeros(0, 2), height=height, width=width, block_size=8)


@pytest.mark.slow
@given(images_with_heads())
def test_flipping_mirrors_the_block_counts(image: tuple[torch.Tensor, int, int, int]) -> None:
    points, width, height, block = image
    flipped = heads.flip(points, width=width)
    before = counts_one_by_one(points, width=width, height=height, block=block)
    assert torch.equal(counts_one_by_one(flipped, width=width, height=height, block=block), before.flip(1))
    # No further from the mirror image than rounding and the last float below an edge.
    torch.testing.assert_close(flipped[:, 0], width - points[:, 0], rtol=1e-6, atol=1e-30)
    assert torch.equal(flipped[:, 1], points[:, 1])


def test_flipping_does_not_move_heads_by_a_pixel() -> None:
    """Width - 1 - x would give 2.5 and -0.5."""
    flipped = heads.flip(torch.tensor([(0.5, 1.0), (3.5, 1.0)]), width=4)
    assert flipped.tolist() == [[3.5, 1.0], [0.5, 1.0]]


@given(images_with_heads(), st.data())
def test_a_crop_keeps_the_heads_of_its_half_open_window(
    image: tuple[torch.Tensor, int, int, int], data: st.DataObject
) -> None:
    points, width, height, _ = image
    w, h = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    left, top = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
    kept, mask = heads.crop(points, left=left, top=top, width=w, height=h)
    expected = [(x - left, y - top) for x, y in points.tolist() if left <= x < left + w and top <= y < top + h]
    assert kept.tolist() == [list(p) for p in expected]
    assert int(mask.sum()) == len(expected)


@pytest.mark.slow
@given(images_with_heads(), st.integers(1, 500), st.integers(1, 500))
def test_scaling_keeps_heads_inside_at_their_share_of_the_image(
    image: tuple[torch.Tensor, int, int, int], to_width: int, to_height: int
) -> None:
    points, width, height, _ = image
    scaled = heads.scale(points, from_size=(width, height), to_size=(to_width, to_height))
    assert heads.inside(scaled, width=to_width, height=to_height).all()
    expected = points.double() * torch.tensor([to_width / width, to_height / height], dtype=torch.float64)
    torch.testing.assert_close(scaled.double(), expected, rtol=2e-7, atol=1e-30)


def test_scaling_up_cannot_round_a_head_over_the_border() -> None:
    """In float32, the last float below 3, times 100 / 3, is 100."""
    scaled = heads.scale(torch.tensor([(below(3.0), 0.0)]), from_size=(3, 3), to_size=(100, 100))
    assert scaled[0, 0].item() < 100


def test_points_outside_move_to_the_nearest_place_inside() -> None:
    points = torch.tensor([(-358.0, 5.0), (20.0, 5.0), (10.0, 300.5), (3.25, 4.75)])
    moved = heads.clamp_into(points, width=20, height=10)
    assert moved.tolist() == [[0.0, 5.0], [below(20.0), 5.0], [10.0, below(10.0)], [3.25, 4.75]]


@given(images_with_heads())
def test_one_head_per_pixel_keeps_the_first_of_each(image: tuple[torch.Tensor, int, int, int]) -> None:
    points, _, _, _ = image
    first: dict[tuple[int, int], list[float]] = {}
    for x, y in points.tolist():
        first.setdefault((int(x), int(y)), [x, y])
    assert heads.one_head_per_pixel(points).tolist() == list(first.values())


# ----------------------------------------------------------------------------- windows, smoothing


@pytest.mark.parametrize("window", [1, 2, 3, 7, 8, 13, 300])
def test_windows_are_counted_as_one_by_one(window: int) -> None:
    rng = np.random.default_rng(window)
    height, width = (25, 18) if window < 300 else (302, 301)
    points = torch.from_numpy(rng.uniform(0, (width, height), (40, 2)))
    points = torch.cat([points, points[:5], torch.tensor([[float(width), 1.0], [-0.5, 2.0]])])  # twice, and outside
    pixels = np.zeros((height, width), dtype=int)
    for x, y in points[:40].long().tolist():
        pixels[y, x] = 1
    tops, lefts = range(height - window + 1), range(width - window + 1)
    expected = Counter(int(pixels[t : t + window, k : k + window].sum()) for t in tops for k in lefts)
    assert heads.window_counts(points, height=height, width=width, window=window) == expected


def test_windows_of_images_that_are_empty_or_small() -> None:
    nobody = torch.zeros(0, 2)
    assert heads.window_counts(nobody, height=10, width=9, window=8) == {0: 6}
    assert heads.window_counts(nobody, height=7, width=9, window=8) == {}


def smooth(points: torch.Tensor, sigma: float, *, height: int = 40, width: int = 64) -> torch.Tensor:
    return heads.smoothed_counts(points, torch.full((len(points),), sigma), height=height, width=width, block_size=8)


@pytest.mark.slow
@given(images_with_heads(), st.floats(0.1, 300), st.integers(1, 4))
def test_smoothing_keeps_every_head_inside(
    image: tuple[torch.Tensor, int, int, int], sigma: float, neighbors: int
) -> None:
    points, width, height, block = image
    for smoothing in (heads.Smoothing(sigma), heads.Smoothing(sigma, neighbors=neighbors)):
        counts = heads.smoothed_counts(points, smoothing.sigmas(points), height=height, width=width, block_size=block)
        assert counts.shape == (height // block, width // block)
        assert float(counts.sum()) == pytest.approx(len(points), rel=1e-9)
        assert (counts >= 0).all()


def test_a_gaussian_is_integrated_over_each_block() -> None:
    """Against a sum over points a tenth of a pixel apart, cut off at the border and scaled to 1."""
    x, y, sigma = 9.3, 35.1, 6.0
    at = (np.arange(640) + 0.5) / 10
    dense = np.exp(-((at[:400, None] - y) ** 2 + (at[None] - x) ** 2) / (2 * sigma**2))
    expected = dense.reshape(5, 80, 8, 80).sum((1, 3)) / dense.sum()
    found = smooth(torch.tensor([[x, y]]), sigma).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


def test_narrow_gaussians_are_block_counts_and_wide_ones_even() -> None:
    points = torch.tensor([[4.0, 4.0], [4.0, 5.0], [60.0, 36.0]])
    counts = heads.block_counts(points, height=40, width=64, block_size=8)
    torch.testing.assert_close(smooth(points, 0.1), counts.double())
    torch.testing.assert_close(smooth(points, 1e5), torch.full((5, 8), 3 / 40, dtype=torch.float64))


def test_smoothed_heads_add_up_and_mirror() -> None:
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([64.0, 40.0])
    whole = smooth(points, 5.0)
    torch.testing.assert_close(smooth(points[:9], 5.0) + smooth(points[9:], 5.0), whole)
    torch.testing.assert_close(smooth(heads.flip(points, width=64), 5.0), whole.flip(1), rtol=1e-5, atol=1e-7)


def test_adaptive_widths_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 10.0], [30.0, 0.0]])
    two = heads.Smoothing(15.0, neighbors=2, beta=0.3).sigmas(points)
    assert two[0].item() == pytest.approx(0.3 * (5 + 10) / 2)
    assert two[3].item() == pytest.approx(0.3 * (30 + math.hypot(27, 4)) / 2)
    assert heads.Smoothing(15.0, neighbors=4).sigmas(points).tolist() == [15] * 4  # three others are too few
    assert heads.Smoothing(15.0).sigmas(points).tolist() == [15] * 4
    equal = heads.Smoothing(15.0, neighbors=2).sigmas(torch.ones(5, 2))
    assert equal.tolist() == [heads.MIN_SIGMA] * 5
    assert heads.Smoothing(15.0, neighbors=2).sigmas(torch.zeros(0, 2)).shape == (0,)
