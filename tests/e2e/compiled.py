"""Compiles a model as a user would and checks what every result must keep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

import mpqc
from mpqc.frontend.model_inputs import HeadShape, model_inputs, random_feed
from mpqc.ir import find_units, read_model
from mpqc.ir.analysis.storage import stored
from mpqc.tools.evaluate import Evaluation, evaluate

HIGH = 8.6  # bits per weight at which every unit takes 8 bits


@dataclass(frozen=True)
class Compiled:
    """A result that kept its budget.

    Attributes:
        result: What ``mpqc.compile`` returned.
        evaluation: What ``mpqc eval`` measured on samples of its own.
        reasons: Why units stayed in float, by name.
    """

    result: mpqc.CompileResult
    evaluation: Evaluation
    reasons: dict[str, str]

    @property
    def sweep(self) -> str:
        """Which of the two ways calibration took."""
        return str(self.result.report["passes"]["calibrate"]["sweep"])


def noise(model: Path, path: Path, samples: int, length: int, seed: int) -> Path:
    """Writes random samples for ``model`` as an .npz file, each with an axis of its own."""
    inputs = model_inputs(read_model(model))
    rng = np.random.default_rng(seed)
    feeds = [random_feed(inputs, length, rng, HeadShape(None, None)) for _ in range(samples)]
    arrays: dict[str, Any] = {
        name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]
    }
    np.savez(path, **arrays)
    return path


def compiled(
    model: Path, budget: float, folder: Path, *, file: bool = False, **options: Any
) -> Compiled:
    """Compiles ``model``, checks budget and units, runs it without us, and evaluates it.

    With ``file`` the budget bounds what the file stores, and not what is in memory.
    """
    original = model if model.is_file() else model / "model.onnx"
    given: dict[str, Any] = {"samples": 8, "sequence_length": 16, "cache": folder / "cache"}
    if not {"calibration", "random_calibration"} & options.keys():
        given["random_calibration"] = True
    given["file_budget" if file else "budget"] = budget
    result = mpqc.compile(model, output=folder / "out", **(given | options))
    reasons = {row["name"]: row["reason"] for row in result.report["units"] if "reason" in row}
    _check_budget(original, result.model, budget)
    _check_units(original, result.model, reasons)
    _run_without_us(result.model)
    arrays = noise(original, folder / "other.npz", 4, 16, seed=99)
    return Compiled(result, evaluate(original, result.output, [arrays]), reasons)


def _check_budget(original: Path, result: Path, budget: float) -> None:
    """Counts the result's weights by itself; weights are those of the original."""
    before, after = stored(read_model(original)), stored(read_model(result))
    extra = max(after.rest - before.rest, 0)
    assert (after.bytes + extra) * 8 <= budget * before.weights


def _check_units(original: Path, result: Path, reasons: dict[str, str]) -> None:
    """Every float unit of the result has a reason, and no other kept its float values."""
    after = read_model(result)
    assert {unit.name for unit in find_units(after)} == set(reasons)
    assert all(reasons.values())
    kept = {hash_of(value) for value in after.graph.initializers.values()}
    changed = [u for u in find_units(read_model(original)) if u.name not in reasons]
    assert changed
    assert not [unit.name for unit in changed if unit.tensor.tobytes() in kept]


def hash_of(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return value.const_value.tobytes()


def _run_without_us(model: Path) -> None:
    """Runs the file as anybody would who has only ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    inputs = model_inputs(read_model(model))
    feed = random_feed(inputs, 8, np.random.default_rng(5), HeadShape(None, None))
    for found in session.run(None, feed):
        assert np.isfinite(found).all()
