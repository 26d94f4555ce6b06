"""convert-floats: what computes in float16 afterwards, what does not, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session
from mpqc.backend.runner import Runner
from mpqc.ir import Calibration, UsageError
from mpqc.passes.convert_floats.convert_floats import ConvertFloats
from mpqc.passes.convert_floats.rounding import as_half, underflows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.validation.lockstep import Lockstep

from .rounded import noise, parse

pytestmark = pytest.mark.ort
HEADER = '<ir_version: 10, opset_import: ["" : 21]> '
Feeds = dict[str, np.ndarray]


def convert(
    text: str, weights: Feeds, feeds: Feeds, tmp_path: Path, step: ConvertFloats | None = None
) -> tuple[ir.Model, ir.Model, dict[str, Any]]:
    """Returns the graph before, the one after, and the report."""
    before = parse(HEADER + text, weights)
    model = before.clone()
    samples = Calibration([feeds], "tests", "key", held_out=0)
    table = load("tensorrt")
    context = PassContext(Runner.of(table, threads=1), table, tmp_path, calibration=samples)
    (step or ConvertFloats()).run(model, context)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return before, model, context.report["convert-floats"]


def by_the_standard(model: ir.Model, feeds: Feeds) -> list[np.ndarray]:
    """Returns the outputs in real float16, which ONNX Runtime's CPU does not compute in."""
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(model))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found: list[np.ndarray] = evaluator.run(None, feeds)  # type: ignore[assignment]
    return found


def outputs(model: ir.Model, feeds: Feeds) -> list[np.ndarray]:
    with open_session(model, threads=1) as session:
        return list(session.run(feeds).values())


def close(before: ir.Model, after: ir.Model, feeds: Feeds, atol: float) -> None:
    np.testing.assert_allclose(outputs(after, feeds)[0], outputs(before, feeds)[0], atol=atol)


def types(model: ir.Model) -> dict[str, str]:
    return {
        str(node.name): str(node.outputs[0].dtype)
        for node in model.graph
        if node.op_type != "Cast"
    }


def test_a_graph_computes_in_float16_between_its_inputs_and_outputs(tmp_path: Path) -> None:
    text = """g (float[n, 32] x) => (float[n, 16] y, float[n, 32] r) {
        [first] a = MatMul(x, w) [second] b = Add(a, c) [third] r = Relu(b)
        [fourth] y = MatMul(r, v) }"""
    weights = {"w": noise(32, 32), "c": noise(32, seed=1), "v": noise(32, 16, seed=2)}
    feeds = {"x": noise(5, 32, seed=3)}
    before, after, report = convert(text, weights, feeds, tmp_path)
    assert set(types(after).values()) == {"FLOAT16"}
    assert report["kept"] == 0
    assert report["casts"] == 3
    assert [str(value.dtype) for value in after.graph.inputs] == ["FLOAT"]
    assert [str(value.name) for value in after.graph.outputs] == ["y", "r"]
    assert {str(value.dtype) for value in after.graph.outputs} == {"FLOAT"}
    assert {str(one.dtype) for one in after.graph.initializers.values()} == {"FLOAT16"}
    assert set(after.graph.initializers) == {"w", "c", "v"}
    for exact, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(found, exact, atol=0.05)


def test_squares_that_leave_the_range_stay(tmp_path: Path) -> None:
    """A norm in its parts: 300^2 is beyond float16, and so is the mean of such squares."""
    text = """g (float[n, 32] x) => (float[n, 32] y) {
        two = Constant <value = float {2.0}> () [square] s = Pow(x, two)
        axes = Constant <value = int64[1] {-1}> () [mean] m = ReduceMean(s, axes)
        [root] r = Sqrt(m) [norm] d = Div(x, r) [layer] y = MatMul(d, w) }"""
    feeds = {"x": 300 * noise(4, 32)}
    before, after, report = convert(text, {"w": noise(32, 32, seed=1)}, feeds, tmp_path)
    found = types(after)
    assert found["square"] == found["mean"] == "FLOAT"
    assert found["layer"] == "FLOAT16"
    assert "sums of squares" in report["reasons"]["square"]
    close(before, after, feeds, atol=0.02)


def test_numbers_may_be_as_much_larger_as_the_margin_says(tmp_path: Path) -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { [double] y = Add(x, x) }"
    feeds = {"x": np.full((2, 4), 20_000, np.float32)}
    assert convert(text, {}, feeds, tmp_path, ConvertFloats(margin=1))[2]["kept"] == 0
    assert convert(text, {}, feeds, tmp_path, ConvertFloats(margin=2))[2]["kept"] == 1


@pytest.mark.parametrize("square", ["Pow(x, two)", "Mul(x, x)"])
def test_norms_hold_for_tokens_that_no_sample_had(square: str, tmp_path: Path) -> None:
    text = f"""g (float[n, 32] x) => (float[n, 32] y) {{
        two = Constant <value = float {{2.0}}> () [square] s = {square}
        axes = Constant <value = int64[1] {{-1}}> () [mean] m = ReduceMean(s, axes)
        [safe] e = Add(m, eps) [root] r = Sqrt(e) [norm] d = Div(x, r)
        [layer] y = MatMul(d, w) }}"""
    weights = {"w": noise(32, 32, seed=1), "eps": np.array([1e-5], np.float32)}
    before, after, report = convert(text, weights, {"x": noise(4, 32)}, tmp_path)
    assert {"square", "mean", "safe", "root", "norm"} <= set(report["reasons"])
    assert types(after)["layer"] == "FLOAT16"
    larger = {"x": 3000 * noise(4, 32, seed=2)}
    wanted = by_the_standard(before, larger)[0]
    np.testing.assert_allclose(by_the_standard(after, larger)[0], wanted, atol=0.05)


def test_angles_are_computed_as_they_were(tmp_path: Path) -> None:
    """The cosine of position x frequency: at 5000 radians float16 is off by 2."""
    text = """g (int64[n] p, float[n, 8] x) => (float[n, 8] y) {
        [positions] f = Cast <to = 1> (p) one = Constant <value = int64[1] {-1}> ()
        [column] u = Unsqueeze(f, one) [angle] a = MatMul(u, inv) [cosine] c = Cos(a)
        [turned] y = Mul(x, c) }"""
    weights = {"inv": np.geomspace(1, 1e-4, 8, dtype=np.float32)[None]}
    feeds = {"p": np.arange(4990, 5000), "x": noise(10, 8)}
    before, after, report = convert(text, weights, feeds, tmp_path)
    found = types(after)
    assert {found[one] for one in ("column", "angle", "cosine")} == {"FLOAT"}
    assert found["turned"] == "FLOAT16"
    assert "'cosine' needs its result" in report["reasons"]["angle"]
    close(before, after, feeds, atol=0.01)


def test_a_denominator_cannot_become_zero(tmp_path: Path) -> None:
    """Rows of zeros, which no sample has, are divided by 1e-12."""
    text = """g (float[n, 8] x) => (float[n, 8] y) {
        axes = Constant <value = int64[1] {-1}> () [norm] m = ReduceL1(x, axes)
        [least] l = Max(m, eps) [unit] y = Div(x, l) }"""
    weights = {"eps": np.array([1e-12], np.float32)}
    feeds = {"x": noise(4, 8)}
    _, after, report = convert(text, weights, feeds, tmp_path)
    assert {types(after)[one] for one in ("least", "unit")} == {"FLOAT"}
    assert "would become zero" in report["reasons"]["least"]
    zeros = outputs(after, {"x": np.zeros((1, 8), np.float32)})[0]
    np.testing.assert_array_equal(zeros, 0)


def test_a_row_that_masks_everything_twice_stays_a_number(tmp_path: Path) -> None:
    text = """g (float[n, 8] x, float[n, 8] keep) => (float[n, 8] y) {
        [dropped] d = Sub(one, keep) [mask] m = Mul(d, big) [causal] s = Add(x, m)
        [twice] t = Add(s, m) [soft] y = Softmax <axis = -1> (t) }"""
    least = np.array([np.finfo(np.float32).min], np.float32)
    for big in (least / 4, np.array([-1e9], np.float32)):
        weights = {"one": np.ones(1, np.float32), "big": big}
        keep = np.ones((3, 8), np.float32)
        keep[0, 4:] = keep[2] = 0
        feeds = {"x": noise(3, 8), "keep": keep}
        before, after, _ = convert(text, weights, feeds, tmp_path)
        exact, found = outputs(before, feeds)[0], outputs(after, feeds)[0]
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:2], exact[:2], atol=2e-3)


def test_what_a_branch_reads_keeps_its_type(tmp_path: Path) -> None:
    text = """g (bool b, float[n, 4] x) => (float[n, 4] y) {
        [sum] a = Add(x, x)
        [choice] z = If (b) <
          then_branch = one () => (float[n, 4] t) { t = Mul(a, a) },
          else_branch = two () => (float[n, 4] u) { u = Neg(a) }>
        [last] y = Relu(z) }"""
    feeds = {"b": np.array(True), "x": noise(2, 4)}
    before, after, report = convert(text, {}, feeds, tmp_path)
    assert report["reasons"]["choice"] == "it holds a graph"
    assert types(after)["last"] == "FLOAT16"
    close(before, after, feeds, atol=0.01)


def test_inputs_that_the_standard_wants_in_float32_stay(tmp_path: Path) -> None:
    text = """g (float[1, 2, 4, 4] x) => (float[1, 2, 8, 8] y) {
        [larger] y = Resize <mode = "nearest"> (x, , factors) }"""
    weights = {"factors": np.array([1, 1, 2, 2], np.float32)}
    feeds = {"x": noise(1, 2, 4, 4)}
    before, after, _ = convert(text, weights, feeds, tmp_path)
    assert types(after)["larger"] == "FLOAT16"
    assert str(after.graph.initializers["factors"].dtype) == "FLOAT"
    close(before, after, feeds, atol=0.002)


def test_sizes_that_are_computed_in_floats_stay_exact(tmp_path: Path) -> None:
    """4097 is no number of float16."""
    text = """g (int64[1] size) => (int64[1] half) {
        [wide] f = Cast <to = 1> (size) [halved] h = Mul(f, by) [whole] w = Floor(h)
        [back] half = Cast <to = 7> (w) }"""
    feeds = {"size": np.array([8195])}
    before, after, _ = convert(text, {"by": np.array([0.5], np.float32)}, feeds, tmp_path)
    assert outputs(after, feeds)[0] == outputs(before, feeds)[0] == 4097


def test_a_layer_with_a_bias_between_codes_keeps_scales_of_float32(tmp_path: Path) -> None:
    """ONNX Runtime multiplies the two scales in their type, and rounds the bias by that."""
    text = """g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) {
        [codes] q = QuantizeLinear(x, s, z) [back] d = DequantizeLinear(q, s, z)
        [weight] w = DequantizeLinear <axis = 0> (c, t)
        [conv] a = Conv <pads = [1, 1, 1, 1]> (d, w, bias) [relu] r = Relu(a)
        [out] o = QuantizeLinear(r, s, z) [end] e = DequantizeLinear(o, s, z)
        [after] y = Sigmoid(e) }"""
    rng = np.random.default_rng(0)
    weights: Feeds = {
        "s": np.array(0.02, np.float32),
        "z": np.array(0, np.int8),
        "c": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "t": np.full(4, 2e-4, np.float32),
        "bias": noise(4, seed=1),
    }
    feeds = {"x": noise(1, 4, 8, 8, seed=2)}
    before, after, report = convert(text, weights, feeds, tmp_path)
    assert {types(after)[one] for one in ("weight", "conv", "relu", "end")} == {"FLOAT"}
    assert types(after)["after"] == "FLOAT16"
    assert "float16 lacks" in report["reasons"]["conv"]
    close(before, after, feeds, atol=0.01)


def test_masks_end_at_half_of_the_range_and_other_numbers_at_its_end() -> None:
    given = np.array([-3.4e38, -1e9, 1e5, -7e4, np.inf, 1e-9, 0.0], np.float32)
    wanted = [-32752, -32752, 65504, -65504, np.inf, 0, 0]
    np.testing.assert_array_equal(as_half(given), np.array(wanted, np.float16))
    assert underflows(given)
    assert not underflows(given[:5])


@pytest.mark.parametrize("given", [{"samples": 0}, {"margin": 0.5}, {"error": 0.0}])
def test_options_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="convert-floats"):
        ConvertFloats(**given)


def test_nothing_is_known_of_numbers_without_samples(tmp_path: Path) -> None:
    table = load("tensorrt")
    context = PassContext(Runner.of(table, threads=1), table, tmp_path)
    model = parse(HEADER + "g (float[n] x) => (float[n] y) { y = Neg(x) }", {})
    with pytest.raises(UsageError, match="samples"):
        ConvertFloats().run(model, context)


def test_ml_dtypes_are_no_part_of_the_result(tmp_path: Path) -> None:
    """A graph of bfloat16 is none of float32: nothing changes."""
    text = "g (bfloat16[n] x) => (bfloat16[n] y) { y = Identity(x) }"
    _, _, report = convert(text, {}, {"x": np.zeros(2, ml_dtypes.bfloat16)}, tmp_path)
    assert report["converted"] == 0


def test_caches_are_float16_outside_too(tmp_path: Path) -> None:
    text = """g (float[n, 1, 4] x, float[n, past, 4] before)
        => (float[n, m, 4] after, float[n, m, 4] y) {
        [carry] after = Concat <axis = 1> (before, x) [use] y = Mul(after, after) }"""
    feeds = {"x": noise(2, 1, 4), "before": noise(2, 3, 4, seed=1)}
    before, after, report = convert(text, {}, feeds, tmp_path)
    assert [str(value.dtype) for value in after.graph.inputs] == ["FLOAT", "FLOAT16"]
    assert [str(value.dtype) for value in after.graph.outputs] == ["FLOAT16", "FLOAT"]
    assert report["casts"] == 2
    for exact, found in zip(outputs(before, feeds), outputs(after, feeds), strict=True):
        np.testing.assert_allclose(found, exact, atol=0.02)  # fed with the same float32


def test_a_cache_that_float32_reads_too_stays(tmp_path: Path) -> None:
    text = """g (float[n, 4] x, float[past, 4] before) => (float[m, 4] after, float[k, 4] y) {
        [carry] after = Concat <axis = 0> (before, x) [large] y = Mul(before, big) }"""
    feeds = {"x": noise(2, 4), "before": noise(3, 4, seed=1)}
    weights = {"big": np.full(1, 60_000, np.float32)}
    _, after, _ = convert(text, weights, feeds, tmp_path)
    assert {str(value.dtype) for value in after.graph.inputs} == {"FLOAT"}
    assert {str(value.dtype) for value in after.graph.outputs} == {"FLOAT"}


def test_squares_of_a_hundred_million_are_no_mask(tmp_path: Path) -> None:
    text = """g (float[n, 8] x) => (float[n, 8] y) {
        [square] s = Mul(x, x) [down] y = Mul(s, k) }"""
    feeds = {"x": np.array([[12_000, 1, 2, 3, 4, 5, 6, 7]], np.float32)}
    before, after, report = convert(text, {"k": np.array([1e-4], np.float32)}, feeds, tmp_path)
    assert set(report["reasons"]) == {"square", "down"}
    wanted = by_the_standard(before, feeds)[0]
    np.testing.assert_allclose(by_the_standard(after, feeds)[0], wanted, rtol=0.01)


@pytest.mark.parametrize(("factor", "size"), [(1e9, 1e-6), (1e4, 1e-8)])
def test_factors_and_numbers_beyond_float16_stay(
    factor: float, size: float, tmp_path: Path
) -> None:
    text = "g (float[n, 8] x) => (float[n, 8] y) { [product] y = Mul(x, w) }"
    weights, feeds = {"w": np.array([factor], np.float32)}, {"x": size * noise(4, 8)}
    before, after, report = convert(text, weights, feeds, tmp_path)
    assert set(report["reasons"]) == {"product"}
    wanted = by_the_standard(before, feeds)[0]
    np.testing.assert_allclose(by_the_standard(after, feeds)[0], wanted, rtol=0.01)


def test_layers_of_tiny_numbers_stay(tmp_path: Path) -> None:
    """The logarithm of a spectrum: its power is far below what float16 holds."""
    text = """g (float[n, 32] p) => (float[n, 32] y) {
        [mel] m = MatMul(p, w) [least] c = Max(m, eps) [log] y = Log(c) }"""
    weights = {"w": np.abs(noise(32, 32)), "eps": np.array([1e-10], np.float32)}
    feeds = {"p": 1e-9 * np.abs(noise(4, 32, seed=1))}
    before, after, report = convert(text, weights, feeds, tmp_path)
    assert {"mel", "least", "log"} <= set(report["reasons"])
    wanted = by_the_standard(before, feeds)[0]
    np.testing.assert_allclose(by_the_standard(after, feeds)[0], wanted, rtol=0.01)


@pytest.mark.parametrize(
    "text",
    [
        """g (float[n, 8] x, float[n, 8] keep) => (float[n, 8] y) {
            [sum] s = Add(x, keep) [soft] y = Softmax <axis = -1> (s) }""",
        """g (float[n, 8] x, float[n, 8] keep) => (float[n, 8] y) {
            [mask] m = Mul(keep, k) [sum] s = Add(x, m)
            [soft] y = Softmax <axis = -1> (s) }""",
    ],
    ids=["from outside", "computed"],
)
def test_masks_that_are_no_constants_make_no_row_of_nothing(text: str, tmp_path: Path) -> None:
    keep = np.zeros((3, 8), np.float32)
    keep[0, 4:] = keep[2] = -1e9 if "Mul" not in text else -1e5
    feeds = {"x": noise(3, 8), "keep": keep}
    before, after, _ = convert(text, {"k": np.array([1e5], np.float32)}, feeds, tmp_path)
    wanted, found = by_the_standard(before, feeds)[0], by_the_standard(after, feeds)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_a_constant_that_callers_may_replace_stays_replaceable(tmp_path: Path) -> None:
    model = parse(
        HEADER + "g (float[n, 8] x, float[1] k) => (float[n, 8] y) { y = Mul(x, k) }",
        {"k": np.array([2], np.float32)},
    )
    text = "g (float[n, 8] x, float[1] k) => (float[n, 8] y) { y = Mul(x, k) }"
    feeds = {"x": noise(2, 8)}
    _, after, _ = convert(text, {"k": np.array([2], np.float32)}, feeds, tmp_path)
    assert [str(value.dtype) for value in after.graph.inputs] == ["FLOAT", "FLOAT"]
    more = {**feeds, "k": np.array([3], np.float32)}
    np.testing.assert_allclose(outputs(after, more)[0], outputs(model, more)[0], atol=0.01)


@pytest.mark.parametrize(
    "made",
    [
        "c = Constant <value_float = 2.0> ()",
        "c = Constant <value_floats = [2.0, 3.0, 4.0, 5.0]> ()",
        "c = ConstantOfShape(four)",
        "c = RandomUniform <shape = [4], low = 1.0, high = 1.0> ()",
        "c = HannWindow(size)",
    ],
)
def test_what_makes_float32_by_default_goes_on_to_do_so(made: str, tmp_path: Path) -> None:
    text = f"g (float[n, 4] x) => (float[n, 4] y) {{ [made] {made} [use] y = Mul(x, c) }}"
    weights = {"four": np.array([4]), "size": np.array(4)}
    feeds = {"x": noise(2, 4)}
    used = {name: one for name, one in weights.items() if f"({name})" in made}
    before, after, _ = convert(text, used, feeds, tmp_path)
    close(before, after, feeds, atol=0.01)


def test_two_inputs_side_by_side_are_no_cache(tmp_path: Path) -> None:
    text = """g (float[n, 4] user, float[n, 4] item) => (float[n, 8] both) {
        both = Concat <axis = 1> (user, item) }"""
    feeds = {"user": noise(2, 4), "item": noise(2, 4, seed=1)}
    _, after, _ = convert(text, {}, feeds, tmp_path)
    assert {str(value.dtype) for value in after.graph.inputs} == {"FLOAT"}


def test_all_caches_have_one_type(tmp_path: Path) -> None:
    text = """g (float[1, 4] x, float[p, 4] p0, float[p, 4] p1)
        => (float[m, 4] q0, float[m, 4] q1, float[m, 4] y, float[m, 4] z) {
        q0 = Concat <axis = 0> (p0, x) y = Neg(q0)
        b = Mul(x, k) q1 = Concat <axis = 0> (p1, b) z = Neg(q1) }"""
    feeds = {"x": np.ones((1, 4), np.float32), "p0": noise(3, 4), "p1": 5e4 * noise(3, 4)}
    _, after, _ = convert(text, {"k": np.array([5e4], np.float32)}, feeds, tmp_path)
    assert {str(value.dtype) for value in after.graph.inputs} == {"FLOAT"}


def test_branches_keep_types_of_their_own(tmp_path: Path) -> None:
    """Two branches may give one name to values of different types."""
    text = """g (bool b, float[4] x) => (float[4] y) {
        [sum] a = Add(x, x)
        [choice] z = If (b) <
          then_branch = one () => (float[k] t) { m = Shape(a) t = Expand(a, m) },
          else_branch = two () => (float[k] u) { m = Neg(a) u = Neg(m) }>
        [last] y = Relu(z) }"""
    convert(text, {}, {"b": np.array(True), "x": noise(4)}, tmp_path)


def test_sequences_are_left_alone(tmp_path: Path) -> None:
    text = """g (float[4] x) => (float[4] y) {
        i = Constant <value = int64 {1}> () s = SequenceConstruct(x, x) t = Identity(s)
        z = SequenceAt(t, i) [last] y = Relu(z) }"""
    before, after, _ = convert(text, {}, feeds := {"x": noise(4)}, tmp_path)
    close(before, after, feeds, atol=0.01)


def test_validation_holds_the_pass_to_its_promise(tmp_path: Path) -> None:
    text = """g (float[n, 8] x, float[n, 8] keep) => (float[n, 8] y) {
        [mask] m = Mul(keep, k) [sum] s = Add(x, m) [soft] y = Softmax <axis = -1> (s) }"""
    keep = np.zeros((3, 8), np.float32)
    keep[0, 4:] = -1
    feeds = {"x": noise(3, 8), "keep": keep}
    before, after, _ = convert(text, {"k": np.array([1e9], np.float32)}, feeds, tmp_path)
    runner = Runner.of(load("tensorrt"))
    assert Lockstep(before.clone(), after, runner, narrowed=True).mismatch(feeds) is None
    for node in after.graph:
        if node.name == "soft":
            node.attributes["axis"] = ir.AttrInt64("axis", 0)
    found = Lockstep(before.clone(), after, runner, narrowed=True).mismatch(feeds)
    assert found is not None
    assert "'soft'" in str(found)
