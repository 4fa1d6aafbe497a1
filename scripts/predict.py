"""Count the people in pictures.

  python scripts/predict.py photo.jpg --ckpt best_mae.pt
  python scripts/predict.py holiday/ "more/*.png" --ckpt best_mae.pt --output out

A PICTURE is a file, a folder (everything below it that has the ending of a picture and is not hidden) or a pattern
with *, ? or [abc]; ** stands for any folders between. What exists is never taken for a pattern.

Counts go to the terminal, counts.csv and counts.json; people per block to density/<name>.npy; the density over the
photo to pictures/<name>.png. Where files share a name, <name> is numbered: photo, photo_2; counts.json says which is
whose. Block (row, col) covers block_size pixels from col * block_size and row * block_size of the picture as it was
resized; times width / resized_width those of the photo (width and height are those of the upright picture).

The output folder holds one run: results of an earlier run there are removed once a new one starts. A file that is no
result of one is never overwritten.

A picture is resized as the images of the counter's dataset were, and counted as these were evaluated: in one piece
or, by a ViT, in windows. One of more than 8 million pixels, or for which memory does not suffice, is counted in
overlapping windows of about 1024 pixels, and its line says so. --window is for all pictures. The EXIF orientation is
respected; of an animation the first frame is counted, and its line says so.

Exit status: 0; 1 if a picture could not be counted (the others are); 2 if nothing could be done; 130 if interrupted.
"""

import argparse
import csv
import glob
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headcount.config import ConfigError, missing_checkpoint
from headcount.files import make_folder, written_whole

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif"),  # Pillow may not read them; that is said of each rather than leaving them out
)
# Windows and shells limit a path's length; endings and numbers come on top.
_LONGEST_NAME = 180
NOT_YET = "not counted yet"
_SAVE_EVERY = 30  # seconds
_RESULT = re.compile(r"(density/[^/\\]+\.npy|pictures/[^/\\]+\.png)")


@dataclass
class Row:
    """What is told of one picture; None is what is not known or was not asked for."""

    file: str
    count: float | None = None
    """Expected people."""
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


def expand(typed: list[str], *, leave_out: set[Path]) -> list[Path]:
    """The files that were meant, each once, in the order given: what exists as it is named, the rest as a pattern.

    A file or folder that is not there, or a folder without pictures, stays in the list and fails by itself later.

    Args:
        leave_out: resolved files that are not taken from folders: our own drawings.
    """
    files: dict[Path, None] = {}
    for text in typed:
        path = Path(text if os.path.lexists(text) else os.path.expanduser(text))
        if os.path.lexists(path):
            found = pictures_below(path, leave_out) if path.is_dir() else [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
            found = [p for m in matches for p in (pictures_below(m, leave_out) if m.is_dir() else [m])]
        files |= dict.fromkeys(found or [path])
    return list(files)


def pictures_below(folder: Path, leave_out: set[Path]) -> list[Path]:
    """All pictures below a folder, sorted, and the folders that cannot be read."""
    found: list[Path] = []

    def keep(error: OSError) -> None:
        found.append(Path(error.filename))

    for place, folders, names in os.walk(folder, onerror=keep):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [p for p in paths if p.suffix.lower() in ENDINGS and p.resolve() not in leave_out]
    return sorted(found)


def distinct_names(files: list[Path]) -> list[str]:
    """What each file's results are called: its stem, numbered where several share one (on any file system)."""
    names: list[str] = []
    taken: set[str] = set()
    for file in files:
        stem = file.stem
        while len(os.fsencode(stem)) > _LONGEST_NAME:
            stem = stem[:-1]
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.lower())
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
        rows = json.loads(record.read_text())["pictures"]
        named = [str(row[key]) for row in rows for key in ("density", "picture") if row[key]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is no result of an earlier run; choose another folder with --output") from error
    return {output / name for name in ("counts.json", "counts.csv", *filter(_RESULT.fullmatch, named))}


def check_output(output: Path, earlier: set[Path], files: list[Path], results: Iterable[Path]) -> None:
    """Find out whether all results can be written without losing anything but an earlier run's.

    Raises:
        ConfigError: names what would be lost.
    """
    old = {path.resolve() for path in earlier}
    for file in files:
        if file.resolve() in old:
            raise ConfigError(f"{file} is a result of an earlier run in {output}; choose another folder with --output")
    for path in results:
        if os.path.lexists(path) and path not in earlier:
            raise ConfigError(
                f"{path} exists and is no result of an earlier run: it would be overwritten; choose another folder "
                "with --output"
            )


def predict(options: argparse.Namespace) -> int:
    """Count all pictures.

    Returns:
        The exit status.

    Raises:
        ConfigError: if nothing can be done.
    """
    ckpt = Path(os.path.expanduser(options.ckpt))
    if not ckpt.is_file():
        raise ConfigError(missing_checkpoint(ckpt))
    output = Path(os.path.expanduser(options.output))
    earlier = earlier_results(output)
    files = expand(options.pictures, leave_out={path.resolve() for path in earlier})
    rows = [
        Row(
            file=str(file),
            density=f"density/{name}.npy" if options.density else None,
            picture=f"pictures/{name}.png" if options.draw else None,
            error=NOT_YET,
        )
        for file, name in zip(files, distinct_names(files), strict=True)
    ]
    record = Record(output, str(ckpt), rows)
    results = [output / name for row in rows for name in (row.density, row.picture) if name]
    check_output(output, earlier, files, [record.json, record.csv, *results])

    # Heavy imports after the checks.
    from PIL import Image
    from tqdm import tqdm

    from headcount.engine.predict import load

    Image.MAX_IMAGE_PIXELS = max(1, options.max_megapixels * 1_000_000 // 2)  # Pillow refuses twice as many
    counter = load(ckpt, device=options.device)
    choose_windows(counter, options)
    for folder in (output, *{path.parent for path in results}):
        make_folder(folder, "--output ")
    for path in earlier:
        path.unlink(missing_ok=True)
    record.save()

    interrupted = False
    progress = tqdm(files, desc="counting", unit="img", smoothing=0.1, dynamic_ncols=True)
    try:
        for k, file in enumerate(progress):
            rows[k] = count_one(counter, file, replace(rows[k], error=""), output)
            record.save(every=_SAVE_EVERY)
    except KeyboardInterrupt:
        interrupted = True
        for row in rows:
            row.error = "not counted: interrupted" if row.error == NOT_YET else row.error
    progress.close()
    record.save()
    print_counts(rows, record)
    return 130 if interrupted else 1 if any(row.error for row in rows) else 0


def choose_windows(counter: Any, options: argparse.Namespace) -> None:
    """Set the counter's windows where some were asked for.

    Raises:
        ConfigError: if they cannot work.
    """
    from headcount.config import SlidingWindowConfig, counting_mode, window_error

    asked = {key: getattr(options, key) for key in ("window", "stride", "window_batch") if getattr(options, key)}
    if not asked:
        return
    trained = counter.config
    usual = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size)
    if not options.window and not isinstance(usual, SlidingWindowConfig):
        raise ConfigError(f"--{next(iter(asked)).replace('_', '-')} needs --window: this counter counts in one piece")
    if isinstance(usual, SlidingWindowConfig) and options.window:
        asked.setdefault("stride", None)  # the usual one belongs to the usual window
    chosen = replace(usual, **asked) if isinstance(usual, SlidingWindowConfig) else SlidingWindowConfig(**asked)
    counter.mode = counting_mode(trained.eval, trained.model, crop_size=trained.augment.crop_size, chosen=chosen)
    if wrong := window_error(counter.mode, counter.counter.block_size, counter.counter.stride):
        raise ConfigError(wrong.replace("eval.", "--"))


def count_one(counter: Any, file: Path, row: Row, output: Path) -> Row:
    """Count one picture and write what belongs to it; what goes wrong is told in the row."""
    import numpy as np

    from headcount.report.overlay import overlay_picture

    try:
        look_at(file)
        prediction = counter.predict(file)
        row.count = prediction.count
        row.width, row.height = prediction.photo_size
        row.resized_height, row.resized_width = prediction.image.shape[1:]
        row.block_size = prediction.block_size
        window = getattr(prediction.mode, "window", None)
        windows = f"in windows of {window} px" if window else ""
        windows += f" ({prediction.reason})" if prediction.reason else ""
        row.note = "; ".join(filter(None, [first_frame(file), windows]))
        if row.density:
            np.save(output / row.density, prediction.block_counts.numpy())
        if row.picture:
            overlay_picture(
                prediction.image,
                prediction.block_counts,
                output / row.picture,
                block_size=prediction.block_size,
                title=printable(file.name),
            )
    except Exception as error:  # one bad file never stops the rest
        row.error = explain(file, error)
        row.density, row.picture = (
            name if name and (output / name).exists() else None for name in (row.density, row.picture)
        )
    return row


def look_at(file: Path) -> None:
    """Refuse what is no file with something in it.

    Raises:
        ConfigError: says what it is.
    """
    if not os.path.exists(file):
        raise ConfigError(f"{file}: no such file, and no file fits it as a pattern")
    if file.is_dir():
        raise ConfigError(f"{file}: no file below this folder can be read and ends in {', '.join(ENDINGS)}")
    if not file.is_file():
        raise ConfigError(f"{file}: no regular file")
    if not file.stat().st_size:
        raise ConfigError(f"{file}: empty, 0 bytes")


def first_frame(file: Path) -> str:
    """What to say of an animation that was read, empty for other files and for the views in a camera's JPEG."""
    from headcount.data.images import open_pillow

    try:
        with open_pillow(file) as opened:
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except Exception:
        return "first frame; others are damaged"
    return f"first of {frames} frames" if frames > 1 else ""


def explain(file: Path, error: Exception) -> str:
    """What went wrong with a file, in words that name it and what to do."""
    from PIL import Image

    words = str(error) if isinstance(error, ConfigError) and str(error) else f"{type(error).__name__}: {error}"
    words = words if str(file) in words else f"{file}: {words}"
    if isinstance(error.__cause__, Image.DecompressionBombError):
        words += "; if it really is that large, raise --max-megapixels"
    elif isinstance(error.__cause__, Image.UnidentifiedImageError) and file.suffix.lower() in ENDINGS[-3:]:
        words += "; save it as JPEG"
    return words


@dataclass
class Record:
    """The table of a run, kept up to date in its two files."""

    output: Path
    checkpoint: str
    rows: list[Row]
    saved: float = 0.0

    def __post_init__(self) -> None:
        self.json, self.csv = self.output / "counts.json", self.output / "counts.csv"

    def total(self) -> float:
        """People in all pictures that were counted."""
        return sum(row.count for row in self.rows if row.count is not None)

    def save(self, *, every: float = 0) -> None:
        """Write both files, each whole or not at all; not before ``every`` seconds after the last time."""
        if every and time.monotonic() - self.saved < every:
            return
        content = {"checkpoint": self.checkpoint, "total": self.total(), "pictures": [asdict(row) for row in self.rows]}
        with written_whole(self.json) as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with (
            written_whole(self.csv) as part,
            part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["file", "count", "width", "height", "error"])
            for row in self.rows:
                count = "" if row.count is None else f"{row.count:.4f}"
                writer.writerow([row.file, count, row.width or "", row.height or "", row.error])
        self.saved = time.monotonic()


def print_counts(rows: list[Row], record: Record) -> None:
    """The table on the terminal, and what failed on the error stream."""
    names = [printable(row.file) for row in rows]
    wide = max(len(name) for name in [*names, "total"])
    print(f"{'file':<{wide}} {'people':>10}  pixels")
    for name, row in zip(names, rows, strict=True):
        if row.count is None:
            print(f"{name:<{wide}} {'-':>10}  failed")
        else:
            size = f"{row.width} x {row.height}"
            print(f"{name:<{wide}} {row.count:10.1f}  {size:<13}  {row.note}".rstrip())
    if len(rows) > 1:
        print(f"{'total':<{wide}} {record.total():10.1f}")
    print(record.csv)
    failed = [row for row in rows if row.error]
    if failed:
        print(f"failed: {len(failed)} of {len(rows)}", file=sys.stderr)
        for row in failed:
            words = row.error if row.file in row.error else f"{row.file}: {row.error}"
            print(f"  {printable(words)}", file=sys.stderr)


def printable(text: str) -> str:
    r"""The text on one line: line ends, controls and bytes that are no text as \n, \x1b, \udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main() -> None:
    """Read the command line."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="file, folder or pattern")
    parser.add_argument("--ckpt", required=True, help="checkpoint, such as best_mae.pt")
    parser.add_argument("--output", default="predictions", help="folder of the results (default: predictions)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, cuda:1, ... or auto (default)")
    parser.add_argument("--window", type=whole_number, help="count every picture in windows of this side, pixels")
    parser.add_argument("--stride", type=whole_number, help="pixels between windows (default: the window's side)")
    parser.add_argument("--window-batch", type=whole_number, help="windows at once (default: 8); fewer, less memory")
    parser.add_argument(
        "--max-megapixels", type=whole_number, default=179, help="larger pictures are refused (default: 179)"
    )
    parser.add_argument("--no-pictures", dest="draw", action="store_false", help="draw nothing")
    parser.add_argument("--no-density", dest="density", action="store_false", help="write no .npy files")
    options = parser.parse_args()
    try:
        sys.exit(predict(options))
    except (ConfigError, OSError) as error:  # of the files, count_one takes care; this is the folder of the results
        print(f"predict.py: {error}", file=sys.stderr)
        sys.exit(2)


def whole_number(text: str) -> int:
    """A number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least 1")
    return int(text)


def device(text: str) -> str:
    """The name of a device."""
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text}: must be cpu, cuda, cuda:N or auto")
    return text


if __name__ == "__main__":
    main()
