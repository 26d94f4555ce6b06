"""Models and tokenizers small enough to be made in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 256
WIDTH = 64


def weight(name: str, shape: tuple[int, ...], seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])
    return numpy_helper.from_array(values.astype(np.float32), name)


def language_model(path: Path) -> Path:
    """Writes a two-layer model of bytes: ids -> logits, with a residual stream."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x0"], "embed"),
        helper.make_node("MatMul", ["x0", "up"], ["h0"], "up_product"),
        helper.make_node("Relu", ["h0"], ["h1"], "relu"),
        helper.make_node("MatMul", ["h1", "down"], ["h2"], "down_product"),
        helper.make_node("Add", ["x0", "h2"], ["x1"], "residual"),
        helper.make_node("MatMul", ["x1", "head"], ["logits"], "head_product"),
    ]
    table = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
        "table",
    )
    weights = [
        table,
        weight("up", (WIDTH, 2 * WIDTH), 1),
        weight("down", (2 * WIDTH, WIDTH), 2),
        weight("head", (WIDTH, VOCABULARY), 3),
    ]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])
    ]
    shape: list[str | int | None] = ["batch", "tokens", VOCABULARY]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    return save(nodes, inputs, outputs, weights, path)


def vector_model(path: Path) -> Path:
    """Writes a model that reads no text: x -> y."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first_product"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "second"], ["y"], "second_product"),
    ]
    weights = [weight("first", (WIDTH, 128), 1), weight("second", (128, WIDTH), 2)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])]
    return save(nodes, inputs, outputs, weights, path)


def save(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
    path: Path,
) -> Path:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def byte_tokenizer(folder: Path) -> Path:
    """Writes a tokenizer whose ids are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({one: at for at, one in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def language_folder(folder: Path) -> Path:
    """Writes a language model with its tokenizer."""
    language_model(folder / "model.onnx")
    byte_tokenizer(folder)
    return folder
