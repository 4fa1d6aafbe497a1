"""Masks: shares of blocks worked out by hand, heads by their pixel, and masks that move with the image."""

import numpy as np
import pytest
import shapely
import torch
from shapely.geometry import Polygon

from headcount.bins import CountBins
from headcount.config import CountedIn, Strategy
from headcount.data.augment import TrainAugment
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram, smoothed_histogram
from headcount.data.loading import Targets
from headcount.data.masks import Mask, PixelMask, PlacedMask, PolygonMask, Window
from headcount.data.mixed import MixedCrowd
from headcount.data.points import Smoothing, smoothed_counts
from headcount.data.regions import block_shares
from headcount.types import BlockGrid, Sample

SIZES = [((411, 300), (448, 320)), ((64, 48), (64, 48)), ((7, 3), (20, 9)), ((1000, 20), (160, 96))]


def pixel_mask(inside: np.ndarray) -> PixelMask:
    return PixelMask.pack(inside.astype(bool))


def rectangle(left: float, top: float, right: float, bottom: float) -> PolygonMask:
    return PolygonMask(shapely.box(left, top, right, bottom))


def shares(mask: Mask, source: tuple[int, int], size: tuple[int, int], block_size: int = 8) -> torch.Tensor:
    return PlacedMask.whole(mask, source_size=source, size=size).shares(block_size)


def test_shares_of_a_mask_by_hand() -> None:
    # 16 x 8 pixels, resized to 32 x 16: blocks of 8 px are 4 x 4 pixels of the mask.
    inside = np.zeros((8, 16))
    inside[:4, :6] = 1  # the first block, and half of the second
    inside[7, 15] = 1  # one pixel of sixteen of the last
    expected = torch.tensor([[1, 0.5, 0, 0], [0, 0, 0, 1 / 16]], dtype=torch.float64)
    assert torch.equal(shares(pixel_mask(inside), (16, 8), (32, 16)), expected)
    polygon = PolygonMask(shapely.union_all([shapely.box(0, 0, 6, 4), shapely.box(15, 7, 16, 8)]))
    torch.testing.assert_close(shares(polygon, (16, 8), (32, 16)), expected, atol=1e-12, rtol=0)


def test_a_block_beyond_the_border_has_the_share_of_its_area_in_the_image() -> None:
    # 10 pixels: the second block has 2, of which one is inside.
    inside = np.zeros((8, 10))
    inside[:, :9] = 1
    assert shares(pixel_mask(inside), (10, 8), (10, 8)).tolist() == [[1.0, 0.5]]
    assert shares(rectangle(0, 0, 9, 8), (10, 8), (10, 8)).tolist() == [[1.0, 0.5]]


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_a_mask_of_everything_changes_nothing_and_complements_sum_to_one(
    source: tuple[int, int], size: tuple[int, int]
) -> None:
    inside = np.random.default_rng(0).random(source[::-1]) < 0.5
    everything = shares(pixel_mask(np.ones_like(inside)), source, size)
    assert bool((everything == 1).all())
    assert bool((shares(rectangle(0, 0, *source), source, size) == 1).all())
    both = shares(pixel_mask(inside), source, size) + shares(pixel_mask(~inside), source, size)
    torch.testing.assert_close(both, everything, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_pixels_and_the_polygons_around_them_have_the_same_shares(
    source: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    width, height = source[0] // 3, source[1] // 3
    inside, boxes = np.zeros(source[::-1]), []
    for row, col in zip(*np.nonzero(rng.random((3, 3)) < 0.5), strict=True):
        left, top = int(col) * width, int(row) * height
        inside[top : top + height, left : left + width] = 1
        boxes.append(shapely.box(left, top, left + width, top + height))
    polygon = PolygonMask(shapely.union_all(boxes))
    expected = block_shares(polygon.shape, photo_size=source, image_size=size, block_size=8)
    np.testing.assert_allclose(shares(pixel_mask(inside), source, size).numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(shares(polygon, source, size).numpy(), expected, atol=1e-9)


def test_heads_count_by_the_pixel_they_lie_in() -> None:
    inside = np.zeros((4, 8))
    inside[:, 4:] = 1
    points = torch.tensor([(3.999, 1.0), (4.0, 1.0), (7.9, 3.9), (0.0, 0.0)])
    for right in (pixel_mask(inside), rectangle(4, 0, 8, 4), rectangle(4.4, 0, 8, 4)):
        assert right.holds(points).tolist() == [False, True, True, False]
    for left in (pixel_mask(1 - inside), rectangle(0, 0, 4, 4)):
        assert left.holds(points).tolist() == [True, False, False, True]
    assert pixel_mask(inside).holds(torch.zeros(0, 2)).shape == (0,)
    assert rectangle(0, 0, 4, 4).holds(torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("kind", ["pixels", "polygon"])
def test_the_mask_of_a_crop_is_the_crop_of_the_mask(kind: str, mirrored: bool) -> None:
    """Compared with the pixels of the mask, moved as those of the image."""
    star = Polygon([(3, 4), (50, 9), (61, 40), (33, 22), (8, 45)])
    y, x = np.mgrid[:48, :64] + 0.5
    inside = shapely.contains_xy(star, x, y)
    mask = pixel_mask(inside) if kind == "pixels" else PolygonMask(star)
    # The image is enlarged twice; of it, a square of 64 px at (20, 10) is shrunk to 32 px: pixels of the mask are kept.
    placed = PlacedMask.whole(mask, source_size=(64, 48), size=(128, 96))
    crop = placed.cropped(Window(20, 10, 64, 64), size=(32, 32), mirrored=mirrored)
    expected = inside[5 : 5 + 32, 10 : 10 + 32]
    expected = expected[:, ::-1] if mirrored else expected
    by_hand = expected.reshape(4, 8, 4, 8).mean(axis=(1, 3))
    tolerance = 1e-12 if kind == "pixels" else 0.06  # the polygon crosses pixels
    np.testing.assert_allclose(crop.shares(8).numpy(), by_hand, atol=tolerance)


def crowd(
    points: list[tuple[float, float]], mask: Mask | None, *, size: int = 96, augment: TrainAugment | None = None
) -> CrowdDataset:
    """An image of 48 x 48 pixels, resized to ``size``."""
    return CrowdDataset(
        ["a"],
        lambda index: torch.zeros(3, size, size, dtype=torch.uint8),
        [torch.tensor(points, dtype=torch.float32).reshape(-1, 2)],
        source_sizes=[(48, 48)],
        sizes=[(size, size)],
        augment=augment,
        masks=[] if mask is None else [mask],
    )


def test_a_dataset_keeps_only_heads_inside_and_says_so() -> None:
    points = [(10.0, 10.0), (30.0, 10.0), (-5.0, 7.0), (70.0, 7.0)]  # the last two lie outside the image
    dataset = crowd(points, rectangle(0, 0, 24, 48))
    assert dataset.count(0) == 2
    assert dataset[0].points.tolist() == [[20, 20], [0, 14]]
    assert dataset[0, 0].points.tolist() == [[20, 20], [0, 14]]
    assert dataset.heads_masked == 2
    assert dataset.heads_outside == 1
    assert "2 of 4 annotated heads lie outside" in "\n".join(dataset.describe_left_out())
    everywhere = crowd(points, None)
    assert everywhere[0].mask is None
    assert not any("mask" in line for line in everywhere.describe())


def test_heads_of_training_samples_lie_in_their_masks() -> None:
    """Whatever is cropped and flipped, heads and mask move together."""
    rng = np.random.default_rng(3)
    inside = np.kron(rng.random((6, 6)) < 0.5, np.ones((8, 8))) > 0
    points = [(float(x), float(y)) for x, y in 48 * rng.random((200, 2))]
    dataset = crowd(points, pixel_mask(inside), augment=TrainAugment(32, 0.5, 2.5))
    assert 0 < dataset.count(0) < 200
    areas = set()
    for epoch in range(30):
        sample = dataset[epoch, 0]
        assert sample.mask is not None
        pixels = sample.mask.shares(1)
        column, row = sample.points.floor().long().unbind(1)
        assert bool((pixels[row, column] > 0).all())
        areas.add(float(pixels.sum()))
    assert len(areas) > 20


def test_augmentation_is_the_same_with_and_without_masks() -> None:
    augment = TrainAugment(32)
    masked = crowd([(3.0, 3.0)], rectangle(0, 0, 48, 48), augment=augment)
    plain = crowd([(3.0, 3.0)], None, augment=augment)
    for epoch in range(5):
        assert torch.equal(masked[epoch, 0].points, plain[epoch, 0].points)


def test_targets_of_a_masked_sample() -> None:
    grid = BlockGrid(8)
    bins = CountBins.from_histogram({0: 1, 1: 1}, grid=grid, strategy=Strategy.fine, m=2)
    image = torch.zeros(3, 8, 24, dtype=torch.uint8)
    mask = PlacedMask.whole(rectangle(0, 0, 12, 8), source_size=(24, 8), size=(24, 8))
    masked = Sample(image, torch.tensor([(1.0, 1.0), (9.0, 1.0), (10.0, 1.0)]), "a", mask)
    plain = Sample(image, torch.tensor([(1.0, 1.0), (9.0, 1.0)]), "b")
    needs = frozenset({"labels", "block_counts", "smoothed", "mask"})
    targets = Targets(needs, grid, bins=bins, smoothing=Smoothing(3.0))([masked, plain])
    assert targets["mask"].tolist() == [[[[1, 0.5, 0]]], [[[1, 1, 1]]]]
    assert targets["block_counts"].tolist() == [[[[1, 2, 0]]], [[[1, 1, 0]]]]
    assert targets["labels"].tolist() == [[[1, 2, 0]], [[1, 1, 0]]]
    assert targets["smoothed"].sum((1, 2, 3)).tolist() == pytest.approx([3, 2])
    assert targets["smoothed"][0, 0, 0, 2] == 0


def test_smoothed_heads_stay_inside_the_mask() -> None:
    points = torch.tensor([(12.0, 4.0), (1.0, 4.0)])
    arguments = {"height": 8, "width": 32, "block_size": 8}
    sigmas = torch.full((2,), 4.0)
    everywhere = torch.ones(1, 4)
    plain = smoothed_counts(points, sigmas, **arguments)
    torch.testing.assert_close(smoothed_counts(points, sigmas, **arguments, inside=everywhere), plain)
    half = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    masked = smoothed_counts(points, sigmas, **arguments, inside=half)
    assert float(masked.sum()) == pytest.approx(2)
    # As if the image ended at the border of the mask.
    ended = smoothed_counts(points, sigmas, height=8, width=16, block_size=8)
    torch.testing.assert_close(masked[:, :2], ended)
    assert masked[0, 2:].tolist() == [0, 0]


def test_histograms_count_blocks_entirely_inside() -> None:
    # 48 px enlarged to 96: 12 x 12 blocks, of which 6 x 12 lie left of the middle.
    dataset = crowd([(1.0, 1.0), (1.0, 1.5), (40.0, 1.0), (24.5, 30.0)], rectangle(0, 0, 25, 48))
    assert block_histogram(dataset, 8) == {0: 71, 2: 1}
    assert sum(smoothed_histogram(dataset, 8, Smoothing(2.0)).values()) == 72
    # Left edges of windows: 0 to 42, as 50 px are inside; top edges: 0 to 88.
    windows = block_histogram(dataset, 8, counted=CountedIn.windows)
    assert sum(windows.values()) == 43 * 89
    # The two heads lie in one window pixel column each: (2, 2) and (2, 3).
    assert windows[2] == 3 * 3
    assert windows[1] == 3 * 1 + sum(1 for left in range(43) if left <= 49 < left + 8) * 8


def test_masks_are_small_when_they_are_sent_to_another_process() -> None:
    import pickle

    inside = np.hypot(*(np.mgrid[:1080, :1920] - 500)) < 400
    mask = pixel_mask(inside)
    assert len(pickle.dumps(mask)) < 20_000
    assert np.array_equal(pickle.loads(pickle.dumps(mask)).pixels(), inside)
    polygon = rectangle(0, 0, 5, 5)
    assert pickle.loads(pickle.dumps(polygon)) == polygon


def test_a_mixed_dataset_has_the_masks_of_its_parts() -> None:
    points = [(10.0, 10.0), (30.0, 10.0)]
    masked, plain = crowd(points, rectangle(0, 0, 24, 48)), crowd(points, None)
    mixed = MixedCrowd({"one": masked, "two": plain})
    assert mixed.has_masks
    assert mixed.heads_masked == 1
    assert [mixed.count(k) for k in range(2)] == [1, 2]
    assert block_histogram(mixed, 8) == {0: 71 + 142, 1: 3}
    make = Targets(frozenset({"mask"}), BlockGrid(8))
    shares = make([mixed[0, 0], mixed[0, 1]])["mask"]
    assert shares.mean((1, 2, 3)).tolist() == [0.5, 1]
    assert mixed[1].mask is None
    assert not MixedCrowd({"two": plain}).has_masks
