"""Small valid models that together hold everything that mpqc reads closely."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mpqc.ir.proto_checks import nested

_SOURCE = np.random.default_rng(0)
_HEADER = '<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1, "own" : 1]>\n'
_CHAIN = "h = MatMul (x, w)  r = Relu (h)  y = MatMul (r, v)"
_TEXTS: dict[str, str] = {
    "products": f"g (float[N, 64] x) => (float[N, 64] y) {{ {_CHAIN} }}",
    "tied": """g (int64[B, T] ids) => (float[B, T, 64] y) {
        e = Gather (w, ids)  h = MatMul (e, v)  t = Transpose <perm = [1, 0]> (w)
        y = MatMul (h, t) }""",
    "gemm": """g (float[N, 64] x) => (float[N, 64] y) {
        h = Gemm <transB = 1, alpha = 1.0> (x, w, b)  c = Cast <to = 10> (h)
        d = Cast <to = 1> (c)  i = Identity (d)  y = Gemm (i, v, b) }""",
    "convolution": """g (float[N, 64, 8, 8] x) => (float[N, 64, 8, 8] y) {
        h = Conv <kernel_shape = [1, 1], group = 1> (x, k, b)  y = Relu (h) }""",
    "attention": """g (float[1, T, 64] x) => (float[1, T, 64] y) {
        q = MatMul (x, w)  k2 = MatMul (x, v)  u = MatMul (x, a)
        qr = Reshape (q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)
        kr = Reshape (k2, heads)  kt = Transpose <perm = [0, 2, 3, 1]> (kr)
        vr = Reshape (u, heads)  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
        s = MatMul (qt, kt)  n = Mul (s, scale)  p = Softmax <axis = -1> (n)
        o = MatMul (p, vt)  ot = Transpose <perm = [0, 2, 1, 3]> (o)
        f = Reshape (ot, flat)  y = MatMul (f, w) }""",
    "branches": """g (bool c, float[N, 64] x) => (float[N, 64] y) {
        h = MatMul (x, w)
        y = If (c) <then_branch = t () => (float[N, 64] z) { z = MatMul (h, v) },
            else_branch = e () => (float[N, 64] z) { z = Relu (h) }> }""",
    "recurrent": """g (float[T, N, 64] x) => (float[T, 1, N, 64] y) {
        y, last = GRU <hidden_size = 64> (x, gates, again) }""",
    "n_bits": """g (float[N, 64] x) => (float[N, 64] y) {
        y = com.microsoft.MatMulNBits <K = 64, N = 64, bits = 4, block_size = 32>
            (x, codes, scales) }""",
    "blocks": """g (int64[B, T] ids) => (float[B, T, 64] y) {
        y = com.microsoft.GatherBlockQuantized
            <bits = 4, block_size = 32, gather_axis = 0, quantize_axis = 1>
            (rows, ids, ranges) }""",
    "dequantized": """g (int64[B, T] ids, float[N, 64] x)
        => (float[B, T, 64] e, float[N, 64] y) {
        d = DequantizeLinear <axis = 0> (bytes, steps)  t = Transpose <perm = [1, 0]> (d)
        y = MatMul (x, t)  f = Gather (bytes, ids)  c = Cast <to = 1> (f)
        one = Constant <value_float = 0.01> ()  e = Mul (c, one) }""",
    "shapes": """g (float[N, 64] x) => (float[N, 64] y) {
        z = ConstantOfShape (four)  z2 = Reshape (z, two)
        z3 = Slice (z2, minus, least, zero, minus)  z4 = Transpose <perm = [1, 0]> (z3)
        z5 = Reshape (z4, minus)  z6 = Cast <to = 7> (z5)  p = Pad (x, z6)
        n = Shape (w)  k = Gather (n, zero)  m = Concat <axis = 0> (minus, k)
        q = Reshape (p, m)  y = MatMul (q, w)  s = Gather (labels, zero) }""",
    "fused": """g (float[1, T, 64] x, float[1, 4, P, 16] pk, float[1, 4, P, 16] pv,
        int32[1, 1] s, int32 t)
        => (float[1, T, 64] y) {
        q = MatMul (x, w)  k2 = MatMul (x, v)  u = MatMul (x, a)
        o, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 4>
            (q, k2, u, pk, pv, s, t)  y = MatMul (o, w) }""",
}
_OLD = """g (float[N, 64] x) => (float[N, 64] y) {
    h = Gemm <broadcast = 1> (x, w, b)  r = Clip <min = 0.0, max = 9.0> (h)
    d = Dropout <ratio = 0.5> (r)  c = Squeeze <axes = [1]> (u)  y = MatMul (d, v) }"""
_FUNCTION = """g (float[N, 64] x) => (float[N, 64] y) {
    h = own.Twice <axis = 1> (x, w)  y = Relu (h) }
<domain: "own", opset_import: ["" : 17]>
Twice <axis> (p, q) => (r) {
    s = MatMul (p, q)  t = Softmax <axis: int = @axis> (s)  r = Add (t, s) }"""


def _random(*shape: int) -> np.ndarray:
    return _SOURCE.standard_normal(shape).astype(np.float32) / 8


def _whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _bytes(kind: type[np.generic], *shape: int) -> np.ndarray:
    return _SOURCE.integers(0, 100, shape).astype(kind)


_ARRAYS: dict[str, np.ndarray] = {
    **{name: _random(64, 64) for name in "wva"},
    "b": _random(64),
    "k": _random(64, 64, 1, 1),
    "u": _random(3, 1),
    "gates": _random(1, 192, 64),
    "again": _random(1, 192, 64),
    "heads": _whole(1, -1, 4, 16),
    "flat": _whole(1, -1, 64),
    "scale": np.array(0.25, np.float32),
    "codes": _bytes(np.uint8, 64, 2, 16),
    "scales": _random(128),
    "rows": _bytes(np.uint8, 128, 32),
    "ranges": _random(128, 2),
    "bytes": _bytes(np.int8, 64, 64),
    "steps": _random(64),
    "four": _whole(4),
    "two": _whole(-1, 2),
    "minus": _whole(-1),
    "least": _whole(-(2**63)),
    "zero": _whole(0),
    "labels": np.array(["a", "b"], object),
}
_NOTES = (
    ("mpqc.block", "block{index=0}"),
    ("mpqc.float", 'float{unit=w, why="too small"}'),
    ("mpqc.part", "part{unit=w, role=channels}"),
)


def _parsed(text: str, opset: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(_HEADER.format(opset=opset) + text)
    read = {
        name for graph in nested(model.graph) for node in graph.node for name in node.input
    }
    given = {one.name for one in model.graph.input}
    given |= {name for node in model.graph.node for name in node.output}
    for name in sorted(_ARRAYS.keys() & read - given):
        model.graph.initializer.append(numpy_helper.from_array(_ARRAYS[name], name))
    return model


def models() -> dict[str, onnx.ModelProto]:
    """Returns the models by name."""
    made = {
        name: _parsed(text, 21 if name == "dequantized" else 17)
        for name, text in _TEXTS.items()
    }
    made["old"] = _parsed(_OLD, 6)
    made["function"] = _parsed(_FUNCTION, 17)
    noted = _parsed(_TEXTS["products"], 17)
    for node, (key, text) in zip(noted.graph.node, _NOTES, strict=True):
        node.metadata_props.add(key=key, value=text)
    made["noted"] = noted
    lifted = _parsed(_TEXTS["products"], 17)
    tensor = lifted.graph.initializer.pop()
    lifted.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    packed = TensorProto(name="p", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x03")
    lifted.graph.initializer.append(packed)
    made["constants"] = lifted
    outside = _parsed(_TEXTS["products"], 17)
    for at, one in enumerate(outside.graph.initializer):
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", "w.bin"),
            ("offset", str(at * 16384)),
            ("length", "16384"),
        ):
            one.external_data.add(key=key, value=value)
    made["external"] = outside
    return made
