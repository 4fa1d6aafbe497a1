"""How many blocks of the training images hold how many heads, for the bins' representative counts.

Source: arXiv:2403.09281, section III-A.3, the B_i of equation 2.
"""

from collections import Counter
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from headcount.config import ZERO_BELOW, CountedIn
from headcount.data.crowd import CrowdDataset
from headcount.data.points import Smoothing, block_counts, crop, smoothed_counts, window_counts
from headcount.progress import progress_bar

_SILENT_IMAGES = 100  # Larger datasets show a progress bar.


def block_histogram(dataset: CrowdDataset, block_size: int, *, counted: CountedIn = CountedIn.blocks) -> dict[int, int]:
    """Count the blocks of the prepared training images that hold 0, 1, 2, ... heads.

    Of images with a mask, only blocks entirely inside are counted, as the heads of others are only partly known.

    Blocks form a grid from the top left corner; the rest of an image beyond its last whole block is not counted, as
    no training crop has such blocks. Heads outside their image are where training has them, on its border or nowhere
    (``dataset.outside``). Not cached: the points are in memory.

    Args:
        block_size: side of a block, pixels.
        counted: ``windows`` takes all squares of a block's size inside an image, at every pixel, in which the heads of
            one pixel count once. The published representative counts are made from these.

    Returns:
        Number of blocks by number of heads, in increasing order.
    """
    histogram: Counter[int] = Counter()
    if counted is CountedIn.windows:
        progress = progress_bar(dataset.sizes, label="counting windows", disable=len(dataset) <= _SILENT_IMAGES)
        for index, (width, height) in enumerate(progress):
            mask = dataset.mask(index)
            pixels = None if mask is None else (mask.shares(1) == 1).numpy()
            histogram += window_counts(
                dataset.points(index), height=height, width=width, window=block_size, inside_mask=pixels
            )
    else:
        for points, width, height, shares in _whole_blocks(dataset, block_size):
            counts = block_counts(points, height=height, width=width, block_size=block_size)
            histogram.update(_known(counts, shares).int().tolist())
    return dict(sorted(histogram.items()))


def smoothed_histogram(dataset: CrowdDataset, block_size: int, smoothing: Smoothing) -> dict[float, int]:
    """Count the blocks of the prepared training images by their smoothed number of heads.

    Blocks are those of :func:`block_histogram`.

    Args:
        block_size: side of a block, pixels.
        smoothing: the Gaussian on each head.

    Returns:
        Number of blocks by number of heads, which is rounded up to a multiple of ``ZERO_BELOW``.
    """
    histogram: Counter[int] = Counter()
    for points, width, height, shares in _whole_blocks(dataset, block_size, progress="smoothing heads"):
        counts = smoothed_counts(
            points, smoothing.sigmas(points), height=height, width=width, block_size=block_size, inside=shares
        )
        steps, blocks = (_known(counts, shares) / ZERO_BELOW).ceil().long().unique(return_counts=True)
        histogram.update(dict(zip(steps.tolist(), blocks.tolist(), strict=True)))
    return {round(step * ZERO_BELOW, 10): blocks for step, blocks in sorted(histogram.items())}


def _whole_blocks(
    dataset: CrowdDataset, block_size: int, *, progress: str | None = None
) -> Iterator[tuple[Float[Tensor, "_ 2"], int, int, Float[Tensor, "rows cols"] | None]]:
    """Yield the training heads in the whole blocks of each image, and the width and height of these blocks in pixels.

    Args:
        progress: label of a progress bar; None shows none.

    Yields:
        Last, the share of each of these blocks inside the image's mask; None without a mask.
    """
    silent = progress is None or len(dataset) <= _SILENT_IMAGES
    for index, size in enumerate(progress_bar(dataset.sizes, label=progress or "", disable=silent)):
        width = size[0] // block_size * block_size
        height = size[1] // block_size * block_size
        if width and height:
            kept, _ = crop(dataset.points(index), left=0, top=0, width=width, height=height)
            mask = dataset.mask(index)
            shares = None if mask is None else mask.shares(block_size)[: height // block_size, : width // block_size]
            yield kept, width, height, shares


def _known(counts: Float[Tensor, "rows cols"], shares: Float[Tensor, "rows cols"] | None) -> Float[Tensor, " blocks"]:
    """Return the counts of the blocks entirely inside the mask."""
    return counts.flatten() if shares is None else counts[shares == 1]
