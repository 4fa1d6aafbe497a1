"""Callers can distinguish errors of datasets without reading their text, wherever these are raised."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.folders import make_qnrf, write_ann_mat
from headcount.config import CustomConfig, FolderDatasetConfig
from headcount.data.crowd import CrowdDataset
from headcount.data.images import read_image
from headcount.data.kinds import DataErrorKind
from headcount.data.loading import evaluation_samples
from headcount.data.open import list_split, open_split
from headcount.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images; the third stays good."""
    make_qnrf(tmp_path / "UCF-QNRF", {"Train": {f"img_{k:04d}": [(1.0, 1.0)] for k in (1, 2, 3)}})
    return tmp_path / "UCF-QNRF" / "Train"


def heads_and_image(folder: Path, index: int) -> None:
    config = FolderDatasetConfig(name="qnrf", root=str(folder.parent))
    item = list_split(config, "train", data_root=None)[1][index]
    item.heads()
    read_image(item.image)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda image, mat: image.unlink(), DataErrorKind.missing_image),
        (lambda image, mat: mat.unlink(), DataErrorKind.missing_annotation),
        (lambda image, mat: image.write_bytes(b"\xff\xd8"), DataErrorKind.image),
        (lambda image, mat: mat.write_bytes(b"no mat file"), DataErrorKind.annotation),
        (lambda image, mat: write_ann_mat(mat, [(float("inf"), 1.0)]), DataErrorKind.not_finite),
    ],
)
def test_each_fault_of_an_image_has_its_kind_and_file(
    change: Callable[[Path, Path], object], kind: DataErrorKind, folder: Path
) -> None:
    image, mat = folder / "img_0002.jpg", folder / "img_0002_ann.mat"
    change(image, mat)
    heads_and_image(folder, 2)
    with pytest.raises(DataError) as error:
        heads_and_image(folder, 1)
    assert error.value.kind == kind
    assert error.value.file in (image, mat)
    with pytest.raises(DataError, match="1 of 3 images of train") as whole:
        open_split(FolderDatasetConfig(name="qnrf", root=str(folder.parent)), "train")
    assert whole.value.kind == DataErrorKind.unusable_images


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (CustomConfig(root="/nowhere"), "missing"),
        (CustomConfig(root="/nowhere", split_file="nothing.csv"), "missing"),
        (FolderDatasetConfig(name="sha", root="/nowhere"), "missing"),
    ],
)
def test_a_missing_folder_or_file_has_its_kind(config: FolderDatasetConfig, kind: str) -> None:
    with pytest.raises(DataError) as error:
        open_split(config, "train")
    assert error.value.kind == kind


@pytest.mark.slow
def test_an_error_leaves_a_worker_process_as_what_it_is(tmp_path: Path) -> None:
    """A DataLoader re-creates it from its message; any other error type would be shown with a traceback."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    dataset = CrowdDataset(
        ["broken"], lambda index: read_image(broken), [torch.zeros(0, 2)], source_sizes=[(8, 8)], sizes=[(8, 8)]
    )
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read as an image"):
        list(evaluation_samples(dataset, workers=1))
    with pytest.raises(DataError) as error:
        dataset[0]
    copied = pickle.loads(pickle.dumps(error.value))
    assert (str(copied), copied.kind, copied.file) == (str(error.value), "image", broken)
