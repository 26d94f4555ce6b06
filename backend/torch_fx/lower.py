"""Lower ONNX nodes to a ``torch.fx.GraphModule``."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from keyword import iskeyword
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import fx

from ...ir.errors import InputError, InternalError
from . import ops as ops  # fills the table
from .dtypes import TORCH_DTYPES, tensor_from_onnx
from .table import Lowering, find, snake_case

_CONSTANT_ATTRIBUTES = {"value", "value_int", "value_ints", "value_float", "value_floats"}
# Names that a buffer must not take, because every module of fx has them.
_RESERVED = fx.GraphModule(torch.nn.Module(), fx.Graph())
_NUMBERS: dict[str, torch.dtype] = {"int": torch.int64, "float": torch.float32}
_PASSED_AS_THEY_ARE = {
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOAT,
    ir.AttributeType.FLOATS,
    ir.AttributeType.STRING,
    ir.AttributeType.STRINGS,
}


def lower_model(model: ir.Model) -> fx.GraphModule:
    """Lower the main graph of ``model``, model-local functions inlined.

    Args:
        model: Left as it is.

    Returns:
        A module that takes the graph's inputs (initializers excluded) positionally and
        returns a tuple in the order of its outputs.
    """
    if model.functions:
        model = model.clone()
        InlinePass()(model)
    graph = model.graph
    inputs = [value for value in graph.inputs if not value.is_initializer()]
    return lower_segment(list(graph), inputs, graph.outputs, name=graph.name or "model")


def lower_segment(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    *,
    name: str = "segment",
) -> fx.GraphModule:
    """Lower a stretch of an ONNX graph.

    Args:
        nodes: In topological order.
        inputs: Values given at call time. Whatever else ``nodes`` read must be constant.
        outputs: Values to return: any that ``nodes`` compute or read.
        name: The class name of the module.

    Returns:
        A module that takes tensors positionally, in the order of ``inputs``, and returns a
        tuple in the order of ``outputs``. Its ``meta`` holds ``"values"`` (ONNX value name
        to fx node name) and ``"weights"`` (initializer name to buffer name); each fx node's
        ``meta["onnx"]`` is the name of the ONNX node it came from.

    Raises:
        InputError: A node has no lowering, or reads a value that is not available.
    """
    refused = unsupported(nodes)
    if refused:
        node, reason = next(iter(refused.items()))
        raise InputError(f"{_title(node)} cannot be lowered to torch: {reason}")
    segment = _Segment()
    for value in inputs:
        segment.place(value)
    for node in nodes:
        segment.add(node)
    return segment.finish(outputs, name)


def unsupported(
    nodes: Iterable[ir.Node], opset_imports: Mapping[str, int] | None = None
) -> dict[ir.Node, str]:
    """The nodes that have no lowering, each with the reason.

    Args:
        nodes: Of one graph, or of several.
        opset_imports: Domain to version, for nodes that belong to no graph.
    """
    reasons = ((node, _refusal(node, opset_imports)) for node in nodes)
    return {node: reason for node, reason in reasons if reason is not None}


def weight_attribute(module: fx.GraphModule, value: ir.Value) -> str | None:
    """The name of the buffer in ``module`` that carries the constant ``value``."""
    weights: dict[str, str] = module.meta["weights"]
    return weights.get(value.name or "")


class _Segment:
    """An fx graph under construction, and the buffers that it reads."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self.placed: dict[ir.Value, fx.Node] = {}
        self.names: dict[str, str] = {}
        self.weights: dict[str, str] = {}

    def place(self, value: ir.Value) -> None:
        """Take ``value`` from the caller."""
        self._record(value, self.graph.placeholder(_identifier(value.name or "input")))

    def add(self, node: ir.Node) -> None:
        """Compute ``node``."""
        if node.op_type == "Constant":
            self._record(node.outputs[0], self._buffer(node.outputs[0], _constant(node)))
            return
        entry = _lowering(node, None)
        if entry is None:
            raise InternalError(f"{_title(node)} passed the check but has no lowering")
        hint = node.name if entry.returns_tuple else node.outputs[0].name
        call = self.graph.create_node(
            "call_function",
            entry.function,
            args=tuple(None if v is None else self._read(v, node) for v in node.inputs),
            kwargs=self._keywords(node, entry),
            name=_identifier(hint or node.op_type),
        )
        call.meta["onnx"] = node.name or ""
        self._record_outputs(node, call, entry)

    def finish(self, outputs: Sequence[ir.Value], name: str) -> fx.GraphModule:
        """Close the graph and make the module."""
        self.graph.output(tuple(self._read(value, None) for value in outputs))
        module = fx.GraphModule(self.root, self.graph, class_name=_identifier(name))
        module.meta["values"] = self.names
        module.meta["weights"] = self.weights
        return module

    def _record(self, value: ir.Value, node: fx.Node) -> None:
        self.placed[value] = node
        if value.name:
            self.names[value.name] = node.name

    def _record_outputs(self, node: ir.Node, call: fx.Node, entry: Lowering) -> None:
        if not entry.returns_tuple:
            self._record(node.outputs[0], call)
            return
        for index, value in enumerate(node.outputs):
            if value.name == "":
                continue
            item = self.graph.create_node(
                "call_function",
                operator.getitem,
                args=(call, index),
                name=_identifier(value.name or f"{call.name}_{index}"),
            )
            item.meta["onnx"] = node.name or ""
            self._record(value, item)

    def _read(self, value: ir.Value, reader: ir.Node | None) -> fx.Node:
        if value not in self.placed:
            if value.const_value is None:
                where = "" if reader is None else f"{_title(reader)} reads "
                raise InputError(
                    f"{where}'{value.name}', which is neither constant nor computed here",
                    hint="list it among the inputs of the segment",
                )
            self._record(value, self._buffer(value, tensor_from_onnx(value.const_value)))
        return self.placed[value]

    def _buffer(self, value: ir.Value, tensor: torch.Tensor) -> fx.Node:
        node = self._attribute(value.name or "constant", tensor)
        if value.name:
            self.weights[value.name] = str(node.target)
        return node

    def _attribute(self, name: str, tensor: torch.Tensor) -> fx.Node:
        buffer = stem = _identifier(name)
        count = 0
        while hasattr(self.root, buffer) or hasattr(_RESERVED, buffer):
            count += 1
            buffer = f"{stem}_{count}"
        self.root.register_buffer(buffer, tensor)
        return self.graph.get_attr(buffer)

    def _keywords(self, node: ir.Node, entry: Lowering) -> dict[str, Any]:
        keywords: dict[str, Any] = {}
        for attribute in node.attributes.values():
            keyword = snake_case(attribute.name)
            if keyword in entry.keywords:
                keywords[keyword] = self._attribute_value(node, attribute)
        if "outputs" in entry.keywords:
            keywords["outputs"] = len(node.outputs)
        if "input_types" in entry.keywords:
            keywords["input_types"] = [_type_code(value) for value in node.inputs]
        return keywords

    def _attribute_value(self, node: ir.Node, attribute: ir.Attr) -> Any:
        if attribute.type == ir.AttributeType.TENSOR:
            name = f"{node.name or node.op_type}_{attribute.name}"
            return self._attribute(name, tensor_from_onnx(attribute.as_tensor()))
        value = attribute.value
        return value if isinstance(value, str) or not isinstance(value, Sequence) else [*value]


def _refusal(node: ir.Node, opset_imports: Mapping[str, int] | None) -> str | None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return _constant_refusal(node)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return f"'{node.op_type}' runs a graph of its own"
    entry = _lowering(node, opset_imports)
    if entry is None:
        domain = f" of domain '{node.domain}'" if node.domain else ""
        return f"operator '{node.op_type}'{domain} has no lowering"
    return entry.refusal(node) or _attribute_refusal(node, entry) or _type_refusal(node)


def _attribute_refusal(node: ir.Node, entry: Lowering) -> str | None:
    passed = _PASSED_AS_THEY_ARE | {ir.AttributeType.TENSOR}
    for attribute in node.attributes.values():
        if snake_case(attribute.name) in entry.keywords and attribute.type not in passed:
            return f"attribute '{attribute.name}' is of type {attribute.type.name}"
    return None


def _constant_refusal(node: ir.Node) -> str | None:
    if not _CONSTANT_ATTRIBUTES & node.attributes.keys():
        return "the constant is not a tensor of numbers"
    return _type_refusal(node)


def _type_refusal(node: ir.Node) -> str | None:
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            return f"'{value.name}' is not a tensor"
        if value.dtype is not None and value.dtype not in TORCH_DTYPES:
            return f"'{value.name}' is of type {value.dtype.name}"
    return None


def _lowering(node: ir.Node, opset_imports: Mapping[str, int] | None) -> Lowering | None:
    return find(node.domain, node.op_type, _version(node, opset_imports))


def _version(node: ir.Node, opset_imports: Mapping[str, int] | None) -> int:
    """The opset version that gives ``node`` its meaning; the newest when nothing says so."""
    if node.version is not None:
        return node.version
    imports = {} if node.graph is None else dict(node.graph.opset_imports)
    imports.update(opset_imports or {})
    spellings = ("", "ai.onnx") if node.domain in ("", "ai.onnx") else (node.domain,)
    return next((imports[name] for name in spellings if name in imports), 1_000_000)


def _constant(node: ir.Node) -> torch.Tensor:
    for name, attribute in node.attributes.items():
        if name == "value":
            return tensor_from_onnx(attribute.as_tensor())
        kind = name.removeprefix("value_").removesuffix("s")
        if kind in _NUMBERS:
            return torch.tensor(attribute.value, dtype=_NUMBERS[kind])
    raise InternalError(f"{_title(node)} holds no tensor of numbers")


def _type_code(value: ir.Value | None) -> int | None:
    if value is None:
        return None
    dtype = value.dtype
    if dtype is None and value.const_value is not None:
        dtype = value.const_value.dtype
    return None if dtype is None else int(dtype)


def _identifier(name: str) -> str:
    """``name`` as a Python identifier that fx accepts."""
    cleaned = re.sub(r"\W+", "_", name).strip("_") or "value"
    return cleaned if cleaned.isidentifier() and not iskeyword(cleaned) else f"_{cleaned}"


def _title(node: ir.Node) -> str:
    return f"{node.op_type} node '{node.name}'" if node.name else f"a {node.op_type} node"
