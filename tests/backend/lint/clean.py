"""Graphs that other tools made, by the targets that they are right for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from .planted import INT4, codes, made, steps

SIZE = 64


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(SIZE, 128), torch.nn.ReLU(), torch.nn.Linear(128, SIZE)]
    return torch.nn.Sequential(*layers)


def image_network(*, rectified: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    rectifiers = [torch.nn.ReLU()] if rectified else []
    layers = [torch.nn.Conv2d(4, 8, 3), *rectifiers, torch.nn.Conv2d(8, 8, 3), *rectifiers]
    return torch.nn.Sequential(*layers)


def exported(module: torch.nn.Module, shape: tuple[int, ...], path: Path, **how: Any) -> Path:
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(module.eval(), (torch.randn(*shape),), path, **names, **how)
    return path


def by_torchscript(folder: Path) -> Path:
    path = folder / "script.onnx"
    return exported(network(), (4, SIZE), path, dynamo=False, opset_version=17)


def by_dynamo(folder: Path) -> Path:
    path = folder / "dynamo.onnx"
    return exported(image_network(), (1, 4, 16, 16), path, dynamo=True, opset_version=20)


def attention(folder: Path) -> Path:
    torch.manual_seed(0)
    module = torch.nn.TransformerEncoderLayer(SIZE, 4, 128, batch_first=True)
    path = folder / "attention.onnx"
    return exported(module, (1, 8, SIZE), path, dynamo=True, opset_version=20)


def static(folder: Path, module: torch.nn.Module, **how: Any) -> Path:
    """ONNX Runtime's quantizer, in the QDQ format."""
    from onnxruntime.quantization import QuantFormat, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            shape = (1, 4, 16, 16)
            self.left: Iterator[np.ndarray] = iter(
                [random.standard_normal(shape).astype(np.float32) for _ in range(4)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            array = next(self.left, None)
            return None if array is None else {"x": array}

    path = folder / "before.onnx"
    exported(module, (1, 4, 16, 16), path, dynamo=False, opset_version=17)
    output = folder / "static.onnx"
    quantize_static(path, output, Reader(), quant_format=QuantFormat.QDQ, **how)
    return output


def static_for_cpu(folder: Path) -> Path:
    from onnxruntime.quantization import QuantType

    return static(folder, image_network(), activation_type=QuantType.QUInt8, per_channel=True)


def static_for_tensorrt(folder: Path) -> Path:
    """With the settings that its documents give for TensorRT.

    It rounds between a convolution and a Relu, which is a finding.
    """
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    more = {"DedicatedQDQPair": True, "AddQDQPairToWeight": False}
    module = image_network(rectified=False)
    return static(folder, module, per_channel=True, extra_options={**symmetric, **more})


def dynamic(folder: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    path = by_torchscript(folder)
    quantize_dynamic(path, folder / "dynamic.onnx", per_channel=True)
    return folder / "dynamic.onnx"


def nbits(folder: Path) -> Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "second"),
    ]
    weights = {"w": (128, 256), "v": (256, 128)}
    arrays = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    ends = [helper.make_tensor_value_info(name, 1, [4, 128]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], arrays)
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    quantizer = MatMulNBitsQuantizer(
        model, bits=4, block_size=32, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / "nbits.onnx"))
    return folder / "nbits.onnx"


def written(text: str, folder: Path, **arrays: Any) -> Path:
    from mpqc.ir import write_model

    write_model(made(text, imports=False, **arrays), folder / "written.onnx")
    return folder / "written.onnx"


def like_modelopt_int8(folder: Path) -> Path:
    """Pairs before a product, weights as codes, a residual sum of two rounded inputs."""
    text = """g (float[4, 64] x) => (float[4, 64] y) {
        q = QuantizeLinear(x, t, z) a = DequantizeLinear(q, t, z)
        w = DequantizeLinear <axis = 1> (c, s) h = MatMul(a, w) r = Relu(h)
        p = QuantizeLinear(r, t, z) b = DequantizeLinear(p, t, z)
        k = QuantizeLinear(x, t, z) d = DequantizeLinear(k, t, z) y = Add(b, d) }"""
    given = {"c": codes(64, 64), "s": steps(64), "t": np.float32(0.02), "z": np.int8(0)}
    return written(text, folder, **given)


def like_modelopt_int4(folder: Path) -> Path:
    text = """g (float16[4, 128] x) => (float16[4, 64] y) {
        w = DequantizeLinear <axis = 0, block_size = 128> (c, s) y = MatMul(x, w) }"""
    return written(
        text, folder, c=codes(128, 64, dtype=INT4), s=steps(1, 64).astype(np.float16)
    )


def like_nncf(folder: Path) -> Path:
    """Weights in blocks along the input channels, behind a DequantizeLinear."""
    text = """g (float[4, 64] x) => (float[4, 32] y) {
        w = DequantizeLinear <axis = 0, block_size = 32> (c, s) y = MatMul(x, w) }"""
    return written(text, folder, c=codes(64, 32, dtype=INT4), s=steps(2, 32))


def half(folder: Path) -> Path:
    path = by_torchscript(folder)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path)), folder / "half.onnx")
    return folder / "half.onnx"


_EVERYWHERE = ("tensorrt", "ort-cpu", "ort-cuda", "openvino", "web")
CLEAN: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "torch.onnx, script": (by_torchscript, _EVERYWHERE),
    "torch.onnx, dynamo": (by_dynamo, _EVERYWHERE),
    "torch.onnx, attention": (attention, _EVERYWHERE),
    "half precision": (half, _EVERYWHERE),
    "ONNX Runtime, static": (static_for_cpu, ("ort-cpu", "openvino")),
    "ONNX Runtime, static for TensorRT": (static_for_tensorrt, ("tensorrt", "openvino")),
    "ONNX Runtime, dynamic": (dynamic, ("ort-cpu", "openvino")),
    "ONNX Runtime, 4 bits": (nbits, ("ort-cpu", "openvino", "web")),
    "like ModelOpt, INT8": (like_modelopt_int8, ("tensorrt", "openvino")),
    "like ModelOpt, INT4": (like_modelopt_int4, ("tensorrt", "ort-cuda", "openvino")),
    "like NNCF": (like_nncf, ("ort-cpu", "ort-cuda", "openvino")),
}
