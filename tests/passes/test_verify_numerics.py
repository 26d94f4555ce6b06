"""verify-numerics, with ONNX Runtime behind the runner."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from mpqc.ir import (
    BitAllocation,
    Budgeted,
    Calibrated,
    Calibration,
    Capabilities,
    InternalError,
    UsageError,
    annotate,
    quantizable,
    read_model,
)
from mpqc.passes.engine.pipeline.base import PassContext, Runner
from mpqc.passes.verify_numerics import VerifyNumerics

pytestmark = pytest.mark.ort
GRAPH = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N, 64] x) => (float[N, 80] y, int64[2] shape) {
  y = MatMul(x, w)
  shape = Shape(x)
}
"""


class OrtRunner:
    """Opens models in ONNX Runtime and counts how many are open at once."""

    def __init__(self) -> None:
        self.open = self.most = 0

    @contextmanager
    def session(self, model: ir.Model | Path) -> Iterator[Any]:
        graph = model if isinstance(model, ir.Model) else read_model(model)
        session = onnxruntime.InferenceSession(
            ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.open += 1
        self.most = max(self.most, self.open)
        yield OrtSession(session)
        self.open -= 1


class OrtSession:
    def __init__(self, session: Any) -> None:
        self.session = session

    def run(self, feeds: Any, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        names = list(outputs or [one.name for one in self.session.get_outputs()])
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    proto = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 80)).astype(np.float32) / 8
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "original.onnx")
    feeds = [{"x": rng.standard_normal((7, 64)).astype(np.float32)} for _ in range(5)]
    return PassContext(
        cast(Runner, OrtRunner()),
        cast(Capabilities, None),
        tmp_path / "scratch",
        calibration=Calibration(feeds, "noise", "key"),
        original=tmp_path / "original.onnx",
    )


def shifted(context: PassContext, factor: float) -> ir.Model:
    """The original with its weight multiplied by ``factor``."""
    assert context.original is not None
    model = read_model(context.original)
    (unit,) = quantizable(model)
    unit.replace(unit.matrix() * factor)
    return model


def test_outputs(context: PassContext) -> None:
    assert VerifyNumerics().run(shifted(context, 1.1), context) is False
    facts = context.report["verify-numerics"]
    assert facts["objective"] == "regression"
    assert (facts["samples"], facts["held_out"]) == (4, 2)
    assert list(facts["outputs"]) == ["y"]
    assert facts["relative_error"] == pytest.approx(0.1, rel=1e-3)
    assert facts["divergence"] == pytest.approx(0.1**2 / 2, rel=1e-3)
    assert facts["standard_error"] < 1e-3
    assert facts["cosine"] == pytest.approx(1)
    assert cast(OrtRunner, context.runner).most == 1
    assert not list((context.scratch / "reference").iterdir())


def test_logits(context: PassContext) -> None:
    model = shifted(context, 1.1)
    annotate(model, Calibrated("s", "noise", 3, 21, "logits", "y"))
    annotate(model, Budgeted(3.5, 3.5, 3.6, 5120, 1.0))
    VerifyNumerics(samples=1, most=1).run(model, context)
    facts = context.report["verify-numerics"]
    assert facts["objective"] == "logits"
    assert facts["tokens"] == 7
    assert facts["top1"] == 1
    assert 0 < facts["kl"] < 0.1
    assert "warning" not in facts


def test_padding_is_not_measured(context: PassContext) -> None:
    """The mask is an input of the samples; the model here has no use for it."""
    assert context.calibration is not None
    feeds = [{**feed, "mask": np.arange(7) < 4} for feed in context.calibration.feeds]
    context.calibration = replace(context.calibration, feeds=feeds, mask="mask")

    class Blind(OrtSession):
        def run(self, feeds: Any, outputs: Sequence[str] | None = None) -> Any:
            return super().run({"x": feeds["x"]}, outputs)

    class BlindRunner(OrtRunner):
        @contextmanager
        def session(self, model: ir.Model | Path) -> Iterator[Any]:
            with super().session(model) as inner:
                yield Blind(inner.session)

    context.runner = cast(Runner, BlindRunner())
    model = shifted(context, 1.1)
    annotate(model, Calibrated("s", "noise", 3, 21, "logits", "y"))
    annotate(model, Budgeted(3.5, 3.5, 3.6, 5120, 1.0))
    VerifyNumerics(samples=1, most=1).run(model, context)
    assert context.report["verify-numerics"]["tokens"] == 4


def test_far_off_is_a_warning(context: PassContext) -> None:
    model = shifted(context, -1)
    annotate(model, Calibrated("s", "noise", 3, 21, "logits", "y"))
    annotate(model, Budgeted(3.5, 3.5, 3.6, 5120, 0.01))
    VerifyNumerics().run(model, context)
    facts = context.report["verify-numerics"]
    assert "calibrate on more text" in facts["warning"]
    assert facts["excessive"]


@pytest.mark.parametrize(
    ("predicted", "level"), [(0.02, ""), (0.003, "warning"), (0.0006, "refused")]
)
def test_a_regression_is_judged_as_well(
    context: PassContext, predicted: float, level: str
) -> None:
    """A tenth too little costs 0.02 in the unit of the prediction, half a square."""
    model = shifted(context, 0.79)
    annotate(model, Budgeted(3.5, 3.5, 3.6, 5120, predicted))
    (unit,) = quantizable(model)
    annotate(unit.notes, BitAllocation("w", ("4g64",), (80,), predicted))
    VerifyNumerics().run(model, context)
    facts = context.report["verify-numerics"]
    assert facts["divergence"] == pytest.approx(0.21**2 / 2, rel=1e-3)
    assert facts.get("excessive", False) is (level == "refused")
    assert ("warning" in facts) is bool(level)
    if level:
        assert facts["blamed"] == [{"unit": "w", "predicted": predicted}]


def test_more_samples_until_the_figure_is_sure(context: PassContext) -> None:
    """Every sample is of another size here, and so is its error."""
    assert context.calibration is not None
    rng = np.random.default_rng(1)
    feeds = [
        {"x": (rng.standard_normal((7, 64)) * 8**at).astype(np.float32)} for at in range(-4, 4)
    ]
    context.calibration = replace(context.calibration, feeds=feeds)
    model = shifted(context, 2.0)
    annotate(model, Calibrated("s", "noise", 3, 21, "logits", "y"))
    VerifyNumerics(samples=2).run(model, context)
    facts = context.report["verify-numerics"]
    assert (facts["samples"], facts["held_out"]) == (8, 2)
    assert facts["standard_error"] > 0.1 * facts["kl"]
    VerifyNumerics(samples=2, error=10.0).run(model, context)
    assert context.report["verify-numerics"]["samples"] == 2


def test_not_finite_is_our_fault(context: PassContext) -> None:
    with pytest.raises(InternalError, match="no longer finite"):
        VerifyNumerics().run(shifted(context, float("nan")), context)


def test_another_shape_is_our_fault(context: PassContext) -> None:
    model = shifted(context, 1)
    model.graph.outputs[0] = model.graph.outputs[1]
    (unit,) = quantizable(model)
    product = unit.anchor.outputs[0]
    sliced = ir.node("Unsqueeze", [product, ir.val("axes", const_value=ir.tensor([0]))])
    model.graph.register_initializer(cast(ir.Value, sliced.inputs[1]))
    model.graph.append(sliced)
    product.name, sliced.outputs[0].name = "inner", "y"
    sliced.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.outputs[0] = sliced.outputs[0]
    with pytest.raises(InternalError, match="has shape"):
        VerifyNumerics().run(model, context)


def test_needs_samples_and_the_original(context: PassContext) -> None:
    model = shifted(context, 1)
    context.calibration = None
    with pytest.raises(UsageError, match="needs samples"):
        VerifyNumerics().run(model, context)


def test_held_out_samples() -> None:
    feeds = [{"x": np.zeros(1)} for _ in range(5)]
    calibration = Calibration(feeds, "zeros", "key")
    assert (len(calibration.training), len(calibration.validation)) == (3, 2)
    single = Calibration(feeds[:1], "zeros", "key")
    assert (len(single.training), len(single.validation)) == (1, 1)
    pair = Calibration(feeds[:2], "zeros", "key")
    assert (len(pair.training), len(pair.validation)) == (1, 1)
    everything = Calibration(feeds, "zeros", "key", held_out=0)
    assert (len(everything.training), len(everything.validation)) == (5, 1)
