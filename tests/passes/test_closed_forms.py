"""Passes that compute numbers, on small models, against closed forms written in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mpqc.ir import (
    BlockId,
    Budgeted,
    Calibrated,
    Calibration,
    Feeds,
    QuantSpec,
    Unit,
    annotate,
    quantizable,
    write_model,
)
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.squares import read_square

from .rounded import noise, parse
from .swept import CALIBRATE, VOCABULARY, context, run, sentences

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.ort]

TABLE, HEAD = noise(VOCABULARY, 64, seed=1), noise(64, VOCABULARY, seed=2) / 5
TABLE_AND_HEAD = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[batch, n] ids) => (float[batch, n, 80] logits)
    { [lookup] x = Gather(table, ids)
      [head] logits = MatMul(x, head) }"""
PRODUCT = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 64] y) { [product] y = MatMul(x, w) }"""


def table_and_head() -> ir.Model:
    return parse(TABLE_AND_HEAD, {"table": TABLE, "head": HEAD})


def units(model: ir.Model) -> dict[str, Unit]:
    return {unit.name: unit for unit in quantizable(model)}


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True))


def test_calibrate_gathers_the_moments_of_a_table_and_a_head(tmp_path: Path) -> None:
    """Where the output of a product is the logits, no label has to be drawn.

    rows[v] = E[p_v (1 - p_v)], and the weight of a token is c_t = sum_v p_v (1 - p_v), scaled
    to mean 1 in its sample. Rows of the table count as often as they are read and predicted. A
    tenth of both is spread over all rows.
    """
    samples = sentences()
    work = context(tmp_path, samples)
    run(CALIBRATE, table_and_head(), work)
    ids = np.stack([feed["ids"][0] for feed in samples.training])
    x = TABLE[ids].astype(np.float64)
    shares = softmax(x @ HEAD)
    spread = shares * (1 - shares)
    weights = spread.sum(-1) / spread.sum(-1).mean(-1, keepdims=True)
    hessian = np.einsum("st,sti,stj->ij", weights.clip(0.05, 4), x, x) / ids.size
    np.testing.assert_allclose(
        read_square(work.arrays, "head/0/hessian"), hessian, rtol=1e-3, atol=1e-4
    )
    rows = spread.mean((0, 1))
    np.testing.assert_allclose(
        work.arrays.get("head/0/rows"), 0.9 * rows + 0.1 * rows.mean(), rtol=1e-4
    )
    read = np.bincount(ids.ravel(), minlength=VOCABULARY) / ids.size
    frequency = (read + shares.mean((0, 1))) / 2
    np.testing.assert_allclose(
        work.arrays.get("table/0/rows"), 0.9 * frequency + 0.1 / VOCABULARY, rtol=1e-4
    )
    np.testing.assert_allclose(work.arrays.get("head/0/low"), x.min((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(work.arrays.get("head/0/high"), x.max((0, 1)), rtol=1e-5)


@pytest.mark.parametrize(("budget", "option"), [(2.5, 0), (4.5, 1), (8.5, 2)])
def test_sensitivity_is_the_quadratic_form_of_the_stored_error(
    budget: float, option: int, tmp_path: Path
) -> None:
    """loss[n] = 1/2 rows[n] d_n^T H d_n for the error d_n of GPTQ without refinements."""
    work, model = context(tmp_path, sentences()), table_and_head()
    run(f"{CALIBRATE},annotate-sensitivity", model, work)
    before = {name: unit.matrix().astype(np.float64) for name, unit in units(model).items()}
    steps = (
        f"allocate-bits{{budget={budget}, method=uniform}},quantize-weights{{refinements=0}}"
    )
    run(steps, model, work)
    for name, unit in units(model).items():
        error = unit.matrix() - before[name]
        rows = work.arrays.get(f"{name}/0/rows")
        hessian = read_square(work.arrays, f"{name}/0/hessian")
        wanted = 0.5 * rows * np.einsum("ni,ij,nj->n", error, hessian, error)
        found = work.arrays.get(f"{name}/loss")[:, option]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-9, err_msg=name)


def test_tuned_scales_approach_least_squares(tmp_path: Path) -> None:
    """With one scale per row, the best scale is <x q, x w> / <x q, x q> for its codes q."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((44, 32, 64)).astype(np.float32)
    weight = noise(64, 64, seed=3)
    codes = np.rint(weight.T / 0.8).clip(-2, 1)
    x, exact = inputs.reshape(-1, 64), inputs.reshape(-1, 64) @ weight
    coded = x @ codes.T
    best = (coded * exact).sum(0) / np.square(coded).sum(0)
    work, model = rounded(tmp_path, weight, codes, 1.1 * best, inputs)
    run("tune-scales{rate=0.01}", model, work)
    facts = work.report["tune-scales"]
    assert facts["kept"]
    tuned = work.arrays.get("w/scales/0")[:, 0]
    off = np.abs(tuned / best - 1)
    assert off.max() < 0.05, "half of the distance at the start"
    assert off.mean() < 0.02
    np.testing.assert_allclose(units(model)["w"].matrix(), codes * tuned[:, None], rtol=1e-3)
    held_out = np.concatenate([feed["x"] for feed in samples_of(work).kept_back])
    wanted = half_squared_errors(held_out, weight, units(model)["w"].matrix().T)
    assert facts["after"] == pytest.approx(wanted, rel=0.01)
    least = half_squared_errors(held_out, weight, (codes * best[:, None]).T)
    assert facts["after"] == pytest.approx(least, rel=0.02)


def rounded(
    folder: Path, weight: np.ndarray, codes: np.ndarray, scales: np.ndarray, inputs: np.ndarray
) -> tuple[PassContext, ir.Model]:
    """Returns a product of 2-bit codes, one scale per row, and the context to tune it in."""
    feeds: list[Feeds] = [{"x": one} for one in inputs]
    work = context(folder, Calibration(feeds, "noise", "tuned", held_out=4))
    work.original = folder / "original.onnx"
    write_model(parse(PRODUCT, {"w": weight}), work.original)
    model = parse(PRODUCT, {"w": weight})
    work.arrays.put("w/codes/0", codes.astype(np.int8))
    work.arrays.put("w/scales/0", scales.astype(np.float16)[:, None])
    unit = units(model)["w"]
    unit.replace((codes * scales.astype(np.float16)[:, None]).astype(np.float32))
    annotate(unit.anchor, BlockId(0))
    annotate(unit.notes, QuantSpec("w", ("2g64",), (64,), "nearest"))
    annotate(model, Calibrated("key", "noise", 40, 1280, "regression", "y"))
    return work, model


def samples_of(work: PassContext) -> Calibration:
    assert work.calibration is not None
    return work.calibration


def half_squared_errors(x: np.ndarray, weight: np.ndarray, stored: np.ndarray) -> float:
    """Half the squared error of the outputs relative to their squares, the mean of samples."""
    wanted, got = (x.reshape(-1, 32, 64) @ one for one in (weight, stored))
    parts = np.square(got - wanted).sum((1, 2)) / np.square(wanted).sum((1, 2))
    return float(parts.mean() / 2)


def test_verification_measures_the_divergence_of_the_softmax(tmp_path: Path) -> None:
    """kl = E_t[sum_v p_v log(p_v / q_v)] over held-out tokens; top1 compares the largest."""
    samples = replace(sentences(), held_out=2)
    work, model = context(tmp_path, samples), table_and_head()
    work.original = tmp_path / "original.onnx"
    write_model(model, work.original)
    changed = HEAD + noise(*HEAD.shape, seed=9) / 25
    units(model)["head"].replace(changed.T)
    annotate(model, Calibrated("key", "text", 4, 96, "logits", "logits"))
    annotate(model, Budgeted(3.5, 3.5, 3.6, TABLE.size + HEAD.size, 1.0))
    run("verify-numerics{samples=2, most=2}", model, work)
    x = np.concatenate([TABLE[feed["ids"][0]] for feed in samples.kept_back]).astype(
        np.float64
    )
    before, after = softmax(x @ HEAD), softmax(x @ changed)
    facts = work.report["verify-numerics"]
    assert facts["tokens"] == len(x)
    assert facts["kl"] == pytest.approx(
        (before * np.log(before / after)).sum(1).mean(), rel=1e-4
    )
    assert facts["top1"] == (before.argmax(1) == after.argmax(1)).mean()
    assert 0 < facts["top1"] < 1
