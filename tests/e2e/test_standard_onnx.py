"""Models of transformers and torch as standard ONNX, in ONNX Runtime and in OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import mpqc
from mpqc.tools.evaluate import Evaluation, evaluate
from mpqc.tools.export import export_folder
from mpqc.tools.runtimes import Runtime

from . import models
from .compiled import noise

pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.ci_sample,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed"),
]


def loss(found: Evaluation) -> float:
    lost = found.kl if found.kl is not None else found.relative_error
    assert lost is not None
    return lost


def check(original: Path, folder: Path, budget: float, activations: str) -> None:
    """Compiles for everybody and measures in each runtime."""
    result = mpqc.compile(
        original,
        budget=budget,
        output=folder / "out",
        target="qdq",
        activations=activations,
        random_calibration=True,
        samples=8,
        sequence_length=16,
        cache=folder / "cache",
    )
    assert result.got <= budget
    assert not [row for row in result.report["units"] if "reason" in row]
    graph = onnx.load(result.model, load_external_data=False).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    arrays = [noise(original, folder / "other.npz", 4, 16, seed=99)]
    lost = {
        name: loss(
            evaluate(original, result.output, arrays, runtime=Runtime(name, exact=True))
        )
        for name in ("torch", "onnxruntime", "openvino")
    }
    assert 0 < lost["torch"] < 0.5
    assert lost["onnxruntime"] == pytest.approx(lost["torch"], rel=0.03)
    assert lost["openvino"] == pytest.approx(lost["torch"], rel=0.03)


@pytest.mark.parametrize("activations", ["none", "uint8"])
@pytest.mark.parametrize("make", [models.bert, models.llama, models.vit])
def test_transformers(make: Callable[[], Any], activations: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = models.hugging_face_folder(make(), tmp_path / "saved")
    exported = export_folder(saved, tmp_path / "exported")
    assert exported.route == "torch-export"
    check(exported.model, tmp_path, 8.6 if activations != "none" else 5.0, activations)


@pytest.mark.parametrize("activations", ["none", "int8"])
def test_convolutions(activations: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(1, 3, 32, 32)
    path = models.by_torchscript(
        models.Convolutions(), example, tmp_path / "in" / "conv.onnx", 17
    )
    check(path, tmp_path, 8.6, activations)
