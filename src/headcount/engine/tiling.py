"""Count an image of any size: in one piece, or in windows that are averaged where they overlap.

Float32 throughout: a sum of thousands of small counts loses heads in less.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headcount.config import Border, SlidingWindowConfig, WholeImageConfig
from headcount.models.counter import Counter

WHOLE_IMAGE = WholeImageConfig()


@dataclass
class BlockMaps:
    """What a counter says of one image, on the host; blocks that lie in padding alone are left out."""

    counts: Float[Tensor, "rows cols"]
    """Expected heads in each block."""
    probabilities: Float[Tensor, "bins rows cols"] | None
    """Probability of each bin in each block; None unless asked for, and for a head that regresses."""


@torch.inference_mode()
def predict_blocks(
    counter: Counter,
    image: UInt8[Tensor, "3 height width"],
    mode: WholeImageConfig | SlidingWindowConfig = WHOLE_IMAGE,
    *,
    probabilities: bool = False,
) -> BlockMaps:
    """Expected heads in each block of one image of any size.

    What a window (or the whole image) reaches over the right or lower border is filled with the mean
    color. Blocks that several windows see are averaged.

    Args:
        mode: windows with every size given (:func:`headcount.config.counting_mode`).
        probabilities: also keep each bin's probability.

    Raises:
        MemoryError: if not even one window fits into memory.
    """
    height, width = image.shape[-2:]
    if isinstance(mode, SlidingWindowConfig):
        maps = _windows(counter, image, mode, probabilities)
    else:
        multiple = math.lcm(counter.stride, counter.block_size)
        side = [size + -size % multiple for size in (height, width)]
        try:
            maps = _forward(counter, image, [(0, 0)], side, probabilities)[0]
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise MemoryError(
                f"an image of {width} x {height} pixels does not fit into memory in one piece; add eval=sliding_window"
            ) from error
    rows, cols = (math.ceil(size / counter.block_size) for size in (height, width))
    maps = maps[:, :rows, :cols]
    return BlockMaps(counts=maps[0], probabilities=maps[1:] if len(maps) > 1 else None)


def window_starts(size: int, *, window: int, stride: int, border: Border, block_size: int) -> list[int]:
    """Where the windows along a side of ``size`` px begin: on the grid of blocks, and covering all of it."""
    size += -size % block_size
    if size <= window:
        return [0]
    if border is Border.pad:
        return [k * stride for k in range(math.ceil((size - window) / stride) + 1)]
    return sorted({*range(0, size - window + 1, stride), size - window})


def _windows(
    counter: Counter, image: UInt8[Tensor, "3 height width"], mode: SlidingWindowConfig, probabilities: bool
) -> Float[Tensor, "maps rows cols"]:
    """Average of the maps of all windows; reaches over the image as far as they do."""
    window, stride = mode.window, mode.stride
    assert window, "sizes are given: headcount.config.counting_mode"
    assert stride
    block = counter.block_size
    tops, lefts = (
        window_starts(size, window=window, stride=stride, border=mode.border, block_size=block)
        for size in image.shape[-2:]
    )
    corners = list(itertools.product(tops, lefts))
    shape = [(starts[-1] + window) // block for starts in (tops, lefts)]
    sums, seen = torch.empty(0), torch.zeros(shape)
    batch = mode.window_batch
    while corners:
        now = corners[:batch]
        try:
            maps = _forward(counter, image, now, [window, window], probabilities)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(now) == 1:
                raise MemoryError(
                    f"a window of {window} x {window} pixels does not fit into memory; lower eval.window"
                ) from error
            batch = len(now) // 2
            continue
        corners = corners[batch:]
        if not len(sums):
            sums = torch.zeros(maps.shape[1], *shape)
        for (top, left), part in zip(now, maps, strict=True):
            rows, cols = (slice(s // block, (s + window) // block) for s in (top, left))
            sums[:, rows, cols] += part
            seen[rows, cols] += 1
    return sums / seen


def _forward(
    counter: Counter,
    image: UInt8[Tensor, "3 height width"],
    corners: list[tuple[int, int]],
    side: list[int],
    probabilities: bool,
) -> Float[Tensor, "windows maps rows cols"]:
    """Counts, then probabilities if asked for, of the windows of ``side`` px at ``corners``, on the host."""
    device = counter.mean.device
    # Zero is the mean color of normalized pixels.
    pixels = torch.zeros(len(corners), 3, *side, device=device).contiguous(memory_format=torch.channels_last)
    for k, (top, left) in enumerate(corners):
        part = image[:, top : top + side[0], left : left + side[1]]
        pixels[k, :, : part.shape[1], : part.shape[2]] = counter.normalize(part[None].to(device))[0]
    prediction = counter(pixels)
    maps = [prediction.block_counts.float()]
    if probabilities and prediction.logits is not None:
        maps.append(prediction.logits.float().softmax(1))
    return torch.cat(maps, dim=1).cpu()


def _out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the host (which has no error of its own), had no memory left."""
    words = ("can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
