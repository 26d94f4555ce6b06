from __future__ import annotations

import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.ir import (
    LeftInFloat,
    all_notes_of,
    annotate,
    check_finite,
    drop_note,
    find_units,
    need_note,
    note_of,
    notes_of,
    quantizable,
)

from .texts import model, ramp


def described(found: ir.Model) -> list[str]:
    lines = []
    for unit in find_units(found):
        kinds = "/".join(use.kind for use in unit.uses)
        lines.append(f"{unit.name} {unit.shape} {kinds} {unit.reason}".rstrip())
    return lines


def test_a_tied_table_is_one_unit_with_two_uses() -> None:
    found = model(
        """g (int64[N] ids) => (float[N, 100] y) {
            x = Gather (table, ids)
            head = Transpose <perm = [1, 0]> (table)
            y = MatMul (x, head)
        }""",
        table=(100, 64),
    )
    assert described(found) == ["table (100, 64) lookup/product"]
    (unit,) = find_units(found)
    assert unit.anchor.op_type == "Gather"
    assert np.array_equal(unit.matrix(), ramp(100, 64))


def test_gemm_and_conv_know_their_rows() -> None:
    found = model(
        """g (float[N, 64] x, float[1, 8, 9, 9] i) => (float[N, 100] y, float[1, 64, 7, 7] z) {
            y = Gemm <transB = 1> (x, w)
            z = Conv (i, k)
        }""",
        w=(100, 64),
        k=(64, 8, 3, 3),
    )
    assert described(found) == [
        "w (100, 64) product",
        "k (64, 72) conv",
    ]


def test_replace_keeps_the_stored_layout() -> None:
    found = model("g (float[N, 64] x) => (float[N, 100] y) { y = MatMul (x, w) }", w=(64, 100))
    (unit,) = quantizable(found)
    unit.replace(unit.matrix() * 2)
    assert np.array_equal(unit.tensor.numpy(), ramp(64, 100) * 2)


def test_weights_that_no_kernel_serves_are_arrays() -> None:
    found = model(
        """g (float[64, N] x, float[S, 1, 32] s) => (float[100, N] y, float[S, 1, 1, 64] h) {
            y = MatMul (w, x)
            h = LSTM <hidden_size = 64> (s, kernel, recurrence)
        }""",
        w=(100, 64),
        kernel=(1, 256, 32),
        recurrence=(1, 256, 64),
    )
    units = {unit.name: unit for unit in find_units(found)}
    assert {use.kind for unit in units.values() for use in unit.uses} == {"array"}
    assert {name: unit.shape for name, unit in units.items()} == {
        "w": (100, 64),
        "kernel": (256, 32),
        "recurrence": (256, 64),
    }
    assert units["recurrence"].anchor is units["kernel"].anchor
    assert len(quantizable(found)) == 3


def test_units_of_one_node_have_notes_of_their_own() -> None:
    text = "g (float[S, 1, 32] s) => (float[S, 1, 1, 64] h) { h = LSTM (s, w, r) }"
    found = model(text, w=(1, 256, 32), r=(1, 256, 64))
    for unit in find_units(found):
        annotate(unit.notes, LeftInFloat(unit.name, f"for {unit.name}"))
    node = found.graph[0]
    assert note_of(node, LeftInFloat) is None
    assert {note.unit for note in all_notes_of(node, LeftInFloat)} == {"w", "r"}
    again = ir.from_proto(ir.to_proto(found))
    for unit in find_units(again):
        assert need_note(unit.notes, LeftInFloat).why == f"for {unit.name}"
        drop_note(unit.notes, LeftInFloat)
    assert notes_of(again.graph[0]) == []


def test_masks_are_no_weights() -> None:
    found = model(
        "g (float[64, 64] x) => (float[64, 64] y) { y = Add (x, mask) }", mask=(64, 64)
    )
    assert find_units(found) == []


CONDITIONAL = """g (float[N, 64] x, bool c) => (float[N, 100] y) {
    y = If (c) <
        then_branch = yes () => (float[N, 100] a) { a = MatMul (x, w) },
        else_branch = no () => (float[N, 100] b) { b = MatMul (x, w) }
    >
}"""


@pytest.mark.parametrize("never", [-np.inf, np.finfo(np.float32).min, -1e9])
def test_a_table_of_masks_is_no_weight(never: float) -> None:
    found = model("g (int64[N] i) => (float[N, 100] y) { y = Gather (t, i) }", t=(64, 100))
    assert [unit.name for unit in find_units(found)] == ["t"]
    table = np.triu(np.full((64, 100), never, np.float32), 1)
    found.graph.initializers["t"].const_value = ir.Tensor(table, name="t")
    assert find_units(found) == []
    check_finite(found)


def test_a_weight_read_inside_control_flow_is_an_array_of_the_node_around_it() -> None:
    (unit,) = find_units(model(CONDITIONAL, w=(64, 100)))
    assert unit.reason == ""
    assert unit.shape == (100, 64)
    assert {use.kind for use in unit.uses} == {"array"}
    assert unit.anchor.op_type == "If"


def test_a_weight_stored_inside_control_flow_is_found() -> None:
    found = model(CONDITIONAL, w=(64, 100))
    holder = found.graph[0]
    branch = holder.attributes["then_branch"].as_graph()
    own = ir.Value(name="own", const_value=ir.Tensor(ramp(64, 100), name="own"))
    branch.register_initializer(own)
    branch[0].replace_input_with(1, own)
    units = {unit.name: unit for unit in find_units(found)}
    assert set(units) == {"own", "w"}
    assert units["own"].anchor is holder
    assert units["own"].reason == "it is stored inside the If"


def test_constant_nodes_hold_weights() -> None:
    found = model("g (float[N, 64] x) => (float[N, 100] y) { y = MatMul (x, w) }", w=(64, 100))
    weight = found.graph.initializers.pop("w")
    constant = ir.node("Constant", [], {"value": weight.const_value})
    constant.outputs[0].name = "c"
    found.graph.insert_before(found.graph[0], constant)
    found.graph[1].replace_input_with(1, constant.outputs[0])
    (unit,) = quantizable(found)
    assert (unit.name, unit.shape) == ("c", (100, 64))
    unit.replace(unit.matrix() * 3)
    stored = constant.attributes["value"].as_tensor()
    assert np.array_equal(stored.numpy(), ramp(64, 100) * 3)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_half_precision_keeps_its_type(dtype: ir.DataType) -> None:
    array = ramp(64, 100).astype(dtype.numpy())
    found = model("g (float[N, 64] x) => (float[N, 100] y) { y = MatMul (x, w) }", w=(64, 100))
    found.graph.initializers["w"].const_value = ir.Tensor(array, dtype=dtype, name="w")
    (unit,) = quantizable(found)
    unit.replace(unit.matrix())
    assert unit.tensor.dtype == dtype
    assert np.array_equal(unit.tensor.numpy(), array)


def test_a_hundred_thousand_nodes_take_seconds() -> None:
    x = ir.Value(name="x", shape=ir.Shape([1, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    w = ir.Value(name="w", const_value=ir.Tensor(ramp(64, 64), name="w"))
    nodes, last = [], x
    for at in range(100_000):
        nodes.append(
            ir.node("MatMul" if at % 100 == 0 else "Relu", [last, w][: 2 - (at % 100 > 0)])
        )
        last = nodes[-1].outputs[0]
        last.name = f"v{at}"
    graph = ir.Graph([x], [last], nodes=nodes, initializers=[w], opset_imports={"": 17})
    start = time.perf_counter()
    (unit,) = find_units(ir.Model(graph, ir_version=9))
    assert len(unit.uses) == 1000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "order",
    [
        "a = Gemm (x, w) b = Gemm <transA = 1> (x, w)",
        "b = Gemm <transA = 1> (x, w) a = Gemm (x, w)",
    ],
)
def test_every_reader_of_a_shared_weight_is_asked(order: str) -> None:
    text = f"g (float[64, 64] x) => (float[64, 64] a, float[64, 64] b) {{ {order} }}"
    (unit,) = find_units(model(text, w=(64, 64)))
    assert unit.reason == ""
    assert [use.kind for use in unit.uses] == ["array", "array"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (onnx.TensorProto.INT8, "Cast '' needs its exact numbers"),
        (onnx.TensorProto.FLOAT16, ""),
    ],
)
def test_a_cast_to_integers_is_no_view(kind: int, reason: str) -> None:
    found = model(
        f"""g (float[N, 64] x, float16[N, 64] h) => (float[N, 64] y, float16[N, 64] z) {{
            y = MatMul (x, w) c = Cast <to = {kind}> (w) f = Cast <to = 10> (c)
            z = MatMul (h, f) }}""",
        w=(64, 64),
    )
    (unit,) = find_units(found)
    assert unit.reason == reason
    assert len(unit.uses) == (1 if reason else 2)


def test_a_table_that_is_only_read_as_integers_is_no_unit() -> None:
    text = """g (int64[N] i) => (int64[N, 64] y) {
        c = Cast <to = 7> (t) y = Gather (c, i) }"""
    assert find_units(model(text, t=(64, 64))) == []


def test_two_weights_that_multiply_each_other_are_arrays() -> None:
    text = "g (float[64, 64] x) => (float[64, 64] y) { p = MatMul (v, w) y = Add (p, x) }"
    assert described(model(text, v=(64, 64), w=(64, 64))) == [
        "v (64, 64) array",
        "w (64, 64) array",
    ]
