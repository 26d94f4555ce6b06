"""Graphs that hold their weights in unusual ways, or use them where no kernel can."""

from __future__ import annotations

from pathlib import Path

import pytest

from .compiled import HIGH, compiled
from .models import in_constant_nodes, shared_behind_identity, with_control_flow

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(120)]

VECTORS = 64  # a sample of most of these models is a single vector


def test_weights_shared_behind_identity(tmp_path: Path) -> None:
    model = shared_behind_identity(tmp_path / "model.onnx")
    found = compiled(model, HIGH, tmp_path, samples=VECTORS)
    uses = {row["name"]: len(row["uses"]) for row in found.result.report["units"]}
    assert uses == {"shared": 2, "other": 1}
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999


def test_weights_in_constant_nodes(tmp_path: Path) -> None:
    model = in_constant_nodes(tmp_path / "model.onnx")
    found = compiled(model, HIGH, tmp_path, samples=VECTORS)
    assert len(found.result.report["units"]) == 2
    assert not found.reasons
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999


def test_weights_of_an_if_and_an_lstm_are_stored_in_codes(tmp_path: Path) -> None:
    model = with_control_flow(tmp_path / "model.onnx")
    found = compiled(model, HIGH, tmp_path, samples=VECTORS)
    assert found.sweep.startswith("runtime")
    assert not found.reasons
    assert found.evaluation.cosine is not None
    assert found.evaluation.cosine > 0.999
