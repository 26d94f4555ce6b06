"""The graph without its constants: small enough for tools that copy a whole model."""

from __future__ import annotations

import onnx_ir as ir


def skeleton(model: ir.Model) -> ir.Model:
    """Returns a copy of ``model`` whose initializers have become inputs, without numbers."""
    copy = model.clone()
    for name, value in list(copy.graph.initializers.items()):
        copy.graph.initializers.pop(name)
        value.const_value = None
        if not value.is_graph_input():
            copy.graph.inputs.append(value)
    return copy


def restore_constants(model: ir.Model, constants: dict[str, ir.Value]) -> None:
    """Makes constants again of the inputs of a skeleton that stand for them.

    Args:
        model: What became of the skeleton.
        constants: The initializers of the whole graph, by name.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, kept in constants.items():
        if name not in inputs:
            continue  # nothing reads it any more
        if not kept.is_graph_input():
            model.graph.inputs.remove(inputs[name])
        inputs[name].const_value = kept.const_value
        inputs[name].metadata_props.update(kept.metadata_props)
        model.graph.register_initializer(inputs[name])
