"""A dataset is found again after it or the checkpoint has moved, and no setting is changed on the way."""

import copy
import re
from pathlib import Path

import pytest

from headcount.config import CustomConfig, DatasetConfig, FolderDatasetConfig, SyntheticConfig
from headcount.data.locate import LocatedDataset, default_data_root, locate
from headcount.errors import DataError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture(autouse=True)
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCOUNT_DATA", "variable")


def root_of(located: LocatedDataset) -> str | None:
    assert isinstance(located.config, FolderDatasetConfig)
    return located.config.root


def test_the_folder_of_the_training_is_used_while_it_exists(here: Path) -> None:
    trained = FolderDatasetConfig(name="sha", root=str(here))
    assert root_of(locate(trained)) == str(here)
    assert root_of(locate(trained, data_root="typed")) is None
    here.rmdir()
    assert root_of(locate(trained)) is None


def test_the_data_root_is_the_typed_one_or_that_of_the_training_or_the_environments(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another dataset the data root of the training does not come before the environment variable."""
    trained, typed = FolderDatasetConfig(name="sha"), FolderDatasetConfig(name="shb")
    assert locate(trained, trained_root=str(here)).data_root == str(here)
    assert locate(trained, trained_root=str(here), data_root="typed").data_root == "typed"
    assert locate(trained, typed=typed, trained_root=str(here)).data_root == "variable"
    assert locate(trained).data_root == default_data_root() == "variable"
    here.rmdir()
    assert locate(trained, trained_root=str(here)).data_root == "variable"
    monkeypatch.delenv("HEADCOUNT_DATA")
    assert locate(trained, trained_root=str(here)).data_root == str(here)
    assert default_data_root() is None


def test_an_own_dataset_is_where_the_typed_data_root_says(here: Path) -> None:
    trained = CustomConfig(root=str(here))
    assert root_of(locate(trained)) == str(here)
    assert root_of(locate(trained, data_root="moved")) == "moved"
    # Among several datasets, data_root is the folder of the published ones.
    among = locate(trained, typed=CustomConfig(), overrides=[], data_root="others")
    assert (root_of(among), among.own) == (str(here), True)


def test_a_typed_dataset_is_read_as_it_is_without_overrides() -> None:
    trained = FolderDatasetConfig(name="sha", max_side=4096)
    located = locate(trained, typed=FolderDatasetConfig(name="sha", max_side=1024))
    assert located.own is False
    assert located.config == FolderDatasetConfig(name="sha", max_side=1024)


def test_the_dataset_of_the_training_keeps_its_settings_except_for_overrides(here: Path) -> None:
    trained = FolderDatasetConfig(name="sha", root=str(here), min_side=480, max_side=4096)
    typed = FolderDatasetConfig(name="sha", min_side=448, max_side=1024)
    overrides = ["dataset.max_side=1024", "eval=sliding_window", "max_images=3"]
    located = locate(trained, typed=typed, overrides=overrides, data_root="typed")
    assert located.own is True
    assert located.data_root == "typed"
    assert located.config == FolderDatasetConfig(name="sha", min_side=480, max_side=1024)
    other = locate(trained, typed=FolderDatasetConfig(name="shb"), overrides=overrides)
    assert (other.own, other.config) == (False, FolderDatasetConfig(name="shb"))


def test_an_own_dataset_in_another_folder_is_another_one() -> None:
    typed = CustomConfig(root="there")
    located = locate(CustomConfig(root="here"), typed=typed, overrides=["dataset.root=there"])
    assert (located.own, located.config) == (False, typed)


@pytest.mark.parametrize(
    "trained", [FolderDatasetConfig(name="sha", root="/gone"), CustomConfig(root="/gone"), SyntheticConfig()]
)
def test_no_argument_is_changed(trained: DatasetConfig) -> None:
    typed = copy.deepcopy(trained)
    for located in (
        locate(trained, data_root="typed"),
        locate(trained, typed=typed),
        locate(trained, typed=typed, overrides=[]),
    ):
        located.config.max_eval_images = 1
        assert trained == typed
        assert trained.max_eval_images is None


def test_a_folder_that_no_longer_exists_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADCOUNT_DATA")
    gone = tmp_path / "gone"
    message = f"{gone}, the folder of the images in training, no longer exists; type data_root=FOLDER"
    with pytest.raises(DataError, match=re.escape(message)) as error:
        locate(FolderDatasetConfig(name="sha", root=str(gone)))
    assert (error.value.kind, error.value.file) == ("missing", gone)
    assert root_of(locate(CustomConfig(root=str(gone)))) == str(gone)  # named when its folder is opened
