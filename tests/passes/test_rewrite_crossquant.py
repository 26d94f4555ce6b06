"""rewrite-crossquant on small models with outlier channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from mpqc.backend.onnxruntime import open_session
from mpqc.ir import ColumnScales, InputError, UsageError, listing, note_of, quantizable
from mpqc.ir.analysis.storage import stored
from mpqc.passes.engine.numerics.activations import block_steps, cross_steps, rounded
from mpqc.passes.engine.numerics.divergence import kl_divergence
from mpqc.passes.engine.numerics.pair_sums import overflowing_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.pipeline.pipeline import Pipeline
from mpqc.passes.engine.statistics.moved import move, read_moved, replace_moved
from mpqc.passes.engine.statistics.quadratic import Quadratic

from .outliers import outlier_model
from .rounded import noise, parse
from .swept import CALIBRATE, context, run, sentences, vectors

pytestmark = [pytest.mark.ort, pytest.mark.usefixtures("one_thread")]

CROSS = "rewrite-crossquant"


@pytest.fixture(scope="module")
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: the model is calibrated once."""
    return tmp_path_factory.mktemp("crossquant")


def rewritten(options: str, folder: Path) -> tuple[ir.Model, PassContext]:
    work = context(folder, sentences())
    model = run(f"{CALIBRATE},{CROSS}{{{options}}}", outlier_model(), work)
    return model, work


def logits(model: ir.Model) -> np.ndarray:
    with open_session(model, threads=1) as session:
        found = [session.run(feed)["logits"] for feed in sentences(seed=5).feeds]
    return np.concatenate(found)


def divergence(model: ir.Model) -> float:
    return float(kl_divergence(logits(outlier_model()), logits(model)).mean())


def facts(work: PassContext) -> dict[str, Any]:
    found: dict[str, Any] = work.report[CROSS]
    return found


# The fold


@pytest.mark.parametrize("alpha", ["0", "0.15", "search"])
def test_the_fold_changes_no_output(alpha: str, tmp_path: Path) -> None:
    model, work = rewritten(f"alpha={alpha}", tmp_path)
    before, after = logits(outlier_model()), logits(model)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=2e-5)
    assert set(facts(work)["scaled"]) == {"h", "flat", "r", "c", "f"}


def test_powers_of_two_change_not_a_bit(tmp_path: Path) -> None:
    model, work = rewritten("alpha=0.15, exact=true", tmp_path)
    np.testing.assert_array_equal(logits(model), logits(outlier_model()))
    original = {unit.name: unit.matrix() for unit in quantizable(outlier_model())}
    for site in facts(work)["scaled"].values():
        for name in site["units"]:
            unit = next(one for one in quantizable(model) if one.name == name)
            assert not np.array_equal(unit.matrix(), original[name])
            note = note_of(unit.notes, ColumnScales)
            assert note is not None
            assert note.alpha == 0.15


def test_one_factor_for_all_that_read_an_activation(tmp_path: Path) -> None:
    model, _ = rewritten("alpha=0.15", tmp_path)
    before = {unit.name: unit.matrix() for unit in quantizable(outlier_model())}
    after = {unit.name: unit.matrix() for unit in quantizable(model)}
    ratios = {name: after[name] / before[name] for name in after}
    np.testing.assert_allclose(ratios["query"][0], ratios["key"][0], rtol=1e-5)
    # The rows of value, each of them as a whole, are divided for what reads the attention.
    value = ratios["value"] / ratios["value"][:, :1]
    wanted = np.tile(ratios["query"][0] / ratios["query"][0, 0], (len(value), 1))
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    # up makes what down reads, and reads what the norm makes: a factor for each of its axes.
    gate, up = ratios["gate"][0], ratios["up"]
    np.testing.assert_allclose(up / gate, np.repeat(up[:, :1] / gate[0], 64, 1), rtol=1e-4)
    np.testing.assert_allclose(up[:, 0] / gate[0] * ratios["down"][0], 1, rtol=1e-4)


def test_what_was_calibrated_goes_on_holding(tmp_path: Path) -> None:
    """The same rounding errors, seen through the scales, are predicted to cost the same."""
    work = context(tmp_path, sentences())
    model = run(CALIBRATE, outlier_model(), work)
    before = {}
    for unit in quantizable(model):
        weight = torch.from_numpy(unit.matrix())
        error = 0.01 * torch.randn(weight.shape, generator=torch.manual_seed(1))
        loss = Quadratic.of(unit, work.arrays).loss(weight, weight + error)
        before[unit.name] = weight, error, loss
    run(f"{CROSS}{{alpha=0.3}}", model, work)
    for unit in quantizable(model):
        weight, error, loss = before[unit.name]
        now = torch.from_numpy(unit.matrix())
        moved = error * (now / weight)
        found = Quadratic.of(unit, work.arrays).loss(now, now + moved)
        torch.testing.assert_close(found, loss, rtol=2e-3, atol=1e-9)


def test_the_stats_hold_for_the_rewritten_graph(tmp_path: Path) -> None:
    """Calibrating the folded model anew gives what the scaled arrays say."""
    model, work = rewritten("alpha=0.15", tmp_path)
    scaled = {
        (unit.name, what): read_moved(unit, work.arrays, 0, what)
        for unit in quantizable(model)
        for what in ("low", "high", "rows", "hessian", "activation")
        if unit.name != "table"
    }
    # Whose rows were divided has other gradients at its output, so other weights of tokens.
    divided = {name for site in facts(work)["scaled"].values() for name in site["into"]}
    run("calibrate", model, work)
    for (name, what), array in scaled.items():
        unit = next(one for one in quantizable(model) if one.name == name)
        anew = read_moved(unit, work.arrays, 0, what)
        if what == "activation":  # weighed by token, and only measured on some of them
            assert 0.5 < array.mean() / anew.mean() < 2
        elif what != "hessian" or name not in divided:
            tolerance = 0.02 * float(np.abs(anew).max())
            np.testing.assert_allclose(array, anew, rtol=0.02, atol=tolerance)


def test_arrays_can_move_and_grow_and_be_replaced(tmp_path: Path) -> None:
    work = context(tmp_path, sentences())
    model = run(f"{CALIBRATE},{CROSS}{{alpha=0.3}}", outlier_model(), work)
    unit = next(one for one in quantizable(model) if one.name == "down")
    order = np.random.default_rng(0).permutation(unit.shape[1]).astype(np.int32)
    before = {what: read_moved(unit, work.arrays, 0, what) for what in ("high", "hessian")}
    move(unit, work.arrays, "columns", order)
    np.testing.assert_allclose(read_moved(unit, work.arrays, 0, "high"), before["high"][order])
    found = read_moved(unit, work.arrays, 0, "hessian")
    np.testing.assert_allclose(found, before["hessian"][np.ix_(order, order)], rtol=1e-5)
    fresh = np.linspace(1, 2, unit.shape[1], dtype=np.float32)
    replace_moved(unit, work.arrays, 0, "activation", fresh)
    np.testing.assert_allclose(
        read_moved(unit, work.arrays, 0, "activation"), fresh, rtol=1e-5
    )


def test_calibration_keeps_the_range_of_every_column(tmp_path: Path) -> None:
    work = context(tmp_path, vectors())
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, 64] x) => (float[n, 96] y)'
        "{ y = MatMul(x, w) }",
        {"w": noise(64, 96)},
    )
    run(CALIBRATE, model, work)
    (unit,) = quantizable(model)
    assert work.calibration is not None
    seen = np.concatenate([feed["x"] for feed in work.calibration.training])
    np.testing.assert_array_equal(read_moved(unit, work.arrays, 0, "low"), seen.min(axis=0))
    np.testing.assert_array_equal(read_moved(unit, work.arrays, 0, "high"), seen.max(axis=0))


# What it is good for


def test_int8_loses_at_most_a_third_with_searched_scales(tmp_path: Path) -> None:
    plain, _ = rewritten("mode=dynamic, alpha=1", tmp_path)
    folded, work = rewritten("mode=dynamic, alpha=search", tmp_path)
    assert divergence(folded) < divergence(plain) / 3
    report = facts(work)
    assert set(report["scaled"]) >= {"h", "r", "c", "f"}
    assert all(s["predicted"] < s["predicted_plain"] for s in report["scaled"].values())
    assert set(report["int8"]) == {unit.name for unit in quantizable(outlier_model())} - {
        "table"
    }
    assert "looked up" in report["float"]["table"]


def test_the_kernel_shrinks_and_the_report_says_so(tmp_path: Path) -> None:
    _, work = rewritten("alpha=0.15", tmp_path)
    kernels = facts(work)["kernels"]
    loud = [one for one in kernels["activations"] if one["activation"] in "hrc"]
    assert len(loud) == 3
    for one in loud:
        assert one["per_token"] > 0.15
        assert one["crossquant"] < one["per_token"] / 4
        assert one["after"] <= one["crossquant"]
    assert kernels["after"] <= kernels["crossquant"] < kernels["per_token"]


def test_emulation_counts_the_columns_of_the_tokens_at_hand(tmp_path: Path) -> None:
    """As published: what calibration saw elsewhere makes steps larger, not smaller."""
    _, work = rewritten("mode=emulate, samples=1", tmp_path)
    kernels = facts(work)["kernels"]
    for one in kernels["activations"]:
        assert one["after"] <= one["crossquant"]
    assert kernels["after"] < kernels["crossquant"]


def test_search_finds_no_scales_where_none_help(tmp_path: Path) -> None:
    """Columns of one size: whatever is scaled, rounding the weights gets worse."""
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[n, 64] x) => (float[n, 64] y)
        { a = MatMul(x, first) b = Relu(a) y = MatMul(b, second) }"""
    weights = {"first": noise(64, 64, seed=1), "second": noise(64, 64, seed=2)}
    work = context(tmp_path, vectors())
    run(f"{CALIBRATE},{CROSS}{{alpha=search, bits=4}}", parse(text, weights), work)
    (site,) = [*facts(work)["scaled"].values()] or [{"predicted": 1, "predicted_plain": 1}]
    assert 0.8 < site["predicted"] / site["predicted_plain"] <= 1


def test_small_gains_scale_nothing(tmp_path: Path) -> None:
    gains = rewritten("alpha=search, bits=4", tmp_path / "any")[1]
    shares = {
        name: 1 - one["predicted"] / one["predicted_plain"]
        for name, one in facts(gains)["scaled"].items()
    }
    assert len(shares) > 1
    least = sorted(shares.values())[-2] + 1e-6
    clear = rewritten(f"alpha=search, bits=4, least={least}", tmp_path / "clear")[1]
    assert facts(clear)["scaled"].keys() == {max(shares, key=lambda name: shares[name])}
    small = {name for name, share in shares.items() if share < least}
    assert small <= facts(clear)["better_plain"].keys()


# Int8 products


@pytest.mark.parametrize("bits", [4, 8])
def test_int8_products_compute_what_rounding_says(bits: int, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 17]>
        g (float[b, n, 65] x) => (float[b, n, 96] y) { y = MatMul(x, w) }"""
    weight = noise(65, 96, seed=3)
    work = context(tmp_path, vectors())
    feeds = [{"x": noise(2, 9, 65, seed=at)} for at in range(4)]
    work.calibration = type(work.calibration)(feeds, "noise", "k")  # type: ignore
    model = parse(text, {"w": weight})
    run(f"{CALIBRATE},{CROSS}{{mode=dynamic, alpha=1, bits={bits}}}", model, work)
    before = parse(text, {"w": weight})
    x = noise(3, 5, 65, seed=77)
    with open_session(model, threads=1) as session:
        found = session.run({"x": x})["y"]
    flat = torch.from_numpy(x.reshape(-1, 65))
    tokens = rounded(flat, block_steps(flat, 0))
    codes = _stored_codes(model, bits)
    assert not overflowing_rows(codes.T.astype(np.int8)).any()
    scales = next(v for n, v in model.graph.initializers.items() if n.endswith("scales"))
    assert scales.const_value is not None
    matrix = codes * scales.const_value.numpy().astype(np.float32)
    np.testing.assert_allclose(
        found.reshape(-1, 96), tokens.numpy() @ matrix, rtol=1e-4, atol=1e-4
    )
    (unit,), (original,) = stored(model).units, quantizable(before)
    assert unit.name == original.name
    assert unit.weights == weight.size
    assert [width for width, _ in unit.widths] == [pytest.approx(bits, rel=0.02)]
    assert unit.bytes < weight.size * bits / 8 * 1.06 + 400


def _stored_codes(model: ir.Model, bits: int) -> np.ndarray:
    """Returns the codes that ONNX Runtime sees once it has loaded the model."""
    node = next(one for one in model.graph if one.op_type == "MatMulInteger")
    assert node.inputs[1] is not None
    copy = model.clone()
    values = {str(v.name): v for one in copy.graph for v in one.outputs}
    values |= copy.graph.initializers
    wanted = values[str(node.inputs[1].name)]
    wanted.type, wanted.shape = ir.TensorType(ir.DataType.INT8), ir.Shape([65, 96])
    if wanted.const_value is not None:
        return np.asarray(wanted.const_value.numpy(), np.float32)
    copy.graph.outputs.append(wanted)
    content = ir.to_proto(copy).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run([wanted.name], {"x": np.zeros((1, 1, 65), np.float32)})
    assert np.abs(found.astype(int)).max() <= 2 ** (bits - 1)
    return np.asarray(found, np.float32)


def test_a_gemm_keeps_its_factors_and_its_bias(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]>
        g (float[n, 64] x) => (float[n, 96] y)
        { y = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (x, w, b) }"""
    weights = {"w": noise(96, 64, seed=3), "b": noise(96, seed=4)}
    work = context(tmp_path, vectors())
    model = run(f"{CALIBRATE},{CROSS}{{mode=dynamic, alpha=1}}", parse(text, weights), work)
    x = noise(7, 64, seed=8)
    with open_session(model, threads=1) as session:
        found = session.run({"x": x})["y"]
    wanted = 0.5 * x @ weights["w"].T + 2 * weights["b"]
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.abs(wanted).max())


# Emulation


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("alpha", [0.0, 0.15, 1.0])
def test_emulation_is_the_formula(alpha: float, opset: int, tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 64] x) => (float[n, 96] y) {{ y = MatMul(x, w) }}"""
    weight = noise(64, 96, seed=3)
    work = context(tmp_path, vectors())
    model = run(
        f"{CALIBRATE},{CROSS}{{mode=emulate, alpha={alpha}}}", parse(text, {"w": weight}), work
    )
    x = noise(11, 64, seed=8) * np.exp(noise(64, seed=9))
    with open_session(model, threads=1) as session:
        found = session.run({"x": x})["y"]
    seen = torch.from_numpy(x)
    wanted = rounded(seen, cross_steps(seen, alpha)).numpy() @ weight
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=2e-3 * np.abs(wanted).max())
    assert np.abs(found - x @ weight).max() > 1e-3


def test_emulated_crossquant_beats_emulated_per_token(tmp_path: Path) -> None:
    losses = [
        divergence(rewritten(f"mode=emulate, alpha={a}", tmp_path)[0]) for a in (1, 0.15)
    ]
    assert losses[1] < losses[0] / 10


# Together with the default method


def test_the_preset_runs_end_to_end(tmp_path: Path) -> None:
    work = context(tmp_path, sentences())
    text = (
        f"{CALIBRATE},{CROSS}{{alpha=search, bits=4}},annotate-sensitivity,"
        "allocate-bits{budget=4.6, fold=true},fold-permutations,quantize-weights,"
        "lower-matmul-nbits"
    )
    model = run(text, outlier_model(), work)
    assert stored(model).bits_per_weight <= 4.6
    plain = run(text.replace(f"{CROSS}{{alpha=search, bits=4}},", ""), outlier_model(), work)
    assert divergence(model) < 1.2 * divergence(plain)


def test_weights_of_four_bits_are_better_off_too(tmp_path: Path) -> None:
    plain, _ = rewritten("mode=dynamic, alpha=1, bits=4", tmp_path)
    folded, _ = rewritten("mode=dynamic, alpha=search, beta=search, bits=4", tmp_path)
    assert divergence(folded) < divergence(plain) / 3


# Where it cannot work


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("mode=foldd", "no mode 'foldd'"),
        ("alpha=serch", "a number or search"),
        ("alpha=1.5", "in 0 to 1"),
        ("mode=emulate, alpha=search", "takes a number"),
        ("mode=emulate, explicit=true", "mode=emulate has no explicit"),
        ("mode=fold, activation-bits=4", "mode=fold has no activation-bits"),
        ("mode=dynamic, activations=group", "mode=dynamic has no activations"),
        ("mode=dynamic, bits=3", "no weights of 3 bits"),
        ("activations=rows", "no activations 'rows'"),
        ("samples=0", "at least one sample"),
        ("alpha=search, least=1.0", "in 0 to 1"),
        ("least=0.05", "is for a search"),
        ("mode=dynamic, optional=true", "mode=dynamic has no optional"),
    ],
)
def test_what_makes_no_sense_is_refused(options: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Pipeline.parse(f"{CROSS}{{{options}}}")


CLOSED = """<ir_version: 9, opset_import: ["" : 18]> g (float[n, 64] x) => (float[n, 64] y)
    { a = MatMul(x, first) b = Tanh(a) y = MatMul(b, second) }"""
SQUARES = {"first": noise(64, 64, seed=1) / 8, "second": noise(64, 64, seed=2)}


def test_a_model_without_producers_is_an_error_that_says_why(tmp_path: Path) -> None:
    work = context(tmp_path, vectors())
    with pytest.raises(InputError, match=r"no producer .* 'x' is given, not made") as error:
        run(f"{CALIBRATE},{CROSS}", parse(CLOSED, SQUARES), work)
    assert "explicit=true" in str(error.value.hint)


def test_a_model_without_producers_may_stay_as_it_is(tmp_path: Path) -> None:
    work = context(tmp_path, vectors())
    model = parse(CLOSED, SQUARES)
    before = listing(model)
    run(f"{CALIBRATE},{CROSS}{{alpha=search, optional=true}}", model, work)
    assert facts(work)["scaled"] == {}
    assert facts(work)["closed"].keys() == {"x", "b"}
    plain = run(CALIBRATE, parse(CLOSED, SQUARES), work)
    assert listing(model) == listing(plain) != before


def test_explicit_division_serves_where_nothing_else_does(tmp_path: Path) -> None:
    work = context(tmp_path, vectors())
    model = run(f"{CALIBRATE},{CROSS}{{explicit=true}}", parse(CLOSED, SQUARES), work)
    assert [node.op_type for node in model.graph].count("Mul") == 2
    x = noise(7, 64, seed=8)
    with open_session(model, threads=1) as session:
        found = session.run({"x": x})["y"]
    wanted = np.tanh(x @ SQUARES["first"]) @ SQUARES["second"]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_search_needs_samples(tmp_path: Path) -> None:
    work = context(tmp_path, sentences())
    model = run(CALIBRATE, outlier_model(), work)
    work.calibration = None
    with pytest.raises(UsageError, match="needs samples"):
        run(f"{CROSS}{{alpha=search}}", model, work)
    run(f"{CROSS}{{alpha=0.15}}", model, work)
    np.testing.assert_allclose(logits(model), logits(outlier_model()), rtol=1e-4, atol=2e-5)


LEARNED = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[n, 64] x) => (float[n, 64] y)
    { a = MatMul(x, w)
      q = MatMul(latents, v)
      s = ReduceMean <keepdims = 1> (q)
      b = Mul(a, s)
      y = MatMul(b, u) }"""


@pytest.mark.parametrize("mode", ["mode=fold, alpha=search", "mode=emulate", "mode=dynamic"])
def test_learned_queries_are_activations_too(mode: str, tmp_path: Path) -> None:
    """What a product multiplies may be a constant, which no run of the model hands out."""
    given = {"w": noise(64, 64) / 8, "v": noise(64, 64, seed=1) / 8}
    given |= {"u": noise(64, 64, seed=2) / 8, "latents": noise(16, 64, seed=3)}
    work = context(tmp_path, vectors())
    model = run(f"{CALIBRATE},{CROSS}{{{mode}}}", parse(LEARNED, given), work)
    with open_session(model, threads=1) as session:
        assert np.isfinite(session.run({"x": noise(5, 64, seed=4)})["y"]).all()


@pytest.mark.parametrize("mode", ["emulate", "dynamic"])
def test_an_opset_without_round_is_told(mode: str, tmp_path: Path) -> None:
    model = outlier_model()
    work = context(tmp_path, sentences())
    run(CALIBRATE, model, work)
    model.graph.opset_imports[""] = 10
    with pytest.raises(InputError, match="has no Round"):
        run(f"{CROSS}{{mode={mode}}}", model, work)
