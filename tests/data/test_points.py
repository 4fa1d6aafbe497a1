"""Heads keep their place: counted in the block they are in, whatever is done to the image."""

import math

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
    with pytest.raises(ValueError, match=rf"{side} is no positive multiple of the block size 8"):
        heads.block_counts(torch.zeros(0, 2), height=height, width=width, block_size=8)


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
