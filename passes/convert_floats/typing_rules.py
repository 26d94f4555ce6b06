"""Which inputs and outputs of an operator may be float16, by its schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

import onnx
import onnx_ir as ir

from ...ir import subgraphs_of
from ..engine.emission.emitter import CONTRIB

_FLOAT = ir.DataType.FLOAT
_STANDARD = ("", "ai.onnx")
# Operators of ONNX Runtime's own whose floats all have one type, or those of scales another.
_ONE_TYPE = {
    *("BiasGelu", "FastGelu", "FusedMatMul", "GatherBlockQuantized", "Gelu", "QuickGelu"),
    *("GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "RotaryEmbedding"),
    *("SimplifiedLayerNormalization", "SkipLayerNormalization"),
    *("SkipSimplifiedLayerNormalization",),
}
# The attribute that says what an operator makes of no floats, by default float32.
_TYPED_BY = {
    "BlackmanWindow": "output_datatype",
    "ConstantOfShape": "value",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "RandomNormal": "dtype",
    "RandomUniform": "dtype",
}


@dataclass(frozen=True)
class _Formals:
    """The formal parameters of an operator.

    Attributes:
        inputs: For each input whether it can be float16, or None where it is always float32.
        outputs: The same for outputs.
        endless: Whether the last input stands for any number of them.
    """

    inputs: tuple[bool | None, ...]
    outputs: tuple[bool | None, ...]
    endless: tuple[bool, bool]

    def input(self, at: int) -> bool | None:
        """Returns whether the input ``at`` can be float16; None where it is float32 alone."""
        return _entry(self.inputs, at, endless=self.endless[0])

    def output(self, at: int) -> bool | None:
        """Returns the same for an output."""
        return _entry(self.outputs, at, endless=self.endless[1])


def _entry(found: tuple[bool | None, ...], at: int, *, endless: bool) -> bool | None:
    if at < len(found):
        return found[at]
    return found[-1] if endless and found else False


_ANY = _Formals((True,), (True,), (True, True))


@cache
def _formals(domain: str, op_type: str, opset: int) -> _Formals | None:
    """Returns what is known of an operator; None where it is nothing."""
    if op_type in _ONE_TYPE and domain in (*_STANDARD, CONTRIB):
        return _ANY
    if domain not in _STANDARD:
        return None
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    allowed = {one.type_param_str: one.allowed_type_strs for one in schema.type_constraints}

    def half(formal: onnx.defs.OpSchema.FormalParameter) -> bool | None:
        kinds = allowed.get(formal.type_str)
        return None if kinds is None else "tensor(float16)" in kinds

    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic

    def endless(side: Sequence[onnx.defs.OpSchema.FormalParameter]) -> bool:
        return bool(side) and side[-1].option == variadic

    return _Formals(
        tuple(map(half, schema.inputs)),
        tuple(map(half, schema.outputs)),
        (endless(schema.inputs), endless(schema.outputs)),
    )


def stays_float32(node: ir.Node, at: int, opset: int) -> bool:
    """Tells whether the input ``at`` of a node is float32 whatever the node computes in."""
    formals = _formals(node.domain, node.op_type, opset)
    return formals is not None and formals.input(at) is None


def makes_float32(node: ir.Node, at: int, opset: int) -> bool:
    """Tells the same of an output."""
    formals = _formals(node.domain, node.op_type, opset)
    return formals is not None and formals.output(at) is None


def obstacle(node: ir.Node, opset: int) -> str:
    """Returns why a node cannot compute in float16; empty if it can, or has no floats."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if any(isinstance(value.type, ir.SequenceType | ir.OptionalType) for value in values):
        return "it handles values that are no tensors"
    if any(value.dtype is None and value.name for value in values):
        return "the type of what it reads or makes is not known"
    if any(True for _ in subgraphs_of(node)):
        return "it holds a graph"
    if _is_float32_by_default(node):
        return "it makes float32 where nothing else is said"
    formals = _formals(node.domain, node.op_type, opset)
    if formals is None:
        return f"nothing is known of the operator {node.op_type}"
    wrong = [
        at
        for at, value in enumerate(node.inputs)
        if is_float32(value) and formals.input(at) is False
    ] + [
        at
        for at, value in enumerate(node.outputs)
        if is_float32(value) and formals.output(at) is False
    ]
    return f"the standard has no {node.op_type} of float16" if wrong else ""


def _is_float32_by_default(node: ir.Node) -> bool:
    """Tells whether no attribute says which floats a node makes."""
    if node.op_type == "Constant":
        return "value_float" in node.attributes or "value_floats" in node.attributes
    named = _TYPED_BY.get(node.op_type)
    return named is not None and named not in node.attributes


def is_float32(value: ir.Value | None) -> TypeGuard[ir.Value]:
    """Tells whether a value is a tensor of float32."""
    is_tensor = value is not None and isinstance(value.type, ir.TensorType)
    return is_tensor and value is not None and value.dtype == _FLOAT
