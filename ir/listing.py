"""The annotated text of a graph, one line per node, for people and for golden tests.

    @w : f32[576,960]
    %h = MatMul(%x, @w) : f32[?,960] #block{index=3} #bits{unit=w, ...}
    %y = Reshape(%h, <i64[2] -1, 64>) : f32[?,64]

``%`` marks values, ``@`` weights by name, ``_`` an omitted input. Initializers of at most four
entries appear where they are read. Bodies of control flow are indented below their node.
Floats have six significant digits: the listing is for reading, not for parsing.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from .annotation import Annotation, notes_of
from .text_form import print_value

_SHORT = {"FLOAT": "f32", "FLOAT16": "f16", "BFLOAT16": "bf16", "DOUBLE": "f64"}
_MOST_ITEMS = 16  # of a tensor whose entries are shown
_INLINE_ITEMS = 4  # of an initializer that is shown at its readers only


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
    if _is_inline(value) and value.const_value is not None:
        return _tensor(value.const_value)
    return ("@" if value.is_initializer() else "%") + clean(str(value.name))


def _is_inline(value: ir.Value) -> bool:
    tensor = value.const_value
    return value.is_initializer() and tensor is not None and tensor.size <= _INLINE_ITEMS


def _tensor(tensor: ir.TensorProtocol) -> str:
    kind = _dtype(tensor.dtype) + _shape(ir.Shape(tensor.shape.numpy()))
    if tensor.size > _MOST_ITEMS:
        return f"<{kind}>"
    items = _rounded(tensor.numpy().reshape(-1).tolist())
    return f"<{kind} {', '.join(clean(print_value(item)) for item in items)}>".replace(
        " >", ">"
    )


def _rounded(value: Any) -> Any:
    """Rounds floats, also those in a tuple or list, to six significant digits."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_rounded, value))
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _note(note: Annotation) -> str:
    """Returns a note for reading, with floats of six digits."""
    fields = {
        field.name: _rounded(getattr(note, field.name)) for field in dataclasses.fields(note)
    }
    return str(dataclasses.replace(note, **fields))


def _attribute(attribute: ir.Attr) -> str:
    if attribute.is_ref():
        text = f"@{attribute.ref_attr_name}"
    elif attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        text = "..."
    elif attribute.type == ir.AttributeType.TENSOR:
        text = _tensor(attribute.as_tensor())
    elif isinstance(attribute.value, (tuple, list)) and len(attribute.value) > _MOST_ITEMS:
        text = f"<{len(attribute.value)} items>"
    elif isinstance(attribute.value, (tuple, list, str, int, float)):
        text = print_value(_rounded(attribute.value))
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
    notes = "".join(f" {clean(_note(note))}" for note in notes_of(node))
    return f"{outputs} = {domain}{clean(node.op_type)}({inputs}){body} : {types}{notes}"


def _header(graph: ir.Graph) -> Iterator[str]:
    for value in graph.inputs:
        yield f"input {_name(value)} : {type_text(value)}"
    for value in graph.initializers.values():
        if _is_inline(value):
            continue
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
    lines = [_note(note) for note in notes_of(model)] + list(_graph(model.graph, ""))
    if width is not None:
        lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join(lines) + "\n"
