"""Small attentions in ONNX's own text form, as several exporters write them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .rounded import noise, parse

WIDTH, HEADS, SIZE = 128, 4, 32

_HEAD = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[1, n, 128] x) => (float[1, n, 128] y) {
"""
_DECOMPOSED = """
      shape = Constant <value = int64[4] {0, 0, -1, 32}> ()
      flat = Constant <value = int64[3] {0, 0, 128}> ()
      q3 = MatMul(x, wq)
      q4 = Reshape(q3, shape)
      q5 = Transpose <perm = [0, 2, 1, 3]> (q4)
      k3 = MatMul(x, wk)
      k4 = Reshape(k3, shape)
      k5 = Transpose <perm = [0, 2, 1, 3]> (k4)
      v3 = MatMul(x, wv)
      v4 = Reshape(v3, shape)
      v5 = Transpose <perm = [0, 2, 1, 3]> (v4)
      {turn}
      {repeat}
      k8 = Transpose <perm = [0, 1, 3, 2]> (k7)
      scores = MatMul(q7, k8)
      scale = Constant <value = float {0.17677669}> ()
      scaled = Mul(scores, scale)
      {mask}
      [softmax] a = Softmax <axis = -1> (bent)
      o4 = MatMul(a, v7)
      o5 = Transpose <perm = [0, 2, 1, 3]> (o4)
      o3 = Reshape(o5, flat)
      y = MatMul(o3, wo) }
"""
_UNTURNED = "q7 = Identity(q5)  k6 = Identity(k5)"
_TURNED = """
      qt = RotaryEmbedding(q5, cos, sin, positions)
      q7 = Identity(qt)
      k6 = RotaryEmbedding(k5, cos, sin, positions)
"""
_ALONE = "k7 = Identity(k6)  v7 = Identity(v5)"
_REPEATED = """
      third = Constant <value = int64[1] {2}> ()
      five = Constant <value = int64[5] {1, 1, 2, 1, 1}> ()
      four = Constant <value = int64[4] {0, 4, -1, 32}> ()
      ku = Unsqueeze(k6, third)
      ke = Expand(ku, five)
      k7 = Reshape(ke, four)
      vu = Unsqueeze(v5, third)
      ve = Expand(vu, five)
      v7 = Reshape(ve, four)
"""
_UNMASKED = "bent = Identity(scaled)"
_CAUSAL = """
      dims = Shape(scaled)
      far = Constant <value = float[1] {-10000.0}> ()
      square = Slice(dims, two, end)
      all = Expand(far, square)
      mask = Trilu <upper = 1> (all, one)
      bent = Add(scaled, mask)
"""


def weights(kv_heads: int = HEADS) -> dict[str, np.ndarray]:
    """Projections of ``HEADS`` heads and ``kv_heads`` of keys and values, K x N each."""
    return {
        "wq": noise(WIDTH, HEADS * SIZE, seed=1) / 8,
        "wk": noise(WIDTH, kv_heads * SIZE, seed=2) / 8,
        "wv": noise(WIDTH, kv_heads * SIZE, seed=3) / 8,
        "wo": noise(HEADS * SIZE, WIDTH, seed=4) / 8,
    }


def rotations(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of positions x half a head."""
    angles = np.arange(tokens)[:, None] * 0.5 ** np.arange(SIZE // 2)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def decomposed(
    *, kv_heads: int = HEADS, causal: bool = True, rope: bool = False, tokens: int = 12
) -> ir.Model:
    """``x -> y``: MatMul, Softmax, MatMul, with what options ask for."""
    text = _DECOMPOSED.replace("{turn}", _TURNED if rope else _UNTURNED)
    text = text.replace("{repeat}", _ALONE if kv_heads == HEADS else _REPEATED)
    text = text.replace("{mask}", _CAUSAL if causal else _UNMASKED)
    extra = {
        "one": np.array(1, np.int64),
        "two": np.array([2], np.int64),
        "end": np.array([4], np.int64),
    }
    if rope:
        cos, sin = rotations(tokens)
        extra |= {"cos": cos, "sin": sin, "positions": np.arange(tokens)[None]}
    return parse(_HEAD + text, weights(kv_heads) | extra)


def packed(*, interleaved: bool = False) -> ir.Model:
    """One unit for queries, keys and values, cut into three parts in one of two ways."""
    whole = """
      flat = Constant <value = int64[3] {0, 0, 128}> ()
      p = MatMul(x, wqkv)
    """
    if interleaved:  # [heads, parts, size]
        whole += """
      five = Constant <value = int64[5] {0, 0, 4, 3, 32}> ()
      zero = Constant <value = int64 {0}> ()
      one = Constant <value = int64 {1}> ()
      two = Constant <value = int64 {2}> ()
      p5 = Reshape(p, five)
      q4 = Gather <axis = 3> (p5, zero)
      k4 = Gather <axis = 3> (p5, one)
      v4 = Gather <axis = 3> (p5, two)
    """
    else:
        whole += """
      four = Constant <value = int64[4] {0, 0, 4, 32}> ()
      q3, k3, v3 = Split <axis = 2, num_outputs = 3> (p)
      q4 = Reshape(q3, four)
      k4 = Reshape(k3, four)
      v4 = Reshape(v3, four)
    """
    whole += """
      q5 = Transpose <perm = [0, 2, 1, 3]> (q4)
      k5 = Transpose <perm = [0, 2, 3, 1]> (k4)
      v5 = Transpose <perm = [0, 2, 1, 3]> (v4)
      scores = MatMul(q5, k5)
      [softmax] a = Softmax <axis = -1> (scores)
      o4 = MatMul(a, v5)
      o5 = Transpose <perm = [0, 2, 1, 3]> (o4)
      o3 = Reshape(o5, flat)
      y = MatMul(o3, wo) }
    """
    parts = {"wqkv": noise(WIDTH, 3 * HEADS * SIZE, seed=1) / 12, "wo": weights()["wo"]}
    return parse(_HEAD + whole, parts)


def fused(
    operator: str,
    *,
    kv_heads: int = HEADS,
    joined: bool = False,
    extra: dict[str, np.ndarray] | None = None,
) -> ir.Model:
    """``x -> y`` through one operator: its text, reading q, k and v (or qkv if ``joined``)."""
    products = "q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)"
    given = weights(kv_heads)
    if joined:
        products = "qkv = MatMul(x, wqkv)"
        three = [given.pop(name) for name in ("wq", "wk", "wv")]
        given["wqkv"] = np.concatenate(three, axis=1)
    return parse(f"{_HEAD}{products}  {operator}  y = MatMul(o, wo) }}", given | (extra or {}))


def grouped_query(*, rope: bool, kv_heads: int, joined: bool, tokens: int = 12) -> ir.Model:
    """What the builder of onnxruntime-genai writes, without a past."""
    cos, sin = rotations(tokens)
    inputs = "qkv, , " if joined else "q, k, v"
    tables = ", cos, sin" if rope else ""
    extra = {"last": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32)}
    return fused(
        f"""[attention] o, pk, pv = com.microsoft.GroupQueryAttention
              <num_heads = 4, kv_num_heads = {kv_heads}, do_rotary = {int(rope)}>
              ({inputs}, , , last, total{tables})""",
        kv_heads=kv_heads,
        joined=joined,
        extra=extra | ({"cos": cos, "sin": sin} if rope else {}),
    )


_LANGUAGE = """<ir_version: 10, opset_import: ["" : 23]>
    g (int64[1, n] ids) => (float[1, n, 80] logits) {
      x = Gather(table, ids)
"""
_AFTER = """
      z = Add(x, y)
      a1 = MatMul(z, up)
      a2 = Relu(a1)
      a3 = MatMul(a2, down)
      last = Add(z, a3)
      logits = MatMul(last, head) }
"""


def language() -> ir.Model:
    """``ids -> logits``: an attention with two heads of keys and values, and two products."""
    text = _DECOMPOSED.replace("{turn}", _UNTURNED).replace("{repeat}", _REPEATED)
    text = text.replace("{mask}", _CAUSAL).replace(" }\n", "\n")
    more = {
        "table": noise(80, WIDTH, seed=5),
        "up": noise(WIDTH, 64, seed=6) / 10,
        "down": noise(64, WIDTH, seed=7) / 8,
        "head": noise(WIDTH, 80, seed=8) / 8,
        "one": np.array(1, np.int64),
        "two": np.array([2], np.int64),
        "end": np.array([4], np.int64),
    }
    return parse(_LANGUAGE + text + _AFTER, weights(2) | more)
