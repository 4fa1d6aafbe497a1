"""Datasets in the layout they are distributed in, made of generated images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image


def write_mat(path: Path, points: list[tuple[float, float]]) -> None:
    """An annotation file nested as ShanghaiTech's, its count in a type too small for some sums."""
    info = np.zeros((1, 1), dtype=[("location", object), ("number", object)])
    info[0, 0]["location"] = np.array(points, dtype=np.float64).reshape(-1, 2)
    info[0, 0]["number"] = np.array([[len(points)]], dtype=np.uint8 if len(points) < 256 else np.uint16)
    cell = np.empty((1, 1), dtype=object)
    cell[0, 0] = info
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"image_info": cell})


def write_image(path: Path, *, width: int, height: int, mode: str = "RGB", seed: int = 0) -> None:
    """A picture of soft noise."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(path)


# Names, sizes, modes and heads of a small ShanghaiTech, its oddities included.
IMAGES = {
    "IMG_1": (448, 448, "RGB", [(10.5, 20.25), (447.9, 447.9), (10.5, 20.25)]),  # Fits as it is; a duplicate.
    "IMG_2": (182, 260, "RGB", [(0.0, 0.0), (181.5, 259.5), (90.0, 100.0)]),  # Below the least side.
    "IMG_3": (480, 448, "L", [(100.0, 100.0), (100.5, 100.5), (479.0, 447.0)]),  # Gray; two heads in a pixel.
    "IMG_4": (500, 450, "RGB", []),  # Nobody.
    "IMG_10": (600, 470, "RGB", [(-3.0, 20.0), (600.0, 100.0), (300.0, 200.0), (50.0, 480.5)]),  # Three outside.
}


@pytest.fixture
def make_shanghaitech(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder for ShanghaiTech part A below a data root and returns the root."""

    def make(part: str = "ShanghaiTech/part_A", annotations: str = "ground-truth") -> Path:
        root = tmp_path / "datasets"
        for split, names in (("train", list(IMAGES)), ("test", ["IMG_1", "IMG_10"])):
            base = root / part / f"{split}_data"
            for k, name in enumerate(names):
                width, height, mode, points = IMAGES[name]
                write_image(base / "images" / f"{name}.jpg", width=width, height=height, mode=mode, seed=k)
                write_mat(base / annotations / f"GT_{name}.mat", points)
            write_image(base / "images" / "000.png", width=30, height=20)
            (base / "images" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
            (base / "ground-truth-h5").mkdir()
            (base / "ground-truth-h5" / "IMG_1.h5").write_bytes(b"\x89HDF")
        return root

    return make
