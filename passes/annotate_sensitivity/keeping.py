"""Which input channels of a unit would best stay in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...ir import Capabilities, Option, Unit
from ...ir.analysis.offered import expands_to_floats
from ..engine.statistics.quadratic import Quadratic

_KEPT_BITS = 16


def can_keep(unit: Unit, table: Capabilities) -> bool:
    """Tells whether input channels of ``unit`` can be multiplied apart from the others."""
    products = all(use.kind == "product" for use in unit.uses)
    return table.keeps_columns and products and not expands_to_floats(unit, table)


def ranked_columns(unit: Unit, quadratic: Quadratic) -> np.ndarray:
    """Returns the input channels by what rounding them costs, the dearest first, int32."""
    importance = quadratic.row_importance()
    weight = torch.from_numpy(unit.matrix()).to(importance.device)
    cost = quadratic.factor().price * (importance @ weight.square())
    return cost.argsort(descending=True, stable=True).cpu().numpy().astype(np.int32)


def may_be_worth_keeping(count: int, columns: int, less: np.ndarray, loss: np.ndarray) -> bool:
    """Tells whether as many bits could not as well go to all columns.

    A bit more for every weight divides the loss by about four.

    Args:
        count: Channels that are kept in 16 bits.
        columns: Columns of the unit.
        less: What rows lose then, rows x options.
        loss: What they lose without.
    """
    bits = _KEPT_BITS * count / columns
    return bool((less.sum(0) < loss.sum(0) * 4.0**-bits).any())


def tried_with_kept(options: Sequence[Option]) -> tuple[list[int], list[int]]:
    """Returns which options to try with channels kept, and which of them stands for each.

    What keeping takes away is a share that depends little on the size of groups, so the
    largest of every width will do to see what is worth a closer look.

    Returns:
        Places in ``options``; and for every option a place in that list.
    """
    largest: dict[tuple[int, bool, bool], int] = {}
    for at, one in enumerate(options):
        kind = (one.bits, one.integer, one.float8)
        if kind not in largest or one.group > options[largest[kind]].group:
            largest[kind] = at
    tried = list(largest.values())
    kinds = list(largest)
    standing = [kinds.index((one.bits, one.integer, one.float8)) for one in options]
    return tried, standing
