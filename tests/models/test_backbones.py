"""Strides, parameters and features of the backbones, against arithmetic and against timm's own networks."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from headcount.bins import build_bins
from headcount.cli.compose import checked_config
from headcount.config import (
    MODELS,
    BinsConfig,
    ClipConfig,
    ClipViTConfig,
    ConfigError,
    Freeze,
    ImageNetConfig,
    ModelConfig,
    Neck,
    OptimConfig,
    PretrainedConfig,
    RegressionHeadConfig,
    TimmConfig,
)
from headcount.engine.optim import build_optimizer
from headcount.models import backbones, timm_networks, torchvision_networks
from headcount.models.backbones import Backbone, ContextModule
from headcount.models.build import build_model, follow_weights
from headcount.models.clip import ClipResNet, ClipViT
from headcount.models.pyramid import FeaturePyramid
from headcount.models.timm_networks import PyramidBackbone, timm_backbone, timm_pyramid
from headcount.types import BlockGrid

STRIDES = {name: stride for name, stride in ImageNetConfig.names.items() if stride is not None}
CHANNELS = {**dict.fromkeys(STRIDES, 512), "resnet101": 2048, "densenet201": 1920}
TIMM = {  # channels and stride of the last map, where at most 16 is asked for
    "resnet18": (512, 16),
    "mobilenetv3_small_100": (576, 16),
    "convnext_atto": (320, 16),
    "vit_tiny_patch16_224": (192, 16),
    "eva02_tiny_patch14_224": (192, 14),
    "swin_tiny_patch4_window7_224": (768, 32),
    "test_vit2": (64, 16),
}


def quick_first(names: Iterable[str], *quick: str) -> list[Any]:
    """The names for a test of each; all but the quick ones are left to make test-rest."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(build: Callable[[], Any]) -> Any:
    """Shapes without values: nothing is drawn, so networks of full size are counted at once."""
    with torch.device("meta"):
        return build()


# -------------------------------------------------------------------------------------- architectures


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return inputs * outputs * kernel**2 + outputs


def vgg_classifier() -> int:
    return 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000


CONTEXT = 4 * 512 * 512 + conv(512, 512, 1) + conv(1024, 512, 1)
LEFT_OUT = {  # what the classifier, whose parameters torchvision documents, has and the backbone does not
    "vgg16": vgg_classifier(),
    "vgg19": vgg_classifier(),
    "dmcount": vgg_classifier(),
    "csrnet": vgg_classifier() + 3 * conv(512, 512),
    "cannet": vgg_classifier() + 3 * conv(512, 512) - CONTEXT,
    "resnet101": 2048 * 1000 + 1000,
    "densenet201": 1920 * 1000 + 1000,
}


@pytest.mark.parametrize("name", STRIDES)
def test_parameters_are_those_torchvision_documents(name: str) -> None:
    network = torchvision_networks.NETWORKS[name]
    assert (
        parameters(on_meta(lambda: network.build(STRIDES[name])))
        == network.published.meta["num_params"] - LEFT_OUT[name]
    )


def test_parameters_of_the_decoders() -> None:
    six = [512, 512, 512, 512, 256, 128, 64]
    assert parameters(on_meta(backbones.csrnet_decoder)) == sum(conv(a, b) for a, b in itertools.pairwise(six))
    assert parameters(on_meta(backbones.dm_count_decoder)) == conv(512, 256) + conv(256, 128)


@pytest.mark.parametrize("name", quick_first(STRIDES, "mobilenet_v2"))
def test_a_network_gives_one_feature_for_every_whole_stride(name: str) -> None:
    backbone = torchvision_networks.NETWORKS[name].build(STRIDES[name]).eval()
    assert (backbone.stride, backbone.channels) == (STRIDES[name], CHANNELS[name])
    for height, width in [(104, 136), (100, 150)]:
        with torch.no_grad():
            maps = backbone(torch.rand(2, 3, height, width))
        assert maps.shape == (2, CHANNELS[name], height // STRIDES[name], width // STRIDES[name])


STATED = {name: kind for kind in MODELS.values() for name in kind.names}
SMALL_CLIP: dict[str, Any] = {"width": 64, "text_width": 32, "text_heads": 2, "text_layers": 1, "embed_dim": 8}


@pytest.mark.parametrize("name", quick_first(STATED, *(set(STATED) - {"densenet201", "resnet101"})))
def test_the_features_have_the_stride_that_the_config_states(name: str) -> None:
    """The layers themselves, whose grid nothing crops at sizes that every stride divides."""
    kind: type[ModelConfig] = STATED[name]
    options: dict[str, Any] = {"head": RegressionHeadConfig(), "name": name}
    if issubclass(kind, PretrainedConfig):
        options["weights"] = "none"
    if issubclass(kind, ClipConfig):
        options |= SMALL_CLIP | {"layers": [1] if kind is ClipViTConfig else [1, 1, 1, 1]}
    config = kind(**options)
    for block_size in (8, 32):
        stride = config.stride(block_size)
        assert stride is not None
        if block_size == 8:
            assert stride == kind.names[name]
        with torch.device("meta"):
            backbone = build_model(config, BlockGrid(block_size), None, pretrained=False).backbone
            images = torch.empty(1, 3, 8 * stride, 12 * stride)
            if isinstance(backbone, ClipViT):
                maps = backbone.tower.conv1(images)
            else:
                maps = (backbone.tower if isinstance(backbone, ClipResNet) else backbone.features)(images)
        assert maps.shape[2:] == (8, 12)
        assert backbone.stride == stride


@pytest.mark.parametrize("name", ["dmcount", "vgg19", "csrnet", "cannet"])
def test_a_decoder_takes_what_its_encoder_gives_and_keeps_its_size(name: str) -> None:
    network = torchvision_networks.NETWORKS[name]
    assert network.decoder is not None
    decoder = on_meta(network.decoder)
    assert decoder(torch.empty(1, CHANNELS[name], 5, 7, device="meta")).shape == (1, network.decoder_channels, 5, 7)


def test_layers_have_the_names_of_published_checkpoints() -> None:
    cannet, resnet, densenet = (
        on_meta(lambda name=name: torchvision_networks.NETWORKS[name].build(STRIDES[name]))
        for name in ("cannet", "resnet101", "densenet201")
    )
    assert {k.split(".")[0] for k in cannet.state_dict()} == {"features", "context"}
    assert {k for k in cannet.state_dict() if k.startswith("context")} == {
        *(f"context.scales.{i}.1.weight" for i in range(4)),
        *(f"context.{layer}.{kind}" for layer in ("weight_net", "bottleneck") for kind in ("weight", "bias")),
    }
    assert list(cannet.features.state_dict())[-1] == "21.bias"
    assert "features.layer4.0.downsample.0.weight" in resnet.state_dict()
    assert "features.denseblock4.denselayer32.conv2.weight" in densenet.state_dict()
    indices = {int(k.split(".")[0]) for k in on_meta(backbones.csrnet_decoder).state_dict()}
    assert indices == {0, 2, 4, 6, 8, 10}


def disturb(module: nn.Module) -> None:
    """Statistics and weights of normalization away from 0 and 1, where a lost one would not be seen."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.8, 1.5)


def resnet_of_timm(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    network = timm.create_model("resnet101", features_only=True)
    network.load_state_dict(backbone.features.state_dict())
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    return lambda images: network.eval()(images)[-1]


def densenet_of_timm(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    network = timm.create_model("densenet201", features_only=True)
    network.load_state_dict({f"features_{k}": v for k, v in backbone.features.state_dict().items()})
    network.features_transition3.pool = nn.Identity()
    return lambda images: network.eval()(images)[-1]


def vgg_of_timm(name: str, stage: int) -> Callable[[Backbone], Callable[[Tensor], Tensor]]:
    """The map before the pooling that ends each stage, of the ReLU after its last convolution."""

    def build(backbone: Backbone) -> Callable[[Tensor], Tensor]:
        network = timm.create_model(name, features_only=True)
        own = {f"features_{k}": v for k, v in backbone.features.state_dict().items()}
        network.load_state_dict({k: own.get(k, v) for k, v in network.state_dict().items()})
        return lambda images: network.eval()(images)[stage]

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet101", resnet_of_timm),
        ("densenet201", densenet_of_timm),
        ("vgg16", vgg_of_timm("vgg16", 4)),
        ("vgg19", vgg_of_timm("vgg19", 4)),
        ("csrnet", vgg_of_timm("vgg16", 3)),
    ],
)
def test_features_are_those_of_timms_network_with_the_same_weights(
    name: str, build: Callable[[Backbone], Callable[[Tensor], Tensor]]
) -> None:
    torch.manual_seed(0)
    backbone = torchvision_networks.NETWORKS[name].build(STRIDES[name]).eval()
    disturb(backbone)
    reference = build(backbone)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = backbone(images), reference(images)
    assert float(expected.std()) > 1e-3  # else everything would be close
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# ------------------------------------------------------------------------------- context and decoders


def set_weight(layer: nn.Module, weight: list[list[float]], bias: list[float] | None = None) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight)[:, :, None, None])
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))


def test_context_of_a_ramp_by_hand() -> None:
    """With equal weights and unchanged averages, one row of six columns 0, 1, ..., 5 can be done on paper."""
    module = ContextModule(1, 2)
    for scale in module.scales:
        set_weight(scale[1], [[1.0]])
    set_weight(module.weight_net, [[0.0]], [0.3])
    set_weight(module.bottleneck, [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    with torch.no_grad():
        average, maps = module(torch.arange(6.0).expand(1, 1, 6, 6))[0]
    by_scale = torch.tensor(
        [
            [2.5, 2.5, 2.5, 2.5, 2.5, 2.5],
            [1.0, 1.0, 2.0, 3.0, 4.0, 4.0],  # halves of mean 1 and 4, at columns 1 and 4
            [0.5, 1.0, 2.0, 3.0, 4.0, 4.5],  # thirds of mean 0.5, 2.5, 4.5
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        ]
    )
    torch.testing.assert_close(average, by_scale.mean(0).expand(6, 6), rtol=1e-5, atol=1e-5)
    assert torch.equal(maps, torch.arange(6.0).expand(6, 6))


def test_context_weighs_by_the_difference_from_the_average() -> None:
    """Of a constant map every average is the map itself, through each scale's own convolution."""
    module = ContextModule(2, 2)
    factors = [0.5, 1.0, 2.0, 3.0]
    for scale, factor in zip(module.scales, factors, strict=True):
        set_weight(scale[1], [[factor, 0.0], [0.0, factor]])
    set_weight(module.weight_net, [[1.0, 0.0], [0.0, 2.0]], [0.1, -0.2])
    set_weight(module.bottleneck, [[1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 4.0]], [0.0, 0.5])
    value = torch.tensor([0.7, 1.3])
    with torch.no_grad():
        found = module(value.view(1, 2, 1, 1).expand(1, 2, 5, 7))
    averages = torch.tensor(factors)[:, None] * value
    weights = ((value - averages) * torch.tensor([1.0, 2.0]) + torch.tensor([0.1, -0.2])).sigmoid()
    average = (weights * averages).sum(0) / weights.sum(0)
    expected = torch.stack([average[0], 4 * value[1] - average[1] + 0.5])
    torch.testing.assert_close(found, expected.view(1, 2, 1, 1).expand(1, 2, 5, 7), rtol=1e-4, atol=1e-4)


def test_context_is_never_negative() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        refined = ContextModule(8, 16)(torch.randn(1, 8, 9, 7))
    assert refined.shape == (1, 16, 9, 7)
    assert float(refined.min()) == 0


def test_csrnets_decoder_sees_12_places_far_in_steps_of_2() -> None:
    decoder = backbones.csrnet_decoder()
    for parameter in decoder.parameters():
        nn.init.constant_(parameter, 1e-3)
    maps = torch.ones(1, 512, 29, 29, requires_grad=True)
    decoder(maps)[0, 0, 14, 14].backward()
    assert maps.grad is not None
    rows, cols = maps.grad[0, 0].nonzero().T.unique(dim=1)
    assert sorted(set(rows.tolist())) == sorted(set(cols.tolist())) == list(range(2, 27, 2))
    assert len(rows) == 13 * 13


def test_decoders_keep_the_size_of_what_passes_them() -> None:
    """He's start: the mean square of what leaves a ReLU layer is about that of what entered it."""
    torch.manual_seed(0)
    maps = torch.randn(1, 512, 24, 24).relu()
    with torch.no_grad():
        ratio = [backbones.csrnet_decoder()(maps), backbones.dm_count_decoder()(maps)]
    # fan_out: a layer from c to c / 2 channels doubles it.
    for decoded, growth in zip(ratio, (8, 4), strict=True):
        assert 0.3 * growth < float(decoded.square().mean() / maps.square().mean()) < 3 * growth


# ----------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("name", quick_first(TIMM, "resnet18", "convnext_atto", "eva02_tiny_patch14_224", "test_vit2"))
def test_networks_of_timm_give_one_feature_for_every_whole_stride(name: str) -> None:
    expected = TIMM[name]
    backbone = timm_backbone(name, max_stride=16, pretrained=False)
    assert (backbone.channels, backbone.stride) == expected
    assert backbone.training
    for height, width in [(104, 136), (100, 150)]:
        with torch.no_grad():
            maps = backbone.eval()(torch.rand(1, 3, height, width))
        assert maps.shape == (1, expected[0], height // expected[1], width // expected[1])


@pytest.mark.parametrize(("max_stride", "stride"), [(64, 32), (32, 32), (31, 16), (16, 16), (8, 8), (3, 8)])
def test_the_stride_is_lowered_as_far_as_the_architecture_allows(max_stride: int, stride: int) -> None:
    backbone = timm_backbone("resnet18", max_stride=max_stride, pretrained=False)
    with torch.no_grad():
        assert backbone.eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 512, 64 // stride, 96 // stride)


def test_an_architecture_that_cannot_lower_its_stride_keeps_it() -> None:
    assert timm_backbone("pvt_v2_b0", max_stride=8, pretrained=False).stride == 32


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.slow
def test_a_transformer_for_any_size_is_the_same_network(name: str) -> None:
    """At the size timm builds it for, without being asked for others."""
    torch.manual_seed(0)
    backbone = timm_backbone(name, max_stride=16, pretrained=False).eval()
    classifier = timm.create_model(name).eval()
    own = {k.removeprefix("model."): v for k, v in backbone.features.state_dict().items()}
    names = {k: k.replace(".", "_", 1) if k.replace(".", "_", 1) in own else k for k in classifier.state_dict()}
    classifier.load_state_dict({k: own.get(names[k], v) for k, v in classifier.state_dict().items()})
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")[-1]
        torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


def test_mean_and_std_are_those_of_the_weights() -> None:
    assert timm_backbone("resnet18", max_stride=16, pretrained=False).std == backbones.IMAGENET_STD
    vit = timm_backbone("vit_tiny_patch16_224", max_stride=16, pretrained=False)
    assert (vit.mean, vit.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torchvision_networks.vgg16(16).mean == backbones.IMAGENET_MEAN


def test_a_name_that_timm_does_not_have_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match=r"model\.name=resnet19: timm has no such model"):
        follow_weights(TimmConfig(name="resnet19"))
    assert follow_weights(TimmConfig(name="resnet18")) == TimmConfig(name="resnet18")


@pytest.mark.parametrize(("name", "near"), [("convnext_att", "convnext_atto"), ("resnet19", "resnet18")])
def test_an_unknown_name_is_told_its_neighbors(name: str, near: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.name={name}: timm has no such model; similar names: .*\b{near}\b"
    ) as caught:
        timm_backbone(name, max_stride=16, pretrained=False)
    assert str(caught.value).count(",") <= 4


def test_a_name_like_no_other() -> None:
    with pytest.raises(ConfigError, match="similar names: none"):
        timm_backbone("@@@", max_stride=16, pretrained=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gmlp_b16_224", r"doesn't match model \(224\)"),  # of one size only
        ("crossvit_9_240", r"51 x 85 px returned \(1, 256, 14, 14\), not \(1, 256, 3, 5\)"),
        ("resnet18.nobody_trained_this", "nobody_trained_this"),
    ],
)
def test_a_network_that_cannot_be_a_backbone_is_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.name={name}: not usable as a backbone .*{reason}"):
        timm_backbone(name, max_stride=16, pretrained=False)


def test_a_network_without_features_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *, features_only: bool, **options: Any) -> None:
        raise RuntimeError("features_only not implemented for this model.")

    monkeypatch.setattr(timm, "create_model", refuse)
    timm_networks._timm_options.cache_clear()  # other tests have built the same network
    with pytest.raises(ConfigError, match=r"model\.name=resnet18: .* features_only not implemented"):
        timm_backbone("resnet18", max_stride=16, pretrained=False)


def test_pretrained_weights_offline_name_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("Name or service not known\nand more")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(ConfigError) as caught:
        timm_backbone("resnet18", max_stride=16, pretrained=True)
    for words in ("weights of resnet18", "not known)", "model.weights=FILE", "model.weights=none"):
        assert words in str(caught.value)


# ------------------------------------------------------------------------------------ feature pyramid


def test_the_finest_map_of_a_pyramid_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    channels, sizes = [5, 7, 9], [(13, 17), (7, 9), (4, 5)]
    ours, theirs = FeaturePyramid(channels, 6).eval(), FeaturePyramidNetwork(channels, 6).eval()
    for lateral, block in zip(ours.lateral, theirs.inner_blocks, strict=True):
        nn.init.normal_(lateral.bias)
        block[0].load_state_dict(lateral.state_dict())
    theirs.layer_blocks[0][0].weight.data.copy_(ours.smooth[0].weight)
    norm = ours.smooth[1]
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.running_mean)
    maps = [torch.randn(2, count, *size) for count, size in zip(channels, sizes, strict=True)]
    with torch.no_grad():
        finest = theirs({str(k): one for k, one in enumerate(maps)})["0"]
        torch.testing.assert_close(ours(maps), norm(finest).relu(), rtol=1e-5, atol=1e-5)


PYRAMIDS = {  # maximum stride, stride, channels of the maps
    "resnet18": (8, 8, [128, 256, 512]),
    "tf_efficientnet_lite0": (8, 8, [40, 112, 320]),
    "convnext_atto": (5, 4, [40, 80, 160, 320]),
    "swin_tiny_patch4_window7_224": (15, 8, [192, 384, 768]),
    "dla34": (16, 16, [256, 512]),  # refuses images that are no multiples of its last stride
}


@pytest.mark.parametrize("name", quick_first(PYRAMIDS, "resnet18"))
def test_a_pyramid_gives_one_feature_for_every_whole_stride_of_its_finest_map(name: str) -> None:
    most, stride, channels = PYRAMIDS[name]
    backbone = timm_pyramid(name, max_stride=most, channels=24, pretrained=False)
    assert isinstance(backbone, PyramidBackbone)
    assert (backbone.channels, backbone.stride) == (24, stride)
    assert [layer.in_channels for layer in backbone.neck.lateral] == channels
    for height, width in [(104, 136), (100, 150), (37, 61), (24, 40), (16, 16)]:
        with torch.no_grad():
            maps = backbone.eval()(torch.rand(1, 3, height, width))
        assert maps.shape == (1, 24, height // stride, width // stride)
    backbone.train()(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())  # several processes wait for each gradient


@pytest.mark.parametrize(
    ("name", "most", "strides", "advice"),
    [
        ("resnet18", 32, "2, 4, 8, 16, 32", "Set model.max_stride=16, or model.neck=none"),
        ("vit_tiny_patch16_224", 16, "16, 16, 16", "Set model.neck=none"),
    ],
)
def test_one_map_is_no_pyramid(name: str, most: int, strides: str, advice: str) -> None:
    words = rf"model\.max_stride={most}: model\.neck=fpn combines .*those of {name} have strides {strides}\. {advice}$"
    with pytest.raises(ConfigError, match=words):
        timm_pyramid(name, max_stride=most, channels=24, pretrained=False)


def test_a_pyramid_is_chosen_and_trained_where_its_backbone_is_not() -> None:
    config = TimmConfig(name="resnet10t", weights="none", neck=Neck.fpn, neck_channels=16, max_stride=8)
    for freeze, frozen in ((Freeze.backbone, "features."), (Freeze.batch_norm, "features.bn1."), (Freeze.none, None)):
        config.freeze = freeze
        counter = build_model(config, BlockGrid(8), build_bins(BinsConfig(), {0: 1})).train()
        assert counter.stride == 8
        backbone = counter.backbone
        assert isinstance(backbone, PyramidBackbone)
        assert backbone.neck.training
        assert all(p.requires_grad for p in backbone.neck.parameters())
        if frozen is not None:
            assert not any(p.requires_grad for name, p in backbone.named_parameters() if name.startswith(frozen))
        groups = build_optimizer(OptimConfig(backbone_lr_factor=0.1), counter).param_groups
        fast = {id(p) for group in groups if group["lr"] == groups[0]["lr"] for p in group["params"]}
        assert all(id(p) in fast for p in [*backbone.neck.parameters(), *counter.head.parameters()])
        assert not any(id(p) in fast for p in backbone.features.parameters())


def test_a_network_for_images_of_one_size_has_no_pyramid() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.name=hiera_tiny_224: not usable with model\.neck=fpn for images of any"
    ):
        timm_pyramid("hiera_tiny_224", max_stride=8, channels=24, pretrained=False)


def test_an_untrained_pyramid_is_not_frozen() -> None:
    typed = ["model=timm", "model.name=resnet18", "model.neck=fpn", "model.max_stride=8", "model.freeze=all_but_head"]
    with pytest.raises(
        ConfigError, match=r"model\.freeze=all_but_head: the feature pyramid would keep its random weights"
    ):
        checked_config(typed, config_name="train")


def test_channels_without_a_pyramid_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.neck_channels=64: has no effect without a feature pyramid; add model\.neck=fpn"
    ):
        checked_config(
            ["model=timm", "model.name=resnet18", "model.weights=none", "model.neck_channels=64"], config_name="train"
        )


def test_a_pyramid_keeps_all_strides() -> None:
    with pytest.raises(ConfigError, match=r"model\.dilate=false: a feature pyramid keeps all strides"):
        checked_config(
            ["model=timm", "model.name=resnet18", "model.weights=none", "model.neck=fpn", "model.dilate=false"],
            config_name="train",
        )
