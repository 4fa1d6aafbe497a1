"""How an image is counted: as a whole or in windows, and averaged over which views of it."""

import dataclasses
import math
from dataclasses import dataclass
from enum import Enum

from headcount.config.fields import number
from headcount.config.model import ClipViTConfig, ModelConfig
from headcount.errors import ConfigError

DEFAULT_LEVEL = 0.9
"""Share of images whose true count is to lie within the interval of their count."""


class Border(Enum):
    """What happens to the last window of a row or column: moved inward to the border, or extended by padding."""

    inward = 1
    pad = 2


class Tta(Enum):
    """Test-time averaging over an image and its mirror image."""

    none = 1
    flip = 2


@dataclass(frozen=True)
class View:
    """A version of an image that is counted."""

    scale: float = 1.0
    """Its size, as a multiple of that of the image."""
    mirrored: bool = False
    """Whether it is flipped horizontally."""


@dataclass
class EvalConfig:
    """Evaluation; this kind lets the model decide how an image is counted."""

    pictures: int = number(6, 0, 10_000)
    """Number of images drawn with ground truth and prediction side by side, worst errors first; 0 draws none."""
    tta: Tta | None = None
    """Test-time averaging: ``flip`` averages the counts of each image and its mirror image, ``none`` counts it once;
    None is as in training, by default ``none``."""
    scales: list[float] | None = number(None, 0.25, 4)
    """Sizes at which each image is counted, as multiples of its own, such as [0.75,1,1.25]; the counts are averaged.
    None is as in training, by default [1]."""

    @property
    def views(self) -> list[View]:
        """The versions of each image whose counts are averaged; a single one for plain counting."""
        mirrored = [False, True] if self.tta is Tta.flip else [False]
        return [View(scale, flip) for scale in self.scales or [1.0] for flip in mirrored]


@dataclass
class WholeImageConfig(EvalConfig):
    """Count each image as a whole."""


@dataclass
class SlidingWindowConfig(EvalConfig):
    """Count each image in square windows; blocks that several windows cover are averaged."""

    window: int | None = number(None, 1, 8192)
    """Side of a window, in pixels; None uses a ViT's ``model.input_size``, otherwise ``augment.crop_size``."""
    stride: int | None = number(None, 1, 8192)
    """Distance between two windows, in pixels; None uses ``window``, so that windows overlap only at the border."""
    window_batch: int = number(8, 1, 1024)
    """Windows per forward pass; halved when memory is insufficient."""
    border: Border = Border.inward
    """The last window is moved ``inward`` (released code), or ``pad`` extends it by padding that is not counted."""


def counting_mode(
    eval: EvalConfig, model: ModelConfig, *, crop_size: int, chosen: EvalConfig | None = None
) -> WholeImageConfig | SlidingWindowConfig:
    """Decide how images are counted, with every size filled in.

    By default a ViT sees windows of the size its positions are for. Other networks, and those whose head predicts one
    number per image, see the whole image. Test-time averaging that is not chosen is that of the run.

    Args:
        eval: the evaluation settings of the run.
        model: the model's settings.
        crop_size: side of a training crop, in pixels.
        chosen: settings that replace those of the run; its ``pictures`` always do. None keeps the run's.
    """
    mode = eval if chosen is None or type(chosen) is EvalConfig else chosen
    vit = model if isinstance(model, ClipViTConfig) else None
    if type(mode) is EvalConfig:
        in_windows = vit is not None and "blocks" in model.head.predicts
        mode = SlidingWindowConfig() if in_windows else WholeImageConfig()
    if isinstance(mode, SlidingWindowConfig):
        window = mode.window or (crop_size if vit is None else vit.input_size)
        mode = dataclasses.replace(mode, window=window, stride=mode.stride or window)
    assert isinstance(mode, (WholeImageConfig, SlidingWindowConfig))
    pictures = mode.pictures if chosen is None else chosen.pictures
    typed = chosen or eval
    return dataclasses.replace(mode, pictures=pictures, tta=typed.tta or eval.tta, scales=typed.scales or eval.scales)


def errors(config: EvalConfig) -> list[str]:
    """Find settings of an evaluation that contradict each other; one message each."""
    scales = config.scales
    if scales is None or (scales and len(set(scales)) == len(scales)):
        return []
    typed = f"eval.scales=[{','.join(f'{scale:g}' for scale in scales)}]"
    if not scales:
        return [f"{typed}: names no size; leave it out, or name one or more, as in eval.scales=[0.75,1,1.25]"]
    return [f"{typed}: names a size twice; name each once"]


def describe_mode(mode: WholeImageConfig | SlidingWindowConfig) -> str:
    """How images are counted, in words for a record."""
    words = "whole image"
    if isinstance(mode, SlidingWindowConfig):
        words = f"windows of {mode.window} px every {mode.stride} px, border {mode.border.name}"
    sizes = [f"{scale:g}" for scale in mode.scales or [1]]
    words += ", averaged with the mirror image" if mode.tta is Tta.flip else ""
    return words if sizes == ["1"] else f"{words}, averaged over sizes {', '.join(sizes)}"


def check_level(level: float, *, setting: str = "level") -> float:
    """The level of an interval.

    Args:
        setting: named in the error.

    Raises:
        ConfigError: if it is not between 0 and 1.
    """
    if not 0 < level < 1:
        percent = f"; for {level:g} %, type {level / 100:g}" if 2 <= level < 100 else ""
        raise ConfigError(f"{setting}={level:g}: must be above 0 and below 1, such as {DEFAULT_LEVEL:g}{percent}")
    return level


def window_error(mode: WholeImageConfig | SlidingWindowConfig, block_size: int, stride: int) -> str | None:
    """Check the windows of an evaluation against the blocks and the model.

    Args:
        mode: from :func:`counting_mode`, so that its sizes are filled in.
        block_size: side of a block, in pixels.
        stride: pixels of the input between two features of the model.

    Returns:
        What is wrong and what fits; None if nothing is wrong.
    """
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
