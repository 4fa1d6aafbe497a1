"""Find the pictures that were typed as files, folders and patterns."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from headcount.config import ConfigError

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif"),  # Pillow may not read them; they fail one by one rather than being left out
)


def expand(typed: Sequence[str], *, leave_out: set[Path]) -> list[Path]:
    """List the files that were typed, each once, in the order given; a name that does not exist is a pattern.

    A file or folder that is missing, or a folder without pictures, stays in the list and fails later.

    Args:
        typed: files, folders and patterns.
        leave_out: resolved files to skip in folders, such as drawings of an earlier run.
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


def check_file(file: Path) -> None:
    """Refuse anything but a regular file that is not empty.

    Raises:
        ConfigError: says what it is.
    """
    if not os.path.exists(file):
        raise ConfigError(f"{file}: no such file, and no file matches it as a pattern")
    if file.is_dir():
        raise ConfigError(f"{file}: no file below this folder can be read and ends in {', '.join(ENDINGS)}")
    if not file.is_file():
        raise ConfigError(f"{file}: not a regular file")
    if not file.stat().st_size:
        raise ConfigError(f"{file}: empty, 0 bytes")


def first_frame(file: Path) -> str:
    """The note on an animation that was read; empty for other files and for the views in a camera's JPEG."""
    from headcount.data.images import open_pillow

    try:
        with open_pillow(file) as opened:
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except Exception:
        return "first frame; others are damaged"
    return f"first of {frames} frames" if frames > 1 else ""
