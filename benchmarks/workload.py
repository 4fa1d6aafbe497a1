"""What the benchmarks of a network work on: its config, the network with random weights, and generated images."""

import argparse
import collections
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from headcount.bins import CountBins, build_bins
from headcount.command import compose, to_config
from headcount.config import ClipViTConfig, ConfigError, PretrainedConfig, TrainConfig, check, crop_error
from headcount.data.loading import build_smoothing, collate
from headcount.models.build import build_model
from headcount.models.counter import Counter
from headcount.types import Batch, Sample

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CROP_SIZE = 448
IMAGE_SIZE = (1024, 768)
"""Width and height of the photograph that is evaluated, in pixels."""

HISTOGRAM_IMAGES = 8
"""Crops whose blocks the bins are made from."""


@dataclass
class Workload:
    """A network, its config, and a photograph to cut crops from."""

    settings: list[str]
    """Settings of train.py, including those added here."""
    config: TrainConfig
    bins: CountBins | None
    counter: Counter
    """The network with random weights, unless model.weights names some."""
    photograph: UInt8[Tensor, "3 height width"]
    points: int
    """Heads per crop."""

    @classmethod
    def build(cls, settings: list[str], *, batch_size: int, crop_size: int | None, points: int) -> "Workload":
        """Compose the config as train.py does and build its network for generated crops.

        Args:
            settings: as on train.py's command line.
            crop_size: side of a crop, in pixels; None takes 448, or the input size of a CLIP ViT.

        Raises:
            ConfigError: if a setting is invalid.
        """
        settings = list(settings)
        model = parse_config(settings).model
        if isinstance(model, PretrainedConfig) and not any(s.startswith("model.weights=") for s in settings):
            settings.append("model.weights=none")
        crop = crop_size or (model.input_size if isinstance(model, ClipViTConfig) else CROP_SIZE)
        config = parse_config([*settings, f"batch_size={batch_size}", f"augment.crop_size={crop}", "runtime.devices=1"])
        if errors := check(config):
            raise ConfigError("\n  ".join(errors))
        side = max(crop, *IMAGE_SIZE)
        photograph = torch.from_numpy(draw_photograph(np.random.default_rng(0), side, side)).permute(2, 0, 1)
        batch = draw_batch(photograph, HISTOGRAM_IMAGES, config=config, points=points)
        blocks = batch.block_counts.flatten().int().tolist()
        histogram = dict(sorted(collections.Counter(blocks).items()))
        bins = build_bins(config.bins, histogram)
        torch.manual_seed(0)
        counter = build_model(config.model, bins, block_size=config.bins.block_size, histogram=histogram)
        if wrong := crop_error(config, counter.stride):
            raise ConfigError(wrong)
        return cls(settings, config, bins, counter, photograph, points)

    def batch(self, images: int) -> Batch:
        """A training batch of ``images`` crops."""
        return draw_batch(self.photograph, images, config=self.config, points=self.points)

    def describe(self) -> str:
        """The network and its training, on one line."""
        total = sum(p.numel() for p in self.counter.parameters())
        trained = sum(p.numel() for p in self.counter.parameters() if p.requires_grad)
        return (
            f"{' '.join(self.settings) or 'default settings'}; {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M "
            f"trained by {self.config.optim.algorithm.name}; loss {self.config.loss.name}"
        )


def workload_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with train.py's settings and the options that every benchmark of a network has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of train.py, such as model=tiny")
    parser.add_argument("--crop-size", type=int, help="side of a crop, in pixels; default 448, for a CLIP ViT its own")
    parser.add_argument("--points", type=int, default=300, help="heads per crop")
    parser.add_argument("--repeats", type=int, default=10, help="rounds in which everything is measured once")
    return parser


def run_benchmark(parser: argparse.ArgumentParser, run: Callable[[Workload, argparse.Namespace], None]) -> None:
    """Read the command line, build its workload and ``run``; exit with status 2 and a message on invalid settings."""
    arguments = parser.parse_intermixed_args()
    try:
        workload = Workload.build(
            arguments.settings,
            batch_size=getattr(arguments, "batch", 1),
            crop_size=arguments.crop_size,
            points=arguments.points,
        )
        run(workload, arguments)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def parse_config(settings: list[str]) -> TrainConfig:
    """The config that train.py would get from these settings.

    Raises:
        ConfigError: if a setting is invalid.
    """
    config: Any = to_config(compose(settings, config_name="train", config_dir=CONFIGS))
    assert isinstance(config, TrainConfig)
    return config


def draw_batch(photograph: UInt8[Tensor, "3 height width"], images: int, *, config: TrainConfig, points: int) -> Batch:
    """Crops of the photograph as the training loader returns them, with heads placed uniformly at random.

    Args:
        images: number of crops.
        points: heads per crop.
    """
    crop, generator = config.augment.crop_size, torch.Generator().manual_seed(0)
    samples = []
    for k in range(images):
        top, left = (int(torch.randint(n - crop + 1, (), generator=generator)) for n in photograph.shape[1:])
        heads = torch.rand(points, 2, generator=generator, dtype=torch.float64).mul(crop - 0.01).float()
        samples.append(Sample(photograph[:, top : top + crop, left : left + crop], heads, f"crop {k}"))
    smoothing = build_smoothing(config.bins, config.loss)
    return collate(samples, block_size=config.bins.block_size, smoothing=smoothing)


def draw_photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """An image that compresses as photographs of crowds do: about 240 KB at 1024 x 768 and quality 90.

    Returns:
        uint8 array (height, width, 3).
    """
    scene = np.full((height, width, 3), 118.0)
    for octave in range(9):  # texture at every scale, weaker the finer
        cells = (height >> (8 - octave), width >> (8 - octave))
        field = rng.normal(0, 0.6, (*cells, 1)) + rng.normal(0, 0.4, (*cells, 3))
        layers = [Image.fromarray(field[..., k].astype(np.float32)).resize((width, height)) for k in range(3)]
        scene += 45 * 0.75**octave * np.stack([np.asarray(layer) for layer in layers], axis=2)
    for _ in range(200):  # heads, larger towards the bottom
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = 3 + 14 * y / height
        top, left = max(int(y - radius), 0), max(int(x - radius), 0)
        around = scene[top : int(y + radius) + 1, left : int(x + radius) + 1]
        rows, cols = np.ogrid[top : top + around.shape[0], left : left + around.shape[1]]
        disc = (cols - x) ** 2 + (rows - y) ** 2 < radius**2
        around[disc] = 0.5 * around[disc] + rng.uniform(0, 130, 3)
    scene += rng.normal(0, 4, scene.shape)  # the camera's noise
    return scene.clip(0, 255).astype(np.uint8)
