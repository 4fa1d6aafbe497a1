"""Random changes to training images (arXiv:2403.09281, section IV)."""

import math
from dataclasses import dataclass

from headcount.config.fields import nearest_multiples, number


@dataclass
class AugmentConfig:
    """Random crop, scale, flip, color jitter, loss of color, blur, and salt-and-pepper noise."""

    crop_size: int = number(224, 1, 4096)
    """Side of a training crop, in pixels; must be a multiple of the block size and of the model's stride."""
    min_scale: float = number(1.0, 0.05, 8)
    """Smallest side of the window that is cut out and resized to the crop, in crop sizes; below 1 enlarges heads."""
    max_scale: float = number(2.0, 0.05, 8)
    """Largest side of that window, in crop sizes; above 1 shrinks heads."""
    flip: float = number(0.5, 0, 1)
    """Probability of a horizontal flip."""
    jitter: float = number(0.1, 0, 0.99)
    """Maximum relative change of brightness, contrast and saturation, as a fraction."""
    jitter_probability: float = number(0.2, 0, 1)
    """Probability of color jitter."""
    grayscale: float = number(0.0, 0, 1)
    """Probability that a crop loses its color. The paper uses 0. Of several datasets, perhaps only one has gray images
    (ShanghaiTech A has, B has not): a counter then mistakes a gray picture for one of that dataset."""
    blur_size: int = number(5, 1, 4095)
    """Side of the Gaussian blur's kernel, in pixels; must be odd and at most ``crop_size``."""
    blur_probability: float = number(0.2, 0, 1)
    """Probability of a Gaussian blur."""
    salt_pepper: float = number(1e-3, 0, 0.5)
    """Fraction of pixels turned white; the same fraction is turned black."""
    salt_pepper_probability: float = number(0.5, 0, 1)
    """Probability of salt-and-pepper noise."""


def errors(config: AugmentConfig) -> list[str]:
    """Find settings of the augmentation that contradict each other; one message each."""
    found = []
    if config.min_scale > config.max_scale:
        found.append(f"augment.min_scale={config.min_scale}: must not exceed augment.max_scale={config.max_scale}")
    if config.blur_size % 2 == 0:
        found.append(f"augment.blur_size={config.blur_size}: must be odd")
    if config.blur_size > config.crop_size:
        found.append(f"augment.blur_size={config.blur_size}: must be at most augment.crop_size={config.crop_size}")
    return found


def crop_error(crop_size: int, *, block_size: int, stride: int, model: str) -> str | None:
    """Check the size of training crops against the blocks and the model.

    Args:
        crop_size: side of a training crop, in pixels.
        block_size: side of a block, in pixels.
        stride: pixels of the input between two features of the model.
        model: the model's name, for the message.

    Returns:
        What is wrong and the nearest size that fits; None if nothing is wrong.
    """
    step = math.lcm(block_size, stride)
    if crop_size % step == 0:
        return None
    return (
        f"augment.crop_size={crop_size}: must be a multiple of {step} (blocks of {block_size} px, "
        f"{model} works at stride {stride}); {nearest_multiples(crop_size, step)}"
    )
