"""The types of values that a file does not tell."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ...ir.skeleton import skeleton


def fill_in_types(model: ir.Model) -> None:
    """Gives values of the main graph a type where the standard's inference knows one.

    Args:
        model: The graph; what it says already stays.
    """
    unknown = {
        str(value.name): value
        for node in model.graph
        for value in node.outputs
        if value.dtype is None
    }
    if not unknown:
        return
    proto = ir.to_proto(skeleton(model))
    known = onnx.shape_inference.infer_shapes(proto, data_prop=False)
    for node in ir.from_proto(known).graph:
        for found in node.outputs:
            value = unknown.get(str(found.name))
            if value is not None and found.dtype is not None:
                value.type = found.type
                value.shape = value.shape or found.shape
