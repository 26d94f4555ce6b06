"""Clusters of numbers against every way of cutting them, and how widths follow."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpqc.passes.engine.numerics.kmeans import cluster

numbers = st.lists(st.integers(-50, 50).map(lambda n: n / 8), min_size=1, max_size=9)


def spread(values: np.ndarray, labels: np.ndarray) -> float:
    parts = (values[labels == label] for label in np.unique(labels))
    return float(sum(np.square(part - part.mean()).sum() for part in parts))


def least_spread(values: np.ndarray, count: int) -> float:
    """Tries all ways of cutting the sorted values."""
    ordered = np.sort(values)
    found = []
    for parts in range(1, min(count, len(values)) + 1):
        for cuts in combinations(range(1, len(values)), parts - 1):
            labels = np.zeros(len(values), dtype=int)
            for cut in cuts:
                labels[cut:] += 1
            found.append(spread(ordered, labels))
    return min(found)


@given(numbers, st.integers(1, 4))
def test_no_clusters_are_tighter(values: list[float], count: int) -> None:
    array = np.array(values)
    labels = cluster(values, count)
    assert spread(array, labels) == pytest.approx(least_spread(array, count), abs=1e-9)
    assert len(np.unique(labels)) == labels.max() + 1 == min(count, len(set(values)))


@given(numbers, st.integers(1, 4))
def test_labels_follow_the_centroids_not_the_order(values: list[float], count: int) -> None:
    array, labels = np.array(values), cluster(values, count)
    tops = [array[labels == label] for label in range(labels.max() + 1)]
    assert all(a.max() < b.min() for a, b in pairwise(tops))
    order = np.random.default_rng(len(values)).permutation(len(values))
    again = cluster(array[order], count)
    assert spread(array[order], again) == pytest.approx(spread(array, labels), abs=1e-9)


def test_numbers_close_together_far_from_zero() -> None:
    values = 1e6 + np.array([0.0, 1e-4, 1.0, 1.0001, 1e3])
    assert cluster(values, 3).tolist() == [0, 0, 1, 1, 2]
