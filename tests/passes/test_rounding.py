"""Properties of rounding that hold for any matrix, and the awkward ones by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpqc.passes.engine.numerics.factor import Factor, factorize
from mpqc.passes.engine.numerics.gptq import Rounded, gptq, nearest
from mpqc.passes.engine.numerics.row_errors import row_errors

pytestmark = pytest.mark.usefixtures("one_thread")
SMALLEST, LARGEST = 2.0**-14, 65504.0
FEW = settings(max_examples=25, deadline=None)
WIDTHS = st.sampled_from([2, 3, 4, 8])
GROUPS = st.sampled_from([16, 32])
SEEDS = st.integers(0, 10_000)


def weights(seed: int, rows: int = 6, columns: int = 72) -> torch.Tensor:
    """Heavy-tailed rows of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2, 1, (rows, 1))
    return torch.from_numpy((rng.standard_t(4, (rows, columns)) * sizes).astype(np.float32))


def gram(seed: int, columns: int = 72) -> torch.Tensor:
    """A second moment with correlated columns of different sizes."""
    rng = np.random.default_rng(seed + 1)
    mixing = rng.standard_normal((columns, columns)) * rng.uniform(0.1, 3, columns)
    inputs = rng.standard_normal((2 * columns, columns)) @ mixing
    return torch.from_numpy((inputs.T @ inputs / len(inputs)).astype(np.float32))


def check_storable(rounded: Rounded, bits: int, group: int, shape: torch.Size) -> None:
    codes, scales = rounded.codes, rounded.scales
    assert codes.dtype == torch.int8
    assert scales.dtype == torch.float16
    assert codes.shape == shape
    assert scales.shape == (shape[0], -(-shape[1] // group))
    assert int(codes.min()) >= -(2 ** (bits - 1))
    assert int(codes.max()) <= 2 ** (bits - 1) - 1
    sizes = scales.float().abs()
    assert bool(((sizes >= SMALLEST) & (sizes <= LARGEST)).all())


def damped_error(weight: torch.Tensor, rounded: Rounded, group: int, factor: Factor) -> float:
    stored = rounded.dequantize(group).double()
    error = stored - weight.double()
    return float(((error @ factor.damped.double()) * error).sum())


@FEW
@given(seed=SEEDS, bits=WIDTHS, group=GROUPS, refinements=st.integers(0, 2))
def test_codes_and_scales_can_be_stored(
    seed: int, bits: int, group: int, refinements: int
) -> None:
    weight, factor = weights(seed), factorize(gram(seed), 0.1)
    plain = nearest(weight, bits, group, factor.price)
    check_storable(plain, bits, group, weight.shape)
    better = gptq(weight, bits, group, factor, refinements=refinements)
    check_storable(better, bits, group, weight.shape)


@FEW
@given(seed=SEEDS, bits=st.sampled_from([2, 3, 4]), group=GROUPS)
def test_compensation_beats_nearest_and_refinement_beats_both(
    seed: int, bits: int, group: int
) -> None:
    weight, factor = weights(seed, rows=32), factorize(gram(seed), 0.01)
    errors = [
        damped_error(weight, rounded, group, factor)
        for rounded in (
            nearest(weight, bits, group, factor.price),
            gptq(weight, bits, group, factor),
            gptq(weight, bits, group, factor, refinements=1),
            gptq(weight, bits, group, factor, refinements=3),
        )
    ]
    assert errors[1] <= errors[0]
    assert errors[2] <= errors[1] * 1.01
    assert errors[3] <= errors[2] * 1.01


@FEW
@given(seed=SEEDS, bits=st.sampled_from([2, 3, 4, 8]), group=GROUPS, sign=st.booleans())
def test_what_lies_on_a_grid_stays_exact(seed: int, bits: int, group: int, sign: bool) -> None:
    """The lowest code, on the long side of the range, may stand for either sign."""
    rng = np.random.default_rng(seed)
    low = -(2 ** (bits - 1))
    codes = rng.integers(low, -low, (4, 2 * group))
    codes[:, ::group] = low
    scales = 2.0 ** rng.integers(-6, 3, (4, 2)) * (1 if sign else -1)
    weight = torch.from_numpy((codes * np.repeat(scales, group, 1)).astype(np.float32))
    factor = factorize(gram(seed, 2 * group), 0.1)
    for rounded in (
        nearest(weight, bits, group, factor.price),
        gptq(weight, bits, group, factor),
    ):
        torch.testing.assert_close(rounded.dequantize(group), weight, rtol=0, atol=0)
        assert bool(((rounded.scales > 0) == sign).all())


@FEW
@given(seed=SEEDS, bits=WIDTHS)
def test_nearest_is_off_by_half_a_step_inside_the_range(seed: int, bits: int) -> None:
    weight, group = weights(seed), 24
    rounded = nearest(weight, bits, group, torch.ones(72))
    scale = rounded.scales.float().repeat_interleave(group, dim=1)
    low = -(2 ** (bits - 1))
    inside = ((weight / scale) >= low - 0.5) & ((weight / scale) <= -low - 0.5)
    error = (rounded.dequantize(group) - weight).abs()
    assert bool((error[inside] <= scale.abs()[inside] * 0.5001).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("columns", [1, 31, 33, 100])
def test_last_group_need_not_be_full(bits: int, columns: int) -> None:
    weight, factor = weights(3, columns=columns), factorize(gram(3, columns), 0.1)
    rounded = gptq(weight, bits, 32, factor, refinements=2)
    check_storable(rounded, bits, 32, weight.shape)
    alone = nearest(weight[:, -(columns % 32) :], bits, 32, torch.ones(columns % 32))
    whole = nearest(weight, bits, 32, torch.ones(columns))
    torch.testing.assert_close(whole.scales[:, -1], alone.scales[:, 0], rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_rows_stay_zero(bits: int) -> None:
    weight = weights(5)
    weight[1] = 0
    weight[3, :32] = 0
    rounded = gptq(weight, bits, 32, factorize(gram(5), 0.1), refinements=2)
    check_storable(rounded, bits, 32, weight.shape)
    stored = rounded.dequantize(32)
    assert not stored[1].any()
    assert bool(torch.isfinite(stored).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [1e4, -1e4, 3e38, 1e-30])
def test_outliers_break_nothing(bits: int, size: float) -> None:
    weight = weights(7)
    weight[2, 40] = size
    rounded = gptq(weight, bits, 32, factorize(gram(7), 0.1), refinements=1)
    check_storable(rounded, bits, 32, weight.shape)
    stored = rounded.dequantize(32)
    assert bool(torch.isfinite(stored).all())
    if abs(size) == 1e4:
        assert stored[2, 40] == pytest.approx(size, rel=0.5)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_dead_columns_and_no_hessian_at_all(scale: float) -> None:
    hessian = gram(9) * scale
    hessian[5], hessian[:, 5] = 0, 0
    for given_ in (hessian, torch.zeros(72, 72), torch.ones(72, 72) * scale):
        factor = factorize(given_, 0.01)
        assert bool((factor.price > 0).all())
        assert bool(torch.isfinite(factor.upper).all())
        rounded = gptq(weights(9), 4, 32, factor, refinements=1)
        check_storable(rounded, 4, 32, torch.Size((6, 72)))


def test_damping_grows_until_the_factorization_succeeds() -> None:
    indefinite = torch.diag(torch.tensor([4.0, 1.0, -0.5]))
    factor = factorize(indefinite, 0.01)
    assert bool((factor.damped.diagonal() > 0).all())


def test_factor_is_the_inverse_in_its_order() -> None:
    factor = factorize(gram(11, 20), 0.01)
    ordered = factor.damped[factor.order][:, factor.order].double()
    product = factor.upper.double().T @ factor.upper.double() @ ordered
    torch.testing.assert_close(product, torch.eye(20).double(), rtol=0, atol=1e-3)
    assert bool((factor.damped.diagonal()[factor.order].diff() <= 0).all())


def test_rows_do_not_depend_on_their_neighbours() -> None:
    weight, factor = weights(13, rows=12), factorize(gram(13), 0.1)
    whole = gptq(weight, 3, 32, factor, refinements=1)
    part = gptq(weight[4:7], 3, 32, factor, refinements=1)
    torch.testing.assert_close(whole.codes[4:7], part.codes, rtol=0, atol=0)
    torch.testing.assert_close(whole.scales[4:7], part.scales, rtol=0, atol=0)


def test_row_errors_are_the_quadratic_form() -> None:
    weight, hessian = weights(15), gram(15)
    stored = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    found = row_errors(weight, stored, hessian)
    wanted = torch.stack(
        [(s - w) @ hessian @ (s - w) for s, w in zip(stored, weight, strict=True)]
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    assert not row_errors(weight, weight, hessian).any()


def test_a_hessian_of_huge_entries_is_factorized() -> None:
    factor = factorize(torch.eye(16) * 3e37, 0.1)
    assert bool(torch.isfinite(factor.upper).all())
