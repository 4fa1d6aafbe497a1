"""The README's picture: a crowd beside the density and the count that were predicted for it.

The density is smoothed for display only; the counts in the titles are those of the data.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor

from headcount.report.pictures import save_figure

_DPI = 100
_TITLE_INCHES = 0.6
_GAP_INCHES = 0.1
_SMOOTHING = 1.0  # blocks
_STRONGEST = 0.85  # opacity of the color where the density is highest


def draw_banner(
    image: UInt8[Tensor, "3 height width"],
    block_counts: Float[Tensor, "rows cols"],
    path: Path,
    *,
    block_size: int,
    true_count: int,
) -> None:
    """Draw the image on the left, and its predicted density over a gray copy on the right.

    Args:
        image: the crowd.
        block_counts: predicted heads in each block; the last blocks may reach beyond the image.
        path: the picture's file, a JPEG.
        block_size: side of a block, pixels of ``image``.
        true_count: annotated heads.
    """
    _, height, width = image.shape
    wide, high = width / _DPI, height / _DPI
    size = 2 * wide + _GAP_INCHES, high + _TITLE_INCHES
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    pixels = image.permute(1, 2, 0).numpy()
    density = ndimage.gaussian_filter(block_counts.double().numpy(), _SMOOTHING, mode="reflect")
    share = density.clip(0) / max(float(density.max()), 1e-9)
    rows, cols = share.shape
    titles = (
        f"annotated: {true_count} people",
        f"predicted: {float(block_counts.double().sum()):.1f} people",
    )
    for column, title in enumerate(titles):
        left = column * (wide + _GAP_INCHES) / size[0]
        axis = figure.add_axes((left, 0, wide / size[0], high / size[1]))
        axis.set_axis_off()
        axis.set_title(title, fontsize=22, pad=10)
        if column == 0:
            axis.imshow(pixels)
            continue
        axis.imshow(pixels.astype(np.float32).mean(2), cmap="gray", vmin=-60, vmax=330)
        axis.imshow(
            share,
            cmap="turbo",
            vmin=0,
            vmax=1,
            # The square root shows single people beside a dense crowd.
            alpha=_STRONGEST * np.minimum(1, 1.6 * np.sqrt(share)),
            extent=(-0.5, cols * block_size - 0.5, rows * block_size - 0.5, -0.5),
            interpolation="bicubic",
        )
        axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    save_figure(figure, path, pil_kwargs={"quality": 82, "optimize": True})
