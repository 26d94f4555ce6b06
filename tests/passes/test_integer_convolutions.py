"""Networks of convolutions in integers, and the headroom that integer kernels need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import optimized_ops
from mpqc.ir import quantizable
from mpqc.passes.engine.numerics import headroom
from mpqc.passes.engine.numerics.divergence import squared_divergence
from mpqc.passes.engine.numerics.pair_sums import kernel_order, overflowing_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.insert_qdq.insert_qdq import InsertQdq
from mpqc.passes.leave_headroom import LeaveHeadroom

from .lowered_qdq import COLUMNS, EITHER, MLP, lower, reference, run, work
from .rounded import noise, parse, round_model, round_unit

pytestmark = pytest.mark.ort


@pytest.mark.parametrize("runtime", EITHER)
def test_convolutions_read_a_dequantizelinear(runtime: str, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 16, 8, 8] A) => (float[N, 32, 6, 6] Y) { Y = Conv(A, W) }"""
    model = parse(text, {"W": noise(32, 16, 3, 3)})
    feeds = {"A": noise(2, 16, 8, 8, seed=3)}
    lowered, _ = lower(model, ("8g144",), tmp_path)
    expected = run(model, feeds, "onnxruntime")
    np.testing.assert_allclose(run(lowered, feeds, runtime), expected, rtol=1e-4, atol=1e-3)


CONVOLUTION = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 18, 8, 8] A) => (float[N, 32, 6, 6] Y) { B = Conv(A, W) Y = Sigmoid(B) }"""


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("model", "feeds"),
    [
        (lambda: parse(MLP, {"W": noise(COLUMNS, 96), "V": noise(96, 64)}), (2, 5, COLUMNS)),
        (lambda: parse(CONVOLUTION, {"W": noise(32, 18, 3, 3)}), (2, 18, 8, 8)),
    ],
    ids=["products", "convolution"],
)
def test_codes_leave_room_for_processors_that_clip_sums(
    model: Callable[[], ir.Model], feeds: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    samples = [{"A": noise(*feeds, seed=seed)} for seed in range(4)]
    made, context = model(), work(tmp_path, samples)
    for unit in quantizable(made):
        round_unit(unit, (f"8g{unit.shape[1]}",), context.arrays)
    LeaveHeadroom().run(made, context)
    InsertQdq(activations=kind).run(made, context)
    changed = context.report["leave-headroom"]["rows"]
    assert all(changed.values())
    stored = [v.const_value for k, v in made.graph.initializers.items() if "/codes" in k]
    assert len(stored) == len(changed)
    for codes in stored:
        assert codes is not None
        array = codes.numpy()
        # Columns x rows for products; kernels of convolutions take a tap's channels together.
        rows = (
            array.T if array.ndim == 2 else np.moveaxis(array, 1, -1).reshape(len(array), -1)
        )
        assert not overflowing_rows(rows).any()


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_head_that_integers_do_not_make_quicker_stays_in_float(
    share: float, tmp_path: Path
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 16, 12, 12] x) => (float[1, 128] y) {
          a = Conv<pads=[1, 1, 1, 1]>(x, W) b = Relu(a)
          c = GlobalAveragePool(b) d = Flatten(c) y = MatMul(d, V) }"""
    model = parse(text, {"W": noise(64, 16, 3, 3), "V": noise(64, 128)})
    samples = [{"x": noise(1, 16, 12, 12, seed=seed)} for seed in range(4)]
    context = work(tmp_path, samples)
    Pipeline.parse("normalize,partition-blocks,calibrate").run(model, context)
    for unit in quantizable(model):
        round_unit(unit, (f"8g{unit.shape[1]}",), context.arrays)
    LeaveHeadroom(share=share).run(model, context)
    InsertQdq(activations="uint8", tolerance=1e9).run(model, context)
    facts = context.report["leave-headroom"]
    assert set(facts["float_activations"]) == ({"V"} if share else set())
    assert ("V" in facts["rows"]) == (not share)
    assert ("d" in context.report["insert-qdq"]["activations"]) == (not share)
    assert optimized_ops(model)["QLinearConv"] == 1


def test_rows_that_leave_headroom_compensate_their_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [{"x": noise(1, 16, 12, 12, seed=seed)} for seed in range(6)]

    def left() -> tuple[float, ir.Model, PassContext]:
        model, context = residual(), work(tmp_path, samples)
        passes = "normalize,partition-blocks,calibrate,annotate-sensitivity,"
        passes += "allocate-bits{budget=8.4},quantize-weights,leave-headroom"
        Pipeline.parse(passes).run(model, context)
        facts = context.report["leave-headroom"]
        assert all(facts["rows"].values())
        return float(facts["loss"]), model, context

    compensated, model, context = left()
    for unit in quantizable(model):
        codes = context.arrays.get(f"{unit.name}/codes/0")
        assert not overflowing_rows(codes[:, kernel_order(unit)]).any()
        scales = context.arrays.get(f"{unit.name}/scales/0").astype(np.float32)
        np.testing.assert_array_equal(unit.matrix(), codes * scales)
    monkeypatch.setattr(headroom, "_compensate", lambda *given: None)
    assert compensated < 0.9 * left()[0]


NAMES = ("first", "second", "third")
RESIDUAL = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1, 16, 12, 12] x) => (float[1, 16, 1, 1] y) {
      a = Conv<pads=[1, 1, 1, 1]>(x, first, bias)
      b = Relu(a)
      c = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(b)
      d = Conv<pads=[1, 1, 1, 1]>(c, second)
      e = Add(d, c)
      f = Relu(e)
      h = Conv<pads=[1, 1, 1, 1]>(f, third)
      i = Clip(h, least, most)
      y = GlobalAveragePool(i) }"""


def residual() -> ir.Model:
    weights = {name: noise(16, 16, 3, 3, seed=seed) / 12 for seed, name in enumerate(NAMES)}
    least, most = np.array(0, np.float32), np.array(6, np.float32)
    return parse(
        RESIDUAL, {**weights, "bias": noise(16, seed=9), "least": least, "most": most}
    )


@pytest.mark.parametrize("runtime", EITHER)
def test_a_net_of_convolutions_computes_in_integers(runtime: str, tmp_path: Path) -> None:
    model = residual()
    samples = [{"x": noise(1, 16, 12, 12, seed=seed)} for seed in range(4)]
    step = InsertQdq(activations="uint8", ranges="minmax")
    lowered, context = lower(model, ("8g144",), tmp_path, step, samples)
    left = optimized_ops(lowered)
    assert left["QLinearConv"] == 3
    assert left["QLinearAdd"] == 1
    assert not left["Conv"] + left["Add"] + left["Relu"]
    facts = context.report["insert-qdq"]["activations"]
    assert set(facts) == {"x", "b", "c", "d", "f", "i"}
    assert facts["b"]["scale"] == facts["c"]["scale"], "a pool of maxima keeps the grid"
    exact, rounded = run(model, samples[0], "onnxruntime"), reference(lowered, samples[0])
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.03
    found = run(lowered, samples[0], runtime)
    assert np.linalg.norm(found - rounded) / np.linalg.norm(rounded) < 5e-3


def test_what_roundings_lose_is_predicted(tmp_path: Path) -> None:
    samples = [{"x": noise(1, 16, 12, 12, seed=seed)} for seed in range(8)]
    context, model = work(tmp_path, samples), residual()
    round_model(model, ("8g144",), context.arrays)
    LeaveHeadroom().run(model, context)
    exact = ir.from_proto(ir.to_proto(model))
    InsertQdq(activations="uint8").run(model, context)
    facts = context.report["insert-qdq"]
    losses = [one["predicted"] for one in facts["activations"].values()]
    assert all(loss > 0 for loss in losses)
    assert facts["activation_loss"] == pytest.approx(sum(losses))
    lost = [
        squared_divergence(run(exact, feed, "onnxruntime"), run(model, feed, "onnxruntime"))
        for feed in samples
    ]
    assert 1 / 3 < facts["activation_loss"] / np.mean(lost) < 3


def test_who_reads_a_rounded_activation_reads_nothing_else(tmp_path: Path) -> None:
    samples = [{"x": noise(1, 16, 12, 12, seed=seed)} for seed in range(2)]
    step = InsertQdq(activations="uint8")
    lowered, context = lower(residual(), ("8g144",), tmp_path, step, samples)
    for name in context.report["insert-qdq"]["activations"]:
        readers = {
            node.op_type
            for node in lowered.graph
            if any(value is not None and value.name == name for value in node.inputs)
        }
        assert readers == {"QuantizeLinear"}, name


def test_the_result_of_a_model_is_not_rounded(tmp_path: Path) -> None:
    text = CONVOLUTION.replace("B = Conv(A, W) Y = Sigmoid(B)", "Y = Conv(A, W)")
    model = parse(text, {"W": noise(32, 18, 3, 3)})
    samples = [{"A": noise(2, 18, 8, 8, seed=seed)} for seed in range(2)]
    lowered, context = lower(
        model, ("8g162",), tmp_path, InsertQdq(activations="uint8"), samples
    )
    assert context.report["insert-qdq"]["activations"] == {}
    assert optimized_ops(lowered) == {"Conv": 1}
    np.testing.assert_allclose(
        run(lowered, samples[0], "onnxruntime"),
        reference(lowered, samples[0]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_convolution_in_float_expands_its_codes_once(tmp_path: Path) -> None:
    lowered, _ = lower(residual(), ("8g144",), tmp_path)
    left = optimized_ops(lowered)
    assert left["Conv"] + left["FusedConv"] == 3
    assert not left["DequantizeLinear"] + left["Mul"]
