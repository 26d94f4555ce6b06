"""ONNX files as torch's TorchScript exporter writes them, of old and newer opsets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .compiled import HIGH, compiled
from .models import LENGTH, VOCABULARY, Convolutions, Language, by_torchscript

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(120)]


@pytest.mark.parametrize("opset", [11, 17])
def test_a_transformer_layer(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(VOCABULARY, (2, LENGTH))
    model = by_torchscript(Language(), ids, tmp_path / "model.onnx", opset)
    found = compiled(model, HIGH, tmp_path)
    assert found.sweep == "torch"
    assert not found.reasons
    assert found.evaluation.kl is not None
    assert found.evaluation.kl < 1e-3


@pytest.mark.parametrize("opset", [11, 17])
def test_convolutions(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 24, 24)
    model = by_torchscript(Convolutions(), images, tmp_path / "model.onnx", opset)
    found = compiled(model, 9, tmp_path)
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999
    assert not found.reasons
