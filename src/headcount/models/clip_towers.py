"""The networks of open_clip by name, and its image encoders that are timm networks with feature maps.

Of open_clip's models, these are the ConvNeXts and the convolutional MobileCLIPs. Transformers are not among them: those
of OpenAI's CLIP are built by ``clip``.
"""

from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import open_clip
import timm
import torch
from jaxtyping import Float
from open_clip.pretrained import list_pretrained_tags_by_model
from torch import Tensor, nn

from headcount.config import ClipEncodersConfig, ClipTowerConfig, ConfigError

Clip = TypeVar("Clip", bound=ClipEncodersConfig)

_OURS = {
    "clip_rn50": "RN50",
    "clip_rn101": "RN101",
    "clip_rn50x4": "RN50x4",
    "clip_rn50x16": "RN50x16",
    "clip_vit_b16": "ViT-B-16",
    "clip_vit_b32": "ViT-B-32",
    "clip_vit_l14": "ViT-L-14",
}
# The options of a text encoder that ``clip.text_tower`` builds; others, and other tokenizers, need code of their own.
_TEXT_OPTIONS = {"context_length", "vocab_size", "width", "heads", "layers", "no_causal_mask"}


def architecture(config: ClipEncodersConfig) -> str:
    """open_clip's name of the network."""
    return _OURS.get(config.architecture, config.architecture)


def library_config(config: ClipEncodersConfig) -> dict[str, Any]:
    """What open_clip's table says of the network.

    Raises:
        ConfigError: if it has no such network, or one that cannot be built from its parts here.
    """
    library: Any = open_clip.get_model_config(architecture(config))
    if isinstance(config, ClipTowerConfig):
        if library is None or "timm_model_name" not in library["vision_cfg"]:
            problem = "open_clip has no such model" if library is None else "its image encoder is no timm network"
            raise ConfigError(f"model.name={config.name}: {problem}; there are {', '.join(_usable_names())}")
        if not set(library["text_cfg"]) <= _TEXT_OPTIONS:
            raise ConfigError(
                f"model.name={config.name}: its text encoder is not like CLIP's; there are {', '.join(_usable_names())}"
            )
    return dict(library)


def follow_tag(config: Clip) -> Clip:
    """The config with the tag that open_clip lists first instead of ``pretrained``.

    Raises:
        ConfigError: if there are no pretrained weights, or no such network.
    """
    if not isinstance(config, ClipTowerConfig):
        return config
    library_config(config)
    if config.weights != "pretrained":
        return config
    tags = list_pretrained_tags_by_model(architecture(config))
    if not tags:
        raise ConfigError(
            f"model.weights=pretrained: open_clip lists none of {config.name}; set model.weights to a file or to none"
        )
    return replace(config, weights=str(tags[0]))


@cache
def _usable_names() -> list[str]:
    """The names of networks that the table does not exclude."""
    names = []
    for name in open_clip.list_models():
        library: Any = open_clip.get_model_config(name)
        network = str(library["vision_cfg"].get("timm_model_name", ""))
        if network.startswith(("convnext", "fastvit")) and set(library["text_cfg"]) <= _TEXT_OPTIONS:
            names.append(name)
    return names


class TimmTower(nn.Module):
    """An image encoder of open_clip that is a timm network, up to its last feature map.

    Args:
        name: timm's name of the network.

    Raises:
        ConfigError: if the network does not return feature maps for images of any size.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.channels, self.stride = _probe(name)
        self.trunk: Any = timm.create_model(name, num_classes=0)
        self.trunk.head = nn.Identity()  # its normalization belongs to the pooled features

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels rows cols"]:
        """Compute one feature per complete ``stride`` x ``stride`` square of the image."""
        height, width = (size // self.stride * self.stride for size in images.shape[-2:])
        maps: Tensor = self.trunk.forward_features(images[..., :height, :width])
        return maps


@cache  # a checkpoint builds its network twice
def _probe(name: str) -> tuple[int, int]:
    """Channels and stride of the last feature map, found on the meta device, which computes shapes but no values."""
    height, width = 256, 384
    try:
        with torch.device("meta"), torch.no_grad():
            network: Any = timm.create_model(name, num_classes=0).eval()
            shape = tuple(network.forward_features(torch.zeros(1, 3, height, width)).shape)
    except (AssertionError, RuntimeError, ValueError) as error:  # a transformer of one input size
        raise _no_maps(name) from error
    if len(shape) != 4 or height % shape[2] or height // shape[2] * shape[3] != width:
        raise _no_maps(name)
    return shape[1], height // shape[2]


def _no_maps(name: str) -> ConfigError:
    return ConfigError(
        f"model=clip: the image encoder {name} gives no feature maps of images of any size; there are "
        f"{', '.join(_usable_names())}; CLIP's own transformers are model=clip_vit_b16, clip_vit_b32 and clip_vit_l14"
    )
