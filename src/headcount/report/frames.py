"""Draw the counts of a video: into each frame, and as a curve over time."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from headcount.report.overlay import heat_map
from headcount.report.pictures import from_zero, save_figure, shorten
from headcount.report.regions import DrawnRegion, draw_label, draw_regions

# Sides of the annotated video: no larger than needed, no smaller than its text can be read.
_MAX_SIDE, _MIN_SIDE = 1920, 640
_MAX_POINTS = 4000  # of the curve
_DPI = 110


class FrameAnnotator:
    """Draws frames for a video: all of one size, and on a color scale that only ever grows, so that it is steady."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._scale = 0.2

    def draw(
        self,
        image: UInt8[Tensor, "3 height width"],
        blocks: Float[Tensor, "rows cols"] | None,
        *,
        block_size: int,
        caption: Sequence[str],
        regions: Sequence[DrawnRegion] = (),
    ) -> UInt8[np.ndarray, "panel_height panel_width 3"]:
        """Draw a frame in gray, its predicted density in color, its regions, and a caption in a corner.

        Args:
            image: the frame as it was counted.
            blocks: expected heads in each block; None for a counter that predicts one number per image.
            block_size: side of a block, in pixels of ``image``.
            caption: lines of text.
            regions: outlined, with name and count.

        Returns:
            RGB of the size of the first frame that was drawn; both sides are even, as encoders need it.
        """
        height, width = image.shape[1:]
        if self._size is None:
            side = max(height, width)
            self._size = _even(height, width, ratio=max(min(side, _MAX_SIDE), _MIN_SIDE) / side)
        ratio = min(self._size[0] / height, self._size[1] / width)
        panel = tuple(min(a, b) for a, b in zip(_even(height, width, ratio=ratio), self._size, strict=True))
        counts = None if blocks is None else blocks.double().numpy()
        drawn, self._scale = heat_map(
            image, counts, panel=(panel[0], panel[1]), block_size=block_size, scale=self._scale
        )
        canvas = np.zeros((*self._size, 3), dtype=np.uint8)
        canvas[: panel[0], : panel[1]] = draw_regions(drawn, regions)
        picture = Image.fromarray(canvas)
        draw_label(ImageDraw.Draw(picture, "RGBA"), "\n".join(caption), (0, 0), picture_size=picture.size)
        return np.asarray(picture)


def _even(height: int, width: int, *, ratio: float) -> tuple[int, int]:
    return max(2, round(height * ratio / 2) * 2), max(2, round(width * ratio / 2) * 2)


def clock(seconds: float) -> str:
    """A time as it is read: 0:07.5, 12:00.0, 1:02:03.0."""
    tenths = round(seconds * 10)
    hours, minutes = tenths // 36_000, tenths // 600 % 60
    rest = f"{tenths % 600 / 10:04.1f}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


class CountCurve:
    """Counts over time in bounded memory: of a long video, each point is the mean of several frames."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin without points.

        Args:
            names: what is counted: the whole frame, and the regions.
        """
        self.names = list(names)
        self.frames_per_point = 1
        self._points: list[Float[np.ndarray, " columns"]] = []
        self._sum = np.zeros(1 + len(self.names))
        self._summed = 0

    def add(self, seconds: float, counts: Sequence[float]) -> None:
        """Add a frame: its time, and a count for each name."""
        self._sum = self._sum + np.array([seconds, *counts])
        self._summed += 1
        if self._summed == self.frames_per_point:
            self._points.append(self._sum / self._summed)
            self._sum, self._summed = np.zeros_like(self._sum), 0
        if len(self._points) == _MAX_POINTS:
            pairs = np.stack(self._points).reshape(_MAX_POINTS // 2, 2, -1)
            self._points = list(pairs.mean(axis=1))
            self.frames_per_point *= 2

    def points(self) -> Float[np.ndarray, "points columns"]:
        """Time and counts of each point; the last may be of fewer frames."""
        rest = [self._sum / self._summed] if self._summed else []
        return np.array([*self._points, *rest]).reshape(-1, 1 + len(self.names))

    def draw(self, path: Path, *, title: str) -> None:
        """Draw the curve of each name.

        Args:
            path: the picture file; its suffix determines the format.
            title: written above it.

        Raises:
            OSError: if the file cannot be written.
        """
        figure = Figure(figsize=(10, 4.5), dpi=_DPI, layout="constrained")
        axis = figure.subplots()
        points = self.points()
        marker = "o" if len(points) < 60 else ""
        for k, name in enumerate(self.names, start=1):
            style = {"color": "black", "linewidth": 1.8} if k == 1 else {"linewidth": 1.3}
            # A label that begins with "_" would be hidden, and dollar signs begin a formula.
            label = (" " if name.startswith("_") else "") + shorten(name).replace("$", r"\$")
            axis.plot(points[:, 0], points[:, k], label=label, marker=marker, ms=3, **style)
        means = f", means of {self.frames_per_point} frames" if self.frames_per_point > 1 else ""
        axis.set(xlabel="time in the video, seconds", ylabel=f"people{means}")
        axis.set_title(shorten(title, 90), fontsize=11, parse_math=False)
        axis.grid(alpha=0.3)
        from_zero(axis)
        if len(self.names) > 1:
            axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        with warnings.catch_warnings():  # characters that the font lacks are drawn as boxes
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            save_figure(figure, path)
