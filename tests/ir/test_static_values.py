from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mpqc.ir.analysis.static_values import StaticValues
from mpqc.ir.analysis.storage import stored

from .texts import HEADER, model, ramp


def static(text: str, **arrays: np.ndarray) -> tuple[ir.Model, StaticValues]:
    found = model(text, **arrays)
    return found, StaticValues(found)


def named(found: ir.Model, name: str) -> ir.Value:
    return next(v for node in found.graph for v in node.outputs if v.name == name)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_shapes_that_no_node_records_are_inferred() -> None:
    """The pads that torch exports."""
    found, values = static(
        """g (float[N, 64] x) => (float[N, 64] y) {
            a = ConstantOfShape (four)  b = Reshape (a, two)
            c = Slice (b, minus, least, zero, minus)  d = Transpose <perm = [1, 0]> (c)
            e = Reshape (d, minus)  f = Cast <to = 7> (e)  y = Pad (x, f) }""",
        four=whole(4),
        two=whole(-1, 2),
        minus=whole(-1),
        least=whole(-(2**63)),
        zero=whole(0),
    )
    assert [values.dims(named(found, name)) for name in "abcdef"] == [
        (4,),
        (2, 2),
        (2, 2),
        (2, 2),
        (4,),
        (4,),
    ]
    assert values.dtype(named(found, "d")) == ir.DataType.FLOAT


def test_what_nothing_tells_stays_unknown() -> None:
    found, values = static(
        """g (float[N] x) => (float[N] y) {
            a = com.microsoft.Own (w)  b = Transpose <perm = [1, 0]> (a)  y = Add (x, b) }""",
        w=ramp(4, 4),
    )
    assert values.dims(named(found, "a")) is None
    assert values.dims(named(found, "b")) is None
    assert values.folded_size(named(found, "b")) == 64


def test_strings_have_a_size() -> None:
    proto = onnx.parser.parse_model(
        HEADER + "g (float[64, 64] x) => (string[1] y) { y = Gather (labels, zero) }"
    )
    words: Any = [b"ab"] * 3
    strings = onnx.helper.make_tensor("labels", onnx.TensorProto.STRING, [3], words)
    proto.graph.initializer.append(strings)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(whole(0), "zero"))
    assert stored(ir.from_proto(proto)).rest >= 6


def test_an_int8_table_with_a_constant_scale_is_a_weight() -> None:
    found = model(
        """g (int64[N] ids) => (float[N, 64] y) {
            g0 = Gather (table, ids)  c = Cast <to = 1> (g0)
            s = Constant <value_float = 0.01> ()  y = Mul (c, s) }""",
        table=(np.arange(96 * 64) % 100).astype(np.int8).reshape(96, 64),
    )
    (unit,) = stored(found).units
    assert (unit.rows, unit.columns, unit.bits) == (96, 64, 8 + 32 / (96 * 64))
