"""Canonical correlations between two clouds of points: how alike two representations are.

Points are rows. With orthonormal bases ``Q_x`` and ``Q_y`` of the centered columns, the
canonical correlations are the singular values of ``Q_x^T Q_y`` (Bjorck and Golub 1973). They
do not change under invertible maps of the channels on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOST_COMPONENTS = 20
ENERGY = 0.99  # of the variance, which the kept components hold
_RANK_TOLERANCE = 1e-6  # of the largest singular value; values come from float32


@dataclass(frozen=True)
class Cloud:
    """Centered points, by their singular value decomposition.

    Attributes:
        basis: Points x components, orthonormal.
        coordinates: Components x channels: the points are ``basis @ coordinates``.
    """

    basis: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray) -> Cloud:
        """Keeps every direction in which the points differ.

        Args:
            points: Points x channels.
        """
        wide = np.asarray(points, dtype=np.float64)
        left, sizes, right = np.linalg.svd(wide - wide.mean(axis=0), full_matrices=False)
        rank = int((sizes > sizes[:1].max(initial=0) * _RANK_TOLERANCE).sum())
        return cls(left[:, :rank], sizes[:rank, None] * right[:rank])

    def leading(self) -> Cloud:
        """Keeps the leading components: most of the variance, few, and fewer than points.

        As many components as a third of the points: beyond that, correlations between any two
        clouds would be close to one.
        """
        energy = np.cumsum(np.square(self.coordinates).sum(axis=1))
        enough = int(np.searchsorted(energy, ENERGY * energy[-1:].max(initial=0))) + 1
        most = max(min(MOST_COMPONENTS, len(self.basis) // 3), 1)
        kept = slice(0, min(enough, most))
        return Cloud(self.basis[:, kept], self.coordinates[kept])


def correlations(x: Cloud, y: Cloud) -> np.ndarray:
    """Returns the canonical correlations, falling, each between 0 and 1."""
    return np.linalg.svd(x.basis.T @ y.basis, compute_uv=False).clip(0.0, 1.0)


def first_pair(x: Cloud, y: Cloud) -> float:
    """Returns the largest canonical correlation; 0 where a cloud is a single point."""
    return float(correlations(x, y).max(initial=0.0))


def svcca(x: Cloud, y: Cloud) -> float:
    """Returns the mean correlation of the leading components (Raghu et al. 2017)."""
    found = correlations(x.leading(), y.leading())
    return float(found.mean()) if len(found) else 0.0


def pwcca(x: Cloud, y: Cloud) -> float:
    """Returns the mean of the leading correlations, weighted by how much of ``x`` they are.

    The weight of the k-th canonical variate ``h_k`` of x is ``sum_c |<h_k, x_c>|`` over the
    channels c of x (Morcos et al. 2018, projection-weighted CCA).
    """
    one, other = x.leading(), y.leading()
    left, found, _ = np.linalg.svd(one.basis.T @ other.basis, full_matrices=False)
    weights = np.abs(left.T @ one.coordinates).sum(axis=1)
    total = float(weights.sum())
    return float(weights @ found.clip(0.0, 1.0)) / total if total > 0 else 0.0
