"""What the benchmarks of a network work on: a config, generated images, and the job that trains on them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from headcount.cli.arguments import read_arguments, script_parser, whole_number
from headcount.cli.compose import compose, to_config
from headcount.cli.status import exit_on_error
from headcount.config import ClipViTConfig, ConfigError, Precision, PretrainedConfig, TrainConfig, check
from headcount.data.crowd import CrowdDataset
from headcount.data.histograms import block_histogram
from headcount.engine.runtime import Runtime
from headcount.engine.setup import Job, TrainingData, build_job
from headcount.types import Batch, Sample

CROP_SIZE = 448
IMAGE_SIZE = (1024, 768)
"""Width and height of the photograph that is evaluated, in pixels."""

HISTOGRAM_IMAGES = 8
"""Number of crops whose blocks the bins are made from."""


@dataclass
class Workload:
    """A config, and generated crops and a photograph to run its network on."""

    settings: list[str]
    """Settings of train.py, including those added here."""
    config: TrainConfig
    photograph: UInt8[Tensor, "3 height width"]
    """Crops are cut from it."""
    points: int
    """Heads per crop."""
    repeats: int
    """Rounds in which everything is measured once."""

    @classmethod
    def build(
        cls, settings: Sequence[str], *, batch_size: int, crop_size: int | None, points: int, repeats: int
    ) -> "Workload":
        """Compose the config as train.py does, with random weights unless model.weights names some.

        Args:
            settings: as on train.py's command line.
            batch_size: crops per step.
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
        return cls(settings, config, photograph, points, repeats)

    def set_up(
        self, *, precision: Precision = Precision.float32, channels_last: bool, compiled: bool | None = None
    ) -> tuple[Runtime, Job]:
        """Build what trains the network, as train.py does, with the same weights every time.

        Args:
            compiled: whether the network is compiled; None takes the setting runtime.compile.
        """
        settings = self.config.runtime
        settings = dataclasses.replace(
            settings,
            precision=precision,
            channels_last=channels_last,
            compile=settings.compile if compiled is None else compiled,
        )
        runtime = Runtime(settings)
        crops = self.crops(HISTOGRAM_IMAGES)
        data = TrainingData(crops, crops, "generated", block_histogram(crops, self.config.bins.block_size))
        return runtime, build_job(self.config, runtime, pretrained=True, data=data)

    def crops(self, images: int) -> CrowdDataset:
        """Crops of the photograph with heads placed uniformly at random.

        Args:
            images: number of crops.
        """
        crop, generator = self.config.augment.crop_size, torch.Generator().manual_seed(0)
        pixels, points = [], []
        for _ in range(images):
            top, left = (int(torch.randint(n - crop + 1, (), generator=generator)) for n in self.photograph.shape[1:])
            pixels.append(self.photograph[:, top : top + crop, left : left + crop])
            points.append(torch.rand(self.points, 2, generator=generator, dtype=torch.float64).mul(crop - 0.01).float())
        sizes = [(crop, crop)] * images
        names = [f"crop {k}" for k in range(images)]
        return CrowdDataset(names, pixels.__getitem__, points, source_sizes=sizes, sizes=sizes)

    def batch(self, job: Job, images: int) -> Batch:
        """A training batch of ``images`` crops with the targets that the job's loss needs."""
        crops = self.crops(images)
        samples: list[Sample] = [crops[k] for k in range(images)]
        return job.make_batch(samples)

    def describe(self, job: Job) -> str:
        """The network and its training, on one line."""
        total = sum(p.numel() for p in job.counter.parameters())
        trained = sum(p.numel() for p in job.counter.parameters() if p.requires_grad)
        return (
            f"{' '.join(self.settings) or 'default settings'}; {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M "
            f"trained by {self.config.optim.algorithm.name}; loss {self.config.loss.name}"
        )


def run_benchmark(doc: str | None, run: Callable[[Workload, str | None], None], *, of_training: bool) -> None:
    """Read the command line of a benchmark of a network and ``run`` it; exit with status 2 on invalid settings.

    Args:
        doc: the help page.
        run: called with the workload and the precision to measure (None for all).
        of_training: whether there are crops per step and precisions to choose.
    """
    parser = script_parser(doc)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of train.py, such as model=tiny")
    parser.add_argument("--crop-size", type=whole_number, help="side in pixels; default 448, for a CLIP ViT its own")
    parser.add_argument("--points", type=whole_number, default=300, help="heads per crop")
    parser.add_argument("--repeats", type=whole_number, default=10, help="rounds in which everything is measured once")
    if of_training:
        parser.add_argument("--batch", type=whole_number, default=2, help="crops per step")
        parser.add_argument("--precision", choices=["float32", "bf16"], help="measure only this one; default both")
    with exit_on_error(parser.prog):
        arguments = read_arguments(parser)
        options = arguments.options
        workload = Workload.build(
            arguments.settings,
            batch_size=options.batch if of_training else 1,
            crop_size=options.crop_size,
            points=options.points,
            repeats=options.repeats,
        )
        run(workload, options.precision if of_training else None)


def parse_config(settings: Sequence[str]) -> TrainConfig:
    """The config that train.py would get from these settings.

    Raises:
        ConfigError: if a setting is invalid.
    """
    config: TrainConfig = to_config(compose(settings, config_name="train"))
    return config


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
