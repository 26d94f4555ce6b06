from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.backend.onnxruntime import load, open_session
from mpqc.backend.torch_fx.lower import lower_model
from mpqc.ir import (
    BitAllocation,
    Budgeted,
    Calibrated,
    SharedRows,
    TensorStats,
    Unit,
    UsageError,
    annotate,
    drop_note,
    need_note,
    note_of,
    quantizable,
)
from mpqc.ir.analysis.storage import stored
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.statistics.moved import forget_moves, moves_key, read_moved
from mpqc.passes.engine.statistics.squares import put_square

from .rounded import context, noise, parse

pytestmark = pytest.mark.ort

HEADER = '<ir_version: 9, opset_import: ["" : 20, "com.microsoft" : 1]>\n'
GATED = """g (float[N, 64] x) => (float[N, 64] y) {
    g = MatMul(x, gate) s = Sigmoid(g) a = Mul(g, s) u = MatMul(x, up) h = Mul(a, u)
    y = MatMul(h, down) }"""
BIASED = """g (float[N, 64] x) => (float[N, 64] y) {
    f = Gemm(x, gate, bias) h = Gelu(f) d = Gemm <transB = 1> (h, down, last)
    z = Add(d, x) k = MatMul(z, up) b = Add(k, more) t = Tanh(b) y = MatMul(t, other) }"""
MODELS = {"gated": GATED, "biased": BIASED}
SQUARE = {name: noise(64, 64, seed=at) / 8 for at, name in enumerate(("gate", "up", "down"))}


def build(name: str) -> ir.Model:
    weights = dict(SQUARE)
    if name == "biased":
        weights |= {"bias": noise(64, seed=4), "last": noise(64, seed=5)}
        weights["more"] = noise(64, seed=7)
        weights["other"] = noise(64, 64, seed=6)
    return parse(HEADER + MODELS[name], weights)


def keep_moments(unit: Unit, rows: np.ndarray, hessian: np.ndarray, work: PassContext) -> None:
    for what, array in {"rows": rows, "activation": hessian.diagonal()}.items():
        work.arrays.put(f"{unit.name}/0/{what}", array.astype(np.float32))
    put_square(work.arrays, f"{unit.name}/0/hessian", hessian.astype(np.float32))
    annotate(unit.notes, TensorStats(unit.name, 1, 200))


def prepared(name: str, tmp_path: Path) -> tuple[ir.Model, PassContext]:
    """A model with statistics as if it had been calibrated."""
    model, table = build(name), load("ort-cpu")
    kernels = tuple(dataclasses.replace(one, accuracy_level=0) for one in table.kernels)
    work = context(dataclasses.replace(table, kernels=kernels, row_tile=8), tmp_path)
    rng = np.random.default_rng(3)
    for unit in quantizable(model):
        rows, columns = unit.shape
        inputs = rng.standard_normal((200, columns)) * rng.gamma(1, size=columns)
        keep_moments(unit, rng.gamma(0.3, size=rows), inputs.T @ inputs / 200, work)
    annotate(model, Calibrated("key", "made up", 1, 200, "regression", "y"))
    Pipeline.parse("annotate-sensitivity").run(model, work)
    return model, work


def run(model: ir.Model) -> np.ndarray:
    with open_session(model, threads=1) as session:
        return session.run({"x": noise(5, 64, seed=9)})["y"]


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


ALLOCATE = "allocate-bits{budget=4, fold=true}"


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    model, work = prepared(name, tmp_path)
    before = run(model)
    Pipeline.parse(f"{ALLOCATE},fold-permutations").run(model, work)
    folded = {"gated": ["gate"], "biased": ["gate", "up"]}[name]
    assert work.report["fold-permutations"]["folded"] == folded
    moved, original = quantizable(model)[0], quantizable(build(name))[0]
    assert not np.array_equal(moved.matrix(), original.matrix())
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-5)
    (found,) = lower_model(model)(torch.from_numpy(noise(5, 64, seed=9)))
    np.testing.assert_allclose(found.numpy(), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_lowering_gives_the_same_with_one_gather_less(name: str, tmp_path: Path) -> None:
    """Groups as wide as the rows and plain rounding do not see the order of columns."""
    results = []
    for fold in (True, False):
        model, work = prepared(name, tmp_path)
        Pipeline.parse(ALLOCATE).run(model, work)
        allocated = [need_note(unit.notes, BitAllocation) for unit in quantizable(model)]
        mixed = sum(len(note.options) > 1 for note in allocated)
        shared = [u for u in quantizable(model) if note_of(u.notes, SharedRows) is not None]
        assert len(shared) == 2
        for unit in shared:
            if not fold:
                drop_note(unit.notes, SharedRows)
        rest = "quantize-weights{rounding=nearest},lower-matmul-nbits"
        Pipeline.parse(f"fold-permutations,{rest}" if fold else rest).run(model, work)
        assert ops(model)["Gather"] == (mixed - 2 if fold else mixed)
        results.append(run(model))
    assert np.abs(results[0] - run(build(name))).max() > 1e-3
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [3.0, 4.0, 6.5])
def test_the_bytes_are_those_that_were_counted(budget: float, tmp_path: Path) -> None:
    model, work = prepared("gated", tmp_path)
    text = "allocate-bits{fold=true},fold-permutations,quantize-weights,lower-matmul-nbits"
    Pipeline.parse(text.replace("{", f"{{budget={budget}, ")).run(model, work)
    note = need_note(model, Budgeted)
    assert stored(model).bits_per_weight == pytest.approx(note.got)
    assert note.got <= budget


def test_statistics_follow_the_rows_and_columns(tmp_path: Path) -> None:
    model, work = prepared("gated", tmp_path)
    units = {unit.name: unit for unit in quantizable(model)}
    before = {
        (name, what): read_moved(unit, work.arrays, 0, what)
        for name, unit in units.items()
        for what in ("rows", "hessian", "activation")
    }
    loss = work.arrays.get("gate/loss")
    assert moves_key(units.values(), work.arrays) == ""
    Pipeline.parse(ALLOCATE).run(model, work)
    names = [f"{name}/order" for name in ("gate", "up")]
    order = next(work.arrays.get(name) for name in names if name in work.arrays)
    Pipeline.parse("fold-permutations").run(model, work)
    np.testing.assert_array_equal(work.arrays.get("gate/loss"), loss[order])
    for (name, what), array in before.items():
        expected = array
        if (what == "rows") != (name == "down"):
            expected = array[order]
            expected = expected[:, order] if what == "hessian" else expected
        np.testing.assert_array_equal(read_moved(units[name], work.arrays, 0, what), expected)
    assert moves_key(units.values(), work.arrays)
    forget_moves(units.values(), work.arrays)
    assert moves_key(units.values(), work.arrays) == ""


def test_a_second_allocation_starts_from_what_the_first_moved(tmp_path: Path) -> None:
    model, work = prepared("gated", tmp_path)
    before = run(model)
    once = f"{ALLOCATE},fold-permutations"
    Pipeline.parse(once).run(model, work)
    loss = need_note(model, Budgeted).loss
    Pipeline.parse(once).run(model, work)
    assert need_note(model, Budgeted).loss == pytest.approx(loss)
    unit = quantizable(model)[0]
    moved = work.arrays.get(f"{unit.name}/rows-from")
    original = quantizable(build("gated"))[0].matrix()
    np.testing.assert_array_equal(unit.matrix(), original[moved])
    np.testing.assert_allclose(run(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("huge", "folded"), [(1.0, ["first"]), (900.0, [])])
def test_columns_that_rule_their_groups_are_kept_apart(
    huge: float, folded: list[str], tmp_path: Path
) -> None:
    """Two channels with huge activations, which want many bits, would end up side by side."""
    text = """g (float[N, 64] x) => (float[N, 64] y) {
        h = MatMul(x, first) a = Relu(h) y = MatMul(a, second) }"""
    weights = {"first": noise(64, 128, seed=1) / 8, "second": noise(128, 64, seed=2)}
    model = parse(HEADER + text, weights)
    work = context(dataclasses.replace(load("ort-cpu"), row_tile=8), tmp_path)
    importance, seen = np.full(128, 1e-3), np.ones(128)
    importance[5:60], importance[[3, 100]], seen[[3, 100]] = 1e-2, 10, huge
    first, second = quantizable(model)
    keep_moments(first, importance, np.eye(64), work)
    keep_moments(second, np.ones(64), np.diag(seen), work)
    annotate(model, Calibrated("key", "made up", 1, 200, "regression", "y"))
    Pipeline.parse(f"annotate-sensitivity,{ALLOCATE},fold-permutations").run(model, work)
    assert work.report["fold-permutations"]["folded"] == folded


def test_what_counts_on_the_fold_is_refused_without_it(tmp_path: Path) -> None:
    model, work = prepared("gated", tmp_path)
    with pytest.raises(UsageError, match="fold-permutations"):
        Pipeline.parse(f"{ALLOCATE},quantize-weights").run(model, work)


def test_a_product_that_transposes_the_channels_keeps_their_order(tmp_path: Path) -> None:
    text = """g (float[64, 64] x) => (float[64, 64] y) {
        h = MatMul(x, gate) a = Relu(h) y = Gemm <transA = 1> (a, down) }"""
    model = parse(HEADER + text, SQUARE)
    work = context(dataclasses.replace(load("ort-cpu"), row_tile=8), tmp_path)
    for unit in quantizable(model):
        keep_moments(unit, np.random.default_rng(0).gamma(0.3, size=64), np.eye(64), work)
    annotate(model, Calibrated("key", "made up", 1, 200, "regression", "y"))
    Pipeline.parse(f"annotate-sensitivity,{ALLOCATE},fold-permutations").run(model, work)
    assert work.report["fold-permutations"]["folded"] == []
