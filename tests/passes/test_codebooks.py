"""Weighted k-means in one dimension against brute force, and what it must never do."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from mpqc.passes.engine.numerics import codebooks
from mpqc.passes.engine.numerics.codebooks import Coded, free_levels, grid_levels

# Multiples of 1/8 up to 512 are float16 numbers, and so are most means of few of them.
FLOATS = st.integers(-512, 512).map(lambda n: n / 8)


def error(coded: Coded, channels: torch.Tensor, weights: torch.Tensor) -> float:
    return float(((coded.decode() - channels).double().square() * weights).sum())


def best_clusters(values: np.ndarray, weights: np.ndarray, clusters: int) -> float:
    """Tries every way to cut the sorted values into intervals."""
    order = np.argsort(values)
    x, w = values[order], weights[order]
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(x) + 1), clusters - 1):
        total = 0.0
        for start, stop in itertools.pairwise([0, *cuts, len(x)]):
            if stop > start:
                part, price = x[start:stop], w[start:stop]
                mean = (part * price).sum() / price.sum()
                total += float((price * (part - mean) ** 2).sum())
        best = min(best, total)
    return best


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float64, 7, elements=FLOATS),
    hnp.arrays(np.float64, 7, elements=st.integers(1, 9).map(float)),
    st.sampled_from([1, 2]),
)
def test_free_levels_are_the_best_there_are(
    values: np.ndarray, weights: np.ndarray, bits: int
) -> None:
    channels = torch.tensor(values, dtype=torch.float32)[None]
    coded = free_levels(channels, torch.tensor(weights, dtype=torch.float32), bits)
    best = best_clusters(values, weights, 1 << bits)
    # Levels are float16: that costs half a unit in the last place of the largest.
    rounding = weights.sum() * (np.abs(values).max() * 2**-11) ** 2
    got = error(coded, channels, torch.tensor(weights))
    assert best - 1e-6 <= got + rounding
    assert got <= best + rounding + 1e-4 * max(best, 1.0)


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float64, 8, elements=st.integers(-40, 36).map(lambda n: n / 5)),
    st.sampled_from([1, 2]),
)
def test_grid_levels_are_the_best_integers(values: np.ndarray, bits: int) -> None:
    """All sets of levels among the 16 integers are tried; intervals end at halves."""
    channels = torch.tensor(values, dtype=torch.float32)[None]
    even = torch.ones_like(channels)
    coded = grid_levels(channels, even, bits, 4)
    assert torch.equal(coded.levels, coded.levels.round())
    assert coded.levels.min() >= -8
    assert coded.levels.max() <= 7
    best = min(
        float(np.square(values[:, None] - np.array(levels)).min(1).sum())
        for levels in itertools.combinations(range(-8, 8), 1 << bits)
    )
    nearest = np.abs(values - np.clip(np.round(values), -8, 7))
    # Values that share a half-open cell cannot be told apart by the program: the price of it.
    slack = float(np.sum(nearest)) + 1e-4
    assert best - 1e-4 <= error(coded, channels, even) <= best + slack


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("rows", [1, 3, 400])
def test_any_width_and_length(bits: int, rows: int) -> None:
    channels = torch.randn(35, rows, generator=torch.Generator().manual_seed(rows))
    channels[3] = 0.25  # a constant channel
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(1))
    coded = free_levels(channels, weights, bits)
    assert coded.levels.shape == (35, 1 << bits)
    assert torch.equal(coded.levels.half().float(), coded.levels)
    assert torch.equal(coded.levels.sort(dim=1).values, coded.levels)
    assert torch.equal(coded.decode()[3], channels[3])
    nearest = (channels[:, :, None] - coded.levels[:, None]).abs().amin(2)
    torch.testing.assert_close((coded.decode() - channels).abs(), nearest)
    if rows <= 1 << bits <= 16:  # a level for every value, where the program is exact
        torch.testing.assert_close(coded.decode(), channels, rtol=1e-3, atol=1e-3)


def test_candidates_lose_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On long channels the shortcut is within a per mille of the exact program."""
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(4, 600, generator=generator)
    channels = torch.cat([normal, normal**3])  # with far outliers
    weights = torch.rand(600, generator=generator)
    for bits in (2, 3, 4):
        short = error(free_levels(channels, weights, bits), channels, weights)
        monkeypatch.setattr(codebooks, "CELLS", 600)
        exact = error(free_levels(channels, weights, bits), channels, weights)
        monkeypatch.undo()
        assert exact * 0.999 <= short <= exact * 1.005


@pytest.mark.parametrize("bits", [5, 6])
def test_wide_codebooks_beat_even_levels(bits: int) -> None:
    channels = torch.randn(8, 2000, generator=torch.Generator().manual_seed(2))
    weights = torch.ones(2000)
    low, high = channels.amin(1, keepdim=True), channels.amax(1, keepdim=True)
    step = (high - low) / ((1 << bits) - 1)
    even = ((channels - low) / step).round() * step + low
    plain = float((even - channels).double().square().sum())
    assert error(free_levels(channels, weights, bits), channels, weights) < 0.6 * plain


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e12])
def test_only_ratios_of_weights_matter(scale: float) -> None:
    channels = torch.randn(5, 90, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(90, generator=torch.Generator().manual_seed(4)).double()
    one = free_levels(channels, weights, 3)
    other = free_levels(channels, weights * scale, 3)
    assert torch.equal(one.levels, other.levels)


def test_rows_without_weight_still_get_a_level() -> None:
    channels = torch.tensor([[-1.0, -0.9, 5.0, 6.0]])
    coded = free_levels(channels, torch.zeros(4), 1)
    torch.testing.assert_close(
        coded.levels, torch.tensor([[-0.95, 5.5]]), rtol=1e-3, atol=1e-3
    )
    assert coded.indices.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_grid_of_eight_bits_is_almost_free(bits: int) -> None:
    channels = torch.randn(6, 800, generator=torch.Generator().manual_seed(7))
    scaled = channels / channels.abs().amax() * 127
    even = torch.ones_like(channels)
    grid = error(grid_levels(scaled, even, bits, 8), scaled, even)
    free = error(free_levels(scaled, even, min(bits, 4)), scaled, even)
    assert grid <= free * 1.02
