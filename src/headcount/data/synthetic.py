"""Synthetic crowds, drawn by code, with exact annotations.

They are the default dataset, so that everything runs without a download. A scene has the perspective of a raised
camera: far heads are small and dense, near ones large and sparse. Objects that resemble heads (balls, lamps, stones,
signs, bushes) stand among the people. This is no substitute for a published benchmark: errors on these images say
nothing about real ones.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.random import Generator
from scipy import ndimage

from headcount.config import SyntheticConfig
from headcount.types import Sample

SPLITS = ("train", "val", "test")
MIN_SIDE = 32
"""Smallest width and height of an image, pixels."""
MIN_HEAD = 4.0
"""Smallest head, pixels from crown to chin."""
MIN_VISIBLE = 0.5
"""A person whose head would show less than this share of its area is not drawn at all."""
EMPTY_SHARE = 0.08
"""Share of images without people."""

Color = Float[np.ndarray, "3"]
Pixels = TypeVar("Pixels", float, np.ndarray)


@dataclass
class Person:
    """A person in a scene."""

    x: float
    """Center of the head, pixels from the left edge of the image."""
    y: float
    """Center of the head, pixels from the top edge of the image."""
    size: float
    """Crown to chin, pixels."""
    visible: float
    """Share of the head's area inside the image that nothing in front of it covers."""


@dataclass
class Scene:
    """A finished image and the people in it, near ones first."""

    image: UInt8[np.ndarray, "3 height width"]
    people: list[Person]


def draw_crowd(index: int, *, config: SyntheticConfig, split: str) -> Sample:
    """Draw one image of the synthetic dataset.

    The image depends only on ``split``, ``index``, and the seed, size and ``max_people`` of ``config``, not on the
    number of images, and no image belongs to two splits. Every head that is drawn is annotated, and every annotated
    head shows at least ``MIN_VISIBLE`` of its area.

    Args:
        index: position in the split, from 0.
        split: ``train``, ``val`` or ``test``.

    Raises:
        ValueError: if the split is unknown or the image would be smaller than ``MIN_SIDE``.
    """
    scene = draw_scene(index, config=config, split=split)
    points = torch.tensor([(p.x, p.y) for p in scene.people], dtype=torch.float32).reshape(-1, 2)
    return Sample(image=torch.from_numpy(scene.image), points=points, name=f"{split}_{index:04d}")


def draw_scene(index: int, *, config: SyntheticConfig, split: str) -> Scene:
    """Draw one image like :func:`draw_crowd`, and return the size and visibility of each head as well.

    Raises:
        ValueError: if the split is unknown or the image would be smaller than ``MIN_SIDE``.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: the synthetic dataset has {', '.join(SPLITS)}")
    if min(config.width, config.height) < MIN_SIDE:
        raise ValueError(f"width={config.width}, height={config.height}: both must be at least {MIN_SIDE} px")
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index])
    view = _View.random(rng, height=config.height, width=config.width)
    background = _background(rng, view)
    canvas = Canvas(height=view.height, width=view.width, light=rng.uniform(-1, 1, 2))

    things: list[tuple[Person | None, list[Blob]]] = []
    for x, y in _positions(rng, view, _target_count(rng, config.max_people)):
        size = max(MIN_HEAD, view.head_size(y) * rng.uniform(0.88, 1.12))
        things.append((Person(x=x, y=y, size=size, visible=0.0), _person(rng, x, y, size, view)))
    for x, y in _positions(rng, view, int(rng.integers(3, 32) * view.scale**0.5)):
        things.append((None, _clutter(rng, x, y, max(MIN_HEAD, view.head_size(y)) * rng.uniform(0.6, 1.3))))
    # An object that stands lower in the image is nearer, and covers those behind it.
    things.sort(key=lambda thing: -max(blob.y + blob.ry for blob in thing[1]))

    people = []
    for person, blobs in things:
        if person is not None:
            person.visible = canvas.visible_share(blobs[0])
            if person.visible < MIN_VISIBLE:
                continue
            people.append(person)
        for blob in blobs:
            canvas.paint(blob)
    return Scene(image=_photograph(rng, canvas.over(background), view), people=people)


# ------------------------------------------------------------------------------------------ painting


@dataclass
class Blob:
    """A rounded shape of two colors, one above the other."""

    x: float
    y: float
    rx: float
    """Half the width, pixels."""
    ry: float
    """Half the height, pixels."""
    top: Color
    """Color above the split, 0 to 1."""
    bottom: Color
    """Color below the split, 0 to 1."""
    split: float = 0.0
    """Where the colors meet: -1 is the upper end of the shape, 1 the lower."""
    power: int = 2
    """2 gives an ellipse, larger values give straighter sides."""
    taper: float = 0.0
    """How much the lower half narrows; 0 does not."""
    relief: float = 0.3
    """Strength of the shading; 0 is flat."""
    opacity: float = 1.0


class Canvas:
    """Paints from front to back: shapes painted first cover later ones.

    The visible share of a shape is therefore known before it is painted.
    """

    def __init__(self, *, height: int, width: int, light: Float[np.ndarray, "2"]):
        self.color = np.zeros((3, height, width), np.float32)
        self.free = np.ones((height, width), np.float32)
        self.light = light.astype(np.float32)

    def visible_share(self, blob: Blob) -> float:
        """Return the share of the blob's area inside the image that is not covered yet; 0 if it lies outside."""
        rows, cols = self._window(blob)
        _, _, cover = _cover(blob, rows, cols)
        area = float(cover.sum())
        return float((cover * self.free[rows, cols]).sum()) / area if area > 0 else 0.0

    def paint(self, blob: Blob) -> None:
        """Paint ``blob`` behind everything painted so far."""
        rows, cols = self._window(blob)
        free = self.free[rows, cols]
        if not free.any():  # Outside the image, or hidden like most bodies of a dense crowd.
            return
        v, u, cover = _cover(blob, rows, cols)
        cover *= free
        free -= cover
        cover *= (1 - blob.relief * self.light[1] * v)[:, None] - blob.relief * self.light[0] * u
        lower = ((v - blob.split) * blob.ry + 0.5).clip(0, 1)
        color = blob.top[:, None] + (blob.bottom - blob.top)[:, None] * lower
        self.color[:, rows, cols] += cover * color.astype(np.float32)[:, :, None]

    def over(self, background: Float[np.ndarray, "3 height width"]) -> Float[np.ndarray, "3 height width"]:
        """Return the painted image, with ``background`` in the gaps."""
        return self.color + self.free * background

    def _window(self, blob: Blob) -> tuple[slice, slice]:
        """Return the rows and columns of the image that the blob may touch."""
        height, width = self.free.shape
        top, bottom = int(blob.y - blob.ry), int(blob.y + blob.ry) + 2
        left, right = int(blob.x - blob.rx), int(blob.x + blob.rx) + 2
        return slice(max(top, 0), max(min(bottom, height), 0)), slice(max(left, 0), max(min(right, width), 0))


def _cover(blob: Blob, rows: slice, cols: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the blob's own coordinates of ``rows`` (v) and ``cols`` (u), -1 to 1, and the covered share of pixels."""
    v = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - blob.y)) / blob.ry
    u = (np.arange(cols.start, cols.stop, dtype=np.float32) + (0.5 - blob.x)) / blob.rx
    edge = 0.5 * min(blob.rx, blob.ry)  # About one pixel wide.
    narrow = edge * (1 + blob.taper * np.maximum(v, 0)) ** 2
    cover = (edge + 0.5 - edge * np.abs(v) ** blob.power)[:, None] - narrow[:, None] * (u * u)
    np.maximum(cover, 0, out=cover)
    np.minimum(cover, 1, out=cover)
    if blob.opacity < 1:
        cover *= blob.opacity
    return v, u, cover


# ------------------------------------------------------------------------------------------ geometry


@dataclass
class _View:
    """A camera above a plane: the size of heads grows linearly from the far edge of the ground to the bottom."""

    height: int
    width: int
    scale: float
    """Image size relative to the default."""
    ground: float
    """Far edge of the ground, pixels from the top; the farthest heads are here."""
    far: float
    """Head size at the far edge, pixels."""
    near: float
    """Head size at the bottom of the image, pixels."""
    body: float
    """From the head's center to the feet, heads; less for a steeper camera."""

    @classmethod
    def random(cls, rng: Generator, *, height: int, width: int) -> "_View":
        scale = math.sqrt(height * width / (288 * 384))
        far, near = rng.uniform(5, 8), rng.uniform(10, 24)
        ground = max(0.0, rng.uniform(-0.12, 0.38)) * height
        body = 5.5 if ground > 0 else rng.uniform(3.2, 5)
        far, near = max(MIN_HEAD, far * min(scale, 1.0)), max(MIN_HEAD, near * scale)
        return cls(height=height, width=width, scale=scale, ground=ground, far=far, near=near, body=body)

    def head_size(self, y: Pixels) -> Pixels:
        """Return the height in pixels of a head at ``y`` pixels from the top."""
        return self.far + (self.near - self.far) * (y - self.ground) / (self.height - self.ground)


def _target_count(rng: Generator, max_people: int) -> int:
    """Draw from a long-tailed distribution: half of the images with people have less than a quarter of the maximum."""
    if rng.random() < EMPTY_SHARE:
        return 0
    return min(max_people, 1 + int(max_people * rng.random() ** 2))


def _positions(rng: Generator, view: _View, n: int) -> list[tuple[float, float]]:
    """Draw up to ``n`` positions, denser where heads are smaller, some of them in groups."""
    rows = np.linspace(view.ground, view.height, 64)
    density = view.head_size(rows) ** -2.0
    cumulative = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    y = np.interp(rng.random(n) * cumulative[-1], cumulative, rows)
    x = rng.uniform(0, view.width, n)
    grouped = rng.random(n) < rng.uniform(0.1, 0.95)
    groups = rng.integers(0, 1 + n // 10, n)  # Each group is led by one of its members.
    spread = rng.normal(0, rng.uniform(0.7, 1.6), (2, n)) * view.head_size(y)
    x = np.where(grouped, x[groups] + 2 * spread[0], x)
    y = np.where(grouped, y[groups] + spread[1], y)
    inside = (x >= 0) & (x < view.width - 0.01) & (y >= view.ground) & (y < view.height - 0.01)
    return [(float(a), float(b)) for a, b in zip(x[inside], y[inside], strict=True)]


# ------------------------------------------------------------------------------------------- objects

_SKIN = np.array([[0.24, 0.15, 0.11], [0.50, 0.33, 0.24], [0.78, 0.58, 0.46], [0.95, 0.79, 0.69]])
_HAIR = np.array([[0.05, 0.04, 0.04], [0.12, 0.09, 0.07], [0.25, 0.16, 0.10], [0.62, 0.48, 0.28], [0.62, 0.60, 0.58]])
_HAIR_SHARE = np.array([0.45, 0.75, 0.88, 0.95])  # cumulative


def _dyes(rng: Generator, n: int) -> Float[np.ndarray, "n 3"]:
    """Draw colors of clothes, balls and signs: from black, gray and white to saturated."""
    value = rng.uniform(0.1, 0.95, (n, 1))
    hue = np.clip(np.abs((rng.random((n, 1)) * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    saturation = rng.random((n, 1)) ** 2
    return value * (1 - saturation * (1 - hue))


def _person(rng: Generator, x: float, y: float, size: float, view: _View) -> list[Blob]:
    """Draw head, body and shadow at the feet, nearest first."""
    shirt, trousers, hat = _dyes(rng, 3)
    tone = rng.uniform(0, len(_SKIN) - 1)
    skin = _SKIN[int(tone)] + (_SKIN[int(tone) + 1] - _SKIN[int(tone)]) * (tone % 1)
    hair = _HAIR[np.searchsorted(_HAIR_SHARE, rng.random())]
    kind, face, wide, shoulders, lean, belt = rng.random(6)
    top = hat if kind < 0.08 else skin if kind < 0.13 else hair  # A hat, or bald.
    hairline = face - 0.4 if face < 0.6 else 1.2 * face - 0.3  # Facing the camera, or from behind.
    half = size * view.body / 2
    return [
        Blob(x, y, size * (0.38 + 0.07 * wide), size / 2, top, skin, split=hairline, relief=0.25),
        Blob(
            x + size * 0.16 * (lean - 0.5),
            y + size * 0.36 + half,
            size * (0.75 + 0.2 * shoulders),
            half,
            shirt,
            0.3 * trousers + 0.12,
            split=0.3 * (belt - 0.5),
            power=4,
            taper=0.6,
            relief=0.22,
        ),
        _shadow(x + size * 0.5, y + size * (0.3 + view.body), size * 1.3),
    ]


def _shadow(x: float, y: float, size: float) -> Blob:
    return Blob(x, y, size, size * 0.35, np.zeros(3), np.zeros(3), opacity=0.35)


def _clutter(rng: Generator, x: float, y: float, size: float) -> list[Blob]:
    """Draw an object that is not a head: a ball, a lamp, a sign, a stone, a bush, or a bollard."""
    dye, dark = _dyes(rng, 1)[0], np.full(3, rng.uniform(0.08, 0.3))
    pole = Blob(x, y + size * 2.4, max(0.6, size * 0.1), size * 2, dark, dark, power=8)
    feet = _shadow(x + size * 0.4, y + size * 0.5, size * 0.7)
    match rng.integers(6):
        case 0:  # A ball, half of them in the color of skin.
            color = dye if rng.random() < 0.5 else _SKIN[rng.integers(len(_SKIN))]
            return [Blob(x, y, size * 0.5, size * 0.5, color, color * 0.85, relief=0.35), feet]
        case 1:  # A lamp.
            glow = np.array([1.0, 0.96, 0.82]) * rng.uniform(0.75, 1)
            return [Blob(x, y, size * 0.45, size * 0.45, glow, glow, relief=0.1), pole]
        case 2:  # A sign.
            return [Blob(x, y, size * 0.55, size * 0.55, dye, dye if rng.random() < 0.6 else dark, relief=0.0), pole]
        case 3:  # A stone.
            gray = rng.uniform(0.25, 0.7) * np.array([1.0, 0.97, 0.92])
            return [Blob(x, y, size * rng.uniform(0.5, 0.9), size * 0.4, gray, gray * 0.6, relief=0.35), feet]
        case 4:  # A bush.
            leaf = np.array([0.18, 0.34, 0.12]) * rng.uniform(0.6, 1.4)
            at = rng.normal(0, 0.45, (6, 2)) * size
            shade = rng.uniform(0.7, 1.25, 6)
            return [
                Blob(x + a, y + b, size * 0.5, size * 0.45, leaf * s, leaf * s * 0.7)
                for (a, b), s in zip(at, shade, strict=True)
            ] + [feet]
        case _:  # A bollard.
            body = Blob(x, y + size, size * 0.4, size * 1.3, dye, dye * 0.8, power=6, split=-0.4)
            return [body, _shadow(x + size * 0.3, y + size * 2.3, size * 0.7)]


# ------------------------------------------------------------------------- background and photograph


def _noise(rng: Generator, height: int, width: int, cell: float) -> Float[np.ndarray, "height width"]:
    """Draw standard normal values at the corners of cells of ``cell`` pixels, interpolated linearly."""
    grid = rng.standard_normal((int(height / cell) + 2, int(width / cell) + 2), dtype=np.float32)
    y = np.arange(height, dtype=np.float32) / cell
    x = np.arange(width, dtype=np.float32) / cell
    i, j = y.astype(int), x.astype(int)
    grid = grid[i] + (grid[i + 1] - grid[i]) * (y - i)[:, None].astype(np.float32)
    return grid[:, j] + (grid[:, j + 1] - grid[:, j]) * (x - j).astype(np.float32)


def _background(rng: Generator, view: _View) -> Float[np.ndarray, "3 height width"]:
    """Draw textured ground, and above its far edge sky with houses or trees."""
    height, width, edge = view.height, view.width, math.ceil(view.ground)
    image = np.empty((3, height, width), np.float32)
    rows = height - edge

    base = np.array([[0.45, 0.45, 0.46], [0.62, 0.58, 0.50], [0.30, 0.42, 0.18], [0.55, 0.42, 0.32]])[rng.integers(4)]
    base = base * rng.uniform(0.7, 1.3)
    texture = 0.10 * _noise(rng, rows, width, 40 * view.scale + 2) + 0.07 * _noise(rng, rows, width, 7.0)
    texture += rng.uniform(0.01, 0.07) * _noise(rng, rows, width, 2.0)
    if rng.random() < 0.6:  # Leaves, litter, puddles.
        spots = _noise(rng, rows, width, rng.uniform(3, 9) * max(0.5, view.scale))
        texture += rng.uniform(-0.7, 0.9) * (spots > rng.uniform(1.0, 1.8))
    if rng.random() < 0.5:  # Paving, in perspective.
        size = view.head_size(np.arange(edge, height) + 0.5).astype(np.float32)[:, None]
        across = (np.arange(width, dtype=np.float32) - width * rng.uniform(0.2, 0.8)) / size
        slope = (view.near - view.far) / rows
        along = np.log(size) / slope if slope > 1e-3 else np.arange(rows)[:, None] / size
        tile = rng.uniform(2, 6)
        joint = (across / tile % 1 < 0.06) | (along / tile % 1 < 0.08)
        board = (np.floor(across / tile) + np.floor(along / tile)) % 2
        texture -= rng.uniform(0.05, 0.3) * joint + rng.choice([0.0, 0.15]) * board
    image[:, edge:] = base[:, None, None] * (1 + texture)

    if edge:
        sky = np.linspace(0, 1, edge)[:, None]
        top, low = np.array([0.45, 0.62, 0.85]), np.array([0.85, 0.88, 0.92])
        image[:, :edge] = (top[:, None, None] + (low - top)[:, None, None] * sky) * rng.uniform(0.7, 1.05)
        for _ in range(rng.integers(2, 8)):
            _house(rng, image[:, :edge], unit=view.far)
        if rng.random() < 0.6:  # Trees.
            line = edge * (0.6 + 0.12 * _noise(rng, 1, width, 30.0)[0] + 0.06 * _noise(rng, 1, width, 6.0)[0])
            leaves = np.arange(edge)[:, None] > line
            green = np.array([0.16, 0.30, 0.12])[:, None, None] * (1 + 0.35 * _noise(rng, edge, width, 5.0))
            image[:, :edge][:, leaves] = green[:, leaves]
    return np.clip(image, 0.02, 1)


def _house(rng: Generator, backdrop: Float[np.ndarray, "3 height width"], *, unit: float) -> None:
    """Draw a house with rows of windows into ``backdrop``; ``unit`` is the size of a head there, pixels."""
    _, height, width = backdrop.shape
    left = int(rng.uniform(-0.2, 0.9) * width)
    front = backdrop[:, int(rng.uniform(0, 0.7) * height) :, max(0, left) : left + int(rng.uniform(0.15, 0.5) * width)]
    wall = rng.uniform(0.35, 0.85) * np.array([1.0, 0.94, 0.86]) ** rng.uniform(0, 3)
    front[:] = wall[:, None, None]
    step = unit * rng.uniform(1.6, 3)
    y = np.arange(front.shape[1]) / step % 1
    x = np.arange(front.shape[2]) / step % 1
    window = ((y > 0.3) & (y < 0.8))[:, None] & ((x > 0.3) & (x < 0.7))
    front[:, window] *= rng.uniform(0.3, 0.8)


def _photograph(
    rng: Generator, scene: Float[np.ndarray, "3 height width"], view: _View
) -> UInt8[np.ndarray, "3 height width"]:
    """Simulate light, lens and sensor: gradient, vignette, color cast, contrast, blur, noise."""
    y = np.linspace(-1, 1, view.height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, view.width, dtype=np.float32)
    slope = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    light = (1 + slope[0] * x + slope[1] * y) * (1 - np.float32(rng.uniform(0, 0.2)) * (x * x + y * y))
    if rng.random() < 0.4:  # Shade of clouds and houses.
        ground = light[int(view.ground) :]
        shade = 4 * _noise(rng, len(ground), view.width, 80 * view.scale + 2) - 1
        ground *= 1 - np.float32(0.35) * shade.clip(0, 1)
    contrast = rng.uniform(0.85, 1.2)
    gain = contrast * rng.uniform(0.8, 1.25) * rng.uniform(0.9, 1.1, 3)  # Brightness and color cast.
    image = scene * light
    image *= gain[:, None, None].astype(np.float32)
    if rng.random() < 0.5:
        blur = rng.uniform(0.3, 0.6)
        image = ndimage.gaussian_filter(image, (0, blur, blur), truncate=2.5)
    grain = rng.random(image.shape, dtype=np.float32)
    grain -= 0.5
    grain *= np.float32(rng.uniform(0.01, 0.09))
    image += grain
    image += np.float32(0.45 * (1 - contrast))
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
