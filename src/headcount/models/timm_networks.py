"""Backbones from timm: any network that provides feature maps, with a lower stride where the architecture allows it.

With a feature pyramid, the network keeps its strides, and its maps are combined at the finest one used.
"""

import difflib
import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from headcount.config import ConfigError
from headcount.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from headcount.models.hub import quick_hub
from headcount.models.pyramid import FeaturePyramid


class TimmBackbone(Backbone):
    """The last feature map of a timm network.

    Pixels beyond the last complete stride are cropped before the network rather than features after it, because a
    transformer does not accept an incomplete patch.

    Args:
        features: a timm network created with ``features_only=True``.
        channels_last: whether the network returns (batch, rows, cols, channels).
        description: the other arguments of :class:`Backbone`.
    """

    def __init__(self, features: nn.Module, *, channels_last: bool, **description: Any) -> None:
        super().__init__(features, **description)
        self.channels_last = channels_last

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Compute one feature per complete ``stride`` x ``stride`` square of the image."""
        return self._maps(self._whole_strides(images), -1)[0]

    def _whole_strides(self, images: Float[Tensor, "batch 3 height width"]) -> Tensor:
        height, width = (size // self.stride * self.stride for size in images.shape[-2:])
        return images[..., :height, :width]

    def _maps(self, images: Float[Tensor, "batch 3 height width"], first: int) -> list[Tensor]:
        """The maps of the network from number ``first`` on, each (batch, channels, rows, cols)."""
        return [one.movedim(-1, 1) if self.channels_last else one for one in self.features(images)[first:]]


class PyramidBackbone(TimmBackbone):
    """The maps of a timm network at several strides, combined by a feature pyramid.

    The network sees images padded to multiples of its coarsest stride, so that each map covers the whole image.

    Args:
        features: a timm network created with ``features_only=True``.
        first: index of its finest map that is used.
        coarsest: its last stride, in pixels.
        map_channels: numbers of channels of the maps from there on.
        out_channels: number of channels of the pyramid.
        description: the other arguments of :class:`TimmBackbone`.
    """

    def __init__(
        self,
        features: nn.Module,
        *,
        first: int,
        coarsest: int,
        map_channels: Sequence[int],
        out_channels: int,
        **description: Any,
    ) -> None:
        super().__init__(features, channels=out_channels, **description)
        self.first = first
        self.coarsest = coarsest
        self.neck = FeaturePyramid(map_channels, out_channels)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Compute one feature per complete ``stride`` x ``stride`` square of the image."""
        images = self._whole_strides(images)
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.coarsest, 0, -height % self.coarsest))  # zeros are the mean color
        finest = self.neck(self._maps(padded, self.first))
        return finest[..., : height // self.stride, : width // self.stride]


def check_timm_name(name: str) -> None:
    """Check that timm has a model called ``name``, without building it.

    Raises:
        ConfigError: if it does not exist; lists similar names.
    """
    import timm

    if not timm.is_model(name):
        near = _near(name, timm.list_models())
        raise ConfigError(f"model.name={name}: timm has no such model; similar names: {', '.join(near) or 'none'}")


# Where the networks of timm whose last stride can be removed have it, by a part of their names.
LAST_STRIDES = {"resnet": "layer4.0", "mobilenetv2": "blocks.5.0", "densenet": "features_transition3"}


def _remove_last_stride(network: nn.Module, name: str) -> None:
    """Remove the stride before or in the last stage of a network in :data:`LAST_STRIDES`, without dilation."""
    where = next(module for part, module in LAST_STRIDES.items() if part in name)
    block: Any = network.get_submodule(where)
    if hasattr(block, "pool"):  # DenseNet's transition
        block.pool = nn.Identity()
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)


def timm_backbone(name: str, *, max_stride: int, pretrained: bool, dilate: bool = True) -> Backbone:
    """Build a timm network that returns feature maps for images of any size.

    Args:
        name: timm's name of the model, with or without a tag of weights.
        max_stride: maximum pixels between two features. The stride is reduced to this value, or to the next possible
            power of two above it, if the architecture supports timm's ``output_stride``; else it is not changed.
        pretrained: whether timm downloads and loads its weights.
        dilate: False removes the stride of the last stage, once, and dilates nothing.

    Raises:
        ConfigError: if timm has no such model, the network does not return such feature maps, or its weights could not
            be downloaded.
    """
    check_timm_name(name)
    options, last = _timm_options(name, max_stride, dilate)
    features = _create(name, options, pretrained=pretrained)
    if not dilate and last["stride"] < features.feature_info.reduction()[-1]:
        _remove_last_stride(features, name)
    mean, std = _colors(features)
    return TimmBackbone(features, **last, prefix="", mean=mean, std=std)


def timm_pyramid(name: str, *, max_stride: int, channels: int, pretrained: bool) -> Backbone:
    """Build a timm network with a feature pyramid, for images of any size.

    The network keeps its own strides.

    Args:
        name: timm's name of the model, with or without a tag of weights.
        max_stride: the finest map of the pyramid is the network's coarsest of at most this stride.
        channels: number of channels of the pyramid.
        pretrained: whether timm downloads and loads its weights.

    Raises:
        ConfigError: if timm has no such model, the network has no such maps, or its weights could not be downloaded.
    """
    check_timm_name(name)
    options, maps = _pyramid_options(name, max_stride)
    features = _create(name, options, pretrained=pretrained)
    mean, std = _colors(features)
    return PyramidBackbone(features, **maps, out_channels=channels, prefix="", mean=mean, std=std)


def _create(name: str, options: dict[str, Any], *, pretrained: bool) -> Any:
    """A timm network that returns its feature maps.

    Raises:
        ConfigError: if its weights could not be downloaded.
    """
    import timm  # late: takes seconds to load, and most models do not need it

    try:
        with quick_hub() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, features_only=True, **options)
    except Exception as error:  # the hub raises many kinds of errors when offline
        if not pretrained:
            raise
        raise ConfigError(
            f"model.weights=pretrained: timm's weights of {name} could not be downloaded ({_first_line(error)}). "
            "Without a network connection, set model.weights=FILE (a state dict), or train from scratch with "
            "model.weights=none"
        ) from error


def _colors(features: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the input that a timm network was trained with."""
    trained = features.pretrained_cfg
    return tuple(trained.get("mean") or IMAGENET_MEAN), tuple(trained.get("std") or IMAGENET_STD)


# Without one of these options, transformers accept images of only one size.
_SIZES: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})


@cache  # a checkpoint builds its network twice
def _timm_options(name: str, max_stride: int, dilate: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for ``timm.create_model``, and the channels, stride and layout of the last feature map with them.

    Found by building on the meta device, which computes shapes but no values.
    """
    reasons = []
    for size in _SIZES:
        try:
            last = _probe(name, **size)
        except Exception as error:  # timm raises TypeError, AssertionError, RuntimeError, ...
            reasons.append(_first_line(error))
            continue
        if not dilate:
            return size, last if last["stride"] <= max_stride else _probe_without_last_stride(name, **size)
        stride = 1 << (max_stride.bit_length() - 1)
        while stride < last["stride"]:
            try:
                lower = _probe(name, output_stride=stride, **size)
            except Exception:  # as above
                stride *= 2
                continue
            if lower["stride"] < last["stride"]:
                return {"output_stride": stride, **size}, lower
            break
        return size, last
    raise ConfigError(f"model.name={name}: not usable as a backbone for images of any size: {reasons[0]}")


def _probe_without_last_stride(name: str, **options: Any) -> dict[str, Any]:
    """As :func:`_probe`, for the network without the stride of its last stage.

    Raises:
        ConfigError: if it has none that can be removed.
    """
    try:
        return _probe(name, remove_last_stride=True, **options)
    except Exception as error:  # AttributeError, RuntimeError, ...
        raise ConfigError(
            f"model.dilate=False: the stride of the last stage of {name} cannot be removed; it can for ResNets without "
            "average pooling in their shortcuts (resnet18, resnet50), MobileNetV2s and DenseNets. Set "
            "model.dilate=true, or raise model.max_stride"
        ) from error


def _probe(name: str, *, remove_last_stride: bool = False, **options: Any) -> dict[str, Any]:
    """Channels, stride and layout of the last feature map: as timm describes them, checked with images of two sizes."""
    import timm

    with torch.device("meta"), torch.no_grad():
        network: Any = timm.create_model(name, pretrained=False, features_only=True, **options).eval()
        channels, stride = network.feature_info.channels()[-1], network.feature_info.reduction()[-1]
        if remove_last_stride:
            _remove_last_stride(network, name)
            stride //= 2
        channels_last = _is_channels_last(network, -1, channels=channels, stride=stride, multiple=stride)
    return {"channels": channels, "stride": stride, "channels_last": channels_last}


def _is_channels_last(network: Any, number: int, *, channels: int, stride: int, multiple: int) -> bool:
    """Whether a map of a network is (batch, rows, cols, channels), checked with images of two sizes.

    Args:
        multiple: the sides of the images are multiples of this.

    Raises:
        ValueError: if it is of another shape.
    """
    # Two sizes, because some networks attend within windows that happen to divide the first.
    for sides in ((64, 96), (160, 224)):
        height, width = (side // multiple * multiple for side in sides)
        rows, cols = height // stride, width // stride
        shape = tuple(network(torch.zeros(1, 3, height, width))[number].shape)
        if shape not in ((1, channels, rows, cols), (1, rows, cols, channels)):
            raise ValueError(f"{height} x {width} px returned {shape}, not {(1, channels, rows, cols)}")
    return bool(shape[1] != channels)


@cache
def _pyramid_options(name: str, max_stride: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for ``timm.create_model``, and the stride, the channels and the layout of the maps of a pyramid.

    Raises:
        ConfigError: if the network has no maps for a pyramid, or accepts images of only one size.
    """
    reasons = []
    for size in _SIZES:
        try:
            return size, _probe_pyramid(name, max_stride, **size)
        except ConfigError:
            raise
        except Exception as error:  # as in _timm_options
            reasons.append(_first_line(error))
    raise ConfigError(f"model.name={name}: not usable with model.neck=fpn for images of any size: {reasons[0]}")


def _probe_pyramid(name: str, max_stride: int, **options: Any) -> dict[str, Any]:
    """The finest map, the coarsest stride and all channels of a pyramid.

    Raises:
        ConfigError: if there are not two maps of different strides to combine.
    """
    import timm

    with torch.device("meta"), torch.no_grad():
        network: Any = timm.create_model(name, pretrained=False, features_only=True, **options).eval()
        strides, channels = network.feature_info.reduction(), network.feature_info.channels()
        first = max((k for k, stride in enumerate(strides) if stride <= max_stride), default=None)
        allowed = [k for k in range(len(strides) - 1) if all(a < b for a, b in itertools.pairwise(strides[k:]))]
        if first not in allowed:
            largest = f"Set model.max_stride={strides[allowed[-1]]}, or model.neck=none" if allowed else ""
            raise ConfigError(
                f"model.max_stride={max_stride}: model.neck=fpn combines maps of at least two strides, the finest of "
                f"at most this one; those of {name} have strides {', '.join(map(str, strides))}. "
                f"{largest or 'Set model.neck=none'}"
            )
        stride, coarsest = strides[first], strides[-1]
        layout = _is_channels_last(network, first, channels=channels[first], stride=stride, multiple=coarsest)
    return {
        "first": first,
        "stride": stride,
        "coarsest": coarsest,
        "map_channels": tuple(channels[first:]),
        "channels_last": layout,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _near(name: str, names: list[str]) -> list[str]:
    """Up to five of ``names`` that contain ``name`` (shortest first) or are similar to it."""
    containing = sorted((n for n in names if name in n), key=len)
    return (containing + [n for n in difflib.get_close_matches(name, names, n=5) if n not in containing])[:5]
