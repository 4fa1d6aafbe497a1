"""Image and heads move together; each change does what its setting says."""

import math
from dataclasses import fields, replace

import pytest
import torch
import torchvision.transforms.v2.functional as pixels
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode

from headcount.config import AugmentConfig
from headcount.data import augment
from headcount.data.augment import TrainAugment, build_augment

# The geometry alone: window, resize, and a flip as wished.
GEOMETRY = TrainAugment(
    crop_size=64, flip=0.0, jitter_probability=0.0, blur_probability=0.0, salt_pepper_probability=0.0
)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def texture(height: int, width: int) -> torch.Tensor:
    """A colorful picture without a symmetry, channels last in memory as decoded ones."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x * 5 % 256, y * 3 % 256, (x + 2 * y) % 256], dim=-1)
    return image.to(torch.uint8).permute(2, 0, 1)


def spots(centers: torch.Tensor, *, height: int, width: int, radius: float) -> torch.Tensor:
    """Soft white discs on black, one around each point."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.zeros(height, width)
    for cx, cy in centers.tolist():
        image = torch.maximum(image, torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2)))
    return (255 * image).to(torch.uint8).expand(3, -1, -1)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (0.5, 0.6), (1.0, 1.0)])
def test_heads_stay_where_the_picture_shows_them(flip: float, low: float, high: float) -> None:
    """The brightest place around each returned point is the point itself, to a third of a pixel."""
    steps = replace(GEOMETRY, flip=flip, min_scale=low, max_scale=high)
    grid = torch.cartesian_prod(torch.arange(20.25, 200, 30), torch.arange(18.5, 150, 30))
    picture = spots(grid, height=160, width=210, radius=3)
    seen = 0
    for seed in range(12):
        image, points = steps(picture, grid, chance(seed))
        for x, y in points.tolist():
            left, top = max(0, int(x) - 4), max(0, int(y) - 4)
            patch = image[0, top : int(y) + 5, left : int(x) + 5].double().square().square()
            if min(patch.shape) < 9:  # Cut off by the border.
                continue
            rows, cols = torch.arange(patch.shape[0]) + top + 0.5, torch.arange(patch.shape[1]) + left + 0.5
            center = (patch.sum(0) @ cols.double() / patch.sum(), patch.sum(1) @ rows.double() / patch.sum())
            assert math.dist(center, (x, y)) < 0.34
            seen += 1
    assert seen > 5


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.data())
def test_any_image_gives_a_crop_of_the_asked_size_with_heads_inside(
    width: int, height: int, seed: int, data: st.DataObject
) -> None:
    x, y = (st.floats(0, size, exclude_max=True, width=32) for size in (width, height))
    points = torch.tensor(data.draw(st.lists(st.tuples(x, y), max_size=10)), dtype=torch.float32).reshape(-1, 2)
    low, high = data.draw(st.sampled_from([(1.0, 2.0), (0.01, 0.02), (0.5, 1.0), (3.0, 3.0)]))
    steps = TrainAugment(crop_size=32, min_scale=low, max_scale=high)
    image, kept = steps(texture(height, width), points, chance(seed))
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert len(kept) <= len(points)
    assert bool(((kept >= 0) & (kept < 32)).all())


def random_window(
    image: torch.Tensor, points: torch.Tensor, low: float, high: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    square = augment.random_square(image.shape[2], image.shape[1], 40, low, high, generator)
    return augment.cut_square(image, points, square)


def test_a_window_drops_exactly_the_heads_it_cuts_off() -> None:
    points = torch.cartesian_prod(torch.arange(0.5, 100), torch.arange(0.5, 80))
    image, kept = random_window(texture(80, 100), points, 1.0, 1.5, chance(3))
    side = image.shape[1]
    assert 40 <= side <= 60
    assert len(kept) == side * side  # One head in each pixel.


def test_a_window_beyond_the_image_is_refused() -> None:
    for left, top in ((61, 0), (0, 41)):
        with pytest.raises(ValueError, match="reaches beyond an image of 100 x 80"):
            augment.cut_square(texture(80, 100), torch.zeros(0, 2), augment.Square(left, top, 40))


def test_windows_are_as_large_as_the_scale_says_and_lie_everywhere() -> None:
    picture = texture(100, 100)
    corner = picture.clone()
    corner[:, -1, -1] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    sides, corners = [], 0
    for seed in range(300):
        image, _ = random_window(corner, torch.zeros(0, 2), 1.0, 2.0, chance(seed))
        sides.append(image.shape[1])
        corners += bool((image[:, -1, -1] == torch.tensor([1, 2, 3])).all())
    assert min(sides) == 40
    assert max(sides) == 79
    assert 57 < sum(sides) / len(sides) < 62
    assert corners > 0


def test_a_flip_mirrors_the_picture() -> None:
    plain, _ = replace(GEOMETRY, flip=0.0)(texture(64, 64), torch.zeros(0, 2), chance())
    mirrored, _ = replace(GEOMETRY, flip=1.0)(texture(64, 64), torch.zeros(0, 2), chance())
    assert torch.equal(mirrored, plain.flip(-1))
    assert not torch.equal(mirrored, plain)


@pytest.mark.parametrize(("side", "to"), [(97, 64), (64, 64), (40, 64)])
def test_resizing_is_torchvisions(side: int, to: int) -> None:
    image = torch.randint(256, (3, side + 9, side + 5), generator=chance(), dtype=torch.uint8)[:, 4:-5, 3:-2]
    resized, _ = augment.resize(image, torch.zeros(0, 2), to)
    assert torch.equal(resized, pixels.resize(image, [to, to], InterpolationMode.BICUBIC, antialias=True))


def test_resizing_clamps_what_the_kernel_overshoots() -> None:
    """A hard edge between 0 and 255: wrapped bytes would put dark pixels into the bright half."""
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    image[:, :, 10:] = 255
    larger, _ = augment.resize(image, torch.zeros(0, 2), 50)
    profile = larger[0, 25].int()
    assert profile[:22].max() < 20
    assert profile[28:].min() > 235


def test_an_image_of_one_pixel_fills_the_crop() -> None:
    image, points = GEOMETRY(torch.full((3, 1, 1), 77, dtype=torch.uint8), torch.tensor([(0.5, 0.25)]), chance())
    assert (image == 77).all()
    assert points.tolist() == [[32.0, 16.0]]


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_blur_is_torchvisions_but_for_a_few_grey_levels(size: int) -> None:
    noise = torch.randint(0, 256, (3, 40, 50), generator=chance(), dtype=torch.uint8)
    for seed in range(5):
        sigma = augment.uniform(*augment.BLUR_SIGMA, chance(seed))
        expected = pixels.gaussian_blur(noise, [size, size], [sigma, sigma])
        difference = (augment.blur(noise, size, chance(seed)).int() - expected.int()).abs()
        assert difference.max() <= 3
        assert difference.float().mean() < 0.5


def test_blur_leaves_flat_colors_alone() -> None:
    for value in (0, 1, 254, 255):
        flat = torch.full((3, 16, 16), value, dtype=torch.uint8)
        assert torch.equal(augment.blur(flat, 5, chance()), flat)


def test_salt_and_pepper_are_whole_pixels_of_the_asked_share() -> None:
    gray = torch.full((3, 200, 300), 128, dtype=torch.uint8)
    result = augment.salt_and_pepper(gray, 0.01, chance())
    white, black = (result == 255).all(0), (result == 0).all(0)
    assert 560 <= int(white.sum()) <= 600
    assert 560 <= int(black.sum()) <= 600
    assert torch.equal((result != 128).any(0), white | black)
    assert (gray == 128).all()


@pytest.mark.parametrize("amount", [0.1, 1.0])
def test_jitter_is_torchvisions(amount: float) -> None:
    noise = torch.randint(0, 256, (40, 51, 3), generator=chance(), dtype=torch.uint8).permute(2, 0, 1)
    changes = (pixels.adjust_brightness, pixels.adjust_contrast, pixels.adjust_saturation)
    for seed in range(40):
        generator = chance(seed)
        expected = picture = (texture(40, 51), noise, noise.flip(-1), noise.contiguous())[seed % 4]
        for k in torch.randperm(3, generator=generator).tolist():
            expected = changes[k](expected, augment.uniform(1 - amount, 1 + amount, generator))
        result = augment.jitter_colors(picture, amount, chance(seed))
        assert torch.equal(result, expected)
        assert result.stride() == picture.stride()


def test_jitter_moves_colors_by_at_most_its_amount() -> None:
    gray = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = [augment.jitter_colors(gray, 0.1, chance(seed)).float().mean().item() for seed in range(60)]
    assert 87 <= min(values) < 93  # Bytes are cut, not rounded, after each of the three.
    assert 107 < max(values) <= 111
    assert torch.equal(augment.jitter_colors(gray, 0.0, chance()), gray)


def test_each_change_happens_as_often_as_its_probability() -> None:
    """With all but one switched off, a crop of the whole image differs from it in that share of cases."""
    picture, none = texture(64, 64), torch.zeros(0, 2)
    still = replace(GEOMETRY, min_scale=1.0, max_scale=1.0)
    for name in ("flip", "jitter_probability", "grayscale", "blur_probability", "salt_pepper_probability"):
        steps = replace(still, **{name: 0.3}, salt_pepper=0.01)
        changed = sum(not torch.equal(steps(picture, none, chance(seed))[0], picture) for seed in range(300))
        assert 60 < changed < 120, name


def test_a_crop_without_color_has_three_equal_channels() -> None:
    steps = replace(GEOMETRY, grayscale=1.0)
    crop, _ = steps(texture(64, 64), torch.zeros(0, 2), chance())
    assert torch.equal(crop[0], crop[1])
    assert torch.equal(crop[1], crop[2])
    assert crop.shape == (3, 64, 64)


def test_the_generator_alone_decides() -> None:
    steps = TrainAugment(crop_size=32)
    picture, points = texture(100, 120), torch.tensor([(50.0, 60.0)])
    torch.manual_seed(0)
    one = steps(picture, points, chance(5))
    torch.manual_seed(1)
    same, other = steps(picture, points, chance(5)), steps(picture, points, chance(6))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_every_field_of_the_config_arrives() -> None:
    values = {"crop_size": 96, "blur_size": 7} | {
        f.name: 0.01 * k for k, f in enumerate(fields(AugmentConfig), 1) if f.type is float or f.type == "float"
    }
    config = AugmentConfig(**values)
    built = build_augment(config)
    assert {f.name: getattr(built, f.name) for f in fields(TrainAugment)} == vars(config)
