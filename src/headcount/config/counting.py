"""How an image is counted: in one piece or in windows."""

import math
from dataclasses import dataclass
from enum import Enum

from headcount.config.fields import number


class Border(Enum):
    """Where the last window of a row goes: moved inward to the border, or on over padding."""

    inward = 1
    pad = 2


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
