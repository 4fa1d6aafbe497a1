"""Windows cover an image of any size once, and padding never counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import (
    AugmentConfig,
    Border,
    ClipViTConfig,
    EvalConfig,
    SlidingWindowConfig,
    Strategy,
    TinyConfig,
    TrainConfig,
    WholeImageConfig,
    counting_mode,
    window_error,
)
from headcount.engine.tiling import predict_blocks, window_starts
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.heads import Head
from headcount.types import BlockPrediction

BINS = CountBins.from_histogram({0: 9, 1: 3, 4: 1}, block_size=8, strategy=Strategy.fine, m=4)


class Features(nn.Module):
    """The mean color of every ``stride`` pixels a side."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = 3, stride

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, self.stride)


class Ones(Head):
    """One head in every block, whatever it shows."""

    def forward(self, features: Tensor, *, factor: float) -> BlockPrediction:
        rows, cols = (round(size * factor) for size in features.shape[-2:])
        return BlockPrediction(block_counts=torch.ones(len(features), 1, rows, cols))


class Brightness(Head):
    """As many heads as a block's middle is bright: what a window says depends on its place alone."""

    def forward(self, features: Tensor, *, factor: float) -> BlockPrediction:
        return BlockPrediction(block_counts=nn.functional.interpolate(features, scale_factor=factor)[:, :1])


def stub(head: Head, *, block_size: int, stride: int) -> Counter:
    counter = Counter(Features(stride), head, block_size=block_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return counter.eval()


@st.composite
def images_and_windows(draw: st.DrawFn) -> tuple[int, int, int, int, SlidingWindowConfig]:
    block_size = draw(st.sampled_from([4, 8, 16]))
    stride = draw(st.sampled_from([4, 8, 14, 16]))
    unit = math.lcm(block_size, stride)
    window = unit * draw(st.integers(1, 3))
    step = block_size * draw(st.integers(1, window // block_size))
    height, width = (draw(st.integers(1, 3 * window)) for _ in range(2))
    mode = SlidingWindowConfig(
        window=window, stride=step, window_batch=draw(st.integers(1, 5)), border=draw(st.sampled_from(Border))
    )
    return height, width, block_size, stride, mode


@given(images_and_windows())
@settings(max_examples=60, deadline=None)
def test_a_model_of_ones_sums_to_the_blocks_of_the_image(case: tuple[int, int, int, int, SlidingWindowConfig]) -> None:
    height, width, block_size, stride, mode = case
    counter = stub(Ones(), block_size=block_size, stride=stride)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert window_error(mode, block_size, stride) is None
    shape = (math.ceil(height / block_size), math.ceil(width / block_size))
    for way in (mode, WholeImageConfig()):
        maps = predict_blocks(counter, image, way)
        assert maps.counts.shape == shape
        assert bool((maps.counts == 1).all())


@given(images_and_windows())
@settings(max_examples=30, deadline=None)
def test_each_window_lands_where_it_was_cut(case: tuple[int, int, int, int, SlidingWindowConfig]) -> None:
    """A counter that looks at single blocks says the same in windows as in one piece."""
    height, width, block_size, _, mode = case
    counter = stub(Brightness(), block_size=block_size, stride=block_size)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict_blocks(counter, image, mode).counts, predict_blocks(counter, image).counts)


@pytest.mark.parametrize(
    ("border", "starts"), [(Border.inward, [0, 32, 64, 72]), (Border.pad, [0, 32, 64, 96])], ids=lambda v: str(v)
)
def test_the_last_window_moves_inward_or_goes_on(border: Border, starts: list[int]) -> None:
    # 130 px are 17 blocks of 8, or 136 px: the last of the windows of 64 px begins at 72, or on the next step.
    assert window_starts(130, window=64, stride=32, border=border, block_size=8) == starts


def test_overlaps_are_averaged_by_coverage() -> None:
    """Four windows that each say their own number: where two overlap the mean is said."""

    class Numbered(Head):
        def forward(self, features: Tensor, *, factor: float) -> BlockPrediction:
            rows, cols = features.shape[-2:]
            values = torch.arange(1.0, len(features) + 1).view(-1, 1, 1, 1)
            return BlockPrediction(block_counts=values.expand(-1, 1, rows, cols).clone())

    counter = stub(Numbered(), block_size=8, stride=8)
    mode = SlidingWindowConfig(window=16, stride=16, window_batch=8)
    counts = predict_blocks(counter, torch.zeros(3, 8, 40, dtype=torch.uint8), mode).counts
    # Windows at 0, 16 and, moved inward, 24: the second and the third share a block.
    assert counts.tolist() == [[1.0, 1.0, 2.0, 2.5, 3.0]]


@pytest.mark.parametrize("border", Border)
def test_the_batch_of_windows_does_not_change_the_count(border: Border) -> None:
    torch.manual_seed(0)
    counter = build_model(TinyConfig(width=8), BINS).eval()
    image = torch.randint(0, 256, (3, 211, 173), dtype=torch.uint8)
    modes = [SlidingWindowConfig(window=64, stride=40, window_batch=n, border=border) for n in (1, 2, 7, 100)]
    counts = [float(predict_blocks(counter, image, mode).counts.sum(dtype=torch.float64)) for mode in modes]
    assert counts == pytest.approx([counts[0]] * len(counts), rel=1e-7)


def test_probabilities_sum_to_one_and_give_the_counts() -> None:
    torch.manual_seed(0)
    counter = build_model(TinyConfig(width=8), BINS).eval()
    image = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    for mode in (WholeImageConfig(), SlidingWindowConfig(window=32, stride=16, window_batch=4)):
        maps = predict_blocks(counter, image, mode, probabilities=True)
        assert maps.probabilities is not None
        torch.testing.assert_close(maps.probabilities.sum(0), torch.ones(9, 12))
        expected = torch.einsum("nhw,n->hw", maps.probabilities, torch.tensor(BINS.representatives))
        torch.testing.assert_close(expected, maps.counts)


class Hungry(Ones):
    """Has memory for ``most`` windows at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.batches = most, list[int]()

    def forward(self, features: Tensor, *, factor: float) -> BlockPrediction:
        if len(features) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(features))
        return super().forward(features, factor=factor)


def test_windows_are_halved_where_memory_does_not_suffice() -> None:
    head = Hungry(most=3)
    mode = SlidingWindowConfig(window=16, stride=16, window_batch=12)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    assert float(predict_blocks(stub(head, block_size=8, stride=8), image, mode).counts.sum()) == 48
    assert head.batches == [3, 3, 3, 3]  # 12 and 6 were too many


def test_no_memory_at_all_says_what_to_do() -> None:
    counter = stub(Hungry(most=0), block_size=8, stride=8)
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    with pytest.raises(MemoryError, match=r"64 x 48 pixels does not fit .* add eval=sliding_window"):
        predict_blocks(counter, image)
    with pytest.raises(MemoryError, match=r"16 x 16 pixels does not fit .* lower eval.window"):
        predict_blocks(counter, image, SlidingWindowConfig(window=16, stride=16))


def test_other_faults_are_not_taken_for_missing_memory() -> None:
    class Broken(Ones):
        def forward(self, features: Tensor, *, factor: float) -> BlockPrediction:
            raise RuntimeError("broken")

    for mode in (WholeImageConfig(), SlidingWindowConfig(window=16, stride=16)):
        with pytest.raises(RuntimeError, match="broken"):
            predict_blocks(stub(Broken(), block_size=8, stride=8), torch.zeros(3, 20, 20, dtype=torch.uint8), mode)


# ------------------------------------------------------------------------------------------ the choice


def test_a_vit_sees_windows_of_its_own_size_and_others_whole_images() -> None:
    vit = TrainConfig(model=ClipViTConfig(input_size=256), eval=EvalConfig(), augment=AugmentConfig())
    assert counting_mode(vit) == SlidingWindowConfig(window=256, stride=256)
    tiny = TrainConfig(model=TinyConfig(), eval=EvalConfig(pictures=2), augment=AugmentConfig(crop_size=96))
    assert counting_mode(tiny) == WholeImageConfig()
    # What is chosen goes before what suits; windows are then as large as the crops of the training.
    assert counting_mode(tiny, SlidingWindowConfig(pictures=1)) == SlidingWindowConfig(pictures=1, window=96, stride=96)
    assert counting_mode(vit, WholeImageConfig()) == WholeImageConfig()
    # An evaluation that chooses nothing counts as the training did.
    trained = TrainConfig(model=TinyConfig(), eval=SlidingWindowConfig(window=64), augment=AugmentConfig())
    assert counting_mode(trained, EvalConfig(pictures=0)) == SlidingWindowConfig(pictures=0, window=64, stride=64)


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
