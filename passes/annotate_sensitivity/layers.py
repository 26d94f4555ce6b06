"""Scores of whole blocks: which blocks get one, and what their units lose by it.

A score ``s`` of a block says nothing of widths, so the losses of its rows follow the law of
uniform rounding, by which every bit quarters the squared error: a row with the share ``a`` of
the block's weights loses ``s a 4^-bits``. That makes the published scores comparable under an
exact budget.

Lookups and the output head are in no layer of a transformer. As in the published code, where
the head gets what layer 0 gets, they take the score of the first block, weight for weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir import Calibrated, Unit, UsageError, need_note
from ...ir.analysis.blocks import Block, blocks_of
from .metric import Asked, Judgement

_TINY = 1e-18  # where no score is above zero; small, and far from the end of float32
_LEAST = 1e-3  # of the largest score: blocks that seem free still get the bytes that are left


@dataclass(frozen=True)
class Layer:
    """A block that gets a score.

    Attributes:
        block: The block.
        units: The units that it multiplies by.
    """

    block: Block
    units: tuple[Unit, ...]

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(unit.size for unit in self.units)


def layers_of(asked: Asked[object]) -> list[Layer]:
    """Returns the blocks with products or convolutions, without the one that makes the logits.

    Raises:
        UsageError: There is none.
    """
    blocks = blocks_of(asked.model)
    place = {node: at for at, block in enumerate(blocks) for node in block.nodes}
    members: dict[int, dict[str, Unit]] = {}
    for unit in asked.units:
        for use in unit.uses:
            if use.kind != "lookup":
                members.setdefault(place[use.node], {})[unit.name] = unit
    note = need_note(asked.model, Calibrated)
    if note.objective == "logits" and len(members) > 1:
        made = (at for at, block in enumerate(blocks) if _makes(block, note.output))
        members.pop(next(made, -1), None)
    if not members:
        raise UsageError(
            f"metric={asked.metric} finds no block that multiplies by weights",
            hint="use metric=fisher",
        )
    return [Layer(blocks[at], tuple(found.values())) for at, found in sorted(members.items())]


def _makes(block: Block, output: str) -> bool:
    return any(value.name == output for value in block.outputs)


def judgements(
    asked: Asked[object], layers: Sequence[Layer], scores: Sequence[float]
) -> dict[str, Judgement]:
    """Returns the judgement of each unit by the largest score of its layers.

    Args:
        asked: The request to the metric.
        layers: At least one layer.
        scores: Of each layer.
    """
    floor = max(_LEAST * max(scores), _TINY)
    homes: dict[str, int] = {}
    for at in sorted(range(len(layers)), key=lambda at: scores[at]):
        homes.update({unit.name: at for unit in layers[at].units})
    found: dict[str, Judgement] = {}
    for unit in asked.units:
        at = homes.get(unit.name, 0)
        score = float(scores[at])
        each = max(score, floor) / layers[at].size * unit.shape[1]
        steps = np.array([4.0**-one.bits for one in asked.options[unit.name]])
        loss = np.broadcast_to(each * steps, (unit.shape[0], len(steps)))
        found[unit.name] = Judgement(
            np.ascontiguousarray(loss, dtype=np.float32),
            score,
            layers[at].block.index,
        )
    return found
