"""Models of many kinds for TensorRT: legal graphs, which compute what they simulate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import mpqc
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.backend.torch_fx.session import open_torch
from mpqc.tools.benchmarks.zoo.networks import resnet
from mpqc.tools.export import export_folder
from mpqc.tools.lint import lint_file

from .compiled import noise
from .models import bert, by_torchscript, hugging_face_folder, qwen, vit, whisper

pytestmark = [pytest.mark.ort, pytest.mark.timeout(300)]

CLOSE = 0.05  # relative: of the error itself, between the graph and any runtime
SMALL = 1e-4  # an error of the outputs from which on its size decides nothing
BUILDERS = {"bert": bert, "vit": vit, "qwen": qwen, "whisper": whisper}
CASES = [
    ("bert", 5.0, "none"),
    pytest.param("bert", 8.2, "int8", marks=pytest.mark.slow),
    pytest.param("bert", 8.2, "fp8", marks=[pytest.mark.slow, pytest.mark.ci_sample]),
    pytest.param("vit", 8.2, "int8", marks=pytest.mark.slow),
    pytest.param("vit", 8.2, "fp8", marks=pytest.mark.slow),
    pytest.param("qwen", 4.7, "none", marks=pytest.mark.slow),
    pytest.param("qwen", 8.2, "fp8", marks=pytest.mark.slow),
    pytest.param("whisper", 5.2, "none", marks=[pytest.mark.slow, pytest.mark.ci_sample]),
    pytest.param("whisper", 8.2, "int8", marks=pytest.mark.slow),
    ("resnet", 8.3, "int8"),
]


def exported(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if kind == "resnet":
        path = folder / "model.onnx"
        by_torchscript(resnet(), torch.randn(1, 3, 64, 64), path, 17)
        return path
    built = hugging_face_folder(BUILDERS[kind](), folder / "hf")
    return export_folder(built, folder / "onnx", operators="standard").model


def outputs(path: Path, opened: Any, samples: Path) -> np.ndarray:
    """Returns the first output of every sample."""
    arrays = np.load(samples)
    with opened(path) as session:
        found = [
            next(
                iter(
                    session.run({name: arrays[name][at : at + 1] for name in arrays}).values()
                )
            )
            for at in range(len(arrays[arrays.files[0]]))
        ]
    return np.stack(found).astype(np.float32)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("kind", "budget", "activations"), CASES)
def test_results_are_legal_and_compute_what_they_say(
    kind: str, budget: float, activations: str, tmp_path: Path
) -> None:
    model = exported(kind, tmp_path)
    samples = noise(model, tmp_path / "samples.npz", 10, 24, seed=0)
    result = mpqc.compile(
        model,
        budget=budget,
        target="tensorrt",
        activations=activations,
        calibration=[samples],
        preset="fast",
        output=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    onnx.checker.check_model(str(result.model), full_check=True)
    linted = lint_file(result.model, "tensorrt").findings
    assert [one for one in linted if one.rule.level == "error"] == []
    graph = onnx.load(result.model, load_external_data=False).graph
    used = {node.op_type for node in graph.node}
    assert ("QuantizeLinear" in used) == (activations != "none")
    types = {one.data_type for one in graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert (onnx.TensorProto.FLOAT8E4M3FN in types) == (activations == "fp8")
    assert (onnx.TensorProto.INT4 in types) == (kind != "resnet")
    wanted = outputs(model, open_session, samples)
    simulated = error(outputs(result.model, open_torch, samples), wanted)
    runtimes: dict[str, Any] = {"onnxruntime": lambda path: open_session(path, exact=True)}
    try:
        from mpqc.backend.openvino.runner import open_openvino

        runtimes["openvino"] = lambda path: open_openvino(path, exact=True)
    except ImportError:
        pass
    for name, opened in runtimes.items():
        found = error(outputs(result.model, opened, samples), wanted)
        assert abs(found - simulated) <= max(CLOSE * simulated, SMALL), name
