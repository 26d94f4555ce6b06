"""The standard error of a mean over tokens that come in samples."""

from __future__ import annotations

import numpy as np
import pytest

from mpqc.passes.engine.numerics.estimate import Estimate
from mpqc.passes.engine.validation.excess import level_of


def test_the_error_is_that_of_repeated_measurements() -> None:
    """Tokens of a sample share most of their deviation."""
    rng = np.random.default_rng(0)

    def measure() -> Estimate:
        shared = rng.standard_normal(12)
        return Estimate.of([one + rng.standard_normal(30) / 4 + 5 for one in shared])

    found = [measure() for _ in range(400)]
    spread = np.std([one.mean for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.1)
    assert (found[0].samples, found[0].tokens) == (12, 360)


def test_unequal_samples_count_by_their_tokens() -> None:
    found = Estimate.of([np.full(30, 1.0), np.full(10, 5.0)])
    assert found.mean == 2.0
    assert found.error == pytest.approx(np.sqrt(2 * (30**2 + 30**2)) / 40)


def test_one_sample_has_only_its_tokens() -> None:
    found = Estimate.of([np.array([1.0, 2.0, 3.0])])
    assert found.error == pytest.approx(1 / np.sqrt(3))
    assert Estimate.of([np.array([1.0])]).error == np.inf
    assert not Estimate.of([np.array([1.0])]).is_sure(0.1)
    assert Estimate.of([]).tokens == 0


@pytest.mark.parametrize(
    ("mean", "error", "level"),
    [
        (0.3, 0.0, ""),
        (0.45, 0.0, "warning"),
        (1.3, 0.1, "refused"),
        (1.3, 0.3, "warning"),  # it may be less than ten times the prediction
    ],
)
def test_levels(mean: float, error: float, level: str) -> None:
    assert level_of(Estimate(mean, error, 4, 100), 0.1) == level


def test_next_to_nothing_is_never_too_much() -> None:
    assert level_of(Estimate(0.019, 0.0, 4, 100), 1e-9) == ""
    assert level_of(Estimate(0.021, 0.0, 4, 100), 1e-9) == "refused"
