"""The plain versions that the benchmarks compare with: each is the usual, direct way to write the same computation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as pixels
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from headcount.data import points as heads
from headcount.data.augment import BLUR_SIGMA, TrainAugment, happens, uniform
from headcount.losses.sinkhorn import TransportSolution

REGULARIZATION = 10.0
"""Entropic regularization of the transport problem, in squared pixels."""

ITERATIONS = 100


def dense_sinkhorn(
    points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
) -> TransportSolution:
    """Sinkhorn's iteration with a dense kernel and a dense cost matrix, one image after the other.

    Args:
        points: (x, y) of the heads of each image, in pixels; may be empty.
        blocks: share of each block, summing to 1 in each image.
        block_size: side of a block, in pixels.

    Source: arXiv:1306.0895, algorithm 1.
    """
    potentials, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
    for i, p in enumerate(points):
        if not len(p):
            continue
        cost = squared_distances(p, blocks[i], block_size=block_size)
        kernel = (cost / -REGULARIZATION).exp_()
        a, b = 1 / len(p), blocks[i].flatten()
        u = torch.full_like(p[:, 0], a)
        for _ in range(ITERATIONS):
            v = b / (kernel.T @ u + 1e-16)
            u = a / (kernel @ v + 1e-16)
        potentials[i] = (REGULARIZATION * torch.log(v + 1e-16)).view_as(potentials[i])
        costs[i] = u @ (kernel.mul_(cost) @ v)
        del cost, kernel  # before those of the next image are allocated
    return TransportSolution(potentials, costs)


def log_sinkhorn(
    points: list[Float[Tensor, "_ 2"]], blocks: Float[Tensor, "batch rows cols"], *, block_size: int
) -> TransportSolution:
    """The same iteration on logarithms: no kernel, but two sums of exponentials per iteration.

    Args and result: as :func:`dense_sinkhorn`.
    """
    potentials, costs = torch.zeros_like(blocks), blocks.new_zeros(len(blocks))
    for i, p in enumerate(points):
        if not len(p):
            continue
        cost = squared_distances(p, blocks[i], block_size=block_size)
        a, b = p.new_tensor(1 / len(p)).log(), blocks[i].flatten().log()
        f = torch.zeros_like(p[:, :1])
        for _ in range(ITERATIONS):
            g = b - torch.logsumexp(f - cost / REGULARIZATION, 0)
            f = (a - torch.logsumexp(g - cost / REGULARIZATION, 1))[:, None]
        potentials[i] = (REGULARIZATION * (g - g @ blocks[i].flatten())).view_as(potentials[i])
        costs[i] = ((f + g - cost / REGULARIZATION).exp() * cost).sum()
    return TransportSolution(potentials, costs)


def squared_distances(
    points: Float[Tensor, "n 2"], blocks: Float[Tensor, "rows cols"], *, block_size: int
) -> Float[Tensor, "n blocks"]:
    """Squared distance of each point and the center of each block, in squared pixels."""
    row, col = (block_size * (torch.arange(k, device=blocks.device) + 0.5) for k in blocks.shape)
    return ((points[:, 1:] - row).square()[:, :, None] + (points[:, :1] - col).square()[:, None, :]).flatten(1)


def load_sample(
    file: Path, points: Float[Tensor, "n 2"], augment: TrainAugment, generator: torch.Generator
) -> Float[Tensor, "3 crop crop"]:
    """A training crop by Pillow and float tensors, normalization included.

    The head positions are transformed too, but not returned. With the same ``generator`` it makes the same random
    choices as :class:`headcount.data.augment.TrainAugment`.
    """
    crop = augment.crop_size
    image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1).contiguous().float() / 255
    height, width = image.shape[1:]
    side = min(int(crop * uniform(augment.min_scale, augment.max_scale, generator)), height, width)
    top, left = (int(torch.randint(n - side + 1, (), generator=generator)) for n in (height, width))
    image = pixels.crop(image, top, left, side, side)
    points, _ = heads.crop(points, left=left, top=top, width=side, height=side)
    image = pixels.resize(image, [crop, crop], pixels.InterpolationMode.BICUBIC, antialias=True)
    points = heads.scale(points, from_size=(side, side), to_size=(crop, crop))
    if happens(augment.flip, generator):
        image, points = pixels.horizontal_flip(image), heads.flip(points, width=crop)
    if happens(augment.jitter_probability, generator):
        changes = (pixels.adjust_brightness, pixels.adjust_contrast, pixels.adjust_saturation)
        for k in torch.randperm(3, generator=generator).tolist():
            image = changes[k](image, uniform(1 - augment.jitter, 1 + augment.jitter, generator))
    if happens(augment.blur_probability, generator):
        sigma = uniform(*BLUR_SIGMA, generator)
        image = pixels.gaussian_blur(image, [augment.blur_size, augment.blur_size], [sigma, sigma])
    if happens(augment.salt_pepper_probability, generator):
        noise = torch.rand(image.shape, generator=generator)
        image = torch.where(noise < augment.salt_pepper, 1.0, image)
        image = torch.where(noise > 1 - augment.salt_pepper, 0.0, image)
    return pixels.normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def classify_by_cosine(
    head: Any, features: Float[Tensor, "batch channels h w"], *, factor: float
) -> tuple[Float[Tensor, "batch 1 rows cols"], Float[Tensor, "batch bins rows cols"]]:
    """CLIP-EBC's head as its equations are written: up-sample, project, normalize, scale, softmax, expectation.

    Args:
        head: a :class:`headcount.models.heads.CosineClassifier`, whose weights are used.
        features: output of the backbone.
        factor: blocks per feature along each axis.

    Returns:
        Expected heads per block, and the logits.

    Source: arXiv:2403.09281, section III.
    """
    images = head.projection(F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False))
    images = images / images.norm(dim=1, keepdim=True)
    texts = head.text_features / head.text_features.norm(dim=1, keepdim=True)
    logits = head.logit_scale.exp() * torch.einsum("bdhw,nd->bnhw", images, texts)
    counts = (logits.float().softmax(dim=1) * head.representatives.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    return counts, logits
