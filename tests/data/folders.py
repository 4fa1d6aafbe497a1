"""Folders in the layout each dataset is distributed in, made of generated images, for tests of any room."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

Heads = Sequence[tuple[float, float]]


def write_image(path: Path, *, width: int = 64, height: int = 64, mode: str = "RGB", seed: int = 0) -> None:
    """A picture of soft noise; the ending in any case says of what format."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    cells.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)


def jpeg_bytes(width: int = 32, height: int = 32) -> bytes:
    """The same small picture, where a folder needs many."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_info_mat(path: Path, heads: Heads) -> None:
    """As ShanghaiTech: nested cells, and a count in a type too small for some sums."""
    info = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
    info[0, 0]["location"] = as_array(heads)
    info[0, 0]["number"] = np.array([[len(heads) % 256]], dtype=np.uint8)
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = info
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"image_info": cell})


def write_ann_mat(path: Path, heads: Heads) -> None:
    """As UCF-QNRF, UCF_CC_50 and NWPU-Crowd; nobody is an array of 0 x 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"annPoints": as_array(heads) if heads else np.zeros((0, 0))})


def write_nwpu_json(path: Path, heads: Heads) -> None:
    """As NWPU-Crowd, its count a float."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"img_id": f"{path.stem}.jpg", "human_num": float(len(heads)), "points": heads, "boxes": []}
    path.write_text(json.dumps(content))


def write_jhu_text(path: Path, heads: Heads) -> None:
    """As JHU-CROWD++: x y w h o b."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{x:g} {y:g} 12 14 1 0\n" for x, y in heads))


def write_mall_mat(path: Path, frames: Sequence[Heads]) -> None:
    """As Mall: a cell for each frame, with a struct of the field loc."""
    cells = np.empty((1, len(frames)), dtype=object)
    for k, heads in enumerate(frames):
        cells[0, k] = {"loc": as_array(heads)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"frame": cells, "count": np.array([[len(heads)] for heads in frames], dtype=np.uint8)})


def as_array(heads: Heads) -> np.ndarray:
    return np.array(heads, dtype=np.float64).reshape(-1, 2)


def make_shanghaitech(root: Path, splits: Mapping[str, Mapping[str, Heads]], annotations: str = "ground-truth") -> None:
    for split, images in splits.items():
        base = root / f"{split}_data"
        for name, heads in images.items():
            write_image(base / "images" / f"{name}.jpg")
            write_info_mat(base / annotations / f"GT_{name}.mat", heads)
        write_image(base / "images" / "000.png", width=30, height=20)
        (base / "images" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def make_qnrf(root: Path, splits: Mapping[str, Mapping[str, Heads]], *, size: int = 64) -> None:
    for split, images in splits.items():
        for k, (name, heads) in enumerate(images.items()):
            write_image(root / split / f"{name}.jpg", width=size, height=size, mode="RGB" if k else "L", seed=k)
            write_ann_mat(root / split / f"{name}_ann.mat", heads)
        (root / split / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        (root / split / "._img_0001.jpg").write_bytes(b"left by an archive made on a Mac")


def make_nwpu(
    root: Path,
    splits: Mapping[str, Mapping[str, Heads]],
    *,
    folders: Sequence[str] = ("images",),
    jsons: bool = False,
    lists: bool = True,
) -> None:
    """The annotations of the test split are left out, as they are not public."""
    for split, images in splits.items():
        for k, (name, heads) in enumerate(images.items()):
            write_image(root / folders[k % len(folders)] / f"{name}.jpg")
            if split != "test":
                write_nwpu_json(root / "jsons" / f"{name}.json", heads) if jsons else write_ann_mat(
                    root / "mats" / f"{name}.mat", heads
                )
        if lists:
            rows = [f"{int(name)} {k % 3} {k % 5}\n" if k % 2 else f"{name} 1 2\n" for k, name in enumerate(images)]
            (root / f"{split}.txt").write_text("".join(rows))


def make_jhu(root: Path, splits: Mapping[str, Mapping[str, Heads]]) -> None:
    for split, images in splits.items():
        for name, heads in images.items():
            write_image(root / split / "images" / f"{name}.jpg")
            write_jhu_text(root / split / "gt" / f"{name}.txt", heads)
            for file in (f"images/._{name}.jpg", f"gt/._{name}.txt"):
                (root / split / file).write_bytes(b"left by an archive made on a Mac")
        (root / split / "image_labels.txt").write_text("".join(f"{name},1,stadium,0,0\n" for name in images))


def make_ucf_cc_50(root: Path) -> None:
    """Image k has k % 4 heads."""
    root.mkdir(parents=True, exist_ok=True)
    for k in range(1, 51):
        (root / f"{k}.jpg").write_bytes(jpeg_bytes())
        write_ann_mat(root / f"{k}_ann.mat", [(float(x), 3.0) for x in range(k % 4)])


def make_mall(root: Path, *, frames: int = 803) -> None:
    """Frame k has k % 3 heads."""
    (root / "frames").mkdir(parents=True, exist_ok=True)
    content = jpeg_bytes(64, 64)
    for k in range(1, frames + 1):
        (root / "frames" / f"seq_{k:06d}.jpg").write_bytes(content)
    (root / "frames" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    write_mall_mat(root / "mall_gt.mat", [[(float(x), 5.0) for x in range(k % 3)] for k in range(1, frames + 1)])
