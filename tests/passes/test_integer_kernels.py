"""Kernels of integers beside others: products, LSTMs and convolutions of ``ort-cpu``."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session, optimized_ops
from mpqc.backend.onnxruntime.costs.tables import find_table
from mpqc.backend.runner import Runner
from mpqc.ir import BitAllocation, Calibration, UsageError, need_note, quantizable
from mpqc.ir.analysis.offered import Offer
from mpqc.passes.engine.numerics.pair_sums import overflowing_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.validation.instrument import Validation
from mpqc.passes.insert_qdq.regions import integer_convolutions
from mpqc.passes.insert_qdq.worthwhile import Worth
from mpqc.passes.leave_headroom import LeaveHeadroom
from mpqc.passes.lower_matmul_nbits import LowerMatMulNBits
from mpqc.passes.lower_recurrent import LowerRecurrent

from .rounded import noise, parse, round_model, round_unit

pytestmark = [pytest.mark.ort, pytest.mark.usefixtures("one_thread")]
TABLE = load("ort-cpu")


def work(tmp_path: Path, samples: list[dict[str, np.ndarray]] | None = None) -> PassContext:
    found = Calibration(samples, "tests", "key", held_out=0) if samples else None
    return PassContext(Runner.of(TABLE, threads=1), TABLE, tmp_path, calibration=found)


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    with open_session(model, threads=1) as session:
        return list(session.run(feeds).values())


def rounded(x: np.ndarray) -> np.ndarray:
    """Rounds as DynamicQuantizeLinear does."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    codes = np.clip(np.rint(x / step) + zero, 0, 255)
    return np.asarray((codes - zero) * step)


PRODUCTS = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[b, m, 96] A) => (float[b, m, 64] Y, float[b, m, 48] Z) {
      Y = MatMul(A, W) H = MatMul(A, V) Z = Add(H, B) }"""


@pytest.mark.parametrize("options", [("8g96a8",), ("4g32", "8g96a8")])
def test_products_round_what_they_read_once(options: tuple[str, ...], tmp_path: Path) -> None:
    weights = {"W": noise(96, 64), "V": noise(96, 48, seed=1), "B": noise(48, seed=2)}
    model, context = parse(PRODUCTS, weights), work(tmp_path)
    round_model(model, options, context.arrays)
    LeaveHeadroom().run(model, context)
    stored = {unit.name: unit.matrix() for unit in quantizable(model)}
    order = {name: context.arrays.get(f"{name}/order") for name in stored if len(options) > 1}
    validation = Validation(context)
    validation.before(0, LowerMatMulNBits(), model)
    LowerMatMulNBits().run(model, context)
    validation.after(0, LowerMatMulNBits(), model, context, True)
    assert Counter(node.op_type for node in model.graph)["DynamicQuantizeLinear"] == 1
    fused = optimized_ops(model)
    assert fused["MatMulIntegerToFloat"] == 2
    assert not fused["MatMulInteger"] + fused["Cast"]
    x = noise(2, 5, 96, seed=3)
    y, z = run(model, A=x)
    for found, name, bias in ((y, "W", 0), (z, "V", weights["B"])):
        integers = rounded(x) @ stored[name].T + bias
        if len(options) == 1:
            np.testing.assert_allclose(found, integers, rtol=1e-4, atol=1e-4)
            continue
        rows = order[name][len(order[name]) // 4 :]  # the first class has a quarter
        np.testing.assert_allclose(found[..., rows], integers[..., rows], rtol=1e-4, atol=1e-4)


def test_codes_without_headroom_are_refused(tmp_path: Path) -> None:
    weights = {"W": noise(96, 64), "V": noise(96, 48), "B": noise(48)}
    model, context = parse(PRODUCTS, weights), work(tmp_path)
    ready = "normalize,partition-blocks,calibrate,annotate-sensitivity{integers=quickest},"
    ready += "allocate-bits{budget=8.5},quantize-weights"
    context = dataclasses.replace(context, calibration=samples_of((2, 5, 96)))
    for step in ("lower-matmul-nbits", "lower-recurrent", "lower-convolutions"):
        with pytest.raises(UsageError, match="without VNNI") as found:
            Pipeline.parse(f"{ready},{step}").run(model.clone(), context)
        assert "leave-headroom" in found.value.hint


def samples_of(shape: tuple[int, ...], name: str = "A") -> Calibration:
    feeds = [{name: noise(*shape, seed=seed)} for seed in range(6)]
    return Calibration(feeds, "tests", "key", held_out=2)


def test_what_rounded_activations_lose_is_predicted(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[b, 96] A) => (float[b, 64] Y) { H = MatMul(A, W) R = Relu(H)
          Y = MatMul(R, V) }"""
    model = parse(text, {"W": noise(96, 128) / 10, "V": noise(128, 64) / 10})
    context = dataclasses.replace(work(tmp_path), calibration=samples_of((64, 96)))
    ready = "normalize,partition-blocks,calibrate,annotate-sensitivity{integers=quickest},"
    ready += "allocate-bits{budget=8.5},quantize-weights,leave-headroom,lower-matmul-nbits"
    exact = run(model.clone(), A=noise(64, 96, seed=9))[0]
    Pipeline.parse(ready).run(model, context)
    facts = context.report["quantize-weights"]
    predicted = (
        facts["loss"] + facts["activation_loss"] + context.report["leave-headroom"]["loss"]
    )
    found = run(model, A=noise(64, 96, seed=9))[0]
    measured = 0.5 * np.square(found - exact).sum() / np.square(exact).sum()
    assert facts["activation_loss"] > facts["loss"]
    assert 0.5 < measured / predicted < 2


def test_integers_serve_a_bound_on_time(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[b, 256] A) => (float[b, 512] Y) { Y = MatMul(A, W) }"""
    feeds = [noise(512, 256, seed=seed) for seed in range(6)]
    for feed in feeds:
        feed[:, 0] *= 40  # which no single step for all fits
    samples = Calibration([{"A": feed} for feed in feeds], "tests", "key", held_out=2)
    taken = {}
    for latency in (2.0, 0.6):
        model, costs = parse(text, {"W": noise(256, 512)}), find_table("avx512-vnni", 1, None)
        context = dataclasses.replace(work(tmp_path), calibration=samples, costs=costs)
        passes = "normalize,partition-blocks,calibrate,annotate-sensitivity{integers=beside},"
        passes += f"allocate-bits{{budget=8.5, latency={latency}}}"
        Pipeline.parse(passes).run(model, context)
        notes = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
        taken[latency] = [text for note in notes for text in note.options]
    assert not [text for text in taken[2.0] if text.endswith("a8")]
    assert [text for text in taken[0.6] if text.endswith("a8")]


@pytest.mark.parametrize(("opset", "known"), [(10, False), (11, True)])
def test_they_are_offered_where_the_opset_can_round(opset: int, known: bool) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[b, 96] A) => (float[b, 64] Y) {{ Y = MatMul(A, W) }}"""
    (unit,) = quantizable(parse(text, {"W": noise(96, 64)}))
    found = Offer(integers="beside").options(unit, TABLE)
    assert any(option.integer for option in found) == known


LSTM = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[7, 2, 25] A) => (float[7, {d}, 2, 24] Y) {{
      Y = LSTM <hidden_size = 24, direction = "{word}"> (A, W, R, B) }}"""


def recurrent(directions: int) -> ir.Model:
    word = "bidirectional" if directions == 2 else "forward"
    weights = {
        "W": noise(directions, 96, 25) / 5,
        "R": noise(directions, 96, 24, seed=1) / 5,
        "B": noise(directions, 192, seed=2) / 5,
    }
    return parse(LSTM.format(d=directions, word=word), weights)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_multiplies_integers(directions: int, tmp_path: Path) -> None:
    model, context = recurrent(directions), work(tmp_path)
    exact = run(model.clone(), A=noise(7, 2, 25, seed=4))[0]
    for unit in quantizable(model):
        round_unit(unit, (f"8g{unit.shape[1] // directions}a8",), context.arrays)
    LeaveHeadroom().run(model, context)
    simulated = run(model.clone(), A=noise(7, 2, 25, seed=4))[0]
    validation = Validation(context)
    validation.before(0, LowerRecurrent(), model)
    assert LowerRecurrent().run(model, context)
    validation.after(0, LowerRecurrent(), model, context, True)
    assert context.report["validation"]["lower-recurrent"] == "checked"
    assert [node.op_type for node in model.graph][-1] == "DynamicQuantizeLSTM"
    for name in ("W", "R"):
        tensor = model.graph.initializers[f"{name}/codes"].const_value
        assert tensor is not None
        codes = tensor.numpy().swapaxes(1, 2)
        assert not overflowing_rows(codes.reshape(-1, codes.shape[2])).any()
    found = run(model, A=noise(7, 2, 25, seed=4))[0]
    assert np.abs(found - simulated).max() < 0.02
    assert np.abs(found - exact).max() < 0.03
    assert set(optimized_ops(model)) == {"DynamicQuantizeLSTM"}


def test_an_lstm_with_one_weight_of_integers_stays(tmp_path: Path) -> None:
    model, context = recurrent(2), work(tmp_path)
    for unit in quantizable(model):
        option = {"W": "8g25a8", "R": "8g48"}[unit.name]
        round_unit(unit, (option,), context.arrays)
    simulated = run(model.clone(), A=noise(7, 2, 25, seed=4))[0]
    assert not LowerRecurrent().run(model, context)
    LowerMatMulNBits().run(model, context)
    assert optimized_ops(model)["LSTM"] == 1
    np.testing.assert_allclose(
        run(model, A=noise(7, 2, 25, seed=4))[0], simulated, rtol=1e-4, atol=1e-5
    )


CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 8, 16, 16] A) => (float[1, 4, 10, 10] Y) {
      a = Conv(A, W1) b = Relu(a) c = Conv(b, W2) d = Relu(c) e = Conv(d, W3)
      Y = Sigmoid(e) }"""


def chain() -> ir.Model:
    shapes = {"W1": (16, 8, 3, 3), "W2": (16, 16, 3, 3), "W3": (4, 16, 3, 3)}
    return parse(CHAIN, {name: noise(*shape) / 12 for name, shape in shapes.items()})


def test_convolutions_multiply_integers(tmp_path: Path) -> None:
    model = chain()
    context = dataclasses.replace(work(tmp_path), calibration=samples_of((1, 8, 16, 16)))
    x = noise(1, 8, 16, 16, seed=9)
    exact = run(model.clone(), A=x)[0]
    passes = "normalize,partition-blocks,calibrate,annotate-sensitivity{integers=quickest},"
    passes += "allocate-bits{budget=8.6},quantize-weights,leave-headroom,lower-convolutions,"
    passes += "lower-matmul-nbits"
    Pipeline.parse(passes).run(model, context)
    assert optimized_ops(model)["QLinearConv"] == 3
    assert np.abs(run(model, A=x)[0] - exact).max() < 0.02


def test_what_a_branch_reads_is_rounded_before_it() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (bool b, float[1, 8, 6, 6] A) => (float[1, 8, 2, 2] Y) {
          a = Conv(A, W1)
          c = If (b) <then_branch = t () => (float[1, 8, 4, 4] r) { r = Relu(a) },
                      else_branch = e () => (float[1, 8, 4, 4] s) { s = Sigmoid(a) }>
          Y = Conv(c, W2) }"""
    weights = {name: noise(8, 8, 3, 3) for name in ("W1", "W2")}
    model = parse(text, weights)
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    able, rounded = integer_convolutions(model.graph, convolutions)
    assert len(able) == 1
    assert {str(value.name) for value in rounded} == {"A", "a"}


def test_the_costliest_activations_stay_in_float() -> None:
    model = chain()
    values = {str(one.name): one for node in model.graph for one in node.outputs}
    values["A"] = model.graph.inputs[0]
    work = {node: 1.0 for node in model.graph if node.op_type == "Conv"}
    names = {"A": 1.0, "b": 1.0, "d": 1.0, "e": 1.0}

    def left(base: float = 0.1, size: float = 0.0, **losses: float) -> list[str]:
        given = {values[name]: loss for name, loss in {**names, **losses}.items()}
        sizes = dict.fromkeys(given, size)
        kept = Worth(model.graph, work, given, sizes, base, 0.35, 16.0).chosen()
        return [str(node.inputs[1].name) for node in kept if node.inputs[1] is not None]

    assert left() == ["W1", "W2", "W3"]
    assert left(A=20.0) == ["W2", "W3"]
    assert left(e=20.0) == ["W1", "W2"]
    assert left(d=20.0) == ["W1", "W2", "W3"]  # two of three would be slow for it
    assert left(A=20.0, base=1000.0) == ["W1", "W2", "W3"]
    assert left(size=0.04) == ["W1", "W2", "W3"]  # codes from A, and floats from e
    assert left(size=0.06) == []
    assert left(A=500.0, b=500.0, d=500.0, e=500.0, base=1e-9) == ["W1", "W2", "W3"]
