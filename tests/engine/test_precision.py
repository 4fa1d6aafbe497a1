"""``runtime.precision=auto`` follows the hardware, which is faked here; a resumed run keeps its own arithmetic.

Also the memory layout that depends on it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from headcount.bins import CountBins
from headcount.cli.compose import compose
from headcount.config import (
    Accelerator,
    ClipConfig,
    ClipResNetConfig,
    ClipViTConfig,
    ConfigError,
    Precision,
    RuntimeConfig,
    Strategy,
    TrainConfig,
)
from headcount.engine import checkpoint
from headcount.engine.precision import choose_precision
from headcount.engine.runtime import Runtime
from headcount.engine.train import train
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.types import BlockGrid

SAPPHIRE_RAPIDS = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": True}
COOPER_LAKE = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "amx_bf16": False}
ICE_LAKE = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
GRAVITON_3 = {"architecture": "arm64", "neon": True, "bf16": True}


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def fake_cpu(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


def fake_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("capabilities", "precision", "words"),
    [
        (SAPPHIRE_RAPIDS, Precision.bf16, "the processor multiplies bf16 natively (amx_bf16, avx512_bf16)"),
        (COOPER_LAKE, Precision.bf16, "the processor multiplies bf16 natively (avx512_bf16)"),
        (GRAVITON_3, Precision.bf16, "the processor multiplies bf16 natively (bf16)"),
        (ICE_LAKE, Precision.float32, "the processor does not multiply bf16 natively"),
        ({}, Precision.float32, "the processor does not multiply bf16 natively"),
    ],
)
@pytest.mark.parametrize("accelerator", [Accelerator.cpu, Accelerator.auto])
def test_a_processor(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, object],
    precision: Precision,
    words: str,
    accelerator: Accelerator,
) -> None:
    fake_cpu(monkeypatch, capabilities)
    chosen = choose_precision(RuntimeConfig(accelerator=accelerator, precision=Precision.auto))
    assert chosen.precision is precision
    assert chosen.reason == f"runtime.precision=auto: {words}"


@pytest.mark.usefixtures("no_gpu")
def test_a_torch_that_knows_no_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision(RuntimeConfig(precision=Precision.auto)).precision is Precision.float32


@pytest.mark.parametrize(
    ("capabilities", "devices", "precision", "words"),
    [
        ([(9, 0)], 1, Precision.bf16, "multiplies bf16 natively (compute capability 9.0)"),
        ([(8, 0), (8, 6)], 2, Precision.bf16, "multiplies bf16 natively (compute capability 8.0)"),
        ([(7, 5)], 1, Precision.float32, "does not multiply bf16 natively (compute capability 7.5; that takes 8.0)"),
        ([(8, 0), (7, 0)], 2, Precision.float32, "(compute capability 7.0; that takes 8.0)"),  # the slower one counts
        ([(8, 0), (7, 0)], 1, Precision.bf16, "(compute capability 8.0)"),  # only the first is used
    ],
)
def test_gpus(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int]],
    devices: int,
    precision: Precision,
    words: str,
) -> None:
    fake_gpus(monkeypatch, *capabilities)
    fake_cpu(monkeypatch, ICE_LAKE if precision is Precision.bf16 else SAPPHIRE_RAPIDS)  # does not matter
    chosen = choose_precision(RuntimeConfig(precision=Precision.auto, devices=devices))
    assert chosen.precision is precision
    assert chosen.reason.endswith(words)


def test_the_processor_counts_where_a_gpu_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, (9, 0))
    fake_cpu(monkeypatch, ICE_LAKE)
    config = RuntimeConfig(accelerator=Accelerator.cpu, precision=Precision.auto)
    assert choose_precision(config).precision is Precision.float32


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("precision", [Precision.float32, Precision.bf16])
@pytest.mark.parametrize("capabilities", [SAPPHIRE_RAPIDS, ICE_LAKE])
def test_a_chosen_precision_stays(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, capabilities: dict[str, object]
) -> None:
    fake_cpu(monkeypatch, capabilities)
    other = Precision.float32 if precision is Precision.bf16 else Precision.bf16
    chosen = choose_precision(RuntimeConfig(precision=precision), recorded=other)
    assert chosen.precision is precision
    assert chosen.reason == f"runtime.precision={precision.name}"


def test_the_default_is_float32() -> None:
    assert RuntimeConfig().precision is Precision.float32


def config_of(folder: Path, *overrides: str) -> TrainConfig:
    small = ["dataset.width=96", "dataset.height=96", "dataset.max_people=12", "model.width=8", "runtime=cpu"]
    whole = ["scale=smoke", *small, "epochs=1", f"output_dir={folder}", "run_name=run", "runtime.workers=0"]
    config: TrainConfig = OmegaConf.to_object(compose([*whole, *overrides], config_name="train"))
    return config


def recorded(folder: Path) -> tuple[str, str]:
    """The precision in the last checkpoint's settings, and that in run.json."""
    config = checkpoint.read(folder / checkpoint.LAST)["config"]
    return config["runtime"]["precision"], json.loads((folder / "run.json").read_text())["precision"]


@pytest.mark.parametrize(
    ("first", "second", "precision"), [(SAPPHIRE_RAPIDS, ICE_LAKE, "bf16"), (ICE_LAKE, SAPPHIRE_RAPIDS, "float32")]
)
def test_a_resumed_run_keeps_its_own(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: dict[str, object],
    second: dict[str, object],
    precision: str,
) -> None:
    fake_cpu(monkeypatch, first)
    run = train(config_of(tmp_path, "runtime.precision=auto"))
    assert run is not None
    assert recorded(run.folder) == (precision, precision)
    assert f"precision: {precision} (runtime.precision=auto: the processor " in capsys.readouterr().err

    fake_cpu(monkeypatch, second)
    train(config_of(tmp_path, "runtime.precision=auto", "resume=true"))
    assert recorded(run.folder) == (precision, precision)
    assert f"precision: {precision} (runtime.precision=auto: that of the run" in capsys.readouterr().err
    reason = json.loads((run.folder / "run.json").read_text())["precision_reason"]
    assert reason.startswith("runtime.precision=auto: that of the run that is resumed; on this hardware, the processor")


def test_other_hardware_is_refused_where_the_settings_of_the_run_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cpu(monkeypatch, SAPPHIRE_RAPIDS)
    run = train(config_of(tmp_path, "runtime.precision=auto"))
    assert run is not None
    (run.folder / "config.yaml").unlink()
    fake_cpu(monkeypatch, ICE_LAKE)
    with pytest.raises(ConfigError, match=r"runtime\.precision=float32 \(was bf16\)"):
        train(config_of(tmp_path, "runtime.precision=auto", "resume=true"))


def test_the_description_of_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_cpu(monkeypatch, SAPPHIRE_RAPIDS)
    config = config_of(tmp_path, "dry_run=true", "runtime.precision=auto")
    assert train(config) is None
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(
        "precision: bf16 (runtime.precision=auto: the processor multiplies bf16 natively (amx_bf16, avx512_bf16))"
    )


# -------------------------------------------------------------------------------------- memory layout


def clip_counter(kind: type[ClipConfig]) -> Counter:
    texts = {"text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 24}
    sizes = {"width": 16, "layers": [1, 1, 1, 1]} if kind is ClipResNetConfig else {"width": 64, "layers": [2]}
    bins = CountBins.from_histogram({0: 90, 1: 5, 2: 3}, grid=BlockGrid(8), strategy=Strategy.fine, m=2)
    torch.manual_seed(0)
    return build_model(kind(weights="none", **texts, **sizes), BlockGrid(8), bins)


@pytest.mark.parametrize("kind", [ClipResNetConfig, ClipViTConfig])
@pytest.mark.parametrize(
    ("settings", "contiguous"),
    [({}, True), ({"precision": Precision.bf16}, False), ({"channels_last": False, "precision": Precision.bf16}, True)],
)
def test_the_decoder_of_clip_has_the_faster_layout(
    kind: type[ClipConfig], settings: dict[str, Any], contiguous: bool
) -> None:
    counter = clip_counter(kind)
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    expected = counter.eval()(images)
    runtime = Runtime(RuntimeConfig(accelerator=Accelerator.cpu, **settings))
    laid_out = runtime.move_to_device(counter)
    decoder, last = laid_out.decoder, torch.channels_last
    assert decoder is not None
    assert decoder[0].conv2.weight.is_contiguous() is contiguous
    assert decoder[0].conv2.weight.is_contiguous(memory_format=last) is not contiguous
    tower: Any = laid_out.backbone.tower
    assert tower.conv1.weight.is_contiguous(memory_format=last) is settings.get("channels_last", True)
    # The convolutions compute in the layout of their weights.
    layouts = []
    decoder[0].conv2.register_forward_hook(lambda module, given, result: layouts.append(result.is_contiguous()))
    found = laid_out(images)
    assert layouts == [contiguous]
    torch.testing.assert_close(found.count, expected.count, rtol=1e-4, atol=1e-4)
