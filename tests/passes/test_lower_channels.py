"""Channels with widths of their own, from calibration to ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mpqc.backend.onnxruntime import load, open_session
from mpqc.ir import (
    Budgeted,
    ChannelAllocation,
    InfeasibleBudget,
    LeftInFloat,
    UsageError,
    find_units,
    need_note,
    note_of,
    quantizable,
)
from mpqc.ir.analysis.storage import stored
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.squares import read_square

from .rounded import noise, parse
from .swept import CALIBRATE, context, language, language_weights, run, sentences, vectors

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort]
BOTH = (
    ",split-outliers{by=activation, share=0.03},split-outliers{by=quantization, share=0.004}"
)
LEVELS = ["free", "grid4", "grid8", "even"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stats are kept, so that one test calibrates for all."""
    return tmp_path_factory.mktemp("channels")


@pytest.fixture
def work(folder: Path) -> PassContext:
    return context(folder, sentences(count=4))


def quantized(
    work: PassContext, levels: str, more: str = "", bits: str = "bits=3.2", how: str = ""
) -> ir.Model:
    allocate = f"allocate-channels{{{bits}, levels={levels}}}"
    text = f"{CALIBRATE}{more},{allocate},quantize-channels{how}"
    return run(text, language(), work)


def lowered(model: ir.Model, work: PassContext) -> ir.Model:
    copy = ir.from_proto(ir.to_proto(model))
    run("lower-channels", copy, work)
    assert work.report["lower-channels"]["skipped"] == {}
    onnx.checker.check_model(ir.to_proto(copy))
    return copy


def logits(model: ir.Model) -> np.ndarray:
    with open_session(model, threads=1) as session:
        return session.run({"ids": np.arange(60).reshape(3, 20)})["logits"]


def left_after_loading(model: ir.Model, folder: Path) -> Counter[str]:
    """Counts the operators of the graph that ONNX Runtime runs once it has loaded it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx").graph
    return Counter(node.op_type for node in graph.node)


def check_storage(original: ir.Model, result: ir.Model) -> None:
    """What `mpqc inspect` counts is every byte, and the weights are those of the original."""
    after, constants = stored(result), result.graph.initializers.values()
    total = sum(v.const_value.nbytes for v in constants if v.const_value is not None)
    assert after.bytes == total
    assert after.rest == 0
    assert after.weights == stored(original).weights
    before = {unit.name: unit for unit in stored(original).units}
    assert [unit.name for unit in after.units] == list(before)
    for unit in after.units:
        assert (unit.rows, unit.columns) == (before[unit.name].rows, before[unit.name].columns)


@pytest.mark.parametrize("more", ["", BOTH], ids=["plain", "outliers"])
@pytest.mark.parametrize("levels", LEVELS)
def test_lowered_equals_simulated(
    levels: str, more: str, work: PassContext, tmp_path: Path
) -> None:
    model = quantized(work, levels, more)
    for unit in quantizable(model):  # every targeted unit really changed
        assert not np.allclose(unit.tensor.numpy(), language_weights()[unit.name], atol=1e-4)
    expected, result = logits(model), lowered(model, work)
    assert not find_units(result)
    np.testing.assert_allclose(logits(result), expected, rtol=1e-4, atol=1e-4)
    check_storage(language(), result)
    left = left_after_loading(result, tmp_path)
    assert {"QLinearConv", "GatherElements", "Transpose", "ScatterND"}.isdisjoint(left)
    if levels == "free":
        assert left == {"Gather": 1, "MatMul": 5, "Relu": 2, "Add": 2}
        assert stored(result).resident_bits_per_weight == 32
    else:
        assert left["MatMulNBits"] == (7 if levels == "even" else 5)
        assert left["MatMul"] == left["ScatterElements"] == (5 if more else 0)
        assert stored(result).resident_bits_per_weight < 10


@pytest.mark.parametrize("levels", LEVELS)
def test_the_file_keeps_the_budget(levels: str, work: PassContext) -> None:
    budget = 4.75
    model = quantized(work, levels, BOTH, bits=f"budget={budget}, expand=true")
    promised = need_note(model, Budgeted).got
    after = stored(lowered(model, work))
    assert after.bits_per_weight <= promised <= budget
    # What is kept back for shapes is at most 300 bytes a unit, which here are small.
    assert promised - after.bits_per_weight < 8 * 6 * 300 / after.weights


def test_codebooks_need_a_file_budget(work: PassContext) -> None:
    with pytest.raises(UsageError, match="take more there") as caught:
        quantized(work, "grid8", bits="budget=4.75")
    assert "--file-budget" in caught.value.hint


def test_average_bits(work: PassContext) -> None:
    model = quantized(work, "free", bits="bits=2.2")
    for unit in quantizable(model):
        note = need_note(unit.notes, ChannelAllocation)
        assert note.bits == (2, 3)
        got = np.dot(note.bits, note.counts) / unit.shape[1]
        assert 2.2 - 1 / unit.shape[1] < got <= 2.2
        assert sum(note.counts) == unit.shape[1]


def test_wide_channels_are_those_with_large_activations(work: PassContext) -> None:
    model = run(f"{CALIBRATE},allocate-channels{{bits=3, spread=0.25}}", language(), work)
    (unit,) = [unit for unit in quantizable(model) if unit.name == "down"]
    note = need_note(unit.notes, ChannelAllocation)
    assert (note.bits, note.counts) == ((2, 3, 4), (32, 64, 32))
    energy = np.diag(read_square(work.arrays, "down/0/hessian"))
    order = work.arrays.get("down/channels")
    low, middle, high = (energy[part] for part in np.split(order, np.cumsum(note.counts)[:-1]))
    assert low.max() <= middle.min()
    assert middle.max() <= high.min()


@pytest.mark.parametrize("levels", ["free", "grid8"])
def test_better_rounding_is_predicted_to_lose_less(levels: str, folder: Path) -> None:
    losses = {}
    for how in ("", "{rows=fisher}", "{rounding=gptq, rows=fisher}"):
        work = context(folder, sentences(count=4))
        quantized(work, levels, how=how)
        losses[how] = work.report["quantize-channels"]["loss"]
    plain, weighted, both = losses.values()
    assert weighted < plain
    assert both < 0.9 * weighted


def test_outliers_lose_nothing(work: PassContext) -> None:
    """At half of the channels and 2 bits, what is split off is exact to half precision."""
    more = ",split-outliers{by=activation, share=0.5}"
    model = quantized(work, "grid8", more, bits="bits=2")
    for unit in quantizable(model):
        if any(use.kind != "product" for use in unit.uses):
            continue
        columns = work.arrays.get(f"{unit.name}/outliers/columns")
        assert len(columns) == unit.shape[1] // 2
        kept, original = unit.matrix(), language_weights()[unit.name].T
        np.testing.assert_array_equal(
            kept[:, columns], original[:, columns].astype(np.float16).astype(np.float32)
        )


def test_old_operators_cannot_scatter(work: PassContext) -> None:
    model = quantized(work, "even", BOTH)
    model.graph.opset_imports[""] = 13
    run("lower-channels", model, work)
    skipped = work.report["lower-channels"]["skipped"]
    assert set(skipped) == set(language_weights()) - {"table"}
    assert "opset 16 has" in skipped["up"]
    assert sum(note_of(node, LeftInFloat) is not None for node in model.graph) == 5


def test_halves_are_scattered_in_a_type_that_runtimes_scatter(folder: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float16[n, 64] x) => (float16[n, 64] y) { y = MatMul(x, w) }"""
    work = context(folder, vectors(dtype=np.float16))
    model = parse(text, {"w": (noise(64, 64) / 8).astype(np.float16)})
    allocate = "allocate-channels{bits=4, levels=even},quantize-channels,lower-channels"
    run(f"{CALIBRATE}{BOTH},{allocate}", model, work)
    with open_session(model, threads=1) as session:
        (found,) = session.run({"x": noise(5, 64, seed=3).astype(np.float16)}).values()
    assert found.dtype == np.float16
    assert np.isfinite(found).all()


def test_outliers_are_split_before_channels_get_widths(work: PassContext) -> None:
    late = "allocate-channels{bits=4, levels=even},split-outliers{by=activation, share=0.1}"
    with pytest.raises(UsageError, match="quantize-channels"):
        run(f"{CALIBRATE},{late},quantize-channels", language(), work)


def test_a_single_channel_is_no_outlier(folder: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 4096] y)
        { a = MatMul(x, w)
          b = ReduceMean <axes = [1], keepdims = 1> (a)
          y = MatMul(b, wide) }"""
    work = context(folder, vectors())
    model = parse(text, {"w": noise(64, 80), "wide": noise(1, 4096, seed=1)})
    run(f"{CALIBRATE},split-outliers{{by=activation, share=0.03}}", model, work)
    assert "single input channel" in str(work.report["split-outliers"])


def test_nothing_to_allocate_is_an_error(folder: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 3] y) { y = MatMul(x, w) }"""
    work = context(folder, vectors())
    model = parse(text, {"w": noise(64, 3)})
    with pytest.raises(InfeasibleBudget, match="nothing in this model"):
        run(f"{CALIBRATE},allocate-channels{{budget=4.0, levels=even}}", model, work)


def test_standard_onnx_has_no_kernels_for_grids(folder: Path) -> None:
    work = replace(context(folder, sentences(count=4)), capabilities=load("qdq"))
    with pytest.raises(UsageError, match="no kernels for grid8 levels"):
        run(f"{CALIBRATE},allocate-channels{{bits=4, levels=grid8}}", language(), work)
