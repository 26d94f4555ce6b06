from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpqc.ir import InputError, read_model
from mpqc.ir.reader import _LONGEST_LINE

from .texts import proto, ramp

Model = onnx.ModelProto
BASE = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"


def base() -> Model:
    return proto(BASE, {"w": ramp(64, 64)})


def add(op: str, inputs: list[str], domain: str = "", **attributes: Any) -> Model:
    """Returns a model with one more node, whose output nothing reads."""
    model = base()
    model.graph.node.append(helper.make_node(op, inputs, ["z"], domain=domain, **attributes))
    return model


def changed(change: Callable[[Model], object]) -> Model:
    model = base()
    change(model)
    return model


def n_bits(**given: int | None) -> Model:
    all_given = {"K": 64, "N": 64, "block_size": 32, "bits": 4, **given}
    attributes = {name: value for name, value in all_given.items() if value is not None}
    return add("MatMulNBits", ["x", "w", "w"], "com.microsoft", **attributes)


def weight_as(**fields: object) -> Model:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return changed(lambda model: model.graph.initializer.append(tensor))


def with_external(location: str, *, inline: bool) -> Model:
    model = weight_as(dims=[1], float_data=[0.0])
    tensor = model.graph.initializer[-1]
    tensor.external_data.add(key="location", value=location)
    if not inline:
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
    return model


def typed_input(size: int) -> Model:
    return changed(
        lambda m: m.graph.input.append(
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [size])
        )
    )


def noted(text: str) -> Model:
    return changed(lambda m: m.graph.node[0].metadata_props.add(key="mpqc.block", value=text))


BROKEN: dict[str, tuple[Callable[[], Model], str]] = {
    "MatMulNBits without K": (lambda: n_bits(K=None), "lacks the attribute 'K'"),
    "block_size 0": (lambda: n_bits(block_size=0), "block_size 0"),
    "bits 99": (lambda: n_bits(bits=99), "bits 99"),
    "Gather without inputs": (lambda: add("Gather", []), "has 0 inputs"),
    "Gather without its table": (lambda: add("Gather", ["", "x"]), "leaves out input 0"),
    "Relu of two": (lambda: add("Relu", ["x", "x"]), "has 2 inputs; its operator has 1"),
    "perm out of range": (lambda: add("Transpose", ["w"], perm=[0, 5]), "no permutation"),
    "perm of another rank": (
        lambda: add("Transpose", ["w"], perm=[0, 1, 2]),
        "permutes 3 axes of a constant with 2",
    ),
    "Constant without value": (lambda: add("Constant", []), "has 0 values"),
    "Cast to nothing": (lambda: add("Cast", ["x"], to=99), "to 99"),
    "transB as text": (lambda: add("Gemm", ["x", "w"], transB="1"), "'transB' as STRING"),
    "axis beyond 32 bits": (lambda: add("Softmax", ["w"], axis=1 << 40), "makes no sense"),
    "axis as text": (lambda: add("Gather", ["w", "x"], axis="0"), "'axis' as STRING"),
    "no outputs": (lambda: changed(lambda m: m.graph.node.add(op_type="Own")), "no outputs"),
    "attribute of a function": (
        lambda: changed(
            lambda m: m.graph.node[0].attribute.add(name="a", type=2, ref_attr_name="b")
        ),
        "takes 'a' from a function",
    ),
    "input of -7": (lambda: typed_input(-7), "dimension of -7"),
    "input of 2^62": (lambda: typed_input(1 << 62), "dimension of 4611686018427387904"),
    "0 x 2^62": (lambda: weight_as(dims=[0, 1 << 62]), "impossible sizes"),
    "floats as int64": (lambda: weight_as(dims=[1], int64_data=[1]), "in int64_data"),
    "inline and external": (
        lambda: with_external("a.bin", inline=True),
        "names external data",
    ),
    "location of 1 MB": (
        lambda: with_external("a" * 1_000_000, inline=False),
        "impossible (1000000 letters) external data location",
    ),
    "a million dims": (lambda: weight_as(dims=[1 << 62] * 1_000_000), "1000000 dimensions"),
    "100,000 brackets": (lambda: noted("block{index=" + "[" * 100_000), "nested too deep"),
    "a bad escape": (lambda: noted('block{index="\\x"}'), "no quoted string"),
    "twice in 200,000": (
        lambda: changed(
            lambda m: m.graph.initializer.extend(
                [
                    numpy_helper.from_array(np.zeros(1), f"i{at % 199_999}")
                    for at in range(200_000)
                ]
            )
        ),
        "given twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_an_input_error_in_one_line(case: str, tmp_path: Path) -> None:
    make, cause = BROKEN[case]
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert cause in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) <= _LONGEST_LINE
    assert time.process_time() - start < 20


def legal_text(body: str, opset: int = 17) -> Model:
    head = f'<ir_version: 9, opset_import: ["" : {opset}, "own" : 1]>'
    return onnx.parser.parse_model(f"{head}\ng (float[N, 4] x) => (float[N, 4] y) {body}")


FUNCTION = (
    '<ir_version: 9, opset_import: ["" : 17, "own" : 1]>\n'
    "g (float[N, 4] x) => (float[N, 4] y) { y = own.Relu <factor = 2.0> (x, x, x) }\n"
    '<domain: "own", opset_import: ["" : 17]>\n'
    "Relu <factor> (a, b, c) => (d)"
    " { e = Constant <value_float: float = @factor> ()  d = Mul (a, e) }"
)
LEGAL: dict[str, Callable[[], Model]] = {
    "optional inputs": lambda: legal_text("{ y = Clip (x, , x) }"),
    "variadic inputs": lambda: legal_text("{ y = Sum (x, x, x, x) }"),
    "an old opset": lambda: legal_text("{ y = Clip <min = 0.0> (x) }", 6),
    "an old attribute": lambda: legal_text("{ y = Relu <consumed_inputs = [0]> (x) }", 7),
    "an unknown domain": lambda: legal_text('{ y = own.Gather <axis = "a"> (x, x, x) }'),
    "an operator that only runtimes know": lambda: legal_text("{ y = FastRelu (x) }"),
    "a function that is called like an operator": lambda: onnx.parser.parse_model(FUNCTION),
    "-1 for an unknown size": lambda: typed_input(-1),
}


@pytest.mark.parametrize("case", LEGAL)
def test_what_is_legal_is_read(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(LEGAL[case]().SerializeToString())
    model = read_model(path)
    assert all(
        not isinstance(dim, int) or dim >= 0
        for one in model.graph.inputs
        for dim in one.shape or ()
    )
