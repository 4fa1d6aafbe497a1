"""The results of counting a video: counts.csv, which grows with every frame, a curve, a table and video.json."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from headcount.config import ConfigError
from headcount.files import append_csv, read_text, write_csv, write_json
from headcount.report.frames import CountCurve, clock
from headcount.report.predictions import INTERVAL_COLUMNS, interval_cells
from headcount.types import CountInterval
from headcount.wording import many, printable

RECORD, TABLE, CURVE, VIDEO = "video.json", "counts.csv", "counts.png", "annotated.mp4"
_MAX_ERRORS = 10  # that are printed; counts.csv has all
_MAX_WAITING = 1000  # rows before the first frame that could be counted


@dataclass
class Summary:
    """Mean and extremes of a count over time."""

    frames: int = 0
    total: float = 0.0
    most: float = -1.0
    most_at: float = 0.0
    """Seconds."""
    least: float = float("inf")

    def add(self, seconds: float, count: float) -> None:
        """Add a frame."""
        self.frames += 1
        self.total += count
        self.least = min(self.least, count)
        if count > self.most:
            self.most, self.most_at = count, seconds

    def plain(self) -> dict[str, float]:
        """For a record."""
        return {"mean": self.total / self.frames, "min": self.least, "max": self.most, "max_at_seconds": self.most_at}


@dataclass
class VideoResults:
    """The files of a run in its output folder; memory does not grow with the length of the video."""

    output: Path
    source: str
    checkpoint: str
    regions: Sequence[str] = ()
    """Names of the regions that are counted in every frame."""
    draws_video: bool = True
    earlier: set[Path] = field(default_factory=set)
    """Files of an earlier run, which are kept until a frame is counted."""
    failed: int = 0
    """What could not be decoded or counted."""
    began: bool = False
    """Whether a frame has been counted."""

    def __post_init__(self) -> None:
        self.names = ["people", *self.regions]
        self.summaries = [Summary() for _ in self.names]
        self.curve = CountCurve(self.names)
        self._errors: list[str] = []
        self._noted, self._first_note = 0, ""
        self._waiting: list[list[Any]] = []

    @property
    def video(self) -> Path:
        """The annotated video."""
        return self.output / VIDEO

    def files(self) -> list[Path]:
        """All files that the run will write."""
        return [self.output / name for name in (RECORD, TABLE, CURVE, *([VIDEO] if self.draws_video else []))]

    def add(
        self,
        number: int | None,
        seconds: float,
        counts: Sequence[float],
        *,
        interval: CountInterval | None = None,
        note: str,
    ) -> None:
        """Record a frame that was counted.

        Args:
            number: of the frame.
            seconds: its time.
            counts: people in the whole frame and in each region.
            interval: of the people in the whole frame; None if there is none.
            note: what is odd about it.
        """
        self._begin()
        row = [number, f"{seconds:.3f}", *(f"{c:.4f}" for c in counts), *interval_cells(interval), note, ""]
        append_csv(self.output / TABLE, [row])
        self.curve.add(seconds, counts)
        if note:
            self._noted += 1
            self._first_note = self._first_note or note
        for summary, count in zip(self.summaries, counts, strict=True):
            summary.add(seconds, count)

    def fail(self, number: int | None, seconds: float, error: str) -> None:
        """Record what could not be decoded or counted."""
        self.failed += 1
        if len(self._errors) < _MAX_ERRORS:
            self._errors.append(error)
        row = [
            "" if number is None else number,
            f"{seconds:.3f}",
            *[""] * (len(self.names) + len(INTERVAL_COLUMNS)),
            "",
            error,
        ]
        if self.began:
            append_csv(self.output / TABLE, [row])
        elif len(self._waiting) < _MAX_WAITING:
            self._waiting.append(row)

    def finish(self, *, interrupted: bool, dropped: int) -> None:
        """Write the curve and the record.

        Args:
            interrupted: whether it was stopped before its end.
            dropped: frames of a live source that were not used.
        """
        if self.began:
            self.curve.draw(self.output / CURVE, title=self.source)
            self._save(complete=True, interrupted=interrupted, dropped=dropped)
        elif self.earlier:
            print(f"nothing was counted; {self.output} still holds the results of an earlier run", file=sys.stderr)

    def print_table(self) -> None:
        """Print the summary, and what failed on the error stream."""
        if self.began:
            rows = [
                [printable(name), f"{s.total / s.frames:.1f}", f"{s.least:.1f}", f"{s.most:.1f}", clock(s.most_at)]
                for name, s in zip(self.names, self.summaries, strict=True)
            ]
            headings = [many(self.summaries[0].frames, "frame"), "mean", "min", "max", "at"]
            align = ("left", *["right"] * 4)
            print(tabulate(rows, headings, tablefmt="plain", disable_numparse=True, colalign=align))
            if self._noted:
                print(f"note on {self._noted} of {many(self.summaries[0].frames, 'frame')}: {self._first_note}")
            print("\n".join(printable(str(path)) for path in self.files() if path.exists()))
        if self.failed:
            print(f"failed: {self.failed}", file=sys.stderr)
            more = ["..."] if self.failed > len(self._errors) else []
            for error in [*self._errors, *more]:
                print(f"  {printable(error)}", file=sys.stderr)

    def _begin(self) -> None:
        """Replace the results of an earlier run, if that has not been done yet."""
        if self.began:
            return
        self.began = True
        for path in self.earlier - {self.output / RECORD, self.output / TABLE}:
            path.unlink(missing_ok=True)
        self._save(complete=False, interrupted=False, dropped=0)
        of_regions = [f"region {name}" for name in self.regions]
        headings = ["frame", "seconds", "count", *of_regions, *INTERVAL_COLUMNS, "note", "error"]
        write_csv(self.output / TABLE, [headings, *self._waiting])
        self._waiting = []

    def _save(self, *, complete: bool, interrupted: bool, dropped: int) -> None:
        counts = {n: s.plain() for n, s in zip(self.names[1:], self.summaries[1:], strict=True) if s.frames}
        whole = self.summaries[0]
        content = {
            "source": self.source,
            "checkpoint": self.checkpoint,
            "complete": complete,
            "interrupted": interrupted,
            "frames": whole.frames,
            "failed": self.failed,
            "dropped": dropped,
            "people": whole.plain() if whole.frames else None,
            "regions": counts,
        }
        write_json(self.output / RECORD, content)


def earlier_video(output: Path) -> set[Path]:
    """The files of an earlier run in the output folder.

    Raises:
        ConfigError: if there is a video.json that no run wrote.
    """
    record = output / RECORD
    if not os.path.lexists(record):
        return set()
    try:
        content = json.loads(read_text(record))
        ours = {"source", "checkpoint", "frames", "failed"} <= content.keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise ConfigError(f"{record} is not a result of an earlier run; choose another folder with --output")
    return {output / name for name in (RECORD, TABLE, CURVE, VIDEO)}
