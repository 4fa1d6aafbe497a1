"""Views of an image and members of an ensemble are averaged on one block grid, without losing a head."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import (
    EvalConfig,
    SlidingWindowConfig,
    Strategy,
    TinyConfig,
    Tta,
    View,
    WholeImageConfig,
    counting_errors,
    counting_mode,
)
from headcount.models.averaging import GridPlace, average, place_blocks, show_view
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.ensemble import Ensemble
from headcount.types import BlockGrid, Counted

BINS = CountBins.from_histogram({0: 9, 1: 3, 4: 1}, grid=BlockGrid(8), strategy=Strategy.fine, m=4)
PLAIN, FLIP = WholeImageConfig(), WholeImageConfig(tta=Tta.flip)
WINDOWS = SlidingWindowConfig(window=32, stride=16, tta=Tta.flip)


def tiny(seed: int = 0, bins: CountBins = BINS, width: int = 8) -> Counter:
    torch.manual_seed(seed)
    counter = build_model(TinyConfig(width=width), bins.grid, bins).eval()
    for module in counter.modules():
        if isinstance(module, nn.Conv2d):  # a new network's counts hardly depend on the image
            nn.init.normal_(module.weight, std=0.3)
    return counter


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def counter() -> Counter:
    return tiny()


class Pooled(nn.Module):
    """Mean colors of squares of 8 px, then a symmetric convolution: a network that knows no left and right."""

    channels, stride = 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.conv.weight.data = (self.conv.weight.data + self.conv.weight.data.flip(3)) / 2

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(nn.functional.avg_pool2d(images, 8))


@pytest.mark.parametrize(
    ("mode", "size"), [(FLIP, (40, 64)), (SlidingWindowConfig(window=32, stride=32, tta=Tta.flip), (32, 96))]
)
def test_a_symmetric_network_counts_the_same_with_and_without_flip(
    mode: WholeImageConfig, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    head = tiny().head
    network = Counter(Pooled(), type(head)(4, BINS), grid=BINS.grid, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)).eval()
    plain = counting_mode(mode, TinyConfig(), crop_size=32, chosen=None)
    one = network.count(noise(*size), PLAIN if mode is FLIP else SlidingWindowConfig(window=32, stride=32))
    both = network.count(noise(*size), plain, probabilities=True)
    assert both.count == pytest.approx(one.count, rel=1e-6)
    torch.testing.assert_close(both.blocks, one.blocks)


def test_flip_is_the_mean_of_the_image_and_its_mirror_image(counter: Counter) -> None:
    image = noise(40, 64)
    one, other = (counter.count(x, PLAIN, probabilities=True) for x in (image, image.flip(2)))
    both = counter.count(image, FLIP, probabilities=True)
    assert both.count == pytest.approx((one.count + other.count) / 2, rel=1e-6)
    assert abs(one.count - other.count) > 1e-3  # they differ, or the mean would mean nothing
    torch.testing.assert_close(both.blocks, (one.blocks + other.blocks.flip(1)) / 2)
    torch.testing.assert_close(both.probabilities, (one.probabilities + other.probabilities.flip(2)) / 2)
    in_windows = counter.count(image, WINDOWS)
    plain = SlidingWindowConfig(window=32, stride=16)
    halves = [counter.count(image, plain).blocks, counter.count(image.flip(2), plain).blocks.flip(1)]
    torch.testing.assert_close(in_windows.blocks, torch.stack(halves).mean(0))


def test_sizes_are_counted_each_and_averaged(counter: Counter) -> None:
    image = noise(64, 96)
    scaled = counter.count(image, WholeImageConfig(scales=[0.5, 1, 1.5]), probabilities=True)
    views = [show_view(image, View(scale), multiple=8) for scale in (0.5, 1, 1.5)]
    assert [view.shape[1:] for view in views] == [(32, 48), (64, 96), (96, 144)]
    counted = [counter.count(view) for view in views]
    assert scaled.count == pytest.approx(sum(one.count for one in counted) / 3, rel=1e-6)
    assert scaled.count == pytest.approx(float(scaled.blocks.double().sum()), rel=1e-6)
    # A block of the half size covers 2 x 2 of the image's; 1.5 x 1.5 blocks of the largest one cover one of these.
    half = counted[0].blocks.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    large = (
        nn.functional.avg_pool2d(counted[2].blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)[None], 3)[0] * 9 / 4
    )
    torch.testing.assert_close(scaled.blocks, (half + counted[1].blocks + large) / 3)
    assert scaled.probabilities is None  # of blocks of other sizes


def test_a_batch_is_averaged_like_its_images(counter: Counter) -> None:
    images = [noise(40, 50, seed) for seed in range(3)]
    mode = WholeImageConfig(tta=Tta.flip, scales=[0.75, 1.25])
    for one, of_batch in zip([counter.count(x, mode) for x in images], counter.count_batch(images, mode), strict=True):
        torch.testing.assert_close(one.blocks, of_batch.blocks)
        assert one.blocks.shape == (5, 7)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([4, 8, 16]), st.sampled_from([4, 8, 16]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_head_is_lost_between_grids(height: int, width: int, block: int, other: int, mirrored: bool) -> None:
    """A head stays where it is, up to the size of its block."""
    grid = GridPlace(height, width, block, mirrored=mirrored)
    onto = GridPlace(2 * height, 3 * width, other)
    blocks = torch.rand(BlockGrid(block).shape(height, width))
    placed = place_blocks(blocks, grid, onto=onto)
    assert placed.shape == BlockGrid(other).shape(2 * height, 3 * width)
    assert float(placed.sum()) == pytest.approx(float(blocks.double().sum()), rel=1e-9)
    assert bool((placed >= 0).all())
    back = place_blocks(blocks, grid, onto=GridPlace(height, width, block))
    if not mirrored:
        assert torch.equal(back, blocks.double())
    elif width % block == 0:
        assert torch.equal(back, blocks.double().flip(1))


def test_a_partial_block_keeps_its_heads_inside_the_image() -> None:
    """12 px in blocks of 8: mirrored, the block of 4 px is on the left, inside the first block of the image."""
    placed = place_blocks(torch.tensor([[8.0, 4.0]]), GridPlace(8, 12, 8, mirrored=True), onto=GridPlace(8, 12, 8))
    torch.testing.assert_close(placed, torch.tensor([[4.0 + 4.0, 4.0]], dtype=torch.float64))


def test_members_of_any_bins_and_block_size_are_averaged() -> None:
    coarse = CountBins.from_histogram({0: 9, 2: 3, 9: 1}, grid=BlockGrid(16), strategy=Strategy.fine, m=9)
    first, second = tiny(0), tiny(1, coarse, width=16)
    image = noise(48, 80)
    one, two = first.count(image), second.count(image, WholeImageConfig(tta=Tta.flip))
    both = Ensemble([first, second], same_bins=False).count(image, [PLAIN, FLIP], probabilities=True)
    assert both.count == pytest.approx((one.count + two.count) / 2, rel=1e-6)
    quarter = two.blocks.repeat_interleave(2, 0).repeat_interleave(2, 1) / 4
    torch.testing.assert_close(both.blocks, (one.blocks + quarter) / 2)
    assert both.probabilities is None


def test_probabilities_of_the_same_bins_are_averaged() -> None:
    members, image = [tiny(0), tiny(1)], noise(40, 40)
    both = Ensemble(members, same_bins=True).count(image, [PLAIN, PLAIN], probabilities=True)
    each = [member.count(image, probabilities=True).probabilities for member in members]
    torch.testing.assert_close(both.probabilities, torch.stack(each).mean(0))


def test_the_variance_of_a_block_is_that_of_the_mixture(counter: Counter) -> None:
    """Mean squares are averaged, those of the mirror image at their place."""
    image = noise(40, 64)
    views = [counter.count(x, PLAIN, variance=True) for x in (image, image.flip(2))]
    squares = [view.variance + view.blocks.square() for view in views]
    both = counter.count(image, FLIP, variance=True)
    mixture = (squares[0] + squares[1].flip(1)) / 2 - both.blocks.square()
    torch.testing.assert_close(both.variance, mixture, atol=1e-5, rtol=1e-4)
    assert counter.count(image, WholeImageConfig(scales=[1, 2]), variance=True).variance is None


def test_a_count_without_blocks_leaves_a_count_only() -> None:
    place = GridPlace(8, 8, 8)
    counted = [Counted(2.0, torch.full((1, 1), 2.0), None, PLAIN), Counted(5.0, None, None, PLAIN)]
    mean = average(counted, [place, place], onto=place, mode=PLAIN)
    assert (mean.count, mean.blocks, mean.probabilities) == (3.5, None, None)


def test_what_is_not_chosen_is_as_in_training() -> None:
    trained = WholeImageConfig(tta=Tta.flip, scales=[0.5, 1])
    usual = counting_mode(trained, TinyConfig(), crop_size=32)
    assert counting_mode(trained, TinyConfig(), crop_size=32, chosen=EvalConfig()).views == usual.views
    chosen = EvalConfig(tta=Tta.none, scales=[1])
    assert counting_mode(trained, TinyConfig(), crop_size=32, chosen=chosen).views == [View()]
    plain = counting_mode(EvalConfig(), TinyConfig(), crop_size=32)
    assert plain.views == [View()]
    assert len(usual.views) == 4


@pytest.mark.parametrize(
    ("scales", "said"),
    [([], r"eval\.scales=\[\]: names no size"), ([1, 0.5, 1], r"eval\.scales=\[1,0\.5,1\]: names a size twice")],
)
def test_sizes_that_contradict_each_other_are_refused(scales: list[float], said: str) -> None:
    (error,) = counting_errors(EvalConfig(scales=scales))
    assert re.match(said, error)
