from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mpqc.backend.onnxruntime import load, open_session, optimized_ops
from mpqc.ir import (
    BitAllocation,
    BlockId,
    Capabilities,
    LeftInFloat,
    Option,
    QuantSpec,
    StoredPart,
    annotate,
    note_of,
    quantizable,
)
from mpqc.passes.engine.emission.cost import expansion_bytes, overhead_bytes
from mpqc.passes.lower_matmul_nbits import LowerMatMulNBits

from .rounded import context, noise, parse, round_model

pytestmark = pytest.mark.ort

OPSETS = [11, 13, 17, 20, 22]
SPLITS = [("4g32",), ("8g64",), ("2g64",), ("2g64", "4g32", "8g128"), ("4g32", "8g32")]
EXPANDING = [("3g64",), ("5g32",), ("6g64",), ("7g128",), ("2g64", "3g32", "6g64", "8g32")]


def exact(target: str = "ort-cpu", **changes: object) -> Capabilities:
    """The table with kernels that compute in float."""
    table = load(target)
    kernels = tuple(
        dataclasses.replace(kernel, accuracy_level=0, row_multiple=1, column_multiple=1)
        for kernel in table.kernels
    )
    return dataclasses.replace(table, kernels=kernels, **changes)  # type: ignore[arg-type]


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with open_session(model, threads=1) as session:
        return next(iter(session.run(feeds).values()))


def lower(
    model: ir.Model,
    options: Sequence[str],
    tmp_path: Path,
    table: Capabilities | None = None,
    shuffle: bool = True,
) -> ir.Model:
    """Rounds ``model`` in place and returns a lowered copy."""
    work = context(table or exact(), tmp_path)
    round_model(model, options, work.arrays, shuffle=shuffle)
    copy = ir.from_proto(ir.to_proto(model))
    assert LowerMatMulNBits().run(copy, work)
    assert work.report["lower-matmul-nbits"]["skipped"] == {}
    onnx.checker.check_model(ir.to_proto(copy))
    return copy


def check(model: ir.Model, lowered: ir.Model, feeds: dict[str, np.ndarray]) -> None:
    expected = run(model, feeds)
    np.testing.assert_allclose(run(lowered, feeds), expected, rtol=1e-4, atol=1e-4)


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def product(opset: int = 17, dims: str = "m") -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{dims}, 100] A) => (float[{dims}, 72] Y) {{ Y = MatMul(A, W) }}"""


def lookup(opset: int = 17, ids: str = "int64[m, n]", out: str = "float[m, n, 100]") -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({ids} I) => ({out} Y) {{ Y = Gather(T, I) }}"""


@pytest.mark.parametrize("options", SPLITS + EXPANDING)
@pytest.mark.parametrize("dims", ["m", "2, m", "1, 2, m"])
def test_matmul_equals_the_simulated_one(
    options: tuple[str, ...], dims: str, tmp_path: Path
) -> None:
    model = parse(product(dims=dims), {"W": noise(100, 72)})
    lowered = lower(model, options, tmp_path)
    lead = [int(d) for d in dims.replace("m", "3").split(",")]
    check(model, lowered, {"A": noise(*lead, 100, seed=1)})
    assert ops(lowered)["MatMulNBits"] == len(options)
    assert "W" not in lowered.graph.initializers


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_an_activation_of_unknown_rank(lead: tuple[int, ...], tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[r] S, float[n] A) => (float[k] Y)
        { B = Reshape(A, S)
          P = MatMul(B, W)
          Y = Reshape(P, F) }"""
    model = parse(text, {"W": noise(100, 72), "F": np.array([-1])})
    lowered = lower(model, ("2g64", "4g32", "8g128"), tmp_path)
    shape = np.array([*lead, 100])
    check(model, lowered, {"S": shape, "A": noise(int(shape.prod()), seed=1)})
    assert not ops(lowered)["Transpose"]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("options", [("4g32",), ("2g64", "4g32", "8g128")])
def test_gemm_keeps_alpha_beta_and_bias(
    opset: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[m, 100] A) => (float[m, 72] Y)
        {{ P = Gemm <alpha = 0.7, beta = 1.3, transB = 1> (A, W, C)
           Q = Gemm (A, V)
           Y = Add(P, Q) }}"""
    weights = {"W": noise(72, 100), "V": noise(100, 72, seed=2), "C": noise(72, seed=3)}
    model = parse(text, weights)
    check(model, lower(model, options, tmp_path), {"A": noise(3, 100, seed=1)})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("options", SPLITS + EXPANDING)
def test_lookup_equals_the_simulated_one(
    opset: int, options: tuple[str, ...], tmp_path: Path
) -> None:
    model = parse(lookup(opset), {"T": noise(72, 100)})
    lowered = lower(model, options, tmp_path)
    check(model, lowered, {"I": np.arange(72).reshape(8, 9)})


@pytest.mark.parametrize(
    ("ids", "out", "array"),
    [
        ("int64", "float[100]", np.int64(71)),
        ("int64[n]", "float[n, 100]", np.array([0, -1, -72, 71])),
        ("int32[a, b, c]", "float[a, b, c, 100]", np.array([[[5, -3]]], np.int32)),
        ("int64[n]", "float[n, 100]", np.zeros(0, np.int64)),
        ("int64[m, n]", "float[m, n, 100]", np.zeros((2, 0), np.int64)),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_ids_of_any_rank_and_sign(
    ids: str, out: str, array: np.ndarray, shuffle: bool, tmp_path: Path
) -> None:
    model = parse(lookup(ids=ids, out=out), {"T": noise(72, 100)})
    lowered = lower(model, ("2g64", "4g32", "8g128"), tmp_path, shuffle=shuffle)
    check(model, lowered, {"I": np.asarray(array)})


@pytest.mark.parametrize(
    "options", [("4g32",), ("4g64", "8g32"), ("8g128",), ("3g32",), ("3g64", "5g32")]
)
def test_lookup_by_gather_block_quantized(options: tuple[str, ...], tmp_path: Path) -> None:
    model = parse(lookup(), {"T": noise(72, 100)})
    table = exact(lookup="gather-block-quantized")
    lowered = lower(model, options, tmp_path, table)
    assert ops(lowered)["GatherBlockQuantized"] == len(options)
    check(model, lowered, {"I": np.arange(-72, 72).reshape(8, 18)})


@pytest.mark.parametrize("shape", [(), (2,), (2, 3, 4)])
def test_ids_of_unknown_rank(shape: tuple[int, ...], tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int64[r] S, int64[n] I) => (float[{"m," * len(shape)} 100] Y)
        {{ J = Reshape(I, S)
           Y = Gather(T, J) }}"""
    model = parse(text, {"T": noise(72, 100)})
    lowered = lower(model, ("4g32", "8g32"), tmp_path)
    assert "Shape" in ops(lowered)
    ids = np.arange(-1, int(np.prod(shape)) - 1)
    check(model, lowered, {"S": np.array(shape, np.int64), "I": ids})


def test_ids_of_unknown_type(tmp_path: Path) -> None:
    """Exporters leave types of values out, and files without shapes have none either."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[n] F) => (float[n, 100] Y) { I = Cast <to = 6> (F)
           Y = Gather(T, I) }"""
    model = parse(text, {"T": noise(72, 100)})
    cast = model.graph[0].outputs[0]
    cast.type = cast.shape = None
    lowered = lower(model, ("4g32", "8g32"), tmp_path)
    check(model, lowered, {"F": np.arange(72, dtype=np.float32)})


TIED = """<ir_version: 8, opset_import: ["" : 17]>
    g (int64[m, n] I) => (float[m, n, 72] Y)
    { T = Transpose <perm = [1, 0]> (W)
      V = Identity(T)
      E = Gather(V, I)
      Y = MatMul(E, W) }"""


@pytest.mark.parametrize("options", [("4g32",), ("2g64", "4g32", "8g128"), *EXPANDING])
def test_tied_table_is_stored_once(options: tuple[str, ...], tmp_path: Path) -> None:
    model = parse(TIED, {"W": noise(100, 72)})
    lowered = lower(model, options, tmp_path)
    check(model, lowered, {"I": np.arange(72).reshape(8, 9)})
    left = ops(lowered)
    assert not left["Identity"]
    assert left["Transpose"] == (2 if len(options) > 1 else 0)  # around the order of the rows
    stored = sum(v.const_value.nbytes for v in lowered.graph.initializers.values())  # type: ignore
    (unit,) = quantizable(model)
    codes = [v for n, v in lowered.graph.initializers.items() if n.startswith("W/codes")]
    assert len(codes) == len(options)
    assert stored < unit.size * 4 / 3


@pytest.mark.parametrize("options", SPLITS + EXPANDING)
@pytest.mark.parametrize("text", [product(), TIED, lookup(out="float[m, n, 100]")])
def test_overhead_is_foreseen(options: tuple[str, ...], text: str, tmp_path: Path) -> None:
    name = "T" if "(T, I)" in text and "Transpose" not in text else "W"
    model = parse(text, {name: noise(*((72, 100) if name == "T" else (100, 72)))})
    (unit,) = quantizable(model)
    lowered = lower(model, options, tmp_path)
    extra = 0
    for key, value in lowered.graph.initializers.items():
        if not key.startswith((f"{name}/codes", f"{name}/scales")):
            assert value.const_value is not None
            extra += value.const_value.nbytes
    shared = expansion_bytes(Option.parse(text) for text in options)
    bound = overhead_bytes(unit, list(map(Option.parse, options)), load("ort-cpu")) + shared
    lookups = sum(use.kind == "lookup" for use in unit.uses)
    assert bound - 256 * lookups * len(options) <= extra <= bound


def test_weight_in_half_precision_behind_a_cast(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[m, 100] A) => (float[m, 72] Y)
        { W32 = Cast <to = 1> (W)
          Y = MatMul(A, W32) }"""
    model = parse(text, {"W": noise(100, 72).astype(np.float16)})
    lowered = lower(model, ("4g32",), tmp_path)
    feeds = {"A": noise(3, 100, seed=1)}
    np.testing.assert_allclose(run(lowered, feeds), run(model, feeds), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "options", [("2g64",), ("4g32",), ("8g32",), ("4g32", "8g32"), ("3g64", "6g32")]
)
def test_activations_in_half_precision(options: tuple[str, ...], tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (int64[m] I) => (float16[m, 72] Y)
        { T = Transpose <perm = [1, 0]> (W)
          E = Gather(T, I)
          Y = MatMul(E, W) }"""
    model = parse(text, {"W": (noise(100, 72) / 10).astype(np.float16)})
    lowered = lower(model, options, tmp_path)
    feeds = {"I": np.arange(9)}
    np.testing.assert_allclose(run(lowered, feeds), run(model, feeds), rtol=2e-2, atol=2e-2)


def test_fast_kernels_are_close(tmp_path: Path) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    lowered = lower(model, ("2g64", "4g32", "8g128"), tmp_path, load("ort-cpu"))
    feeds = {"A": noise(16, 100, seed=1)}
    expected = run(model, feeds)
    error = np.linalg.norm(run(lowered, feeds) - expected) / np.linalg.norm(expected)
    assert error < 0.01


def test_identity_order_needs_no_gather(tmp_path: Path) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    lowered = lower(model, ("4g32", "8g32"), tmp_path, shuffle=False)
    assert ops(lowered) == {"Cast": 2, "MatMulNBits": 2, "Concat": 1}
    check(model, lowered, {"A": noise(3, 100, seed=1)})


def test_notes_move_and_parts_are_named(tmp_path: Path) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    bits = BitAllocation("W", ("4g32",), (72,), 0.1)
    annotate(model.graph[0], bits)
    annotate(model.graph[0], BlockId(3))
    lowered = lower(model, ("4g32",), tmp_path)
    kernel = next(node for node in lowered.graph if node.op_type == "MatMulNBits")
    assert note_of(kernel, BitAllocation) == bits
    assert note_of(kernel, QuantSpec) is None
    for node in lowered.graph:
        part = note_of(node, StoredPart)
        assert part is not None
        assert part.unit == "W"
        assert note_of(node, BlockId) == BlockId(3)


def test_lowering_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    models = []
    for _ in range(2):
        model = parse(TIED, {"W": noise(100, 72)})
        models.append(lower(model, ("2g64", "4g32"), tmp_path))
    first, second = (ir.to_proto(one).SerializeToString(deterministic=True) for one in models)
    assert first == second


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("ort-cpu", ("4g256",), "ort-cpu has no fast kernel for 4g256"),
        ("ort-cpu", ("3g256",), "ort-cpu has no fast kernel for 3g256"),
        ("ort-cuda", ("4g32",), "multiples of 64 rows x 32 columns, these are 72 x 100"),
    ],
)
def test_what_the_target_lacks_stays_in_float(
    target: str, options: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    work = context(load(target), tmp_path)
    round_model(model, options, work.arrays)
    assert LowerMatMulNBits().run(model, work)
    assert reason in work.report["lower-matmul-nbits"]["skipped"]["W"]
    note = note_of(model.graph[0], LeftInFloat)
    assert note is not None
    assert reason in note.why
    assert note_of(model.graph[0], QuantSpec) is None


def test_nothing_to_do(tmp_path: Path) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    assert not LowerMatMulNBits().run(model, context(load("ort-cpu"), tmp_path))


@pytest.mark.parametrize("options", EXPANDING)
@pytest.mark.parametrize("opset", [11, 13, 18, 22])
def test_nothing_of_the_expansion_is_left_at_run_time(
    options: tuple[str, ...], opset: int, tmp_path: Path
) -> None:
    model = parse(product(opset), {"W": noise(100, 72)})
    lowered = lower(model, options, tmp_path)
    assert ops(lowered)["QLinearConv"] == sum(text[0] in "3567" for text in options)
    left = {"MatMulNBits": len(options)}
    if len(options) > 1:
        left |= {"Concat": 1, "Transpose": 2, "Gather": 1}
    assert optimized_ops(lowered) == left


@pytest.mark.parametrize("options", EXPANDING)
def test_a_tied_table_expands_to_what_kernels_read(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    model = parse(TIED, {"W": noise(100, 72)})
    left = optimized_ops(lower(model, options, tmp_path))
    kernels = tuple(f"{8 if text[0] in '567' else 4}g{text[2:]}" for text in options)
    if len(options) == 1:
        model = parse(TIED, {"W": noise(100, 72)})
        assert left == optimized_ops(lower(model, kernels, tmp_path))
    assert "QLinearConv" not in left


def test_expanded_codes_are_exactly_those_of_the_simulation(tmp_path: Path) -> None:
    """An identity as the activations reads the weight off the float kernel, bit for bit."""
    for options in EXPANDING:
        model = parse(product(), {"W": noise(100, 72)})
        lowered = lower(model, options, tmp_path)
        (unit,) = quantizable(model)
        found = run(lowered, {"A": np.eye(100, dtype=np.float32)})
        np.testing.assert_array_equal(found.T, unit.matrix())


def test_expansion_needs_opset_11(tmp_path: Path) -> None:
    model = parse(product(opset=10), {"W": noise(100, 72)})
    work = context(exact(), tmp_path)
    round_model(model, ("3g64",), work.arrays)
    assert LowerMatMulNBits().run(model, work)
    why = work.report["lower-matmul-nbits"]["skipped"]["W"]
    assert why == "opset 10 has no BitShift; opset 11 has"


def test_a_target_that_folds_nothing_expands_nothing(tmp_path: Path) -> None:
    model = parse(product(), {"W": noise(100, 72)})
    work = context(exact(expanding=()), tmp_path)
    round_model(model, ("3g64",), work.arrays)
    assert LowerMatMulNBits().run(model, work)
    why = work.report["lower-matmul-nbits"]["skipped"]["W"]
    assert why == "ort-cpu has no widths that expand at load"
