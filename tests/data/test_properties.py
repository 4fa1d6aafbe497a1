"""Heads through the whole geometry of a training sample, for images of 1 to 3000 px, against exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headcount.data.augment import cut_square, random_square
from headcount.data.points import block_counts, clamp_into, crop, flip, scale

BLOCKS = (1, 8, 16, 32)


@st.composite
def heads(draw: st.DrawFn, width: int, height: int) -> Tensor:
    """Points anywhere: inside, on the border, a last float from it, outside, doubled, or none at all."""

    def along(size: int) -> st.SearchStrategy[float]:
        edges = [0.0, float(size), float(np.nextafter(np.float32(size), np.float32(0))), -1e-30, -358.0, size + 0.5]
        whole = st.integers(0, size).map(float)
        return st.one_of(st.sampled_from(edges), whole, st.floats(-5, size + 5, width=32))

    points = draw(st.lists(st.tuples(along(width), along(height)), max_size=12))
    doubled = draw(st.lists(st.sampled_from(points), max_size=4)) if points else []
    return torch.tensor([*points, *doubled]).view(-1, 2)


def side() -> st.SearchStrategy[int]:
    return st.one_of(st.integers(1, 40), st.integers(1, 3000))


def exact_counts(points: Tensor, *, rows: int, cols: int, block_size: int) -> Tensor:
    """The blocks that hold the positions, by exact division."""
    counts = torch.zeros(rows, cols)
    for x, y in points.tolist():
        counts[int(Fraction(y) // block_size), int(Fraction(x) // block_size)] += 1
    return counts


@given(st.data(), side(), side())
def test_a_training_sample_from_annotation_to_blocks(data: st.DataObject, width: int, height: int) -> None:
    annotated = data.draw(heads(width, height))
    block_size, blocks = data.draw(st.sampled_from(BLOCKS)), data.draw(st.integers(1, 28))
    points = clamp_into(annotated, width=width, height=height)
    assert len(points) == len(annotated)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    crop_size = block_size * blocks
    square = random_square(width, height, crop_size, 0.5, 2.0, generator)
    seen = square.side
    # Bytes of no memory: the square is cut out of them, and their values do not matter.
    image = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(3, square.top + seen, width)
    window, kept = cut_square(image, points, square)
    assert window.shape == (3, seen, seen)
    moved = scale(kept, from_size=(seen, seen), to_size=(crop_size, crop_size))
    # Each head is where exact arithmetic puts it, to the last bits of a float32, and inside.
    for before, after in zip(kept.flatten().tolist(), moved.flatten().tolist(), strict=True):
        exact = Fraction(before) * crop_size / seen
        assert abs(Fraction(after) - exact) <= Fraction(crop_size, 2**22)
        assert 0 <= after < crop_size
    counts = block_counts(moved, height=crop_size, width=crop_size, block_size=block_size)
    assert int(counts.sum()) == len(kept)
    assert torch.equal(counts, exact_counts(moved, rows=blocks, cols=blocks, block_size=block_size))
    mirrored = flip(moved, width=crop_size)
    again = block_counts(mirrored, height=crop_size, width=crop_size, block_size=block_size)
    assert torch.equal(again, counts.flip(1))


@given(st.data(), side(), side())
def test_a_window_keeps_the_heads_that_lie_in_it(data: st.DataObject, width: int, height: int) -> None:
    points = clamp_into(data.draw(heads(width, height)), width=width, height=height)
    seen_w, seen_h = data.draw(st.integers(1, width)), data.draw(st.integers(1, height))
    left, top = data.draw(st.integers(0, width - seen_w)), data.draw(st.integers(0, height - seen_h))
    kept, keep = crop(points, left=left, top=top, width=seen_w, height=seen_h)
    inside = [left <= Fraction(x) < left + seen_w and top <= Fraction(y) < top + seen_h for x, y in points.tolist()]
    assert keep.tolist() == inside
    for (x, y), (seen_x, seen_y) in zip(points[keep].tolist(), kept.tolist(), strict=True):
        assert Fraction(seen_x) == Fraction(x) - left
        assert Fraction(seen_y) == Fraction(y) - top


@given(st.data(), side(), side(), st.sampled_from(BLOCKS))
def test_only_the_named_errors_are_raised(data: st.DataObject, width: int, height: int, block_size: int) -> None:
    """Counting says no to points outside and to sizes that are not multiples, and to nothing else."""
    points = data.draw(heads(width, height))
    allowed = width % block_size == 0 and height % block_size == 0
    inside = all(0 <= x < width and 0 <= y < height for x, y in points.tolist())
    if allowed and inside:
        counts = block_counts(points, height=height, width=width, block_size=block_size)
        assert int(counts.sum()) == len(points)
    else:
        with pytest.raises(ValueError, match=r"block size|lies outside"):
            block_counts(points, height=height, width=width, block_size=block_size)
