"""TorchScript archives are read without running them; damaged records of an archive are found."""

import dataclasses
import warnings
import zipfile
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from headcount.config import (
    ClipResNetConfig,
    HeadcountError,
    MobileNetV2Config,
    PretrainedConfig,
    RegressionHeadConfig,
    TimmConfig,
)
from headcount.errors import CheckpointError
from headcount.models import archives, torchvision_networks
from headcount.models.build import build_model, follow_weights
from headcount.models.weights import load_backbone, read_state_dict
from headcount.types import BlockGrid


class Acting(nn.Module):
    """A module that overwrites a file when torch.jit.load reads it."""

    file: Final[str]

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.weight = nn.Parameter(torch.zeros(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], self.file)
        self.weight, self.training = state

    def forward(self, images: Tensor) -> Tensor:
        return images


def acting_archive(folder: Path) -> tuple[Path, Path]:
    """An archive that acts, and the file that it would overwrite."""
    victim, archive = folder / "victim.txt", folder / "archive.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(Acting(str(victim))).save(str(archive))
        torch.jit.load(str(archive))
    assert victim.exists(), "the archive must act where it is loaded by torch"
    victim.write_text("precious")
    return archive, victim


@pytest.mark.parametrize(
    "config",
    [
        ClipResNetConfig(width=8, layers=[1, 1, 1, 1], embed_dim=8, text_width=8, text_heads=1, text_layers=1),
        MobileNetV2Config(),
        TimmConfig(name="test_resnet"),
    ],
    ids=lambda config: config.name,
)
def test_an_archive_that_acts_is_not_run(tmp_path: Path, config: PretrainedConfig) -> None:
    archive, victim = acting_archive(tmp_path)
    config = dataclasses.replace(config, weights=str(archive), head=RegressionHeadConfig())
    with pytest.raises(HeadcountError, match=r"archive\.pt"):
        build_model(follow_weights(config), BlockGrid(8), None)  # what dry_run=true does as well
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("what", ["os.system", "torch.load", "builtins.eval", "torch.UntypedStorage"])
def test_an_archive_that_names_another_function_is_refused(tmp_path: Path, what: str) -> None:
    module, _, name = what.rpartition(".")
    victim = tmp_path / "victim.txt"
    argument = f"open({str(victim)!r}, 'w')" if name == "eval" else f"touch {victim}"
    data = f"c{module}\n{name}\n(V{argument}\ntR.".encode()
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/code/__torch__.py", "")
    with pytest.raises(CheckpointError, match=rf"archive\.pt: a damaged archive.* \(it holds {what}\)"):
        read_state_dict(str(tmp_path / "archive.pt"))
    assert not victim.exists()


def test_a_huge_index_or_a_cycle_in_an_archive_ends(tmp_path: Path) -> None:
    huge = b"\x80\x02Nr\xff\xff\xff\xff."
    # A module that contains itself: an attribute that refers to it.
    cycle = b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    for data, outcome in ((huge, "an index exceeds"), (cycle, None)):
        with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/code/__torch__.py", "")
        if outcome is None:
            assert read_state_dict(str(tmp_path / "archive.pt")) == {}
        else:
            with pytest.raises(CheckpointError, match=outcome):
                read_state_dict(str(tmp_path / "archive.pt"))


def test_parameters_and_buffers_of_an_archive_and_no_other_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).half()
    module[0].mask = torch.ones(2)  # an attribute, which a state dict does not contain
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(module).save(str(tmp_path / "archive.pt"))
    found, expected = read_state_dict(str(tmp_path / "archive.pt")), module.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_a_published_file_that_somebody_copied_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the same name in torch's folder, where an error message says to copy it."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    published = torchvision_networks.NETWORKS["vgg16"].published
    (tmp_path / "checkpoints").mkdir()
    copied = tmp_path / "checkpoints" / published.url.rsplit("/", 1)[-1]
    torch.save({"weight": Bomb(tmp_path / "bomb-went-off")}, copied)
    with pytest.raises(HeadcountError, match=r"vgg16-\w+\.pth is damaged, or another file: its SHA-256 begins with"):
        load_backbone(torchvision_networks.vgg16(16), "imagenet", published)
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize("scripted", [False, True], ids=["saved", "scripted"])
def test_a_single_changed_bit_is_found_or_changes_nothing(tmp_path: Path, scripted: bool) -> None:
    torch.manual_seed(0)
    module, file = nn.Linear(30, 40), tmp_path / "weights.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(module).save(str(file)) if scripted else torch.save(module.state_dict(), file)
    whole, refused, flips = file.read_bytes(), 0, 200
    for position in torch.randint(8 * len(whole), (flips,)).tolist():
        changed = bytearray(whole)
        changed[position // 8] ^= 1 << position % 8
        file.write_bytes(changed)
        try:
            found = read_state_dict(str(file))
        except CheckpointError:
            refused += 1
        else:
            assert list(found) == list(module.state_dict())
            assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    assert refused > 0.7 * flips  # the others are in padding and dates


def test_a_record_that_torch_would_not_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(nn.Linear(30, 40).state_dict(), file)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        records = [record.filename for record in archive.infolist() if "/data/" in record.filename]
    assert len(records) == 2
    for name in records:
        changed = bytearray(whole)
        entry = whole.rindex(name.encode()) - 46  # its entry in the directory at the end
        changed[entry + 38] ^= 0x10  # its external attributes: a folder
        file.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"record {name} is marked as a folder"):
            read_state_dict(str(file))


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_MAX_COMPRESSED_BYTES", 2**20)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("unpacks it"))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(2**20 + 1))
    with pytest.raises(CheckpointError, match=r"bomb\.pt"):
        read_state_dict(str(tmp_path / "bomb.pt"))


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.file.touch, ())
