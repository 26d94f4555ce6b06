"""The least loss over bytes, of rows that are decided one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .knapsack import Item

_REACH = 1e5  # prices go from a typical one divided by this to one multiplied by it
_PRICES = 101


def frontier(items: Sequence[Item]) -> list[tuple[int, float]]:
    """Returns bytes and loss of all units at rising bytes: the lower convex hull, in points.

    Tiles and shared orders are left out, which allows a little less.

    Args:
        items: The units.
    """
    gain = sum(float((one.loss[:, 0] - one.loss[:, -1]).sum()) for one in items)
    more = sum(float(one.row_bytes[-1] - one.row_bytes[0]) * len(one.loss) for one in items)
    if not gain > 0 or not more > 0:
        return []
    found: dict[int, float] = {}
    for price in gain / more * np.geomspace(1 / _REACH, _REACH, _PRICES):
        chosen = [_chosen(one, price) for one in items]
        size = sum(one.bytes_of(option) for one, option in zip(items, chosen, strict=True))
        found[size] = sum(map(_loss, items, chosen))
    return sorted(found.items())


def _chosen(item: Item, price: float) -> np.ndarray:
    """Returns the place of each row's option at a price of a byte, or the best one for all."""
    cost = item.loss + price * item.row_bytes
    wholes = cost.sum(axis=0) + price * item.class_bytes
    whole = np.full(len(cost), int(wholes.argmin()))
    mixed = np.asarray(cost.argmin(axis=1))
    shared = price * item.shared_bytes(mixed)
    if not item.tile or cost.min(axis=1).sum() + shared >= wholes.min():
        return whole
    return mixed


def _loss(item: Item, option: np.ndarray) -> float:
    return float(item.loss[np.arange(len(option)), option].sum(dtype=np.float64))
