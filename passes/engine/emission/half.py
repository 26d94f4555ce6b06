"""Weights that are stored as float16, for graphs that compute in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....ir import BlockId, Unit, annotate, note_of
from .replacing import first_reader


def store_as_half(unit: Unit, name: str) -> None:
    """Stores a float32 weight as float16 and a Cast, which keeps its values.

        %y = MatMul(%x, @w)      =>      %v = Cast(@w)        @w is float16 now
                                         %y = MatMul(%x, %v)

    The runtime folds the Cast when it loads the model. The weight keeps its name, so that it
    is the same unit afterwards. One that is float16 already stays as it is.

    Args:
        unit: A unit whose weight is a float32 initializer that float16 can hold.
        name: An unused name for the Cast and its output.
    """
    weight, graph = unit.weight, unit.anchor.graph
    assert graph is not None
    dtype, array = unit.tensor.dtype, unit.tensor.numpy().astype(np.float16)
    if dtype == ir.DataType.FLOAT16:
        return
    first, readers = first_reader(graph, unit), list(weight.uses())
    cast = ir.node("Cast", [weight], {"to": int(dtype)}, name=name)
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = name, ir.TensorType(dtype), weight.shape
    for usage in readers:
        usage.node.replace_input_with(usage.idx, wide)
    graph.insert_before(first, cast)
    block = note_of(first, BlockId)
    if block is not None:
        annotate(cast, block)
    weight.const_value = ir.Tensor(array, name=weight.name)
    weight.type = ir.TensorType(ir.DataType.FLOAT16)
