"""Nested crops and patches: exact boxes, and what is cut out of an image."""

import itertools

import pytest
import torch

from headcount.config import CropLayout
from headcount.crops import Box, cut_resized, nested_boxes, patch_boxes


def test_concentric_crops_have_the_published_sizes() -> None:
    """Crop i of six has 2i/12 of the sides."""
    boxes = nested_boxes(1200, 600, crops=6, layout=CropLayout.concentric)
    assert boxes == [
        Box(500, 250, 200, 100),
        Box(400, 200, 400, 200),
        Box(300, 150, 600, 300),
        Box(200, 100, 800, 400),
        Box(100, 50, 1000, 500),
        Box(0, 0, 1200, 600),
    ]


def test_crops_from_the_top_left_corner() -> None:
    boxes = nested_boxes(100, 50, crops=4, layout=CropLayout.top_left)
    assert boxes == [Box(0, 0, 25, 13), Box(0, 0, 50, 25), Box(0, 0, 75, 38), Box(0, 0, 100, 50)]


@pytest.mark.parametrize("layout", CropLayout)
@pytest.mark.parametrize(("width", "height", "crops"), [(1, 1, 6), (5, 3, 10), (1023, 767, 6), (37, 1000, 10)])
def test_crops_are_nested_in_images_of_any_size(width: int, height: int, crops: int, layout: CropLayout) -> None:
    boxes = nested_boxes(width, height, crops=crops, layout=layout)
    assert len(boxes) == crops
    assert boxes[-1] == Box(0, 0, width, height)
    for inner, outer in itertools.pairwise(boxes):
        assert min(inner.width, inner.height) >= 1
        assert outer.left <= inner.left <= inner.left + inner.width <= outer.left + outer.width
        assert outer.top <= inner.top <= inner.top + inner.height <= outer.top + outer.height


def test_patches_divide_an_image() -> None:
    boxes = patch_boxes(10, 6, patches=3)
    assert boxes[:3] == [Box(0, 0, 3, 2), Box(3, 0, 3, 2), Box(6, 0, 4, 2)]
    assert boxes[-1] == Box(6, 4, 4, 2)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 7), (101, 64)])
def test_every_pixel_is_in_one_patch(width: int, height: int) -> None:
    covered = torch.zeros(height, width)
    for box in patch_boxes(width, height, patches=4):
        covered[box.top : box.top + box.height, box.left : box.left + box.width] += 1
    assert (covered == 1).all()


def test_a_box_of_the_right_size_is_cut_out_unchanged() -> None:
    image = torch.arange(3 * 8 * 9).reshape(3, 8, 9).to(torch.uint8)
    cut = cut_resized(image, [Box(2, 1, 4, 4)], size=4)
    assert torch.equal(cut[0], image[:, 1:5, 2:6])


def test_boxes_are_resized_to_squares() -> None:
    """Halves of one color each stay so, and bicubic overshoot stays within bytes."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, :, 30:] = 255
    left, right, both = cut_resized(image, [Box(0, 0, 30, 40), Box(30, 0, 30, 40), Box(0, 0, 60, 40)], size=16)
    assert (left == 0).all()
    assert (right == 255).all()
    assert both.float().mean() == pytest.approx(127.5, abs=1)
    assert (both[:, :, :5] < 20).all()
    assert (both[:, :, 11:] > 235).all()
