"""Export a counter to a file that needs no headcount: ONNX, or a program of torch.export (``.pt2``).

The exported graph takes RGB bytes and returns people: normalization, padding and the softmax of the bins are inside.
What must happen before it, resizing and cutting into windows, is described in the file (:func:`describe`).
"""

import copy
import dataclasses
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

import headcount
from headcount.config import ConfigError, SlidingWindowConfig, WholeImageConfig
from headcount.data.prepare import ResizeRule
from headcount.engine.checkpoint import LoadedCheckpoint
from headcount.files import atomic_write, json_line
from headcount.models.counter import Counter
from headcount.wording import one_line

OPSET = 20
"""Version of ONNX's operators in an exported file."""
METADATA = "headcount.json"
"""Name of the description inside a ``.pt2`` file."""
INPUT = "images"
_AXES = {
    INPUT: ("batch", "height", "width", None),
    "count": ("batch",),
    "blocks": ("batch", "rows", "cols"),
    "probabilities": ("batch", None, "rows", "cols"),
}
_MAX_ONNX_BYTES = 2_000_000_000  # a protocol buffer has at most 2 GiB


class CountingGraph(nn.Module):
    """A counter from bytes to people, as ``Counter.count`` counts a whole image or one window of it.

    Args:
        window: side of a window, in pixels, to which smaller images are padded, and which larger ones must not have;
            None pads an image as far as the network needs.
    """

    def __init__(self, counter: Counter, window: int | None) -> None:
        super().__init__()
        self.counter = counter
        self.window = window

    def forward(self, images: UInt8[Tensor, "batch height width 3"]) -> dict[str, Tensor]:
        """Count the people in each image.

        Returns:
            ``count`` (batch), float64; and if the network predicts them, ``blocks`` (batch, rows, cols) and
            ``probabilities`` (batch, bins, rows, cols), float32.
        """
        height, width = images.shape[1:3]
        pixels = self.counter.normalize(images.permute(0, 3, 1, 2))
        prediction = self.counter.predict_normalized(self._padded(pixels, height, width))
        if prediction.blocks is None:
            return {"count": prediction.count.double()}
        # Not BlockGrid.shape: ONNX rounds the quotient of a negative number towards zero.
        block = self.counter.grid.block_size
        rows, cols = (height + block - 1) // block, (width + block - 1) // block
        blocks = prediction.blocks.float()[:, 0, :rows, :cols]
        outputs = {"count": blocks.double().sum((1, 2)), "blocks": blocks}
        probabilities = prediction.probabilities()
        if probabilities is not None:
            outputs["probabilities"] = probabilities[..., :rows, :cols]
        return outputs

    def _padded(self, pixels: Tensor, height: Any, width: Any) -> Tensor:
        """The normalized pixels with zeros, which are the mean color, at the right and at the bottom.

        Args:
            height, width: of ``pixels``; while the graph is traced, symbols.
        """
        if self.window is None:  # as headcount.models.tiling.whole_size, which takes no symbols
            multiple = math.lcm(self.counter.stride, self.counter.grid.block_size)
            return F.pad(pixels, (0, -width % multiple, 0, -height % multiple))
        # Padding by a negative number would cut a larger image silently; a negative number of zeros is an error.
        right = pixels.new_zeros(pixels.shape[0], 3, height, self.window - width)
        pixels = torch.cat([pixels, right], dim=3)
        below = pixels.new_zeros(pixels.shape[0], 3, self.window - height, self.window)
        return torch.cat([pixels, below], dim=2)


class _PoolToCells(nn.Module):
    """``nn.AdaptiveAvgPool2d`` to a fixed number of cells as products with matrices, which ONNX has for every size."""

    def __init__(self, cells: tuple[int, int]) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, maps: Float[Tensor, "batch channels rows cols"]) -> Tensor:
        down, across = (_averages(n, size) for n, size in zip(self.cells, maps.shape[-2:], strict=True))
        return down @ maps @ across.T


def _averages(cells: int, size: Any) -> Tensor:
    """A matrix (``cells``, ``size``) whose rows average the same parts of a side as torch's adaptive pooling.

    Args:
        size: length of the side; while the graph is traced, a symbol.
    """
    cell, place = torch.arange(cells)[:, None], torch.arange(size)
    start, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    return ((place >= start) & (place < end)).float() / (end - start)


def build_graph(counter: Counter, mode: WholeImageConfig | SlidingWindowConfig) -> CountingGraph:
    """The graph of a counter, which is not changed.

    Args:
        mode: how images are counted, with every size given.

    Raises:
        ConfigError: if it does not count by a single pass of its network.
    """
    if not counter.counts_in_one_pass:
        raise ConfigError(
            "model=clip_ranking: cannot be exported, because it counts the patches of an image that its filters keep, "
            "which no single pass of the network does; use the checkpoint"
        )
    counter = copy.deepcopy(counter).cpu().eval().requires_grad_(False)
    for module in list(counter.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                size: Any = child.output_size
                setattr(module, name, _PoolToCells(size if isinstance(size, tuple) else (size, size)))
    return CountingGraph(counter, mode.window if isinstance(mode, SlidingWindowConfig) else None)


def trace(graph: CountingGraph, name: str) -> ExportedProgram:
    """Record the operations of a graph, for any number and size of images.

    Args:
        name: of the model, for the error.

    Raises:
        ConfigError: if its operations depend on sizes or values in a way that cannot be recorded.
    """
    side = graph.window or 4 * math.lcm(graph.counter.stride, graph.counter.grid.block_size)
    # An odd size, so that no symbol of the recording is taken for a multiple of another number.
    height, width = max(1, side - 3), max(1, side - 5)
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    axis = Dim.DYNAMIC if graph.window is None else Dim.DYNAMIC(max=graph.window)
    try:
        # Without this setting, a graph is only valid for maps of more than one row and column.
        oblivious = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
        with torch.no_grad(), oblivious, _constant_same_padding():
            program = torch.export.export(
                graph,
                (),
                kwargs={INPUT: example},
                dynamic_shapes={INPUT: {0: Dim.DYNAMIC, 1: axis, 2: axis}},
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # torch raises a dozen types of errors
        raise _not_exportable(name, "torch.export", error) from error
    _remove_asserts(program)
    return program


@contextmanager
def _constant_same_padding() -> Iterator[None]:
    """Make the "same" padding of timm's layers constant, without which recording does not end in reasonable time.

    timm computes it from the size of the maps. They are those of an image of whole strides, so that the stride of each
    layer divides them, and the padding no longer depends on the size.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # no network of timm was built
        yield
        return
    usual = padding.get_same_padding
    padding.get_same_padding = _same_padding
    try:
        yield
    finally:
        padding.get_same_padding = usual


def _same_padding(size: Any, kernel_size: int, stride: int, dilation: int) -> int:
    """timm's ``get_same_padding`` of a size that is a multiple of the stride."""
    return max((kernel_size - 1) * dilation + 1 - stride, 0)


def _remove_asserts(program: ExportedProgram) -> None:
    """Remove what torch.export assumed of sizes to predict memory layouts, such as maps of more than one row.

    The operations find out the layouts of their inputs themselves, and images of one row of blocks are valid.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _not_exportable(name: str, by: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"model={name}: this network cannot be exported, because {by} cannot record it for images of any size: "
        f"{type(error).__name__}: {one_line(error)}"
    )


def describe(loaded: LoadedCheckpoint, mode: WholeImageConfig | SlidingWindowConfig, license: str) -> dict[str, Any]:
    """What a user of an exported file must know, as plain values; the same in every format.

    Not the settings of the training, which name folders of the machine that it ran on.

    Args:
        mode: how images are counted, with every size given.
        license: the terms of the weights.
    """
    content, config, bins = loaded.content, loaded.config, loaded.bins
    best = content["best"]
    resizing, rule = ResizeRule.for_pictures(config.dataset), None
    if resizing is not None:
        rule = {**dataclasses.asdict(resizing), "filter": "bicubic, antialiased"}
    windows = None
    if isinstance(mode, SlidingWindowConfig):
        windows = {"window": mode.window, "stride": mode.stride, "border": mode.border.name}
    return {
        "input": "uint8 (batch, height, width, 3): RGB, 0 to 255, turned upright, resized by the rule in 'resize'",
        "resize": rule,
        "windows": windows,
        "block_size": loaded.counter.grid.block_size,
        "bins": None if bins is None else bins.names(),
        "representative_counts": None if bins is None else list(bins.representatives),
        "model": config.model.name,
        "dataset": config.dataset.name,
        "license": license,
        "epoch": content["epoch"],
        "best": best if best and best.get("epoch") == content["epoch"] else None,
        "figures": content.get("figures", []),
        "selection": content["selection"],
        "commit": content["commit"],
        "headcount_version": headcount.__version__,
    }


def save_program(program: ExportedProgram, description: dict[str, Any], path: Path) -> None:
    """Write a ``.pt2`` file that ``torch.export.load`` reads.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as part, part.open("wb") as file:
        torch.export.save(program, file, extra_files={METADATA: json_line(description)})


def import_onnx() -> Any:
    """The package ``onnx``, once all packages that an export to ONNX uses are known to be installed.

    Raises:
        ConfigError: if one of them is not.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("exporting to ONNX", error) from error
    return onnx


def missing_extra(purpose: str, error: ImportError) -> ConfigError:
    """The error of a command that needs a package of the extra ``export``."""
    return ConfigError(
        f"{purpose} needs {error.name or 'a package'}, which is not installed: pip install 'headcount[export]'"
    )


def to_onnx(program: ExportedProgram, description: dict[str, Any]) -> Any:
    """The ``onnx.ModelProto`` of a traced graph; its metadata holds the description, values other than text as JSON.

    Raises:
        ConfigError: if a package is missing, an operation does not exist in ONNX, or the weights are too large for it.
    """
    onnx = import_onnx()
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _MAX_ONNX_BYTES:
        raise ConfigError(
            f"model={description['model']}: its weights have {size / 1e9:.1f} GB, and an ONNX file has at most "
            f"{_MAX_ONNX_BYTES / 1e9:g}; name a file.pt2"
        )
    names = list(_AXES)[1 : 1 + len(program.graph_signature.user_outputs)]
    try:
        with _torch_warnings():
            exported = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=names, verbose=False
            )
        assert exported is not None
        proto = exported.model_proto
    except Exception as error:  # of onnxscript, too
        raise _not_exportable(description["model"], "torch.onnx", error) from error
    proto.producer_name, proto.producer_version = "headcount", headcount.__version__
    proto.doc_string = "Crowd counter: pictures in, people out. The metadata say how pictures are prepared."
    values = {key: value if isinstance(value, str) else json_line(value).strip() for key, value in description.items()}
    onnx.helper.set_model_props(proto, values)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim, axis in zip(value.type.tensor_type.shape.dim, _AXES[value.name], strict=True):
            if axis is not None:
                dim.dim_param = axis
    del proto.graph.value_info[:]  # sizes in the middle of the graph, in symbols that nothing refers to any more
    return proto


@contextmanager
def _torch_warnings() -> Iterator[None]:
    """Hide what torch.onnx and onnxscript say of their own code while they export."""
    with warnings.catch_warnings():
        for module in (r"torch\.", "onnxscript", "onnx_ir", "onnx"):
            warnings.filterwarnings("ignore", module=module)
        yield


def save_onnx(proto: Any, path: Path) -> None:
    """Write an ``.onnx`` file that contains its weights.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as part:
        part.write_bytes(proto.SerializeToString())
