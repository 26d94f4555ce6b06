"""What OpenVINO's importer of ONNX takes."""

from __future__ import annotations

from collections.abc import Mapping

from ..view import CONTRIB, Broken, Check, View, given, whole

_UNKNOWN = ("MatMulBnb4", "MoE", "QMoE", "QGemm", "QLinearGlobalAveragePool")


def _codes_not_constant(view: View) -> Broken:
    for node in view.contrib("MatMulNBits"):
        if given(node, 1) not in view.static.constants:
            yield node, "its codes are computed"


def _column_order(view: View) -> Broken:
    for node in view.contrib("MatMulNBits"):
        if given(node, 4) is not None:
            yield node, "it has an order of columns (g_idx)"


def _prepacked(view: View) -> Broken:
    for node in view.contrib("MatMulNBits"):
        kind = whole(node, "weight_prepacked", 0)
        if kind:
            yield node, f"weight_prepacked = {kind}"


def _shifted_bits(view: View) -> Broken:
    for node in view.standard("BitShift"):
        yield node, "it shifts bits"


def _unknown_operator(view: View) -> Broken:
    for node in view.contrib(*_UNKNOWN):
        yield node, f"of domain {CONTRIB!r}"


CHECKS: Mapping[str, Check] = {
    "ov-codes-not-constant": _codes_not_constant,
    "ov-column-order": _column_order,
    "ov-prepacked": _prepacked,
    "ov-shifted-bits": _shifted_bits,
    "ov-unknown-operator": _unknown_operator,
}
