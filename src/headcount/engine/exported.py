"""Count with an exported file, by onnxruntime or by torch, as the counter that it was exported from."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.export import ExportedProgram

from headcount.config import Border, ConfigError, SlidingWindowConfig, WholeImageConfig
from headcount.engine.export import INPUT, METADATA, missing_extra
from headcount.models.counter import Counter
from headcount.models.tiling import count_image
from headcount.types import BlockGrid, Counted
from headcount.wording import one_line

Run = Callable[[UInt8[np.ndarray, "batch height width 3"]], Sequence[Any]]
"""Images -> count, and blocks and probabilities if the file has them, in this order."""


@dataclass
class ExportedCounter:
    """An exported file that is loaded; build with :func:`load_exported`."""

    run: Run
    description: dict[str, Any]
    """What the file says of itself."""

    @property
    def grid(self) -> BlockGrid:
        """The blocks whose counts it predicts."""
        return BlockGrid(int(self.description["block_size"]))

    @property
    def mode(self) -> WholeImageConfig | SlidingWindowConfig:
        """How it counts an image: whole, or in windows of one size."""
        windows = self.description["windows"]
        if windows is None:
            return WholeImageConfig()
        return SlidingWindowConfig(
            window=windows["window"], stride=windows["stride"], border=Border[windows["border"]], window_batch=1
        )

    def count(self, image: UInt8[Tensor, "3 height width"], *, probabilities: bool = False) -> Counted:
        """Count the people in an image that is already resized; see ``Counter.count``."""
        pixels = image.permute(1, 2, 0).numpy()
        block, window = self.grid.block_size, getattr(self.mode, "window", None)

        def predict(corners: list[tuple[int, int]], size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
            (top, left), (height, width) = corners[0], size
            part = np.ascontiguousarray(pixels[None, top : top + height, left : left + width])
            count, *maps = (torch.from_numpy(np.asarray(value)) for value in self.run(part))
            if not maps:
                return count.float(), None
            joined = torch.cat([maps[0][:, None], *(maps[1:] if probabilities else [])], dim=1)
            if window is None:
                return count.float(), joined
            # Blocks outside of the image, which the file leaves out and nobody counts.
            whole = torch.zeros(1, joined.shape[1], window // block, window // block)
            whole[..., : joined.shape[2], : joined.shape[3]] = joined
            return count.float(), whole

        height, width = image.shape[1:]
        return count_image(predict, self.mode, height=height, width=width, grid=self.grid, stride=block)


def load_exported(path: Path, *, threads: int | None = None) -> ExportedCounter:
    """Load a file of ``headcount export``.

    Args:
        threads: of onnxruntime; None leaves the choice to it.

    Raises:
        ConfigError: if the file is missing or not such a file, or onnxruntime is not installed.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".onnx":
        return from_onnx(path.read_bytes(), str(path), threads=threads)
    extra = {METADATA: ""}
    try:
        program = torch.export.load(str(path), extra_files=extra)
        return from_program(program, json.loads(extra[METADATA]))
    except Exception as error:  # torch raises a dozen types of errors
        raise _not_exported(str(path), error) from error


def from_program(program: ExportedProgram, description: dict[str, Any]) -> ExportedCounter:
    """The counter of a program of torch.export."""
    module = program.module()

    @torch.inference_mode()
    def run(images: UInt8[np.ndarray, "batch height width 3"]) -> Sequence[Any]:
        return list(module(**{INPUT: torch.from_numpy(images)}).values())

    return ExportedCounter(run, description)


def from_onnx(content: bytes, name: str, *, threads: int | None = None) -> ExportedCounter:
    """The counter in the content of an ``.onnx`` file.

    Args:
        name: of the file, for messages.
        threads: of onnxruntime; None leaves the choice to it.

    Raises:
        ConfigError: if it is not such a file, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("counting with an ONNX file", error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        texts = session.get_modelmeta().custom_metadata_map
        description = {key: _value(text) for key, text in texts.items()}
        if "block_size" not in description or "windows" not in description:
            raise ValueError("its metadata are not those of headcount")
    except Exception as error:  # onnxruntime raises a type of its own for each status
        raise _not_exported(name, error) from error
    return ExportedCounter(lambda images: session.run(None, {INPUT: images}), description)


MAX_DIFFERENCE = 1e-3
"""A float32 file that counts a block otherwise by more is not written, in people; rounding makes about 1e-5."""


def check_parity(exported: ExportedCounter, counter: Counter) -> float:
    """Count two images of noise with an exported file and with its counter.

    Returns:
        The largest difference of a block, or of the count where there are no blocks, in people.

    Raises:
        ConfigError: if it is not due to rounding.
    """
    mode = exported.mode
    side = getattr(mode, "window", None) or 3 * math.lcm(counter.stride, counter.grid.block_size)
    largest, generator = 0.0, torch.Generator().manual_seed(0)
    for height, width in ((side, side), (max(1, side - 5), side // 2 + 1)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        ours, theirs = counter.count(image, mode), exported.count(image)
        difference = torch.tensor([ours.count - theirs.count])
        if ours.blocks is not None and theirs.blocks is not None:
            difference = ours.blocks - theirs.blocks
        largest = max(largest, float(difference.abs().max()))
    if not largest <= MAX_DIFFERENCE:  # NaN, too
        raise ConfigError(
            f"the exported network does not count as the checkpoint does: blocks differ by up to {largest:g} people; "
            "nothing is written. Try another version of PyTorch or onnxruntime"
        )
    return largest


def _value(text: str) -> Any:
    """A value of the metadata: JSON, or plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _not_exported(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"{name}: not a file that headcount exported: {one_line(error)}")
