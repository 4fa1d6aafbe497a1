"""What can be configured: one dataclass for each config group and kind.

Field docstrings give units. ``check`` collects every error that spans fields. Importing this
module loads neither torch nor an image library, so that a wrong setting is told at once.
"""

import dataclasses
import itertools
import math
import os
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from headcount.errors import ConfigError as ConfigError


def number(default: Any, least: float = 0, most: float = math.inf) -> Any:
    """A dataclass field whose value :func:`check` holds between ``least`` and ``most``."""
    return field(default=default, metadata={"allowed": (least, most)})


class Outside(Enum):
    """What training does with an annotation outside its image."""

    clamp = 1
    drop = 2


class Head(Enum):
    """What stands on the features: a classifier of blocks into bins, or a regression of their counts."""

    ebc = 1
    regression = 2


class Decoder(Enum):
    """What stands between CLIP's features and the projection: the released block, or nothing (paper)."""

    released = 1
    none = 2


class PromptDepth(Enum):
    """Prompt tokens of their own before every layer, or before the first alone."""

    deep = 1
    shallow = 2


class CountStyle(Enum):
    """How a prompt writes a count: "two" or "2"."""

    word = 1
    number = 2


class LastPrompt(Enum):
    """How the prompt of the open bin [m, inf) reads: "more than m" (released, paper) or "m or more"."""

    more_than = 1
    m_or_more = 2


class Border(Enum):
    """Where the last window of a row goes: moved inward to the border, or on over padding."""

    inward = 1
    pad = 2


class Cache(Enum):
    """What is kept of the images between epochs."""

    none = 1
    decoded = 2


class Counted(Enum):
    """Where representative counts are counted: the grid of blocks, or every window of a block's size."""

    blocks = 1
    windows = 2


class CountTerm(Enum):
    """The count loss of DACE: DM-Count's, or an absolute or squared error of every block."""

    dm = 1
    mae = 2
    mse = 3


class Solver(Enum):
    """How the transport is solved: the released iteration, or one that never underflows."""

    released = 1
    stable = 2


class Kernel(Enum):
    """Width of the Gaussian on each head: one for all, or by the distance to its neighbors."""

    fixed = 1
    adaptive = 2


class PointsFormat(Enum):
    """How a folder of one's own keeps its head positions; ``auto`` goes by the file's ending."""

    auto = 1
    csv = 2
    json = 3
    npy = 4
    mat = 5


class Strategy(Enum):
    """How many integers form a bin."""

    fine = 1
    dynamic = 2
    coarse = 3


class Last(Enum):
    """Whether the last bin keeps counts above the maximum or caps them."""

    open = 1
    clipped = 2


class Representatives(Enum):
    """What a bin stands for: the mean of the blocks in it, or its middle."""

    mean = 1
    middle = 2


class Reduction(Enum):
    """How the transport term is taken over the images of a batch."""

    mean = 1
    sum = 2


class Algorithm(Enum):
    """Optimizer."""

    adam = 1
    adamw = 2


class Schedule(Enum):
    """Shape of the learning rate after warm-up."""

    cosine = 1
    cosine_restarts = 2


class ScheduleStep(Enum):
    """How often the learning rate moves."""

    step = 1
    epoch = 2


class Accelerator(Enum):
    """Where tensors live."""

    auto = 1
    cpu = 2
    cuda = 3


class Precision(Enum):
    """Arithmetic of the network; losses and evaluation are always float32."""

    float32 = 1
    bf16 = 2
    fp16 = 3


# ----------------------------------------------------------------------------------------- dataset


@dataclass
class DatasetConfig:
    """Fields that every dataset has."""

    name: str = MISSING
    """Name in the table of datasets."""
    holdout: float = number(0.0, 0, 0.9)
    """Share of the training images held out to select the checkpoint; 0 selects on the dataset's own split."""
    outside: Outside = Outside.clamp
    """Training annotations outside the image: moved onto its border, or dropped. Evaluation counts all."""
    one_head_per_pixel: bool = False
    """Count the heads of one pixel once in the labels, as the released code does; points keep all of them."""
    train_fraction: float = number(1.0, 1e-4, 1)
    """Share of the training images that is used; a smaller share is part of a larger one, whatever the seed."""
    max_train_images: int | None = number(None, 1)
    """Use the first so many training images; None for all."""
    max_eval_images: int | None = number(None, 1)
    """Evaluate the first so many images; None for all."""


@dataclass
class FolderDatasetConfig(DatasetConfig):
    """A dataset read from its folder as distributed, resized once into a cache."""

    root: str | None = None
    """The dataset's folder; None looks below ``data_root``."""
    cache_dir: str = "~/.cache/headcount"
    """Where resized images go; never the dataset's own folder."""
    min_side: int = number(448, 1)
    """Images are enlarged until their short side has this many pixels."""
    max_side: int | None = number(None, 1)
    """Images are shrunk until their long side has at most this many pixels; None for no limit."""
    side_multiple: int = number(32, 1)
    """Both sides are cut to a multiple of this many pixels."""
    cache: Cache = Cache.none
    """``decoded`` keeps the pixels of all images uncompressed in ``cache_dir``, and reads only the crop."""
    skip_bad: bool = False
    """Leave out images that cannot be read or have no usable annotation, and say so; else they stop the run."""


@dataclass
class UcfCc50Config(FolderDatasetConfig):
    """UCF_CC_50, which has no split of its own: five folds."""

    fold: int = number(1, 1, 5)
    """Images 10k - 9 to 10k are tested in fold k; the others train."""


@dataclass
class CustomConfig(FolderDatasetConfig):
    """Images and points of one's own, in one folder or three."""

    name: str = "custom"
    train: str | None = None
    """Folder of the training images; None takes ``root``, split by ``split_file`` or by fractions."""
    val: str | None = None
    """Folder of the images that select the checkpoint."""
    test: str | None = None
    """Folder of the images nobody selects on."""
    points: str | None = None
    """Folder or single file of the head positions; None looks beside the images and in sibling folders."""
    points_format: PointsFormat = PointsFormat.auto
    """How the head positions are kept."""
    split_file: str | None = None
    """A csv or json file that gives each image's split; None splits by the fractions below."""
    val_fraction: float = number(0.1, 0, 0.9)
    """Share of one folder's images that selects, chosen by a hash of their names."""
    test_fraction: float = number(0.2, 0, 0.9)
    """Share of one folder's images that is only tested, chosen likewise."""


@dataclass
class SyntheticConfig(DatasetConfig):
    """Crowds drawn by code; nothing is downloaded or stored."""

    name: str = "synthetic"
    train_images: int = number(160, 1)
    """Number of training images."""
    val_images: int = number(24, 1)
    """Number of images that select the checkpoint."""
    test_images: int = number(48, 1)
    """Number of images nobody selects on."""
    width: int = number(384, 32)
    """Width of an image, pixels."""
    height: int = number(288, 32)
    """Height of an image, pixels."""
    max_people: int = number(150, 1)
    """Most people in an image."""
    seed: int = number(0, 0)
    """Another seed draws other crowds; independent of the training seed."""


# ------------------------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """Fields that every model has."""

    names: ClassVar[dict[str, int | None]] = {}
    """The names this kind may have, with the pixels between two features; None: known once it is built."""
    name: str = MISSING
    """Name of the architecture."""
    head: Head = Head.ebc
    """``ebc`` classifies blocks into bins; ``regression`` predicts their counts, and takes ``bins=none``."""
    mean: list[float] | None = None
    """Mean of the red, green, blue input, in 0 to 1; None takes what the weights were trained with."""
    std: list[float] | None = None
    """Standard deviation of the input, in 0 to 1; None takes what the weights were trained with."""
    prior_bias: bool = True
    """Start the head at the share of training blocks in each bin; off (released code) at about equal shares."""

    def stride(self, block_size: int) -> int | None:
        """Pixels of the input between two features, for blocks of ``block_size`` px; None: known once built."""
        return self.names.get(self.name)


@dataclass
class TinyConfig(ModelConfig):
    """A small network that trains from nothing in seconds."""

    names: ClassVar[dict[str, int | None]] = {"tiny": 8}
    name: str = "tiny"
    width: int = number(32, 4)
    """Channels of the widest layers."""


@dataclass
class PretrainedConfig(ModelConfig):
    """Fields of a model whose backbone has published weights."""

    weights: str = "imagenet"
    """``imagenet`` (downloaded once), ``none``, or the path of a state dict."""


@dataclass
class ImageNetConfig(PretrainedConfig):
    """A network of torchvision, whole or as the encoder of a counting network."""

    names: ClassVar[dict[str, int | None]] = {
        **{"vgg16": 16, "vgg19": 16, "dmcount": 16, "csrnet": 8, "cannet": 8},
        **{"resnet101": 16, "densenet201": 16},
    }


@dataclass
class MobileNetV2Config(PretrainedConfig):
    """torchvision's MobileNetV2 at stride 16."""

    names: ClassVar[dict[str, int | None]] = {"mobilenet_v2": 16}
    name: str = "mobilenet_v2"
    stage: int = 320
    """Channels of the last stage kept: 320 (its stride set to 1) or 160 (likewise)."""


@dataclass
class TimmConfig(PretrainedConfig):
    """Any model of timm that offers feature maps; ``name`` is timm's."""

    weights: str = "pretrained"
    """``pretrained`` (timm's default for the name), ``none``, or the path of a state dict."""
    max_stride: int = number(16, 1)
    """The stride is lowered to this where the architecture allows it."""


@dataclass
class PromptsConfig:
    """The text that describes each bin to CLIP (arXiv:2403.09281, section III-B).

    In a phrase, ``{noun}`` is the singular for 0 and 1 and else the plural; ``{count}``, ``{low}``
    and ``{high}`` are counts.
    """

    style: CountStyle = CountStyle.word
    """Counts as words ("two") or numbers ("2")."""
    singular: str = "person"
    """Noun of what is counted."""
    plural: str = "people"
    """Its plural."""
    one: str = "There is {count} {noun}."
    """A bin of 0 ("no person") or 1."""
    many: str = "There are {count} {noun}."
    """A bin of one count above 1."""
    between: str = "There are between {low} and {high} {noun}."
    """A bin of several counts."""
    more_than: str = "There are more than {low} {noun}."
    """The open bin."""
    m_or_more: str = "There are {low} or more {noun}."
    """The open bin, if ``last`` says so."""
    last: LastPrompt = LastPrompt.more_than
    """How the prompt of the open bin [m, inf) reads."""


@dataclass
class ClipConfig(PretrainedConfig):
    """Fields of a model whose backbone is CLIP's image encoder; sizes left None are the architecture's own."""

    weights: str = "openai"
    """A tag of open_clip's table, ``none``, or a file: OpenAI's archive, open_clip's .bin or .safetensors."""
    quick_gelu: bool | None = None
    """The activation the weights were trained with; None follows them (``none`` counts as OpenAI's)."""
    prior_bias: bool = False
    """The cosine head has no bias to start at the bins' shares; of use with head=regression alone."""
    decoder: Decoder = Decoder.released
    """One residual block at the resolution of the blocks before the projection, or none."""
    decoder_channels: list[int] | None = None
    """Channels of each residual block of the decoder."""
    embed_dim: int | None = number(None, 1)
    """Dimensions of the space images and texts share."""
    width: int | None = number(None, 1)
    """Channels of the image encoder's first stage (ResNet) or of all layers (ViT)."""
    layers: list[int] | None = None
    """Blocks of each of the image encoder's four stages (ResNet), or the number of layers (ViT)."""
    text_width: int | None = number(None, 1)
    """Channels of the text encoder."""
    text_heads: int | None = number(None, 1)
    """Attention heads of the text encoder."""
    text_layers: int | None = number(None, 1)
    """Layers of the text encoder."""
    prompts: PromptsConfig = field(default_factory=PromptsConfig)


@dataclass
class ClipResNetConfig(ClipConfig):
    """CLIP's ResNet without its attention pooling."""

    names: ClassVar[dict[str, int | None]] = {"clip_rn50": 16, "clip_rn101": 16, "clip_rn50x4": 16, "clip_rn50x16": 16}
    name: str = "clip_rn50"

    def stride(self, block_size: int) -> int:
        """16, where the last stage has lost its stride, up to blocks of 16 px, and 32 above (released code)."""
        return 16 if block_size <= 16 else 32


@dataclass
class ClipViTConfig(ClipConfig):
    """CLIP's vision transformer without its pooling, tuned whole or through prompt tokens."""

    names: ClassVar[dict[str, int | None]] = {"clip_vit_b16": 16, "clip_vit_b32": 32, "clip_vit_l14": 14}
    name: str = "clip_vit_b16"
    heads: int | None = number(None, 1)
    """Attention heads of the image encoder."""
    input_size: int = number(224, 1)
    """Side of the images whose grid of positions is kept, pixels; others are interpolated from it."""
    frozen: bool = True
    """Keep the image encoder as it was pretrained: prompt tokens, decoder and head learn (version 2 of the paper)."""
    prompt_tokens: int = number(32, 0)
    """Learned tokens beside the patches (visual prompt tuning); 0 for none."""
    prompt_depth: PromptDepth = PromptDepth.deep
    """Tokens of their own before every layer, or before the first alone."""
    prompt_dropout: float = number(0.0, 0, 0.99)
    """Probability that a value of a prompt token is dropped in training."""


# -------------------------------------------------------------------------------------------- bins


@dataclass
class BlocksConfig:
    """Blocks alone, without bins, for a head that regresses their counts."""

    block_size: int = number(8, 1)
    """Side of a block, pixels (the paper's r)."""


ZERO_BELOW = 1e-4
"""Heads; up to so many a smoothed count is labeled 0, which no Gaussian leaves exactly."""


@dataclass
class BlockwiseConfig(BlocksConfig):
    """Bordering real-valued intervals of Gaussian-smoothed counts (Liu et al., ICCV 2019)."""

    sigma: float = number(4.0, 1e-3)
    """Standard deviation of the Gaussian on each head, pixels of the training crop."""
    edges: list[float] | None = None
    """Upper ends of the intervals after {0}, to which an open one is added; None takes multiples of ``step`` below
    the largest count of the training blocks."""
    step: float = number(0.05, 1e-3)
    """Width of the intervals where ``edges`` are not given, heads."""


@dataclass
class BinsConfig(BlocksConfig):
    """Blocks and the bins of their counts."""

    strategy: Strategy = Strategy.fine
    """One integer a bin, two for large counts, or two for all but 0."""
    min_head_px: int = number(4, 1)
    """Side of the smallest head that can be recognized, pixels (the paper's s)."""
    max_count: int | None = number(None, 1, 10_000)
    """Largest count with a meaning of its own; None gives (block_size // min_head_px)^2."""
    last: Last = Last.open
    """The last bin keeps counts above the maximum (released code) or caps labels at it (paper)."""
    representatives: Representatives = Representatives.mean
    """What a bin stands for: the mean of its training blocks, or its middle."""
    counted: Counted = Counted.blocks
    """Where that mean is taken: over the grid of blocks, or over all overlapping windows, where a pixel counts once,
    as published values are."""
    label_correction: bool = True
    """Off: one bin for every integer up to the largest block count of the training images, or as many as there are
    ``representative_counts`` (fine bins alone)."""
    representative_counts: list[float] | None = None
    """What each bin stands for, if it is given (published values); None computes it."""

    @property
    def m(self) -> int:
        """The maximum count of a block, m = (r // s)^2 unless set (arXiv:2403.09281, III-A.2)."""
        return self.max_count if self.max_count is not None else (self.block_size // self.min_head_px) ** 2


# ----------------------------------------------------------------------------------------- augment


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


# -------------------------------------------------------------------------------------------- loss


@dataclass
class TransportConfig:
    """DM-Count's loss: optimal transport, total variation, count (arXiv:2009.13077)."""

    ot_weight: float = number(0.8, 0)
    """Weight of the transport term; 0.8 averaged equals the released 0.1 summed over 8 images."""
    ot_reduction: Reduction = Reduction.mean
    """Over the images of a batch: ``mean`` is independent of its size, ``sum`` is the released form."""
    tv_weight: float = number(0.01, 0)
    """Weight of the total-variation term."""
    count_weight: float = number(1.0, 0)
    """Weight of the absolute count error."""
    regularization: float = number(10.0, 0.001)
    """Entropic regularization, squared pixels."""
    iterations: int = number(100, 1)
    """Sinkhorn iterations; a published number needs exactly 100."""
    solver: Solver = Solver.released
    """``released`` is the iteration of published numbers, ``stable`` the same problem without underflow."""
    tolerance: float | None = number(None, 1e-6)
    """``stable`` goes on until the shares of all blocks err by less than this in sum, at most 10,000 iterations;
    None takes ``iterations``."""


@dataclass
class LossConfig:
    """Fields that every loss has."""

    name: str = MISSING


@dataclass
class DaceConfig(LossConfig):
    """Cross-entropy over bins plus a count loss (arXiv:2403.09281, equation 3)."""

    name: str = "dace"
    weight: float = number(1.0, 0)
    """Weight of the count loss (the paper's lambda)."""
    count_loss: CountTerm = CountTerm.dm
    """DM-Count's loss, or the absolute or squared error of the blocks."""
    transport: TransportConfig = field(default_factory=TransportConfig)


@dataclass
class CrossEntropyConfig(LossConfig):
    """Cross-entropy over bins alone."""

    name: str = "cross_entropy"


@dataclass
class MseConfig(LossConfig):
    """Squared error of the block counts against heads smoothed by a Gaussian (CSRNet, arXiv:1802.10062)."""

    name: str = "mse"
    kernel: Kernel = Kernel.fixed
    """One width for all heads, or by the distance to the neighbors (geometry-adaptive)."""
    sigma: float = number(15.0, 1e-3)
    """Standard deviation of the fixed kernel, pixels of the training crop."""
    neighbors: int = number(3, 1)
    """Heads whose mean distance sets the adaptive kernel."""
    beta: float = number(0.3, 1e-3)
    """Adaptive standard deviation as a share of that distance."""
    scale: float = number(1.0, 1e-6)
    """Factor on the loss; block counts are small, and so are their squared errors."""


@dataclass
class DmConfig(LossConfig):
    """DM-Count's loss of the block counts alone (arXiv:2009.13077)."""

    name: str = "dm"
    transport: TransportConfig = field(default_factory=TransportConfig)


# ------------------------------------------------------------------------------------------- optim


@dataclass
class OptimConfig:
    """Optimizer, learning rate, gradient clipping, weight averaging."""

    algorithm: Algorithm = Algorithm.adam
    lr: float = number(1e-4, 1e-12)
    """Peak learning rate."""
    weight_decay: float = number(1e-4, 0)
    """Adam adds it to the gradient (L2), AdamW shrinks the weights."""
    schedule: Schedule = Schedule.cosine_restarts
    step: ScheduleStep = ScheduleStep.epoch
    """The learning rate moves at every optimizer step, or once an epoch (released code)."""
    warmup_epochs: float = number(0.0, 0)
    """Epochs of linear warm-up from ``warmup_lr``."""
    warmup_lr: float = number(1e-6, 0)
    """Learning rate at the start of the warm-up."""
    min_lr: float = number(1e-7, 0)
    """Learning rate at the end of each cosine."""
    restart_epochs: int = number(5, 1)
    """Length of the first cosine with restarts, epochs (T_0)."""
    restart_factor: int = number(2, 1)
    """Each next cosine is so many times as long (T_mult)."""
    max_grad_norm: float | None = number(None, 1e-06)
    """Gradients are scaled down to this L2 norm; None leaves them."""
    ema_decay: float | None = number(None, 0, 0.999999)
    """Weights are averaged with this decay a step, and the average is evaluated; None does not average."""


# ---------------------------------------------------------------------------- evaluation and runtime


@dataclass
class EvalConfig:
    """What an evaluation writes; this kind leaves to the model how an image is counted."""

    pictures: int = number(6, 0)
    """Images drawn with truth and prediction side by side, worst errors first; 0 draws none."""


@dataclass
class WholeImageConfig(EvalConfig):
    """Each image in one piece."""


@dataclass
class SlidingWindowConfig(EvalConfig):
    """Each image in square windows, blocks that several windows see averaged."""

    window: int | None = number(None, 1)
    """Side of a window, pixels; None takes a ViT's ``model.input_size``, else the training crop's side."""
    stride: int | None = number(None, 1)
    """Pixels from one window to the next; None takes the window's side, so that they overlap at the border alone."""
    window_batch: int = number(8, 1)
    """Windows that go through the network at once; halved where memory does not suffice."""
    border: Border = Border.inward
    """The last window of a row is moved inward (released code), or reaches over padding that does not count."""


@dataclass
class RuntimeConfig:
    """Processes, devices, arithmetic."""

    accelerator: Accelerator = Accelerator.auto
    devices: int = number(1, 1)
    """Processes; each holds one device (or a share of the CPU) and one part of the batch."""
    precision: Precision = Precision.float32
    workers: int = number(1, 0)
    """Processes that load images, for each training process; 0 loads in the training process."""
    channels_last: bool = True
    """Memory layout of the network; faster on most machines, same numbers to rounding."""
    compile: bool = False
    """torch.compile the network for training; the first steps take minutes; same numbers to rounding."""


# ------------------------------------------------------------------------------------------- whole


@dataclass
class ExpectedConfig:
    """A published result of an experiment; no part of how it is run."""

    mae: float | None = None
    """Heads an image; None where none was published."""
    rmse: float | None = None
    """Heads an image; None where none was published."""
    source: str = MISSING
    """Where it was published."""
    same_recipe: bool = True
    """Whether it was trained and measured as the experiment is; else the two are never compared."""


@dataclass
class TrainConfig:
    """Everything a training run depends on; written beside its results."""

    dataset: DatasetConfig = MISSING
    model: ModelConfig = MISSING
    bins: BlocksConfig = MISSING
    augment: AugmentConfig = MISSING
    loss: LossConfig = MISSING
    optim: OptimConfig = MISSING
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING
    scale: str = "small"
    """Which set of sizes was chosen; recorded, so that a shrunk run cannot pass for a full one."""
    epochs: int = number(40, 1)
    """Passes over the training images."""
    batch_size: int = number(8, 1)
    """Crops an optimizer step, over all processes."""
    eval_every_epochs: int = number(5, 1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    seed: int = number(1, 0)
    """Seed of weights, order and augmentation."""
    data_root: str | None = None
    """Folder of the datasets; None takes the environment variable HEADCOUNT_DATA."""
    output_dir: str = "checkpoints"
    """Where runs go: <output_dir>/<dataset>/<run name>/seed<seed>."""
    run_name: str = "auto"
    """``auto`` names the run by model, bins and every setting that differs from the defaults."""
    resume: bool = False
    """Go on from last.pt of the same run directory."""
    dry_run: bool = False
    """Build everything, print a summary, stop."""
    expected: ExpectedConfig | None = None
    """What was published for this experiment, for comparison alone."""


@dataclass
class EvalCommandConfig:
    """What ``eval.py`` reads; everything else comes from the checkpoint."""

    ckpt: str = MISSING
    """The checkpoint's file."""
    split: str = "test"
    """Which images: train, val or test, as far as the dataset has them."""
    data_root: str | None = None
    """Folder of the datasets; None takes the environment variable HEADCOUNT_DATA."""
    max_images: int | None = number(None, 1)
    """Evaluate the first so many images; None for all."""
    output_dir: str | None = None
    """Where results go; None writes to eval/<dataset>_<split> beside the checkpoint."""
    dataset: DatasetConfig | None = None
    """Another dataset than the one the counter was trained on; None takes that one."""
    eval: EvalConfig = MISSING
    runtime: RuntimeConfig = MISSING


PLACE = (
    *("resume", "dry_run", "data_root", "output_dir", "run_name"),
    *("dataset.root", "dataset.cache_dir", "dataset.cache"),
    *("runtime.accelerator", "runtime.workers", "runtime.channels_last", "runtime.compile"),
)
"""Settings that say where and how a run happens, not what is learned."""

MODELS: dict[str, type[ModelConfig]] = {
    "tiny": TinyConfig,
    "mobilenet_v2": MobileNetV2Config,
    "imagenet": ImageNetConfig,
    "timm": TimmConfig,
    "clip_resnet": ClipResNetConfig,
    "clip_vit": ClipViTConfig,
}

# Every kind of every group. The YAML of a choice names its kind in its defaults list.
SCHEMAS: dict[str, dict[str, type]] = {
    "dataset": {
        "folder": FolderDatasetConfig,
        "ucf_cc_50": UcfCc50Config,
        "custom": CustomConfig,
        "synthetic": SyntheticConfig,
    },
    "model": {**MODELS},
    "bins": {"bins": BinsConfig, "blockwise": BlockwiseConfig, "none": BlocksConfig},
    "augment": {"ebc": AugmentConfig},
    "loss": {"dace": DaceConfig, "cross_entropy": CrossEntropyConfig, "dm": DmConfig, "mse": MseConfig},
    "optim": {"optim": OptimConfig},
    "eval": {"auto": EvalConfig, "whole_image": WholeImageConfig, "sliding_window": SlidingWindowConfig},
    "runtime": {"runtime": RuntimeConfig},
}


@cache  # once a process: tables compose hundreds of configs
def register_schemas() -> None:
    """Put every schema where the YAML files find it: ``/schema/<group>/<kind>``."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig)
    store.store(group="schema", name="eval", node=EvalCommandConfig)
    for group, kinds in SCHEMAS.items():
        for kind, node in kinds.items():
            store.store(group=f"schema/{group}", name=kind, node=node)


# ---------------------------------------------------------------------------------- plain and back


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """The config as plain values, with the kind of each group, for a checkpoint or a file."""
    plain: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)  # type: ignore[assignment]
    kinds = {}
    for group, schemas in SCHEMAS.items():
        node_type = type(getattr(config, group))
        kinds[group] = next(kind for kind, schema in schemas.items() if schema is node_type)
    return {"kinds": kinds, **plain}


def from_plain(plain: dict[str, Any]) -> TrainConfig:
    """The config that :func:`to_plain` wrote.

    Raises:
        ConfigError: if a key or value is none of this version's.
    """
    values = {k: v for k, v in plain.items() if k != "kinds"}
    try:
        config = OmegaConf.structured(TrainConfig)
        for group, kind in plain["kinds"].items():
            config[group] = OmegaConf.structured(SCHEMAS[group][kind])
        return OmegaConf.to_object(OmegaConf.merge(config, values))  # type: ignore[return-value]
    except (OmegaConfBaseException, KeyError) as error:
        raise ConfigError(f"this configuration was written by another version of headcount: {error}") from error


# ------------------------------------------------------------------------------------------ checks


def _range_errors(config: Any, path: str) -> list[str]:
    """Numbers outside what their field's metadata allows, for a dataclass and those inside it."""
    errors = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        key = f"{path}{item.name}"
        if dataclasses.is_dataclass(value):
            errors += _range_errors(value, f"{key}.")
        elif value is not None and (allowed := item.metadata.get("allowed")):
            least, most = allowed
            if not (least <= value <= most and math.isfinite(value)):
                limits = f"at least {least:g}, and finite" if most == math.inf else f"from {least:g} to {most:g}"
                errors.append(f"{key}={value}: must be {limits}")
    return errors


def check(config: TrainConfig) -> list[str]:
    """Every error of a training config that its types do not catch, one line each."""
    errors = _range_errors(config, "")
    if errors:  # the checks below divide by these numbers
        return errors
    errors += _head_errors(config)
    stride = config.model.stride(config.bins.block_size)
    if stride is not None and (wrong := crop_error(config, stride)):
        errors.append(wrong)
    if config.augment.min_scale > config.augment.max_scale:
        errors.append(
            f"augment.min_scale={config.augment.min_scale}: must not exceed "
            f"augment.max_scale={config.augment.max_scale}"
        )
    if config.augment.blur_size % 2 == 0:
        errors.append(f"augment.blur_size={config.augment.blur_size}: must be odd")
    if config.batch_size % config.runtime.devices:
        errors.append(
            f"batch_size={config.batch_size}: must be a multiple of runtime.devices={config.runtime.devices}, "
            "so that every process gets as many images"
        )
    errors += _model_errors(config.model)
    if config.optim.warmup_epochs >= config.epochs:
        errors.append(f"optim.warmup_epochs={config.optim.warmup_epochs:g}: must be below epochs={config.epochs}")
    if config.augment.blur_size > config.augment.crop_size:
        errors.append(
            f"augment.blur_size={config.augment.blur_size}: must be at most "
            f"augment.crop_size={config.augment.crop_size}"
        )
    errors += _dataset_errors(config.dataset)
    if stride is not None and (wrong := window_error(counting_mode(config), config.bins.block_size, stride)):
        errors.append(wrong)
    if config.run_name in (".", "..") or not re.fullmatch(r"[A-Za-z0-9._+-]+", config.run_name):
        errors.append(f"run_name={config.run_name}: may only hold letters, digits, '.', '_', '+' and '-'")
    return errors


def crop_error(config: TrainConfig, stride: int) -> str | None:
    """What is wrong with the size of training crops for a model of this ``stride`` (px)."""
    block, crop = config.bins.block_size, config.augment.crop_size
    step = math.lcm(block, stride)
    if crop % step == 0:
        return None
    near = max(crop // step, 1) * step
    return (
        f"augment.crop_size={crop}: must be a multiple of {step} (blocks of {block} px, "
        f"{config.model.name} works at stride {stride}); nearest below or at: {near}"
    )


def counting_mode(config: TrainConfig, chosen: EvalConfig | None = None) -> WholeImageConfig | SlidingWindowConfig:
    """How images are counted, with every size given: ``chosen``, else as ``config`` says, else as suits its model.

    A ViT sees windows of the size its positions are for; other networks see the whole image.
    """
    mode = config.eval if chosen is None or type(chosen) is EvalConfig else chosen
    vit = config.model if isinstance(config.model, ClipViTConfig) else None
    if type(mode) is EvalConfig:
        mode = WholeImageConfig() if vit is None else SlidingWindowConfig()
    if isinstance(mode, SlidingWindowConfig):
        window = mode.window or (config.augment.crop_size if vit is None else vit.input_size)
        mode = dataclasses.replace(mode, window=window, stride=mode.stride or window)
    assert isinstance(mode, (WholeImageConfig, SlidingWindowConfig))
    return mode if chosen is None else dataclasses.replace(mode, pictures=chosen.pictures)


def window_error(mode: WholeImageConfig | SlidingWindowConfig, block_size: int, stride: int) -> str | None:
    """What is wrong with the windows of ``mode`` for blocks and a model of these sizes, px."""
    if isinstance(mode, WholeImageConfig):
        return None
    window, step = mode.window or 0, mode.stride or 0
    multiple = math.lcm(block_size, stride)
    if window % multiple:
        return (
            f"eval.window={window}: must be a multiple of {multiple} (blocks of {block_size} px, the model works at "
            f"stride {stride}); nearest: {max(round(window / multiple), 1) * multiple}"
        )
    if step % block_size or step > window:
        return (
            f"eval.stride={step}: must be a multiple of bins.block_size={block_size}, and at most "
            f"eval.window={window}, so that windows leave no gap"
        )
    return None


def _dataset_errors(config: DatasetConfig) -> list[str]:
    """Settings of a dataset that contradict each other."""
    errors = _size_errors(config) if isinstance(config, FolderDatasetConfig) else []
    return errors + (_custom_errors(config) if isinstance(config, CustomConfig) else [])


def _head_errors(config: TrainConfig) -> list[str]:
    """Head, bins and loss that do not belong together."""
    errors = []
    head, bins, loss = config.model.head, config.bins, config.loss
    if isinstance(bins, (BinsConfig, BlockwiseConfig)):
        if head is Head.regression:
            also = " loss=dm" if isinstance(loss, (DaceConfig, CrossEntropyConfig)) else ""
            errors.append(f"model.head=regression: predicts counts without bins; add bins=none{also}")
        errors += _bins_errors(bins)
    else:
        if head is Head.ebc:
            errors.append("bins=none: leaves model.head=ebc nothing to classify; add model.head=regression")
        if isinstance(loss, (DaceConfig, CrossEntropyConfig)):
            term = loss.count_loss if isinstance(loss, DaceConfig) else CountTerm.dm
            name = loss.name if term is CountTerm.dm else f"{loss.name}_{term.name}"
            errors.append(f"loss={name}: classifies blocks into bins, and bins=none has none; choose loss=dm")
    if isinstance(bins, BlockwiseConfig) and isinstance(config.model, ClipConfig):
        errors.append(
            f"bins=blockwise: {config.model.name} reads a sentence about each bin, and there are none about intervals "
            "of smoothed counts; choose bins=fine, bins=dynamic or bins=coarse, or a model without texts"
        )
    transport = loss.transport if isinstance(loss, (DaceConfig, DmConfig)) else None
    if transport is not None and transport.tolerance is not None and transport.solver is Solver.released:
        errors.append(
            f"loss.transport.tolerance={transport.tolerance:g}: the released solver makes a number of iterations; "
            "add loss.transport.solver=stable"
        )
    return errors + _idle_errors(config)


def _idle_errors(config: TrainConfig) -> list[str]:
    """Changed settings that another keeps from being read: they would give one run several names."""
    ebc = config.bins if isinstance(config.bins, BinsConfig) else BinsConfig()
    intervals = config.bins if isinstance(config.bins, BlockwiseConfig) else BlockwiseConfig()
    loss = config.loss
    term = loss.count_loss if isinstance(loss, DaceConfig) else CountTerm.dm
    transport = loss.transport if isinstance(loss, (DaceConfig, DmConfig)) else TransportConfig()
    smoothed = loss if isinstance(loss, MseConfig) else MseConfig()
    every = tuple(item.name for item in dataclasses.fields(TransportConfig))
    # Group, its values, the settings that are not read, if so, and what keeps them from it.
    table: list[tuple[str, Any, tuple[str, ...], bool, str]] = [
        ("bins", ebc, ("min_head_px",), not ebc.label_correction, "bins.label_correction=false"),
        ("bins", ebc, ("min_head_px",), ebc.max_count is not None, "bins.max_count"),
        ("bins", ebc, ("representatives", "counted"), bool(ebc.representative_counts), "bins.representative_counts"),
        ("bins", ebc, ("counted",), ebc.representatives is Representatives.middle, "bins.representatives=middle"),
        ("bins", intervals, ("step",), intervals.edges is not None, "bins.edges"),
        ("loss.transport", transport, every, term is not CountTerm.dm, f"loss.count_loss={term.name}"),
        ("loss.transport", transport, ("iterations",), transport.tolerance is not None, "loss.transport.tolerance"),
        ("loss", smoothed, ("neighbors", "beta"), smoothed.kernel is Kernel.fixed, "loss.kernel=fixed"),
    ]
    errors = []
    for group, values, names, idle, because in table:
        defaults = {item.name: item.default for item in dataclasses.fields(values)}
        for name in names:
            value, default = (v.name if isinstance(v, Enum) else v for v in (getattr(values, name), defaults[name]))
            if idle and value != default:
                usual = "null" if default is None else default
                errors.append(f"{group}.{name}={value}: has no effect with {because}; leave it at {usual}")
    return errors


def _bins_errors(bins: BinsConfig | BlockwiseConfig) -> list[str]:
    """Settings of bins that contradict each other."""
    if isinstance(bins, BlockwiseConfig):
        wrong = edges_error(bins.edges or [])
        return [f"bins.edges={bins.edges}: {wrong}"] if wrong else []
    errors = []
    if bins.label_correction and bins.m < 1:
        errors.append(
            f"bins.min_head_px={bins.min_head_px}: must be at most bins.block_size={bins.block_size}; "
            "or set bins.max_count"
        )
    if not bins.label_correction:
        if bins.strategy is not Strategy.fine:
            errors.append(
                f"bins.strategy={bins.strategy.name}: bins.label_correction=false gives every integer a bin of its "
                "own; choose bins=fine"
            )
        if bins.max_count is not None:
            errors.append(
                f"bins.max_count={bins.max_count}: bins.label_correction=false goes up to the largest block of the "
                "training images; leave one of them out"
            )
    given = bins.representative_counts
    if given is not None and (bins.m >= 1 or not bins.label_correction):
        strategy, m = (bins.strategy, bins.m) if bins.label_correction else (Strategy.fine, max(len(given) - 1, 1))
        if wrong := representatives_error(given, integer_bins(strategy, m)):
            errors.append(f"bins.representative_counts={given}: {wrong}")
    return errors


def integer_bins(strategy: Strategy, m: int) -> list[tuple[float, float]]:
    """Bins [first, last] of integers that cover 0, 1, ...; the last is [first, inf).

    Fine bins hold one integer each. Coarse bins hold two each, but for {0}. Dynamic bins hold one
    integer below ceil(m / 2) and two from there. The pair that would contain ``m`` is the open one.

    Raises:
        ValueError: if ``m`` is below 1.

    Source: arXiv:2403.09281, sections III-A.1 and IV-B; the released sets of bins for m = 8 and 19.
    """
    if m < 1:
        raise ValueError(f"m={m}: the maximum count of a block must be at least 1")
    pairs_from = {Strategy.fine: m, Strategy.dynamic: math.ceil(m / 2), Strategy.coarse: 1}[strategy]
    bins = [(float(k), float(k)) for k in range(pairs_from)]
    first = float(pairs_from)
    while strategy is not Strategy.fine and first + 1 < m:
        bins.append((first, first + 1))
        first += 2
    return [*bins, (first, math.inf)]


def bin_names(edges: Sequence[tuple[float, float]]) -> list[str]:
    """Each bin of integers as text: ``{0}``, ``[1, 2]``, ``[4, inf)``."""
    return [
        f"[{low:g}, inf)" if high == math.inf else f"{{{low:g}}}" if low == high else f"[{low:g}, {high:g}]"
        for low, high in edges
    ]


def representatives_error(given: Sequence[float], edges: Sequence[tuple[float, float]]) -> str | None:
    """What is wrong with the representative counts ``given`` for bins of integers."""
    if len(given) == len(edges) and all(
        math.isfinite(value) and low <= value <= high for value, (low, high) in zip(given, edges, strict=True)
    ):
        return None
    names = bin_names(edges)
    shown = names if len(names) <= 16 else [*names[:8], "...", *names[-4:]]
    return f"do not fit the {len(edges)} bins: one finite number is needed inside each of {', '.join(shown)}"


def edges_error(edges: list[float]) -> str | None:
    """What is wrong with the upper ends of intervals of smoothed counts."""
    if all(math.isfinite(e) for e in edges) and all(
        low < high for low, high in itertools.pairwise([ZERO_BELOW, *edges])
    ):
        return None
    return f"must be finite and increase, and begin above {ZERO_BELOW:g}, up to which a smoothed count is 0"


def _model_errors(model: ModelConfig) -> list[str]:
    """Settings of a model that cannot be."""
    errors = []
    if model.names and model.name not in model.names:
        errors.append(f"model.name={model.name}: must be {', '.join(model.names)}; choose another with model=...")
    for name, values in (("mean", model.mean), ("std", model.std)):
        if values is not None and (
            len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0)
        ):
            errors.append(
                f"model.{name}={values}: must be three finite numbers (red, green, blue){', above 0' * (name == 'std')}"
            )
    if isinstance(model, MobileNetV2Config) and model.stage not in (160, 320):
        errors.append(f"model.stage={model.stage}: must be 160 or 320")
    if isinstance(model, PretrainedConfig):
        errors += _weights_errors(model)
    if isinstance(model, ClipConfig):
        errors += _clip_errors(model)
    return errors


def _weights_errors(model: PretrainedConfig) -> list[str]:
    """Weights that are neither a known word nor a file that is there."""
    weights = model.weights
    words = {f.name: f.default for f in dataclasses.fields(model)}["weights"]
    # A bare word may be a tag of open_clip's table, which is not loaded yet.
    may_be_tag = isinstance(model, ClipConfig) and os.path.basename(weights) == weights and "." not in weights
    if weights in (words, "none") or may_be_tag or os.path.isfile(os.path.expanduser(weights)):
        return []
    tag = "a tag of open_clip, " if isinstance(model, ClipConfig) else ""
    problem = "is a folder" if os.path.isdir(os.path.expanduser(weights)) else "no such file"
    return [f"model.weights={weights}: {problem}; allowed are {words}, {tag}none, or the path of a file of weights"]


def _clip_errors(model: ClipConfig) -> list[str]:
    """Sizes and prompts of CLIP that cannot be."""
    errors = []
    stages = 4 if isinstance(model, ClipResNetConfig) else 1
    if model.layers is not None and (len(model.layers) != stages or min(model.layers) < 1):
        errors.append(f"model.layers={model.layers}: must be {stages} whole number{'s' * (stages > 1)} above 0")
    if model.decoder_channels is not None and min(model.decoder_channels, default=0) < 1:
        errors.append(f"model.decoder_channels={model.decoder_channels}: must be one or more numbers above 0")
    if model.decoder_channels is not None and model.decoder is Decoder.none:
        errors.append("model.decoder_channels: model.decoder=none has no decoder to size")
    if model.prior_bias and model.head is Head.ebc:
        errors.append("model.prior_bias=True: the cosine head has no bias; of use with model.head=regression alone")
    if model.quick_gelu is False and model.weights == "openai":
        errors.append("model.quick_gelu=False: OpenAI's weights were trained with QuickGELU; leave it to the weights")
    if isinstance(model, ClipViTConfig):
        patch = model.names.get(model.name) or 1
        if model.input_size % patch:
            near = max(model.input_size // patch, 1) * patch
            errors.append(
                f"model.input_size={model.input_size}: must be a multiple of the patches' {patch} px; "
                f"nearest below or at: {near}"
            )
        if model.width is not None and model.heads is None and model.width % 64:
            errors.append(
                f"model.width={model.width}: set model.heads, which must divide it; a head has 64 channels by default"
            )
    allowed = {"one": {"count"}, "many": {"count"}, "between": {"low", "high"}, "more_than": {"low"}}
    allowed["m_or_more"] = {"low"}
    for key, counts in allowed.items():
        phrase = getattr(model.prompts, key)
        try:
            fields = [part[1:] for part in string.Formatter().parse(phrase) if part[1] is not None]
            # A format or a conversion ("{count:3}", "{count!r}") is for numbers, and these are words.
            found = {phrase if spec or conversion else name for name, spec, conversion in fields}
        except ValueError:
            found = {phrase}
        if not counts <= found <= counts | {"noun"}:
            needed = " and ".join(f"{{{name}}}" for name in sorted(counts))
            errors.append(f"model.prompts.{key}={phrase}: must hold {needed}, and may hold {{noun}}, nothing else")
    return errors


def _size_errors(config: FolderDatasetConfig) -> list[str]:
    """Limits of the one-time resize that contradict each other."""
    errors = []
    for key in ("min_side", "max_side"):
        side = getattr(config, key)
        if side is not None and side % config.side_multiple:
            errors.append(f"dataset.{key}={side}: must be a multiple of dataset.side_multiple={config.side_multiple}")
    if config.max_side is not None and config.max_side < config.min_side:
        errors.append(f"dataset.max_side={config.max_side}: must be at least dataset.min_side={config.min_side}")
    return errors


def _custom_errors(config: CustomConfig) -> list[str]:
    """Settings of a dataset of one's own that contradict each other."""
    given = {f"dataset.{k}": folder for k in ("train", "val", "test") if (folder := getattr(config, k)) is not None}
    shares = f"dataset.val_fraction={config.val_fraction:g} dataset.test_fraction={config.test_fraction:g}"
    errors = []
    if given and config.train is None:
        errors.append(f"{next(iter(given))}: needs dataset.train as well")
    if given and config.split_file is not None:
        errors.append(f"dataset.split_file={config.split_file}: splits one folder; leave out {', '.join(given)}")
    if len({os.path.abspath(folder) for folder in given.values()}) < len(given):
        errors.append(f"{', '.join(given)}: two of these are one folder, whose images would be trained on and tested")
    if list(given) == ["dataset.train"] and config.holdout == 0:
        errors.append("dataset.train: add dataset.val or dataset.test to select on, or dataset.holdout=0.1")
    if not given and config.split_file is None:
        if config.val_fraction + config.test_fraction >= 1:
            errors.append(f"{shares}: leave no images to train on; their sum must be below 1")
        if config.val_fraction + config.test_fraction + config.holdout == 0:
            errors.append(f"{shares}: leave no images to select on; raise one, or add dataset.holdout=0.1")
    return errors


def check_evaluation(config: EvalCommandConfig) -> list[str]:
    """Every error of an evaluation's config that its types do not catch, one line each."""
    errors = _range_errors(config, "") or ([] if config.dataset is None else _dataset_errors(config.dataset))
    path = Path(config.ckpt).expanduser()
    return errors if path.is_file() else [*errors, missing_checkpoint(path)]


def missing_checkpoint(path: Path) -> str:
    """What to say of a checkpoint that is not there: its name, and those beside it."""
    beside = sorted(str(p) for p in path.parent.glob("*.pt")) if path.parent.is_dir() else []
    return f"ckpt={path}: no such file" + (f"; there is {', '.join(beside)}" if beside else "")
