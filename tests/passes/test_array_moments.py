"""What is gathered for weights that their readers take as floats, and what comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mpqc.ir import Calibration, Feeds, QuantSpec, need_note, quantizable
from mpqc.ir.analysis.offered import expands_to_floats
from mpqc.passes.engine.numerics.factor import factorize
from mpqc.passes.engine.numerics.gptq import nearest, round_rows
from mpqc.passes.engine.pipeline.base import PassContext
from mpqc.passes.engine.statistics.quadratic import Quadratic
from mpqc.passes.engine.statistics.squares import read_square

from .rounded import noise, parse
from .swept import CALIBRATE, context, run

pytestmark = pytest.mark.usefixtures("one_thread")

_POOLED = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1, 3, 12, 12] x) => (float[1, 32, 1, 1] y)
    { a = Conv <pads = [1, 1, 1, 1]> (x, w)
      y = GlobalAveragePool(a) }"""
_DEAD = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n, 64] x) => (float[n, 80] y)
    { a = MatMul(x, first)
      b = Add(a, bias)
      c = Relu(b)
      y = MatMul(c, second) }"""


def pooled() -> ir.Model:
    return parse(_POOLED, {"w": noise(32, 3, 3, 3, seed=1)})


def pictures(count: int, seed: int = 0) -> Calibration:
    """Pictures whose neighbours are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    feeds: list[Feeds] = []
    for _ in range(count):
        rough = rng.standard_normal((1, 3, 12, 12)).cumsum(2).cumsum(3)
        feeds.append({"x": rough.astype(np.float32)})
    return Calibration(feeds, "noise", f"pictures-{count}-{seed}")


def patches(x: np.ndarray) -> torch.Tensor:
    """Returns the patches that a 3 x 3 convolution reads: places x columns."""
    return torch.nn.functional.unfold(torch.from_numpy(x), 3, padding=1)[0].T


def test_errors_add_up_over_the_places_of_a_picture(tmp_path: Path) -> None:
    """Of a pooled convolution, errors cost by the mean patch, and not by single patches."""
    work = context(tmp_path, pictures(1))
    run(CALIBRATE, pooled(), work)
    assert work.calibration is not None
    mean = patches(work.calibration.feeds[0]["x"]).mean(0).numpy()
    found = read_square(work.arrays, "w/0/hessian")
    np.testing.assert_allclose(
        found / np.trace(found), np.outer(mean, mean) / (mean @ mean), atol=1e-5
    )


def test_what_is_read_has_a_mean_diagonal_of_one(tmp_path: Path) -> None:
    work, model = context(tmp_path, pictures(40)), pooled()
    run(CALIBRATE, model, work)
    (unit,) = quantizable(model)
    (hessian,) = Quadratic.of(unit, work.arrays).hessians
    assert hessian.shape == (27, 27)
    assert float(hessian.diagonal().mean()) == pytest.approx(1)


def test_a_dead_row_may_live_at_the_next_place(tmp_path: Path) -> None:
    bias = np.zeros(96, np.float32)
    bias[:10] = -1e6
    weights = {"first": noise(64, 96), "bias": bias, "second": noise(96, 80)}
    feeds: list[Feeds] = [{"x": noise(5, 64, seed=at)} for at in range(4)]
    samples = Calibration(feeds, "noise", "dead")
    work = context(tmp_path, samples)
    run(CALIBRATE, parse(_DEAD, weights), work)
    rows = np.array(work.arrays.get("first/0/rows"))
    places = 5 * len(samples.training)
    np.testing.assert_allclose(rows[:10], rows[10:].sum() / 96 / places, rtol=1e-4)


def test_wide_codes_are_compensated_where_floats_are_computed() -> None:
    inputs = torch.from_numpy(noise(400, 48)).cumsum(1)
    hessian, weight = inputs.T @ inputs, torch.from_numpy(noise(64, 48, seed=2))
    factor = factorize(hessian, 0.01)

    def error(rounded: torch.Tensor) -> float:
        return float((inputs @ (rounded - weight).T).square().sum())

    plain = nearest(weight, 8, 48, factor.price)
    beside_kernels = round_rows(weight, 8, 48, factor)
    in_floats = round_rows(weight, 8, 48, factor, in_floats=True, refinements=3)
    assert torch.equal(plain.codes, beside_kernels.codes)
    assert error(in_floats.dequantize(48)) < 0.3 * error(plain.dequantize(48))


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_sixteen_bits_are_nearly_exact_at_any_size(size: float) -> None:
    weight = size * torch.from_numpy(noise(32, 40))
    factor = factorize(torch.ones(40), 0.1)
    wide = round_rows(weight, 16, 40, factor, in_floats=True)
    assert wide.codes.dtype is torch.int16
    error = (wide.dequantize(40) - weight).norm() / weight.norm()
    assert error < (3e-5 if size == 1.0 else 5e-3)


def test_a_first_convolution_takes_sixteen_bits_where_there_is_room(tmp_path: Path) -> None:
    work, model = _with_table(tmp_path), pooled()
    passes = f"{CALIBRATE},annotate-sensitivity,allocate-bits{{budget=12}},quantize-weights"
    run(passes, model, work)
    (unit,) = quantizable(model)
    assert expands_to_floats(unit, work.capabilities)
    spec = need_note(unit.notes, QuantSpec)
    assert spec.options == ("8g27", "16g27")
    assert all(spec.counts)


def _with_table(folder: Path) -> PassContext:
    work = context(folder, pictures(40))
    return replace(work, capabilities=replace(work.capabilities, row_tile=8))
