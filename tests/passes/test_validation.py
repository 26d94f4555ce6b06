"""Miscompilations planted in real passes: validation names the pass and the unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.backend.onnxruntime import load
from mpqc.backend.runner import Runner
from mpqc.ir import (
    Calibration,
    Capabilities,
    Miscompiled,
    OutlierColumns,
    annotate,
    quantizable,
)
from mpqc.ir.unit_arrays import RowClass, UnitArrays
from mpqc.passes import fold_permutations, raise_opset
from mpqc.passes.calibrate import calibrate
from mpqc.passes.cmpq import channel_codes, split_product
from mpqc.passes.engine.emission import lookup, product, stored
from mpqc.passes.engine.emission.emitter import Emitter
from mpqc.passes.engine.numerics import packing
from mpqc.passes.engine.pipeline.base import PassContext, Promise
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.pipeline.registry import all_passes
from mpqc.passes.engine.validation.difference import find_difference, is_rearranged
from mpqc.passes.engine.validation.instrument import REPORT, Validation
from mpqc.passes.engine.validation.samples import chosen_feeds
from mpqc.passes.normalize import normalize
from mpqc.passes.quantize_weights import quantize_weights
from mpqc.passes.rewrite_crossquant import folding
from mpqc.passes.tune_scales import scales

from .outliers import outlier_model
from .rounded import noise, parse, round_model, round_unit
from .swept import CALIBRATE, context, language, sentences, vector, vectors

pytestmark = pytest.mark.usefixtures("one_thread")

Patch = pytest.MonkeyPatch
Change = Callable[[np.ndarray], np.ndarray]
MIXED = ("2g64", "4g32", "8g64")
ROUND = ",annotate-sensitivity,allocate-bits{budget=4.2, granularity=row, fold=true}"
ROUND += ",fold-permutations,quantize-weights"
BOTH = (
    ",split-outliers{by=activation, share=0.03},split-outliers{by=quantization, share=0.004}"
)


def table(target: str = "ort-cpu") -> Capabilities:
    found = load(target)
    kernels = tuple(
        dataclasses.replace(kernel, row_multiple=1, column_multiple=1)
        for kernel in found.kernels
    )
    return dataclasses.replace(found, kernels=kernels)


def validated(passes: str, model: ir.Model, work: PassContext) -> dict[str, str]:
    """Runs passes with every check on; returns what was checked."""
    Pipeline.parse(passes).run(model, work, [Validation(work)])
    found: dict[str, str] = work.report[REPORT]
    return found


def rounded(
    model: ir.Model, folder: Path, options: tuple[str, ...] = MIXED, target: str = "ort-cpu"
) -> PassContext:
    """Rounds ``model`` as quantize-weights would, without calibration."""
    work = PassContext(Runner(threads=1), table(target), folder)
    round_model(model, options, work.arrays)
    return work


def replaced(patch: Patch, where: object, name: str, change: Callable[..., Any]) -> None:
    """Lets ``change`` have the result of a function, and what it was given."""
    right = getattr(where, name)

    def wrong(*given: Any, **options: Any) -> Any:
        return change(right(*given, **options), *given)

    patch.setattr(where, name, wrong)


def refused(passes: str, model: ir.Model, work: PassContext) -> str:
    """Returns the first line of the error that a planted fault must cause."""
    with pytest.raises(Miscompiled) as caught:
        validated(passes, model, work)
    assert caught.value.exit_code == 70
    assert "--no-validate" in caught.value.hint
    return caught.value.message


# Units as codes: lower-matmul-nbits


def flip(packed: np.ndarray, *_: Any) -> np.ndarray:
    """Flips the lowest bit of one byte in the middle."""
    spoilt = packed.copy()
    spoilt.reshape(-1)[packed.size // 2] ^= 1
    return spoilt


def spoil_constant(patch: Patch, name: str, change: Change) -> None:
    """Changes what is stored as the initializer ``<unit>/<name>``."""
    right = Emitter.constant

    def wrong(self: Emitter, called: str, array: np.ndarray) -> ir.Value:
        return right(self, called, change(array) if called == name else array)

    patch.setattr(Emitter, "constant", wrong)


def one_scale(array: np.ndarray) -> np.ndarray:
    spoilt = array.copy()
    spoilt.reshape(-1)[-1] *= np.float16(1.01)
    return spoilt


def other_groups(array: np.ndarray) -> np.ndarray:
    return np.roll(array, 1, axis=1)


LOWERING: dict[str, Callable[[Patch], None]] = {
    "one flipped bit": lambda p: replaced(p, stored, "pack", flip),
    "one wrong scale": lambda p: spoil_constant(p, "scales/2", one_scale),
    "scales of the next group": lambda p: spoil_constant(p, "scales/1", other_groups),
    "classes in the wrong order": lambda p: replaced(
        p, stored, "_inverse", lambda order, *_: order if order is None else order[::-1]
    ),
    "rows left in stored order": lambda p: replaced(p, stored, "_inverse", lambda *_: None),
}


@pytest.mark.parametrize("fault", LOWERING)
def test_faults_of_lowering(fault: str, tmp_path: Path, monkeypatch: Patch) -> None:
    model = language()
    work = rounded(model, tmp_path)
    LOWERING[fault](monkeypatch)
    message = refused("lower-matmul-nbits", model, work)
    assert message.startswith("lower-matmul-nbits: unit 'table': ")
    assert "expected" in message


@pytest.mark.parametrize("option", ["3g64", "5g32", "6g64", "7g128"])
def test_a_flipped_bit_of_dense_codes(option: str, tmp_path: Path, monkeypatch: Patch) -> None:
    model = language()
    work = rounded(model, tmp_path, (option,))
    replaced(monkeypatch, stored, "pack_dense", flip)
    assert "unit 'table': " in refused("lower-matmul-nbits", model, work)


def test_a_flipped_bit_in_the_least_of_all_codes(tmp_path: Path, monkeypatch: Patch) -> None:
    """One step of 8 bits in one of 4,194,304 products."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[m, 2048] x) => (float[m, 256] y) { y = MatMul(x, w) }""",
        {"w": noise(2048, 256)},
    )
    work = rounded(model, tmp_path, ("8g32",))
    replaced(monkeypatch, stored, "pack", flip)
    assert "unit 'w': " in refused("lower-matmul-nbits", model, work)


def test_a_wrong_zero_point_of_a_lookup(tmp_path: Path, monkeypatch: Patch) -> None:
    model = language()
    work = rounded(model, tmp_path)
    replaced(monkeypatch, lookup, "code_of_zero", lambda code, *_: code + 1)
    assert "unit 'table': 'x' at [0, 0, 0] is" in refused("lower-matmul-nbits", model, work)


def test_a_wrong_zero_point_in_one_group(tmp_path: Path, monkeypatch: Patch) -> None:
    model = language()
    work = rounded(model, tmp_path)

    def shifted(packed: np.ndarray, codes: np.ndarray, bits: int, group: int) -> np.ndarray:
        spoilt = packed.copy()
        if bits == 8:
            spoilt[0, 0] += 1  # every code of the first group of the first row
        return spoilt

    replaced(monkeypatch, stored, "pack", shifted)
    assert "unit 'table': " in refused("lower-matmul-nbits", model, work)


def test_a_concat_in_the_wrong_order(tmp_path: Path, monkeypatch: Patch) -> None:
    model = language()
    work = rounded(model, tmp_path)
    right = product.joined
    monkeypatch.setattr(
        product, "joined", lambda unit, use, parts, *rest: right(unit, use, parts[::-1], *rest)
    )
    message = refused("lower-matmul-nbits", model, work)
    assert message.startswith("lower-matmul-nbits: unit 'up': 'a' at [")


def test_a_transposed_weight(tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[m, 64] x) => (float[m, 64] y) { y = MatMul(x, w) }""",
        {"w": noise(64, 64)},
    )
    work = rounded(model, tmp_path, ("4g64",))
    right = packing.pack
    monkeypatch.setattr(
        stored, "pack", lambda codes, *rest: right(np.ascontiguousarray(codes.T), *rest)
    )
    assert "unit 'w': 'y' at" in refused("lower-matmul-nbits", model, work)


def test_a_dropped_bias(tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[m, 64] x) => (float[m, 80] y)
        { y = Gemm <transB = 1, alpha = 0.5> (x, w, c) }""",
        {"w": noise(80, 64), "c": noise(80) / 100},
    )
    work = rounded(model, tmp_path, ("4g64",))
    monkeypatch.setattr(product, "affine", lambda gemm, value, dtype, emit: value)
    assert "unit 'w': 'y' at" in refused("lower-matmul-nbits", model, work)


def test_a_dropped_outlier_column(tmp_path: Path, monkeypatch: Patch) -> None:
    model = vector()
    work = PassContext(Runner(threads=1), table(), tmp_path)
    for unit in quantizable(model):
        round_unit(unit, ("4g32",), work.arrays)
        matrix, columns = unit.matrix(), np.array([3, 17], np.int32)
        work.arrays.get(f"{unit.name}/codes/0")[:, columns] = 0
        kept = noise(2, len(matrix)).astype(np.float16)
        matrix[:, columns] = kept.T
        unit.replace(matrix)
        work.arrays.put(f"{unit.name}/outliers/columns", columns)
        work.arrays.put(f"{unit.name}/outliers/kept", kept)
        annotate(unit.notes, OutlierColumns(unit.name, 2))
    spoil_constant(monkeypatch, "outliers", lambda array: np.stack([array[0], 0 * array[1]]))
    message = refused("lower-matmul-nbits", model, work)
    assert message.startswith("lower-matmul-nbits: unit 'first': ")


# insert-qdq and lower-channels


@pytest.mark.parametrize("activations", ["none", "uint8"])
def test_faults_of_insert_qdq(activations: str, tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[m, 64] x) => (float[m, 80] y)
        { a = MatMul(x, first) b = Relu(a) y = MatMul(b, second) }""",
        {"first": noise(64, 128), "second": noise(128, 80)},
    )
    work = rounded(model, tmp_path, ("8g64",), "qdq")
    second = quantizable(model)[1]
    round_unit(second, ("8g128",), work.arrays)
    work.calibration = vectors()
    spoil_constant(monkeypatch, "scales/0", one_scale)
    headroom = "" if activations == "none" else "leave-headroom,"
    passes = f"{headroom}insert-qdq{{activations={activations}}}"
    message = refused(passes, model, work)
    assert message.startswith("insert-qdq: unit 'first': 'a' at")


def test_a_wrong_axis_of_a_convolution(tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 32, 9, 9] x) => (float[1, 32, 9, 9] y)
        { z = Conv <pads = [1, 1, 1, 1]> (x, w) y = Sigmoid(z) }""",
        {"w": noise(32, 32, 3, 3)},
    )
    work = rounded(model, tmp_path, ("8g288",), "qdq")
    samples = [{"x": noise(1, 32, 9, 9, seed=seed)} for seed in range(2)]
    work.calibration = Calibration(samples, "tests", "key", held_out=0)
    right = Emitter.node

    def wrong(self: Emitter, role: Any, name: str, op: str, *rest: Any, **more: Any) -> Any:
        if op == "DequantizeLinear":
            rest = (rest[0], {"axis": 1})
        return right(self, role, name, op, *rest, **more)

    monkeypatch.setattr(Emitter, "node", wrong)
    passes = "leave-headroom,insert-qdq{activations=uint8}"
    assert "unit 'w': " in refused(passes, model, work)


@pytest.mark.parametrize("levels", ["free", "grid4", "grid8", "even"])
def test_faults_of_lower_channels(levels: str, tmp_path: Path, monkeypatch: Patch) -> None:
    work, model = context(tmp_path, sentences(count=4)), language()
    allocate = f"allocate-channels{{bits=3.2, levels={levels}}}"
    passes = f"{CALIBRATE}{BOTH},{allocate},quantize-channels"
    checked = validated(passes, model, work)
    assert set(checked.values()) == {"checked"}
    for where in (channel_codes, stored):
        replaced(monkeypatch, where, "pack_dense", flip)
        if where is stored:
            replaced(monkeypatch, where, "pack", flip)
    assert refused("lower-channels", model, work).startswith("lower-channels: unit '")


def test_a_dropped_outlier_entry(tmp_path: Path, monkeypatch: Patch) -> None:
    work, model = context(tmp_path, sentences(count=4)), language()
    allocate = "allocate-channels{bits=3.2, levels=even}"
    validated(f"{CALIBRATE}{BOTH},{allocate},quantize-channels", model, work)
    monkeypatch.setattr(
        split_product.KeptOutliers, "_with_entries", lambda self, product, *_: product
    )
    assert refused("lower-channels", model, work).startswith("lower-channels: unit 'up': 'a'")


# Folds


def test_a_permutation_not_applied_to_one_consumer(tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 64] y)
        { a = MatMul(x, first) b = Relu(a) c = MatMul(b, second) d = MatMul(b, third)
          y = Add(c, d) }""",
        {
            "first": noise(64, 96) * np.linspace(0.01, 1, 96, dtype=np.float32),
            "second": noise(96, 64, seed=1),
            "third": noise(96, 64, seed=2),
        },
    )
    right = fold_permutations._reorder
    monkeypatch.setattr(
        fold_permutations,
        "_reorder",
        lambda value, *rest: None if value.name == "third" else right(value, *rest),
    )
    message = refused(CALIBRATE + ROUND, model, context(tmp_path, vectors()))
    assert message.startswith("fold-permutations: unit 'third': MatMul")
    assert "'d' at [" in message


@pytest.mark.parametrize("skipped", ["key", "value", "up"])
def test_a_scale_folded_into_all_readers_but_one(
    skipped: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    right = folding._let_be

    def wrong(value: ir.Value, factors: np.ndarray) -> None:
        if value.name != skipped or factors.shape[0] == 1:
            right(value, factors)

    monkeypatch.setattr(folding, "_let_be", wrong)
    passes = f"{CALIBRATE},rewrite-crossquant{{alpha=0.3}}"
    message = refused(passes, outlier_model(), context(tmp_path, sentences()))
    assert message.startswith(f"rewrite-crossquant: unit '{skipped}': MatMul")


def test_a_norm_weight_folded_twice(tmp_path: Path, monkeypatch: Patch) -> None:
    right = folding._rescale_constant

    def twice(part: Any, factors: np.ndarray, names: Any) -> None:
        right(part, factors, names)
        if part.node.inputs[part.index].name.startswith("gain2"):
            right(part, factors, names)

    monkeypatch.setattr(folding, "_rescale_constant", twice)
    passes = f"{CALIBRATE},rewrite-crossquant{{alpha=0.3}}"
    message = refused(passes, outlier_model(), context(tmp_path, sentences()))
    assert message.startswith("rewrite-crossquant: unit '")
    assert "'r' at" in message or "'a' at" in message


# normalize and raise-opset


def test_an_attribute_that_changes_its_meaning(tmp_path: Path, monkeypatch: Patch) -> None:
    """Softmax took all axes from its own on until opset 13."""
    model = parse(
        """<ir_version: 8, opset_import: ["" : 12]>
        g (float[n, 8, 64] x) => (float[n, 8, 64] y)
        { a = MatMul(x, w) y = Softmax <axis = 1> (a) }""",
        {"w": noise(64, 64) / 8},
    )

    def wrong(graph: ir.Model, old: int, new: int) -> None:
        graph.opset_imports[""] = new

    monkeypatch.setattr(raise_opset, "_convert", wrong)
    work = PassContext(Runner(threads=1), table(), tmp_path)
    message = refused("normalize,raise-opset{version=13}", model, work)
    assert message.startswith("raise-opset: unit 'w': Softmax")


def test_weights_that_are_tied_but_not_equal(tmp_path: Path, monkeypatch: Patch) -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x) => (float[n, 64] y)
        { a = MatMul(x, v) y = Gemm <transB = 1> (a, w) }""",
        {"v": noise(64, 64), "w": noise(64, 64).T.copy()},
    )
    replaced(monkeypatch, normalize, "tie_weights", lambda changed, model: _untie(model))
    work = PassContext(Runner(threads=1), table(), tmp_path)
    message = refused("normalize", model, work)
    assert message.startswith("normalize: unit 'w': Gemm")


def _untie(model: ir.Model) -> bool:
    """Lets the readers of the turned weight read it straight."""
    (turn,) = [node for node in model.graph if node.op_type == "Transpose"]
    assert turn.inputs[0] is not None
    turn.outputs[0].replace_all_uses_with(turn.inputs[0])
    model.graph.remove(turn, safe=True)
    return True


# Rounding, and passes that only write notes


class Swapped(UnitArrays):
    """Rows of a class in another order than the one that is stored."""

    def row_classes(self, options: Any, counts: Any) -> list[RowClass]:
        right = super().row_classes(options, counts)
        return [dataclasses.replace(one, rows=one.rows[::-1].copy()) for one in right]


SIMULATION: dict[str, Callable[[Patch], None]] = {
    "swapped row class": lambda p: p.setattr(quantize_weights, "UnitArrays", Swapped),
    "codes of another sign": lambda p: replaced(
        p,
        quantize_weights.QuantizeWeights,
        "_round",
        lambda made, *_: dataclasses.replace(made, scales=-made.scales),
    ),
}


@pytest.mark.parametrize("fault", SIMULATION)
def test_faults_of_rounding(fault: str, tmp_path: Path, monkeypatch: Patch) -> None:
    SIMULATION[fault](monkeypatch)
    work = context(tmp_path, sentences())
    message = refused(CALIBRATE + ROUND, language(), work)
    assert message.startswith("quantize-weights: unit '")


def test_scales_that_are_not_what_is_stored(tmp_path: Path, monkeypatch: Patch) -> None:
    """tune-scales has to let the graph have what the tuned scales stand for."""
    monkeypatch.setattr(scales, "simulate", lambda unit, arrays: None)
    work = context(tmp_path, sentences())
    work.original = tmp_path / "original.onnx"
    ir.save(language(), work.original)
    monkeypatch.setattr("mpqc.passes.tune_scales.tune_scales._CLEAR", np.inf)
    message = refused(f"{CALIBRATE}{ROUND},tune-scales", language(), work)
    assert message.startswith("tune-scales: unit 'table': its weight at [")


def test_a_pass_that_should_only_write_notes(tmp_path: Path, monkeypatch: Patch) -> None:
    right = calibrate.Calibrate.run

    def wrong(self: calibrate.Calibrate, model: ir.Model, work: PassContext) -> bool:
        (unit, *_) = quantizable(model)
        unit.replace(unit.matrix() * (1 + 1e-6))
        return right(self, model, work)

    monkeypatch.setattr(calibrate.Calibrate, "run", wrong)
    message = refused(CALIBRATE, language(), context(tmp_path, sentences()))
    assert message == "calibrate may only write notes: constant 'table' changed"


# No false alarm


def test_every_pass_makes_a_promise() -> None:
    assert [one.name for one in all_passes() if one.promise is Promise.OTHER] == []


def branching() -> ir.Model:
    """A graph that torch cannot run block by block."""
    return parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 64] x, bool c) => (float[n, 64] y)
        { a = MatMul(x, w)
          y = If(c) <then_branch = one () => (float[n, 64] t) { t = Relu(a) },
                     else_branch = two () => (float[n, 64] e) { e = Tanh(a) }> }""",
        {"w": noise(64, 64)},
    )


def test_what_torch_cannot_run_is_said(tmp_path: Path) -> None:
    model = branching()
    work = rounded(model, tmp_path, ("4g64",))
    checked = validated("normalize,lower-matmul-nbits", model, work)
    why = "'If' runs a graph of its own"
    assert checked == {"normalize": why, "lower-matmul-nbits": why}


def test_a_fault_shows_where_torch_cannot_run(tmp_path: Path, monkeypatch: Patch) -> None:
    """Units are compared one by one, whatever else the graph holds."""
    model = branching()
    work = rounded(model, tmp_path, ("4g64",))
    replaced(monkeypatch, stored, "pack", flip)
    assert "unit 'w': 'a' at" in refused("lower-matmul-nbits", model, work)


HALVES = """<ir_version: 10, opset_import: ["" : 17]>
    g (float16[n, 64] x) => (float16[n, 64] y)
    { a = MatMul(x, first) r = Relu(a) b = Gemm(r, second, c) s = Softmax(b)
      d = MatMul(s, third) y = Add(d, x) }"""
BRAIN = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 64] y)
    { f = Cast <to = 1> (first) a = MatMul(x, f) r = Relu(a)
      t = Cast <to = 1> (second) b = MatMul(r, t) y = Add(b, x) }"""


def narrow(kind: str) -> ir.Model:
    """A model whose weights, and perhaps activations, have 16 bits."""
    dtype = np.float16 if kind == "float16" else ml_dtypes.bfloat16
    weights = {
        "first": noise(64, 128, seed=1) / 8,
        "second": noise(128, 64, seed=2) / 10,
        "third": noise(64, 64, seed=3) / 8,
        "c": noise(64, seed=4) / 8,
    }
    if kind != "float16":
        weights = {name: weights[name] for name in ("first", "second")}
    model = parse(HALVES if kind == "float16" else BRAIN, weights)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        tensor = ir.Tensor(value.const_value.numpy().astype(dtype), name=value.name)
        value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    return model


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("cross", ["", ",rewrite-crossquant{alpha=0.4}"])
def test_no_false_alarm_in_half_precision(kind: str, cross: str, tmp_path: Path) -> None:
    samples = vectors(dtype=np.float16 if kind == "float16" else np.float32)
    work = context(tmp_path, samples)
    passes = f"{CALIBRATE}{cross}{ROUND},lower-matmul-nbits"
    assert set(validated(passes, narrow(kind), work).values()) == {"checked"}
    assert work.report["lower-matmul-nbits"]["lowered"] > 0


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_flipped_bit_of_eight_in_half_precision(
    kind: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    model = narrow(kind)
    work = rounded(model, tmp_path, ("8g64",))
    replaced(monkeypatch, stored, "pack", flip)
    assert "unit 'first': 'a' at" in refused("lower-matmul-nbits", model, work)


# What graphs are compared on


def test_samples_are_cut_where_tokens_are_counted() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[b, t] ids, int64[b, s] mask, float[b, 3, s] past, float[b, 100] fixed)
        => (int64[b, t] y) { y = Identity(ids) }""",
        {},
    )
    shapes = {"ids": (1, 100), "mask": (1, 100), "past": (1, 3, 100), "fixed": (1, 100)}
    dtypes = {"ids": np.int64, "mask": np.int64}
    feeds = {
        name: np.ones(dims, dtypes.get(name, np.float32)) for name, dims in shapes.items()
    }
    (found,) = chosen_feeds(model, Calibration([feeds, feeds, feeds], "ones", "key"), 0)
    dims = {name: array.shape for name, array in found.items()}
    assert dims == {"ids": (1, 24), "mask": (1, 24), "past": (1, 3, 24), "fixed": (1, 100)}


def test_what_is_no_text_is_not_cut(tmp_path: Path) -> None:
    (found,) = chosen_feeds(vector(), vectors(length=40), 0)
    assert found["x"].shape == (40, 64)


def test_noise_stands_in_for_samples() -> None:
    (found,) = chosen_feeds(language(), None, 0)
    np.testing.assert_array_equal(found["ids"], np.ones((1, 8), np.int64))


def test_moved_and_scaled_channels_are_told_from_wrong_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, 7, 12, generator=generator)
    exact[..., 3] = 0
    moved = exact[..., torch.randperm(12, generator=generator)] * torch.rand(12).add(0.1)
    assert is_rearranged(exact, moved, 1e-4)
    assert not is_rearranged(exact, -exact, 1e-4)
    wrong = moved.clone()
    wrong[0, 0, 5] += 0.01
    assert not is_rearranged(exact, wrong, 1e-4)
    twice = exact.clone()
    twice[..., 4] = exact[..., 5]  # one channel is there twice, another is lost
    assert not is_rearranged(exact, twice, 1e-4)
    assert find_difference("x", exact, exact + 1e-6, 1e-4) is None
    found = find_difference("x", exact, wrong.reshape(7, 24), 1e-4)
    assert found is not None
    assert str(found) == "'x' is shape [7, 24], expected shape [2, 7, 12]"
