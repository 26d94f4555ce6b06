"""Input channels that stay in 16 bits where that is worth their bytes.

At the price that a byte has where the budget is met, every row takes the option of least
``loss + price * bytes``. A unit that keeps channels has smaller losses and more bytes; it does
so if the sum over its rows is clearly smaller. What is kept leaves fewer bytes for the rows,
which makes them dearer, so the price is raised until both agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...ir import ArrayStore
from ...ir.unit_arrays import UnitArrays
from ..engine.emission.cost import outlier_bytes
from ..engine.numerics import knapsack
from ..engine.numerics.knapsack import Item, Tried
from .decision import Candidate

_CLEAR = 0.99  # every unit that keeps channels is one more product at run time
_STEP = 1.25  # by which the price rises; faster while what is kept leaves too few bytes
_MOST_STEPS = 200
_LEAST = 1e-6  # of what a byte costs on average, where all that is offered fits the budget


def with_outlier_columns(
    candidates: Sequence[Candidate], budget: int, arrays: ArrayStore, tried: Tried
) -> list[Candidate]:
    """Returns the candidates, some of which now keep channels.

    Args:
        candidates: All units.
        budget: Bytes that they may take together.
        arrays: What ``annotate-sensitivity`` has found.
        tried: Told of every price that is tried.
    """
    offered = {one.unit.name: _losses(one, arrays) for one in candidates}
    if not any(offered.values()):
        return list(candidates)
    price = knapsack.price([one.item for one in candidates], budget, tried)
    if price is None:
        return list(candidates)
    total = sum(float(one.item.loss[:, 0].sum(dtype=np.float64)) for one in candidates)
    price = max(price, _LEAST * total / budget)
    for _ in range(_MOST_STEPS):
        chosen = [_best(one, offered[one.unit.name], price) for one in candidates]
        left = budget - sum(outlier_bytes(one.unit, one.kept) for one in chosen)
        items = [one.item for one in chosen]
        if not any(one.kept for one in chosen) or knapsack.fits(items, price, left, tried):
            return chosen
        price *= _STEP if knapsack.smallest_bytes(items) <= left else 2 * _STEP
    return list(candidates)


def _losses(candidate: Candidate, arrays: ArrayStore) -> dict[int, np.ndarray]:
    """Returns what rows lose by the number of channels that the unit may keep."""
    own = UnitArrays(candidate.unit.name, arrays)
    return {int(one): own.get("keep", one) for one in own.under("keep") if one.isdigit()}


def _best(candidate: Candidate, losses: Mapping[int, np.ndarray], price: float) -> Candidate:
    item = candidate.item
    best, least = candidate, _CLEAR * _cost(item.loss, item, price)
    for count, loss in sorted(losses.items()):
        extra = price * outlier_bytes(candidate.unit, count) + candidate.keeping.of(count)
        cost = _cost(loss, item, price) + extra
        if cost < least:
            best, least = replace(candidate, item=replace(item, loss=loss), kept=count), cost
    return best


def _cost(loss: np.ndarray, item: Item, price: float) -> float:
    """Returns the loss and the price of rows when each takes its best option."""
    row = price * item.row_bytes + item.tolls.row
    return float((loss + row).min(axis=1).sum(dtype=np.float64))
