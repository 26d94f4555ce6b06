"""Graphs lowered to the standard, and run in every runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session
from mpqc.backend.openvino import open_openvino
from mpqc.backend.runner import Runner
from mpqc.ir import Calibration
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.insert_qdq.insert_qdq import InsertQdq
from mpqc.passes.leave_headroom import LeaveHeadroom

from .rounded import round_model

COLUMNS = 128
SPLITS = [("4g32",), ("4g128",), (f"8g{COLUMNS}",), ("4g64", f"8g{COLUMNS}")]
RUNTIMES: dict[str, Callable[[ir.Model], contextlib.AbstractContextManager[object]]] = {
    "onnxruntime": lambda model: open_session(model, threads=1, exact=True),
    "openvino": lambda model: open_openvino(model, threads=1, exact=True),
}
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed"
)
EITHER = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


def run(model: ir.Model, feeds: dict[str, np.ndarray], runtime: str) -> np.ndarray:
    with RUNTIMES[runtime](model) as session:
        return next(iter(session.run(feeds).values()))  # type: ignore[attr-defined]


def reference(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(model))
    found: Any = evaluator.run(None, feeds)
    return np.asarray(found[0])


def work(tmp_path: Path, samples: Sequence[dict[str, np.ndarray]] = ()) -> PassContext:
    table = load("qdq")
    found = Calibration(list(samples), "tests", "key", held_out=0) if samples else None
    return PassContext(Runner.of(table, threads=1), table, tmp_path, calibration=found)


def lower(
    model: ir.Model,
    options: Sequence[str],
    tmp_path: Path,
    step: InsertQdq | None = None,
    samples: Sequence[dict[str, np.ndarray]] = (),
) -> tuple[ir.Model, PassContext]:
    """Rounds ``model`` in place and returns a lowered copy."""
    context = work(tmp_path, samples)
    round_model(model, options, context.arrays)
    copy = ir.from_proto(ir.to_proto(model))
    if step is not None:
        LeaveHeadroom().run(copy, context)
    assert (step or InsertQdq()).run(copy, context)
    assert context.report["insert-qdq"]["skipped"] == {}
    onnx.checker.check_model(ir.to_proto(copy), full_check=True)
    assert all(node.domain == "" for node in copy.graph)
    return copy, context


MLP = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[b, m, {COLUMNS}] A) => (float[b, m, 64] Y) {{
      h = MatMul(A, W) r = Relu(h) Y = MatMul(r, V) }}"""
