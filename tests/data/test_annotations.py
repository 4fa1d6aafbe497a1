"""Annotation files as they are found in the wild."""

import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from headcount.data.annotations import read_mall_mat, read_shanghaitech_mat
from headcount.errors import DataError

HEADS = [(1.5, 2.5), (1023.25, 767.5), (1.5, 2.5)]


def nested(points: object, layers: int, field: str = "location") -> np.ndarray:
    info = np.zeros((1, 1), dtype=[(field, object), ("number", object)])
    info[0, 0][field] = points
    info[0, 0]["number"] = np.array([[200]], dtype=np.uint8)
    for _ in range(layers):
        cell = np.empty((1, 1), dtype=object)
        cell[0, 0] = info
        info = cell
    return info


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("field", ["location", "position"])
def test_positions_are_found_however_deep_they_lie(layers: int, field: str, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "GT_IMG_1.mat", {"image_info": nested(np.array(HEADS), layers, field)})
    assert read_shanghaitech_mat(tmp_path / "GT_IMG_1.mat").tolist() == [list(p) for p in HEADS]


@pytest.mark.parametrize("empty", [np.zeros((0, 2)), np.zeros((0, 0)), np.zeros(0)])
def test_an_image_without_people_has_no_heads(empty: np.ndarray, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "GT_IMG_1.mat", {"image_info": nested(empty, 1)})
    assert read_shanghaitech_mat(tmp_path / "GT_IMG_1.mat").shape == (0, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annPoints": np.array(HEADS)}, r"it holds \['annPoints'\], expected image_info"),
        ({"image_info": nested(np.zeros((5, 3)), 1)}, r"no \(n, 2\) head positions"),
        ({"image_info": nested(np.zeros((0, 3)), 1)}, r"no \(n, 2\) head positions"),
        ({"image_info": nested(np.zeros((1, 0)), 1)}, r"no \(n, 2\) head positions"),
        ({"image_info": np.empty((0, 0), dtype=object)}, r"no \(n, 2\) head positions"),
        ({"image_info": nested("text", 1)}, r"no \(n, 2\) head positions"),
        ({"image_info": np.array([[np.array(HEADS), np.array(HEADS)[:1]]], dtype=object)}, "no .* head positions"),
        ({"image_info": np.concatenate([nested(np.array(HEADS), 0)] * 2)}, "no .* head positions"),
        ({"image_info": nested(np.array(HEADS), 0, "size")}, "no .* head positions"),
        ({"image_info": nested(np.array([[1.0, np.nan]]), 1)}, "not finite"),
    ],
)
def test_another_content_is_an_error_that_says_what_was_found(
    content: dict[str, object], message: str, tmp_path: Path
) -> None:
    scipy.io.savemat(tmp_path / "GT_IMG_1.mat", content)
    with pytest.raises(ValueError, match=message) as error:
        read_shanghaitech_mat(tmp_path / "GT_IMG_1.mat")
    assert "GT_IMG_1.mat" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no mat file at all", struct.pack("<5i", 0, 99, 99, 0, 5) + b"abcd"])
def test_a_damaged_annotation_names_itself(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "GT_IMG_1.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"GT_IMG_1\.mat"):
        read_shanghaitech_mat(tmp_path / "GT_IMG_1.mat")


@pytest.mark.parametrize("nested_structs", [False, True])
def test_all_frames_of_mall_are_read(nested_structs: bool, tmp_path: Path) -> None:
    """A cell of structs, as distributed, or an array of structs; one frame is empty."""
    positions = [np.array(HEADS), np.zeros((0, 0)), np.array([[3.0, 4.0]])]
    frames = np.zeros((1, 3), dtype=object if nested_structs else [("loc", object)])
    for k, points in enumerate(positions):
        if nested_structs:
            frames[0, k] = {"loc": points}
        else:
            frames[0, k]["loc"] = points
    scipy.io.savemat(tmp_path / "mall_gt.mat", {"frame": frames, "count": np.array([[3], [0], [1]], dtype=np.uint8)})
    assert [frame.tolist() for frame in read_mall_mat(tmp_path / "mall_gt.mat")] == [
        [list(head) for head in HEADS],
        [],
        [[3, 4]],
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"count": np.ones((2, 1))}, r"holds \['count'\], expected frame"),
        ({"frame": np.ones((1, 2))}, "frame 1 has no"),
    ],
)
def test_a_mall_file_without_frames_says_what_it_holds(
    content: dict[str, object], message: str, tmp_path: Path
) -> None:
    scipy.io.savemat(tmp_path / "mall_gt.mat", content)
    with pytest.raises(DataError, match=message):
        read_mall_mat(tmp_path / "mall_gt.mat")
