from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.ir import SharedOrders, find_shared_orders

from .texts import model

GATED = """g (float[N, 64] x) => (float[N, 64] y) {
    g = MatMul(x, gate)  s = Sigmoid(g)  a = Mul(g, s)  u = MatMul(x, up)  h = Mul(a, u)
    y = MatMul(h, down) }"""
TWO = {"first": (64, 96), "second": (96, 64)}


def names(found: SharedOrders) -> list[tuple[list[str], list[str], list[str]]]:
    return [
        (
            [unit.name for unit in one.producers],
            [unit.name for unit in one.consumers],
            [str(value.name) for value in one.constants],
        )
        for one in found.found
    ]


def between(nodes: str, weights: dict[str, object], outputs: str = "") -> SharedOrders:
    """Searches ``h = x first; nodes; y = a second``."""
    text = f"""g (float[N, 64] x) => (float[N, 64] y{outputs}) {{
        h = MatMul(x, first) {nodes} y = MatMul(a, second) }}"""
    return find_shared_orders(model(text, **{**TWO, **weights}))  # type: ignore[arg-type]


def test_gate_and_up_share_the_columns_of_down() -> None:
    found = find_shared_orders(model(GATED, gate=(64, 96), up=(64, 96), down=(96, 64)))
    assert names(found) == [(["gate", "up"], ["down"], [])]
    assert found.found[0].name == "gate"
    assert [unit.name for one in found.refused for unit in one.units] == ["down"]


@pytest.mark.parametrize(
    ("nodes", "weights", "constants"),
    [
        ("a = Relu(h)", {}, []),
        ("b = Add(h, bias) a = Tanh(b)", {"bias": (96,)}, ["bias"]),
        ("a = com.microsoft.BiasGelu(h, bias)", {"bias": (96,)}, ["bias"]),
        ("c = Cast <to = 1> (bias) a = Add(c, h)", {"bias": (1, 96)}, ["bias"]),
        ("b = Mul(h, half) a = Add(b, b)", {"half": np.array(0.5, np.float32)}, []),
        ("b = Mul(h, half) a = Add(b, b)", {"half": (1, 1)}, []),
        ("a = Dropout(h)", {}, []),
        ("b = Clip(h, low) a = Neg(b)", {"low": np.array(0.5, np.float32)}, []),
        ("b = Reshape(h, shape) a = Relu(b)", {"shape": np.array([1, -1, 96])}, []),
        ("b = Greater(h, zero) a = Where(b, h, zero)", {"zero": (1,)}, []),
    ],
)
def test_what_treats_channels_alike(
    nodes: str, weights: dict[str, object], constants: list[str]
) -> None:
    assert names(between(nodes, weights)) == [(["first"], ["second"], constants)]


@pytest.mark.parametrize(
    ("nodes", "weights", "why"),
    [
        ("a = Softmax(h)", {}, "Softmax '' tells the channels apart"),
        ("a = Relu(h) t = ReduceSum(a)", {}, "tells the channels apart"),
        ("a = Add(h, x)", {}, "input 'x' takes part"),
        (
            "b = Softmax(x) a = Add(h, b)",
            {},
            "takes part, whose channels have their own order",
        ),
        ("b = Reshape(h, shape) a = Relu(b)", {"shape": np.array([-1, 48])}, "another axis"),
        ("a = Gather(h, i)", {"i": np.array([0])}, "tells the channels apart"),
        ("p = PRelu(h, s) a = Neg(p) q = MatMul(s, h)", {"s": (96,)}, "tells the channels"),
    ],
)
def test_what_needs_the_order(nodes: str, weights: dict[str, object], why: str) -> None:
    found = between(nodes, weights)
    assert names(found) == []
    assert why in found.refused[0].why


def test_an_output_keeps_its_order() -> None:
    found = between("a = Relu(h)", {}, ", float[N, 96] a")
    assert found.refused[0].why == "'a' is an output of the model"


def test_control_flow_that_reads_along_is_told_apart() -> None:
    found = find_shared_orders(
        model(
            """g (float[N, 64] x, bool c) => (float[N, 64] y, float[N, 96] z) {
            h = MatMul(x, first) a = Relu(h) y = MatMul(a, second)
            z = If (c) <then_branch = t () => (float[N, 96] p) { p = Neg(a) },
                        else_branch = e () => (float[N, 96] q) { q = Abs(a) }> }""",
            **TWO,
        )
    )
    assert found.refused[0].why == "'a' is read inside control flow"


def test_a_dropout_that_may_train_is_random() -> None:
    constants: dict[str, object] = {"r": np.array(0.5, np.float32), "t": np.array(True)}
    found = between("a = Dropout(h, r, t)", constants)
    assert "Dropout" in found.refused[0].why


def test_a_weight_that_two_products_read_stays() -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y) {
        h = MatMul(x, first) r = Relu(h) z = MatMul(r, second)
        k = MatMul(z, first) y = MatMul(k, second) }"""
    found = find_shared_orders(model(text, **TWO))
    assert names(found) == []
    assert found.refused[0].why == "'first' is used more than once"


def test_a_weight_that_multiplies_other_activations_stays() -> None:
    text = """g (float[N, 64] x, float[N, 96] other) => (float[N, 64] y, float[N, 64] z) {
        h = MatMul(x, first) a = Relu(h) y = MatMul(a, second) z = MatMul(other, second) }"""
    found = find_shared_orders(model(text, **TWO))
    assert found.refused[0].why == "'second' multiplies other activations too"


def test_two_products_may_read_the_same_channels() -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y, float[N, 64] z) {
        h = MatMul(x, first) a = Relu(h) y = MatMul(a, second) z = MatMul(h, third) }"""
    found = find_shared_orders(model(text, **TWO, third=(96, 64)))
    assert names(found) == [(["first"], ["second", "third"], [])]


def test_gemms_with_a_bias_and_views_of_weights() -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y) {
        h = Gemm <transB = 1> (x, first, bias) a = Relu(h)
        t = Transpose <perm = [1, 0]> (second) y = Gemm(a, t, last) }"""
    weights = {"first": (96, 64), "second": (64, 96), "bias": (96,), "last": (64,)}
    found = find_shared_orders(model(text, **weights))
    assert names(found) == [(["first"], ["second"], ["bias"])]


def test_a_chain_of_layers_has_an_order_between_any_two() -> None:
    text = """g (float[N, 64] x) => (float[N, 64] y) {
        a = MatMul(x, first) b = Relu(a) c = MatMul(b, middle) d = Relu(c)
        y = MatMul(d, second) }"""
    found = find_shared_orders(model(text, **TWO, middle=(96, 96)))
    assert names(found) == [(["first"], ["middle"], []), (["middle"], ["second"], [])]


def test_a_constant_that_can_be_seen_stays() -> None:
    built: ir.Model = model(
        """g (float[N, 64] x) => (float[N, 64] y) {
        h = MatMul(x, first) a = Add(h, bias) y = MatMul(a, second) }""",
        **TWO,
        bias=(96,),
    )
    built.graph.outputs.append(built.graph.initializers["bias"])
    assert "seen from outside" in find_shared_orders(built).refused[0].why


@pytest.mark.parametrize(
    "readers",
    [
        "y = Gemm(a, second) z = Gemm<transA = 1>(a, second)",
        "z = Gemm<transA = 1>(a, second) y = Gemm(a, second)",
        "z = Gemm<transB = 1>(a, second) y = Gemm(a, second)",
    ],
)
def test_a_consumer_that_stays_in_float_keeps_the_order(readers: str) -> None:
    """Its columns are not those that the other reader multiplies by the channels."""
    text = f"""g (float[64, 64] x) => (float[64, 64] y, float[64, 64] z) {{
        h = MatMul(x, first) a = Relu(h) {readers} }}"""
    found = find_shared_orders(model(text, first=(64, 64), second=(64, 64)))
    assert names(found) == []
