"""Rounding activations: the formulas of the CrossQuant paper and what follows from them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mpqc.passes.engine.numerics.activations import (
    block_steps,
    column_factors,
    cross_steps,
    kernel_share,
    largest_code,
    powers_of_two,
    rounded,
    tensor_steps,
)

ALPHAS = st.floats(0, 1)
BITS = st.sampled_from((4, 8))


def activations(seed: int, tokens: int = 24, columns: int = 40) -> torch.Tensor:
    """Columns of very different sizes, a few of them huge."""
    torch.manual_seed(seed)
    sizes = torch.randn(columns).exp()
    sizes[: columns // 10] *= 40
    return torch.randn(tokens, columns) * sizes


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), ALPHAS, BITS)
def test_crossquant_never_clips(seed: int, alpha: float, bits: int) -> None:
    x = activations(seed)
    codes = (x / cross_steps(x, alpha, bits)).abs()
    assert float(codes.max()) <= largest_code(bits) * (1 + 1e-5)
    found = rounded(x, cross_steps(x, alpha, bits), bits)
    assert bool(((found - x).abs() <= cross_steps(x, alpha, bits) * 0.5001).all())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), BITS)
def test_the_ends_are_per_token_and_per_column(seed: int, bits: int) -> None:
    x = activations(seed)
    most = largest_code(bits)
    token = x.abs().amax(dim=1, keepdim=True) / most
    column = x.abs().amax(dim=0, keepdim=True) / most
    torch.testing.assert_close(cross_steps(x, 1.0, bits), token.expand_as(x))
    torch.testing.assert_close(cross_steps(x, 0.0, bits), column.expand_as(x))
    torch.testing.assert_close(block_steps(x, 0, bits), cross_steps(x, 1.0, bits))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.floats(0, 0.9))
def test_folded_steps_are_at_most_crossquants(seed: int, alpha: float) -> None:
    """In units of x: with true row maxima the step is ``f_j max_k |x_ik| / f_k / m``."""
    x = activations(seed)
    peaks = x.abs().amax(dim=0)
    factors = column_factors(peaks, torch.ones_like(peaks), alpha)
    folded = block_steps(x / factors, 0) * factors
    assert bool((folded <= cross_steps(x, alpha) * (1 + 1e-4)).all())
    assert kernel_share(x / factors, block_steps(x / factors, 0)) <= kernel_share(
        x, cross_steps(x, alpha)
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_kernel_shrinks_where_columns_are_huge(seed: int) -> None:
    x = activations(seed, 200, 200)
    by_token = kernel_share(x, block_steps(x, 0))
    by_both = kernel_share(x, cross_steps(x, 0.15))
    assert by_token > 0.2
    assert by_both < by_token / 5


def test_a_group_has_its_own_step() -> None:
    x = torch.ones(1, 10)
    x[0, 0] = 127
    steps = block_steps(x, 4)
    assert steps[0, 0] == 1
    torch.testing.assert_close(steps[0, 4:], torch.full((6,), 1 / 127))
    torch.testing.assert_close(tensor_steps(x), torch.ones(1, 10))


def test_zeros_stay_zeros_and_dead_columns_get_finite_factors() -> None:
    x = torch.zeros(3, 5)
    assert float(rounded(x, cross_steps(x, 0.3)).abs().max()) == 0
    assert bool(torch.isfinite(rounded(x, block_steps(x, 0))).all())
    peaks = torch.tensor([0.0, 100.0, 1e6])
    factors = column_factors(peaks, torch.ones(3), 0.0, 0.5)
    assert bool((torch.isfinite(factors) & (factors > 0)).all())
    assert factors[0] < factors[1] < factors[2]
    torch.testing.assert_close(
        column_factors(torch.zeros(3), torch.zeros(3), 0.2), torch.ones(3)
    )


def test_powers_of_two_multiply_exactly() -> None:
    factors = powers_of_two(torch.rand(100).exp() * 10)
    x = torch.randn(100)
    assert torch.equal(x / factors * factors, x)
    assert torch.equal(factors.log2(), factors.log2().round())
