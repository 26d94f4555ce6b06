from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, optimized_ops
from mpqc.ir import UsageError, quantizable
from mpqc.ir.analysis.storage import stored
from mpqc.passes.engine.numerics.pair_sums import overflowing_rows
from mpqc.passes.engine.pipeline.forecast import Forecast
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.insert_qdq.insert_qdq import InsertQdq
from mpqc.passes.leave_headroom import LeaveHeadroom

from .lowered_qdq import COLUMNS, EITHER, MLP, SPLITS, lower, reference, run, work
from .rounded import noise, parse, round_model, round_unit

pytestmark = pytest.mark.ort


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
