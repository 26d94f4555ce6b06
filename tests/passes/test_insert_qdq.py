from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session, optimized_ops
from mpqc.backend.openvino import open_openvino
from mpqc.backend.runner import Runner
from mpqc.ir import Calibration, UsageError, quantizable
from mpqc.ir.analysis.storage import stored
from mpqc.passes import leave_headroom
from mpqc.passes.engine.numerics.divergence import squared_divergence
from mpqc.passes.engine.numerics.pair_sums import kernel_order, overflowing_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.forecast import Forecast
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.insert_qdq.insert_qdq import InsertQdq
from mpqc.passes.leave_headroom import LeaveHeadroom

from .rounded import noise, parse, round_model, round_unit

pytestmark = pytest.mark.ort

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


def product(opset: int = 21) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[m, {COLUMNS}] A) => (float[m, 96] Y) {{ Y = MatMul(A, W) }}"""
    return parse(text, {"W": noise(COLUMNS, 96)})


@pytest.mark.parametrize("runtime", EITHER)
@pytest.mark.parametrize("options", SPLITS, ids="+".join)
def test_products_are_those_of_the_simulation(
    options: Sequence[str], runtime: str, tmp_path: Path
) -> None:
    model, feeds = product(), {"A": noise(5, COLUMNS, seed=3)}
    lowered, _ = lower(model, options, tmp_path)
    expected = run(model, feeds, "onnxruntime")
    np.testing.assert_allclose(run(lowered, feeds, runtime), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(reference(lowered, feeds), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("runtime", EITHER)
@pytest.mark.parametrize("options", SPLITS, ids="+".join)
def test_a_table_serves_lookups_and_the_head(
    options: Sequence[str], runtime: str, tmp_path: Path
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (int64[b, s] ids) => (float[b, s, 160] Y) {
          e = Gather(W, ids) t = Transpose<perm=[1, 0]>(W) Y = MatMul(e, t) }"""
    model = parse(text, {"W": noise(160, COLUMNS)})
    feeds = {"ids": np.array([[0, 159, -1], [7, 7, 80]])}
    lowered, _ = lower(model, options, tmp_path)
    expected = run(model, feeds, "onnxruntime")
    np.testing.assert_allclose(run(lowered, feeds, runtime), expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(reference(lowered, feeds), expected, rtol=1e-4, atol=1e-3)
    left = optimized_ops(lowered)
    assert left["MatMulNBits"] == len(options)
    assert left["Transpose"] == (2 if len(options) > 1 else 0)  # around the order of the rows


@pytest.mark.parametrize("runtime", EITHER)
@pytest.mark.parametrize("options", SPLITS, ids="+".join)
def test_a_table_that_only_lookups_read(
    options: Sequence[str], runtime: str, tmp_path: Path
) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (int64[b, s] ids) => (float[b, s, {COLUMNS}] Y) {{ Y = Gather(W, ids) }}"""
    model = parse(text, {"W": noise(160, COLUMNS)})
    feeds = {"ids": np.array([[0, 159, 3], [7, 7, 80]])}
    lowered, _ = lower(model, options, tmp_path)
    expected = run(model, feeds, "onnxruntime")
    np.testing.assert_allclose(run(lowered, feeds, runtime), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("runtime", EITHER)
@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_gemm_keeps_its_factors_and_bias(dtype: str, runtime: str, tmp_path: Path) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g ({dtype}[m, {COLUMNS}] A) => ({dtype}[m, 96] Y) {{
          Y = Gemm<alpha=0.5, beta=2.0, transB=1>(A, W, B) }}"""
    kind = "float32" if dtype == "float" else "float16"
    model = parse(text, {"W": noise(96, COLUMNS).astype(kind), "B": noise(96).astype(kind)})
    feeds = {"A": noise(5, COLUMNS, seed=3).astype(kind)}
    lowered, _ = lower(model, ("4g64", f"8g{COLUMNS}"), tmp_path)
    near = 1e-4 if dtype == "float" else 0.1
    expected = run(model, feeds, "onnxruntime").astype("float32")
    found = run(lowered, feeds, runtime).astype("float32")
    np.testing.assert_allclose(found, expected, rtol=near, atol=near)


@pytest.mark.parametrize("runtime", EITHER)
def test_convolutions_read_a_dequantizelinear(runtime: str, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 16, 8, 8] A) => (float[N, 32, 6, 6] Y) { Y = Conv(A, W) }"""
    model = parse(text, {"W": noise(32, 16, 3, 3)})
    feeds = {"A": noise(2, 16, 8, 8, seed=3)}
    lowered, _ = lower(model, ("8g144",), tmp_path)
    expected = run(model, feeds, "onnxruntime")
    np.testing.assert_allclose(run(lowered, feeds, runtime), expected, rtol=1e-4, atol=1e-3)


MLP = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[b, m, {COLUMNS}] A) => (float[b, m, 64] Y) {{
      h = MatMul(A, W) r = Relu(h) Y = MatMul(r, V) }}"""


@pytest.mark.parametrize("runtime", EITHER)
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_activations_are_rounded_once_and_as_the_standard_says(
    kind: str, runtime: str, tmp_path: Path
) -> None:
    model = parse(MLP, {"W": noise(COLUMNS, 96), "V": noise(96, 64)})
    samples = [{"A": noise(2, 5, COLUMNS, seed=seed)} for seed in range(4)]
    context = work(tmp_path, samples)
    for unit, text in zip(quantizable(model), ("8g128", "8g96"), strict=True):
        round_unit(unit, (text,), context.arrays)
    copy = ir.from_proto(ir.to_proto(model))
    LeaveHeadroom().run(copy, context)
    InsertQdq(activations=kind).run(copy, context)
    onnx.checker.check_model(ir.to_proto(copy), full_check=True)
    facts = context.report["insert-qdq"]
    assert set(facts["activations"]) == {"A", "r"}
    assert facts["float_activations"] == []
    exact, rounded = run(model, samples[0], "onnxruntime"), reference(copy, samples[0])
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.03
    # A runtime may round a value that lies between two codes to the other one.
    found = run(copy, samples[0], runtime)
    assert np.linalg.norm(found - rounded) / np.linalg.norm(rounded) < 1e-3
    if kind == "int8":
        zeros = [v for k, v in copy.graph.initializers.items() if "zero_point" in k]
        assert zeros
        assert all(one.const_value.numpy() == 0 for one in zeros)  # type: ignore[union-attr]


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
    monkeypatch.setattr(leave_headroom, "_factor", lambda *given: None)
    assert compensated < 0.9 * left()[0]


def test_without_integer_products_codes_stay(tmp_path: Path) -> None:
    model = product()
    lowered, _ = lower(model, (f"8g{COLUMNS}",), tmp_path)
    codes = next(v for k, v in lowered.graph.initializers.items() if "/codes" in k)
    assert codes.const_value is not None
    assert overflowing_rows(codes.const_value.numpy().T).any()


def test_products_of_four_bits_keep_their_activations(tmp_path: Path) -> None:
    samples = [{"A": noise(5, COLUMNS, seed=3)}]
    options = ("4g64", f"8g{COLUMNS}")
    step = InsertQdq(activations="uint8")
    lowered, context = lower(product(), options, tmp_path, step, samples)
    facts = context.report["insert-qdq"]
    assert list(facts["activations"]) == ["A"]
    products = [node for node in lowered.graph if node.op_type == "MatMul"]
    read = [str(node.inputs[0].name) for node in products if node.inputs[0] is not None]
    assert read == ["A", "A/quantized"]
    lowered, context = lower(product(), ("4g64",), tmp_path, step, samples)
    facts = context.report["insert-qdq"]
    assert facts["activations"] == {}
    assert len(facts["float_activations"]) == 1


def test_the_runtime_fuses_products_of_codes(tmp_path: Path) -> None:
    lowered, _ = lower(product(), ("4g64", f"8g{COLUMNS}"), tmp_path)
    assert optimized_ops(lowered)["MatMulNBits"] == 2
    samples = [{"A": noise(5, COLUMNS, seed=3)}]
    step = InsertQdq(activations="uint8")
    lowered, _ = lower(product(), (f"8g{COLUMNS}",), tmp_path, step, samples)
    assert optimized_ops(lowered)["MatMulIntegerToFloat"] == 1


@pytest.mark.parametrize("kind", ["none", "uint8"])
@pytest.mark.parametrize("op", ["a = MatMul(A, W) Y = Add(a, c)", "Y = Gemm(A, W, c)"])
def test_a_bias_does_not_cost_a_matrix_its_kernel(op: str, kind: str, tmp_path: Path) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[m, {COLUMNS}] A) => (float[m, 96] Y) {{ {op} }}"""
    model = parse(text, {"W": noise(COLUMNS, 96), "c": noise(96, seed=2)})
    samples = [{"A": noise(5, COLUMNS, seed=3)}]
    step = InsertQdq(activations=kind) if kind != "none" else None
    lowered, _ = lower(model, (f"8g{COLUMNS}",), tmp_path, step, samples)
    left = optimized_ops(lowered)
    assert left["MatMulNBits" if step is None else "MatMulIntegerToFloat"] == 1
    assert not left["Gemm"]
    exact = run(model, samples[0], "onnxruntime")
    found = run(lowered, samples[0], "onnxruntime")
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.parametrize(
    ("options", "bits"), [(("4g64",), 4 + 16 / 64), ((f"8g{COLUMNS}",), 8 + 16 / COLUMNS)]
)
def test_the_file_alone_tells_the_bits(
    options: Sequence[str], bits: float, tmp_path: Path
) -> None:
    lowered, _ = lower(product(), options, tmp_path)
    lowered.graph.metadata_props.clear()
    for node in lowered.graph:
        node.metadata_props.clear()
    storage = stored(ir.from_proto(ir.to_proto(lowered)))
    assert storage.bits_per_weight == pytest.approx(bits)
    assert storage.units[0].widths == ((int(bits), 96),)
    assert storage.rest == 0


def test_an_old_graph_is_refused_before_anything_runs(tmp_path: Path) -> None:
    context = work(tmp_path)
    with pytest.raises(UsageError, match="needs opset 21") as found:
        InsertQdq().preflight(product(opset=17), context, Forecast())
    assert "raise-opset" in found.value.hint
    with pytest.raises(UsageError, match="without VNNI") as found:
        InsertQdq(activations="uint8").preflight(product(opset=17), context, Forecast())
    assert "leave-headroom" in found.value.hint
    (raised,) = Pipeline.parse("raise-opset").passes
    InsertQdq().preflight(product(opset=17), context, raised.forecast(Forecast()))


def test_a_target_with_other_widths_is_refused(tmp_path: Path) -> None:
    context = work(tmp_path)
    context.capabilities = load("ort-cpu")
    with pytest.raises(UsageError, match="2 bits"):
        InsertQdq().preflight(product(), context, Forecast())


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="ranges=minmax"):
        InsertQdq(ranges="minmax")
    with pytest.raises(UsageError, match="int9") as found:
        InsertQdq(activations="int9")
    assert "int8" in found.value.hint


def test_quantized_activations_need_samples(tmp_path: Path) -> None:
    context = work(tmp_path)
    model = product()
    round_model(model, (f"8g{COLUMNS}",), context.arrays)
    with pytest.raises(UsageError, match="needs samples"):
        InsertQdq(activations="int8").run(model, context)


def test_a_row_that_no_group_divides_stays_in_float_and_says_why(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[m, 100] A) => (float[m, 72] Y) { Y = MatMul(A, W) }"""
    model, context = parse(text, {"W": noise(100, 72)}), work(tmp_path)
    round_model(model, ("4g32",), context.arrays)
    InsertQdq().run(model, context)
    assert "whole groups" in context.report["insert-qdq"]["skipped"]["W"]
    assert Counter(node.op_type for node in model.graph) == {"MatMul": 1}


def test_learned_queries_are_quantized_too(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[m, 4] B) => (float[m, 96] Y)
        { L = MatMul(A, W)
           Y = MatMul(B, L) }"""
    given = {"W": noise(COLUMNS, 96), "A": noise(4, COLUMNS, seed=1)}
    feeds = {"B": noise(5, 4, seed=2)}
    step = InsertQdq(activations="uint8")
    lowered, _ = lower(parse(text, given), [f"8g{COLUMNS}"], tmp_path, step, [feeds])
    found, exact = (
        run(lowered, feeds, "onnxruntime"),
        run(parse(text, given), feeds, "onnxruntime"),
    )
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


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


NAMES = ("first", "second", "third")


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
