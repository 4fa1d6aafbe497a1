"""A density map laid over the photo it was predicted from."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from torch import Tensor

from headcount.data.points import spread_blocks

_COLOURS = "turbo"
_LONG_SIDE = 1400  # pixels of the drawn photo
_DPI = 100
_SMOOTHING = 0.7  # blocks
_LEAST_SCALE = 0.2  # heads a block; what is less is noise, and is not blown up to full colour
_STRONGEST = 0.8  # share of colour at the densest place; the rest is photo


def overlay_picture(
    image: UInt8[Tensor, "3 height width"],
    block_counts: Float[Tensor, "rows cols"],
    path: Path,
    *,
    block_size: int,
    title: str,
) -> None:
    """Draw the photo in grey with its density in colour, the count above it and a scale beside it.

    Grey, and between black and white: colours are then seen on light and on dark photos alike.

    Args:
        image: the photo the blocks belong to.
        block_counts: expected heads in each block.
        path: the picture's file; its ending says the format.
        block_size: side of a block, pixels of ``image``.
        title: written above the count.
    """
    _, height, width = image.shape
    shrink = min(1.0, _LONG_SIDE / max(height, width))
    panel = max(1, round(height * shrink)), max(1, round(width * shrink))
    photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(panel[::-1], Image.Resampling.BOX)
    grey = 0.15 + 0.65 * np.asarray(photo.convert("L"), dtype=np.float32)[..., None] / 255
    blocks = block_counts.double().numpy()
    density = spread_blocks(
        ndimage.gaussian_filter(blocks, _SMOOTHING, mode="reflect"),
        image=(height, width),
        panel=panel,
        block_size=block_size,
    )
    per_block = density * (block_size * shrink) ** 2  # heads in a cell of the panel -> heads in the area of a block
    scale = max(_LEAST_SCALE, float(per_block.max()))
    share = (per_block / scale).clip(0, 1)
    colour = colormaps[_COLOURS](share)[..., :3]
    # The square root lets single people be seen beside a crowd.
    weight = _STRONGEST * np.sqrt(share)[..., None]
    inches = max(panel[1] / _DPI, 4.0), max(panel[0] / _DPI, 2.0) + 0.7
    figure = Figure(figsize=(inches[0] + 1.1, inches[1]), dpi=_DPI, layout="constrained")
    axis = figure.subplots()
    axis.imshow((1 - weight) * grey + weight * colour, interpolation="antialiased")
    axis.set_axis_off()
    name = title if len(title) <= 60 else f"{title[:28]}...{title[-29:]}"
    axis.set_title(f"{name}\n{float(blocks.sum()):.1f} people", fontsize=14, parse_math=False)
    bar = figure.colorbar(ScalarMappable(Normalize(0, scale), _COLOURS), ax=axis, fraction=0.04, pad=0.01)
    bar.set_label(f"people per {block_size} x {block_size} pixels")
    figure.savefig(path)
