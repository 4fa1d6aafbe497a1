"""Annotation files of every format and layout: read as scipy, NumPy, json and csv read them, or refused by name."""

import csv
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from data.folders import write_ann_mat, write_image, write_info_mat, write_jhu_text, write_mall_mat, write_nwpu_json
from fuzz.mutate import mutated, mutated_text, pick
from fuzz.verdict import MAX_MESSAGE, opened, refused, same
from headcount.config import CustomConfig
from headcount.data import annotations
from headcount.data.custom import custom_splits
from headcount.data.layouts import nwpu_ids
from headcount.data.open import open_split
from headcount.errors import DataError, HeadcountError

Heads = list[tuple[float, float]]
NAMES = ("a", "IMG_10", "é", "b c")


@dataclass(frozen=True)
class Format:
    """A kind of annotation file."""

    ending: str
    write: Callable[[np.random.Generator, Path, Heads], None]
    read: Callable[[Path], Any]
    """Ours."""
    oracle: Callable[[Path], Any]
    """An independent reading of a file that ours accepts."""


def check(rng: np.random.Generator, folder: Path) -> str:
    """Read a file of a random format, sound or damaged."""
    name = pick(rng, list(FORMATS))
    kind = FORMATS[name]
    sound, other, path = (folder / f"{stem}{kind.ending}" for stem in ("sound", "other", "bad"))
    kind.write(rng, sound, _heads(rng))
    kind.write(rng, other, _heads(rng))
    is_sound = rng.random() < 0.1
    if is_sound:
        path.write_bytes(sound.read_bytes())
    elif kind.ending == ".mat":
        path.write_bytes(_damaged_mat(rng, sound.read_bytes(), other.read_bytes()))
    else:
        change = mutated if kind.ending == ".npy" or rng.random() < 0.3 else mutated_text
        path.write_bytes(change(rng, sound.read_bytes(), other=other.read_bytes()))
    try:
        found = kind.read(path)
    except DataError as error:
        assert not is_sound, f"a sound {name} is refused: {error}"
        outcome = refused(error, path)
    else:
        same(found, kind.oracle(path))
        outcome = "read"
    if rng.random() < 0.1:
        if name in PER_IMAGE:
            _check_dataset(folder, path, outcome)
        elif name.startswith(("table", "split file")):
            _check_splits(folder, path, "points" if name.startswith("table") else "split_file")
    return f"{name} {outcome}"


def _check_dataset(folder: Path, path: Path, outcome: str) -> None:
    """A dataset with the file is opened without it, or with it if it can be read; the audit says the same."""
    mine = folder / "mine"
    for name in ("good", "bad"):
        write_image(mine / f"{name}.png", width=16, height=16)
    (mine / "good.csv").write_text("1,2\n3,4\n")
    (mine / path.name).write_bytes(path.read_bytes())
    config = CustomConfig(root=str(mine), val_fraction=0, test_fraction=0, min_side=16, side_multiple=1, skip_bad=True)
    config.cache_dir = str(folder / "cache")
    opened(config, outcome)


def _check_splits(folder: Path, path: Path, setting: str) -> None:
    """A dataset with a file about all images is opened, or refused with an error that names it or an image."""
    mine = folder / "mine"
    for name in ("IMG_0", "IMG_1", "a", "IMG_10", "\u00e9"):
        write_image(mine / f"{name}.png", width=16, height=16)
        if setting == "split_file":
            (mine / f"{name}.csv").write_text("1,2\n")
    config = CustomConfig(root=str(mine), min_side=16, side_multiple=1, skip_bad=True, cache_dir=str(folder / "cache"))
    setattr(config, setting, str(path))
    if setting == "points":
        config.val_fraction = config.test_fraction = 0
    try:
        dataset = open_split(config, "train")
    except HeadcountError as error:
        assert str(folder) in str(error) or "dataset=custom" in str(error)
        assert len(str(error)) <= MAX_MESSAGE, f"a message of {len(str(error))} characters: {str(error)[:300]}..."
    else:
        assert len(dataset)


def _heads(rng: np.random.Generator) -> Heads:
    number = int(rng.choice([0, 1, 2, 3, 7, 30, 300]))
    points = rng.uniform(0, 2000, (number, 2))
    points = points.round(int(rng.integers(0, 4))) if rng.random() < 0.7 else points
    return [(float(x), float(y)) for x, y in points]


# ---------------------------------------------------------------------------------------------- MATLAB


def _damaged_mat(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Damage a file or, half of the time, what its variable holds after decompression."""
    if rng.random() < 0.5:
        return mutated(rng, data, other=other)
    body = mutated(rng, data[128:], other=other[128:])
    if rng.random() < 0.5:
        return data[:128] + body
    packed = zlib.compress(body)
    return data[:128] + struct.pack("<II", 15, len(packed)) + packed


def _without_date(path: Path) -> None:
    """The same bytes at any time: scipy writes the date into the header."""
    data = path.read_bytes()
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + data[116:])


def _write_info(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    write_info_mat(path, heads)
    _without_date(path)


def _write_ann(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    write_ann_mat(path, heads)
    _without_date(path)


def _write_ann_4(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    scipy.io.savemat(path, {"annPoints": np.array(heads).reshape(-1, 2)}, format="4")


def _write_mall(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    write_mall_mat(path, [heads[:255], heads[:1], []])  # the counts are bytes
    _without_date(path)


def _loaded(path: Path, name: str) -> Any:
    data = io.BytesIO(path.read_bytes())
    return scipy.io.loadmat(data, variable_names=[name], struct_as_record=False, mat_dtype=True)[name]


def _innermost(node: Any, *fields: str) -> Any:
    """What nested structs and cells of one item hold."""
    while True:
        if isinstance(node, np.ndarray) and node.dtype == object:
            assert node.size == 1, "several cells"
            node = node.flat[0]
        elif hasattr(node, "_fieldnames"):
            known = [name for name in fields if name in node._fieldnames]
            node = getattr(node, (known or node._fieldnames)[0])
        else:
            return node


def _info_oracle(path: Path) -> Any:
    return _innermost(_loaded(path, "image_info"), "location", "position", "points")


def _ann_oracle(path: Path) -> Any:
    return _loaded(path, "annPoints")


def _mat_oracle(path: Path) -> Any:
    names = {name for name, _, _ in scipy.io.whosmat(path)}
    return _ann_oracle(path) if "annPoints" in names else _info_oracle(path)


def _mall_oracle(path: Path) -> Any:
    frames = _loaded(path, "frame").flat
    return [_innermost(frame, "loc", "location", "position", "points") for frame in frames]


# ------------------------------------------------------------------------------------------ JSON, NumPy


def _write_json(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    key = pick(rng, annotations.POINTS_KEYS)
    forms: list[Any] = [heads, [{"x": x, "y": y} for x, y in heads], {key: heads}, {key: heads, "human_num": 3.0}]
    path.write_text(json.dumps(pick(rng, forms)))


def _write_nwpu_json(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    write_nwpu_json(path, heads)


def _json_heads(value: Any) -> Any:
    if isinstance(value, dict):
        (value,) = (value[key] for key in annotations.POINTS_KEYS if key in value)
    return [[float(p["x"]), float(p["y"])] if isinstance(p, dict) else [float(p[0]), float(p[1])] for p in value]


def _json_oracle(path: Path) -> Any:
    return _json_heads(json.loads(path.read_bytes()))


def _write_npy(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    dtype = pick(rng, [np.float64, np.float32, np.float16, np.int32, np.uint16, ">f8"])
    array = np.array(heads).reshape(-1, 2).astype(dtype)
    np.save(path, np.asfortranarray(array) if rng.random() < 0.3 else array)


def _npy_oracle(path: Path) -> Any:
    return np.load(path, allow_pickle=False)


# ------------------------------------------------------------------------------------------------ text


def _write_text(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    separator = pick(rng, [",", ";", "\t", " ", ", "])
    header, extra = pick(rng, [("", ""), ("x{0}y", ""), ("id{0}X{0}Y{0}note", "7"), ("Y{0}x", "swap")])
    lines = [header.format(separator)] if header else []
    for x, y in heads:
        fields = {"": [x, y], "7": ["7", x, y, "n"], "swap": [y, x]}[extra]
        lines.append(separator.join(map(str, fields)))
    end = pick(rng, ["\n", "\r\n"])
    path.write_bytes((end.join(lines) + (end if rng.random() < 0.5 else "")).encode())


def _write_jhu(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    write_jhu_text(path, heads)


def _lines(path: Path) -> list[list[str]]:
    """The fields of each line, blank lines left out."""
    lines = [line for line in path.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
    separator = max(",;\t", key=lines[0].count) if lines else " "
    if lines and separator not in lines[0]:
        separator, lines = " ", [line.strip() for line in lines]
    rows = [next(csv.reader([line], delimiter=separator, skipinitialspace=True)) for line in lines]
    return [[field.strip() for field in row] for row in rows if any(field.strip() for field in row)]


def _text_oracle(path: Path) -> Any:
    rows = _lines(path)
    x, y = 0, 1
    try:
        any(float(field) for field in rows[0]) if rows else None
    except ValueError:
        header = [field.lower() for field in rows.pop(0)]
        x, y = header.index("x"), header.index("y")
    return [[float(row[x]), float(row[y])] for row in rows]


def _jhu_oracle(path: Path) -> Any:
    return [[float(row[0]), float(row[1])] for row in _lines(path)]


# ---------------------------------------------------------------------------------- one file, many images


def _write_csv_table(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    rows: list[list[Any]] = [[pick(rng, ["image", "name", "FileName"]), "x", "y"]]
    rows += [[pick(rng, NAMES), x, y] for x, y in heads]
    rows.append(["empty.jpg", "", ""])
    text = io.StringIO()
    csv.writer(text, delimiter=pick(rng, [",", ";"])).writerows(rows)
    path.write_bytes(text.getvalue().encode())


def _csv_table_oracle(path: Path) -> Any:
    header, *rows = _lines(path)
    names = [field.lower() for field in header]
    image = next(names.index(key) for key in annotations.NAME_KEYS if key in names)
    x, y = names.index("x"), names.index("y")
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(row[image], [])
        if row[x]:
            found[row[image]].append([float(row[x]), float(row[y])])
    return found


def _read_table(path: Path) -> Any:
    return {name: found.heads for name, found in annotations.read_points_table(path).items()}


def _write_json_table(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    if rng.random() < 0.5:
        content: Any = {name: heads[k:] for k, name in enumerate(NAMES)}
    else:
        content = [{"image": name, "points": heads[k:]} for k, name in enumerate(NAMES)]
    path.write_text(json.dumps(content, ensure_ascii=rng.random() < 0.5), encoding="utf-8")


def _json_table_oracle(path: Path) -> Any:
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(content, list):
        content = {next(item[key] for key in annotations.NAME_KEYS if key in item): item for item in content}
    return {name: _json_heads(value) for name, value in content.items()}


# ----------------------------------------------------------------------------------------------- lists


def _write_split_csv(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    lines = ["image,split"] if rng.random() < 0.5 else []
    lines += [f"IMG_{k}.jpg,{pick(rng, ['train', 'val', 'TEST'])}" for k in range(len(heads) + 1)]
    path.write_text("\n".join(lines))


def _write_split_json(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    content: Any = {f"IMG_{k}": pick(rng, ["train", "val"]) for k in range(len(heads) + 1)}
    if rng.random() < 0.5:
        content = {"train": list(content), "test": ["x"]}
    path.write_text(json.dumps(content))


def _read_splits(path: Path) -> list[str]:
    return list(custom_splits(CustomConfig(root=str(path.parent), split_file=str(path))))


def _splits_oracle(path: Path) -> list[str]:
    """The splits that a file names anywhere, in order."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".json":
        content = json.loads(text)
        words = [*content, *(value for value in content.values() if isinstance(value, str))]
    else:
        words = [field.strip() for row in csv.reader(text.splitlines()) for field in row[1:]]
    named = {word.lower() for word in words}
    return [split for split in ("train", "val", "test") if split in named]


def _write_nwpu_list(rng: np.random.Generator, path: Path, heads: Heads) -> None:
    path.write_text("".join(f"{k:04d} {int(rng.integers(3))} 2\n" for k in range(1, len(heads) + 2)))


def _read_nwpu_list(path: Path) -> list[list[str]]:
    path.rename(path.with_name("train.txt"))
    try:
        return list(nwpu_ids(path.parent, "train").values())
    finally:
        path.with_name("train.txt").rename(path)


def _nwpu_list_oracle(path: Path) -> list[list[str]]:
    lines = path.read_bytes().decode("utf-8-sig").splitlines()
    rows = [line.replace(",", " ").replace(";", " ").split() for line in lines]
    return [row[1:] for row in rows if row]


FORMATS = {
    "ShanghaiTech .mat": Format(".mat", _write_info, annotations.read_shanghaitech_mat, _info_oracle),
    "UCF-QNRF .mat": Format(".mat", _write_ann, annotations.read_ann_points_mat, _ann_oracle),
    "own .mat": Format(".mat", _write_info, annotations.read_mat_points, _mat_oracle),
    "version 4 .mat": Format(".mat", _write_ann_4, annotations.read_mat_points, _mat_oracle),
    "Mall .mat": Format(".mat", _write_mall, annotations.read_mall_mat, _mall_oracle),
    "own .json": Format(".json", _write_json, annotations.read_json_points, _json_oracle),
    "NWPU .json": Format(".json", _write_nwpu_json, annotations.read_json_points, _json_oracle),
    "own .npy": Format(".npy", _write_npy, annotations.read_npy_points, _npy_oracle),
    "own .csv": Format(".csv", _write_text, annotations.read_text_points, _text_oracle),
    "own .txt": Format(".txt", _write_text, annotations.read_text_points, _text_oracle),
    "JHU .txt": Format(".txt", _write_jhu, annotations.read_jhu_text, _jhu_oracle),
    "table .csv": Format(".csv", _write_csv_table, _read_table, _csv_table_oracle),
    "table .json": Format(".json", _write_json_table, _read_table, _json_table_oracle),
    "split file .csv": Format(".csv", _write_split_csv, _read_splits, _splits_oracle),
    "split file .json": Format(".json", _write_split_json, _read_splits, _splits_oracle),
    "NWPU list .txt": Format(".txt", _write_nwpu_list, _read_nwpu_list, _nwpu_list_oracle),
}
PER_IMAGE = ("own .mat", "version 4 .mat", "own .json", "NWPU .json", "own .npy", "own .csv", "own .txt")
"""Formats that own data may have, one file per image."""
