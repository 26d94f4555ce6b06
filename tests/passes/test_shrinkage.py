from __future__ import annotations

import numpy as np
import pytest
import torch

from mpqc.ir import ArrayStore, Option, TensorStats, Unit, annotate, quantizable
from mpqc.passes.annotate_sensitivity.fisher import monotone
from mpqc.passes.engine.numerics.gptq import round_rows
from mpqc.passes.engine.numerics.row_errors import row_errors
from mpqc.passes.engine.numerics.shrinkage import shrunk
from mpqc.passes.engine.statistics.quadratic import Quadratic
from mpqc.passes.engine.statistics.squares import put_square, read_square

from .rounded import noise, parse

COLUMNS, ROWS = 1152, 96
MIXING = noise(48, COLUMNS, seed=3)


def inputs(rows: int, seed: int) -> torch.Tensor:
    """Rows whose columns go together in 48 directions, and each a little by itself."""
    found = noise(rows, 48, seed=seed) @ MIXING + 2 * noise(rows, COLUMNS, seed=seed + 1)
    return torch.from_numpy(found.astype(np.float32))


def gram(rows: int, seed: int = 10) -> torch.Tensor:
    x = inputs(rows, seed)
    return x.T @ x / rows


def quadratic(
    hessian: torch.Tensor, weight: np.ndarray, tokens: int
) -> tuple[Unit, Quadratic]:
    rows, columns = weight.shape
    text = f"""<ir_version: 9, opset_import: ["" : 20]> g (float[N, {columns}] x)
        => (float[N, {rows}] y) {{ y = MatMul(x, w) }}"""
    (unit,) = quantizable(parse(text, {"w": weight.T.copy()}))
    arrays = ArrayStore()
    put_square(arrays, "w/0/hessian", hessian.numpy())
    moments = {"rows": torch.ones(rows), "activation": hessian.diagonal()}
    for what, array in moments.items():
        arrays.put(f"w/0/{what}", array.numpy().copy())
    annotate(unit.notes, TensorStats("w", 1, tokens))
    return unit, Quadratic.of(unit, arrays)


def test_as_many_rows_as_columns_change_nothing() -> None:
    hessian = gram(64)[:64, :64].contiguous()
    for tokens in (64, 32768):
        _, found = quadratic(hessian, noise(64, 64, seed=1), tokens)
        torch.testing.assert_close(found.hessians[0], hessian, rtol=1e-3, atol=1e-4)
        assert not found.scarce


def test_energies_stay_and_correlations_shrink() -> None:
    hessian = gram(ROWS)
    found = shrunk(hessian, ROWS)
    assert torch.equal(found.diagonal(), hessian.diagonal())
    off = ~torch.eye(COLUMNS, dtype=torch.bool)
    ratio = found[off] / hessian[off]
    assert 0 < float(ratio.mean()) < 1
    assert float(ratio.std()) < 1e-3
    assert int(torch.linalg.cholesky_ex(found.double())[1]) == 0


def test_noise_shrinks_and_what_goes_together_stays() -> None:
    noisy = torch.from_numpy(noise(24, 256, seed=5).astype(np.float32))
    found = shrunk(noisy.T @ noisy / 24, 24)
    off = ~torch.eye(256, dtype=torch.bool)
    assert found[off].norm() < 0.6 * (noisy.T @ noisy / 24)[off].norm()
    line = torch.ones(24, 256) * noisy[:, :1]
    both = line.T @ line / 24
    torch.testing.assert_close(shrunk(both, 24), both, rtol=0.1, atol=0)


@pytest.mark.parametrize("dead", [1, 255, 256])
def test_columns_that_were_never_active_stay_zero(dead: int) -> None:
    x = torch.from_numpy(noise(24, 256, seed=5).astype(np.float32))
    x[:, :dead] = 0
    found = shrunk(x.T @ x / 24, 24)
    assert torch.isfinite(found).all()
    assert not found[:dead].any()


def test_with_few_rows_eight_bits_lose_less_than_four_and_held_out_errors_fall() -> None:
    weight = noise(32, COLUMNS, seed=7).astype(np.float32) / 30
    scarce, truth = gram(ROWS), gram(4 * COLUMNS, seed=50)
    _, found = quadratic(scarce, weight, ROWS)
    assert found.scarce
    exact = torch.from_numpy(weight)
    factor = found.factor()
    arrays = ArrayStore()
    put_square(arrays, "scarce", scarce.numpy())  # as exact as the other
    known = torch.from_numpy(read_square(arrays, "scarce"))
    raw = Quadratic(found.rows, (known,), found.activation).factor()
    held_out = {}
    for bits in (3, 4, 8):
        stored = round_rows(exact, bits, 64, factor).dequantize(64)
        before = round_rows(exact, bits, 64, raw).dequantize(64)
        held_out[bits] = float(row_errors(exact, stored, truth).sum())
        assert held_out[bits] <= 1.005 * float(row_errors(exact, before, truth).sum())
    assert held_out[8] < held_out[4] < held_out[3]


def test_with_few_rows_predictions_fall_with_the_width() -> None:
    """Sixteen times finer steps lose some 1/256, which noise in few rows hides."""
    exact = torch.from_numpy(noise(32, COLUMNS, seed=7).astype(np.float32) / 30)
    _, found = quadratic(gram(ROWS), exact.numpy(), ROWS)
    raw = Quadratic(found.rows, (gram(ROWS),), found.activation)
    lost: dict[str, list[float]] = {"shrunk": [], "raw": []}
    for bits in (4, 8):
        for name, one in {"shrunk": found, "raw": raw}.items():
            stored = round_rows(exact, bits, 64, one.factor()).dequantize(64)
            lost[name].append(float(one.loss(exact, stored).sum()))
    assert lost["shrunk"][1] < lost["shrunk"][0] / 20
    assert lost["raw"][1] > lost["raw"][0] / 20


def test_no_option_looks_worse_than_one_that_it_covers() -> None:
    options = [Option(2, 64), Option(4, 64), Option(4, 32), Option(8, 64), Option.half()]
    loss = np.array([[5, 2, 1, 3, 4], [5, 4, 3, 2, 1]], np.float32)
    found = monotone(loss, options)
    np.testing.assert_array_equal(found, [[5, 2, 1, 2, 1], [5, 4, 3, 2, 1]])
