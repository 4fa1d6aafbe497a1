"""Windows cover an image of any size once, and padding never counts."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import (
    Border,
    ClipViTConfig,
    ConfigError,
    EvalConfig,
    SlidingWindowConfig,
    Strategy,
    TinyConfig,
    WholeImageConfig,
    counting_mode,
    window_error,
)
from headcount.distribution import bin_moments
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.heads import PredictionHead
from headcount.models.tiling import window_starts
from headcount.types import BlockGrid, Prediction
from values import predict

BINS = CountBins.from_histogram({0: 9, 1: 3, 4: 1}, grid=BlockGrid(8), strategy=Strategy.fine, m=4)


class Features(nn.Module):
    """The mean color of every ``stride`` pixels a side."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = 3, stride

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, self.stride)


class Ones(PredictionHead):
    """One head in every block, whatever it shows."""

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        rows, cols = (round(size * factor) for size in features.shape[-2:])
        return predict(torch.ones(len(features), 1, rows, cols))


class Brightness(PredictionHead):
    """As many heads as a block's middle is bright: what a window says depends on its place alone."""

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        return predict(nn.functional.interpolate(features, scale_factor=factor)[:, :1])


def stub(head: PredictionHead, *, block_size: int, stride: int) -> Counter:
    counter = Counter(Features(stride), head, grid=BlockGrid(block_size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return counter.eval()


@st.composite
def images_and_windows(draw: st.DrawFn) -> tuple[int, int, int, int, dict[str, Any]]:
    block_size = draw(st.sampled_from([4, 8, 16]))
    stride = draw(st.sampled_from([4, 8, 14, 16]))
    unit = math.lcm(block_size, stride)
    window = unit * draw(st.integers(1, 3))
    step = block_size * draw(st.integers(1, window // block_size))
    height, width = (draw(st.integers(1, 3 * window)) for _ in range(2))
    batch, border = draw(st.integers(1, 5)), draw(st.sampled_from(Border))
    return (
        height,
        width,
        block_size,
        stride,
        {"window": window, "stride": step, "window_batch": batch, "border": border},
    )


@given(images_and_windows())
@settings(max_examples=60, deadline=None)
def test_a_model_of_ones_sums_to_the_blocks_of_the_image(case: tuple[int, int, int, int, dict[str, Any]]) -> None:
    height, width, block_size, stride, windows = case
    mode = SlidingWindowConfig(**windows)
    counter = stub(Ones(), block_size=block_size, stride=stride)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert window_error(mode, block_size, stride) is None
    shape = (math.ceil(height / block_size), math.ceil(width / block_size))
    for way in (mode, WholeImageConfig()):
        counted = counter.count(image, way)
        assert counted.blocks is not None
        assert counted.blocks.shape == shape
        assert bool((counted.blocks == 1).all())
        assert counted.count == math.prod(shape)
        assert counted.mode == way


@given(images_and_windows())
@settings(max_examples=30, deadline=None)
def test_each_window_lands_where_it_was_cut(case: tuple[int, int, int, int, dict[str, Any]]) -> None:
    """A counter that looks at single blocks says the same in windows as in one piece."""
    height, width, block_size, _, windows = case
    mode = SlidingWindowConfig(**windows)
    counter = stub(Brightness(), block_size=block_size, stride=block_size)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(counter.count(image, mode).blocks, counter.count(image).blocks)


@pytest.mark.parametrize(
    ("border", "starts"), [(Border.inward, [0, 32, 64, 72]), (Border.pad, [0, 32, 64, 96])], ids=lambda v: str(v)
)
def test_the_last_window_moves_inward_or_goes_on(border: Border, starts: list[int]) -> None:
    # 130 px are 17 blocks of 8, or 136 px: the last of the windows of 64 px begins at 72, or on the next step.
    assert window_starts(130, window=64, stride=32, border=border, block_size=8) == starts


def test_overlaps_are_averaged_by_coverage() -> None:
    """Four windows that each say their own number: where two overlap the mean is said."""

    class Numbered(PredictionHead):
        def forward(self, features: Tensor, *, factor: float) -> Prediction:
            rows, cols = features.shape[-2:]
            values = torch.arange(1.0, len(features) + 1).view(-1, 1, 1, 1)
            return predict(values.expand(-1, 1, rows, cols).clone())

    counter = stub(Numbered(), block_size=8, stride=8)
    mode = SlidingWindowConfig(window=16, stride=16, window_batch=8)
    blocks = counter.count(torch.zeros(3, 8, 40, dtype=torch.uint8), mode).blocks
    assert blocks is not None
    # Windows at 0, 16 and, moved inward, 24: the second and the third share a block.
    assert blocks.tolist() == [[1.0, 1.0, 2.0, 2.5, 3.0]]


@pytest.mark.parametrize("border", Border)
def test_the_batch_of_windows_does_not_change_the_count(border: Border) -> None:
    torch.manual_seed(0)
    counter = build_model(TinyConfig(width=8), BINS.grid, BINS).eval()
    image = torch.randint(0, 256, (3, 211, 173), dtype=torch.uint8)
    modes = [SlidingWindowConfig(window=64, stride=40, window_batch=n, border=border) for n in (1, 2, 7, 100)]
    counts = [counter.count(image, mode).count for mode in modes]
    assert counts == pytest.approx([counts[0]] * len(counts), rel=1e-7)


def test_probabilities_sum_to_one_and_give_the_counts() -> None:
    torch.manual_seed(0)
    counter = build_model(TinyConfig(width=8), BINS.grid, BINS).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    for mode in (WholeImageConfig(), SlidingWindowConfig(window=32, stride=16, window_batch=4)):
        maps = counter.count(image, mode, probabilities=True)
        assert maps.probabilities is not None
        torch.testing.assert_close(maps.probabilities.sum(0), torch.ones(9, 12))
        expected = torch.einsum("nhw,n->hw", maps.probabilities, torch.tensor(BINS.representatives))
        torch.testing.assert_close(expected, maps.blocks)
        assert counter.count(image, mode).probabilities is None  # unless requested


class Hungry(Ones):
    """Has memory for ``most`` windows at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.batches = most, list[int]()

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        if len(features) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(features))
        return super().forward(features, factor=factor)


def test_windows_are_halved_where_memory_does_not_suffice() -> None:
    head = Hungry(most=3)
    mode = SlidingWindowConfig(window=16, stride=16, window_batch=12)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    assert stub(head, block_size=8, stride=8).count(image, mode).count == 48
    assert head.batches == [3, 3, 3, 3]  # 12 and 6 were too many


def test_no_memory_at_all_says_what_to_do() -> None:
    counter = stub(Hungry(most=0), block_size=8, stride=8)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    with pytest.raises(MemoryError, match=r"64 x 48 pixels does not fit .* add eval=sliding_window"):
        counter.count(image)
    with pytest.raises(MemoryError, match=r"16 x 16 pixels does not fit .* lower eval.window"):
        counter.count(image, SlidingWindowConfig(window=16, stride=16))


class OneNumber(PredictionHead):
    """Seven heads per image, and nothing about where they are."""

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        return Prediction(count=torch.full((len(features),), 7.0), blocks=None)


def test_a_network_without_blocks_counts_whole_images_and_refuses_windows() -> None:
    counter, image = stub(OneNumber(), block_size=8, stride=8), torch.zeros(3, 50, 70, dtype=torch.uint8)
    counted = counter.count(image, probabilities=True)
    assert (counted.count, counted.blocks, counted.probabilities) == (7.0, None, None)
    with pytest.raises(ConfigError, match=r"eval=sliding_window: .* one number per image .* choose eval=whole_image"):
        counter.count(image, SlidingWindowConfig(window=16, stride=16))


def test_other_faults_are_not_taken_for_missing_memory() -> None:
    class Broken(Ones):
        def forward(self, features: Tensor, *, factor: float) -> Prediction:
            raise RuntimeError("broken")

    for mode in (WholeImageConfig(), SlidingWindowConfig(window=16, stride=16)):
        with pytest.raises(RuntimeError, match="broken"):
            stub(Broken(), block_size=8, stride=8).count(torch.zeros(3, 20, 20, dtype=torch.uint8), mode)


# ------------------------------------------------------------------------------------------ the choice


def test_a_vit_sees_windows_of_its_own_size_and_others_whole_images() -> None:
    vit, tiny = ClipViTConfig(input_size=256), TinyConfig()
    assert counting_mode(EvalConfig(), vit, crop_size=224) == SlidingWindowConfig(window=256, stride=256)
    assert counting_mode(EvalConfig(pictures=2), tiny, crop_size=96) == WholeImageConfig()
    # What is chosen goes before what suits; windows are then as large as the crops of the training.
    windows = SlidingWindowConfig(pictures=1)
    chosen = counting_mode(EvalConfig(), tiny, crop_size=96, chosen=windows)
    assert chosen == SlidingWindowConfig(pictures=1, window=96, stride=96)
    assert counting_mode(EvalConfig(), vit, crop_size=96, chosen=WholeImageConfig()) == WholeImageConfig()
    # An evaluation that chooses nothing counts as the training did.
    trained = SlidingWindowConfig(window=64)
    as_trained = counting_mode(trained, tiny, crop_size=96, chosen=EvalConfig(pictures=0))
    assert as_trained == SlidingWindowConfig(pictures=0, window=64, stride=64)


@pytest.mark.parametrize(
    ("window", "stride", "words"),
    [
        (100, 100, "eval.window=100: must be a multiple of 16 .*; nearest: 96"),
        (8, 8, "eval.window=8: .* nearest: 16"),
        (96, 20, "eval.stride=20: must be a multiple of bins.block_size=8"),
        (96, 104, "eval.stride=104: .* at most eval.window=96"),
    ],
)
def test_windows_off_the_grid_are_refused(window: int, stride: int, words: str) -> None:
    error = window_error(SlidingWindowConfig(window=window, stride=stride), 8, 16)
    assert error is not None
    with pytest.raises(ValueError, match=words):
        raise ValueError(error)


class Certain(Prediction):
    """Blocks whose variance is a tenth of their count."""

    def variance(self) -> Tensor:
        assert self.blocks is not None
        return self.blocks / 10


class Varying(PredictionHead):
    """As many heads as the middle of a window is far from its left border: windows disagree where they overlap."""

    def forward(self, features: Tensor, *, factor: float) -> Prediction:
        rows, cols = features.shape[-2:]
        blocks = torch.arange(float(cols)).expand(len(features), 1, rows, cols)
        return Certain(blocks.sum((1, 2, 3)), blocks)


def test_the_variance_of_overlapping_windows_is_that_of_their_mixture() -> None:
    """Windows of four blocks at every second one: column 2 has 2 of the first and 0 of the second window."""
    counter = stub(Varying(), block_size=8, stride=8)
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    counted = counter.count(image, SlidingWindowConfig(window=32, stride=16, window_batch=1), variance=True)
    assert counted.blocks is not None
    assert counted.variance is not None
    assert counted.probabilities is None
    assert counted.blocks[0].tolist() == [0, 1, 1, 2, 2, 3]
    # Within the windows (mean of the variances), and between them (variance of the counts).
    expected = [0, 0.1, 0.1 + 1, 0.2 + 1, 0.2, 0.3]
    torch.testing.assert_close(counted.variance[0], torch.tensor(expected))
    assert counted.total_variance() == pytest.approx(4 * sum(expected), rel=1e-6)


def test_variances_are_returned_if_they_are_requested_and_known() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    counter = stub(Varying(), block_size=8, stride=8)
    whole = counter.count(image, variance=True)
    assert whole.variance is not None
    torch.testing.assert_close(whole.variance, torch.arange(4.0).expand(3, 4) / 10)
    (same,) = counter.count_batch([image], variance=True)
    assert torch.equal(same.variance, whole.variance)
    assert counter.count(image).variance is None
    without = stub(Ones(), block_size=8, stride=8).count(image, variance=True)
    assert (without.variance, without.total_variance(), without.count) == (None, None, 12)


def test_bins_give_probabilities_and_variances_together() -> None:
    torch.manual_seed(0)
    counter = build_model(TinyConfig(width=8), BINS.grid, BINS).eval()
    image = torch.randint(0, 256, (3, 64, 72), dtype=torch.uint8)
    for mode in (WholeImageConfig(), SlidingWindowConfig(window=32, stride=16)):
        both = counter.count(image, mode, probabilities=True, variance=True)
        assert both.probabilities is not None
        assert both.variance is not None
        assert torch.equal(both.probabilities, counter.count(image, mode, probabilities=True).probabilities)
        torch.testing.assert_close(both.probabilities.sum(0), torch.ones(8, 9))
        values, squares = torch.tensor([BINS.representatives, bin_moments(BINS)])
        mean, square = (torch.einsum("k,khw->hw", of, both.probabilities) for of in (values, squares))
        torch.testing.assert_close(both.variance, square - mean.square(), rtol=1e-4, atol=1e-4)
