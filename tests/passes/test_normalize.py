"""normalize: what a listing does not show."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import onnx.helper
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpqc.ir import Capabilities, quantizable
from mpqc.passes.engine.pipeline.base import PassContext, Runner
from mpqc.passes.normalize import tied_weights
from mpqc.passes.normalize.normalize import Normalize

HEAD = '<ir_version: 10, opset_import: ["" : 17]>\n'
CONTEXT = PassContext(cast(Runner, None), cast(Capabilities, None), Path())


def build(graph: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(HEAD + graph)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def test_nodes_get_names_that_are_free() -> None:
    model = build(
        """g (float[N] x) => (float[N] y) {
            a = Neg(x) [Neg_0] b = Neg(a) c = Relu(b) y = Neg(c)
        }"""
    )
    assert Normalize().run(model, CONTEXT)
    assert [node.name for node in model.graph] == ["Neg_1", "Neg_0", "Relu_0", "Neg_2"]
    assert not Normalize().run(model, CONTEXT)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
def test_transposed_twins_of_any_type(dtype: str) -> None:
    rng = np.random.default_rng(0)
    table = (rng.standard_normal((128, 64)) * 9).astype(dtype)
    graph = (
        "g (int64[N] i) => (float[N, 64] y, float[64, 128] z) { y = Gather(t, i) z = Neg(h) }"
    )
    model = build(graph, t=table, h=np.ascontiguousarray(table.T))
    Normalize().run(model, CONTEXT)
    assert len(model.graph.initializers) == 2  # h is no unit, so it is no twin either


def test_one_different_entry_is_no_twin() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    other = weight.copy()
    other[3, 60] = np.nextafter(other[3, 60], np.float32(9))
    graph = "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    model = build(graph, w=weight, v=other)
    Normalize().run(model, CONTEXT)
    assert len(quantizable(model)) == 2


def test_minus_zero_is_not_zero() -> None:
    graph = "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    zero = np.zeros((64, 64), np.float32)
    model = build(graph, w=zero, v=-zero)
    Normalize().run(model, CONTEXT)
    assert len(model.graph.initializers) == 2


def test_a_weight_that_is_an_output_or_an_input_keeps_its_name() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = """g (float[N, 64] x, float[64, 64] d) => (float[N, 64] y, float[64, 64] v) {
        a = MatMul(x, w) b = MatMul(a, v) y = MatMul(b, d)
    }"""
    model = build(graph, w=weight, v=weight, d=weight)
    Normalize().run(model, CONTEXT)
    assert [value.name for value in model.graph.outputs] == ["y", "v"]
    assert set(model.graph.initializers) == {"w", "v"}
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_small_defaults_of_inputs_stay() -> None:
    model = build(
        "g (float[N] x, float[1] gain) => (float[N] y) { y = Mul(x, gain) }",
        gain=np.ones(1, np.float32),
    )
    Normalize().run(model, CONTEXT)
    assert [value.name for value in model.graph.inputs] == ["x", "gain"]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2000))
def test_digest_does_not_depend_on_chunks(rows: int, columns: int, chunk: int) -> None:
    array = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    whole = tied_weights._content(array)
    patch = pytest.MonkeyPatch()
    with patch.context() as inside:
        inside.setattr(tied_weights, "_CHUNK", chunk)
        assert tied_weights._content(array) == whole
    turned = tied_weights._content(array.T)
    assert (turned.straight, turned.transposed) == (whole.transposed, whole.straight)
