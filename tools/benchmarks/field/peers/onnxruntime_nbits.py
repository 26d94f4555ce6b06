"""ONNX Runtime's own weight-only quantizer, on the exported ONNX file.

Settings: ``method`` (nearest, k_quant, hqq), ``bits``, ``block``, ``head_bits`` for the last
product, and ``tie``: an embedding that shared its table with a product reads what that product
stores now. Without it the table stays in the file as floats beside the codes, as the quantizer
leaves it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    HQQWeightOnlyQuantConfig,
    KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from .exchange import Job


def main() -> None:
    """Quantizes the model that the job names."""
    job = Job.given()
    before = onnx.load(job.onnx)
    weight_of = {
        node.output[0]: node.input[1] for node in before.graph.node if node.op_type == "MatMul"
    }
    model = _quantize(before, job.settings)
    copies = _tie(model, weight_of) if job.settings.get("tie") else []
    (job.out / "copies.json").write_text(json.dumps(copies), encoding="utf-8")
    onnx.save(
        model, job.out / "model.onnx", save_as_external_data=True, location="model.onnx.data"
    )


def _quantize(model: onnx.ModelProto, settings: dict[str, Any]) -> onnx.ModelProto:
    head = [node.name for node in model.graph.node if node.op_type == "MatMul"][-1]
    bits, head_bits = settings["bits"], settings.get("head_bits", settings["bits"])
    if settings["method"] == "k_quant":
        widths = {head: {"bits": head_bits}}
        config = KQuantWeightOnlyQuantConfig(customized_weight_config=widths)
        return _run(model, settings, bits, config, [])
    apart = [head] if head_bits != bits else []
    model = _run(model, settings, bits, _config(settings, bits), apart)
    if apart:
        model = _run(model, settings, head_bits, _config(settings, head_bits), [])
    return model


def _config(settings: dict[str, Any], bits: int) -> Any:
    if settings["method"] == "hqq":
        return HQQWeightOnlyQuantConfig(block_size=settings["block"], bits=bits)
    return DefaultWeightOnlyQuantConfig(block_size=settings["block"], bits=bits)


def _run(
    model: onnx.ModelProto,
    settings: dict[str, Any],
    bits: int,
    config: Any,
    exclude: list[str],
) -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=settings["block"],
        nodes_to_exclude=exclude,
        algo_config=config,
    )
    quantizer.process()
    result: onnx.ModelProto = quantizer.model.model
    return result


def _tie(model: onnx.ModelProto, weight_of: dict[str, str]) -> list[str]:
    """Gives tables that a quantized product shared that product's values; returns them."""
    left = {one.name: one for one in model.graph.initializer}
    found = []
    for node in model.graph.node:
        name = weight_of.get(node.output[0], "")
        if node.op_type == "MatMulNBits" and name in left:
            left[name].CopyFrom(numpy_helper.from_array(_expanded(node, left), name))
            found.append(name)
    return found


def _expanded(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto]) -> np.ndarray:
    """Returns the matrix that a quantized product multiplies with, by letting it do so."""
    size = next(one.i for one in node.attribute if one.name == "K")
    value = helper.make_tensor_value_info
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[0], alone.output[0] = "x", "y"
    graph = helper.make_graph(
        [alone],
        "one",
        [value("x", onnx.TensorProto.FLOAT, [size, size])],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [tensors[name] for name in alone.input[1:] if name],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    file = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {"x": np.eye(size, dtype=np.float32)})[0]
    return result


if __name__ == "__main__":
    main()
