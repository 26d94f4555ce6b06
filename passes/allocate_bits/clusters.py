"""Clusters of scores, as CPTQuant allocates (Nanda et al. 2024, arXiv 2412.03599).

The scores of all blocks (of all units, where the metric judges units) are cut into as many
clusters as there are widths, by k-means, and the cluster with the largest centroid gets the
first width. Sizes play no part, so the average comes out as it comes out: a budget is a bound
that may refuse it. The released code gives widths by k-means' own labels, whose order is
arbitrary; here they go by the centroids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...ir import Option, Unit, UsageError
from ...ir.analysis.blocks import blocks_of
from ..engine.numerics.kmeans import cluster
from .decision import Candidate, Decision
from .method import Asked


@dataclass(frozen=True)
class Settings:
    """Options of ``clusters`` and, with two widths, of ``ratio``.

    Attributes:
        bits: Widths to give, the largest first.
    """

    bits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.bits, self.bits[1:], strict=False))
        if not self.bits:
            raise UsageError(
                "this method of allocate-bits needs bits", hint="like bits=[8, 4]"
            )
        if not falling or any(bits < 1 for bits in self.bits):
            raise UsageError("bits have to fall, like [8, 4]", hint="name the widest first")


def decide(asked: Asked[Settings]) -> list[Decision]:
    """Gives every unit the width of the cluster that its score is in."""
    scores = {_judged(one): one.need_score().value for one in asked.candidates}
    labels = cluster(list(scores.values()), len(asked.settings.bits))
    from_the_top = [labels.max() - label for label in labels]
    widths = {
        judged: asked.settings.bits[at]
        for judged, at in zip(scores, from_the_top, strict=True)
    }
    return [Decision.whole(one, one.place(widths[_judged(one)])) for one in asked.candidates]


def least_bytes(
    model: ir.Model, offered: Mapping[Unit, Sequence[Option]], bits: Sequence[int]
) -> int:
    """Returns a lower bound on the bytes of clusters of blocks, before any scores exist.

    Every width has at least one block: the last width has all but one for each of the others,
    and these are the blocks for which it costs least.

    Args:
        model: The graph.
        offered: The options of each unit, by growing size.
        bits: The widths, the widest first.
    """
    sizes = {
        unit: [_bytes_at(unit, options, width) for width in bits]
        for unit, options in offered.items()
    }
    groups = _blocks_alone(model, offered)
    if len(groups) < len(bits):
        return sum(min(one) for one in sizes.values())
    wider = (
        min(sum(sizes[unit][at] - sizes[unit][-1] for unit in group) for group in groups)
        for at in range(len(bits) - 1)
    )
    return sum(one[-1] for one in sizes.values()) + sum(wider)


def _bytes_at(unit: Unit, options: Sequence[Option], bits: int) -> int:
    wide = [one for one in options if one.bits >= bits] or [options[-1]]
    return wide[0].row_bytes(unit.shape[1]) * unit.shape[0]


def _blocks_alone(model: ir.Model, units: Mapping[Unit, object]) -> list[list[Unit]]:
    """Returns, block by block, the units that nothing outside of it multiplies by."""
    place = {node: block.index for block in blocks_of(model) for node in block.nodes}
    groups: dict[int, list[Unit]] = defaultdict(list)
    for unit in units:
        homes = {place[use.node] for use in unit.uses}
        if len(homes) == 1 and all(use.kind != "lookup" for use in unit.uses):
            groups[homes.pop()].append(unit)
    return list(groups.values())


def _judged(candidate: Candidate) -> Hashable:
    """Returns the owner of the score: a block, or the unit alone."""
    score = candidate.need_score()
    return score.block if score.block >= 0 else score.unit
