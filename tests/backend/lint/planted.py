"""One small model for each rule that breaks it, and nothing else of its level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)
CONTRIB = "com.microsoft"


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def codes(*shape: int, dtype: Any = np.int8) -> np.ndarray:
    kind = np.dtype(dtype)
    low, high = (-7, 8) if kind == ml_dtypes.int4 else (-100, 100)
    if kind.kind == "u":
        low, high = 28, 228
    found = np.random.default_rng(sum(shape)).integers(low, high, shape)
    return found.astype(dtype)


def steps(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.01, 0.02, shape).astype(np.float32)


def made(
    text: str, /, *, imports: bool = True, opset: int = 21, ir_version: int = 10, **arrays: Any
) -> ir.Model:
    """Reads the body of a graph; names of constants in it are those of ``arrays``."""
    domain = f', "{CONTRIB}" : 1' if imports else ""
    head = f'<ir_version: {ir_version}, opset_import: ["" : {opset}{domain}]>'
    proto = onnx.parser.parse_model(f"{head} {text}")
    for name, array in arrays.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


@dataclass(frozen=True)
class Planted:
    """A model with a mistake.

    Attributes:
        target: Whose rule it breaks.
        model: Makes the model.
        feeds: What it can be run on.
        size: Bytes that its files are said to have.
    """

    target: str
    model: Callable[[], ir.Model]
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    size: int = 0


X = {"x": floats(4, 64)}
IMAGE = {"x": floats(1, 4, 8, 8)}


def product(weight: str, target: str, /, **arrays: Any) -> Planted:
    """A product by what ``weight`` makes of constants."""
    options = {key: arrays.pop(key) for key in ("opset", "ir_version") if key in arrays}
    text = f"g (float[4, 64] x) => (float[4, n] y) {{ {weight} y = MatMul(x, w) }}"
    return Planted(target, lambda: made(text, **options, **arrays), X)


def rounded_product(rounding: str, target: str, /, **arrays: Any) -> Planted:
    """A product of two rounded matrices; ``rounding`` makes ``a`` of ``x``."""
    text = f"""g (float[4, 64] x) => (float[4, 32] y) {{
        {rounding} w = DequantizeLinear <axis = 1> (c, s) y = MatMul(a, w) }}"""
    given = {"c": codes(64, 32), "s": steps(32), "t": np.float32(0.05), **arrays}
    return Planted(target, lambda: made(text, **given), X)


def nbits(target: str, /, inputs: str = "x, b, s", **attributes: int) -> Planted:
    """A MatMulNBits of 64 columns and 32 rows; ``arrays`` are made as its attributes say."""
    given = {"K": 64, "N": 32, "bits": 4, "block_size": 32, "accuracy_level": 4, **attributes}
    columns, rows, bits, block = (given[name] for name in ("K", "N", "bits", "block_size"))
    blocks = -(-columns // block)
    said = ", ".join(f"{key} = {value}" for key, value in given.items())
    arrays = {
        "b": RANDOM.integers(0, 256, (rows, blocks, block * bits // 8)).astype(np.uint8),
        "s": steps(rows, blocks),
        "z": np.full((rows, blocks), 8, np.float32),
        "g": np.arange(columns, dtype=np.int32),
        "bias": floats(rows),
    }
    used: dict[str, Any] = {
        name: arrays[name] for name in inputs.replace(" ", "").split(",") if name in arrays
    }
    text = f"""g (float[4, {columns}] x) => (float[4, {rows}] y) {{
        y = {CONTRIB}.MatMulNBits <{said}> ({inputs}) }}"""
    return Planted(target, lambda: made(text, **used), {"x": floats(4, columns)})


def node(text: str, target: str, /, **arrays: Any) -> Planted:
    """A graph of 4 x 64 numbers with a few nodes, the last of which makes ``y``."""
    options = {key: arrays.pop(key) for key in ("opset",) if key in arrays}
    body = f"g (float[4, 64] x) => (float[4, 64] y) {{ {text} }}"
    return Planted(target, lambda: made(body, **options, **arrays), X)


def convolution(text: str, target: str, /, **arrays: Any) -> Planted:
    body = f"g (float[1, 4, 8, 8] x) => (float[1, 8, 6, 6] y) {{ {text} }}"
    return Planted(target, lambda: made(body, **arrays), IMAGE)


def branches() -> ir.Model:
    def branch(name: str, shape: list[int]) -> onnx.GraphProto:
        array = numpy_helper.from_array(np.zeros(shape, np.float32), "value")
        constant = helper.make_node("Constant", [], [name], value=array)
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        return helper.make_graph([constant], name, [], [output])

    chosen = helper.make_node(
        "If",
        ["c"],
        ["y"],
        "choice",
        then_branch=branch("p", [2, 3]),
        else_branch=branch("q", [4]),
    )
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([chosen], "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 21)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


BY_ROW = "w = DequantizeLinear <axis = 1> (c, s)"
BLOCKED = "w = DequantizeLinear <axis = 0, block_size = {}> (c, s)"
INT4 = ml_dtypes.int4
NAN = np.where(np.arange(32) == 3, np.nan, steps(32)).astype(np.float32)
TURNED = np.where(np.arange(32) % 2, steps(32), -steps(32)).astype(np.float32)
ZERO_STEP = np.where(np.arange(32) == 3, 0, steps(32)).astype(np.float32)
WEIGHT = {"c": codes(64, 32), "s": steps(32)}
PAIR = "q = QuantizeLinear(x, t, z) a = DequantizeLinear(q, t, z)"
FILTERS = {"c": codes(8, 4, 3, 3), "s": steps(8)}

PLANTED: dict[str, Planted] = {
    "scale-not-finite": product(BY_ROW, "ort-cpu", c=codes(64, 32), s=NAN),
    "scale-of-zero": product(BY_ROW, "ort-cpu", c=codes(64, 32), s=ZERO_STEP),
    "scale-count": product(BY_ROW, "openvino", c=codes(64, 32), s=steps(64)),
    "block-shape": product(
        BLOCKED.format(32), "ort-cpu", c=codes(64, 32, dtype=INT4), s=steps(4, 32)
    ),
    "types-too-new": product(
        "w = DequantizeLinear <axis = 1> (c, s)",
        "ort-cpu",
        c=codes(64, 32, dtype=INT4),
        s=steps(32),
        opset=19,
    ),
    "file-too-old": product(
        BLOCKED.format(32),
        "ort-cpu",
        c=codes(64, 32, dtype=INT4),
        s=steps(2, 32),
        ir_version=9,
    ),
    "floats-stored": product(
        "q = QuantizeLinear <axis = 1> (f, s, z) w = DequantizeLinear <axis = 1> (q, s, z)",
        "openvino",
        f=floats(64, 32),
        s=steps(32),
        z=np.zeros(32, np.int8),
    ),
    "pair-that-changes-nothing": rounded_product(
        f"""{PAIR.replace("a =", "e =")} r = QuantizeLinear(e, t, z)
            a = DequantizeLinear(r, t, z)""",
        "openvino",
        z=np.int8(0),
    ),
    "trt-zero-point": rounded_product(PAIR, "tensorrt", z=np.int8(7)),
    "trt-unsigned-codes": rounded_product(PAIR, "tensorrt", z=np.uint8(128)),
    "trt-default-codes": rounded_product(
        "q = QuantizeLinear(x, t) a = DequantizeLinear(q, t)", "tensorrt"
    ),
    "trt-scale-not-positive": rounded_product(PAIR, "tensorrt", z=np.int8(0), s=TURNED),
    "trt-scale-not-constant": rounded_product(
        """m = ReduceMax <keepdims = 0> (x) u = Div(m, k)
           q = QuantizeLinear(x, u, z) a = DequantizeLinear(q, u, z)""",
        "tensorrt",
        k=np.float32(127),
        z=np.int8(0),
    ),
    "trt-bias-of-int32": node(
        "b = DequantizeLinear(c, s) y = Add(x, b)",
        "tensorrt",
        c=np.arange(64, dtype=np.int32),
        s=np.float32(0.01),
    ),
    "trt-2-bits": product(
        BY_ROW,
        "tensorrt",
        c=np.ones((64, 32), ml_dtypes.int2),
        s=steps(32),
        opset=25,
        ir_version=13,
    ),
    "trt-float8-kind": product(
        BY_ROW, "tensorrt", c=np.ones((64, 32), ml_dtypes.float8_e5m2), s=steps(32)
    ),
    "trt-int4-rank": node(
        "w = DequantizeLinear <axis = 1, block_size = 64> (c, s) y = MatMul(x, w)",
        "tensorrt",
        c=codes(1, 64, 64, dtype=INT4),
        s=steps(1, 1, 64),
    ),
    "trt-int4-odd": node(
        """w = DequantizeLinear <axis = 0, block_size = 64> (c, s)
           p = Gather(w, i) y = Add(x, p)""",
        "tensorrt",
        c=codes(65, 63, dtype=INT4),
        s=steps(2, 63),
        i=np.int64(0),
    ),
    "trt-int4-block": product(
        BLOCKED.format(32), "tensorrt", c=codes(64, 32, dtype=INT4), s=steps(2, 32)
    ),
    "trt-block-axis": node(
        "w = DequantizeLinear <axis = 0, block_size = 2> (c, s) y = MatMul(x, w)",
        "tensorrt",
        c=codes(4, 64, 64),
        s=steps(2, 64, 64),
    ),
    "trt-shared-dequantizer": rounded_product(
        f"{PAIR} v = Relu(a) o = MatMul(v, r)", "tensorrt", z=np.int8(0), r=floats(64, 2)
    ),
    "trt-rounded-before-rectifier": node(
        f"h = MatMul(x, f) {PAIR.replace('x,', 'h,')} y = Relu(a)",
        "tensorrt",
        f=floats(64, 64),
        t=np.float32(0.1),
        z=np.int8(0),
    ),
    "trt-channelwise-activation": rounded_product(
        """q = QuantizeLinear <axis = 1> (x, u, z)
           a = DequantizeLinear <axis = 1> (q, u, z)""",
        "tensorrt",
        u=steps(64),
        z=np.zeros(64, np.int8),
    ),
    "trt-half-quantized": product(BY_ROW, "tensorrt", **WEIGHT),
    "trt-foreign-operator": node("y = com.microsoft.QuickGelu(x)", "tensorrt"),
    "trt-integer-operator": node(
        "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)", "tensorrt"
    ),
    "trt-unknown-operator": node(
        "u = Unique(x) m = ReduceMax <keepdims = 0> (u) y = Add(x, m)", "tensorrt"
    ),
    "trt-opset-too-old": node("y = Relu(x)", "tensorrt", opset=7),
    "trt-opset-too-new": node("y = Relu(x)", "tensorrt", opset=26),
    "trt-mixed-types": product(
        BY_ROW, "tensorrt", c=codes(64, 32), s=steps(32).astype(np.float16)
    ),
    "trt-branches-differ": Planted("tensorrt", branches),
    "trt-open-shapes": Planted(
        "tensorrt",
        lambda: made("g (float[n, 64] x) => (float[n, 64] y) { y = Relu(x) }"),
        X,
    ),
    "trt-doubles": Planted(
        "tensorrt",
        lambda: made("g (double[4] x) => (double[4] y) { y = Relu(x) }"),
        {"x": np.ones(4)},
    ),
    "nbits-width": nbits("ort-cpu", bits=3),
    "nbits-block": nbits("web", block_size=8, K=128, N=32),
    "nbits-large-block": nbits("ort-cpu", block_size=512),
    "nbits-packed-shape": Planted(
        "ort-cpu",
        lambda: made(
            """g (float[4, 64] x) => (float[4, 32] y) { y = com.microsoft.MatMulNBits
               <K = 64, N = 32, bits = 4, block_size = 32, accuracy_level = 4> (x, b, s) }""",
            b=np.zeros((32, 4, 8), np.uint8),
            s=steps(32, 2),
        ),
    ),
    "nbits-cpu-level": nbits("ort-cpu", bits=8, accuracy_level=0),
    "nbits-cpu-block": nbits("ort-cpu", bits=2, block_size=16),
    "nbits-8-bits-without-vnni": nbits("ort-cpu", bits=8),
    "nbits-float-zero-point": nbits("ort-cpu", "x, b, s, z"),
    "nbits-column-order": nbits("ort-cpu", "x, b, s, , g"),
    "nbits-cuda-2-bits": nbits("ort-cuda", bits=2, block_size=64),
    "nbits-cuda-multiples": nbits("ort-cuda", N=36),
    "nbits-cuda-bias": nbits("ort-cuda", "x, b, s, , , bias"),
    "nbits-cuda-floats": nbits("ort-cuda"),
    "nbits-cuda-block": nbits("ort-cuda", block_size=64),
    "lookup-block": Planted(
        "ort-cpu",
        lambda: made(
            """g (int64[3] i) => (float[3, 64] y) { y = com.microsoft.GatherBlockQuantized
               <bits = 8, block_size = 24, gather_axis = 0, quantize_axis = 1> (t, i, s) }""",
            t=codes(16, 64, dtype=np.uint8),
            s=steps(16, 3),
        ),
    ),
    "lookup-zero-point": Planted(
        "ort-cuda",
        lambda: made(
            """g (int64[3] i) => (float[3, 64] y) { y = com.microsoft.GatherBlockQuantized
               <bits = 8, block_size = 32, gather_axis = 0, quantize_axis = 1> (t, i, s) }""",
            t=codes(16, 64, dtype=np.uint8),
            s=steps(16, 2),
        ),
    ),
    "integers-on-cpu-only": node(
        "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z)", "ort-cuda"
    ),
    "cuda-blocks-of-bytes": product(
        BLOCKED.format(32), "ort-cuda", c=codes(64, 32), s=steps(2, 32)
    ),
    "cuda-2-bits": product(
        BY_ROW,
        "ort-cuda",
        c=np.ones((64, 32), ml_dtypes.int2),
        s=steps(32),
        opset=25,
        ir_version=13,
    ),
    "cpu-convolution-expands": convolution(
        "w = DequantizeLinear <axis = 0> (c, s) y = Conv(x, w)", "ort-cpu", **FILTERS
    ),
    "cpu-convolution-of-floats": convolution(
        f"{PAIR} w = DequantizeLinear <axis = 0> (c, s) h = Conv(a, w) y = Sigmoid(h)",
        "ort-cpu",
        t=np.float32(0.05),
        z=np.uint8(128),
        **FILTERS,
    ),
    "cpu-signed-activations": rounded_product(f"{PAIR} o = Relu(a)", "ort-cpu", z=np.int8(0)),
    "cpu-gemm-expands": node(
        "w = DequantizeLinear <axis = 1> (c, s) y = Gemm(x, w)",
        "ort-cpu",
        c=codes(64, 64),
        s=steps(64),
    ),
    "ov-codes-not-constant": Planted(
        "openvino",
        lambda: made(
            """g (float[4, 64] x) => (float[4, 32] y) { r = Reshape(b, d)
               y = com.microsoft.MatMulNBits <K = 64, N = 32, bits = 4, block_size = 32>
               (x, r, s) }""",
            b=np.zeros((32, 32), np.uint8),
            d=np.array([32, 2, 16]),
            s=steps(32, 2),
        ),
    ),
    "ov-column-order": nbits("openvino", "x, b, s, , g"),
    "ov-prepacked": nbits("openvino", weight_prepacked=1),
    "ov-shifted-bits": Planted(
        "openvino",
        lambda: made(
            """g (uint8[4] x) => (uint8[4] y) {
               y = BitShift <direction = "RIGHT"> (x, k) }""",
            k=np.uint8(4),
        ),
    ),
    "ov-unknown-operator": Planted(
        "openvino",
        lambda: made(
            """g (float[4, 64] x) => (float[4, 32] y) {
               y = com.microsoft.MatMulBnb4 <K = 64, N = 32, block_size = 32, quant_type = 1>
               (x, b, m) }""",
            b=np.zeros(1024, np.uint8),
            m=steps(64),
        ),
    ),
    "web-too-large": Planted(
        "web",
        lambda: made("g (float[4] x) => (float[4] y) { y = Relu(x) }"),
        size=3 << 30,
    ),
    "web-slow-product": nbits("web", K=64),
    "web-rounding-on-cpu": rounded_product(PAIR, "web", z=np.uint8(128)),
}
