"""The best scales for rounding: one search for processors, one for accelerators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpqc.passes.engine.numerics import processor
from mpqc.passes.engine.numerics.row_errors import row_errors
from mpqc.passes.engine.numerics.scales import code_range, search_scales, widened

pytestmark = pytest.mark.usefixtures("one_thread")


def at_once(
    weight: torch.Tensor, bits: int, group: int, price: torch.Tensor, *, signed: bool
) -> torch.Tensor:
    """Searches as on an accelerator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processor, "_PROCESSOR", "none")
        return search_scales(weight, bits, group, price, signed=signed)


def cost(
    weight: torch.Tensor, bits: int, group: int, price: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    wide = widened(scales, group, weight.shape[1])
    codes = (weight / wide).round().clamp(*code_range(bits))
    return ((codes * wide - weight).double().square() * price).sum()


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 140),
    bits=st.sampled_from([2, 3, 4, 5, 8, 16]),
    group=st.sampled_from([16, 32, 64, 200]),
    signed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_both_searches_find_scales_as_good(
    rows: int, columns: int, bits: int, group: int, signed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    price = torch.rand(columns, generator=generator) + 0.01
    here = search_scales(weight, bits, group, price, signed=signed)
    there = at_once(weight, bits, group, price, signed=signed)
    costs = [cost(weight, bits, group, price, one) for one in (here, there)]
    torch.testing.assert_close(costs[0], costs[1], rtol=1e-4, atol=1e-8)
    assert (here == there).float().mean() > 0.98 or len(here.flatten()) < 50
    assert signed or (here > 0).all()


@given(rows=st.integers(1, 9), columns=st.integers(1, 600), seed=st.integers(0, 99))
def test_half_a_hessian_says_what_the_whole_says(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    hessian = mixing @ mixing.T / columns
    exact = torch.randn(rows, columns, generator=generator)
    stored = exact + 0.1 * torch.randn(rows, columns, generator=generator)
    error = (stored - exact).double()
    wanted = ((error @ hessian.double()) * error).sum(1).float()
    torch.testing.assert_close(
        row_errors(exact, stored, hessian), wanted, rtol=1e-3, atol=1e-5
    )
    diagonal = (error.square() @ hessian.diagonal().double()).float()
    found = row_errors(exact, stored, hessian.diagonal())
    torch.testing.assert_close(found, diagonal, rtol=1e-3, atol=1e-5)
