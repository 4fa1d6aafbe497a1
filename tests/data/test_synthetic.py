"""The generated crowds: what is annotated is there, is visible, and never changes."""

import numpy as np
import pytest
import torch

from headcount.config import SyntheticConfig
from headcount.data.references import BlobCounter
from headcount.data.synthetic import MIN_HEAD, MIN_VISIBLE, Blob, Canvas, Scene, draw_crowd, draw_scene
from headcount.types import Sample

CONFIG = SyntheticConfig()
RED, BLUE = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(i, config=CONFIG, split="train") for i in range(36)]


# ----------------------------------------------------------------------------------------- the dataset


def test_an_image_depends_on_seed_split_and_index_alone() -> None:
    first = draw_crowd(3, config=CONFIG, split="train")
    again = draw_crowd(3, config=SyntheticConfig(train_images=7, val_images=1, test_images=2), split="train")
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.points, again.points)
    others = [
        draw_crowd(3, config=CONFIG, split="val"),
        draw_crowd(3, config=CONFIG, split="test"),
        draw_crowd(4, config=CONFIG, split="train"),
        draw_crowd(3, config=SyntheticConfig(seed=1), split="train"),
    ]
    images = [first.image, *(other.image for other in others)]
    assert len({image.numpy().tobytes() for image in images}) == 5
    # Not the same scene in other light either.
    assert len({other.points.numpy().tobytes() for other in [first, *others]}) == 5


def test_sample_names_tell_split_and_index() -> None:
    assert draw_crowd(12, config=CONFIG, split="val").name == "val_0012"


@pytest.mark.parametrize(("width", "height"), [(32, 32), (33, 201), (64, 48), (500, 40), (384, 288)])
def test_every_size_is_filled_and_points_lie_inside(width: int, height: int) -> None:
    config = SyntheticConfig(width=width, height=height, max_people=60)
    heads = 0
    for index in range(6):
        sample = draw_crowd(index, config=config, split="test")
        assert sample.image.shape == (3, height, width)
        assert sample.image.dtype == torch.uint8
        assert sample.points.dtype == torch.float32
        assert sample.points.ndim == 2
        assert bool((sample.points >= 0).all())
        assert bool((sample.points < torch.tensor([width, height])).all())
        assert float(sample.image.float().std()) > 5
        heads += len(sample.points)
    assert heads > 0


@pytest.mark.slow
def test_counts_are_long_tailed_from_nobody_to_the_maximum() -> None:
    small = SyntheticConfig(width=96, height=72, max_people=40)
    counts = np.array([len(draw_crowd(i, config=small, split="train").points) for i in range(200)])
    assert counts.max() <= 40
    assert counts.max() > 20
    assert 0.03 < (counts == 0).mean() < 0.16
    assert 1.2 * np.median(counts) < counts.mean() < 20


def test_one_person_at_most_when_asked() -> None:
    config = SyntheticConfig(max_people=1, width=64, height=64)
    counts = {len(draw_crowd(i, config=config, split="train").points) for i in range(40)}
    assert counts == {0, 1}


@pytest.mark.slow
def test_an_image_without_people_still_shows_things(scenes: list[Scene]) -> None:
    empty = [scene for scene in scenes if not scene.people]
    assert empty
    for scene in empty:
        # Neighboring pixels differ strongly somewhere: edges, not only a gradient and noise.
        assert np.abs(np.diff(scene.image.astype(int), axis=2)).max() > 40


def test_near_heads_are_lower_and_larger(scenes: list[Scene]) -> None:
    slopes = []
    for scene in scenes:
        if len(scene.people) >= 10:
            y, size = np.array([(p.y, p.size) for p in scene.people]).T
            slopes.append(np.polyfit(y, size, 1)[0])
    assert len(slopes) > 20
    assert min(slopes) > 0
    sizes = np.array([p.size for scene in scenes for p in scene.people])
    assert MIN_HEAD <= sizes.min() < 7
    assert 15 < sizes.max() < 30


def test_annotated_heads_are_visible(scenes: list[Scene]) -> None:
    visible = np.array([p.visible for scene in scenes for p in scene.people])
    assert visible.min() >= MIN_VISIBLE
    assert visible.max() <= 1 + 1e-5
    # And the crowds are real crowds: some heads are partly hidden.
    assert (visible < 0.8).sum() > 20


def test_most_blocks_hold_few_heads(scenes: list[Scene]) -> None:
    blocks = [(k, int(p.y // 8), int(p.x // 8)) for k, scene in enumerate(scenes) for p in scene.people]
    _, counts = np.unique(np.array(blocks), axis=0, return_counts=True)
    assert counts.max() >= 2
    assert (counts <= 4).mean() > 0.98


@pytest.mark.parametrize(
    ("config", "split", "message"),
    [
        (CONFIG, "eval", "split='eval': the synthetic dataset has train, val, test"),
        (SyntheticConfig(width=31), "train", "width=31, height=288: both must be at least 32 px"),
    ],
)
def test_refusals(config: SyntheticConfig, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_crowd(0, config=config, split=split)


# ------------------------------------------------------------------------------------------ the painter


def square(x: float, y: float, *, half: float = 5.0, color: np.ndarray = RED, opacity: float = 1.0) -> Blob:
    """Nearly a square: straight flanks, rounded by the last pixel only."""
    return Blob(x, y, half, half, color, color, relief=0.0, opacity=opacity)


def canvas() -> Canvas:
    return Canvas(height=40, width=60, light=np.zeros(2))


def test_an_ellipse_covers_its_area_around_its_center() -> None:
    page = canvas()
    page.paint(Blob(20.25, 15.5, 8.0, 12.0, RED, RED, relief=0.0))
    covered = 1 - page.free
    assert covered.sum() == pytest.approx(np.pi * 8 * 12, rel=0.02)
    y, x = np.mgrid[:40, :60] + 0.5
    assert (covered * x).sum() / covered.sum() == pytest.approx(20.25, abs=0.05)
    assert (covered * y).sum() / covered.sum() == pytest.approx(15.5, abs=0.05)


def test_visible_share_of_free_hidden_half_hidden_and_outside_shapes() -> None:
    page = canvas()
    head = square(30.0, 20.0)
    assert page.visible_share(head) == pytest.approx(1)
    left_half = Blob(15.0, 20.0, 15.0, 40.0, BLUE, BLUE, power=400)  # everything about x < 30, straight at y = 20
    page.paint(left_half)
    assert page.visible_share(head) == pytest.approx(0.5, abs=0.05)
    page.paint(square(30.0, 20.0, half=12.0))
    assert page.visible_share(head) == pytest.approx(0, abs=1e-6)
    assert page.visible_share(square(-30.0, 20.0)) == 0


def test_what_is_painted_first_stays_in_front() -> None:
    page = canvas()
    page.paint(square(30.0, 20.0, color=RED))
    page.paint(square(33.0, 20.0, half=8.0, color=BLUE))
    page.paint(square(500.0, 20.0, color=RED))  # outside: nothing happens
    picture = page.over(np.full((3, 40, 60), 0.5))
    assert picture[:, 20, 30].tolist() == [1, 0, 0]
    assert picture[:, 20, 38].tolist() == [0, 0, 1]
    assert picture[:, 2, 2].tolist() == [0.5, 0.5, 0.5]


def test_half_opaque_paint_mixes_with_what_lies_behind() -> None:
    page = canvas()
    page.paint(square(30.0, 20.0, color=RED, opacity=0.25))
    assert page.over(np.ones((3, 40, 60)))[:, 20, 30] == pytest.approx([1, 0.75, 0.75])


# ------------------------------------------------------------------------------------- the blob counter


def disks(n: int, *, seed: int) -> Sample:
    """``n`` white disks of radius 6 on black, none touching, and specks of two pixels."""
    rng = np.random.default_rng(seed)
    image = np.zeros((96, 128), np.uint8)
    y, x = np.mgrid[:96, :128]
    places = rng.permutation(6 * 8)[:n]
    centers = np.stack([places % 8 * 16 + 8, places // 8 * 16 + 8], axis=1)
    for a, b in centers:
        image[(x - a) ** 2 + (y - b) ** 2 <= 36] = 255
    for place in rng.permutation(6 * 8)[:9]:
        image[place // 8 * 16, place % 8 * 16 : place % 8 * 16 + 2] = 255  # in the corners between disks
    return Sample(torch.from_numpy(image).expand(3, -1, -1), torch.from_numpy(centers).float(), f"disks_{seed}")


def test_blob_counter_counts_disks_and_ignores_specks() -> None:
    counter = BlobCounter.fit([disks(n, seed=n) for n in (0, 3, 10, 17)])
    unseen = {n: counter.count(disks(n, seed=100 + n).image) for n in (0, 1, 8, 20)}
    assert unseen == {0: 0, 1: 1, 8: 8, 20: 20}


def test_blob_counter_finds_dark_disks_on_white_too() -> None:
    def negative(sample: Sample) -> Sample:
        return Sample(255 - sample.image, sample.points, sample.name)

    counter = BlobCounter.fit([negative(disks(n, seed=n)) for n in (0, 3, 10, 17)])
    assert counter.count(negative(disks(8, seed=108)).image) == 8


def test_blob_counter_needs_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        BlobCounter.fit([])
