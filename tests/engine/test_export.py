"""Exported files count as the counter they were exported from, at every size, and say what their user must know."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from engine.test_checkpoint import write_checkpoint
from headcount.bins import build_bins
from headcount.cli.compose import checked_config
from headcount.config import ConfigError, EvalConfig, SlidingWindowConfig, WholeImageConfig, counting_mode, to_plain
from headcount.engine import checkpoint
from headcount.engine import export as engine
from headcount.engine.card import usual_license
from headcount.engine.checkpoint import LoadedCheckpoint
from headcount.engine.export import (
    METADATA,
    OPSET,
    _PoolToCells,
    build_graph,
    describe,
    save_onnx,
    save_program,
    to_onnx,
    trace,
)
from headcount.engine.exported import ExportedCounter, check_parity, from_onnx, from_program, load_exported
from headcount.engine.quantize import quantize
from headcount.models.build import build_model
from headcount.published import DEFAULT
from headcount.types import BlockGrid, SeenImages

TOLERANCE = 1e-4
# Of one pixel, of less than a block and a stride, of one row of blocks, and of no multiple of anything.
SIZES = [(64, 64), (1, 1), (5, 130), (97, 130), (120, 17), (33, 31), (75, 99), (96, 96)]
SMALL_CLIP = ["model.embed_dim=16", "model.text_width=16", "model.text_heads=2", "model.text_layers=1"]
REGRESSION = ["bins=none", "model.head=regression", "loss=dm"]
MODELS = {
    "vgg16": ["model=vgg16"],
    "csrnet": ["model=csrnet", *REGRESSION],
    "dmcount": ["model=dmcount"],  # on VGG19
    "cannet": ["model=cannet"],
    "mobilenet_v2": ["model=mobilenet_v2", "bins.block_size=16"],
    "resnet101": ["model=resnet101"],
    "densenet201": ["model=densenet201"],
    # EfficientNet-Lite0 is the counter in the box, which cli/test_export.py exports.
    "timm, mixnet": ["model=timm", "model.name=tf_mixnet_s", "model.max_stride=32", "bins.block_size=16"],
    "timm, resnet": ["model=timm", "model.name=resnet10t", "model.max_stride=32", "bins.block_size=32"],
    "timm, pyramid": ["model=timm", "model.name=resnet10t", "model.neck=fpn", "model.max_stride=8"],
    # Its padding depends on the size of its maps.
    "timm, pyramid of EfficientNet": [
        *("model=timm", "model.name=tf_efficientnet_lite0", "model.neck=fpn", "model.max_stride=8"),
    ],
    "timm, convnext": ["model=timm", "model.name=convnext_atto"],
    "clip_rn50": ["model=clip_rn50", "model.width=16", "model.layers=[1,1,1,1]", *SMALL_CLIP],
    "clip_vit_b16": [
        *("model=clip_vit_b16", "model.width=64", "model.layers=[2]", "model.input_size=96", "model.prompt_tokens=4"),
        *SMALL_CLIP,
    ],
}


def load(*settings: str) -> LoadedCheckpoint:
    """An untrained counter as if from a checkpoint, whose blocks all differ."""
    none = [] if settings[0] == "model=tiny" else ["model.weights=none"]
    config = checked_config([*settings, *none], config_name="train")
    bins = build_bins(config.bins, {0: 90, 1: 6, 2: 2, 3: 1, 4: 1})
    torch.manual_seed(0)
    counter = build_model(config.model, BlockGrid(config.bins.block_size), bins, pretrained="clip" in settings[0])
    # Running statistics of random weights, so that values neither vanish nor explode from layer to layer.
    counter.train()
    with torch.no_grad():
        for _ in range(3):
            counter(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    content = {"epoch": 3, "best": None, "selection": {"split": "val"}, "commit": "abc", "config": to_plain(config)}
    return LoadedCheckpoint(counter.eval(), config, bins, content, SeenImages.from_plain(None, crop_size=96))


def mode_of(loaded: LoadedCheckpoint) -> WholeImageConfig | SlidingWindowConfig:
    return loaded.counting_mode(EvalConfig())


def exported(loaded: LoadedCheckpoint) -> tuple[torch.export.ExportedProgram, onnx.ModelProto]:
    program = trace(build_graph(loaded.counter, mode_of(loaded)), "test")
    return program, to_onnx(program, describe(loaded, mode_of(loaded), "mine"))


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def assert_agree(loaded: LoadedCheckpoint, counter: ExportedCounter, sizes: Sequence[tuple[int, int]]) -> None:
    for height, width in sizes:
        image = noise(height, width)
        ours = loaded.counter.count(image, mode_of(loaded), probabilities=True)
        theirs = counter.count(image, probabilities=True)
        assert theirs.blocks.shape == ours.blocks.shape
        # Relative for a head without bins, whose counts have no limit.
        torch.testing.assert_close(theirs.blocks, ours.blocks, rtol=1e-5, atol=TOLERANCE)
        assert theirs.count == pytest.approx(ours.count, rel=1e-5, abs=TOLERANCE)
        assert (theirs.probabilities is None) == (loaded.bins is None)
        if ours.probabilities is not None:
            torch.testing.assert_close(theirs.probabilities, ours.probabilities, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def tiny() -> LoadedCheckpoint:
    return load("model=tiny", "model.width=8")


@pytest.fixture(scope="module")
def files(tiny: LoadedCheckpoint) -> tuple[torch.export.ExportedProgram, onnx.ModelProto]:
    return exported(tiny)


@pytest.mark.slow
def test_tiny_in_both_formats(tiny: LoadedCheckpoint, files: tuple, tmp_path: Path) -> None:
    program, proto = files
    description = describe(tiny, mode_of(tiny), "mine")
    save_onnx(proto, tmp_path / "a.onnx")
    save_program(program, description, tmp_path / "a.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.pt2"]
    for name in ("a.onnx", "a.pt2"):
        counter = load_exported(tmp_path / name)
        assert_agree(tiny, counter, SIZES)
        assert check_parity(counter, tiny.counter) < TOLERANCE
        assert counter.description == description
    onnx.checker.check_model(proto, full_check=True)


def test_a_batch_gives_what_its_images_give(files: tuple) -> None:
    session = onnxruntime.InferenceSession(files[1].SerializeToString())
    images = np.stack([noise(40, 57, seed).permute(1, 2, 0).numpy() for seed in range(3)])
    together = session.run(None, {"images": images})
    for k in range(3):
        for many, one in zip(together, session.run(None, {"images": images[k : k + 1]}), strict=True):
            np.testing.assert_allclose(many[k], one[0], atol=1e-5)
    np.testing.assert_allclose(together[0], together[1].sum((1, 2), dtype=np.float64))
    np.testing.assert_allclose(together[2].sum(1), 1, atol=1e-5)


def test_what_the_files_say(tiny: LoadedCheckpoint, files: tuple) -> None:
    program, proto = files
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    assert [(value.name, value.type, value.shape) for value in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("count", "tensor(double)", ["batch"]),
        ("blocks", "tensor(float)", ["batch", "rows", "cols"]),
        ("probabilities", "tensor(float)", ["batch", 5, "rows", "cols"]),
    ]
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [OPSET]
    assert proto.producer_name == "headcount"
    texts = session.get_modelmeta().custom_metadata_map
    assert texts["license"] == "mine"
    assert (json.loads(texts["block_size"]), json.loads(texts["resize"]), json.loads(texts["windows"])) == (
        8,
        None,
        None,
    )
    assert json.loads(texts["bins"]) == ["{0}", "{1}", "{2}", "{3}", "[4, inf)"]
    assert json.loads(texts["representative_counts"]) == list(tiny.bins.representatives)
    assert (texts["model"], texts["dataset"], json.loads(texts["epoch"])) == ("tiny", "synthetic", 3)
    assert not any("headcount" in str(node.target) for node in program.graph.nodes)


def test_the_description_of_a_counter_of_photographs() -> None:
    loaded = load("model=tiny", "dataset=sha", "eval=sliding_window", "eval.window=96", *REGRESSION)
    loaded.content["best"] = {"mae": 1.5, "nae": float("nan"), "epoch": 3}
    found = describe(loaded, mode_of(loaded), usual_license(loaded.content))
    rule = loaded.config.dataset
    assert found["resize"] == {
        "min_side": rule.min_side,
        "max_side": rule.max_side,
        "multiple": rule.side_multiple,
        "filter": "bicubic, antialiased",
    }
    assert found["windows"] == {"window": 96, "stride": 96, "border": "inward"}
    assert found["bins"] is None
    assert "Zhang et al., CVPR 2016" in found["license"]
    assert found["best"]["mae"] == 1.5
    assert found["figures"] == []


def test_the_description_of_a_counter_of_two_datasets() -> None:
    loaded = load("model=tiny", "dataset=mixed", "dataset.parts=[synthetic,qnrf,shb]")
    found = describe(loaded, mode_of(loaded), usual_license(loaded.content))
    assert (found["dataset"], found["resize"]["max_side"]) == ("mixed", loaded.config.dataset.datasets["qnrf"].max_side)
    assert {"synthetic", "qnrf", "shb"} <= set(re.findall(r"\w+", found["license"]))


def test_the_description_of_a_published_counter(tiny: LoadedCheckpoint) -> None:
    figure = {"dataset": "synthetic", "split": "test", "mae": 2.0}
    other_epoch = {"mae": 1.5, "epoch": 2}
    content = {**tiny.content, "license": "research only", "best": other_epoch, "figures": [figure]}
    loaded = dataclasses.replace(tiny, content=content)
    found = describe(loaded, mode_of(loaded), usual_license(loaded.content))
    assert (found["epoch"], found["best"], found["figures"]) == (3, None, [figure])
    assert found["license"] == "research only"


@pytest.mark.slow
def test_the_description_of_the_counter_in_the_box() -> None:
    loaded = checkpoint.load(DEFAULT)
    found = describe(loaded, mode_of(loaded), usual_license(loaded.content))
    assert (found["resize"]["min_side"], found["resize"]["max_side"], found["resize"]["multiple"]) == (448, 4096, 32)
    assert found["license"] == loaded.content["license"]
    assert (loaded.content["best"]["epoch"], found["epoch"], found["best"]) == (55, 110, None)
    assert found["figures"][0]["mae"] == pytest.approx(67.55, abs=0.01)


def test_same_padding_of_whole_strides_is_that_of_timm() -> None:
    from timm.layers import Conv2dSame, padding
    from timm.layers.pool2d_same import MaxPool2dSame

    usual = padding.get_same_padding
    for kernel, stride, dilation in itertools.product((1, 2, 3, 5, 7), (1, 2, 4), (1, 2)):
        layers = [Conv2dSame(1, 1, kernel, stride, dilation=dilation), MaxPool2dSame(kernel, stride, dilation=dilation)]
        for layer, size in itertools.product(layers, (1, 2, 7)):
            maps = torch.randn(1, 1, size * stride, stride)
            expected = layer(maps)
            with engine._constant_same_padding():
                assert padding.get_same_padding is not usual
                assert torch.equal(layer(maps), expected)
    assert padding.get_same_padding is usual


@pytest.mark.slow
def test_a_pt2_file_needs_no_headcount(tiny: LoadedCheckpoint, files: tuple, tmp_path: Path) -> None:
    save_program(files[0], describe(tiny, mode_of(tiny), "mine"), tmp_path / "a.pt2")
    image = noise(33, 45)
    np.save(tmp_path / "image.npy", image.permute(1, 2, 0).numpy()[None])
    code = (
        "import sys; sys.modules['headcount'] = None\n"
        "import json, numpy, torch\n"
        f"extra = {{{METADATA!r}: ''}}\n"
        "counter = torch.export.load('a.pt2', extra_files=extra).module()\n"
        f"assert json.loads(extra[{METADATA!r}])['block_size'] == 8\n"
        "print(float(counter(images=torch.from_numpy(numpy.load('image.npy')))['count']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(tiny.counter.count(image).count, abs=TOLERANCE)


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-101 and DenseNet-201 with one or two blocks per stage: all kinds of layers, but fewer to record."""
    resnet = partial(torchvision.models.ResNet, Bottleneck, [2, 1, 1, 1])
    densenet = partial(torchvision.models.DenseNet, 480, (2, 2, 2, 2), num_init_features=960, bn_size=1)
    monkeypatch.setattr(torchvision.models, "resnet101", lambda weights: resnet())
    monkeypatch.setattr(torchvision.models, "densenet201", lambda weights: densenet())


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", MODELS)
def test_every_family_counts_as_its_checkpoint(name: str) -> None:
    loaded = load(*MODELS[name])
    program, proto = exported(loaded)
    description = describe(loaded, mode_of(loaded), "mine")
    assert_agree(loaded, from_onnx(proto.SerializeToString(), name), SIZES)
    assert_agree(loaded, from_program(program, description), SIZES)


@pytest.mark.slow
def test_a_window_is_never_cut() -> None:
    loaded = load("model=tiny", "model.width=8", "eval=sliding_window", "eval.window=64", "eval.stride=40")
    program, proto = exported(loaded)
    counters = [
        from_onnx(proto.SerializeToString(), "windows"),
        from_program(program, describe(loaded, mode_of(loaded), "mine")),
    ]
    too_large = np.zeros((1, 65, 20, 3), dtype=np.uint8)
    for counter in counters:
        assert_agree(loaded, counter, SIZES)
        with pytest.raises(Exception, match=r"must be >= 0|<= 64"):
            counter.run(too_large)


def test_pooling_by_products_is_adaptive_pooling() -> None:
    for cells, rows, cols in [(2, 9, 4), (3, 3, 10), (6, 5, 17), (6, 1, 6)]:
        maps = torch.randn(2, 4, rows, cols)
        expected = nn.functional.adaptive_avg_pool2d(maps, (cells, cells))
        torch.testing.assert_close(_PoolToCells((cells, cells))(maps), expected)


class Undecided(nn.Module):
    """A backbone whose operations depend on its values."""

    channels, stride = 3, 8

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.avg_pool2d(images, 8)
        return maps if maps.sum() > 0 else -maps


def test_a_network_that_cannot_be_exported_is_refused(tiny: LoadedCheckpoint) -> None:
    counter = build_model(dataclasses.replace(tiny.config.model), tiny.bins.grid, tiny.bins)
    counter.backbone = Undecided()
    with pytest.raises(ConfigError, match=r"model=mine: this network cannot be exported, because torch\.export cannot"):
        trace(build_graph(counter, WholeImageConfig()), "mine")


def test_weights_that_are_too_large_for_onnx_are_refused(
    tiny: LoadedCheckpoint, files: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_MAX_ONNX_BYTES", 1e3)
    with pytest.raises(ConfigError, match=r"model=tiny: its weights have 0\.0 GB, .*; name a file\.pt2"):
        to_onnx(files[0], describe(tiny, mode_of(tiny), "mine"))


def test_a_file_that_counts_otherwise_is_refused(tiny: LoadedCheckpoint, files: tuple) -> None:
    counter = from_onnx(files[1].SerializeToString(), "a")
    run = counter.run
    counter.run = lambda images: [np.full(1, 2.0), run(images)[1] + 0.1]
    with pytest.raises(ConfigError, match=r"blocks differ by up to 0\.1"):
        check_parity(counter, tiny.counter)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.pt2"):
        with pytest.raises(ConfigError, match="no such file"):
            load_exported(tmp_path / name)
        (tmp_path / name).write_bytes(b"broken")
        with pytest.raises(ConfigError, match="not a file that headcount exported"):
            load_exported(tmp_path / name)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10),
        tmp_path / "a.onnx",
    )
    with pytest.raises(ConfigError, match="its metadata are not those of headcount"):
        load_exported(tmp_path / "a.onnx")


@pytest.mark.slow
def test_int8_is_smaller_and_counts_about_the_same(tiny: LoadedCheckpoint, files: tuple) -> None:
    _, proto = files
    pictures = [noise(90, 70, seed).permute(1, 2, 0).numpy() for seed in range(1, 4)]
    before = proto.SerializeToString()
    expected = tiny.counter.count(noise(80, 88))
    for small in (quantize(proto, None), quantize(proto, pictures)):
        assert small.ByteSize() < 0.8 * proto.ByteSize()
        counter = from_onnx(small.SerializeToString(), "int8")
        assert counter.description == describe(tiny, mode_of(tiny), "mine")
        found = counter.count(noise(80, 88))
        assert found.count != expected.count
        assert found.count == pytest.approx(expected.count, rel=0.1)
    assert proto.SerializeToString() == before


def test_a_checkpoint_is_described(tmp_path: Path) -> None:
    loaded = checkpoint.load(write_checkpoint(tmp_path, "model.width=8"))
    found = describe(loaded, counting_mode(loaded.config.eval, loaded.config.model, crop_size=64), "mine")
    assert found["commit"] == loaded.content["commit"]
    assert found["selection"] == loaded.content["selection"]
