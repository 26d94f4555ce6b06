from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session
from mpqc.ir import InputError, UsageError
from mpqc.passes.raise_opset import RaiseOpset

from .rounded import context, noise, parse

pytestmark = pytest.mark.ort

OLD = {
    "an older reduction": """<ir_version: 8, opset_import: ["" : 13]>
        g (float[2, 64] x) => (float[2, 1] y) {
          h = MatMul(x, w) s = Softmax(h) y = ReduceMean<axes = [1]>(s) }""",
    "attributes that became inputs": """<ir_version: 7, opset_import: ["" : 10]>
        g (float[2, 64] x) => (float[2, 50] y) {
          h = MatMul(x, w) c = Clip<min = -1.0, max = 1.0>(h)
          y = Pad<pads = [0, 0, 0, 2]>(c) }""",
    "softmax over a flattened rest": """<ir_version: 7, opset_import: ["" : 11]>
        g (float[2, 4, 64] x) => (float[2, 4, 48] y) {
          h = MatMul(x, w) y = Softmax<axis=1>(h) }""",
    "another domain": """<ir_version: 8, opset_import: ["" : 14, "com.microsoft" : 1]>
        g (float[2, 64] x) => (float[2, 48] y) {
          h = MatMul(x, w) y = com.microsoft.FastGelu(h) }""",
    "groups of known channels": """<ir_version: 9, opset_import: ["" : 18]>
        g (float[2, 4, 8, 64] x, float[2] s, float[2] b) => (float[2, 4, 8, 48] y) {
          n = GroupNormalization<num_groups = 2>(x, s, b) y = MatMul(n, w) }""",
}


@pytest.mark.parametrize("name", OLD)
def test_the_numbers_stay(name: str, tmp_path: Path) -> None:
    model = parse(OLD[name], {"w": noise(64, 48)})
    feeds = {
        str(one.name): noise(*(int(dim) for dim in one.shape), seed=at)  # type: ignore[union-attr, arg-type]
        for at, one in enumerate(model.graph.inputs)
    }
    with open_session(model, threads=1) as session:
        expected = session.run(feeds)["y"]
    work = context(load("qdq"), tmp_path)
    assert RaiseOpset().run(model, work)
    assert model.opset_imports[""] == 21
    assert work.report["raise-opset"]["to"] == 21
    names = [node.name for node in model.graph]
    assert all(names)
    assert len(set(names)) == len(names)
    onnx.checker.check_model(ir.to_proto(model))
    with open_session(model, threads=1) as session:
        np.testing.assert_allclose(session.run(feeds)["y"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            """<ir_version: 8, opset_import: ["" : 11]>
            g (float[N, 64] x) => (float[N, 64] y) { y = NoSuchOperator(x) }""",
            "NoSuchOperator",
        ),
        (
            """<ir_version: 9, opset_import: ["" : 18]>
            g (float[N, C, 4, 4] x, float[2] s, float[2] b) => (float[N, C, 4, 4] y) {
              [norm] y = GroupNormalization<num_groups = 2>(x, s, b) }""",
            "GroupNormalization 'norm' has a new meaning",
        ),
    ],
)
def test_what_cannot_be_raised_is_refused_with_the_reason(
    text: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=why) as found:
        RaiseOpset().run(parse(text, {}), context(load("qdq"), tmp_path))
    assert "cannot be raised to 21" in found.value.message
    assert "\n" not in found.value.message


def test_opsets_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UsageError, match="not 99"):
        RaiseOpset(version=99)
