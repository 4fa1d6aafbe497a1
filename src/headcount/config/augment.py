"""Random changes to training images (arXiv:2403.09281, section IV)."""

from dataclasses import dataclass

from headcount.config.fields import number


@dataclass
class AugmentConfig:
    """Random changes to training images (arXiv:2403.09281, section IV)."""

    crop_size: int = number(224, 1)
    """Side of a training crop, pixels; a multiple of the block size."""
    min_scale: float = number(1.0, 0.05)
    """Least side of the window that is cut out, in crop sizes; below 1 enlarges heads."""
    max_scale: float = number(2.0, 0.05)
    """Greatest side of the window that is cut out, in crop sizes; above 1 shrinks heads."""
    flip: float = number(0.5, 0, 1)
    """Probability of a left-right flip."""
    jitter: float = number(0.1, 0, 0.99)
    """Range of brightness, contrast and saturation changes, as a share."""
    jitter_probability: float = number(0.2, 0, 1)
    blur_size: int = number(5, 1)
    """Side of the Gaussian blur's kernel, pixels, odd."""
    blur_probability: float = number(0.2, 0, 1)
    salt_pepper: float = number(1e-3, 0, 0.5)
    """Share of pixels turned white, and as many black."""
    salt_pepper_probability: float = number(0.5, 0, 1)


def errors(config: AugmentConfig) -> list[str]:
    """Settings of the augmentation that contradict each other."""
    found = []
    if config.min_scale > config.max_scale:
        found.append(f"augment.min_scale={config.min_scale}: must not exceed augment.max_scale={config.max_scale}")
    if config.blur_size % 2 == 0:
        found.append(f"augment.blur_size={config.blur_size}: must be odd")
    if config.blur_size > config.crop_size:
        found.append(f"augment.blur_size={config.blur_size}: must be at most augment.crop_size={config.crop_size}")
    return found
