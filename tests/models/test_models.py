"""Shapes, parameter counts, resampling, normalization and weights of the counters."""

import hashlib
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from headcount.bins import CountBins
from headcount.config import ConfigError, ImageNetConfig, MobileNetV2Config, ModelConfig, Strategy, TinyConfig
from headcount.errors import CheckpointError
from headcount.models import torchvision_networks
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.models.heads import BlockClassifier, resample
from headcount.types import BlockGrid

HISTOGRAM = {0: 90, 1: 5, 2: 3, 4: 1, 9: 1}
CONFIGS: list[ModelConfig] = [
    TinyConfig(width=8),
    MobileNetV2Config(weights="none"),
    *(ImageNetConfig(name=name, weights="none") for name in ("dmcount", "csrnet", "cannet")),
]
each_model = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)


def bins_of(block_size: int) -> CountBins:
    return CountBins.from_histogram(HISTOGRAM, grid=BlockGrid(block_size), strategy=Strategy.fine, m=4)


def counter_of(config: ModelConfig, block_size: int = 8) -> Counter:
    torch.manual_seed(0)
    return build_model(config, BlockGrid(block_size), bins_of(block_size)).eval()


@each_model
@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [pytest.param(64, 96, marks=pytest.mark.slow), (104, 136)])
def test_one_prediction_a_block_and_no_padding(config: ModelConfig, block_size: int, height: int, width: int) -> None:
    counter = counter_of(config, block_size)
    with torch.no_grad():
        prediction = counter(torch.zeros(2, 3, height, width, dtype=torch.uint8))
    stride = config.stride(block_size)
    assert stride is not None
    rows, cols = (size // stride * stride // block_size for size in (height, width))
    assert prediction.blocks.shape == (2, 1, rows, cols)
    assert prediction.logits is not None
    assert prediction.logits.shape == (2, 5, rows, cols)


def test_104_x_136_at_stride_16_gives_12_x_16_blocks_of_8() -> None:
    for config in CONFIGS[1:3]:
        with torch.no_grad():
            assert counter_of(config)(torch.zeros(1, 3, 104, 136, dtype=torch.uint8)).blocks.shape[2:] == (12, 16)


@each_model
def test_a_prediction_is_the_same_type_in_training(config: ModelConfig) -> None:
    counter = counter_of(config)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert type(counter(images)) is type(counter.train()(images))


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def test_parameter_counts_by_hand() -> None:
    """VGG19's sixteen convolutions from its table; MobileNetV2 less its classifier and last stage."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512]
    encoder = sum(conv(a, b) for a, b in itertools.pairwise(widths))
    decoder = conv(512, 256) + conv(256, 128)
    assert parameters(counter_of(ImageNetConfig(name="dmcount", weights="none"))) == encoder + decoder + conv(128, 5, 1)
    published = 3_504_872  # torchvision's documented number for MobileNetV2
    classifier = 1280 * 1000 + 1000
    last_stage = 320 * 1280 + 2 * 1280
    assert parameters(counter_of(CONFIGS[1])) == published - classifier - last_stage + conv(320, 5, 1)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("stage", "blocks"), [(160, 17), (320, 18)])
def test_mobilenet_keeps_its_layers_and_loses_one_stride(stage: int, blocks: int) -> None:
    """Up to the lost stride the features equal torchvision's; after it, on twice the grid."""
    torch.manual_seed(0)
    backbone = torchvision_networks.mobilenet_v2(stage, stride=16).eval()
    reference = torchvision.models.mobilenet_v2(weights=None).features[:blocks].eval()
    reference.load_state_dict(backbone.features.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(backbone.features[:14](images), reference[:14](images))
        assert backbone(images).shape == (1, stage, 4, 6)
        assert reference(images).shape == (1, stage, 2, 3)


def test_counts_are_the_softmax_expectation() -> None:
    head = BlockClassifier(3, bins_of(8))
    features = torch.randn(2, 3, 4, 5)
    prediction = head(features, factor=1)
    p = prediction.logits.softmax(1)
    expected = p[:, 1] + 2 * p[:, 2] + 3 * p[:, 3] + 6.5 * p[:, 4]  # the mean of 4 and 9 is 6.5
    torch.testing.assert_close(prediction.blocks[:, 0], expected)
    assert bool((prediction.blocks > 0).all())


@pytest.mark.parametrize("factor", [2.0, 1.0, 0.5])
def test_projecting_before_resampling_is_exact(factor: float) -> None:
    head = BlockClassifier(6, bins_of(8)).double()
    features = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    late = head.to_logits(resample(features, factor))
    torch.testing.assert_close(head(features, factor=factor).logits.double(), late, rtol=0, atol=1e-6)


def test_resampling_is_bilinear_without_antialias() -> None:
    """Halving by bilinear without antialias at align_corners false is the mean of the middle two by two."""
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resample(maps, 0.5).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(resample(maps, 0.5), F.avg_pool2d(maps, 2))
    assert resample(maps, 2).shape == (1, 1, 8, 8)


def test_an_untrained_head_starts_at_the_shares_of_the_bins() -> None:
    head = BlockClassifier(3, bins_of(8))
    head.start_at({0: 90, 1: 5, 2: 3, 4: 1, 9: 1})
    p = head(torch.zeros(1, 3, 1, 1), factor=1).logits.softmax(1).flatten()
    torch.testing.assert_close(p, torch.tensor([0.9, 0.05, 0.03, 1e-5, 0.02]), rtol=1e-4, atol=1e-6)


@each_model
def test_bytes_are_normalized_inside_and_normalized_pixels_have_a_method_of_their_own(config: ModelConfig) -> None:
    counter = counter_of(config)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(counter(images).logits, counter.predict_normalized(by_hand).logits)


def test_mean_and_std_of_other_weights() -> None:
    counter = counter_of(TinyConfig(width=8, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5]))
    normalized = counter.normalize(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))
    assert normalized[0, 0, 0].tolist() == [-1, 1]


@each_model
def test_state_dict_rebuilds_the_counter(config: ModelConfig) -> None:
    counter, other = counter_of(config), build_model(config, BlockGrid(8), bins_of(8), pretrained=False).eval()
    other.load_state_dict(counter.state_dict())
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(counter(images).blocks, other(images).blocks)


def classifier_file(folder: Path, **options: int) -> tuple[Path, dict[str, Tensor]]:
    """A file as torchvision's users save it, with another number of classes."""
    state = torchvision.models.mobilenet_v2(weights=None, **options).state_dict()
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth", state


def test_weights_from_a_file_with_other_classes(tmp_path: Path) -> None:
    file, state = classifier_file(tmp_path, num_classes=7)
    counter = counter_of(MobileNetV2Config(weights=str(file)))
    assert torch.equal(counter.backbone.features[17].conv[2].weight, state["features.17.conv.2.weight"])
    assert torch.equal(counter.backbone.features[1].conv[2].running_var, state["features.1.conv.2.running_var"])


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file, _ = classifier_file(tmp_path)
    with pytest.raises(ConfigError, match=r"weights of another architecture: features\.0\.weight is missing"):
        counter_of(ImageNetConfig(name="dmcount", weights=str(file)))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision.models.mobilenet_v2(weights=None, width_mult=0.5).state_dict(), tmp_path / "half.pth")
    with pytest.raises(ConfigError, match=r"features\.0\.0\.weight is \(16, 3, 3, 3\), not \(32, 3, 3, 3\)"):
        counter_of(MobileNetV2Config(weights=str(tmp_path / "half.pth")))


@pytest.mark.parametrize("content", [b"", b"no weights", [1, 2], {"epoch": 3}])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(
        CheckpointError, match=r"weights\.pth: (the file is truncated or not a state dict|not a state dict|contains)"
    ):
        counter_of(MobileNetV2Config(weights=str(file)))


def test_imagenet_weights_offline_name_the_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        counter_of(MobileNetV2Config(weights="imagenet"))
    for words in ("mobilenet_v2-", str(tmp_path / "checkpoints"), "https://", "model.weights=none"):
        assert words in str(caught.value)


def test_imagenet_weights_are_read_from_torch_hubs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real loading code, on a file we made and put where the download would."""
    published = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    file, state = classifier_file(tmp_path)
    # Published files are named by the start of their SHA-256.
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(published.value, "url", f"https://example.org/mobilenet_v2-{digest}.pth")
    file.rename(tmp_path / "checkpoints" / f"mobilenet_v2-{digest}.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    counter = counter_of(MobileNetV2Config(weights="imagenet"))
    assert torch.equal(counter.backbone.features[0][0].weight, state["features.0.0.weight"])


@each_model
def test_gradients_reach_every_parameter(config: ModelConfig) -> None:
    counter = counter_of(config).train()
    counter(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)).logits.square().mean().backward()
    without = [
        name for name, p in counter.named_parameters() if p.grad is None or not math.isfinite(float(p.grad.norm()))
    ]
    assert without == []
