"""The results of counting one's own pictures: a table on the terminal, counts.csv and counts.json.

Which files belong to a run, so that the next one replaces those and overwrites nothing else.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from headcount.config import ConfigError
from headcount.files import file_identity, name_text, read_text, write_csv, write_json
from headcount.wording import printable

if TYPE_CHECKING:
    from headcount.types import CountInterval  # imports torch

NOT_YET = "not counted yet"
# Windows and shells limit a path's length; endings and numbers are added to it.
MAX_NAME_BYTES = 180
_RESULT = re.compile(r"(density/[^/\\]+\.npy|pictures/[^/\\]+\.png)")


INTERVAL_COLUMNS = ("low", "high", "level", "calibrated")
"""Columns of an interval in a file of counts."""


def interval_cells(interval: "CountInterval | None") -> list[str]:
    """An interval as cells of :data:`INTERVAL_COLUMNS`; empty for None."""
    if interval is None:
        return [""] * len(INTERVAL_COLUMNS)
    ends = [f"{interval.low:.2f}", f"{interval.high:.2f}", f"{interval.level:g}"]
    return [*ends, "yes" if interval.calibrated else "no"]


@dataclass
class PictureResult:
    """What is known about one picture; None if it is unknown or was not requested."""

    file: str
    count: float | None = None
    """Expected people."""
    interval: "CountInterval | None" = None
    """Where the true count is expected."""
    regions: dict[str, float] | None = None
    """Expected people in each region, by name."""
    width: int | None = None
    """Pixels of the upright picture before it was resized."""
    height: int | None = None
    resized_width: int | None = None
    """Pixels of the picture that the blocks lie on."""
    resized_height: int | None = None
    block_size: int | None = None
    """Side of a block, pixels of the resized picture."""
    density: str | None = None
    """File of the people in each block, below the output folder."""
    picture: str | None = None
    """File of the drawing, below the output folder."""
    note: str = ""
    error: str = ""


@dataclass
class Results:
    """The results of a run, kept up to date in its two files."""

    output: Path
    checkpoint: str
    pictures: list[PictureResult]
    saved: float = 0.0
    """Time of the last save, seconds of a monotonic clock."""
    earlier: set[Path] = field(default_factory=set)
    """Files of an earlier run in the output folder, which are kept until a picture is counted."""
    regions: Sequence[str] = ()
    """Names of the regions that are counted in every picture."""

    @property
    def json_file(self) -> Path:
        """The file with everything that is known of each picture."""
        return self.output / "counts.json"

    @property
    def csv_file(self) -> Path:
        """The file with a line per picture, for spreadsheets."""
        return self.output / "counts.csv"

    def files(self) -> list[Path]:
        """Density maps and drawings that the run will write."""
        named = [name for picture in self.pictures for name in (picture.density, picture.picture)]
        return [self.output / name for name in named if name]

    def total(self, region: str | None = None) -> float:
        """People in all pictures that were counted, or in one region of them."""
        if region is not None:
            return sum((picture.regions or {}).get(region, 0.0) for picture in self.pictures)
        return sum(picture.count for picture in self.pictures if picture.count is not None)

    def begin(self) -> None:
        """Remove the results of an earlier run, if that has not been done yet."""
        if self.earlier:
            for path in self.earlier - {self.json_file, self.csv_file}:  # these list what else there is
                path.unlink(missing_ok=True)
            self.earlier = set()
            self.save()

    def finish(self) -> None:
        """Save for the last time, and say so if the results of an earlier run are still there."""
        self.save()
        if self.earlier:
            print(f"nothing was counted; {self.output} still holds the results of an earlier run", file=sys.stderr)

    def save(self, *, every: float = 0) -> None:
        """Write both files atomically, unless the last time was less than ``every`` seconds ago.

        As long as nothing is counted, results of an earlier run stay instead.
        """
        if self.earlier or (every and time.monotonic() - self.saved < every):
            return
        pictures = [asdict(picture) for picture in self.pictures]
        content = {"checkpoint": self.checkpoint, "total": self.total(), "pictures": pictures}
        write_json(self.json_file, content)
        of_regions = [f"region {name}" for name in self.regions]
        rows = [["file", "count", *of_regions, "width", "height", *INTERVAL_COLUMNS, "note", "error"]]
        for picture in self.pictures:
            count = "" if picture.count is None else f"{picture.count:.4f}"
            size = [str(picture.width or ""), str(picture.height or "")]
            inside = self._regions(picture, digits=4)
            interval = interval_cells(picture.interval)
            rows.append([picture.file, count, *inside, *size, *interval, picture.note, picture.error])
        write_csv(self.csv_file, rows)
        self.saved = time.monotonic()

    def _regions(self, picture: PictureResult, *, digits: int) -> list[str]:
        """The counts of the regions as text; empty where they are unknown."""
        known = picture.regions or {}
        return [f"{known[name]:.{digits}f}" if name in known else "" for name in self.regions]

    def print_table(self) -> None:
        """Print the table, and what failed on the error stream."""
        rows = []
        for picture in self.pictures:
            name = printable(picture.file)
            inside = self._regions(picture, digits=1)
            if picture.count is None:
                rows.append([name, "-", "", *inside, "failed", ""])
            else:
                size = f"{picture.width} x {picture.height}"
                interval = "none" if picture.interval is None else str(picture.interval)
                rows.append([name, f"{picture.count:.1f}", interval, *inside, size, picture.note])
        if len(self.pictures) > 1:
            sums = PictureResult("", regions={name: self.total(name) for name in self.regions})
            rows.append(["total", f"{self.total():.1f}", "", *self._regions(sums, digits=1), "", ""])
        table = tabulate(
            rows,
            ["file", "people", "interval", *self.regions, "pixels", ""],
            tablefmt="plain",
            disable_numparse=True,
            colalign=("left", "right", "left", *["right"] * len(self.regions), "left", "left"),
        )
        print("\n".join(line.rstrip() for line in table.splitlines()))
        if not self.earlier:
            print(printable(str(self.csv_file)))
        failed = [picture for picture in self.pictures if picture.error]
        if failed:
            print(f"failed: {len(failed)} of {len(self.pictures)}", file=sys.stderr)
            for picture in failed:
                words = picture.error if picture.file in picture.error else f"{picture.file}: {picture.error}"
                print(f"  {printable(words)}", file=sys.stderr)


def distinct_names(files: list[Path]) -> list[str]:
    """The name of each file's results: its stem, numbered where several share one (on any file system)."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = file.stem
        while len(os.fsencode(stem)) > MAX_NAME_BYTES:
            stem = stem[:-1]
        name, number = stem, 1
        while name_text(name).lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name_text(name).lower())
        names.append(name)
    return names


def earlier_results(output: Path) -> set[Path]:
    """The files of an earlier run in the output folder, as its counts.json lists them.

    Raises:
        ConfigError: if there is a counts.json that no run wrote.
    """
    record = output / "counts.json"
    if not record.exists():
        return set()
    try:
        pictures = json.loads(read_text(record))["pictures"]
        named = [str(picture[key]) for picture in pictures for key in ("density", "picture") if picture[key]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{record} is not a result of an earlier run; choose another folder with --output") from error
    return {output / name for name in ("counts.json", "counts.csv", *filter(_RESULT.fullmatch, named))}


def check_output(output: Path, earlier: set[Path], files: list[Path], results: Iterable[Path]) -> None:
    """Check that all results can be written without losing anything but an earlier run's.

    Raises:
        ConfigError: names what would be lost.
    """
    old = {file_identity(path) for path in earlier}
    for file in files:
        if file_identity(file) in old:
            raise ConfigError(f"{file} is a result of an earlier run in {output}; choose another folder with --output")
    for path in results:
        if os.path.lexists(path) and path not in earlier:
            raise ConfigError(
                f"{path} exists and is not a result of an earlier run: it would be overwritten; choose another folder "
                "with --output"
            )
