"""Store and compute a counter's layers in 8-bit integers, in an ONNX file, by onnxruntime's quantization."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from headcount.engine.export import INPUT, missing_extra

# Layers whose inputs are quantized; the bins' softmax and the sums of counts stay in float32.
_LAYERS = ["Conv", "MatMul", "Gemm", "Relu", "Clip", "Add", "MaxPool"]


def quantize(proto: Any, pictures: Iterable[UInt8[np.ndarray, "height width 3"]] | None) -> Any:
    """An ``onnx.ModelProto`` with weights of 8 bits.

    Args:
        proto: in float32.
        pictures: the ranges of the values between the layers are measured on them (static quantization). None measures
            them on each image that is counted (dynamic quantization).

    Raises:
        ConfigError: if onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    except ImportError as error:
        raise missing_extra("--int8", error) from error
    import onnx

    with tempfile.TemporaryDirectory() as folder, _quiet():
        # Files, because given a model in memory, onnxruntime moves its weights out of it.
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(proto.SerializeToString())
        if pictures is None:
            quantize_dynamic(before, after, weight_type=QuantType.QUInt8, per_channel=True)
        else:
            quantize_static(
                before,
                after,
                _Inputs(pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_LAYERS,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        quantized = onnx.load(after)
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in proto.metadata_props})
    return quantized


class _Inputs:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, pictures: Iterable[UInt8[np.ndarray, "height width 3"]]) -> None:
        self.pictures = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input; None at the end."""
        picture = next(self.pictures, None)
        return None if picture is None else {INPUT: picture[None]}


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide advice for authors of networks, which onnxruntime logs as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
