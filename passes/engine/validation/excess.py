"""Judges a result as a whole: what it lost against what was predicted.

Of 165 results that docs/methods.md lists (three models, all presets, five budgets) none lost
more than 3.0 times its prediction, and of those of the default preset none more than 1.1. The
limits leave room for fewer samples and for other models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from ....ir import BitAllocation, ChannelSpec, all_nodes, all_notes_of
from ..numerics.estimate import Estimate

WARNED, REFUSED = "warning", "refused"
_SUSPICIOUS = 4.0  # measured over predicted divergence from which the user is warned
_IMPOSSIBLE = 10.0  # ... from which something must be wrong
_NEGLIGIBLE = 0.02  # nats, or half a squared relative error, below which a ratio says nothing
_SURE = 2.0  # standard errors that a measurement must lie beyond a limit
_MOST_BLAMED = 5


def level_of(measured: Estimate, predicted: float) -> str:
    """Returns ``warning``, ``refused`` or nothing for a measured divergence.

    Args:
        measured: In the unit of the prediction: nats per token, or half the squared error of
            an output relative to its mean square.
        predicted: What rounding was predicted to cost.
    """
    least = measured.mean - _SURE * measured.error
    if measured.mean <= max(_SUSPICIOUS * predicted, _NEGLIGIBLE):
        return ""
    refused = least > max(_IMPOSSIBLE * predicted, _NEGLIGIBLE)
    return REFUSED if refused else WARNED


def blamed(model: ir.Model) -> list[dict[str, Any]]:
    """Returns the units that were predicted to lose most, worst first, with their losses."""
    losses = dict(_losses(all_nodes(model.graph)))
    worst = sorted(losses.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_BLAMED]
    return [{"unit": name, "predicted": loss} for name, loss in worst]


def _losses(nodes: Iterable[ir.Node]) -> Iterable[tuple[str, float]]:
    for node in nodes:
        yield from ((note.unit, note.loss) for note in all_notes_of(node, BitAllocation))
        yield from ((note.unit, note.loss) for note in all_notes_of(node, ChannelSpec))
