"""An encoder-decoder in one graph is cut where cross attention reads the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mpqc.backend.encoder_decoder import write_parts
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.ir import InputError, read_model, write_model
from mpqc.tools.parts import cut_in_parts

pytestmark = pytest.mark.ort

WIDTH, WORDS = 32, 40


def joined(path: Path, *more: onnx.NodeProto, scores: str = "scores") -> Path:
    """A graph whose decoder divides by the length of what its encoder read."""
    rng = np.random.default_rng(0)
    shapes = {"first": (WIDTH, WIDTH), "keys": (WIDTH, WIDTH), "table": (WORDS, WIDTH)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["heard", "first"], ["encoder_last_hidden_state"]),
        helper.make_node(
            "MatMul", ["encoder_last_hidden_state", "keys"], ["present.0.encoder.key"]
        ),
        helper.make_node("Gather", ["table", "decoder_input_ids"], ["words"]),
        helper.make_node(
            "Concat",
            ["past_key_values.0.decoder.key", "words"],
            ["present.0.decoder.key"],
            axis=1,
        ),
        helper.make_node("Transpose", ["present.0.encoder.key"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["words", "turned"], ["scores"]),
        *more,
        helper.make_node("Shape", ["heard"], ["length"], start=1, end=2),
        helper.make_node("Cast", ["length"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Div", [scores, "count"], ["even"]),
        helper.make_node("MatMul", ["even", "present.0.encoder.key"], ["logits"]),
    ]
    floats: dict[str, list[str | int]] = {
        "heard": ["batch", "frames", WIDTH],
        "past_key_values.0.decoder.key": ["batch", "past", WIDTH],
        "logits": ["batch", "said", WIDTH],
        "present.0.decoder.key": ["batch", "all", WIDTH],
        "present.0.encoder.key": ["batch", "frames", WIDTH],
        "encoder_last_hidden_state": ["batch", "frames", WIDTH],
    }
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in floats.items()
    }
    ids = helper.make_tensor_value_info(
        "decoder_input_ids", TensorProto.INT64, ["batch", "said"]
    )
    ins, outs = [values.pop("heard"), ids], list(values)[1:]
    graph = helper.make_graph(
        nodes,
        "joined",
        [*ins, values["past_key_values.0.decoder.key"]],
        [values[name] for name in outs],
        weights,
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    write_model(read_model(path), path)
    return path


def test_both_parts_compute_what_the_whole_computes(tmp_path: Path) -> None:
    path = joined(tmp_path / "model.onnx")
    encoder, decoder = write_parts(path)
    rng = np.random.default_rng(1)
    heard = rng.standard_normal((2, 7, WIDTH)).astype(np.float32)
    ids = rng.integers(0, WORDS, (2, 3))
    past = {"past_key_values.0.decoder.key": np.zeros((2, 0, WIDTH), np.float32)}
    with open_session(path) as session:
        wanted = session.run({"heard": heard, "decoder_input_ids": ids, **past})
    with open_session(encoder) as session:
        assert [one.name for one in session.inputs] == ["heard"]
        encoded = session.run({"heard": heard})
    assert encoded.keys() == {"last_hidden_state", "present.0.encoder.key"}
    with open_session(decoder) as session:
        crossed = {"past_key_values.0.encoder.key": encoded["present.0.encoder.key"]}
        found = session.run({"input_ids": ids, **past, **crossed})
    assert found.keys() == {"logits", "present.0.decoder.key"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_parts_hold_no_weights_of_their_own(tmp_path: Path) -> None:
    path = joined(tmp_path / "model.onnx")
    parts = write_parts(path)
    assert {one.name for one in tmp_path.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "encoder_model.onnx",
        "decoder_model.onnx",
    }
    for part in parts:
        for tensor in onnx.load(part, load_external_data=False).graph.initializer:
            assert tensor.external_data[0].value == "model.onnx.data"


def test_what_cannot_be_cut_stays_whole(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["heard"], ["mean"], keepdims=1)
    moved = helper.make_node("Add", ["scores", "mean"], ["moved"])
    path = joined(tmp_path / "model.onnx", mean, moved, scores="moved")
    with pytest.raises(InputError, match="'heard' is read on both sides"):
        write_parts(path)
    assert not (tmp_path / "encoder_model.onnx").exists()
    said: list[str] = []
    assert cut_in_parts(path, said.append) == ()
    assert "stays one graph" in said[0]


def test_other_models_have_no_parts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = "g (float[2] x) => (float[2] y) { y = Relu(x) }"
    text = f'<ir_version: 9, opset_import: ["" : 18]> {graph}'
    onnx.save(onnx.parser.parse_model(text), path)
    assert write_parts(path) == ()
