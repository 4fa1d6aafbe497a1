"""convert_checkpoint.py as a user runs it, and eval.py on what it wrote."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from headcount.bins import CountBins
from headcount.cli.convert_checkpoint import convert
from headcount.config import ConfigError, ImageNetConfig, RegressionHeadConfig
from headcount.engine import checkpoint
from headcount.errors import CheckpointError
from headcount.models.build import build_model
from headcount.types import BlockGrid

BINS = CountBins(
    BlockGrid(8), (*((float(k), float(k)) for k in range(4)), (4.0, float("inf"))), (0.0, 1.0, 2.0, 3.0, 4.2)
)
COUNTS = "bins.representative_counts=[0,1,2,3,4.2]"
SCRIPT = "scripts/convert_checkpoint.py"
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    """CSRNet's parameters under the released names."""
    torch.manual_seed(0)
    state = build_model(ImageNetConfig(name="csrnet", weights="none"), BINS.grid, BINS).state_dict()
    names = {k: k.replace("head.to_logits", "classifier") for k in state if k not in ("mean", "std")}
    return {f"backbone.{n}" if n.startswith("decoder") else n: state[k] for k, n in names.items()}


@pytest.mark.slow
def test_a_training_checkpoint_converts_and_evaluates(
    run_command: Run, tmp_path: Path, released: dict[str, torch.Tensor]
) -> None:
    scores = {"mae": [np.float64(71.5), torch.inf], "rmse": [np.float32(120.0)]}
    losses = {"loss": np.float64(3.0)}
    content = {"epoch": 12, "model_state_dict": released, "hist_scores": scores, "loss_info": losses}
    torch.save(content, tmp_path / "ckpt.pth")
    done = run_command(SCRIPT, "ckpt.pth", "converted/csrnet.pt", "model=csrnet", COUNTS)
    assert done.returncode == 0, done.stderr
    assert "next: python eval.py ckpt=converted/csrnet.pt" in done.stdout
    saved = torch.load(tmp_path / "converted" / "csrnet.pt", weights_only=True)
    assert saved["epoch"] == 11  # the released code stores the next one
    assert saved["bins"]["representatives"] == [0, 1, 2, 3, 4.2]
    assert saved["config"]["model"]["mean"] == [0.485, 0.456, 0.406]
    done = run_command("eval.py", "ckpt=converted/csrnet.pt", "max_images=2", "runtime=cpu")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "converted" / "eval").glob("synthetic_test_csrnet_max_images-2_*/metrics.json"))) == 1
    again = run_command(SCRIPT, "ckpt.pth", "converted/csrnet.pt", "model=csrnet", COUNTS)
    assert again.returncode == 2
    assert "exists; name another file" in again.stderr


@pytest.mark.slow
def test_a_bare_state_dict_takes_the_published_counts(
    run_command: Run, tmp_path: Path, released: dict[str, torch.Tensor]
) -> None:
    torch.save(released, tmp_path / "best_mae.pth")
    done = run_command(SCRIPT, "best_mae.pth", "out.pt", "model=csrnet", "dataset=sha")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "out.pt", weights_only=True)["bins"]["representatives"] == [0, 1, 2, 3, 4.29992]
    done = run_command(SCRIPT, "best_mae.pth", "other.pt", "model=csrnet")
    assert done.returncode == 2
    assert "no representative counts are published for dataset=synthetic bins=fine" in done.stderr


def test_what_cannot_be_converted(
    tmp_path: Path, released: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**released, "extra.weight": torch.zeros(1)}, tmp_path / "extra.pth")
    torch.save(released, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:10000])
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], tmp_path / "list.pth")
    sparse = {"backbone.features.0.weight": released["backbone.features.0.weight"].to_sparse()}
    torch.save({**released, **sparse}, tmp_path / "sparse.pth")
    cases = {
        ("extra.pth", "model=csrnet", COUNTS): "extra.weight is unknown",
        ("whole.pth", "model=dmcount", COUNTS): " is unknown",
        ("half.pth", "model=csrnet", COUNTS): "released=half.pth: the file is truncated",
        ("bomb.pth", "model=csrnet", COUNTS): "holds code, which is never run",
        ("bomb.pth", "model=csrnet"): "holds code, which is never run",
        (
            "whole.pth",
            "model=csrnet",
        ): "name the dataset and the bins that the model was trained with, such as dataset=sha",
        ("list.pth", "model=csrnet", COUNTS): "not a checkpoint of the released code",
        ("none.pth", "model=csrnet", COUNTS): "none.pth: no such file",
        ("sparse.pth", "model=csrnet", COUNTS): "backbone.features.0.weight is not a dense tensor",
        ("none.pth", "model=vgg19_ae", COUNTS): "none.pth: no such file",
        ("none.pth", "model=clip_resnet50", COUNTS): "none.pth: no such file",
        ("whole.pth", "model=csrnett", COUNTS): "did you mean csrnet?",
        ("whole.pth", "model=csrnet", "bins.representative_counts=[0,1,2]"): "do not fit the 5 bins",
    }
    for (file, *settings), message in cases.items():
        with pytest.raises((ConfigError, CheckpointError)) as caught:
            convert(Path(file), Path("out.pt"), settings)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match=r"whole\.pth/out\.pt: its folder cannot be created"):
        convert(Path("whole.pth"), Path("whole.pth/out.pt"), ["model=csrnet", COUNTS])
    assert not (tmp_path / "out.pt").exists()
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.slow
def test_the_strides_of_the_released_code_are_part_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For blocks above 16 px, the released MobileNetV2 keeps its stride of 32."""
    torch.manual_seed(0)
    encoder = timm.create_model("mobilenetv2_100", pretrained=False, features_only=True, out_indices=[-1]).eval()
    state = {f"backbone.encoder.{name}": value for name, value in encoder.state_dict().items()}
    state |= {"regressor.0.weight": torch.randn(1, 320, 1, 1), "regressor.0.bias": torch.ones(1)}
    torch.save({"epoch": 12, "model_state_dict": state}, tmp_path / "ckpt.pth")
    settings = ["model=mobilenetv2_100", "model.head=regression", "bins=none", "bins.block_size=32", "loss=dm"]
    convert(tmp_path / "ckpt.pth", tmp_path / "new" / "out.pt", settings)
    loaded = checkpoint.load(tmp_path / "new" / "out.pt")
    assert (loaded.content["epoch"], loaded.counter.stride) == (11, 32)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(loaded.counter.backbone(images), encoder(images)[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_setting_of_computed_counts_does_not_make_the_checkpoint_unreadable(
    tmp_path: Path, released: dict[str, torch.Tensor]
) -> None:
    torch.save(released, tmp_path / "best_mae.pth")
    convert(tmp_path / "best_mae.pth", tmp_path / "out.pt", ["model=csrnet", "dataset=sha", "bins.counted=windows"])
    bins = checkpoint.load(tmp_path / "out.pt").bins
    assert bins is not None
    assert bins.representatives == (0, 1, 2, 3, 4.29992)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("bomb-went-off").touch, ())


@pytest.mark.slow
def test_a_regression_model(run_command: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build_model(ImageNetConfig(name="vgg16", weights="none", head=RegressionHeadConfig()), BlockGrid(16), None)
    names = {k: k.replace("head.to_counts", "regressor.0") for k in state.state_dict() if k not in ("mean", "std")}
    torch.save({n: state.state_dict()[k] for k, n in names.items()}, tmp_path / "r.pth")
    settings = ["model=vgg16", "model.head=regression", "bins=none", "bins.block_size=16", "loss=dm"]
    done = run_command(SCRIPT, "r.pth", "out.pt", *settings)
    assert done.returncode == 0, done.stderr
    done = run_command("eval.py", "ckpt=out.pt", "max_images=2", "runtime=cpu")
    assert done.returncode == 0, done.stderr
