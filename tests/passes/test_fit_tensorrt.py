"""fit-tensorrt: a DequantizeLinear for each reader, plain operators, and nothing else."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from mpqc.backend.lint.linter import lint
from mpqc.backend.onnxruntime import load, open_session
from mpqc.backend.runner import Runner
from mpqc.ir import InputError, MachineError, StoredPart, annotate, note_of
from mpqc.passes import fit_tensorrt
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.forecast import Forecast
from mpqc.passes.fit_tensorrt import FitTensorrt

from .rounded import noise, parse

pytestmark = pytest.mark.ort
HEADER = '<ir_version: 10, opset_import: ["" : 21]> '


def context(tmp_path: Path) -> PassContext:
    return PassContext(Runner.of(table := load("tensorrt")), table, tmp_path)


def shared(kind: type = np.int8) -> ir.Model:
    rng = np.random.default_rng(0)
    text = """g (float16[n, 64] x, float16[n, 64] z) => (float16[n, 32] y) {
        [weight] w = DequantizeLinear <axis = 0, block_size = 64> (codes, scales)
        [first] a = MatMul(x, w) [second] b = MatMul(z, w) [sum] y = Sum(a, b) }"""
    codes: np.ndarray = rng.integers(-8, 8, (64, 32)).astype(kind)
    scales = np.abs(noise(1, 32)).astype(np.float16) + np.float16(0.1)
    return parse(HEADER + text, {"codes": codes, "scales": scales})


@pytest.mark.parametrize("kind", [np.int8, ml_dtypes.int4])
def test_every_reader_gets_codes_of_its_own(kind: type, tmp_path: Path) -> None:
    model = shared(kind)
    weight = next(node for node in model.graph if node.name == "weight")
    annotate(weight, StoredPart("w", "dequantize"))
    before = model.clone()
    assert FitTensorrt().run(model, work := context(tmp_path))
    assert work.report["fit-tensorrt"] == {"split": 1, "additions": 1}
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph) == 2
    assert sum(node.op_type == "Add" for node in model.graph) == 1
    assert set(model.graph.initializers) == {"codes", "scales"}
    assert [str(value.name) for value in model.graph.inputs] == ["x", "z"]
    for node in model.graph:
        if node.op_type == "DequantizeLinear":
            assert note_of(node, StoredPart) == StoredPart("w", "dequantize")
    feeds = {name: noise(3, 64, seed=at).astype(np.float16) for at, name in enumerate("xz")}
    found = []
    for one in (before, model):
        with open_session(one, threads=1) as session:
            found.append(session.run(feeds)["y"])
    np.testing.assert_array_equal(found[0], found[1])
    assert not [one for one in lint(model, "tensorrt") if "shared" in one.rule.id]
    assert not FitTensorrt().run(model, context(tmp_path))


def test_operators_of_other_domains_are_refused_before_the_work(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[n] x) => (float[n] y) { [fast] y = com.microsoft.FastGelu(x) }"""
    model = parse(text, {})
    with pytest.raises(InputError, match=r"FastGelu.*'fast'") as caught:
        FitTensorrt().preflight(model, context(tmp_path), Forecast())
    assert "--operators standard" in caught.value.hint


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_tensorrt, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="onnx-graphsurgeon") as caught:
        FitTensorrt().preflight(shared(), context(tmp_path), Forecast())
    assert "mpqc[tensorrt]" in caught.value.hint
