"""Which attentions are recognised, what is bound, and what users read where nothing is."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from mpqc.ir.analysis.attention import Attention, find_attention

from .attending import decomposed, fused, grouped_query, packed, weights
from .rounded import noise, parse


def only(model: ir.Model) -> Attention:
    found = find_attention(model)
    assert not found.unmatched, found.unmatched[0].why
    (one,) = found.bound
    return one


def names(one: Attention) -> list[str]:
    return [part.unit.name for part in one.projections]


def reason(model: ir.Model) -> str:
    found = find_attention(model)
    assert not found.bound
    (one,) = found.unmatched
    return one.why


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_decomposed(kv_heads: int, rope: bool, causal: bool) -> None:
    one = only(decomposed(kv_heads=kv_heads, rope=rope, causal=causal))
    assert names(one) == ["wq", "wk", "wv", "wo"]
    assert (one.heads, one.kv_heads, one.head_size, one.value_size) == (4, kv_heads, 32, 32)
    assert one.scale == pytest.approx(32**-0.5)
    assert one.causal == one.masked == causal
    assert one.rope == ("operator" if rope else "")


@pytest.mark.parametrize("interleaved", [False, True])
def test_one_unit_for_three_roles(interleaved: bool) -> None:
    one = only(packed(interleaved=interleaved))
    assert names(one) == ["wqkv", "wqkv", "wqkv", "wo"]
    assert (one.heads, one.kv_heads, one.head_size) == (4, 4, 32)
    assert not one.masked


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_grouped_query(joined: bool, rope: bool) -> None:
    one = only(grouped_query(rope=rope, kv_heads=2, joined=joined))
    assert names(one) == (["wqkv"] * 3 if joined else ["wq", "wk", "wv"]) + ["wo"]
    assert (one.heads, one.kv_heads, one.head_size, one.value_size) == (4, 2, 32, 32)
    assert one.causal
    assert one.rope == ("fused" if rope else "")


@pytest.mark.parametrize(
    ("operator", "kv_heads", "causal"),
    [
        ("com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)", 4, False),
        (
            "com.microsoft.MultiHeadAttention <num_heads = 4, unidirectional = 1> (q, k, v)",
            4,
            True,
        ),
        ("Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v)", 2, True),
    ],
)
def test_fused(operator: str, kv_heads: int, causal: bool) -> None:
    one = only(fused(f"o = {operator}", kv_heads=kv_heads))
    assert names(one) == ["wq", "wk", "wv", "wo"]
    assert (one.heads, one.kv_heads, one.head_size) == (4, kv_heads, 32)
    assert one.causal == causal
    assert one.scale == pytest.approx(32**-0.5)


def test_attention_with_its_own_projections_says_so() -> None:
    text = """<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[1, n, 128] x) => (float[1, n, 128] y) {
        o = com.microsoft.Attention <num_heads = 4> (x, wqkv, bias)
        y = MatMul(o, wo) }"""
    given = {"wqkv": noise(128, 384), "bias": noise(384), "wo": noise(128, 128)}
    assert "it holds the weights of its queries, keys and values" in reason(parse(text, given))


_TAIL = "y = MatMul(o, wo) }"
_OPEN = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[n, 128] x) => (float[n, 128] y) {
"""
_PRODUCTS = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) t = Transpose(k)"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "q = MatMul(x, wq) a = Softmax(q) o = MatMul(a, wk)",
            "no product of two activations",
        ),
        (
            f"{_PRODUCTS} s = MatMul(q, t) r = MatMul(k, t) u = Add(s, r)"
            " a = Softmax(u) o = MatMul(a, v)",
            "its scores add up 2 products",
        ),
        (
            f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) b = Tanh(v) o = MatMul(a, b)",
            "its values are not linear in their product: Tanh",
        ),
        (
            f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) p = MatMul(a, v) o = Tanh(p)",
            "Tanh 'tanh' stands between its heads and an output product",
        ),
        (
            f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) b = Add(q, v) o = MatMul(a, b)",
            "its values come from 2 products ('wq', 'wv'), not one",
        ),
        (
            "q = MatMul(x, wq) k = MatMul(q, small) v = MatMul(x, wv) t = Transpose(k)"
            " qs = MatMul(v, small) s = MatMul(qs, t) a = Softmax(s) o = MatMul(a, v)",
            "which is not a unit that can be quantized",
        ),
        (
            f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) c = Transpose(v) o = MatMul(c, a)",
            "multiplies it from the right",
        ),
    ],
)
def test_reasons(body: str, why: str) -> None:
    body = body.replace("o = Tanh", "[tanh] o = Tanh")
    given = {**weights(), "small": noise(128, 8)}
    model = parse(_OPEN + body + _TAIL, given)
    assert why in reason(model)


def test_an_output_that_others_read_has_no_one_product() -> None:
    body = f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) o = MatMul(a, v)"
    body += " z = MatMul(o, wo) w = Relu(o) y = Add(z, w) }"
    assert "not by one product" in reason(parse(_OPEN + body, weights()))


def test_a_weight_that_is_no_product_alone_is_named() -> None:
    body = f"{_PRODUCTS} s = MatMul(q, t) a = Softmax(s) o = MatMul(a, v) z = MatMul(wq, wk)"
    model = parse(_OPEN + body + " " + _TAIL, weights())
    assert "which is not a unit that can be quantized" in reason(model)


@pytest.mark.parametrize(
    ("operator", "why"),
    [
        ("o = com.microsoft.MultiHeadAttention <num_heads = 0> (q, k, v)", "num_heads"),
        ("o = com.microsoft.MultiHeadAttention (q, k, v)", "num_heads"),
        ("o = Attention <q_num_heads = -4, kv_num_heads = -4> (q, k, v)", "how many heads"),
    ],
)
def test_heads_that_make_no_sense_are_no_match(operator: str, why: str) -> None:
    assert why in reason(fused(operator))


def test_a_long_way_to_the_size_of_heads() -> None:
    """The stack of Python is shorter than a chain of Casts may be."""
    model = decomposed()
    node = next(one for one in model.graph if one.op_type == "Softmax")
    scores = node.inputs[0]
    assert scores is not None
    product = next(one for one in model.graph if len(one.inputs) == 2 and _is_scores(one))
    source = product.inputs[0]
    assert source is not None
    for at in range(1500):
        cast = ir.node("Cast", [source], {"to": 1}, name=f"cast{at}")
        cast.outputs[0].name = f"cast{at}"
        model.graph.insert_before(product, cast)
        source = cast.outputs[0]
    product.replace_input_with(0, source)
    assert only(model).heads == 4


def _is_scores(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(value.producer() for value in node.inputs if value)
