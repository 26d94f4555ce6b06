"""Where ONNX Runtime multiplies integers, and where it only seems to."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..view import TWO_BITS, Broken, Check, View, given, maker, readers, whole

_CPU_ONLY = (
    *("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
    *("QLinearMatMul", "QLinearConv"),
)
_CPU_ONLY_CONTRIB = (
    *("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "QGemm"),
    *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool"),
    *("QLinearAveragePool", "QLinearSigmoid", "QLinearSoftmax", "QLinearLeakyRelu"),
)
_BYTE = {ir.DataType.INT8, ir.DataType.UINT8}
_ABSORBED = ("Relu", "Clip")


def _on_cpu_only(view: View) -> Broken:
    for node in (*view.standard(*_CPU_ONLY), *view.contrib(*_CPU_ONLY_CONTRIB)):
        signed = view.dtype(given(node, 0)) == ir.DataType.INT8
        if node.op_type == "MatMulInteger" and signed:  # the one that CUDA has
            continue
        if any(value not in view.static for value in node.outputs):
            yield node, "it has no kernel there"


def _cuda_blocks_of_bytes(view: View) -> Broken:
    for node in view.standard("DequantizeLinear"):
        if whole(node, "block_size", 0) and view.codes_type(node) in _BYTE:
            yield node, "codes of 8 bits in blocks"


def _cuda_two_bits(view: View) -> Broken:
    for node in view.standard("DequantizeLinear"):
        if view.codes_type(node) in TWO_BITS:
            yield node, "codes of 2 bits"


def _convolution_expands(view: View) -> Broken:
    """A DequantizeLinear of a weight is not folded when the model is loaded."""
    for node in view.standard("Conv", "ConvTranspose"):
        weight = maker(given(node, 1), "DequantizeLinear")
        rounded = maker(given(node, 0), "DequantizeLinear")
        if weight is not None and view.is_weight(weight) and rounded is None:
            yield node, f"{weight.name!r} makes its weight anew in every run"


def _convolution_of_floats(view: View) -> Broken:
    """An integer kernel also needs its result to be rounded."""
    for node in view.standard("Conv"):
        made = [maker(given(node, at), "DequantizeLinear") for at in (0, 1)]
        if None in made or _is_rounded(node.outputs[0]):
            continue
        yield node, "its inputs are rounded, its result is not"


def _is_rounded(value: ir.Value) -> bool:
    while len(found := readers(value)) == 1 and found[0].op_type in _ABSORBED:
        value = found[0].outputs[0]
    found = readers(value)
    rounded = bool(found) and all(one.op_type == "QuantizeLinear" for one in found)
    return rounded and not value.is_graph_output()


def _signed_activations(view: View) -> Broken:
    for node in view.standard("MatMul"):
        made = [maker(given(node, at), "DequantizeLinear") for at in (0, 1)]
        first, second = made
        if first is None or second is None or view.is_weight(first):
            continue
        if view.codes_type(first) == ir.DataType.INT8 and len(readers(first.outputs[0])) > 1:
            yield node, f"{first.name!r} gives int8 to {len(readers(first.outputs[0]))} nodes"


def _gemm_expands(view: View) -> Broken:
    for node in view.standard("Gemm"):
        weight = maker(given(node, 1), "DequantizeLinear")
        rounded = maker(given(node, 0), "DequantizeLinear")
        if weight is not None and view.is_weight(weight) and rounded is None:
            yield node, f"{weight.name!r} makes its weight anew in every run"


CHECKS: Mapping[str, Check] = {
    "integers-on-cpu-only": _on_cpu_only,
    "cuda-blocks-of-bytes": _cuda_blocks_of_bytes,
    "cuda-2-bits": _cuda_two_bits,
    "cpu-convolution-expands": _convolution_expands,
    "cpu-convolution-of-floats": _convolution_of_floats,
    "cpu-signed-activations": _signed_activations,
    "cpu-gemm-expands": _gemm_expands,
}
