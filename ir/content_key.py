"""A hash of what a model computes: operators, connections and weights, not notes or layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import onnx_ir as ir

from .operands import subgraphs_of
from .tensor_files import stored_bytes


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    """Names a tensor by type, shape and the hash of its bytes."""
    if tensor.dtype == ir.DataType.STRING:
        digest = hashlib.sha256(repr(tensor.numpy().tolist()).encode()).hexdigest()
    else:
        digest = hashlib.sha256(stored_bytes(tensor)).hexdigest()
    return f"{tensor.dtype.name}{list(tensor.shape.numpy())}:{digest}"


def _value_text(value: ir.Value | None) -> str:
    return "" if value is None else repr(value.name)


def _typed_text(value: ir.Value) -> str:
    return f"{value.name!r}:{value.type}:{value.shape}"


def _attribute_text(attribute: ir.Attr) -> str:
    kind = attribute.type
    if attribute.is_ref():
        return f"{attribute.name}=@{attribute.ref_attr_name}"
    if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return f"{attribute.name}={kind.name}"  # the bodies follow
    if kind == ir.AttributeType.TENSOR:
        return f"{attribute.name}={_tensor_text(attribute.as_tensor())}"
    if kind == ir.AttributeType.TENSORS:
        return f"{attribute.name}={[_tensor_text(one) for one in attribute.as_tensors()]}"
    if kind == ir.AttributeType.FLOAT:
        return f"{attribute.name}={float(attribute.as_float())!r}"
    return f"{attribute.name}={attribute.value!r}"


def _node_text(node: ir.Node) -> str:
    attributes = sorted(_attribute_text(one) for one in node.attributes.values())
    inputs = [_value_text(value) for value in node.inputs]
    outputs = [_value_text(value) for value in node.outputs]
    return f"{outputs}={node.domain}::{node.op_type}:{node.overload}({inputs}){attributes}"


def _graph_lines(graph: ir.Graph, *, weights: bool) -> Iterator[str]:
    todo = [graph]
    while todo:
        one = todo.pop()
        yield f"graph {[_typed_text(v) for v in one.inputs]}->{[v.name for v in one.outputs]}"
        for name, value in sorted(one.initializers.items()):
            if value.const_value is not None:
                yield f"{name!r}={_tensor_text(value.const_value) if weights else value.shape}"
        for node in one:
            yield _node_text(node)
            todo.extend(subgraphs_of(node))


def model_key(model: ir.Model, *, weights: bool = True) -> str:
    """Returns a SHA-256 over everything that decides what ``model`` computes.

    Notes, documentation, node names and the way in which tensors are stored do not change it.

    Args:
        model: The model.
        weights: Whether the numbers in initializers count, which takes a while.
    """
    content = hashlib.sha256()
    content.update(repr(sorted(model.opset_imports.items())).encode())
    bodies = sorted(model.functions.items(), key=lambda item: repr(item[0]))
    for title, graph in [("main", model.graph), *((repr(k), f.graph) for k, f in bodies)]:
        content.update(title.encode())
        for line in _graph_lines(graph, weights=weights):
            content.update(line.encode("utf-8", errors="surrogatepass") + b"\n")
    return content.hexdigest()
