"""Annotation files that are damaged or ambiguous: each is an error that names the file, and skip_bad leaves it out."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from data.folders import write_image, write_info_mat
from headcount.config import CustomConfig
from headcount.data.annotations import READERS, read_annotation, read_mat_points, read_points_table
from headcount.data.custom import custom_splits
from headcount.data.matfile import load_mat
from headcount.data.open import open_split
from headcount.errors import DataError

HEADS = np.array([[1.5, 2.5], [30.0, 40.0], [7.0, 8.0]])


def mat(content: dict[str, object], *, compress: bool = False) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, content, do_compression=compress)
    return file.getvalue()


def wrong_type(kind: int, *, compress: bool = False) -> bytes:
    """Positions whose numbers have a type that does not exist; scipy follows a null pointer for it."""
    data = mat({"annPoints": HEADS})
    tag = data.index(struct.pack("<II", 9, HEADS.nbytes))
    data = data[:tag] + struct.pack("<I", kind) + data[tag + 4 :]
    if not compress:
        return data
    packed = zlib.compress(data[128:])
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


def npy(header: str, content: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, HEADS)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def broken_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("arr_0.npy", b"x" * 100)
    return file.getvalue()[:-20]


DAMAGED: dict[str, tuple[str, bytes, str]] = {
    "mat, type 0": (".mat", wrong_type(0), "type 0 and 48 bytes; the file is damaged"),
    "mat, type 200": (".mat", wrong_type(200), "type 200 and 48 bytes"),
    "mat, type 0, compressed": (".mat", wrong_type(0, compress=True), "type 0 and 48 bytes"),
    "mat, cut off": (".mat", mat({"annPoints": HEADS})[:-30], "cut off"),
    "mat 7.3": (
        ".mat",
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400),
        r"7\.3 \(HDF5\); save it again",
    ),
    "mat, logical": (".mat", mat({"annPoints": HEADS > 5}), "its values are true and false"),
    "mat, both kinds": (".mat", mat({"annPoints": HEADS, "image_info": HEADS}), "either of which could be meant"),
    "mat, one name twice": (
        ".mat",
        mat({"annPoints": HEADS}) + mat({"annPoints": HEADS[:1]})[128:],
        "it holds annPoints twice",
    ),
    "npy, header not closed": (
        ".npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2\n"),
        "not a readable",
    ),
    "npy, huge shape": (
        ".npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000, 2), }\n", HEADS.tobytes()),
        "takes 1600000000000 bytes, but the file has 48",
    ),
    "npy, two arrays": (".npy", saved(HEADS) + saved(HEADS), r"takes 48 bytes, but the file has"),
    "npy, an npz": (".npy", npz(), "not a readable"),
    "npy, a broken zip": (".npy", broken_zip(), "not a readable"),
    "npy, logical": (".npy", saved(HEADS > 5), "its values are true and false"),
    "npy, signaling NaN": (
        ".npy",
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2), }\n", struct.pack("<Qd", 0x7FF0000000000001, 1)),
        "not finite",
    ),
    "json, long integer": (".json", b"[[1, " + b"9" * 5000 + b"]]", "not a readable"),
    "json, integer beyond float": (".json", b"[[1, 1" + b"0" * 400 + b"]]", "not finite"),
    "json, 1e400": (".json", b"[[1, 1e400]]", "not finite"),
    "json, nested": (".json", b"[" * 100_000 + b"]" * 100_000, "not a readable"),
    "json, logical": (".json", b"[[1, true]]", r"expected a list of \[x, y\]"),
    "json, key twice": (".json", b'{"points": [[1, 2]], "points": []}', "'points' comes twice"),
    "json, inner key twice": (".json", b'[{"x": 1, "y": 2, "x": 3}]', "'x' comes twice"),
    "json, two lists": (".json", b'{"points": [[1, 2]], "annotations": []}', "points and annotations, either of which"),
    "json of COCO": (".json", b'{"images": [], "annotations": [], "categories": []}', "is a file of COCO about many"),
    "json of LabelMe": (".json", b'{"shapes": [{"label": 1}], "imagePath": "a.jpg"}', "is a damaged file of LabelMe"),
    "csv, NUL bytes": (".csv", b"1,2\n" + bytes(7) + b"\n3,4\n", "line 2: NUL bytes"),
    "csv, NUL bytes in a line": (".csv", b"1,2\n3,4" + bytes(2) + b"\n", "line 2: NUL bytes"),
    "csv, open quotation mark": (".csv", b'x,y,label\n1,1,"a\n2,2,b\n3,3,c"\n4,4,d\n', "line 2 has a quotation mark"),
    "csv, underscore": (".csv", b"5,6\n1_000,2\n", "line 2: '1_000,2' is not a position"),
    "csv, other digits": (".csv", "5,6\n٣,٤\n".encode(), "line 2: '٣,٤' is not a position"),
    "csv, wide digits": (".txt", "x y\n１ ２\n".encode(), "is not a position"),
    "csv, nan": (".csv", b"1,nan\n", "not finite"),
    "csv, inf": (".csv", b"5,6\n-inf,1\n", "not finite"),
    "csv, 1e400": (".csv", b"1e400,1\n", "not finite"),
    "csv, YOLO points": (".txt", b"0 0.5 0.25\n0 1 0\n", "3 columns, .* as YOLO writes them; convert"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_or_ambiguous_file_is_named_and_can_be_left_out(case: str, tmp_path: Path) -> None:
    ending, content, message = DAMAGED[case]
    for name in ("good", "bad"):
        write_image(tmp_path / "mine" / f"{name}.jpg")
    (tmp_path / "mine" / "good.csv").write_text("1,2\n3,4\n")
    bad = tmp_path / "mine" / f"bad{ending}"
    bad.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_annotation(bad)
    assert str(bad) in str(error.value)
    assert error.value.file == bad
    config = CustomConfig(
        root=str(tmp_path / "mine"), cache_dir=str(tmp_path / "cache"), val_fraction=0, test_fraction=0, skip_bad=True
    )
    dataset = open_split(config, "train")
    assert (dataset.names, dataset.left_out, dataset.count(0)) == (["good"], ["bad"], 2)


@pytest.mark.parametrize("text", ["+1.5,2.", ".5,1e1", "-3,1E+2", "007,4"])
def test_plain_numbers_of_every_form_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert READERS[".csv"][1](tmp_path / "a.csv").tolist() == [[float(field) for field in text.split(",")]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", '{"a.jpg": [[1, 2]], "b.jpg": [], "a.jpg": []}', "'a.jpg' comes twice"),
        ("t.json", '[{"image": "a", "points": [[1, 2]], "points": []}]', "'points' comes twice"),
        (
            "t.json",
            '{"images": [{"file_name": "a.jpg"}], "annotations": []}',
            "is a damaged file of COCO: KeyError: 'id'",
        ),
        ("t.csv", "image,x,y\na,1,2\na,,\n", r"line 3: 'a,,' says that a has no people, but line 2"),
        ("t.csv", "image,x,y\na,1,2\n" + "\0" * 9 + "\nb,1,2\n", "line 3: NUL bytes"),
    ],
)
def test_a_table_that_says_two_things_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_points_table(tmp_path / name)
    assert name in str(error.value)


def test_a_split_file_must_not_name_a_split_twice(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "mine" / f"{name}.jpg")
        (tmp_path / "mine" / f"{name}.csv").write_text("")
    (tmp_path / "s.json").write_text('{"train": ["a"], "val": ["b"], "train": ["c"]}')
    config = CustomConfig(
        root=str(tmp_path / "mine"), cache_dir=str(tmp_path / "cache"), split_file=str(tmp_path / "s.json")
    )
    with pytest.raises(DataError, match=r"s\.json cannot be read: .* 'train' comes twice"):
        open_split(config, "train")


LONG = "a" * 100_000
# Every text of a file that a message quotes.
QUOTED: dict[str, tuple[str, str]] = {
    "points.json": (json.dumps({LONG: [[1, 2]]}), "it holds"),
    "many.json": (json.dumps({f"{k}{LONG[:300]}": 1 for k in range(100)}), "it holds"),
    "twice.json": (f'{{"{LONG}": 1, "{LONG}": 2}}', "comes twice"),
    "line.csv": (f"1,2\n{LONG},3\n", "is not a position"),
    "columns.csv": (f"{LONG},y\n", "the columns are"),
}
QUOTED_IN_TABLES: dict[str, tuple[str, str]] = {
    "points.json": (json.dumps({LONG: 3}), "expected a list"),
    "twice.json": (json.dumps([{"image": LONG, "points": []}] * 2), "twice"),
    "both.csv": (f"image,x,y\n{LONG},1,2\n{LONG},,\n", "has no people, but line 2"),
    "number.csv": (f"image,x,y\na,{LONG},2\n", "is not a position"),
}
QUOTED_IN_SPLIT_FILES: dict[str, tuple[str, str]] = {
    "split.csv": (f"a,{LONG}\n", "is in split"),
    "image.csv": (f"{LONG},nowhere\n", "is in split"),
    "fields.csv": (f"{LONG}\n", "is not name,split"),
    "twice.csv": (f"{LONG},train\n{LONG},val\n", "twice"),
}


@pytest.mark.parametrize("name", QUOTED)
def test_no_message_quotes_a_page_of_an_annotation(name: str, tmp_path: Path) -> None:
    text, message = QUOTED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        READERS[Path(name).suffix][1](tmp_path / name)
    assert len(str(error.value)) < 2000 + len(str(tmp_path))


@pytest.mark.parametrize("name", QUOTED_IN_TABLES)
def test_no_message_quotes_a_page_of_a_table(name: str, tmp_path: Path) -> None:
    text, message = QUOTED_IN_TABLES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_points_table(tmp_path / name)
    assert len(str(error.value)) < 2000 + len(str(tmp_path))


@pytest.mark.parametrize("name", QUOTED_IN_SPLIT_FILES)
def test_no_message_quotes_a_page_of_a_split_file(name: str, tmp_path: Path) -> None:
    text, message = QUOTED_IN_SPLIT_FILES[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        custom_splits(CustomConfig(root=str(tmp_path), split_file=str(tmp_path / name)))
    assert len(str(error.value)) < 2000 + len(str(tmp_path))


@pytest.mark.parametrize("setting", ["points", "split_file"])
def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(setting: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "mine" / f"{name}.jpg")
        (tmp_path / "mine" / f"{name}.csv").write_text("1,2\n")
    table = {name: [[1, 2]] for name in ("a", "b", LONG)}
    content = table if setting == "points" else dict.fromkeys(table, "train")
    (tmp_path / "t.json").write_text(json.dumps(content))
    config = CustomConfig(root=str(tmp_path / "mine"), val_fraction=0, test_fraction=0, min_side=64)
    setattr(config, setting, str(tmp_path / "t.json"))
    with pytest.raises(DataError, match=r"1 of 3 images of train cannot be used(.*\n)*.*aaa.* has no image") as error:
        open_split(config, "train")
    assert len(str(error.value)) < 2000 + len(str(tmp_path))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", ["4", "5"])
def test_sound_mat_files_are_read_in_every_form(form: str, compress: bool, tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    content = {"annPoints": HEADS.astype(np.uint8), "note": "seen at noon", "count": 3.0}
    scipy.io.savemat(file, content, format=form, do_compression=compress and form == "5")
    assert read_mat_points(file).tolist() == HEADS.astype(np.uint8).tolist()
    assert set(load_mat(file)) == set(content)


@pytest.mark.parametrize("write", [lambda file: scipy.io.savemat(file, {"annPoints": HEADS}), write_info_mat])
def test_no_single_byte_of_a_mat_file_ends_python(write: Callable[..., None], tmp_path: Path) -> None:
    """Each damaged file is read or refused; the process lives on."""
    file = tmp_path / "a.mat"
    if write is write_info_mat:
        write(file, HEADS.tolist())
    else:
        write(file)
    sound = file.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for place in range(128, len(sound)):
        for value in (0, int(rng.integers(256))):
            file.write_bytes(sound[:place] + bytes([value]) + sound[place + 1 :])
            try:
                outcomes.add(read_mat_points(file).shape[1])
            except DataError as error:
                outcomes.add(str(file) in str(error))
    assert outcomes == {2, True}


def test_a_long_json_of_positions_is_read_exactly(tmp_path: Path) -> None:
    heads = np.random.default_rng(0).uniform(0, 4000, (20_000, 2)).round(2)
    (tmp_path / "a.json").write_text(json.dumps({"points": heads.tolist()}))
    assert np.array_equal(READERS[".json"][1](tmp_path / "a.json").numpy(), heads.astype(np.float32))
