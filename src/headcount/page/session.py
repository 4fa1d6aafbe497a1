"""What the page remembers of each open window: the counted pictures and the regions drawn on them.

Kept in memory only, until the window is closed, an hour has passed, or too many others are open.
"""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from jaxtyping import Float, UInt8

from headcount.config import ConfigError
from headcount.data.regions import Region, RegionGrid, distinct, region_from_corners
from headcount.report.predictions import PictureResult
from headcount.wording import many

MAX_REGIONS = 20
MAX_CORNERS = 100
MAX_SESSIONS = 40
SECONDS_KEPT = 3600.0


@dataclass
class View:
    """A counted picture, or frame of a video, as it is kept for the page."""

    result: PictureResult
    """Its line in counts.csv."""
    photo_size: tuple[int, int]
    """(width, height) of the upright picture before it was resized, in pixels."""
    image_size: tuple[int, int]
    """(width, height) of the picture that the blocks lie on, in pixels."""
    block_size: int
    """Side of a block, in pixels of that picture."""
    blocks: Float[np.ndarray, "rows cols"] | None
    """Expected people per block; None for a counter that predicts one number per picture."""
    bins: UInt8[np.ndarray, "rows cols"] | None
    """The most probable bin of each block; None for a counter without bins."""
    photo: bytes
    """The picture as a JPEG file, reduced to the size in which it is shown."""
    heat: bytes
    """The same in gray with its density in color."""
    scale: float
    """People per block at the end of the color scale."""
    seconds: float | None = None
    """Time of a frame in its video; None for a picture."""

    @property
    def count(self) -> float:
        """Expected people."""
        assert self.result.count is not None, "only counted pictures are shown"
        return self.result.count

    def grid(self, regions: Sequence[Region]) -> RegionGrid:
        """Regions on the blocks of this picture, as ``PhotoCount.region_grid`` makes it.

        Raises:
            ConfigError: if a region does not fit.
        """
        return RegionGrid.build(
            regions, photo_size=self.photo_size, image_size=self.image_size, block_size=self.block_size
        )

    def count_regions(self, regions: Sequence[Region]) -> dict[str, float]:
        """The people in each region, by name; empty for a counter without blocks."""
        return {} if self.blocks is None else self.grid(regions).count(self.blocks.astype(np.float64))


@dataclass(eq=False)
class Session:
    """The results in one open window of the page."""

    views: list[View]
    curve: bytes | None = None
    """The counts of a video over time as a PNG file; None without a video."""
    selected: int = 0
    """The picture that is shown."""
    regions: list[Region] = field(default_factory=list)
    """In percent of each picture's width and height."""
    corners: list[tuple[float, float]] = field(default_factory=list)
    """The corners clicked so far of the region that is being drawn, in percent."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    """The secret part of the addresses of its downloads."""
    used: float = field(default_factory=time.monotonic)

    @property
    def view(self) -> View:
        """The picture that is shown."""
        return self.views[self.selected]

    def add_corner(self, x: float, y: float, *, rectangle: bool) -> None:
        """Continue the region that is being drawn; the second corner of a rectangle finishes it.

        Raises:
            ConfigError: if it has too many corners, or the rectangle encloses no area; its first corner is kept.
        """
        if len(self.corners) == MAX_CORNERS:
            raise ConfigError(f"A region has at most {MAX_CORNERS} corners; finish it.")
        if not rectangle:
            self.corners.append((x, y))
        elif self.corners:
            self.finish([self.corners[0], (x, y)])
        else:
            self.corners = [(x, y)]

    def finish(self, corners: Sequence[tuple[float, float]] | None = None) -> None:
        """Add the region whose corners are given, or were clicked.

        Raises:
            ConfigError: if it has too few corners, encloses no area, or its outline crosses itself.
        """
        if corners is None and len(self.corners) < 3:
            raise ConfigError("Click at least three corners in the picture, then finish the polygon.")
        corners = corners or self.corners
        taken = {region.name for region in self.regions}
        name = next(name for name in (f"region {k}" for k in range(1, MAX_REGIONS + 2)) if name not in taken)
        self.add(region_from_corners(name, corners, in_percent=True))
        self.corners = []

    def add(self, region: Region) -> None:
        """Add a region of the picture that is shown.

        Raises:
            ConfigError: if it does not fit the picture, its name is taken, or there are too many.
        """
        if len(self.regions) == MAX_REGIONS:
            raise ConfigError(f"At most {many(MAX_REGIONS, 'region')} can be counted; remove some first.")
        regions = distinct([*self.regions, region])
        (shape,) = self.view.grid([region]).shapes.values()
        shares = shapely.transform(shape, lambda corners: (corners / self.view.photo_size * 100).clip(0, 100))
        self.regions = [*regions[:-1], Region(region.name, shares, in_percent=True)]

    def undo(self) -> None:
        """Remove the last corner, or the last region if none is being drawn."""
        last = self.corners or self.regions
        if last:
            last.pop()


class Sessions:
    """The sessions of all open windows; those unused for an hour, and the oldest of too many, are forgotten."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, window: str, session: Session) -> None:
        """Remember the session of a window, in place of an earlier one."""
        with self._lock:
            self._sessions[window] = session
            self._sessions.move_to_end(window)
            while len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)

    def get(self, window: str) -> Session | None:
        """The session of a window; None if it is unknown or was forgotten."""
        self.forget_unused()
        with self._lock:
            session = self._sessions.get(window)
            if session is not None:
                session.used = time.monotonic()
                self._sessions.move_to_end(window)
            return session

    def of_token(self, token: str) -> Session | None:
        """The session whose downloads have this secret; None if there is none."""
        self.forget_unused()
        with self._lock:
            matching = (s for s in self._sessions.values() if secrets.compare_digest(s.token.encode(), token.encode()))
            return next(matching, None)

    def drop(self, window: str) -> None:
        """Forget the session of a window that was closed."""
        with self._lock:
            self._sessions.pop(window, None)

    def forget_unused(self) -> None:
        """Forget what was not used for an hour."""
        oldest = time.monotonic() - SECONDS_KEPT
        with self._lock:
            for window in [window for window, session in self._sessions.items() if session.used < oldest]:
                del self._sessions[window]
