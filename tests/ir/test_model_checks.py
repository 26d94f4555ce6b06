from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from mpqc.ir import InputError, check_finite, inline_functions, refuse_quantized, verify

from .texts import model, proto, ramp

TEXT = "g (float[64, 64] x) => (float[64, 64] y) { h = Add (x, mask)  y = MatMul (h, w) }"


def broken(value: float) -> np.ndarray:
    array = ramp(64, 64)
    array[7, 3] = value
    return array


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_damaged_weights_are_named(dtype: str) -> None:
    for value, word in ((np.nan, "NaN"), (np.inf, "infinity")):
        found = model(TEXT, mask=(64, 64), w=(64, 64))
        kind = (
            ir.DataType.BFLOAT16
            if dtype == "bfloat16"
            else ir.DataType.from_numpy(np.dtype(dtype))
        )
        array = broken(value).astype(kind.numpy())
        found.graph.initializers["w"].const_value = ir.Tensor(array, dtype=kind, name="w")
        with pytest.raises(InputError, match=f"'w' holds {word}"):
            check_finite(found)


def test_masks_may_be_infinite_but_not_nan() -> None:
    check_finite(model(TEXT, mask=broken(-np.inf), w=(64, 64)))
    with pytest.raises(InputError, match="'mask' holds NaN"):
        check_finite(model(TEXT, mask=broken(np.nan), w=(64, 64)))


@pytest.mark.parametrize(
    "op", ["com.microsoft.MatMulNBits", "QLinearMatMul", "DequantizeLinear"]
)
def test_quantized_models_are_refused(op: str) -> None:
    found = model(f"g (float[4] x) => (float[4] y) {{ y = {op} (x, x) }}")
    with pytest.raises(InputError, match="quantized already") as caught:
        refuse_quantized(found)
    assert caught.value.hint
    refuse_quantized(model(TEXT, mask=(64, 64), w=(64, 64)))


def with_functions(bodies: dict[str, list[str]]) -> ir.Model:
    """Builds functions that call the named others in a row, and a graph that calls ``f0``."""
    text = "g (float[4] x) => (float[4] y) { y = Relu (x) }"
    parsed = proto(text, {})
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    for name, calls in bodies.items():
        nodes, last = [], "a"
        for at, call in enumerate(calls):
            domain = "" if call == "Relu" else "own"
            nodes.append(helper.make_node(call, [last], [f"v{at}"], domain=domain))
            last = f"v{at}"
        parsed.functions.append(
            helper.make_function("own", name, ["a"], [last], nodes, imports)
        )
    parsed.opset_import.append(helper.make_opsetid("own", 1))
    parsed.graph.node[0].CopyFrom(helper.make_node("f0", ["x"], ["y"], domain="own"))
    assert isinstance(parsed, onnx.ModelProto)
    return ir.from_proto(parsed)


def test_functions_are_inlined() -> None:
    found = with_functions({"f0": ["f1", "f1"], "f1": ["Relu", "Relu"]})
    assert inline_functions(found)
    assert [node.op_type for node in found.graph] == ["Relu"] * 4
    assert not inline_functions(found)
    verify(found)


def test_doubling_functions_are_refused_before_they_expand() -> None:
    bodies = {f"f{at}": [f"f{at + 1}"] * 2 for at in range(60)}
    with pytest.raises(InputError, match="expand to more than"):
        inline_functions(with_functions({**bodies, "f60": ["Relu"]}))


def test_recursive_functions_are_refused() -> None:
    with pytest.raises(InputError, match="calls itself"):
        inline_functions(with_functions({"f0": ["f1"], "f1": ["f0"]}))
