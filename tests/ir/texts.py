"""Models from ONNX text; weights are given by shape and filled with a fixed ramp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

HEADER = '<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>\n'


def ramp(*shape: int) -> np.ndarray:
    size = int(np.prod(shape))
    return (np.arange(size, dtype=np.float32) % 97 / 97 - 0.5).reshape(shape)


def model(text: str, /, **weights: Sequence[int] | np.ndarray) -> ir.Model:
    """Parses ``text`` (a graph) and gives it weights: arrays, or shapes to fill."""
    arrays = {
        name: one if isinstance(one, np.ndarray) else ramp(*one)
        for name, one in weights.items()
    }
    return ir.from_proto(proto(text, arrays))


def proto(text: str, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Parses ``text`` (a graph) and adds ``arrays`` as initializers."""
    parsed = onnx.parser.parse_model(HEADER + text)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    parsed.graph.initializer.extend(tensors)
    return parsed
