"""The search of column scales finds the cheapest candidate of a smooth cost in few tries."""

from __future__ import annotations

import numpy as np
import pytest

from mpqc.passes.rewrite_crossquant.search import ALPHAS, BETAS, Scales, _cheapest


@pytest.mark.parametrize("alpha", [0.0, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("slant", [0.0, 0.1])
def test_the_bottom_of_a_valley_is_found(alpha: float, beta: float, slant: float) -> None:
    tried = []

    def scales(one: float, other: float) -> Scales:
        tried.append((one, other))
        off, across = one - alpha, other - beta
        cost = off**2 + across**2 + slant * off * across
        return Scales(np.ones(1, np.float32), one, other, cost, 9.0)

    best = _cheapest(scales, ALPHAS, BETAS)
    assert (best.alpha, best.beta) == (alpha, beta)
    assert len(tried) == len(set(tried)) <= len(ALPHAS) + len(BETAS) + 1
