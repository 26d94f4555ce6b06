"""The annotated text of a graph, one line a node, for people and for golden tests.

    @w : f32[576,960]
    %y = MatMul(%x, @w) : f32[?,960] #block{index=3} #bits{unit=w, ...}

``%`` marks values, ``@`` weights by name, ``_`` an input that is left out. Bodies of control
flow are indented below their node.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from .annotation import notes_of
from .text_form import print_value

_SHORT = {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64"}
_MOST_ITEMS = 16


def clean(text: str) -> str:
    """Returns ``text`` without control and direction characters, which can fool a terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs")
        else letter
        for letter in text
    )


def _dtype(dtype: ir.DataType | None) -> str:
    if dtype is None:
        return "?"
    return _SHORT.get(dtype.name, dtype.name.lower().replace("uint", "u").replace("int", "i"))


def _shape(shape: ir.Shape | None) -> str:
    if shape is None:
        return "[...]"
    dims = (
        str(dim) if isinstance(dim, int) else clean(str(dim.value or "?")) for dim in shape
    )
    return f"[{','.join(dims)}]"


def type_text(value: ir.Value) -> str:
    """Returns ``f32[?,576]``; ``?[...]`` if nothing is known."""
    return _dtype(value.dtype) + _shape(value.shape)


def _name(value: ir.Value | None) -> str:
    if value is None:
        return "_"
    return ("@" if value.is_initializer() else "%") + clean(str(value.name))


def _tensor(tensor: ir.TensorProtocol) -> str:
    kind = _dtype(tensor.dtype) + _shape(ir.Shape(tensor.shape.numpy()))
    if tensor.size > _MOST_ITEMS:
        return f"<{kind}>"
    items = tensor.numpy().reshape(-1).tolist()
    return f"<{kind} {', '.join(clean(print_value(item)) for item in items)}>".replace(
        " >", ">"
    )


def _rounded(value: Any) -> Any:
    """Gives floats, which ONNX stores in 32 bits, their shortest decimal form."""
    if isinstance(value, (tuple, list)):
        return tuple(_rounded(one) for one in value)
    return float(str(np.float32(value)))


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        text = f"@{attribute.ref_attr_name}"
    elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        text = "..."
    elif attribute.type == ir.AttributeType.TENSOR:
        text = _tensor(attribute.as_tensor())
    elif attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        text = print_value(_rounded(attribute.value))
    elif isinstance(attribute.value, (tuple, list)) and len(attribute.value) > _MOST_ITEMS:
        text = f"<{len(attribute.value)} items>"
    elif isinstance(attribute.value, (tuple, list, str, int, float)):
        text = print_value(attribute.value)
    else:
        text = attribute.type.name.lower()
    return f"{clean(attribute.name)}={clean(text)}"


def _node(node: ir.Node) -> str:
    outputs = ", ".join(_name(value) for value in node.outputs)
    domain = f"{clean(node.domain)}." if node.domain not in ("", "ai.onnx") else ""
    inputs = ", ".join(_name(value) for value in node.inputs)
    attributes = ", ".join(_attribute(one) for one in node.attributes.values())
    body = f" {{{attributes}}}" if attributes else ""
    types = ", ".join(type_text(value) for value in node.outputs)
    notes = "".join(f" {clean(str(note))}" for note in notes_of(node))
    return f"{outputs} = {domain}{clean(node.op_type)}({inputs}){body} : {types}{notes}"


def _header(graph: ir.Graph) -> Iterator[str]:
    for value in graph.inputs:
        yield f"input {_name(value)} : {type_text(value)}"
    for value in graph.initializers.values():
        text = type_text(value)
        if value.const_value is not None and value.const_value.size <= _MOST_ITEMS:
            text = _tensor(value.const_value)[1:-1]
        yield f"{_name(value)} : {text}"


def _graph(graph: ir.Graph, indent: str) -> Iterator[str]:
    for line in _header(graph):
        yield indent + line
    for node in graph:
        yield indent + _node(node)
        for attribute in node.attributes.values():
            if not attribute.is_ref() and attribute.type == ir.AttributeType.GRAPH:
                yield f"{indent}  {clean(attribute.name)}:"
                yield from _graph(attribute.as_graph(), indent + "    ")
    yield f"{indent}return {', '.join(_name(value) for value in graph.outputs)}"


def listing(model: ir.Model, *, width: int | None = None) -> str:
    """Returns the text of ``model``'s main graph, with lines cut off at ``width`` letters."""
    lines = [str(note) for note in notes_of(model)] + list(_graph(model.graph, ""))
    if width is not None:
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join(lines) + "\n"
