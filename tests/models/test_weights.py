"""Weights of every family from files as their users save them, and files that are something else."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from headcount.config import ConfigError, ImageNetConfig
from headcount.errors import CheckpointError
from headcount.models import backbones, torchvision_networks
from headcount.models.backbones import Backbone
from headcount.models.timm_networks import timm_backbone, timm_pyramid
from headcount.models.weights import load_backbone, read_state_dict

State = dict[str, Tensor]


def encoder(name: str) -> Backbone:
    """The torchvision encoder of a model, with the stride of its config."""
    stride = ImageNetConfig.names[name]
    assert stride is not None
    return torchvision_networks.NETWORKS[name].build(stride)


def save(state: State, folder: Path, name: str = "weights.pth") -> str:
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
    return str(folder / name)


def classifier(name: str, classes: int = 7) -> State:
    """torchvision's state dict; the classifiers of the VGGs, 500 MB, are written small and are not read."""
    torch.manual_seed(1)
    if name.startswith("vgg"):
        features = encoder(name).features.state_dict()
        return {f"features.{k}": v for k, v in features.items()} | {"classifier.6.weight": torch.zeros(classes, 8)}
    return getattr(torchvision.models, name)(weights=None, num_classes=classes).state_dict()


def assert_filled(backbone: Backbone, state: State) -> None:
    own = backbone.features.state_dict()
    assert own
    for key, value in own.items():
        assert torch.equal(value, state[backbone.prefix + key]), key


FAMILIES: dict[str, str] = {  # a model, and the classifier whose weights it takes
    "mobilenet_v2": "mobilenet_v2",
    "vgg16": "vgg16",
    "vgg19": "vgg19",
    "csrnet": "vgg16",
    "cannet": "vgg16",
    "resnet101": "resnet101",
    "densenet201": "densenet201",
}


@pytest.mark.parametrize(
    "name", [n if n in ("mobilenet_v2", "vgg16") else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_a_classifier_of_any_number_of_classes_fills_its_backbone(name: str, tmp_path: Path) -> None:
    state = classifier(FAMILIES[name])
    backbone = torchvision_networks.mobilenet_v2(320, stride=16) if name == "mobilenet_v2" else encoder(name)
    load_backbone(backbone, save(state, tmp_path), None)
    assert_filled(backbone, state)


def test_what_stands_on_the_pretrained_layers_keeps_its_values(tmp_path: Path) -> None:
    backbone = encoder("cannet")
    assert backbone.context is not None
    before = {k: v.clone() for k, v in backbone.context.state_dict().items()}
    load_backbone(backbone, save(classifier("vgg16"), tmp_path), None)
    for key, value in backbone.context.state_dict().items():
        assert torch.equal(value, before[key])


def test_none_leaves_a_backbone_as_it_is() -> None:
    backbone = backbones.tiny(8, stride=8)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    load_backbone(backbone, "none", None)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.slow
def test_densenets_published_file_has_old_names(tmp_path: Path) -> None:
    state = classifier("densenet201")
    # As it was saved before a layer's name could no longer hold a dot, and BatchNorm counted its steps.
    old = {
        re.sub(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.", k): v
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert "features.denseblock4.denselayer32.conv.2.weight" in old
    backbone = encoder("densenet201")
    load_backbone(backbone, save(old, tmp_path), None)
    assert_filled(backbone, state)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100", "convnext_atto", "test_vit2"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_classifier_of_timm_fills_its_backbone(name: str, suffix: str, tmp_path: Path) -> None:
    """timm keeps, joins or wraps the names of the layers; what comes out tells whether each found its place."""
    torch.manual_seed(1)
    published = timm.create_model(name, num_classes=5).eval()
    for layer in published.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
    backbone = timm_backbone(name, max_stride=32, pretrained=False).eval()
    file = save(published.state_dict(), tmp_path, f"weights{suffix}")
    load_backbone(backbone, file, None)
    images = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        expected = published.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-5, atol=1e-5)
    if name != "test_vit2":  # whose maps are all of one stride
        pyramid = timm_pyramid(name, max_stride=8, channels=8, pretrained=False).eval()
        load_backbone(pyramid, file, None)
        with torch.no_grad():
            torch.testing.assert_close(pyramid.features(images)[-1], expected, rtol=1e-5, atol=1e-5)


def test_a_file_of_safetensors_fills_a_backbone(tmp_path: Path) -> None:
    state = classifier("mobilenet_v2")
    backbone = torchvision_networks.mobilenet_v2(160, stride=16)
    load_backbone(backbone, save(state, tmp_path, "weights.safetensors"), None)
    assert_filled(backbone, state)


# ------------------------------------------------------------------------------- files that do not fit


@pytest.mark.parametrize(
    ("name", "file", "problem"),
    [
        pytest.param(
            *("resnet101", "mobilenet_v2", r"conv1\.weight is missing \(\d+ missing, 0 of another shape\)"),
            marks=pytest.mark.slow,
        ),
        ("vgg16", "mobilenet_v2", r"features\.0\.weight is missing"),
        ("vgg19", "vgg16", r"features\.16\.weight is missing"),
        pytest.param("resnet101", "resnet50", r"layer3\.6\.conv1\.weight is missing", marks=pytest.mark.slow),
        pytest.param(
            *("densenet201", "densenet169", r"features\.denseblock3\.denselayer33\.norm1\.weight is missing"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_of_another_architecture_name_what_does_not_fit(
    name: str, file: str, problem: str, tmp_path: Path
) -> None:
    backbone = encoder(name)
    before = {k: v.clone() for k, v in backbone.features.state_dict().items()}
    path = save(classifier(file), tmp_path)
    with pytest.raises(ConfigError, match=rf"model\.weights={path}: weights of another architecture: ({problem})"):
        load_backbone(backbone, path, None)
    assert all(torch.equal(v, before[k]) for k, v in backbone.features.state_dict().items())


def test_weights_of_another_model_of_timm_name_what_does_not_fit(tmp_path: Path) -> None:
    path = save(timm.create_model("convnext_femto").state_dict(), tmp_path)
    backbone = timm_backbone("convnext_atto", max_stride=16, pretrained=False)
    with pytest.raises(ConfigError, match=r"stem_0\.weight is \(48, 3, 4, 4\), not \(40, 3, 4, 4\)"):
        load_backbone(backbone, path, None)


# ---------------------------------------------------------------------------------- files of any kind


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"model\.weights=/nowhere/weights\.pth: no such file"):
        read_state_dict("/nowhere/weights.pth")
    with pytest.raises(ConfigError, match=r"model\.weights=imagenet: no such file"):  # where nothing is published
        load_backbone(backbones.tiny(8, stride=8), "imagenet", None)


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save({"a": torch.ones(2)}, tmp_path)
    assert torch.equal(read_state_dict("~/weights.pth")["a"], torch.ones(2))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(suffix: str, share: float, tmp_path: Path) -> None:
    path = Path(save({"a": torch.rand(300), "b": torch.rand(40, 5)}, tmp_path, f"weights{suffix}"))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    reason = "not a readable .safetensors file: ." if suffix == ".safetensors" else "the file is truncated|not a state"
    with pytest.raises(CheckpointError, match=rf"weights{suffix}: ({reason})"):
        read_state_dict(str(path))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    other = {"weights.pth": "weights.safetensors", "weights.safetensors": "weights.pth"}[name]
    Path(save({"a": torch.rand(30)}, tmp_path, other)).rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: not a (readable|state dict)"):
        read_state_dict(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ([torch.ones(1)], "list"),
        ({"epoch": 3}, "dict with epoch"),
        ({"state_dict": {"a": 1}}, "dict with a"),
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "dict with model, epoch"),
        (5, "int"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(content: object, held: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=rf"contains {held}, not a state dict of tensors; save only the state dict in a file"
    ):
        read_state_dict(str(tmp_path / "weights.pth"))


class Intruder:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_carries_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    content = {"a": torch.ones(1), "b": Intruder(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"weights\.pth: not a state dict, or it holds code, which is never run$"):
        read_state_dict(str(path))
    assert not trace.exists()


def test_a_folder_is_told_as_one(tmp_path: Path) -> None:
    for folder in (tmp_path / "weights", tmp_path / "weights.safetensors"):
        folder.mkdir()
        with pytest.raises(ConfigError, match=rf"model\.weights={folder}: is a folder; name a file in it"):
            read_state_dict(str(folder))


def test_a_published_file_cut_short_in_torch_hubs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    save(classifier("mobilenet_v2"), tmp_path / "checkpoints", Path(published.url).name)
    file = tmp_path / "checkpoints" / Path(published.url).name
    file.write_bytes(file.read_bytes()[:5000])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(CheckpointError, match=rf"^{file} is damaged, or another file: .*; remove it"):
        load_backbone(torchvision_networks.mobilenet_v2(320, stride=16), "imagenet", published)
