"""Clusters of scores, as CPTQuant allocates (Nanda et al. 2024, arXiv 2412.03599).

The scores of all blocks (of all units, where the metric judges units) are cut into as many
clusters as there are widths, by k-means, and the cluster with the largest centroid gets the
first width. Sizes play no part, so the average comes out as it comes out: a budget is a bound
that may refuse it. The released code gives widths by k-means' own labels, whose order is
arbitrary; here they go by the centroids.
"""

from __future__ import annotations

from collections.abc import Hashable

from ..numerics.clusters import cluster
from .decision import Candidate, Decision
from .method import Asked


def decide(asked: Asked) -> list[Decision]:
    """Gives every unit the width of the cluster that its score is in."""
    scores = {_judged(one): one.need_score().value for one in asked.candidates}
    labels = cluster(list(scores.values()), len(asked.settings.bits))
    from_the_top = [labels.max() - label for label in labels]
    widths = {
        judged: asked.settings.bits[at]
        for judged, at in zip(scores, from_the_top, strict=True)
    }
    return [Decision.whole(one, one.place(widths[_judged(one)])) for one in asked.candidates]


def _judged(candidate: Candidate) -> Hashable:
    """Returns what the score belongs to: a block, or the unit alone."""
    score = candidate.need_score()
    return score.block if score.block >= 0 else score.unit
