"""CLIP's published weights: read them from a tag or a file, and load them into the image and the text encoder."""

import math
import os
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from headcount.config import ClipEncodersConfig, ConfigError
from headcount.models.clip_towers import architecture
from headcount.models.hub import quick_hub
from headcount.models.weights import read_state_dict


def interpolate_positions(
    positions: Float[Tensor, "places width"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new_places width"]:
    """Interpolate position embeddings to another grid of patches: bicubic, no antialiasing, as in the released code.

    Args:
        positions: the embedding of the class token, which is not changed, then those of the patches, row by row.
        grid: rows and columns of patches in ``positions``.
        new_grid: rows and columns of patches in the result.
    """
    if tuple(grid) == tuple(new_grid):
        return positions
    maps = positions[1:].T.unflatten(1, tuple(grid))[None]
    maps = F.interpolate(maps.float(), size=tuple(new_grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], maps[0].flatten(1).T.to(positions.dtype)])


def read_weights(config: ClipEncodersConfig) -> Mapping[str, Tensor]:
    """Read the weights of a tag (downloaded if necessary) or a file, with open_clip's names.

    Raises:
        ConfigError: if they cannot be downloaded.
        CheckpointError: if the file is damaged.
    """
    file = os.path.expanduser(config.weights)
    if not os.path.isfile(file):
        file = _download(config)
    state = read_state_dict(file)
    # Checkpoints of distributed runs, and models with a separate text tower, add a prefix to the names.
    return {k.removeprefix("module.").removeprefix("text."): v for k, v in state.items()}


def _download(config: ClipEncodersConfig) -> str:
    network = architecture(config)
    tag = get_pretrained_cfg(network, config.weights)
    try:
        with quick_hub():
            return str(download_pretrained(tag))
    except Exception as error:  # the hub raises many kinds of errors when offline
        source = f"https://huggingface.co/{tag.get('hf_hub', '')}".rstrip("/")
        archive = f" (or {tag['url']})" if tag.get("url") else ""
        raise ConfigError(
            f"model.weights={config.weights}: {network}'s weights could not be downloaded "
            f"({type(error).__name__}). Without a network connection, download open_clip_model.safetensors and "
            f"open_clip_config.json from {source} on another machine{archive}, copy both to a folder of this one, and "
            "set model.weights=FILE to the first; or train from scratch with model.weights=none"
        ) from error


def load_encoders(
    image: nn.Module, text: nn.Module, state: Mapping[str, Tensor], config: ClipEncodersConfig, *, pooled: bool = False
) -> None:
    """Load ``state`` into both encoders; apart from unused layers, its keys must be exactly theirs.

    Args:
        pooled: whether the layers are used that pool and project the features of an image.

    Raises:
        ConfigError: if they are the weights of another network.
    """
    state = dict(state)
    positions = state.get("visual.positional_embedding")
    if positions is not None and isinstance(image, VisionTransformer):
        side = math.isqrt(len(positions) - 1)
        if side * side == len(positions) - 1:
            state["visual.positional_embedding"] = interpolate_positions(
                positions.float(), (side, side), image.grid_size
            )
    # Layers for scaling, pooling and projecting, which are not used; OpenAI's archives also contain sizes.
    unused = (
        *("logit_scale", "logit_bias", "visual.head.", "visual.trunk.head."),
        *("input_resolution", "context_length", "vocab_size", "attn_mask"),
        *(() if pooled else ("visual.attnpool.", "visual.proj")),
    )
    own = {f"visual.{k}": v for k, v in image.state_dict().items()} | dict(text.state_dict())
    own = {k: v for k, v in own.items() if not k.startswith(unused)}
    state = {k: v for k, v in state.items() if not k.startswith(unused)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    strange = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    if missing or strange or wrong:
        problem = (
            f"{missing[0]} is missing"
            if missing
            else f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
            if wrong
            else f"{strange[0]} is not part of {config.architecture}"
        )
        raise ConfigError(
            f"model.weights={config.weights}: not the weights of {architecture(config)} in these sizes: "
            f"{problem} ({len(missing)} missing, {len(wrong)} of another shape, {len(strange)} unknown)"
        )
    filled = {k: state.get(k, v).float() if v.is_floating_point() else state.get(k, v) for k, v in own.items()}
    visual = {k.removeprefix("visual."): v for k, v in filled.items() if k.startswith("visual.")}
    image.load_state_dict(visual, strict=False)  # all but the unused layers, as checked above
    text.load_state_dict({k: v for k, v in filled.items() if not k.startswith("visual.")}, strict=False)
