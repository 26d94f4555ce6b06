"""Results for ONNX Runtime compute the same in other runtimes, or say nothing false there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpqc
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.tools.export import export_folder

from .compiled import noise
from .models import bert, gpt2, hugging_face_folder, llama

pytest.importorskip("openvino")

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort, pytest.mark.timeout(180)]

KERNELS = 0.03  # relative: ONNX Runtime's kernels round activations, OpenVINO's do not


@pytest.mark.parametrize("build", [bert, gpt2, llama])
def test_openvino_agrees(build: Callable[[], Any], tmp_path: Path) -> None:
    from mpqc.backend.openvino.runner import open_openvino

    torch.manual_seed(0)
    export_folder(hugging_face_folder(build(), tmp_path / "hf"), tmp_path / "onnx")
    samples = noise(tmp_path / "onnx" / "model.onnx", tmp_path / "samples.npz", 10, 24, seed=0)
    result = mpqc.compile(
        tmp_path / "onnx",
        budget=3.5,
        output=tmp_path / "out",
        calibration=[samples],
        preset="fast",
        cache=tmp_path / "cache",
    )
    widths = {width for unit in result.report["units"] for width in unit["widths"]}
    assert {"2", "4"} <= widths
    arrays = np.load(samples)
    feeds = {name: arrays[name][:1] for name in arrays.files}
    with open_session(result.model) as session:
        expected = session.run(feeds)
    with open_openvino(result.model, exact=True) as session:
        found = session.run(feeds)
    for name, wanted in expected.items():
        error = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
        assert error < KERNELS, name
