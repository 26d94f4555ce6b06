"""Operators, types and shapes as TensorRT's importer takes them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ....ir import FLOAT_TYPES
from ..view import STANDARD, Broken, Check, View, given

_OLDEST, _NEWEST = 9, 25
_INTEGER = (
    *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("QLinearMatMul", "QLinearConv"),
)
_UNKNOWN = (
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Col2Im"),
    *("Compress", "ConcatFromSequence", "Det", "MaxRoiPool", "MaxUnpool", "Multinomial"),
    *("NegativeLogLikelihoodLoss", "Optional", "OptionalGetElement", "OptionalHasElement"),
    *("RegexFullMatch", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
    *("SequenceInsert", "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss"),
    *("SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit"),
    *("TfIdfVectorizer", "Unique"),
)
_ONE_TYPE = ("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Gemm", "Conv", "Max", "Min", "Sum")


def _foreign_operator(view: View) -> Broken:
    for node in view.nodes:
        if node.domain not in STANDARD:
            yield node, f"of domain {node.domain!r}"


def _integer_operator(view: View) -> Broken:
    for node in view.standard(*_INTEGER):
        yield node, "integers are said by QuantizeLinear and DequantizeLinear alone"


def _unknown_operator(view: View) -> Broken:
    for node in view.standard(*_UNKNOWN):
        if any(value not in view.static for value in node.outputs):
            yield node, "the importer does not know it"


def _opset_too_old(view: View) -> Broken:
    if view.opset < _OLDEST:
        yield None, f"opset {view.opset}, {_OLDEST} is the oldest"


def _opset_too_new(view: View) -> Broken:
    if view.opset > _NEWEST:
        yield None, f"opset {view.opset}, {_NEWEST} is the newest"


def _mixed_types(view: View) -> Broken:
    """What DequantizeLinear gives has the type of its scale."""
    for node in view.standard(*_ONE_TYPE):
        types = {_float_type(view, value) for value in node.inputs} & set(FLOAT_TYPES)
        if len(types) > 1:
            yield node, " and ".join(sorted(one.name.lower() for one in types if one))


def _float_type(view: View, value: ir.Value | None) -> ir.DataType | None:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "DequantizeLinear":
        return node.outputs[0].dtype or view.dtype(given(node, 1))
    return view.dtype(value)


def _branches_differ(view: View) -> Broken:
    for node in view.standard("If"):
        graphs = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        for first, second in zip(*(graph.outputs for graph in graphs), strict=False):
            dims, others = view.dims(first), view.dims(second)
            if dims is None or others is None:
                continue
            pairs = zip(reversed(dims), reversed(others), strict=False)
            if any(one != two and 1 not in (one, two) for one, two in pairs):
                yield node, f"{first.name!r} is {list(dims)}, {second.name!r} {list(others)}"


def _open_shapes(view: View) -> Broken:
    for value in view.model.graph.inputs:
        if value in view.static:
            continue
        if value.shape is None or not value.shape.is_static():
            shape = "an unknown shape" if value.shape is None else f"shape {value.shape}"
            yield None, f"input {value.name!r} has {shape}"


def _doubles(view: View) -> Broken:
    for node in view.nodes:
        if any(value.dtype == ir.DataType.DOUBLE for value in node.outputs):
            yield node, "it computes in double"


CHECKS: Mapping[str, Check] = {
    "trt-foreign-operator": _foreign_operator,
    "trt-integer-operator": _integer_operator,
    "trt-unknown-operator": _unknown_operator,
    "trt-opset-too-old": _opset_too_old,
    "trt-opset-too-new": _opset_too_new,
    "trt-mixed-types": _mixed_types,
    "trt-branches-differ": _branches_differ,
    "trt-open-shapes": _open_shapes,
    "trt-doubles": _doubles,
}
