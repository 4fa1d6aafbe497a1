"""Count an image of any size: whole, or in windows that are averaged where they overlap.

Float32 throughout: a sum of thousands of small counts loses heads in lower precision.
"""

import itertools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from headcount.config import Border, ConfigError, SlidingWindowConfig, WholeImageConfig
from headcount.types import BlockGrid, Counted

Maps = Float[Tensor, "windows maps rows cols"]
"""Block counts and, if requested, their mean squares (NaN where unknown) and the probability of each bin, on the
host."""

PredictWindows = Callable[[list[tuple[int, int]], tuple[int, int]], tuple[Float[Tensor, " windows"], Maps | None]]
"""(corners (top, left), (height, width)) -> count of each window, and its maps; None for a network without blocks."""


def count_image(
    predict: PredictWindows,
    mode: WholeImageConfig | SlidingWindowConfig,
    *,
    height: int,
    width: int,
    grid: BlockGrid,
    stride: int,
    variance: bool = False,
) -> Counted:
    """Count an image of ``height`` x ``width`` pixels; see :meth:`headcount.models.counter.Counter.count`.

    Args:
        predict: the network on windows of that image, which may extend beyond its right and lower border.
        stride: of the network, in pixels.
        variance: whether ``predict`` gives the mean squares of the blocks.
    """
    if not isinstance(mode, SlidingWindowConfig):
        return count_whole(predict, mode, height=height, width=width, grid=grid, stride=stride, variance=variance)[0]
    maps = _windows(predict, mode, height=height, width=width, grid=grid)
    return _counted(maps, mode, shape=grid.shape(height, width), variance=variance)


def count_whole(
    predict: PredictWindows,
    mode: WholeImageConfig,
    *,
    height: int,
    width: int,
    grid: BlockGrid,
    stride: int,
    variance: bool = False,
) -> list[Counted]:
    """Count one or more images of ``height`` x ``width`` pixels as wholes, in one batch.

    Args:
        predict: the network on these images, asked for the one window that covers an image.
        stride: of the network, in pixels.
        variance: whether ``predict`` gives the mean squares of the blocks.
    """
    size = whole_size(height, width, stride=stride, block_size=grid.block_size)
    counts, maps = _whole_images(predict, height=height, width=width, size=size)
    if maps is None:
        return [Counted(float(count), blocks=None, probabilities=None, mode=mode) for count in counts]
    shape = grid.shape(height, width)
    return [_counted(of_image, mode, shape=shape, variance=variance) for of_image in maps]


def _counted(
    maps: Float[Tensor, "maps rows cols"],
    mode: WholeImageConfig | SlidingWindowConfig,
    *,
    shape: tuple[int, int],
    variance: bool,
) -> Counted:
    """The counted image of its maps, without the blocks beyond ``shape`` (rows, cols)."""
    maps = maps[:, : shape[0], : shape[1]]
    probabilities = maps[1 + variance :]
    of_blocks = (maps[1] - maps[0].square()).clamp(min=0) if variance and not maps[1].isnan().any() else None
    return Counted(
        count=float(maps[0].sum(dtype=torch.float64)),
        blocks=maps[0],
        probabilities=probabilities if len(probabilities) else None,
        mode=mode,
        variance=of_blocks,
    )


def window_starts(size: int, *, window: int, stride: int, border: Border, block_size: int) -> list[int]:
    """Where the windows along a side of ``size`` pixels begin: on the block grid, and covering the whole side.

    Args:
        window, stride: side of a window and distance between windows, in pixels.
    """
    size += -size % block_size
    if size <= window:
        return [0]
    if border is Border.pad:
        return [k * stride for k in range(math.ceil((size - window) / stride) + 1)]
    return sorted({*range(0, size - window + 1, stride), size - window})


def window_corners(mode: SlidingWindowConfig, *, height: int, width: int, block_size: int) -> list[tuple[int, int]]:
    """The corners (top, left) of the windows that cover an image, row by row.

    Args:
        mode: with every size given (:func:`headcount.config.counting_mode`).
    """
    assert mode.window, "headcount.config.counting_mode fills in all sizes"
    assert mode.stride
    tops, lefts = (
        window_starts(size, window=mode.window, stride=mode.stride, border=mode.border, block_size=block_size)
        for size in (height, width)
    )
    return list(itertools.product(tops, lefts))


def whole_size(height: int, width: int, *, stride: int, block_size: int) -> tuple[int, int]:
    """(height, width) of an image that is counted whole, after it was padded for the network, in pixels."""
    multiple = math.lcm(stride, block_size)
    return height + -height % multiple, width + -width % multiple


def _whole_images(
    predict: PredictWindows, *, height: int, width: int, size: tuple[int, int]
) -> tuple[Float[Tensor, " images"], Maps | None]:
    """The counts, and the maps if there are any, of the images padded to ``size`` (height, width)."""
    try:
        return predict([(0, 0)], size)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise MemoryError(
            f"an image of {width} x {height} pixels does not fit into memory as a whole; add eval=sliding_window"
        ) from error


def _windows(
    predict: PredictWindows, mode: SlidingWindowConfig, *, height: int, width: int, grid: BlockGrid
) -> Float[Tensor, "maps rows cols"]:
    """Average of the maps of all windows; extends beyond the image as far as the windows do."""
    block = grid.block_size
    corners = window_corners(mode, height=height, width=width, block_size=block)
    window = mode.window
    assert window
    shape = [(start + window) // block for start in corners[-1]]
    sums, seen = torch.empty(0), torch.zeros(shape)
    batch = mode.window_batch
    while corners:
        now = corners[:batch]
        try:
            _, maps = predict(now, (window, window))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(now) == 1:
                raise MemoryError(
                    f"a window of {window} x {window} pixels does not fit into memory; lower eval.window"
                ) from error
            batch = len(now) // 2
            continue
        if maps is None:
            raise ConfigError(
                "eval=sliding_window: this network predicts one number per image and no blocks, so that windows cannot "
                "be combined; choose eval=whole_image"
            )
        corners = corners[batch:]
        if not len(sums):
            sums = torch.zeros(maps.shape[1], *shape)
        for (top, left), part in zip(now, maps, strict=True):
            rows, cols = (slice(s // block, (s + window) // block) for s in (top, left))
            sums[:, rows, cols] += part
            seen[rows, cols] += 1
    return sums / seen


def _out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host (whose errors have no type of their own), ran out of memory."""
    messages = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in messages)
