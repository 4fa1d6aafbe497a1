"""A file changes completely or not at all, and the reports are written no other way."""

import ast
import csv
import json
import math
import os
import re
import resource
import unicodedata
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
    name_text,
    read_csv,
    read_text,
    remove_leftovers,
    short_name,
    temporary_name,
    write_csv,
    write_json,
    write_text,
)
from headcount.report.pictures import save_figure

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "src" / "headcount" / "report"


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
    with pytest.raises(
        ConfigError, match=r"file cannot be created \(it is a file\); choose another with --output \.\.\.$"
    ):
        make_folder(tmp_path / "file", "--output")


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


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("IMG_1", "IMG_1"),
        (unicodedata.normalize("NFD", "\u00e9t\u00e9"), "\u00e9t\u00e9"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\u00e9\udce9", "\u00e9\\udce9"),
        ("e\u0301".encode().decode("ascii", "surrogateescape"), "\u00e9"),  # read in the C locale
        ("\ud800", r"\ud800"),  # half of a pair, from JSON or Windows
        ("a\x1b\n\u202e", r"a\x1b\n\u202e"),
    ],
)
def test_a_name_is_one_text_on_every_system(name: str, text: str) -> None:
    assert name_text(name) == text
    assert name_text(text) == text
    text.encode()


def test_a_long_name_is_shortened_and_stays_its_own(tmp_path: Path) -> None:
    assert short_name("a" * 190, ".npy") == "a" * 190 + ".npy"
    names = [
        short_name(stem, "-0123.npy")
        for stem in ("\u00e9" * 125 + "a", "\u00e9" * 125 + "b", os.fsdecode(b"\xe9" * 250))
    ]
    assert len(set(names)) == 3
    for name in names:
        assert name.endswith("-0123.npy")
        assert len(name.encode()) <= 200
    longest = tmp_path / ("x" * 251 + ".txt")
    write_text(longest, "content")
    assert longest.read_text() == "content"


def test_a_spreadsheet_computes_nothing_and_numbers_stay_numbers(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@SUM(1)", "+a", "-b", "'=c", "''=d", "'e", "\uff1d1", "plain", "-5", "1e5"]
    write_csv(tmp_path / "a.csv", [["image", "error"], *([name, "-1.2500"] for name in names)])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file))[1:]
    assert all(error == "-1.2500" for _, error in cells)
    computed = [name for name, _ in cells if name[0] in "=+-@\uff1d" and name != "-5"]
    assert computed == []
    assert [row["image"] for row in read_csv(tmp_path / "a.csv")] == names
    write_csv(tmp_path / "b.csv", [["image"], ["\t=1\x1b\r\n"]])
    assert read_csv(tmp_path / "b.csv") == [{"image": r"\t=1\x1b\r\n"}]


def test_a_file_that_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_text(tmp_path / "large", max_bytes=10)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        read_text(tmp_path / "pipe")


def _opened_as_text_without_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text in whatever encoding the machine has."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in ("open", "read_text", "write_text", "fdopen", "NamedTemporaryFile"):
        return False
    constants = [v.value for v in (*call.args, *(word.value for word in call.keywords)) if isinstance(v, ast.Constant)]
    if any(re.fullmatch(r"[rwxa+]*b[rwxa+]*", str(constant)) for constant in constants):
        return False
    return not any(word.arg == "encoding" for word in call.keywords)


def test_text_is_utf_8_whatever_the_machine_prefers() -> None:
    # open_image, Image.open and av.open have other names or owners; our own read_text and write_text are UTF-8.
    found = []
    for file in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), *ROOT.glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _opened_as_text_without_encoding(node):
                owner = node.func.value if isinstance(node.func, ast.Attribute) else None
                ours = owner is None and getattr(node.func, "id", "") != "open"
                if not ours and getattr(owner, "id", "") not in ("Image", "RunFolder", "SweepLog", "av", "os"):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []
