"""Where column scales may enter a graph: found, folded by powers of two, not a bit changed."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import open_session
from mpqc.ir import ArrayStore
from mpqc.passes.engine.emission.emitter import Names
from mpqc.passes.rewrite_crossquant.folding import fold
from mpqc.passes.rewrite_crossquant.sites import Site, find_sites

from .rounded import noise, parse

pytestmark = pytest.mark.ort

HEADER = '<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]>\n'
INPUT = "g (float[1, n, 64] x) => (float[1, n, 64] y) "
Weights = dict[str, np.ndarray]


def built(text: str, weights: Weights) -> ir.Model:
    return parse(HEADER + INPUT + text, weights)


def result(model: ir.Model) -> np.ndarray:
    with open_session(model, threads=1) as session:
        found: np.ndarray = session.run({"x": noise(1, 7, 64, seed=9)})["y"]
    return found


def weights(*names: str, rows: int = 64, columns: int = 64) -> Weights:
    return {name: noise(rows, columns, seed=at) / 8 for at, name in enumerate(names)}


def factors(site: Site, seed: int) -> np.ndarray:
    """Powers of two that are all different enough to be seen."""
    rng = np.random.default_rng(seed)
    powers = rng.integers(1, 5, site.classes) * rng.choice([-1, 1])
    return np.asarray(np.exp2(powers), np.float32)


def check(
    model: ir.Model, wanted: set[str], *, cache: bool = False, exact: bool = True
) -> None:
    """Folds every site; the sites are those of ``wanted``."""
    before = result(model)
    sites, _ = find_sites(model, cache=cache)
    assert {site.name for site in sites} == wanted
    for at, site in enumerate(sites):
        stored = [part.unit.matrix() for part in site.consumers if part.unit is not None]
        fold(site, factors(site, at), ArrayStore(), Names(model))
        for part, old in zip(site.consumers, stored, strict=True):
            assert part.unit is not None
            assert not np.any(part.unit.matrix() == old)
    after = result(model)
    if exact:
        np.testing.assert_array_equal(after, before)
    else:  # a fused attention may sum up in another order
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_norms_and_gates() -> None:
    text = """{ n, , , s = com.microsoft.SkipSimplifiedLayerNormalization (x, x, gain)
        a = MatMul(n, gate) b = Sigmoid(a) c = Mul(a, b) u = MatMul(n, up) h = Mul(c, u)
        d = MatMul(h, down) y = Add(s, d) }"""
    gain = {"gain": noise(64, seed=8)}
    model = built(text, weights("gate", "up", "down") | gain)
    check(model, {"n", "h"})


def test_a_norm_written_out_and_a_weight_that_others_read_too() -> None:
    text = """{ q = Mul(x, x) m = ReduceMean <keepdims = 1> (q, last) e = Add(m, small)
        r = Sqrt(e) z = Div(x, r) n = Mul(gain, z) a = MatMul(n, first) t = Tanh(a)
        k = Mul(gain, t) y = MatMul(k, second) }"""
    more = {
        "gain": noise(64, seed=8),
        "last": np.array([-1]),
        "small": np.array(1e-5, np.float32),
    }
    model = built(text, weights("first", "second") | more)
    check(model, {"n", "k"})
    gains = {
        v.name for node in model.graph for v in node.inputs if v and "gain" in str(v.name)
    }
    assert len(gains) == 2  # each reader has its own now


def test_products_through_relu_with_biases_of_one_entry() -> None:
    text = """{ a = MatMul(x, first) b = Add(a, bias) c = Relu(b) d = Add(c, one)
        e = Clip(d, zero) y = MatMul(e, second) }"""
    more = {
        "bias": noise(64, seed=8),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
    }
    check(built(text, weights("first", "second") | more), {"e"})


HEADS = """{ v = MatMul(x, value) s = Reshape(v, split) t = Transpose <perm = [0, 2, 1, 3]> (s)
    w = Unsqueeze(t, two) z = Expand(w, groups) h = Reshape(z, heads)
    q = MatMul(x, query) qs = Reshape(q, all) qt = Transpose <perm = [0, 2, 1, 3]> (qs)
    k = Transpose <perm = [0, 1, 3, 2]> (h) p = MatMul(qt, other) r = Softmax <axis = -1> (p)
    m = MatMul(r, h) o = Transpose <perm = [0, 2, 1, 3]> (m) f = Reshape(o, joined)
    y = MatMul(f, output) }"""


def test_value_heads_that_query_heads_share() -> None:
    """Two value heads of 32 serve four query heads of 32, seven tokens each."""
    shapes = {
        "split": np.array([1, 7, 2, 32]),
        "two": np.array([2]),
        "groups": np.array([1, 2, 2, 7, 32]),
        "heads": np.array([1, 4, 7, 32]),
        "all": np.array([1, 7, 4, 32]),
        "joined": np.array([1, 7, 128]),
    }
    text = HEADS.replace("k = Transpose <perm = [0, 1, 3, 2]> (h) ", "")
    more = weights("value") | weights("query", columns=128) | weights("output", rows=128)
    model = built(text, more | shapes | {"other": noise(1, 4, 32, 7, seed=5)})
    sites, _ = find_sites(model)
    (site,) = (one for one in sites if one.name == "f")
    assert site.classes == 64
    check(model, {"f"})


FUSED = """{ p = MatMul(x, packed)
    a, k, v = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2>
        (p, , , pk, pv, last, total)
    y = MatMul(a, output) }"""


@pytest.mark.parametrize("seen", [False, True])
def test_fused_attention_and_its_cache(seen: bool) -> None:
    outputs = (
        "=> (float[1, n, 64] y, float[1, 2, m, 16] v)" if seen else "=> (float[1, n, 64] y)"
    )
    more = {
        "pk": np.zeros((1, 2, 0, 16), np.float32),
        "pv": np.zeros((1, 2, 0, 16), np.float32),
        "last": np.array([[6]], np.int32),
        "total": np.array([7], np.int32),
    }
    text = HEADER + f"g (float[1, n, 64] x) {outputs} " + FUSED
    model = parse(text, weights("packed", columns=128) | weights("output") | more)
    if seen:
        reasons = {str(one.activation.name): one.why for one in find_sites(model)[1]}
        assert "hands out its values as a cache" in reasons["a"]
    check(model, {"a"}, cache=seen, exact=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{ n = Mul(x, gain) a = MatMul(n, first) y = Add(n, a) }", "is an output|given"),
        (
            "{ a = MatMul(x, first) b = Gelu(a) y = MatMul(b, second) }",
            "Gelu .* cannot take it",
        ),
        ("{ a = MatMul(x, first) b = Mul(a, a) y = MatMul(b, second) }", "squares it"),
        (
            "{ a = MatMul(x, first) b = Relu(a) c = MatMul(b, second) y = Softmax(b) }",
            "reads it",
        ),
        (
            "{ a = MatMul(x, first) b = MatMul(a, second) y = MatMul(b, first) }",
            "more than once",
        ),
        ("{ a = MatMul(x, first) b = Add(a, x) y = MatMul(b, second) }", "given, not made"),
    ],
)
def test_what_stands_in_the_way_is_told(text: str, why: str) -> None:
    header = HEADER.replace("18", "20")
    model = parse(header + INPUT + text, weights("first", "second") | {"gain": noise(64)})
    _, closed = find_sites(model)
    assert any(re.search(why, one.why) for one in closed), [one.why for one in closed]


def deep(layers: int) -> ir.Model:
    """Gated layers on a residual stream, without a shape between input and output."""
    lines: list[str] = []
    given: Weights = {}
    last = "x"
    for at in range(layers):
        lines += [
            f"g{at} = MatMul({last}, wg{at})",
            f"s{at} = Sigmoid(g{at})",
            f"a{at} = Mul(g{at}, s{at})",
            f"u{at} = MatMul({last}, wu{at})",
            f"m{at} = Mul(a{at}, u{at})",
            f"d{at} = MatMul(m{at}, wd{at})",
            f"r{at} = Add({last}, d{at})",
        ]
        given |= weights(f"wg{at}", f"wu{at}", f"wd{at}")
        last = f"r{at}"
    return built("{ " + "\n".join(lines) + f" y = Identity({last}) }}", given)


@pytest.mark.timeout(60)
def test_shapes_of_a_deep_graph_take_no_time() -> None:
    """Every branch was followed once more in every layer: 24 layers never ended."""
    sites, _ = find_sites(deep(60))
    assert {site.name for site in sites} == {f"m{at}" for at in range(60)}


def test_a_closed_activation_names_no_unit_that_is_not_quantized() -> None:
    """One weight is read as it is and transposed, so nothing was calibrated for it."""
    model = built(
        """{ a = Gelu <approximate = "none"> (x)
             b = MatMul(a, w)
             c = MatMul(a, both)
             turned = Transpose <perm = [1, 0]> (both)
             d = MatMul(c, turned)
             y = Add(b, d) }""",
        weights("w", "both"),
    )
    model.graph.opset_imports[""] = 20
    _, closed = find_sites(model)
    assert closed
    assert not any(unit.reason for one in closed for unit in one.units)
