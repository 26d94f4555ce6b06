"""Results for ONNX Runtime compute the same in other runtimes, or say nothing false there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mpqc
from mpqc.backend.onnxruntime.runner import open_session
from mpqc.tools.export import export_folder

from . import javascript_runtime
from .compiled import noise
from .models import bert, gpt2, hugging_face_folder, llama

pytestmark = [pytest.mark.ort, pytest.mark.timeout(180)]

KERNELS = 0.03  # relative: ONNX Runtime's kernels round activations, OpenVINO's do not
SAME_KERNELS = 0.003  # relative: one library, built for another language


@dataclass(frozen=True)
class Result:
    """What mpqc made, one sample, and what ONNX Runtime makes of it."""

    model: Path
    feeds: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    def check(self, found: dict[str, np.ndarray], tolerance: float) -> None:
        """Fails where another runtime's outputs differ by more than its kernels round."""
        assert set(found) == set(self.expected)
        for name, wanted in self.expected.items():
            error = np.linalg.norm(found[name] - wanted) / np.linalg.norm(wanted)
            assert error < tolerance, name


CASES = {
    "bert": (bert, 3.5, "always", {"2", "4"}),
    "gpt2": (gpt2, 3.5, "always", {"2", "4"}),
    "llama": (llama, 3.5, "always", {"2", "4"}),
    "floats": (llama, 3.5, "never", {"2", "4"}),
    "wide": (bert, 12.0, "never", {"8", "16"}),
}


@pytest.fixture(scope="module", params=CASES)
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A model of mixed widths, compiled from a Hugging Face folder."""
    return _compiled(*CASES[request.param], tmp_path_factory.mktemp("compiled"))


def _compiled(
    build: Callable[[], Any], budget: float, kernels: str, wanted: set[str], folder: Path
) -> Result:
    torch.manual_seed(0)
    export_folder(hugging_face_folder(build(), folder / "hf"), folder / "onnx")
    samples = noise(folder / "onnx" / "model.onnx", folder / "samples.npz", 10, 24, seed=0)
    made = mpqc.compile(
        folder / "onnx",
        budget=budget,
        kernels=kernels,
        output=folder / "out",
        calibration=[samples],
        preset="fast",
        cache=folder / "cache",
    )
    widths = {width for unit in made.report["units"] for width in unit["widths"]}
    assert wanted <= widths
    arrays = np.load(samples)
    feeds = {name: arrays[name][:1] for name in arrays.files}
    with open_session(made.model) as session:
        expected = session.run(feeds)
    return Result(made.model, feeds, expected)


def test_openvino_agrees(result: Result) -> None:
    pytest.importorskip("openvino")
    from mpqc.backend.openvino.runner import open_openvino

    with open_openvino(result.model, exact=True) as session:
        result.check(session.run(result.feeds), KERNELS)


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
def test_javascript_agrees(result: Result, package: str) -> None:
    if why := javascript_runtime.lacking(package):
        pytest.skip(why)
    found = javascript_runtime.run(package, result.model, result.feeds)
    result.check(found, KERNELS if package == "onnxruntime-web" else SAME_KERNELS)
