"""k-means of numbers, exactly: on a line the best clusters are intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cluster(values: Sequence[float] | np.ndarray, count: int) -> np.ndarray:
    """Returns for every value its cluster, numbered by growing centroid.

    The clusters are those of least squared distance to their centroids, found by dynamic
    programming over the sorted values: ``D[k, j] = min_i D[k-1, i] + cost(i, j)``. Equal
    values share a cluster, so there may be fewer clusters than ``count``, and none is empty.

    Args:
        values: Finite numbers.
        count: The most clusters to make, at least one.
    """
    points, inverse, weights = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    labels = np.empty(len(points), dtype=np.int64)
    stop = len(points)
    starts = _starts(points, weights.astype(np.float64), min(count, len(points)))
    for label in reversed(range(len(starts))):
        start = int(starts[label][stop])
        labels[start:stop] = label
        stop = start
    return labels[inverse]


def _starts(points: np.ndarray, weights: np.ndarray, count: int) -> list[np.ndarray]:
    """Returns, by cluster and by where it ends, where the best last cluster starts."""
    cost = _costs(points, weights)
    best, starts = cost[0], [np.zeros(len(points) + 1, dtype=np.int64)]
    for _ in range(1, count):
        total = best[:, None] + cost
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    return starts


def _costs(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the squared error of every interval [i, j); infinite where it is empty.

    Points join the intervals one by one (Welford's update), which loses no digits where values
    lie close together far away from zero.
    """
    costs = np.full((len(points) + 1, len(points) + 1), np.inf)
    mean, size, error = (np.zeros(len(points)) for _ in range(3))
    for at, (point, weight) in enumerate(zip(points, weights, strict=True)):
        grown = slice(0, at + 1)
        gap = point - mean[grown]
        total = size[grown] + weight
        error[grown] += gap**2 * (size[grown] * weight / total)
        mean[grown] += gap * (weight / total)
        size[grown] = total
        costs[grown, at + 1] = error[grown]
    return costs
