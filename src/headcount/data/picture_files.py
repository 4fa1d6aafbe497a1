"""Find the pictures that were typed as files, folders and patterns.

A picture is a file, whatever its paths are called: links to folders are followed, and a file that has several paths,
as links or hard links, is listed once. What is left out of a folder is reported.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headcount.config import ConfigError
from headcount.files import FileIdentity, file_identity
from headcount.wording import first_names, url_hint

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"),
    *(".avif", ".heic", ".heif"),  # Pillow may not read them; they fail one by one rather than being left out
)


@dataclass
class FoundPictures:
    """The pictures that were typed, and what was not taken."""

    files: list[Path] = field(default_factory=list)
    """Each picture once, in the order typed; also what is missing or cannot be read, which fails when it is counted."""
    left_out: list[str] = field(default_factory=list)
    """What was left out and why, one line per reason."""


@dataclass
class _Below:
    """What lies below a folder."""

    pictures: list[Path] = field(default_factory=list)
    """Also the folders that cannot be read."""
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    """Files without the ending of a picture."""
    again: list[str] = field(default_factory=list)
    """Links to folders that are listed under another path, such as links to a folder that they lie in."""


def find_pictures(typed: Sequence[str], *, leave_out: set[FileIdentity]) -> FoundPictures:
    """List the pictures that were typed; a name that does not exist is a pattern.

    A file or folder that is missing, or a folder without pictures, stays in the list and fails later.

    Args:
        typed: files, folders and patterns.
        leave_out: files to skip in folders, such as drawings of an earlier run.
    """
    found = FoundPictures()
    listed: dict[FileIdentity, Path] = {}
    again: list[str] = []
    for text in typed:
        path = Path(text if os.path.lexists(text) else os.path.expanduser(text))
        places = [path] if os.path.lexists(path) else _matches(str(path)) or [path]
        for place in places:
            for picture in _pictures(place, leave_out, found.left_out):
                first = listed.setdefault(file_identity(picture), picture)
                if first is picture:
                    found.files.append(picture)
                elif first != picture:
                    again.append(f"{picture} is {first}")
    if again:
        found.left_out.append(f"left out: {len(again)} other paths of the same pictures: {first_names(again)}")
    return found


def _pictures(place: Path, leave_out: set[FileIdentity], left_out: list[str]) -> list[Path]:
    """The pictures at a path: itself, or all below a folder; what is not taken is added to ``left_out``."""
    if not place.is_dir():
        return [place]
    below = _search(place)
    earlier = {path for path in below.pictures if file_identity(path) in leave_out}
    for names, why in (
        (below.hidden, "hidden"),
        (below.others, "without the ending of a picture"),
        (below.again, "links to folders that are searched already"),
        ([str(path) for path in sorted(earlier)], "results of an earlier run"),
    ):
        if names:
            left_out.append(f"left out of {place}: {len(names)} {why}: {first_names(names)}")
    # Links last: of several paths of one file, the one that is no link is listed.
    pictures = [path for path in below.pictures if path not in earlier]
    return sorted(pictures, key=lambda path: (path.is_symlink(), path)) or [place]


def _search(folder: Path) -> _Below:
    """Everything below a folder."""
    found = _Below()
    for entries in _walk(folder, found.pictures, found.again):
        for entry in entries:
            if entry.name.startswith("."):
                found.hidden.append(entry.path)
            elif not _is_folder(entry):
                ending = os.path.splitext(entry.name)[1].lower()
                found.pictures.append(Path(entry.path)) if ending in ENDINGS else found.others.append(entry.path)
    return found


def _walk(folder: Path, unreadable: list[Path], again: list[str]) -> Iterator[list["os.DirEntry[str]"]]:
    """Yield the entries of a folder and of every folder below it that is not hidden, each folder once.

    Args:
        unreadable: folders that cannot be read are added here.
        again: links to folders that were listed under another path are added here.
    """
    folders, links = [str(folder)], list[str]()
    seen: set[FileIdentity] = set()
    while folders or links:
        # Links last: a folder that is also below ``folder`` itself is listed by its own path.
        here = folders.pop() if folders else links.pop(0)
        if file_identity(here) in seen:
            again.append(here)
            continue
        seen.add(file_identity(here))
        try:
            with os.scandir(here) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError:
            unreadable.append(Path(here))
            continue
        yield entries
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _matches(pattern: str) -> list[Path]:
    """The paths that match a pattern, sorted; ``**`` also follows links, each folder once, which glob does not."""
    before, stars, after = _split_at_stars(pattern)
    if not stars:
        return [Path(match) for match in sorted(glob.glob(pattern))]
    found: list[Path] = []
    bases = glob.glob(before) if glob.has_magic(before) else [before]
    for base in filter(os.path.isdir, bases):
        if not after:
            found.append(Path(base))
            continue
        folders, unreadable = [base], list[Path]()
        for entries in _walk(Path(base), unreadable, []):
            folders += [entry.path for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
        found += unreadable
        for folder in folders:
            found += _matches(os.path.join(glob.escape(folder), after))
    return sorted(set(found))


def _split_at_stars(pattern: str) -> tuple[str, bool, str]:
    """A pattern before and after its first folder ``**``, and whether it has one."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return pattern, False, ""
    at = parts.index("**")
    before = os.sep.join(parts[:at]) or (os.sep if pattern.startswith(os.sep) else ".")
    return before, True, os.sep.join(parts[at + 1 :])


def check_file(file: Path) -> None:
    """Refuse anything but a regular file that is not empty.

    Raises:
        ConfigError: says what it is.
    """
    try:
        status = os.stat(file)
        if file.is_dir():
            os.scandir(file).close()
    except OSError as error:
        raise ConfigError(f"{file}: {_why_no_file(file, error)}") from error
    if file.is_dir():
        raise ConfigError(f"{file}: no file below this folder can be read and ends in {', '.join(ENDINGS)}")
    if not file.is_file():
        raise ConfigError(f"{file}: not a regular file")
    if not status.st_size:
        raise ConfigError(f"{file}: empty, 0 bytes")


def _why_no_file(file: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and not os.path.lexists(file):
        return f"no such file, and no file matches it as a pattern{url_hint(str(file))}"
    if file.is_symlink():
        return f"a link to {os.readlink(file)}, which cannot be read ({error.strerror})"
    return f"cannot be read ({error.strerror})"


def first_frame(file: Path) -> str:
    """The note on an animation that was read; empty for other files and for the views in a camera's JPEG."""
    from headcount.data.images import open_pillow

    try:
        with open_pillow(file) as opened:
            frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    except Exception:
        return "first frame; others are damaged"
    return f"first of {frames} frames" if frames > 1 else ""
