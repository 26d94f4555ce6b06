"""Models compiled to kernels of integers, run by ONNX Runtime as a user would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from mpqc.backend.onnxruntime import optimized_ops
from mpqc.ir import read_model

from .compiled import compiled
from .models import WIDTH, Convolutions, by_torchscript
from .test_arrays import Recurrent

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(120)]


def products() -> torch.nn.Module:
    layers = [torch.nn.Linear(WIDTH, 128), torch.nn.ReLU(), torch.nn.Linear(128, WIDTH)]
    return torch.nn.Sequential(*layers)


# By case: the module, the shape of a sample, and the fused kernels of the result.
CASES: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], set[str]]] = {
    "products": (products, (1, 12, WIDTH), {"DynamicQuantizeMatMul"}),
    "recurrent": (Recurrent, (1, 12, WIDTH), {"DynamicQuantizeLSTM", "GRU"}),
    "convolutions": (Convolutions, (1, 3, 32, 32), {"QLinearConv"}),
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("case", CASES)
def test_integers_keep_what_a_model_says(case: str, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(1)
    build, shape, kernels = CASES[case]
    model = by_torchscript(build(), torch.randn(*shape), tmp_path / "model.onnx", opset)
    found = compiled(model, 8.6, tmp_path, samples=16, activations="uint8")
    assert not found.reasons
    assert kernels <= set(optimized_ops(read_model(found.result.model)))
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.997
    lost = found.result.measured["divergence"]
    assert isinstance(lost, float)
    assert 0.2 < lost / (found.result.predicted or 0.0) < 3
    if case == "convolutions":
        assert "predicted" in found.result.report["timings"]["runs"]["run"]


def test_convolutions_of_half_precision_as_standard_onnx(tmp_path: Path) -> None:
    torch.manual_seed(1)
    path = tmp_path / "model.onnx"
    images = torch.randn(1, 3, 32, 32).half()
    model = by_torchscript(Convolutions().half(), images, path, 17)
    found = compiled(model, 8.6, tmp_path, samples=16, activations="uint8", target="qdq")
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.997


@pytest.mark.parametrize("case", ["products", "convolutions"])
def test_half_precision_multiplies_floats(case: str, tmp_path: Path) -> None:
    """No integer kernel takes activations of float16: the weights expand or have codes."""
    torch.manual_seed(1)
    build, shape, _ = CASES[case]
    path = tmp_path / "model.onnx"
    model = by_torchscript(build().half(), torch.randn(*shape).half(), path, 17)
    found = compiled(model, 8.6, tmp_path, samples=16, activations="uint8")
    graph = onnx.load(found.result.model, load_external_data=False).graph
    assert not {node.op_type for node in graph.node} & {"MatMulInteger", "QuantizeLinear"}
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999


def test_fewer_bits_mix_integers_with_others(tmp_path: Path) -> None:
    torch.manual_seed(1)
    example = torch.randn(1, 12, WIDTH)
    model = by_torchscript(products(), example, tmp_path / "model.onnx", 17)
    found = compiled(model, 5.5, tmp_path, samples=16, activations="uint8")
    assert {"MatMulNBits"} <= set(optimized_ops(read_model(found.result.model)))
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.98
