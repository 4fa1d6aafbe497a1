"""Random augmentation of a training image and its heads (arXiv:2403.09281, section IV).

A square window is cropped and resized, which changes the size of heads; then come flip, color jitter, blur, and salt
and pepper. ``data.points`` moves the heads, because torchvision's key points are mirrored to W - 1 - x and truncated to
integers. Images stay bytes throughout; the model normalizes them on its device.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from headcount.config import AugmentConfig
from headcount.data import points as heads

Image = UInt8[Tensor, "3 height width"]
Window = UInt8[Tensor, "3 window window"]
Crop = UInt8[Tensor, "3 side side"]
Points = Float[Tensor, "_ 2"]

BLUR_SIGMA = (0.1, 5.0)
"""Range of the standard deviation of the Gaussian blur, pixels."""


@dataclass(frozen=True)
class Square:
    """A square part of an image, in its pixels."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class TrainAugment:
    """The paper's augmentation; see ``AugmentConfig`` for the fields."""

    crop_size: int
    min_scale: float = 1.0
    max_scale: float = 2.0
    flip: float = 0.5
    jitter: float = 0.1
    jitter_probability: float = 0.2
    grayscale: float = 0.0
    blur_size: int = 5
    blur_probability: float = 0.2
    salt_pepper: float = 1e-3
    salt_pepper_probability: float = 0.5

    def __call__(self, image: Image, points: Points, generator: Generator) -> tuple[Crop, Points]:
        """Return one random version of an image.

        Args:
            image: of any size.
            points: (x, y) in pixels of the image, inside of it; points outside the crop are dropped.
            generator: the only source of randomness.

        Returns:
            ``crop_size`` x ``crop_size`` pixels, and the points in pixels of this crop.
        """
        square = self.draw_square(image.shape[2], image.shape[1], generator)
        image, points, _ = self.change(*cut_square(image, points, square), generator)
        return image, points

    def draw_square(self, width: int, height: int, generator: Generator) -> Square:
        """Draw the part of an image of this size that becomes the crop."""
        return random_square(width, height, self.crop_size, self.min_scale, self.max_scale, generator)

    def change(self, image: Window, points: Points, generator: Generator) -> tuple[Crop, Points, bool]:
        """Resize a square image to ``crop_size``, and change it randomly.

        Returns:
            As a call, and whether the image was mirrored.
        """
        image, points = resize(image, points, self.crop_size)
        mirrored = happens(self.flip, generator)
        if mirrored:
            image, points = image.flip(-1), heads.flip(points, width=self.crop_size)
        if happens(self.jitter_probability, generator):
            image = jitter_colors(image, self.jitter, generator)
        if self.grayscale and happens(self.grayscale, generator):  # without it, seeds draw what they always drew
            image = remove_color(image)
        if happens(self.blur_probability, generator):
            image = blur(image, self.blur_size, generator)
        if happens(self.salt_pepper_probability, generator):
            image = salt_and_pepper(image, self.salt_pepper, generator)
        return image, points, mirrored


def build_augment(config: AugmentConfig) -> TrainAugment:
    """Build the augmentation that a config describes."""
    return TrainAugment(
        crop_size=config.crop_size,
        min_scale=config.min_scale,
        max_scale=config.max_scale,
        flip=config.flip,
        jitter=config.jitter,
        jitter_probability=config.jitter_probability,
        grayscale=config.grayscale,
        blur_size=config.blur_size,
        blur_probability=config.blur_probability,
        salt_pepper=config.salt_pepper,
        salt_pepper_probability=config.salt_pepper_probability,
    )


def happens(probability: float, generator: Generator) -> bool:
    """Draw whether an event of this probability happens."""
    return uniform(0.0, 1.0, generator) < probability


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def random_square(
    width: int, height: int, crop_size: int, min_scale: float, max_scale: float, generator: Generator
) -> Square:
    """Draw a square whose side is ``crop_size`` times a random factor, at most the short side of the image.

    Args:
        width, height: image size, pixels.
        crop_size: pixels.
        min_scale, max_scale: range of the random factor.
    """
    # Released code: enlarges an image smaller than the window, crops, and shrinks again; here: the
    # largest square of it, because that shows nearly the same after one resampling.
    side = max(1, min(int(crop_size * uniform(min_scale, max_scale, generator)), height, width))
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    return Square(left, top, side)


def cut_square(image: Image, points: Points, square: Square) -> tuple[Window, Points]:
    """Cut a square out of an image.

    Args:
        image: may end at the bottom of the square.
        points: (x, y) in pixels of the image.

    Returns:
        The square, and the points inside it in its own pixels.

    Raises:
        ValueError: if the square reaches beyond the image.
    """
    left, top, side = square.left, square.top, square.side
    height, width = image.shape[1:]
    if left + side > width or top + side > height:
        raise ValueError(f"a square of {side} pixels at ({left}, {top}) reaches beyond an image of {width} x {height}")
    kept, _ = heads.crop(points, left=left, top=top, width=side, height=side)
    return image[:, top : top + side, left : left + side], kept


def resize(image: Window, points: Points, side: int) -> tuple[Crop, Points]:
    """Resize a square image and its points to ``side`` x ``side`` pixels; bicubic overshoot is clamped."""
    size = image.shape[2], image.shape[1]
    # A contiguous copy of the window, channels last: the kernel is a third slower on rows of a larger image.
    images = image.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    image = interpolate(images, (side, side), mode="bicubic", antialias=True)[0]
    return image, heads.scale(points, from_size=size, to_size=(side, side))


def remove_color(image: Image) -> Image:
    """The luminance in all three channels."""
    from torchvision.transforms.v2 import functional as pixels  # slow to import, and rarely needed

    return pixels.rgb_to_grayscale(image, num_output_channels=3)


def jitter_colors(image: Image, amount: float, generator: Generator) -> Image:
    """Change brightness, contrast and saturation, in random order, by factors in [1 - amount, 1 + amount).

    The bytes are those of torchvision's ``adjust_brightness``, ``adjust_contrast`` and ``adjust_saturation``, in less
    than half of the time: one conversion to floating-point numbers and back instead of three.
    """
    # NumPy converts between channels last and channels first faster than torch.
    planes = torch.from_numpy(image.numpy().astype(np.float32, order="C"))
    for change in torch.randperm(3, generator=generator).tolist():
        factor = uniform(1 - amount, 1 + amount, generator)
        if change == 0:
            planes.mul_(factor)
        else:
            gray = planes[0].mul(0.2989).add_(planes[1], alpha=0.587).add_(planes[2], alpha=0.114).floor_()
            planes.mul_(factor).add_(gray.mean() if change == 1 else gray, alpha=1 - factor)
        planes.clamp_(0, 255).floor_()  # As if stored as bytes after each change.
    result = torch.empty_like(image)  # With the same memory layout.
    for channel, plane in zip(result.numpy(), planes.numpy(), strict=True):
        channel[:] = plane
    return result


def blur(image: Image, size: int, generator: Generator) -> Image:
    """Apply a Gaussian blur with a kernel of ``size`` pixels and a random standard deviation from ``BLUR_SIGMA``."""
    # Released code: passes the range of sigma where torchvision expects (sigma_x, sigma_y), so
    # that images are blurred only vertically; here: one sigma from that range for both directions,
    # because that is what the paper describes.
    sigma = uniform(*BLUR_SIGMA, generator)
    radius = size // 2
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    # Weights in steps of 1/128, which 16-bit integers represent exactly: a fifth of the time of
    # torchvision's floating-point blur, and within three gray levels of it even on white noise.
    weights = (128 * kernel / kernel.sum()).round().int().tolist()
    weights[radius] += 128 - sum(weights)
    result = image.permute(1, 2, 0)
    for axis in (0, 1):
        n = result.shape[axis]
        before, after = result.narrow(axis, 1, radius), result.narrow(axis, n - 1 - radius, radius)
        mirrored = torch.cat([before.flip(axis), result, after.flip(axis)], axis).short()
        total = mirrored.narrow(axis, radius, n) * weights[radius]
        for k in range(radius):
            total.add_(mirrored.narrow(axis, k, n), alpha=weights[k])
            total.add_(mirrored.narrow(axis, 2 * radius - k, n), alpha=weights[k])
        result = total.add_(64).bitwise_right_shift_(7).to(torch.uint8)
    return result.permute(2, 0, 1)


def salt_and_pepper(image: Image, share: float, generator: Generator) -> Image:
    """Set a ``share`` of the pixels to white and as many to black."""
    # Released code: each channel separately, which gives colored dots; here: whole pixels, because
    # salt and pepper are not colored; the share of changed values is the same.
    height, width = image.shape[1:]
    spots = torch.randint(height * width, (2, round(share * height * width)), generator=generator)
    image = image.clone()
    for value, spot in zip((255, 0), spots, strict=True):
        image[:, spot // width, spot % width] = value
    return image
