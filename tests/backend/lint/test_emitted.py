"""What mpqc emits passes its own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mpqc
from mpqc.tools.lint import lint_file

from ...e2e.models import Convolutions, by_torchscript
from ...tools.tiny_models import language_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(120)]

# By case: the target to compile for, more options, and the targets that it has to suit.
CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("ort-cpu", {"budget": 3.5, "kernels": "always"}, ("ort-cpu", "openvino", "web")),
    ("ort-cpu", {"file_budget": 3.2, "kernels": "always"}, ("ort-cpu", "web")),
    ("ort-cpu", {"budget": 8.6, "activations": "uint8"}, ("ort-cpu", "openvino")),
    ("qdq", {"budget": 5.0}, ("ort-cpu", "openvino")),
    ("qdq", {"budget": 8.6, "activations": "uint8"}, ("ort-cpu", "openvino")),
    ("tensorrt", {"budget": 5.0}, ("tensorrt", "openvino")),
    ("tensorrt", {"budget": 8.6, "activations": "int8"}, ("tensorrt", "openvino")),
    ("tensorrt", {"budget": 8.6, "activations": "fp8"}, ("tensorrt",)),
    ("ort-cuda", {"budget": 5.0, "prove_on": "cpu"}, ("ort-cuda",)),
]


# Convolutions expand at load, whatever the budget, unless they multiply integers.
ALL = [
    (kind, *case)
    for kind in ("language", "convolutions")
    for case in CASES
    if kind == "language" or "activations" in case[1]
]


@pytest.mark.parametrize(("kind", "target", "options", "suits"), ALL)
def test_results_have_no_findings(
    target: str, options: dict[str, Any], suits: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = tmp_path / "model.onnx"
    if kind == "language":
        language_model(model)
    else:
        by_torchscript(Convolutions(), torch.randn(1, 3, 32, 32), model, 17)
    how: dict[str, Any] = {
        "random_calibration": True,
        "samples": 8,
        "sequence_length": 16,
        "preset": "fast",
    }
    result = mpqc.compile(
        model, output=tmp_path / "out", target=target, cache=tmp_path / "c", **how, **options
    )
    for one in suits:
        found = [(f.rule.id, f.place, f.detail) for f in lint_file(result.model, one).findings]
        allowed = {"nbits-8-bits-without-vnni", "web-slow-product"}  # of a model so small
        allowed |= {"trt-half-quantized", "trt-open-shapes"}  # too costly to round; any batch
        allowed |= {"nbits-cuda-2-bits"}  # the table asks for 1.31
        assert [broken for broken in found if broken[0] not in allowed] == []
