from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from mpqc.ir import InputError, read_model

from .texts import proto, ramp

GRAPH = "g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"


def good() -> onnx.ModelProto:
    return proto(GRAPH, {"w": ramp(64, 64)})


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model = good()
    change(model)
    return bytes(model.SerializeToString())


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_model(path)
    assert "\n" not in caught.value.message
    return caught.value


def test_a_good_file_reads(tmp_path: Path) -> None:
    path = tmp_path / "möde l.onnx"
    path.write_bytes(good().SerializeToString())
    model = read_model(path)
    weight = model.graph.initializers["w"].const_value
    assert weight is not None
    assert np.array_equal(weight.numpy(), ramp(64, 64))


KINDS = {
    "is empty": b"",
    "not a complete ONNX model": good().SerializeToString()[:-2000],
    "random": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    "pickle": pickle.dumps({"state_dict": [1, 2, 3]}),
    "safetensors": (8).to_bytes(8, "little") + b'{"a":{}}',
    "GGUF": b"GGUF" + bytes(100),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "Lite": bytes(4) + b"TFL3" + bytes(100),
    "TensorRT": b"ftrt" + bytes(100),
    "JSON": b'{"model_type": "llama"}',
    "text file": b"this is not a model\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "checkpoint": b"PK\x03\x04" + bytes(26) + b"archive/data.pkl",
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(KINDS[kind])
    error = refusal(path)
    assert error.hint
    assert kind in error.message or kind == "random"


def test_an_empty_protobuf_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx.ModelProto(producer_name="x").SerializeToString())
    assert "no graph" in refusal(path).message


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    assert "a folder" in refusal(tmp_path).message
    assert "no such file" in refusal(tmp_path / "absent.onnx").message
    assert "cannot open" in refusal(tmp_path / ("a" * 300)).message
    assert "cannot open" in refusal(Path("a\0b")).message
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refusal(tmp_path / "pipe.onnx").message


def weight(model: onnx.ModelProto) -> TensorProto:
    tensor: TensorProto = model.graph.initializer[0]
    return tensor


def nest(model: onnx.ModelProto, depth: int) -> None:
    graph = model.graph
    for _ in range(depth):
        node = graph.node.add(op_type="If", input=["c"], output=["z"])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g


def add_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(
        onnx.numpy_helper.from_array(ramp(4), "s")
    )


BROKEN: dict[str, Callable[[onnx.ModelProto], object]] = {
    "has 100 bytes": lambda m: setattr(weight(m), "raw_data", bytes(100)),
    "negative dimension": lambda m: weight(m).dims.__setitem__(0, -64),
    "impossible sizes": lambda m: (
        weight(m).ClearField("raw_data"),
        weight(m).ClearField("dims"),
        weight(m).dims.extend([1 << 40, 1 << 40]),
    ),
    "no known data type": lambda m: setattr(weight(m), "data_type", 99),
    "opset 999 is newer": lambda m: setattr(m.opset_import[0], "version", 999),
    "IR version 99 is newer": lambda m: setattr(m, "ir_version", 99),
    "imports no operator set": lambda m: m.ClearField("opset_import"),
    "given twice": lambda m: m.graph.initializer.add().CopyFrom(weight(m)),
    "compiled engine": lambda m: m.graph.node.add(op_type="EPContext", domain="com.microsoft"),
    "sparse": add_sparse,
    "cycle": lambda m: (
        m.graph.node.add(op_type="Add", input=["y", "b"], output=["a"]),
        m.graph.node.add(op_type="Relu", input=["a"], output=["b"]),
    ),
    "nothing around it defines": lambda m: m.graph.node.add(
        op_type="Relu", input=["nowhere"], output=["b"]
    ),
    "redeclared": lambda m: m.graph.node.add(op_type="Relu", input=["x"], output=["y"]),
    "made by nothing": lambda m: m.graph.output.add(name="absent"),
    "needs operator set 'my.domain'": lambda m: m.graph.node.add(
        op_type="Relu", domain="my.domain", input=["x"], output=["b"]
    ),
    "broken #block": lambda m: m.graph.node[0].metadata_props.add(
        key="mpqc.block", value="block{index=oops}"
    ),
    "segments": lambda m: setattr(weight(m).segment, "begin", 1),
}


@pytest.mark.parametrize("cause", BROKEN)
def test_broken_models_are_refused(tmp_path: Path, cause: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(changed(BROKEN[cause]))
    message = refusal(path).message
    assert cause in message or (cause == "made by nothing" and "absent" in message)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    model = good()
    model.graph.node[0].name = "NAMENAME"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"NAMENAME", b"NAME\xff\xfe\xfd\xfc"))
    assert "UTF-8" in refusal(path).message


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(2000):  # ModelProto.graph.node.attribute.g.node...
        attribute = b"\x32" + _varint(len(inner)) + inner
        node = b"\x2a" + _varint(len(attribute)) + attribute
        inner = b"\x0a" + _varint(len(node)) + node
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09\x3a" + _varint(len(inner)) + inner)
    assert "nested too deep" in refusal(path).message


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    model = proto(
        "g (float[N, 64] x) => (float[N, 64] y) { a = Relu (x)  y = MatMul (a, w) }",
        {"w": ramp(64, 64)},
    )
    nodes = list(model.graph.node)[::-1]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert [node.op_type for node in read_model(path).graph] == ["Relu", "MatMul"]


def test_empty_and_packed_tensors_are_fine(tmp_path: Path) -> None:
    model = good()
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros((0, 4), np.float32), "e")
    )
    packed = onnx.TensorProto(
        name="p", data_type=TensorProto.INT4, dims=[3], raw_data=b"\x21\x03"
    )
    model.graph.initializer.append(packed)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    found = read_model(path).graph.initializers["p"].const_value
    assert found is not None
    assert found.dtype == ir.DataType.INT4
    assert found.numpy().astype(int).tolist() == [1, 2, 3]
