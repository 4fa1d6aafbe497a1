"""Every benchmark runs at a small size, and the two sides it compares agree."""

import importlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from headcount.config import Precision, WholeImageConfig
from headcount.types import Prediction

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

TINY = ["model=tiny", "model.width=8", "--crop-size", "64", "--points", "20", "--repeats", "1"]
SMALL_CLIP = [
    "model=clip_rn50",
    "model.decoder=none",
    "model.width=16",
    "model.layers=[1,1,1,1]",
    "model.embed_dim=16",
    "model.text_width=16",
    "model.text_heads=2",
    "model.text_layers=1",
    "--crop-size=64",
    "--points=5",
    "--repeats=1",
]


@pytest.fixture
def benchmark(
    script: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a benchmark in this process, where nothing is measured that its other contents could change."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    yield script
    torch.set_num_threads(threads)


def tables(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables of a text: for each its rows by column."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def number(text: str) -> float:
    """A cell's number without its unit."""
    return float(text.rstrip("x%"))


def test_loss(run_command: Callable[..., Any]) -> None:
    arguments = ["--points", "30", "--seconds", "0.1", "--threads", "1"]
    done = run_command("benchmarks/loss.py", *arguments, HEADCOUNT_DATA="")
    assert done.returncode == 0, done.stderr  # and so the gradients agree
    ((dense, logarithms),) = tables(done.stdout)
    assert (dense["textbook"], logarithms["textbook"]) == ("dense", "logarithms")
    assert number(dense["textbook MB"]) > number(dense["ours MB"]) > 0
    assert number(logarithms["textbook ms"]) > number(logarithms["ours ms"]) > 0


@pytest.mark.parametrize("typed", ["data_root=nowhere", "--data-root=nowhere"])
def test_loss_names_a_missing_dataset(benchmark: Callable[..., tuple[int, str, str]], typed: str) -> None:
    status, _, told = benchmark("benchmarks/loss.py", "--points", "30", typed)
    assert status == 2
    assert "nowhere" in told
    assert "Traceback" not in told
    assert ("now typed data_root=" in told) is typed.startswith("--")


def test_crops_of_shanghaitech(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    loss = importlib.import_module("loss")
    batches = loss.shanghaitech_batches(str(data_dir), generator=torch.Generator().manual_seed(0))
    assert len(batches) == 4
    for name, batch in batches.items():
        assert [int(word) for word in name.removeprefix("SHA ").split()] == sorted(len(points) for points in batch)
        assert all(bool(((points >= 0) & (points < loss.CROP_SIZE)).all()) for points in batch)


def test_loop(run_command: Callable[..., Any], benchmark: Callable[..., tuple[int, str, str]]) -> None:
    small = ["model.width=8", "augment.crop_size=64", "dataset.train_images=5", "dataset.val_images=1", "batch_size=2"]
    done = run_command("benchmarks/loop.py", *small, "runtime.workers=0", "--steps=4")  # epochs of 2 steps
    assert done.returncode == 0, done.stderr
    ((row,),) = tables(done.stdout)
    assert int(row["steps"]) == 4
    bare, step, rest = (float(row[f"{part} ms"]) for part in ("bare", "step", "rest"))
    assert min(bare, step) > rest > 0
    assert -50 < number(row["added"]) < 200
    status, _, told = benchmark("benchmarks/loop.py", "runtime.precision=bf16")
    assert (status, "runtime.precision=bf16: the bare calls are in float32" in told) == (2, True)


def test_data(run_command: Callable[..., Any]) -> None:
    done = run_command(
        "benchmarks/data.py", "--images", "2", "--rounds", "1", "--epochs", "1", "--crop-size", "64", timeout=600
    )
    assert done.returncode == 0, done.stderr
    pipelines, stages, loader = tables(done.stdout)
    assert [row["image"] for row in pipelines] == ["1024 x 768", "2048 x 1536"]
    for row in pipelines:  # one pass: the ratio of the rates is that of the times
        assert number(row["ours / plain"]) == pytest.approx(float(row["ours"]) / float(row["plain"]), rel=0.05)
    assert {"decode", "resize", "blur"} <= {row["stage"] for row in stages}
    assert [row["workers"] for row in loader] == ["1", "2"]
    assert all(number(row["images per second"]) > 0 for row in loader)


def test_step(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/step.py", *TINY, "--batch", "1", "--precision", "float32")
    assert done.returncode == 0, done.stderr
    rows, rest = tables(done.stdout)
    assert [row["layout"] for row in rows] == [row["layout"] for row in rest] == ["channels last", "contiguous"]
    for row in rows:
        whole, bare, loss = (float(row[f"{part} ms"]) for part in ("step", "bare", "loss"))
        assert float(row["step/(bare+loss)"]) == pytest.approx(whole / (bare + loss), rel=0.05)
        assert float(row["step MB"]) >= float(row["bare MB"]) > 0  # the whole step holds at least what its layers do


def test_step_compares_the_head_of_clip(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/step.py", *SMALL_CLIP, "--precision", "float32")
    assert done.returncode == 0, done.stderr  # and so the two heads agree
    _, _, heads = tables(done.stdout)
    assert len(heads) == 2
    assert all(float(row["textbook ms"]) > 0 and float(row["ours ms"]) > 0 for row in heads)


CLIP_SIZES = ["model.embed_dim=16", "model.text_width=16", "model.text_heads=2", "model.text_layers=1"]
TEXTBOOKS = {
    "csrnet": ["model=csrnet"],
    "dmcount": ["model=dmcount", "bins=none", "loss=dm", "model.head=regression", "optim=adamw_cosine"],
    "clip_rn50": ["model=clip_rn50", "model.width=16", "model.layers=[1,1,1,1]", *CLIP_SIZES],
    "clip_vit_b16": ["model=clip_vit_b16", "model.width=64", "model.layers=[2]", "model.input_size=64", *CLIP_SIZES],
}


@pytest.mark.parametrize("name", TEXTBOOKS)
def test_training(run_command: Callable[..., Any], name: str) -> None:
    arguments = ["--batch", "2", "--crop-size", "64", "--points", "20", "--repeats", "1"]
    done = run_command("benchmarks/training.py", *TEXTBOOKS[name], *arguments)
    assert done.returncode == 0, done.stderr  # and so losses and gradients agree
    (rows,) = tables(done.stdout)
    assert [row["precision"] for row in rows] == ["float32", "bf16"]
    for row in rows:  # one round: the ratio is that of the times
        assert row["model"] == name
        ratio = float(row["textbook ms"]) / float(row["ours ms"])
        assert float(row["textbook/ours"]) == pytest.approx(ratio, abs=0.02)
        assert float(row["ours MB"]) > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model=tiny"], "model=tiny: has no textbook network"),
        (["model=csrnet", "loss=mse"], "loss=mse: has no textbook"),
    ],
)
def test_training_without_a_textbook_version(
    benchmark: Callable[..., tuple[int, str, str]], settings: list[str], words: str
) -> None:
    status, _, told = benchmark("benchmarks/training.py", *settings, "--crop-size", "64", "--batch", "1")
    assert status == 2
    assert words in told
    assert "Traceback" not in told


@pytest.mark.parametrize("wrong", ["encoder.0.weight", "decoder.2.bias", "head.to_logits.weight"])
def test_training_finds_another_network(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    training, workloads, steps = (importlib.import_module(name) for name in ("training", "workload", "step"))
    workload = workloads.Workload.build(["model=csrnet"], batch_size=1, crop_size=64, points=20, repeats=1)
    ours = steps.Step(workload, 1, Precision.float32, channels_last=True)
    plain = training.textbook_step(workload, ours)
    training.check_agreement(ours, plain)
    with torch.no_grad():
        plain.network.get_parameter(wrong)[0] += 0.5  # not all alike, which a softmax over bins does not see
    with pytest.raises(AssertionError):
        training.check_agreement(ours, plain)


@pytest.mark.parametrize("loss", ["mse", "dm"])
def test_step_makes_the_targets_of_the_loss(benchmark: Callable[..., tuple[int, str, str]], loss: str) -> None:
    settings = [*TINY, "--precision", "float32", "bins=none", f"loss={loss}", "model.head=regression"]
    status, out, told = benchmark("benchmarks/step.py", *settings)
    assert status == 0, told
    assert f"loss {loss}" in out


def test_an_invalid_setting_is_reported(benchmark: Callable[..., tuple[int, str, str]]) -> None:
    status, _, told = benchmark("benchmarks/step.py", "model=clip_rn51")
    assert status == 2
    assert "no such choice" in told
    assert "Traceback" not in told


def test_evaluate(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/evaluate.py", *TINY)
    assert done.returncode == 0, done.stderr
    assert "1024 x 768 px, as a whole image" in done.stdout
    (rows,) = tables(done.stdout)
    assert [row["layout"] for row in rows] == ["channels last", "contiguous"]
    assert all(float(row["ours ms"]) > 0 and float(row["ours/bare"]) > 0 for row in rows)


def test_startup(run_process: Callable[..., Any]) -> None:
    done = run_process("benchmarks/startup.py", "scale=smoke", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    (rows,) = tables(done.stdout)
    torch_alone, help_page, config_error, first_step = (float(row["median s"]) for row in rows)
    assert min(help_page, config_error) > 0
    assert first_step > torch_alone  # training needs torch


def test_startup_reports_a_run_that_fails(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/startup.py", "model=clip_rn51")
    assert done.returncode == 2
    assert "no such choice" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_former_command_names_the_new_one(run_command: Callable[..., Any]) -> None:
    done = run_command("scripts/benchmark.py", "step", "model=clip_rn51")
    assert done.returncode == 2
    assert "python benchmarks/step.py" in done.stderr
    assert "no such choice" in done.stderr  # it ran
    assert run_command("scripts/benchmark.py", "speed").returncode != 0


def test_networks(run_command: Callable[..., Any], benchmark: Callable[..., tuple[int, str, str]]) -> None:
    status, _, told = benchmark("benchmarks/networks.py", "tiny", "vgg16", "model.width=32", "--latency")
    assert status == 2  # vgg16 has no width
    assert "model.width=32" in told
    done = run_command("benchmarks/networks.py", "tiny", "mobilenet_v2", "--latency", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    tiny, mobile = tables(done.stdout)[0]
    assert number(mobile["M parameters"]) == pytest.approx(1.8, abs=0.1)  # MobileNetV2 without its last convolution
    for column in ("GMACs, 1024 x 768", "GMACs, 1920 x 1080", "ms, 1024 x 768", "ms, 1920 x 1080"):
        assert number(mobile[column]) > number(tiny[column]) > 0 or column.startswith("ms")


@pytest.mark.parametrize(("name", "published"), [("vgg16", 15.35), ("clip_vit_b16", 17.58)])
def test_operations_are_the_published_ones(name: str, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Billions of multiply-accumulates of the networks that the backbones are taken from, for 224 x 224 px."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    networks = importlib.import_module("networks")
    extra = ["model.prompt_tokens=0"] if name == "clip_vit_b16" else []
    config = importlib.import_module("workload").parse_config([f"model={name}", *extra])
    with FakeTensorMode():
        counter = networks.build(config)
        counter.head, counter.decoder = Nothing(), None
        found = networks.macs(counter, WholeImageConfig(), width=224, height=224)
    assert found / 1e9 == pytest.approx(published, rel=0.02)


class Nothing(torch.nn.Module):
    """A head that does nothing."""

    def forward(self, features: torch.Tensor, *, factor: float) -> Prediction:
        return Prediction(features.sum((1, 2, 3)), blocks=None)


def test_scale(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/scale.py", "--images", "80", "--heads", "20", "--target", "1000000")
    assert done.returncode == 0, done.stderr
    (rows,) = tables(done.stdout)
    listing, *_, order = rows
    assert listing["step"] == "list images and annotations"
    assert order["step"] == "order of an epoch"
    copied = next(row for row in rows if "not forked" in row["step"])
    assert 8 * 20 < int(copied["per image"].split()[0]) < 10_000  # two float32 per head, and what else there is


def test_latency(run_command: Callable[..., Any]) -> None:
    done = run_command("benchmarks/latency.py", "model=tiny", "model.width=8", "--size", "96", "64", "--repeats", "1")
    assert done.returncode == 0, done.stderr  # and so the file counts as the network
    (rows,) = tables(done.stdout)
    assert [row["by"] for row in rows] == [
        *("PyTorch", "torch.compile", "ONNX, float32", "ONNX, int8", "ONNX, int8, calibrated")
    ]
    assert [bool(row["MB"]) for row in rows] == [False, False, True, True, True]
    assert number(rows[2]["MB"]) >= number(rows[3]["MB"])
    assert all(number(row["ms"]) >= 0 and number(row["of PyTorch's time"]) > 0 for row in rows)


def test_errors_of_exported_files(
    run_command: Callable[..., Any], benchmark: Callable[..., tuple[int, str, str]]
) -> None:
    small = ["scale=smoke", "model.width=8", "epochs=1", "runtime=cpu", "run_name=r"]
    status, _, told = benchmark("train.py", *small)
    assert status == 0, told
    ckpt = "ckpt=checkpoints/synthetic/r/seed1/best_mae.pt"
    for typed in (["a.onnx"], ["b.onnx", "--int8"]):
        status, _, told = benchmark("scripts/export.py", ckpt, "--output", *typed)
        assert status == 0, told
    done = run_command("benchmarks/exported.py", "a.onnx", "b.onnx", ckpt, "max_images=3", "runtime=cpu")
    assert done.returncode == 0, done.stderr
    (rows,) = tables(done.stdout)
    assert [row["counted by"] for row in rows] == ["checkpoint", "a.onnx", "b.onnx"]
    assert rows[0]["MAE"] == rows[1]["MAE"]
    assert number(rows[1]["largest"]) < 1e-3 < number(rows[2]["largest"])
    _, evaluated, _ = benchmark("eval.py", ckpt, "max_images=3", "runtime=cpu")
    assert float(re.search(r"MAE +([\d.]+)", evaluated)[1]) == pytest.approx(float(rows[0]["MAE"]), abs=0.006)  # type: ignore[index]
    status, _, told = benchmark("benchmarks/exported.py", "gone.onnx", ckpt)
    assert (status, "gone.onnx: no such file" in told) == (2, True)
