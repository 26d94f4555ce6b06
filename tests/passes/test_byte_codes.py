"""Codes for TensorRT: scales above zero, and floats of 8 bits."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpqc.backend.onnxruntime import load
from mpqc.backend.runner import Runner
from mpqc.backend.torch_fx.session import TorchSession
from mpqc.ir import (
    ArrayStore,
    Calibration,
    Option,
    QuantSpec,
    UsageError,
    annotate,
    quantizable,
)
from mpqc.passes.engine.numerics.activation_grid import RANGES, find_grid
from mpqc.passes.engine.numerics.factor import factorize
from mpqc.passes.engine.numerics.float8 import as_float8, round_float8
from mpqc.passes.engine.numerics.gptq import gptq, nearest, round_rows
from mpqc.passes.engine.numerics.histogram import Histogram
from mpqc.passes.engine.numerics.row_errors import row_errors
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.validation.stored import Inconsistent, stored_matrix
from mpqc.passes.insert_qdq.insert_qdq import InsertQdq
from mpqc.tools.kernels import as_asked

from .rounded import noise, parse
from .test_rounding import gram, weights

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10_000)


@FEW
@given(seed=SEEDS, bits=st.sampled_from([4, 8]), refinements=st.integers(0, 2))
def test_scales_are_above_zero(seed: int, bits: int, refinements: int) -> None:
    weight, factor = weights(seed), factorize(gram(seed), 0.1)
    made = gptq(weight, bits, 32, factor, refinements=refinements, signed=False)
    assert bool((made.scales > 0).all())
    assert bool((nearest(weight, bits, 32, factor.price, signed=False).scales > 0).all())


def test_scales_above_zero_cost_little() -> None:
    """The extreme value of a group sits on the short side of the range half of the time."""
    weight, even = weights(0, rows=400), torch.ones(72)
    made = [nearest(weight, 4, 32, even, signed=one) for one in (True, False)]
    errors = [float((one.dequantize(32) - weight).square().sum()) for one in made]
    assert errors[0] < errors[1] < (8 / 7) ** 2 * errors[0]


@FEW
@given(seed=SEEDS)
def test_floats_of_8_bits_are_those_of_the_standard(seed: int) -> None:
    values = np.random.default_rng(seed).standard_cauchy(500).astype(np.float32) * 10
    found = as_float8(torch.from_numpy(values)).numpy()
    wanted = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)


@FEW
@given(seed=SEEDS)
def test_float8_rounding_can_be_stored_and_compensation_helps(seed: int) -> None:
    weight, factor = weights(seed), factorize(gram(seed), 0.1)
    plain = nearest(weight, 8, 72, factor.price, float8=True)
    better = round_rows(weight, 8, 72, factor, float8=True)
    for made in (plain, better):
        assert made.codes.dtype == made.scales.dtype == torch.float16
        assert made.scales.shape == (len(weight), 1)
        codes = made.codes.float()
        torch.testing.assert_close(as_float8(codes), codes, rtol=0, atol=0)
        assert bool((made.scales > 0).all())
    errors = [
        float(row_errors(weight, one.dequantize(72), factor.damped).sum())
        for one in (plain, better)
    ]
    assert errors[1] <= errors[0] * 1.001


def test_float8_keeps_every_magnitude_to_a_sixteenth() -> None:
    """Steps are relative: small weights beside a large one are kept, unlike in INT8."""
    weight = torch.cat([torch.full((1, 1), 100.0), torch.linspace(0.3, 1, 63)[None]], dim=1)
    codes, scales = round_float8(weight, torch.ones(64))
    found = codes.float() * scales.float()
    assert bool(((found - weight).abs() <= weight.abs() / 16 * 1.001).all())
    whole = nearest(weight, 8, 64, torch.ones(64)).dequantize(64)
    assert float((whole - weight).abs().max()) > float((found - weight)[:, 1:].abs().max())


@pytest.mark.parametrize("ranges", RANGES)
def test_float8_activations_are_symmetric_and_saturate(ranges: str) -> None:
    seen = Histogram()
    seen.add(np.concatenate([noise(1000), [50.0, -3.0]]).astype(np.float32))
    grid = find_grid(seen, "fp8", ranges)
    assert grid.zero_point == 0
    assert np.abs(grid.rounded(np.array([1e6, -1e6]))).max() == pytest.approx(448 * grid.scale)
    if ranges == "minmax":
        assert grid.scale * 448 == pytest.approx(seen.high, rel=0.1)


@pytest.mark.parametrize("text", ["8g576f8", "8g576a8", "4g64", "f16"])
def test_options_are_written_as_they_are_read(text: str) -> None:
    assert str(Option.parse(text)) == text


@pytest.mark.parametrize("text", ["4g64f8", "8g0f8", "8g64f4", "8g64f8a8"])
def test_options_that_no_type_stores_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="storage option"):
        Option.parse(text)


def test_only_rows_of_bytes_become_floats() -> None:
    table = as_asked(load("tensorrt"), "fp8", "auto")
    found = {str(option) for option in table.product_options(96, 128)}
    assert found == {"4g64", "4g128", "8g128f8"}
    assert {str(option) for option in load("tensorrt").product_options(96, 128)} == {
        "4g64",
        "4g128",
        "8g128",
    }


def test_codes_that_are_no_floats_of_8_bits_are_noticed() -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 21]>'
        " g (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }",
        {"w": noise(64, 96)},
    )
    (unit,), arrays = quantizable(model), ArrayStore()
    annotate(unit.notes, QuantSpec(unit.name, ("8g64f8",), (96,), "nearest"))
    arrays.put(f"{unit.name}/codes/0", np.full((96, 64), 1.01, np.float16))
    arrays.put(f"{unit.name}/scales/0", np.ones((96, 1), np.float16))
    with pytest.raises(Inconsistent, match="floats of 8 bits"):
        stored_matrix(unit, arrays)


@pytest.mark.ort
def test_products_of_float8_read_float8(tmp_path: Path) -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 21]>'
        " g (float[n, 64] x) => (float[n, 96] y) { [product] y = MatMul(x, w) }",
        {"w": noise(64, 96)},
    )
    (unit,) = quantizable(model)
    feeds = {"x": noise(9, 64, seed=1)}
    samples = Calibration([feeds], "tests", "key", held_out=0)
    table = as_asked(load("tensorrt"), "fp8", "auto")
    context = PassContext(Runner.of(table, threads=1), table, tmp_path, calibration=samples)
    codes, scales = round_float8(torch.from_numpy(unit.matrix()), torch.ones(64))
    context.arrays.put(f"{unit.name}/codes/0", codes.numpy())
    context.arrays.put(f"{unit.name}/scales/0", scales.numpy())
    annotate(unit.notes, QuantSpec(unit.name, ("8g64f8",), (96,), "nearest"))
    wanted = feeds["x"] @ (codes.float() * scales.float()).numpy().T
    assert InsertQdq(activations="fp8").run(model, context)
    kinds = {value.dtype for node in model.graph for value in node.inputs if value is not None}
    assert ir.DataType.FLOAT8E4M3FN in kinds
    assert ir.DataType.INT8 not in kinds
    found = TorchSession(model).run(feeds)["y"]
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 0.001 < error < 0.06  # an activation is off by a sixteenth at most
