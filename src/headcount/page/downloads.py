"""Pictures of the page, and the files that can be downloaded from it; made when asked for, and never stored."""

import io
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headcount.page.counting import pixels
from headcount.page.session import Session, View
from headcount.report.bin_map import bin_map
from headcount.report.overlay import framed_picture
from headcount.report.predictions import Results
from headcount.report.regions import draw_corners, draw_regions, drawn_regions
from headcount.wording import printable

_drawing = threading.Lock()  # matplotlib's fonts are shared


def overlay(session: Session, *, strength: float) -> UInt8[np.ndarray, "height width 3"]:
    """The picture that is shown, with its density, regions, and the region that is being drawn.

    Args:
        strength: of the density, 0 (only the picture, in its own colors) to 1.
    """
    view = session.view
    drawn = Image.blend(Image.fromarray(pixels(view.photo)), Image.fromarray(pixels(view.heat)), strength)
    corners = [(x / 100, y / 100) for x, y in session.corners]
    picture = _with_regions(np.asarray(drawn), session)
    return draw_corners(picture, corners) if corners else picture


def bins(view: View, number_of_bins: int) -> UInt8[np.ndarray, "height width 3"] | None:
    """A picture with the most probable bin of each block; None for a counter without bins."""
    if view.bins is None:
        return None
    return bin_map(
        pixels(view.photo),
        view.bins,
        number_of_bins=number_of_bins,
        image_size=view.image_size,
        block_size=view.block_size,
    )


def _with_regions(drawn: UInt8[np.ndarray, "height width 3"], session: Session) -> UInt8[np.ndarray, "height width 3"]:
    view = session.view
    if not session.regions or view.blocks is None:
        return drawn
    grid = view.grid(session.regions)
    counts = grid.count(view.blocks.astype(np.float64))
    return draw_regions(drawn, drawn_regions(grid, counts, photo_size=view.photo_size))


def counts_csv(session: Session) -> bytes:
    """A line per picture, as ``headcount predict`` writes counts.csv."""
    for view in session.views:
        view.result.regions = view.count_regions(session.regions)
    with tempfile.TemporaryDirectory() as folder:
        names = [region.name for region in session.regions]
        results = Results(Path(folder), "", [view.result for view in session.views], regions=names)
        results.save()
        return results.csv_file.read_bytes()


def density_npy(session: Session) -> bytes | None:
    """The people per block of the picture that is shown, as ``headcount predict`` writes density/<name>.npy."""
    if session.view.blocks is None:
        return None
    content = io.BytesIO()
    np.save(content, session.view.blocks)
    return content.getvalue()


def picture_png(session: Session) -> bytes | None:
    """The picture that is shown with density, count, color bar and regions."""
    view = session.view
    if view.blocks is None:
        return None
    with tempfile.TemporaryDirectory() as folder, _drawing:
        path = Path(folder, "picture.png")
        framed_picture(
            _with_regions(pixels(view.heat), session),
            path,
            count=view.count,
            scale=view.scale,
            block_size=view.block_size,
            title=printable(view.result.file),
            interval="" if view.result.interval is None else str(view.result.interval),
        )
        return path.read_bytes()


FILES: dict[str, tuple[str, Callable[[Session], bytes | None]]] = {
    "counts.csv": ("text/csv; charset=utf-8", counts_csv),
    "density.npy": ("application/octet-stream", density_npy),
    "picture.png": ("image/png", picture_png),
    "curve.png": ("image/png", lambda session: session.curve),
}
"""Name of a download -> its media type, and what makes it; None where there is none."""
