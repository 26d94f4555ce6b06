"""Canonical correlations: what they must not depend on, and what they must tell apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mpqc.passes.annotate_sensitivity.cca import dissimilarities, pooled
from mpqc.passes.engine.numerics.canonical import Cloud, correlations, first_pair, pwcca, svcca


def points(count: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels))


def invertible(size: int, seed: int) -> np.ndarray:
    return points(size, size, seed) + 3 * np.eye(size)


@pytest.mark.parametrize("seed", range(4))
def test_invertible_maps_and_shifts_change_no_correlation(seed: int) -> None:
    x, noise = points(60, 7, seed), points(60, 5, seed + 10)
    y = x @ points(7, 5, seed + 20) + noise
    before = correlations(Cloud.of(x), Cloud.of(y))
    mapped = Cloud.of(x @ invertible(7, seed) + 5), Cloud.of(y @ invertible(5, seed + 1) - 2)
    np.testing.assert_allclose(correlations(*mapped), before, atol=1e-9)
    assert first_pair(*mapped) == pytest.approx(before[0])
    clouds = [Cloud.of(points(60, 6, seed + at)) for at in range(3)]
    moved = [Cloud.of(points(60, 6, seed + at) @ invertible(6, at + seed)) for at in range(3)]
    np.testing.assert_allclose(
        dissimilarities(moved, "plain"), dissimilarities(clouds, "plain"), atol=1e-9
    )


@pytest.mark.parametrize("similar", [svcca, pwcca])
def test_rotations_and_scales_change_no_variant(
    similar: Callable[[Cloud, Cloud], float],
) -> None:
    x, y = points(90, 8, 1), points(90, 6, 2)
    turn = np.linalg.qr(points(6, 6, 3))[0]
    before = similar(Cloud.of(x), Cloud.of(y))
    assert similar(Cloud.of(4 * x + 1), Cloud.of(y @ turn)) == pytest.approx(before)


@pytest.mark.parametrize("similar", [first_pair, svcca, pwcca])
def test_the_ends_of_the_scale(similar: Callable[[Cloud, Cloud], float]) -> None:
    x = Cloud.of(points(400, 6, 1))
    assert similar(x, x) == pytest.approx(1)
    turned = np.linalg.qr(np.concatenate([points(400, 12, 2), np.ones((400, 1))], axis=1))[0]
    apart = Cloud.of(turned[:, :5]), Cloud.of(turned[:, 5:10])
    assert similar(*apart) < 0.1
    still = Cloud.of(np.ones((400, 6)))
    assert similar(x, still) == 0


def test_the_first_pair_is_the_best_direction() -> None:
    """Against the definition: no pair of directions correlates more."""
    x, y = points(40, 3, 1), points(40, 2, 2)
    y[:, 0] += x[:, 1]
    best = first_pair(Cloud.of(x), Cloud.of(y))
    rng = np.random.default_rng(0)
    tried = [
        abs(np.corrcoef(x @ rng.standard_normal(3), y @ rng.standard_normal(2))[0, 1])
        for _ in range(4000)
    ]
    assert 0.97 * best < max(tried) <= best + 1e-9


def test_a_block_unlike_the_others_scores_highest() -> None:
    shared = points(120, 6, 1)
    clouds = [
        Cloud.of(shared @ invertible(6, at) + 0.1 * points(120, 6, at)) for at in range(4)
    ]
    clouds.insert(2, Cloud.of(points(120, 6, 9)))
    for variant in ("plain", "svcca", "pwcca"):
        assert int(np.argmax(dissimilarities(clouds, variant))) == 2


def test_padding_counts_in_no_mean() -> None:
    output = points(2 * 10, 4).reshape(2, 10, 4)
    real = np.ones((2, 10), dtype=bool)
    real[0, 6:] = real[1, :3] = False
    np.testing.assert_allclose(
        pooled(output, real, 0), [output[0, :6].mean(axis=0), output[1, 3:].mean(axis=0)]
    )
    assert pooled(output, real, 3).shape == (2 + 3, 4)
    assert pooled(output, np.zeros_like(real), 0).shape == (0, 4)
    images = points(2, 3 * 5 * 5).reshape(2, 3, 5, 5)
    np.testing.assert_allclose(pooled(images, real, 0), images.mean(axis=(2, 3)))
