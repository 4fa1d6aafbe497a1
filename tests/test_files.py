"""A file changes completely or not at all, and the reports are written no other way."""

import csv
import json
import math
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from headcount.config import ConfigError
from headcount.errors import OutputError
from headcount.files import (
    append_bytes,
    atomic_write,
    make_folder,
    remove_leftovers,
    temporary_name,
    write_csv,
    write_json,
    write_text,
)
from headcount.report.pictures import save_figure

REPORT = Path(__file__).resolve().parent.parent / "src" / "headcount" / "report"


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_write(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
        assert part.parent == tmp_path  # a rename to another disk would not be atomic
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write() -> None:
        with atomic_write(file) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("replace"), replace(source, target)))
    write_text(tmp_path / "a.txt", "content")
    assert calls == ["fsync", "replace"]


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.png"
    save_figure(Figure(figsize=(1, 1)), file)
    old = file.read_bytes()
    assert old.startswith(b"\x89PNG")

    def stopped(figure: Figure, path: Path, **options: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Figure, "savefig", stopped)
    with pytest.raises(OSError, match="no space left"):
        save_figure(Figure(figsize=(1, 1)), file)
    assert file.read_bytes() == old
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_the_suffix_determines_the_format_of_a_picture(suffix: str, start: bytes, tmp_path: Path) -> None:
    save_figure(Figure(figsize=(1, 1)), tmp_path / f"a.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, (1.5, -math.inf)], "b": {"c": "x", "d": 2}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, [1.5, None]], "b": {"c": "x", "d": 2}}


def test_file_names_that_are_not_utf_8_can_be_written(tmp_path: Path) -> None:
    name = b"photo \xff.jpg".decode("utf-8", "surrogateescape")
    write_csv(tmp_path / "a.csv", [["image", "count"], [name, 1]])
    write_text(tmp_path / "a.md", name)
    rows = list(csv.reader((tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()))
    assert rows == [["image", "count"], ["photo \\udcff.jpg", "1"]]
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "photo \\udcff.jpg"


def test_a_folder_that_cannot_be_created_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/run cannot be created .*choose another with output_dir=\.\.\."):
        make_folder(tmp_path / "file" / "run", "output_dir")


@pytest.mark.parametrize("write", [write_text, append_bytes], ids=["replaced", "appended"])
def test_a_file_that_a_disk_has_no_room_for_is_named_and_left_as_it_was(
    tmp_path: Path, write: Callable[..., None]
) -> None:
    kept, new = tmp_path / "kept", tmp_path / "new"
    kept.write_text("old")
    content: str | bytes = "x" * 100_000 if write is write_text else b"x" * 100_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        for file in (kept, new):
            with pytest.raises(OutputError, match=f"{file} cannot be written: File too large; free space"):
                write(file, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [kept]


def test_what_killed_processes_left_is_removed_when_a_folder_is_used_again(tmp_path: Path) -> None:
    running = temporary_name(tmp_path / "a.txt").name
    killed = running.replace(f"-{os.getpid()}-", f"-{2**31}-")
    elsewhere = re.sub(r"[0-9a-f]{8}(-\d+-)", r"01234567\1", running)
    early, old = f".a.txt.{'0' * 32}.part", f".b.txt.{'1' * 32}.part"
    own = ["movie.part", ".hidden.part", ".a.txt"]
    for name in (running, killed, elsewhere, early, old, *own):
        (tmp_path / name).write_text("half")
    os.utime(tmp_path / old, (0, 0))
    make_folder(tmp_path, "output_dir")
    assert {file.name for file in tmp_path.iterdir()} == {running, elsewhere, early, *own}
    remove_leftovers(tmp_path, sole_use=True)
    assert {file.name for file in tmp_path.iterdir()} == {running, *own}


def test_a_name_of_any_length_has_a_temporary_name(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)
    write_text(file, "content")
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("file", sorted(REPORT.rglob("*.py")), ids=lambda file: file.relative_to(REPORT).as_posix())
def test_reports_are_written_atomically(file: Path) -> None:
    direct = re.findall(r".*(?:\.write_text\(|\.write_bytes\(|\.savefig\(|open\([^)]*[\"'][wax]).*", file.read_text())
    if file.name == "pictures.py":  # save_figure
        assert [line.strip().partition("(")[0] for line in direct] == ["figure.savefig"]
    else:
        assert direct == []
