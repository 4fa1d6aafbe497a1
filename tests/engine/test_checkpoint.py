"""Checkpoints rebuild a counter from one file; what is no checkpoint is refused in words."""

import os
import pickle
import resource
import socket
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from headcount.bins import build_bins
from headcount.cli.compose import compose
from headcount.config import FolderDatasetConfig, TrainConfig, to_plain
from headcount.engine import checkpoint
from headcount.errors import CheckpointError, OutputError
from headcount.models.build import build_model, follow_weights
from headcount.types import BlockGrid


def write_checkpoint(folder: Path, *overrides: str) -> Path:
    """The checkpoint of an untrained counter."""
    config: TrainConfig = OmegaConf.to_object(compose(overrides, config_name="train"))
    config.model = follow_weights(config.model)
    bins = build_bins(config.bins, {0: 90, 1: 5, 4: 1})
    torch.manual_seed(0)
    counter = build_model(config.model, BlockGrid(config.bins.block_size), bins)
    content = {
        "config": to_plain(config),
        "bins": None if bins is None else bins.to_dict(),
        "model": counter.state_dict(),
        "epoch": 3,
        "best": None,
        "commit": "abc",
        "selection": {"split": "val", "dataset": "synthetic", "metric": "mae"},
    }
    checkpoint.save(content, folder / "best_mae.pt")
    return folder / "best_mae.pt"


SMALL = "model.width=16 model.embed_dim=16 model.text_width=16 model.text_heads=2 model.text_layers=1 "


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("model=tiny", None),
        ("model=mobilenet_v2", "imagenet"),
        pytest.param("model=csrnet model.head=regression bins=none loss=dm", "imagenet", marks=pytest.mark.slow),
        pytest.param("model=timm model.name=resnet18", "pretrained", marks=pytest.mark.slow),
        (f"model=clip_rn50 model.layers=[1,1,1,1] {SMALL}", "openai"),
        (f"model=clip_rn50 model.layers=[1,1,1,1] model.decoder=none {SMALL}", "/gone/open_clip_model.safetensors"),
        (f"model=clip_vit_b16 model.layers=[1] model.heads=2 {SMALL}", "/gone/ViT-B-16.pt"),
    ],
)
def test_a_checkpoint_rebuilds_its_counter_without_network_or_weight_files(
    tmp_path: Path, model: str, weights: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_checkpoint(tmp_path, *model.split(), *(["model.weights=none"] if weights else []))
    content = checkpoint.read(file)
    if weights:
        content["config"]["model"]["weights"] = weights  # where they came from does not matter any more
    checkpoint.save(content, file)
    monkeypatch.setattr(socket.socket, "connect", lambda *a, **k: pytest.fail("asks the network"))
    loaded = checkpoint.load(file)
    assert not loaded.counter.training
    assert (loaded.bins is None) == ("bins=none" in model)
    for key, value in content["model"].items():
        assert torch.equal(loaded.counter.state_dict()[key], value)


@pytest.mark.parametrize("size", [(1, 1), (7, 250), (64, 64), (33, 97)])
def test_counts_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    counter = checkpoint.load(write_checkpoint(tmp_path)).counter
    blocks = counter.count(torch.zeros(3, *size, dtype=torch.uint8)).blocks
    assert blocks is not None
    assert blocks.shape == tuple(-(-side // 8) for side in size)
    assert bool(blocks.isfinite().all())


def test_padding_does_not_reach_the_counts_of_whole_blocks_far_away(tmp_path: Path) -> None:
    """The blocks of an image that needs padding are those of the image, away from the border."""
    counter = checkpoint.load(write_checkpoint(tmp_path)).counter
    image = torch.randint(0, 256, (3, 160, 168), dtype=torch.uint8)
    whole, cut = counter.count(image).blocks, counter.count(image[:, :, :161]).blocks
    assert cut is not None
    assert whole is not None
    assert cut.shape == whole.shape
    torch.testing.assert_close(cut[:, :10], whole[:, :10])
    assert not torch.allclose(cut[:, 20], whole[:, 20])


@pytest.mark.parametrize("cut", [10, 2000, -100])
def test_a_truncated_file_is_refused(tmp_path: Path, cut: int) -> None:
    file = write_checkpoint(tmp_path)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"best_mae\.pt: (the file is truncated|not a checkpoint)"):
        checkpoint.load(file)


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was_here",)


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "model": _Malicious()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="holds code, which is never run"):
        checkpoint.load(tmp_path / "bad.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(CheckpointError, match=r"old\.pt"):
        checkpoint.load(tmp_path / "old.pt")
    assert not (tmp_path / "was_here").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of headcount"):
        checkpoint.load(tmp_path / "foreign.pt")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT, "format_version": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="format 99; this version of headcount reads formats up to 2"):
        checkpoint.load(tmp_path / "new.pt")


@pytest.mark.parametrize("damage", [{"config": 3}, {"bins": {}}, {"bins": None}, {"model": 1}])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    file = write_checkpoint(tmp_path)
    checkpoint.save({**checkpoint.read(file), **damage}, file)
    with pytest.raises(CheckpointError, match=r"best_mae\.pt"):
        checkpoint.load(file)


def change(file: Path, key: str, value: object) -> None:
    """Change a value of a checkpoint, such as ``epoch`` or ``config.model.width``; None removes it."""
    content = node = checkpoint.read(file)
    *parents, last = key.split(".")
    for name in parents:
        node = node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    torch.save(content, file)


@pytest.mark.parametrize("key", ["format_version", "commit", "config", "bins", "model", "epoch", "best", "selection"])
def test_a_checkpoint_without_a_key_is_refused_when_it_is_read(tmp_path: Path, key: str) -> None:
    file = write_checkpoint(tmp_path)
    change(file, key, None)
    with pytest.raises(CheckpointError, match=rf"best_mae\.pt: the checkpoint is damaged: .*'{key}'"):
        checkpoint.read(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("epoch", value) for value in (-1, True, 2.5, "3", 2**70)],
        *[("selection", value) for value in ("val", {}, {"split": 3, "dataset": "sha", "metric": "mae"})],
        *[("commit", 3), ("best", [1]), ("model", {"weight": 3}), ("bins", [1])],
    ],
)
def test_a_checkpoint_with_an_impossible_value_is_refused(tmp_path: Path, key: str, value: object) -> None:
    file = write_checkpoint(tmp_path)
    change(file, key, value)
    with pytest.raises(CheckpointError, match=rf"best_mae\.pt: the checkpoint is damaged: its '{key}' is"):
        checkpoint.read(file)


def bomb(depth: int) -> list[object]:
    """Nested lists that hold 10^depth values and take a few bytes."""
    inner: list[object] = [1]
    for _ in range(depth):
        inner = [inner] * 10
    return inner


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scale", "${oc.env:SECRET}", "holds an interpolation, which is never resolved from a file"),
        ("model.mean", ["${seed}", 0.1, 0.1], "holds an interpolation"),
        ("dataset.name", "../../elsewhere", "there is no dataset"),
        ("dataset.name", "sha", "of another kind"),
        ("epochs", 0, "epochs=0: must be"),
        ("augment.crop_size", 100, "must be a multiple of 8"),
        ("model.width", 10**7, "best_mae"),
        ("seed", 2**70, "best_mae"),
        ("bins.representative_counts", bomb(9), "more than 10000 values"),
        ("kinds", {"model": ["tiny"]}, "another version of headcount"),
        ("kinds", {"../model": "tiny"}, "another version of headcount"),
        ("model.name", torch.zeros(1), "holds a Tensor, not a plain value"),
        ("bins.block_size", 16, "its bins are not those of its settings"),
    ],
)
def test_settings_in_a_file_are_not_trusted(
    tmp_path: Path, key: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "topsecret")
    file = write_checkpoint(tmp_path)
    change(file, f"config.{key}", value)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(file)
    assert "best_mae.pt" in str(caught.value)
    assert "topsecret" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_no_folder_to_write_to_is_taken_from_a_file(tmp_path: Path) -> None:
    file = write_checkpoint(
        tmp_path, "dataset=shb", f"dataset.cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/out"
    )
    trained = checkpoint.load(file).config
    assert isinstance(trained.dataset, FolderDatasetConfig)
    assert trained.dataset.cache_dir == "~/.cache/headcount"
    assert str(tmp_path) not in str(to_plain(trained))


def test_a_checkpoint_of_clip_does_not_read_the_weights_that_it_names(tmp_path: Path) -> None:
    options = f"model=clip_rn50 model.layers=[1,1,1,1] {SMALL} model.weights=none".split()
    file = write_checkpoint(tmp_path, *options)
    change(file, "config.model.quick_gelu", None)
    change(file, "config.model.weights", str(file))
    with pytest.raises(CheckpointError, match=r"model\.quick_gelu is not recorded"):
        checkpoint.load(file)


def test_a_missing_file_names_those_beside_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"last\.pt: no such file; there is .*best_mae\.pt"):
        checkpoint.load(tmp_path / "last.pt")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path)
    content = checkpoint.read(file)
    del content["model"]["head.to_logits.bias"]
    checkpoint.save(content, file)
    with pytest.raises(CheckpointError, match="the weights do not fit"):
        checkpoint.load(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["weight", "running_var"])
def test_weights_that_are_not_finite_are_refused_on_loading(tmp_path: Path, value: float, which: str) -> None:
    file = write_checkpoint(tmp_path)
    content = checkpoint.read(file)
    key = [name for name in content["model"] if name.endswith(which)][-1]
    content["model"][key].view(-1)[0] = value
    checkpoint.save(content, file)
    size = content["model"][key].numel()
    with pytest.raises(CheckpointError, match=rf"the weights are not finite: 1 of {size} values of {key} "):
        checkpoint.load(file)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_checkpoint(tmp_path)
    before = file.read_bytes()

    def killed(content: object, handle: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"epoch": 4}, file)
    assert file.read_bytes() == before


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path)
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"best_mae\.pt cannot be written: File too large; free space"):
            checkpoint.save({"model": {"weights": torch.zeros(100_000)}}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
